//! What things are called on the broker (DESIGN §3), and what each consumer declares there.

use std::time::Duration;

use super::settings::{ConsumerSettings, Settings};
use crate::broker::{Binding, ExchangeSpec, QueueKind, QueueSpec, Topology};

/// Deliveries before a quorum queue hands a message to the dead letters: a breaker for crash loops, far above our own attempts.
const DELIVERY_LIMIT: i64 = 50;
/// For queues whose messages have nowhere else to go.
const NO_DELIVERY_LIMIT: i64 = 1_000_000_000;

/// Names with the installation's prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    prefix: String,
}

impl Names {
    /// Names that start with `prefix`.
    pub fn new(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into() }
    }

    /// The first part of every name.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Where producers publish.
    pub fn ingress(&self) -> String {
        format!("{}.in", self.prefix)
    }

    /// Where downstream events go.
    pub fn egress(&self) -> String {
        format!("{}.out", self.prefix)
    }

    /// A consumer's queue.
    pub fn queue(&self, consumer: &str) -> String {
        format!("{}.{consumer}", self.prefix)
    }

    /// One rung of a consumer's retry ladder.
    pub fn retry(&self, consumer: &str, delay: Duration) -> String {
        format!("{}.{consumer}.retry.{}", self.prefix, delay.as_millis())
    }

    /// What the broker gave up on.
    pub fn dlq(&self, consumer: &str) -> String {
        format!("{}.{consumer}.dlq", self.prefix)
    }
}

/// Everything that one consumer needs on the broker.
pub fn consumer_topology(settings: &Settings, consumer: &ConsumerSettings, patterns: &[&str]) -> Topology {
    let names = &settings.names;
    let queue = names.queue(&consumer.name);
    let ingress = names.ingress();
    let mut queues = vec![dlq_spec(settings, &consumer.name), main_spec(settings, &consumer.name)];
    queues.extend(settings.retry.rungs.iter().map(|rung| retry_spec(settings, &consumer.name, *rung)));
    let own = patterns.iter().map(|p| (ingress.clone(), (*p).to_owned()));
    let foreign = consumer.bindings.iter().map(|b| (b.exchange.clone(), b.pattern.clone()));
    let bindings =
        own.chain(foreign).map(|(exchange, pattern)| Binding { queue: queue.clone(), exchange, pattern }).collect();
    Topology { exchanges: vec![ExchangeSpec { name: ingress }], queues, bindings }
}

/// What the relay needs on the broker.
pub fn egress_topology(names: &Names) -> Topology {
    Topology { exchanges: vec![ExchangeSpec { name: names.egress() }], ..Topology::default() }
}

fn main_spec(settings: &Settings, consumer: &str) -> QueueSpec {
    QueueSpec {
        name: settings.names.queue(consumer),
        kind: settings.queue_kind,
        ttl: None,
        dead_letter_to: Some(settings.names.dlq(consumer)),
        delivery_limit: DELIVERY_LIMIT,
    }
}

fn retry_spec(settings: &Settings, consumer: &str, rung: Duration) -> QueueSpec {
    QueueSpec {
        name: settings.names.retry(consumer, rung),
        kind: settings.queue_kind,
        ttl: Some(rung),
        dead_letter_to: Some(settings.names.queue(consumer)),
        delivery_limit: NO_DELIVERY_LIMIT,
    }
}

fn dlq_spec(settings: &Settings, consumer: &str) -> QueueSpec {
    QueueSpec {
        name: settings.names.dlq(consumer),
        kind: settings.queue_kind,
        ttl: None,
        dead_letter_to: None,
        delivery_limit: NO_DELIVERY_LIMIT,
    }
}

/// Parses the configured kind of queue.
impl std::str::FromStr for QueueKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "quorum" => Ok(Self::Quorum),
            "classic" => Ok(Self::Classic),
            other => Err(format!("{other:?} is neither \"quorum\" nor \"classic\"")),
        }
    }
}

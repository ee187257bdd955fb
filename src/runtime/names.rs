//! What things are called on the broker (DESIGN §3), and what each consumer declares there.

use std::time::Duration;

use super::layout::{Layout, Place};
use super::settings::Settings;
use crate::broker::{Binding, ExchangeBinding, ExchangeSpec, QueueKind, QueueSpec, Topology};

/// Deliveries before a quorum queue hands a message to the dead letters: a breaker for crash loops, far above our own attempts.
const DELIVERY_LIMIT: i64 = 50;
/// For queues whose messages have nowhere else to go.
const NO_DELIVERY_LIMIT: i64 = 1_000_000_000;
/// What events are spread over partitions by. The broker reads headers only, never the body.
const HASH_HEADER: &str = "cloudEvents:partitionkey";
/// Every partition gets an equal share of the keys.
const WEIGHT: &str = "1";

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

    /// One of a consumer's partitions.
    pub fn partition(&self, consumer: &str, number: u16) -> String {
        format!("{}.{consumer}.{number}", self.prefix)
    }

    /// The exchange that spreads a consumer's events over its partitions.
    pub fn hash_exchange(&self, consumer: &str) -> String {
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

/// Everything that one consumer needs on the broker. Bindings are left as they are while it is being moved.
pub fn consumer_topology(place: Place<'_>, layout: Layout) -> Topology {
    let mut topology = fixed_topology(place.settings, &place.own.name);
    topology.exchanges.push(ExchangeSpec::topic(place.settings.names.ingress()));
    if layout.moving_to.is_none() {
        topology.extend(partitions_topology(place, layout.partitions));
        topology.extend(entrance(place, layout.partitions));
    }
    topology
}

/// The queues that a consumer has in every layout: its plain queue, what failed, what waits for another attempt.
pub fn fixed_topology(settings: &Settings, consumer: &str) -> Topology {
    let mut queues = vec![dlq_spec(settings, consumer), main_spec(settings, consumer)];
    queues.extend(settings.retry.rungs.iter().map(|rung| retry_spec(settings, consumer, *rung)));
    Topology { queues, ..Topology::default() }
}

/// The queue of what the broker gave up on, alone.
pub(super) fn dlq_topology(settings: &Settings, consumer: &str) -> Topology {
    Topology { queues: vec![dlq_spec(settings, consumer)], ..Topology::default() }
}

/// The hash exchange alone: a broker that can't have it says so.
pub fn hash_exchange_topology(place: Place<'_>) -> Topology {
    let exchange = place.settings.names.hash_exchange(&place.own.name);
    Topology { exchanges: vec![ExchangeSpec::hash(exchange, HASH_HEADER)], ..Topology::default() }
}

/// The hash exchange with its queues, bound to no source yet; nothing for a consumer with one queue.
///
/// The queues are bound in the order of their names: in this order the broker numbers them anew when it restarts, and a key
/// must find its queue again.
fn partitions_topology(place: Place<'_>, partitions: u16) -> Topology {
    if partitions == 1 {
        return Topology::default();
    }
    let (names, consumer) = (&place.settings.names, &place.own.name);
    let exchange = names.hash_exchange(consumer);
    let mut queues: Vec<String> = (0..partitions).map(|number| names.partition(consumer, number)).collect();
    queues.sort_unstable();
    let bind =
        |queue: &String| Binding { queue: queue.clone(), exchange: exchange.clone(), pattern: WEIGHT.to_owned() };
    Topology {
        bindings: queues.iter().map(bind).collect(),
        queues: queues.into_iter().map(|queue| partition_spec(place.settings, consumer, queue)).collect(),
        ..hash_exchange_topology(place)
    }
}

/// How events come in: the bindings of the plain queue, or of the hash exchange, to the ingress exchange and the foreign ones.
pub fn entrance(place: Place<'_>, partitions: u16) -> Topology {
    let (names, consumer) = (&place.settings.names, &place.own.name);
    let own = place.patterns.iter().map(|pattern| (names.ingress(), (*pattern).to_owned()));
    let foreign = place.own.bindings.iter().map(|b| (b.exchange.clone(), b.pattern.clone()));
    let sources = own.chain(foreign);
    if partitions == 1 {
        let queue = names.queue(consumer);
        let bind = |(exchange, pattern)| Binding { queue: queue.clone(), exchange, pattern };
        return Topology { bindings: sources.map(bind).collect(), ..Topology::default() };
    }
    let to = names.hash_exchange(consumer);
    let bind = |(from, pattern)| ExchangeBinding { from, to: to.clone(), pattern };
    Topology { exchange_bindings: sources.map(bind).collect(), ..Topology::default() }
}

/// What the relay needs on the broker.
pub fn egress_topology(names: &Names) -> Topology {
    Topology { exchanges: vec![ExchangeSpec::topic(names.egress())], ..Topology::default() }
}

fn main_spec(settings: &Settings, consumer: &str) -> QueueSpec {
    QueueSpec {
        name: settings.names.queue(consumer),
        kind: settings.queue_kind,
        ttl: None,
        dead_letter_to: Some(settings.names.dlq(consumer)),
        delivery_limit: DELIVERY_LIMIT,
        single_active_consumer: false,
    }
}

/// Like the plain queue, but one replica at a time reads it.
fn partition_spec(settings: &Settings, consumer: &str, name: String) -> QueueSpec {
    QueueSpec { name, single_active_consumer: true, ..main_spec(settings, consumer) }
}

fn retry_spec(settings: &Settings, consumer: &str, rung: Duration) -> QueueSpec {
    QueueSpec {
        name: settings.names.retry(consumer, rung),
        kind: settings.queue_kind,
        ttl: Some(rung),
        dead_letter_to: Some(settings.names.queue(consumer)),
        delivery_limit: NO_DELIVERY_LIMIT,
        single_active_consumer: false,
    }
}

fn dlq_spec(settings: &Settings, consumer: &str) -> QueueSpec {
    QueueSpec {
        name: settings.names.dlq(consumer),
        kind: settings.queue_kind,
        ttl: None,
        dead_letter_to: None,
        delivery_limit: NO_DELIVERY_LIMIT,
        single_active_consumer: false,
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

//! Exchanges, queues and bindings: declared again on every new channel, so that what an operator deleted comes back.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};

use super::error::{BrokerError, bounded};
use super::link::{ANSWER_WITHIN, Link};

/// What a part of the program needs on the broker.
#[derive(Debug, Clone, Default)]
pub struct Topology {
    /// Topic exchanges.
    pub exchanges: Vec<ExchangeSpec>,
    /// Queues.
    pub queues: Vec<QueueSpec>,
    /// Bindings.
    pub bindings: Vec<Binding>,
}

/// A durable topic exchange.
#[derive(Debug, Clone)]
pub struct ExchangeSpec {
    /// Its name.
    pub name: String,
}

/// How a queue stores its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueKind {
    /// Replicated, survives the loss of a node: the default.
    Quorum,
    /// On one node: faster, lost with its disk.
    Classic,
}

/// A durable queue.
#[derive(Debug, Clone)]
pub struct QueueSpec {
    /// Its name.
    pub name: String,
    /// How it stores.
    pub kind: QueueKind,
    /// Messages expire after this.
    pub ttl: Option<Duration>,
    /// Where dead-lettered messages go: a queue's name, through the default exchange.
    pub dead_letter_to: Option<String>,
    /// Deliveries before a quorum queue gives up on a message. Always set: the default changed to 20 in RabbitMQ 4.0.
    pub delivery_limit: i64,
}

/// A queue's binding to a topic exchange.
#[derive(Debug, Clone)]
pub struct Binding {
    /// The queue.
    pub queue: String,
    /// The exchange.
    pub exchange: String,
    /// The pattern.
    pub pattern: String,
}

impl Topology {
    /// Declares everything on `channel`. Safe to repeat.
    ///
    /// # Errors
    /// The first refusal; the channel is closed by then.
    pub(super) async fn declare(&self, channel: &Channel) -> Result<(), BrokerError> {
        for exchange in &self.exchanges {
            exchange.declare(channel).await?;
        }
        for queue in &self.queues {
            queue.declare(channel).await?;
        }
        for binding in &self.bindings {
            binding.declare(channel).await?;
        }
        Ok(())
    }

    /// Declares everything and collects every refusal, each explained, instead of stopping at the first.
    ///
    /// # Errors
    /// The broker is away.
    pub async fn declare_all(&self, link: &Link) -> Result<Vec<String>, BrokerError> {
        let mut refusals = Vec::new();
        for exchange in &self.exchanges {
            let refused = exchange.declare(&link.channel_now().await?).await.err();
            refusals.extend(refused.map(|e| explain("exchange", &exchange.name, &e)));
        }
        for queue in &self.queues {
            let refused = queue.declare(&link.channel_now().await?).await.err();
            refusals.extend(refused.map(|e| explain("queue", &queue.name, &e)));
        }
        for binding in &self.bindings {
            let refused = binding.declare(&link.channel_now().await?).await.err();
            refusals.extend(refused.map(|e| explain("binding of queue", &binding.queue, &e)));
        }
        Ok(refusals)
    }
}

/// Says what differs and what to do about it; the broker's text names the argument with its old and new value.
pub(super) fn explain(what: &str, name: &str, error: &BrokerError) -> String {
    if error.is_precondition_failed() {
        return format!(
            "{what} {name:?} exists with other arguments: {error}. To keep it, set the configuration to what it has; \
             to change it, let it run empty, delete it (rabbitmqctl delete_queue) and start again: it is declared anew"
        );
    }
    if error.is_refused() {
        return format!("{what} {name:?}: our user may not declare it: {error}. Grant configure permission on it");
    }
    format!("{what} {name:?}: {error}")
}

impl ExchangeSpec {
    async fn declare(&self, channel: &Channel) -> Result<(), BrokerError> {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let work =
            channel.exchange_declare(self.name.as_str().into(), ExchangeKind::Topic, options, FieldTable::default());
        bounded("declare an exchange", ANSWER_WITHIN, work).await
    }
}

impl QueueSpec {
    async fn declare(&self, channel: &Channel) -> Result<(), BrokerError> {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let work = channel.queue_declare(self.name.as_str().into(), options, self.arguments());
        bounded("declare a queue", ANSWER_WITHIN, work).await.map(|_| ())
    }

    fn arguments(&self) -> FieldTable {
        let mut table = FieldTable::default();
        let mut set = |key: &'static str, value: AMQPValue| {
            table.insert(key.into(), value);
        };
        let text = |value: &str| AMQPValue::LongString(value.as_bytes().to_vec().into());
        if self.kind == QueueKind::Quorum {
            set("x-queue-type", text("quorum"));
            set("x-delivery-limit", AMQPValue::LongLongInt(self.delivery_limit));
        }
        if let Some(ttl) = self.ttl {
            let millis = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
            set("x-message-ttl", AMQPValue::LongLongInt(millis));
        }
        if let Some(queue) = &self.dead_letter_to {
            set("x-dead-letter-exchange", text(""));
            set("x-dead-letter-routing-key", text(queue));
            if self.kind == QueueKind::Quorum {
                // The default, at-most-once, may lose what it moves.
                set("x-dead-letter-strategy", text("at-least-once"));
                set("x-overflow", text("reject-publish"));
            }
        }
        table
    }
}

impl Binding {
    async fn declare(&self, channel: &Channel) -> Result<(), BrokerError> {
        let (queue, exchange) = (self.queue.as_str().into(), self.exchange.as_str().into());
        let work = channel.queue_bind(
            queue,
            exchange,
            self.pattern.as_str().into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        bounded("bind a queue", ANSWER_WITHIN, work).await
    }
}

//! Exchanges, queues and bindings: declared again on every new channel, so that what an operator deleted comes back.
//!
//! Where our user may not declare (`topology.declare = false`), exchanges and queues are only looked for. A binding can't be looked at
//! over AMQP: whoever declares the queues makes it, with `onceflow check`.

use std::time::Duration;

use lapin::options::{ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};

use super::consume::close;
use super::error::{BrokerError, bounded};
use super::link::{ANSWER_WITHIN, Link};

/// What we do where we may not declare; part of the error where something is missing.
const LOOK_FOR_AN_EXCHANGE: &str =
    "look for an exchange (topology.declare = false: `onceflow check` as the deploy user makes it)";
const LOOK_FOR_A_QUEUE: &str =
    "look for a queue (topology.declare = false: `onceflow check` as the deploy user makes it)";

/// What a part of the program needs on the broker.
#[derive(Debug, Clone, Default)]
pub struct Topology {
    /// Exchanges.
    pub exchanges: Vec<ExchangeSpec>,
    /// Queues.
    pub queues: Vec<QueueSpec>,
    /// Bindings of queues.
    pub bindings: Vec<Binding>,
    /// Bindings of exchanges, made last: what comes through them finds every queue bound.
    pub exchange_bindings: Vec<ExchangeBinding>,
}

/// A durable exchange.
#[derive(Debug, Clone)]
pub struct ExchangeSpec {
    name: String,
    /// Spreads over its queues by the hash of this header; a topic exchange without.
    hash_header: Option<&'static str>,
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
    /// One consumer at a time gets its messages, in order; the others wait in line.
    pub single_active_consumer: bool,
}

/// A queue's binding to an exchange.
#[derive(Debug, Clone)]
pub struct Binding {
    /// The queue.
    pub queue: String,
    /// The exchange.
    pub exchange: String,
    /// The pattern, or the weight where the exchange hashes.
    pub pattern: String,
}

/// An exchange's binding to a topic exchange.
#[derive(Debug, Clone)]
pub struct ExchangeBinding {
    /// Where messages come from.
    pub from: String,
    /// Where they go.
    pub to: String,
    /// The pattern.
    pub pattern: String,
}

impl Topology {
    /// Adds another part.
    pub fn extend(&mut self, part: Self) {
        self.exchanges.extend(part.exchanges);
        self.queues.extend(part.queues);
        self.bindings.extend(part.bindings);
        self.exchange_bindings.extend(part.exchange_bindings);
    }

    /// Declares everything, on a channel of its own. Safe to repeat.
    ///
    /// # Errors
    /// The broker is away, or the first refusal.
    pub async fn declare_now(&self, link: &Link) -> Result<(), BrokerError> {
        let channel = link.channel_now().await?;
        self.declare(&channel, link.declares()).await?;
        close(&channel).await;
        Ok(())
    }

    /// Declares everything on `channel`, or looks whether it is there. Safe to repeat.
    ///
    /// # Errors
    /// The first refusal; the channel is closed by then.
    pub(super) async fn declare(&self, channel: &Channel, declares: bool) -> Result<(), BrokerError> {
        if !declares {
            return self.look_for(channel).await;
        }
        for exchange in &self.exchanges {
            exchange.declare(channel).await?;
        }
        for queue in &self.queues {
            queue.declare(channel).await?;
        }
        for binding in &self.bindings {
            binding.declare(channel).await?;
        }
        for binding in &self.exchange_bindings {
            binding.declare(channel).await?;
        }
        Ok(())
    }

    async fn look_for(&self, channel: &Channel) -> Result<(), BrokerError> {
        for exchange in &self.exchanges {
            exchange.look_for(channel).await?;
        }
        for queue in &self.queues {
            queue.look_for(channel).await?;
        }
        Ok(())
    }

    /// Looks for everything and collects what is missing.
    async fn look_for_all(&self, link: &Link) -> Result<Vec<String>, BrokerError> {
        let mut missing = Vec::new();
        for exchange in &self.exchanges {
            let refused = exchange.look_for(&link.channel_now().await?).await.err();
            missing.extend(refused.map(|e| explain("exchange", &exchange.name, &e)));
        }
        for queue in &self.queues {
            let refused = queue.look_for(&link.channel_now().await?).await.err();
            missing.extend(refused.map(|e| explain("queue", &queue.name, &e)));
        }
        Ok(missing)
    }

    /// Declares everything and collects every refusal, each explained, instead of stopping at the first.
    ///
    /// # Errors
    /// The broker is away.
    pub async fn declare_all(&self, link: &Link) -> Result<Vec<String>, BrokerError> {
        if !link.declares() {
            return self.look_for_all(link).await;
        }
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
        for binding in &self.exchange_bindings {
            let refused = binding.declare(&link.channel_now().await?).await.err();
            refusals.extend(refused.map(|e| explain("binding of exchange", &binding.to, &e)));
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
        return format!(
            "{what} {name:?}: our user may not declare it: {error}. Grant configure permission on it, or set topology.declare = \
             false and let a deploy user run `onceflow check` (`onceflow topology permissions`)"
        );
    }
    format!("{what} {name:?}: {error}")
}

impl ExchangeSpec {
    /// A topic exchange.
    pub fn topic(name: impl Into<String>) -> Self {
        Self { name: name.into(), hash_header: None }
    }

    /// An exchange that sends messages with the same value of a header to the same queue.
    pub fn hash(name: impl Into<String>, header: &'static str) -> Self {
        Self { name: name.into(), hash_header: Some(header) }
    }

    /// The type and the arguments are not compared.
    async fn look_for(&self, channel: &Channel) -> Result<(), BrokerError> {
        let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let name = self.name.as_str().into();
        let work = channel.exchange_declare(name, ExchangeKind::Topic, options, FieldTable::default());
        bounded(LOOK_FOR_AN_EXCHANGE, ANSWER_WITHIN, work).await
    }

    async fn declare(&self, channel: &Channel) -> Result<(), BrokerError> {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let mut arguments = FieldTable::default();
        let kind = match self.hash_header {
            None => ExchangeKind::Topic,
            Some(header) => {
                arguments.insert("hash-header".into(), text(header));
                ExchangeKind::Custom("x-consistent-hash".to_owned())
            }
        };
        let work = channel.exchange_declare(self.name.as_str().into(), kind, options, arguments);
        match bounded("declare an exchange", ANSWER_WITHIN, work).await {
            // A type that the broker doesn't know costs the whole connection.
            Err(error) if self.hash_header.is_some() && error.is_command_invalid() => {
                Err(BrokerError::no_hash_exchange())
            }
            declared => declared,
        }
    }
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.as_bytes().to_vec().into())
}

impl QueueSpec {
    async fn look_for(&self, channel: &Channel) -> Result<(), BrokerError> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let work = channel.queue_declare(self.name.as_str().into(), options, FieldTable::default());
        bounded(LOOK_FOR_A_QUEUE, ANSWER_WITHIN, work).await.map(|_| ())
    }

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
        if self.kind == QueueKind::Quorum {
            set("x-queue-type", text("quorum"));
            set("x-delivery-limit", AMQPValue::LongLongInt(self.delivery_limit));
        }
        if self.single_active_consumer {
            set("x-single-active-consumer", AMQPValue::Boolean(true));
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

impl ExchangeBinding {
    async fn declare(&self, channel: &Channel) -> Result<(), BrokerError> {
        let (to, from) = (self.to.as_str().into(), self.from.as_str().into());
        let pattern = self.pattern.as_str().into();
        let work = channel.exchange_bind(to, from, pattern, ExchangeBindOptions::default(), FieldTable::default());
        bounded("bind an exchange", ANSWER_WITHIN, work).await
    }
}

//! What a consumer is: the one interface between the runtime and the domains.
//!
//! A consumer decodes an [`Envelope`] into its own event and handles a slice of events inside one transaction. It answers
//! with one [`Outcome`] per event and knows nothing of queues, acknowledgements or retries.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::invariant::Invariant;
use super::personal::PersonalData;
use crate::db::{DbError, Tx};
use crate::event::{Downstream, Envelope, Rejection};

/// Turns JSON in the canonical mapping into protobuf bytes.
pub type ToProtobuf = fn(&str) -> Result<Vec<u8>, serde_json::Error>;

/// An event type that a consumer reads or publishes.
#[derive(Debug, Clone, Copy)]
pub struct EventType {
    /// The CloudEvents `type`, e.g. `org.user.upserted.v1`.
    pub name: &'static str,
    /// One line for people who look for the right type.
    pub summary: &'static str,
    /// Full name of its protobuf message, e.g. `onceflow.org.v1.UserUpserted`.
    pub message: &'static str,
    /// A valid JSON payload; empty for downstream types.
    pub sample: &'static str,
    /// Turns JSON in the canonical mapping into protobuf bytes, for producers who try the binary encoding; `None` for downstream types.
    pub to_protobuf: Option<ToProtobuf>,
}

/// An envelope with what the consumer decoded from it. Shared, because a batch that fails is handed over again event by event.
#[derive(Debug, Clone)]
pub struct Received<E> {
    /// The event's attributes.
    pub envelope: Arc<Envelope>,
    /// The domain's own, valid form of the payload.
    pub event: Arc<E>,
}

/// What became of one event. Every variant is settled by exactly one function of the runtime.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Its effects are written; these events go out with them.
    Applied(Vec<Downstream>),
    /// Nothing to do, for good: recorded and acknowledged.
    Skipped(Skip),
    /// May work later: put aside for at least `after`. Costs an attempt.
    Retry {
        /// Shortest wait before the next attempt.
        after: Duration,
        /// Stable reason code.
        code: &'static str,
    },
    /// Can never work: dead letter at once. Whatever was written for it is rolled back.
    Reject(Rejection),
}

impl Outcome {
    /// Applied, with nothing to say downstream.
    pub fn applied() -> Self {
        Self::Applied(Vec::new())
    }
}

/// Why an event was skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// Its version is older than what is stored.
    Stale,
    /// It changes nothing; the text is a stable code such as `no_change` or `already_paid`.
    Because(&'static str),
}

/// A failure that isn't an answer: the batch is rolled back and each event is tried alone.
#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    /// The database said no; its class decides what follows.
    #[error(transparent)]
    Database(#[from] DbError),
    /// A rule was broken that can't be mended by waiting.
    #[error(transparent)]
    Rejected(#[from] Rejection),
}

/// Reads some event types and applies them to its own tables.
#[async_trait]
pub trait Consumer: Send + Sync + 'static {
    /// The valid, decoded form of what this consumer reads.
    type Event: Send + Sync + 'static;

    /// Names the queue, the inbox rows, the metrics: lower-case letters.
    const NAME: &'static str;
    /// Topic patterns on the ingress exchange, e.g. `org.#`.
    const BINDINGS: &'static [&'static str];
    /// Every event type it reads.
    const READS: &'static [EventType];
    /// Every event type it publishes.
    const PUBLISHES: &'static [EventType];
    /// What must hold in its tables, for `onceflow check invariants`.
    const INVARIANTS: &'static [Invariant] = &[];
    /// What its tables keep of persons, for `onceflow person` and retention.
    const PERSONAL: &'static [PersonalData] = &[];

    /// Turns the wire form into a valid event. Called before any transaction.
    ///
    /// # Errors
    /// A rejection sends the event to the dead letters at once.
    fn decode(&self, envelope: &Envelope) -> Result<Self::Event, Rejection>;

    /// Applies one event inside `tx`.
    ///
    /// # Errors
    /// Any error rolls the transaction back.
    async fn handle_one(&self, tx: &Tx, event: &Received<Self::Event>) -> Result<Outcome, HandleError>;

    /// Applies the events of one micro-batch inside `tx`, in order; one outcome each. Consumers that write with set-based SQL
    /// override it. An event may be handed over that turns out to be a copy of an applied one: then everything is rolled back,
    /// whatever the answer.
    ///
    /// # Errors
    /// Any error rolls the whole batch back; the runtime then hands over smaller ones, in the end each event alone.
    async fn handle(&self, tx: &Tx, events: &[Received<Self::Event>]) -> Result<Vec<Outcome>, HandleError> {
        let mut outcomes = Vec::with_capacity(events.len());
        for event in events {
            outcomes.push(self.handle_one(tx, event).await?);
        }
        Ok(outcomes)
    }
}

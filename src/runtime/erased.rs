//! Typed outside, erased inside: the runtime holds consumers of different event types in one list.

use std::any::Any;
use std::sync::Arc;

use async_trait::async_trait;

use super::contract::{Consumer, EventType, HandleError, Outcome, Received};
use super::invariant::Invariant;
use super::personal::PersonalData;
use crate::db::Tx;
use crate::event::{Envelope, Rejection};

/// A decoded event whose type only its consumer knows.
pub type Decoded = Arc<dyn Any + Send + Sync>;

/// A [`Consumer`] without its type parameters.
#[async_trait]
pub trait AnyConsumer: Send + Sync {
    /// [`Consumer::NAME`].
    fn name(&self) -> &'static str;
    /// [`Consumer::BINDINGS`].
    fn bindings(&self) -> &'static [&'static str];
    /// [`Consumer::READS`].
    fn reads(&self) -> &'static [EventType];
    /// [`Consumer::PUBLISHES`].
    fn publishes(&self) -> &'static [EventType];
    /// [`Consumer::INVARIANTS`].
    fn invariants(&self) -> &'static [Invariant];
    /// [`Consumer::PERSONAL`].
    fn personal(&self) -> &'static [PersonalData];
    /// [`Consumer::decode`] of a known type; an unknown one is rejected.
    ///
    /// # Errors
    /// Unknown type, unreadable payload, broken rule.
    fn decode(&self, envelope: &Envelope) -> Result<Decoded, Rejection>;
    /// [`Consumer::handle`] of events that [`decode`](Self::decode) made.
    ///
    /// # Errors
    /// As [`Consumer::handle`].
    async fn handle(&self, tx: &Tx, events: Vec<(Arc<Envelope>, Decoded)>) -> Result<Vec<Outcome>, HandleError>;
}

/// Forgets the consumer's event type.
pub fn erase<C: Consumer>(consumer: C) -> Box<dyn AnyConsumer> {
    Box::new(Erased(consumer))
}

struct Erased<C>(C);

#[async_trait]
impl<C: Consumer> AnyConsumer for Erased<C> {
    fn name(&self) -> &'static str {
        C::NAME
    }

    fn bindings(&self) -> &'static [&'static str] {
        C::BINDINGS
    }

    fn reads(&self) -> &'static [EventType] {
        C::READS
    }

    fn publishes(&self) -> &'static [EventType] {
        C::PUBLISHES
    }

    fn invariants(&self) -> &'static [Invariant] {
        C::INVARIANTS
    }

    fn personal(&self) -> &'static [PersonalData] {
        C::PERSONAL
    }

    fn decode(&self, envelope: &Envelope) -> Result<Decoded, Rejection> {
        if !C::READS.iter().any(|t| t.name == envelope.event_type) {
            let message = format!(
                "{} reads no events of type {:?}; `onceflow events types` lists those it does",
                C::NAME,
                envelope.event_type
            );
            return Err(Rejection::decode("unknown_type", message));
        }
        Ok(Arc::new(self.0.decode(envelope)?))
    }

    async fn handle(&self, tx: &Tx, events: Vec<(Arc<Envelope>, Decoded)>) -> Result<Vec<Outcome>, HandleError> {
        let events: Vec<Received<C::Event>> = events.into_iter().map(restore::<C>).collect();
        self.0.handle(tx, &events).await
    }
}

fn restore<C: Consumer>((envelope, decoded): (Arc<Envelope>, Decoded)) -> Received<C::Event> {
    let event = decoded.downcast::<C::Event>().expect("the same consumer decoded it");
    Received { envelope, event }
}

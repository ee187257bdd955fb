//! The line behind a blocked key: who may go, who waits, who is next.

use std::collections::HashSet;
use std::hash::BuildHasher as _;
use std::sync::{Arc, Mutex, PoisonError};

use foldhash::fast::FixedState;
use serde_json::Value;
use uuid::Uuid;

use super::super::dead_letter::stored_headers;
use super::super::headers::{History, carry};
use super::super::settings::{ConsumerSettings, Settings};
use super::super::wire::text_without_nul;
use super::{OrderPolicy, store};
use crate::db::{DbError, Tx};
use crate::event::Envelope;
use crate::message::Message;

/// So many blocked keys are remembered.
const MOST_KNOWN: usize = 100_000;

/// The lines of one strict consumer.
#[derive(Debug, Clone)]
pub(in crate::runtime) struct Line {
    pub(super) consumer: &'static str,
    /// Where the line is sent to.
    pub(super) queue: String,
    /// Most messages of a key.
    pub(super) of_key: i64,
    /// Most messages of the consumer.
    pub(super) of_all: i64,
    /// Keys that were blocked at the last look, hashed. Only a hint: it spares attempts that would be in vain.
    known: Arc<Mutex<HashSet<u64>>>,
}

/// How an event stands to its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::runtime) enum Looked {
    /// Nothing blocks the key.
    Free,
    /// It is what blocks the key.
    Head,
    /// Another event blocks the key.
    Blocked,
}

/// Where an event is after a look at its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::runtime) enum Place {
    /// It may go on: nobody is before it.
    First,
    /// It waits in the line and can be acknowledged.
    Waits,
    /// It has a place in the line, but no room for its message.
    Circles,
}

/// The event at the head of a line.
#[derive(Debug)]
pub(super) struct Head<'a> {
    pub(super) tenant: &'a str,
    pub(super) consumer: &'a str,
    pub(super) partition_key: &'a str,
    pub(super) source: &'a str,
    pub(super) event_id: &'a str,
}

/// An event as a line needs it.
#[derive(Debug, Clone, Copy)]
pub(in crate::runtime) struct Waiting<'a> {
    pub(in crate::runtime) envelope: &'a Envelope,
    pub(in crate::runtime) message: &'a Message,
    pub(in crate::runtime) history: &'a History,
}

impl Waiting<'_> {
    /// Headers as the outbox publishes them, with the history that the event brought along.
    pub(super) fn headers(&self) -> Value {
        let mut headers = stored_headers(self.message);
        if let Value::Object(map) = &mut headers {
            carry(self.history, |name, value| drop(map.insert(name.to_owned(), storable(value))));
        }
        headers
    }
}

impl Line {
    /// `None` for a consumer whose events wait for nobody.
    pub(in crate::runtime) fn of(consumer: &'static str, own: &ConsumerSettings, settings: &Settings) -> Option<Self> {
        let whole = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        (own.ordering == OrderPolicy::Strict).then(|| Self {
            consumer,
            queue: settings.names.queue(consumer),
            of_key: whole(settings.held_events_per_key),
            of_all: whole(settings.held_events),
            known: Arc::default(),
        })
    }

    /// How each of these stands to its key, without a lock: one statement for all.
    pub(in crate::runtime) async fn look(&self, tx: &Tx, events: &[&Envelope]) -> Result<Vec<Looked>, DbError> {
        let looked = store::look(tx, self.consumer, events).await?;
        self.learn(events, &looked);
        Ok(looked)
    }

    /// Whether the key was blocked by another event when it was last looked at.
    pub(in crate::runtime) fn was_blocked(&self, event: &Envelope) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).contains(&hash(event))
    }

    fn learn(&self, events: &[&Envelope], looked: &[Looked]) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for (event, looked) in events.iter().zip(looked) {
            match looked {
                Looked::Free if known.is_empty() => {}
                Looked::Free => drop(known.remove(&hash(event))),
                Looked::Blocked if known.len() < MOST_KNOWN => drop(known.insert(hash(event))),
                Looked::Blocked | Looked::Head => {}
            }
        }
    }

    /// These heads are done with: the next of each line leaves it.
    pub(in crate::runtime) async fn advance(&self, tx: &Tx, done: &[&Envelope]) -> Result<(), DbError> {
        let heads: Vec<Head<'_>> = done.iter().map(|envelope| self.head(envelope)).collect();
        advance(tx, &heads).await
    }

    fn head<'a>(&'a self, envelope: &'a Envelope) -> Head<'a> {
        Head {
            tenant: &envelope.tenant,
            consumer: self.consumer,
            partition_key: &envelope.partition_key,
            source: &envelope.source,
            event_id: &envelope.id,
        }
    }

    /// An event has failed and blocks its key from now on, unless another one does already: then it waits. One that was
    /// applied before blocks nothing.
    pub(in crate::runtime) async fn block(&self, tx: &Tx, failed: Waiting<'_>) -> Result<Place, DbError> {
        store::block(tx, &self.head(failed.envelope), &self.queue).await?;
        let places = self.hold(tx, &[failed]).await?;
        Ok(places.first().copied().unwrap_or(Place::First))
    }

    /// Puts those whose keys are blocked by others into the line, in this order. Copies of what was dealt with wait for nobody.
    pub(in crate::runtime) async fn hold(&self, tx: &Tx, events: &[Waiting<'_>]) -> Result<Vec<Place>, DbError> {
        let envelopes: Vec<&Envelope> = events.iter().map(|event| event.envelope).collect();
        store::lock(tx, self.consumer, &envelopes).await?;
        let mut looked = self.look(tx, &envelopes).await?;
        store::free_copies(tx, self.consumer, &envelopes, &mut looked).await?;
        let behind: Vec<Waiting<'_>> =
            events.iter().zip(&looked).filter(|(_, looked)| **looked == Looked::Blocked).map(|(e, _)| *e).collect();
        let mut circling = self.place(tx, &behind).await?.into_iter();
        let place = |looked: &Looked| match looked {
            Looked::Free | Looked::Head => Place::First,
            Looked::Blocked if circling.next() == Some(true) => Place::Circles,
            Looked::Blocked => Place::Waits,
        };
        Ok(looked.iter().map(place).collect())
    }

    /// Whether each of these found no room for its message.
    async fn place(&self, tx: &Tx, events: &[Waiting<'_>]) -> Result<Vec<bool>, DbError> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        store::place(tx, self.consumer, events).await?;
        store::fill(tx, self, events).await?;
        store::circling(tx, self.consumer, events).await
    }
}

fn hash(event: &Envelope) -> u64 {
    FixedState::default().hash_one((&event.tenant, &event.partition_key))
}

/// PostgreSQL keeps no NUL.
fn storable(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(text_without_nul(&text)),
        other => other,
    }
}

async fn advance(tx: &Tx, heads: &[Head<'_>]) -> Result<(), DbError> {
    if heads.is_empty() {
        return Ok(());
    }
    let keys = store::lock_heads(tx, heads).await?;
    store::move_on(tx, keys).await
}

/// These dead letters were discarded or archived: what waits behind them goes on.
///
/// # Errors
/// The database is away.
pub(crate) async fn closed(tx: &Tx, dead_letters: &[Uuid]) -> Result<(), DbError> {
    let keys = store::lock_closed(tx, dead_letters).await?;
    store::move_on(tx, keys).await
}

/// An edited copy takes the place of an event: where that was the head of a line, the copy is from now on.
///
/// # Errors
/// The database is away.
pub(crate) async fn replaced(tx: &Tx, original: Identity<'_>, copy: &str) -> Result<(), DbError> {
    store::replace(tx, original, copy).await
}

/// Which event of which consumer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity<'a> {
    pub(crate) tenant: &'a str,
    pub(crate) consumer: &'a str,
    pub(crate) source: &'a str,
    pub(crate) event_id: &'a str,
}

/// These outbox rows were dropped. Where one carried the head of a line, the line goes on without it.
///
/// # Errors
/// The database is away.
pub(crate) async fn dropped(tx: &Tx, rows: &[Uuid]) -> Result<(), DbError> {
    let keys = store::lock_sent(tx, rows).await?;
    store::move_on(tx, keys).await
}

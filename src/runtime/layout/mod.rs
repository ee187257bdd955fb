//! How many queues a consumer reads from.
//!
//! What counts is the row in `onceflow.consumer_layout`; the configuration is only the wish, so that replicas with differing
//! configurations never declare different bindings. A consumer is in one of two states:
//!
//! | row | what is bound to the sources | what is read |
//! |---|---|---|
//! | `partitions = n` | the plain queue (n = 1), or the hash exchange with its n queues | that, and always the plain queue, where retries and replays arrive |
//! | `partitions = n, moving_to = m` | what the mover is at (see [`crate::topology`]) | only what belongs to n; the plain queue by one replica |
//!
//! Invariant: nobody declares a binding that doesn't belong to the row. Whoever declares reads the row and keeps it locked
//! (`FOR SHARE`) until the declaration has ended; a move begins by changing the row, so it waits for that. If the database
//! connection is lost in between, at most the requests already sent to the broker straggle; a mover therefore unbinds the old
//! side once more before it ends the move.
//!
//! The row is made by the first who looks: with the wish where the broker has no queue of the consumer yet, with one
//! queue where it has. Two who look at once agree, because the first insert stands.

mod store;

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

use super::names::{Names, consumer_topology, fixed_topology, hash_exchange_topology};
use super::settings::{ConsumerSettings, Settings};
use crate::broker::{BrokerError, Link, Topology, queue_states};
use crate::db::{DbError, Pool, Tx};

/// How a consumer's queues are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Queues that its events are spread over; 1 is the plain queue.
    pub partitions: u16,
    /// What it is being moved to.
    pub moving_to: Option<u16>,
}

impl Layout {
    /// At rest with so many partitions.
    pub fn of(partitions: u16) -> Self {
        Self { partitions, moving_to: None }
    }

    /// The partitions to read, by number; none where there is only the plain queue.
    pub fn partition_numbers(self) -> std::ops::Range<u16> {
        if self.partitions == 1 { 0..0 } else { 0..self.partitions }
    }

    /// Whether other replicas, or a mover, have to be followed.
    pub(super) fn is_shared(self) -> bool {
        self.partitions > 1 || self.moving_to.is_some()
    }
}

/// Why a consumer's queues can't be read now.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// The layout is unknown.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The broker is away or says no.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// What a consumer is, as far as its queues are concerned.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Settings of all consumers.
    pub settings: &'a Settings,
    /// Its own.
    pub own: &'a ConsumerSettings,
    /// Its topic patterns.
    pub patterns: &'a [&'a str],
}

/// Reads the layout of a consumer, deciding it where nobody has yet, and declares what belongs to it.
///
/// # Errors
/// Database or broker are away, or the broker says no.
pub async fn lay_out(pool: &Pool, link: &Link, place: Place<'_>) -> Result<Layout, Unavailable> {
    decided(pool, link, place).await?;
    let tx = pool.begin().await?;
    let layout = store::hold(&tx, &place.own.name).await?.unwrap_or(Layout::of(1));
    declare(link, layout.partitions, consumer_topology(place, layout)).await?;
    tx.rollback().await;
    Ok(layout)
}

/// A broker without the hash exchange ends the connection over it, which must not hit what else uses the link.
async fn declare(link: &Link, partitions: u16, topology: Topology) -> Result<(), BrokerError> {
    if partitions == 1 {
        return topology.declare_now(link).await;
    }
    let beside = link.beside();
    let declared = topology.declare_now(&beside).await;
    beside.close().await;
    declared
}

/// Like [`lay_out`], but goes on after a refusal and returns all of them, each explained.
///
/// # Errors
/// Database or broker are away.
pub async fn lay_out_all(pool: &Pool, link: &Link, place: Place<'_>) -> Result<(Layout, Vec<String>), Unavailable> {
    match decided(pool, link, place).await {
        Err(Unavailable::Broker(error)) if error.is_refusal() => {
            return Ok((Layout::of(place.own.partitions), vec![format!("consumer {}: {error}", place.own.name)]));
        }
        decided => decided?,
    }
    let tx = pool.begin().await?;
    let layout = store::hold(&tx, &place.own.name).await?.unwrap_or(Layout::of(1));
    let refusals = consumer_topology(place, layout).declare_all(link).await?;
    tx.rollback().await;
    Ok((layout, refusals))
}

/// Makes the row where there is none.
async fn decided(pool: &Pool, link: &Link, place: Place<'_>) -> Result<(), Unavailable> {
    let consumer = &place.own.name;
    if stored(pool, consumer).await?.is_some() {
        return Ok(());
    }
    let is_new = is_new(link, &place.settings.names, consumer).await?;
    if is_new && !link.declares() {
        // Whoever makes the queues decides how many; until then this says what is missing.
        fixed_topology(place.settings, consumer).declare_now(link).await?;
    }
    let partitions = if is_new { place.own.partitions } else { 1 };
    if partitions > 1 {
        // A broker that can't have partitions must not get a row that says it has.
        declare(link, partitions, hash_exchange_topology(place)).await?;
    }
    let tx = pool.begin().await?;
    store::decide(&tx, consumer, partitions).await?;
    Ok(tx.commit_repeatable().await?)
}

/// Whether the broker has no queue of the consumer yet.
///
/// # Errors
/// The broker is away or says no.
pub async fn is_new(link: &Link, names: &Names, consumer: &str) -> Result<bool, BrokerError> {
    Ok(queue_states(link, &[names.queue(consumer)]).await?[0].is_none())
}

/// The layout as it is stored; `None` where nobody has decided yet.
///
/// # Errors
/// The database is away.
pub async fn stored(pool: &Pool, consumer: &str) -> Result<Option<Layout>, DbError> {
    let tx = pool.begin().await?;
    let layout = store::read(&tx, consumer).await?;
    tx.rollback().await;
    Ok(layout)
}

/// The layouts of all consumers that have a row.
///
/// # Errors
/// The database is away.
pub async fn all(tx: &Tx) -> Result<BTreeMap<String, Layout>, DbError> {
    store::all(tx).await
}

/// One apply that may move a consumer, as long as it renews that.
#[derive(Debug, Clone)]
pub struct Mover {
    /// The consumer.
    pub consumer: String,
    /// Names this apply.
    pub id: Uuid,
    /// How long nobody else may move it without renewal.
    pub ttl: Duration,
}

impl Mover {
    /// Takes or renews the right to move; makes the row where there is none. `None` when another apply has it.
    ///
    /// # Errors
    /// The database is away.
    pub async fn take(&self, tx: &Tx) -> Result<Option<Layout>, DbError> {
        store::decide(tx, &self.consumer, 1).await?;
        store::take(tx, &self.consumer, self.id, self.ttl.as_secs_f64()).await
    }

    /// Lets others move it at once. False when another apply has it.
    ///
    /// # Errors
    /// The database is away; the right ends by itself.
    pub async fn give_back(&self, tx: &Tx) -> Result<bool, DbError> {
        store::give_back(tx, &self.consumer, self.id).await
    }

    /// From here on nobody declares bindings. False when the right to move is lost.
    ///
    /// # Errors
    /// The database is away.
    pub async fn begin(&self, tx: &Tx, from: u16, to: u16) -> Result<bool, DbError> {
        store::begin_move(tx, &self.consumer, self.id, (from, to)).await
    }

    /// The new layout counts, and may be on its way to the `next` at once. False when the right to move is lost.
    ///
    /// # Errors
    /// The database is away.
    pub async fn end(&self, tx: &Tx, (from, to): (u16, u16), next: Option<u16>) -> Result<bool, DbError> {
        store::end_move(tx, (&self.consumer, self.id), (from, to), next).await
    }
}

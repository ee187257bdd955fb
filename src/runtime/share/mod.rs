//! Which partitions this replica reads.
//!
//! The broker would activate the first replica for every partition, so each subscribes only to its own share. Every replica says
//! once a second that it is there, on the database's clock, and is forgotten after [`TTL`]. Sorted by id, the replica at place r of
//! R takes the partitions with `i % R == r`. What it no longer should have it gives up by a graceful drain; what is new it
//! subscribes to.
//!
//! Invariant: none of order or loss rests on this. Views may differ for a moment: two replicas then subscribe to one
//! partition, and the broker lets one of them read (single active consumer); or none does, and the partition waits for the next
//! look. So there is no fencing and no epoch.
//!
//! - A replica is killed: its place is free after [`TTL`], its unacknowledged deliveries go back at once.
//! - A replica stops: it takes its row away first, so the others wait in line before it closes its channels.
//! - The database is away: every replica keeps the share it has. One that starts then can't know its layout and waits.
//!
//! On the way from n partitions to m all events pass through the plain queue, which has no single active consumer. Then only the
//! replica at place 0 reads it; one that stops just then may be followed by the next while its last work is in flight.
//!
//! Nobody announces anything unless a consumer is partitioned or being moved. While one is, the layouts are looked at as well.

mod store;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::attempts;
use super::layout::{self, Layout};
use crate::db::{DbError, Pool};

/// How long a replica counts after its last word.
const TTL: Duration = Duration::from_secs(4);
/// How often it says so.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(1);

/// What this replica knows of the layouts and of the other replicas.
#[derive(Debug)]
pub struct Share {
    id: Uuid,
    /// This process by a name for people.
    instance: Arc<str>,
    known: watch::Sender<Known>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Known {
    layouts: BTreeMap<String, Layout>,
    place: Option<Rank>,
}

/// Our place among the replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rank {
    place: usize,
    of: usize,
}

impl Default for Share {
    fn default() -> Self {
        Self { id: Uuid::now_v7(), instance: attempts::instance(), known: watch::Sender::default() }
    }
}

impl Share {
    /// Follows layouts and replicas until `stop`, then leaves.
    pub async fn follow(&self, pool: &Pool, stop: &CancellationToken) {
        let mut announced = false;
        let mut known = self.known.subscribe();
        while !stop.is_cancelled() {
            let shared = known.wait_for(|known| known.layouts.values().any(|layout| layout.is_shared()));
            if stop.run_until_cancelled(shared).await.is_none() {
                break;
            }
            announced = true;
            if let Some(Err(error)) = stop.run_until_cancelled(self.look(pool)).await {
                tracing::debug!(%error, "the replicas could not be looked up; the share stays");
            }
            stop.run_until_cancelled(tokio::time::sleep(ANNOUNCE_EVERY)).await;
        }
        if announced && let Err(error) = self.leave(pool).await {
            tracing::info!(%error, "this replica could not take its leave; the others notice in {} s", TTL.as_secs());
        }
    }

    /// The name of this process, for people.
    pub(super) fn instance(&self) -> Arc<str> {
        self.instance.clone()
    }

    /// What was just read of a consumer's layout.
    pub(super) fn learn(&self, consumer: &str, layout: Layout) {
        self.known.send_if_modified(|known| known.layouts.insert(consumer.to_owned(), layout) != Some(layout));
    }

    /// The layout that was read last.
    pub(super) fn layout(&self, consumer: &str) -> Option<Layout> {
        self.known.borrow().layouts.get(consumer).copied()
    }

    /// Our share of the partitions; none before the other replicas are known.
    pub(super) fn partitions(&self, layout: Layout) -> Vec<u16> {
        match self.known.borrow().place {
            Some(rank) => layout.partition_numbers().filter(|i| rank.takes(*i)).collect(),
            None => Vec::new(),
        }
    }

    /// Replicas that share the queues of this layout.
    pub(super) fn replicas(&self, layout: Layout) -> usize {
        if layout.is_shared() { self.known.borrow().place.map_or(1, |rank| rank.of) } else { 1 }
    }

    /// Whether enough is known to say what is ours.
    pub(super) fn is_known(&self, layout: Layout) -> bool {
        !layout.is_shared() || self.known.borrow().place.is_some()
    }

    /// Whether this replica reads the plain queue: every one does, but on the way between two numbers of partitions one alone,
    /// because several would mix up the order per key.
    pub(super) fn reads_plain_queue(&self, layout: Layout) -> bool {
        match layout.moving_to {
            None => true,
            Some(_) if layout.partitions > 1 => false,
            Some(_) => self.known.borrow().place.is_some_and(|rank| rank.place == 0),
        }
    }

    /// Signals every change of what is known.
    pub(super) fn changes(&self) -> watch::Receiver<Known> {
        self.known.subscribe()
    }

    async fn look(&self, pool: &Pool) -> Result<(), DbError> {
        let tx = pool.begin().await?;
        let layouts = layout::all(&tx).await?;
        let shared = layouts.values().any(|layout| layout.is_shared());
        let others = if shared { Some(store::announce(&tx, self.id).await?) } else { None };
        tx.commit_repeatable().await?;
        let place = others.map(|others| Rank::of(self.id, &others));
        self.known.send_if_modified(|known| {
            let seen = Known { layouts, place: place.or(known.place) };
            let changed = *known != seen;
            if known.place != seen.place
                && let Some(rank) = seen.place
            {
                tracing::info!(replicas = rank.of, "this replica is number {} of {}", rank.place + 1, rank.of);
            }
            *known = seen;
            changed
        });
        Ok(())
    }

    async fn leave(&self, pool: &Pool) -> Result<(), DbError> {
        let tx = pool.begin().await?;
        store::leave(&tx, self.id).await?;
        tx.commit_repeatable().await
    }
}

impl Rank {
    fn of(id: Uuid, others: &[Uuid]) -> Self {
        Self { place: others.iter().filter(|other| **other < id).count(), of: others.len() + 1 }
    }

    fn takes(self, partition: u16) -> bool {
        usize::from(partition) % self.of == self.place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_of_all_replicas_are_every_partition_once() {
        for replicas in 1..=9_u128 {
            let ids: Vec<Uuid> = (1..=replicas).map(|n| Uuid::from_u128(n * 7919 % 1009)).collect();
            let mut taken: Vec<u16> = Vec::new();
            for id in &ids {
                let others: Vec<Uuid> = ids.iter().copied().filter(|other| other != id).collect();
                taken.extend((0..8).filter(|i| Rank::of(*id, &others).takes(*i)));
            }
            taken.sort_unstable();
            assert_eq!(taken, (0..8).collect::<Vec<u16>>(), "{replicas} replicas");
        }
    }
}

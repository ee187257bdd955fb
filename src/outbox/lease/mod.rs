//! Who publishes which partition.
//!
//! A lease is a row with a holder, an expiry on the database's clock and an epoch. The epoch rises when a lease is taken, not
//! when it is renewed. The local deadline runs on the monotonic clock from before the request and ends earlier than the row's
//! expiry, so a slow answer never stretches our trust. `clock_timestamp()` stands in SET: a value computed before the wait for
//! the row's lock could commit a lease that has already expired.
//!
//! Relays share the partitions evenly: each says that it is there, and one that holds more than its share stops publishing the
//! surplus, waits until nothing of it is in flight, and only then gives the leases back.

mod store;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::PARTITIONS;
use crate::db::{DbError, Pool};
use crate::health::{Check, Health};

/// How long a lease lasts without renewal: the longest pause after a relay was killed.
pub(super) const TTL: Duration = Duration::from_secs(4);
/// How early we stop trusting it.
const MARGIN: Duration = Duration::from_millis(500);
/// How often it is renewed, or asked for.
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// How soon after a failure.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(250);

/// The partitions to publish and until when.
#[derive(Debug, Clone)]
pub(super) struct Grant {
    /// Our name in the leases.
    pub(super) holder: String,
    /// What to publish: partition and epoch.
    pub(super) epochs: Vec<(i16, i64)>,
    /// All that is held, also what is to be given back once nothing of it is in flight.
    pub(super) held: Vec<(i16, i64)>,
    /// Another number means that the partitions or epochs are others.
    pub(super) number: u64,
    trusted_until: Instant,
}

impl Grant {
    pub(super) fn partitions(&self) -> Vec<i16> {
        self.epochs.iter().map(|(partition, _)| *partition).collect()
    }

    pub(super) fn holds(&self, partition: i16) -> bool {
        self.epochs.iter().any(|(p, _)| *p == partition)
    }

    /// Whether publishing may begin on what is held.
    pub(super) fn is_trusted(&self) -> bool {
        Instant::now() < self.trusted_until
    }
}

/// Keeps the leases of this process.
pub(super) struct Leases {
    holder: String,
    pool: Pool,
    health: Arc<Health>,
    held: Vec<(i16, i64)>,
    grants: watch::Sender<Grant>,
    /// Number of the last grant that the publishing side has adopted.
    obeyed: watch::Receiver<u64>,
}

impl Leases {
    pub(super) fn new(holder: String, pool: Pool, health: Arc<Health>, obeyed: watch::Receiver<u64>) -> Self {
        let nothing = Grant {
            holder: holder.clone(),
            epochs: Vec::new(),
            held: Vec::new(),
            number: 0,
            trusted_until: Instant::now(),
        };
        Self { holder, pool, health, held: Vec::new(), grants: watch::Sender::new(nothing), obeyed }
    }

    pub(super) fn grants(&self) -> watch::Receiver<Grant> {
        self.grants.subscribe()
    }

    /// Renews until `stop`, then gives everything back.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let pause = match self.turn().await {
                Ok(()) => RENEW_EVERY,
                Err(error) => {
                    if self.health.set("relay", Check::Waiting(format!("leases: {error}"))) {
                        tracing::warn!(%error, "the relay's leases: {error}; rows stay in the outbox");
                    }
                    TRY_AGAIN_AFTER
                }
            };
            stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
        if let Err(error) = self.leave().await {
            tracing::info!(%error, "the relay's leases were not given back; they expire by themselves");
        }
    }

    async fn turn(&mut self) -> Result<(), DbError> {
        let asked = Instant::now();
        let share = self.renew().await?;
        let kept: Vec<(i16, i64)> = self.held.iter().take(share).copied().collect();
        let surplus: Vec<i16> = self.held.iter().skip(share).map(|(partition, _)| *partition).collect();
        self.grant(kept, asked);
        if !surplus.is_empty() && *self.obeyed.borrow() == self.grants.borrow().number {
            self.give_back(&surplus).await?;
        }
        Ok(())
    }

    /// Renews what is ours, takes what nobody holds, and returns how many partitions are our fair share.
    async fn renew(&mut self) -> Result<usize, DbError> {
        let tx = self.pool.begin().await?;
        let relays = store::announce(&tx, &self.holder).await?;
        let share = fair_share(relays);
        let mut held = store::renew(&tx, &self.holder).await?;
        held.extend(store::take(&tx, &self.holder, share.saturating_sub(held.len())).await?);
        tx.commit_repeatable().await?;
        held.sort_unstable();
        self.held = held;
        Ok(share)
    }

    fn grant(&self, epochs: Vec<(i16, i64)>, asked: Instant) {
        let trusted_until = asked + TTL.saturating_sub(MARGIN);
        self.grants.send_modify(|grant| {
            if grant.epochs != epochs || grant.number == 0 {
                grant.number += 1;
                report(&epochs);
            }
            grant.epochs = epochs;
            grant.held.clone_from(&self.held);
            grant.trusted_until = trusted_until;
        });
    }

    /// All partitions, as if the database had just given them.
    #[cfg(test)]
    pub(super) fn grant_for_test(&self) {
        self.grant((0..PARTITIONS).map(|partition| (partition, 1)).collect(), Instant::now());
    }

    async fn give_back(&mut self, surplus: &[i16]) -> Result<(), DbError> {
        let tx = self.pool.begin().await?;
        store::release(&tx, &self.holder, surplus).await?;
        tx.commit_repeatable().await?;
        self.held.retain(|(partition, _)| !surplus.contains(partition));
        Ok(())
    }

    /// Lets the other relays go on at once.
    async fn leave(&mut self) -> Result<(), DbError> {
        let tx = self.pool.begin().await?;
        let all: Vec<i16> = (0..PARTITIONS).collect();
        store::release(&tx, &self.holder, &all).await?;
        store::leave(&tx, &self.holder).await?;
        tx.commit_repeatable().await
    }
}

/// Rounded up, so that nothing is left over.
fn fair_share(relays: usize) -> usize {
    usize::try_from(PARTITIONS).unwrap_or(0).div_ceil(relays.max(1))
}

fn report(epochs: &[(i16, i64)]) {
    for partition in 0..PARTITIONS {
        crate::telemetry::outbox_lease_held(partition, epochs.iter().any(|(p, _)| *p == partition));
    }
    tracing::info!(held = epochs.len(), "relay holds {} of {PARTITIONS} partitions", epochs.len());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_of_all_relays_cover_all_partitions() {
        let shares: Vec<usize> = [0, 1, 2, 3, 4, 8, 9].into_iter().map(fair_share).collect();
        assert_eq!(shares, [8, 8, 4, 3, 2, 1, 1]);
    }
}

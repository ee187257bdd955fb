//! Who publishes which partition.
//!
//! A lease is a row with a holder, an expiry on the database's clock and an epoch. The epoch rises when a lease is taken, not
//! when it is renewed. The local deadline runs on the monotonic clock from before the request and ends earlier than the row's
//! expiry, so a slow answer never stretches our trust. `clock_timestamp()` stands in SET: a value computed before the wait for
//! the row's lock could commit a lease that has already expired.

use std::time::{Duration, Instant};

use tokio_postgres::types::ToSql;

use super::PARTITIONS;
use crate::db::{Commit, DbError, Pool, Tx};

/// How long a lease lasts without renewal: the longest pause after a relay was killed.
const TTL: Duration = Duration::from_secs(4);
/// How early we stop trusting it.
const MARGIN: Duration = Duration::from_millis(500);
/// How often it is renewed, or asked for.
const RENEW_EVERY: Duration = Duration::from_secs(1);

/// Rows are locked in key order, so that two relays can't deadlock.
const TAKE: &str = "
    UPDATE onceflow.outbox_partition p
    SET epoch = p.epoch + (p.holder IS DISTINCT FROM $1 OR p.expires_at < clock_timestamp())::int,
        holder = $1,
        expires_at = clock_timestamp() + make_interval(secs => $2)
    FROM (SELECT partition FROM onceflow.outbox_partition
          WHERE holder = $1 OR expires_at < clock_timestamp()
          ORDER BY partition FOR UPDATE SKIP LOCKED) mine
    WHERE p.partition = mine.partition
    RETURNING p.partition, p.epoch";

const RELEASE: &str = "
    UPDATE onceflow.outbox_partition SET holder = NULL, expires_at = '-infinity' WHERE holder = $1";

/// The partitions that we hold and until when.
#[derive(Debug)]
pub(super) struct Held {
    holder: String,
    epochs: Vec<(i16, i64)>,
    trusted_until: Instant,
    renewed: Instant,
}

impl Held {
    /// Nothing held yet.
    pub(super) fn none(holder: String) -> Self {
        let now = Instant::now();
        Self { holder, epochs: Vec::new(), trusted_until: now, renewed: now.checked_sub(RENEW_EVERY).unwrap_or(now) }
    }

    pub(super) fn holder(&self) -> &str {
        &self.holder
    }

    pub(super) fn partitions(&self) -> Vec<i16> {
        self.epochs.iter().map(|(partition, _)| *partition).collect()
    }

    pub(super) fn epochs(&self) -> Vec<i64> {
        self.epochs.iter().map(|(_, epoch)| *epoch).collect()
    }

    pub(super) fn holds(&self, partition: i16) -> bool {
        self.epochs.iter().any(|(p, _)| *p == partition)
    }

    /// Whether publishing may begin on what is held.
    pub(super) fn is_trusted(&self) -> bool {
        !self.epochs.is_empty() && Instant::now() < self.trusted_until
    }

    pub(super) fn renewal_due(&self) -> bool {
        self.renewed.elapsed() >= RENEW_EVERY || !self.is_trusted()
    }

    /// Renews what is ours and takes what nobody holds.
    pub(super) async fn renew(&mut self, pool: &Pool) -> Result<(), DbError> {
        let asked = Instant::now();
        let tx = pool.begin().await?;
        let secs = TTL.as_secs_f64();
        let params: [&(dyn ToSql + Sync); 2] = [&self.holder, &secs];
        let rows = tx.query(TAKE, &params).await?;
        let epochs = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        committed(tx).await?;
        let before = std::mem::replace(&mut self.epochs, epochs);
        self.trusted_until = asked + TTL.saturating_sub(MARGIN);
        self.renewed = asked;
        self.report(&before);
        Ok(())
    }

    fn report(&self, before: &[(i16, i64)]) {
        for partition in 0..PARTITIONS {
            crate::telemetry::outbox_lease_held(partition, self.holds(partition));
        }
        if before.len() != self.epochs.len() {
            tracing::info!(held = self.epochs.len(), "relay holds {} of {PARTITIONS} partitions", self.epochs.len());
        }
    }

    /// Lets another relay go on at once.
    pub(super) async fn release(&mut self, pool: &Pool) -> Result<(), DbError> {
        self.epochs.clear();
        let tx = pool.begin().await?;
        tx.execute(RELEASE, &[&self.holder]).await?;
        committed(tx).await
    }
}

/// Commits; an unknown end counts as a failure, because every statement of the relay may be repeated.
pub(super) async fn committed(tx: Tx) -> Result<(), DbError> {
    match tx.commit().await {
        Commit::Committed => Ok(()),
        Commit::RolledBack(error) | Commit::Unknown(error) => Err(error),
    }
}

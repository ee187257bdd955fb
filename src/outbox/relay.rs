//! The relay: reads the outbox, publishes, removes what is confirmed. See the module's protocol.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::lease::{Held, committed};
use super::publishing::{outgoing, waves};
use super::row::Pending;
use super::store;
use super::wakeup::Wakeup;
use crate::broker::{BrokerError, Fate, Outgoing, Publisher};
use crate::clock;
use crate::db::{DbError, Pool};
use crate::failpoint;
use crate::health::{Check, Health};
use crate::pacing::Pacing;
use crate::telemetry;

/// Rows per partition and round: with eight partitions a batch of 512.
const ROWS_PER_PARTITION: i64 = 64;
/// How long an idle relay waits for a wake-up before it looks by itself, for rows that foreign writers made.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long the rows of a key wait after the broker refused one of them.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// Most keys that may wait at once; past it the relay waits as a whole.
const MAX_BLOCKED_KEYS: usize = 10_000;

/// What to do with a downstream event that no queue is bound for.
#[derive(Debug, Clone, Default)]
pub struct Unroutable {
    /// Event types for which nobody listening is normal: dropped and counted. All others are parked.
    pub discard: HashSet<String>,
}

/// Settings of the relay.
#[derive(Debug, Clone)]
pub struct RelaySettings {
    /// The exchange of downstream events.
    pub egress: String,
    /// What happens to events that nobody is bound for.
    pub unroutable: Unroutable,
    /// Names this process in the leases.
    pub holder: String,
}

/// Publishes the rows of the partitions it holds.
pub struct Relay {
    settings: RelaySettings,
    pool: Pool,
    publisher: Publisher,
    wakeup: Wakeup,
    health: Arc<Health>,
    held: Held,
    blocked: HashMap<String, Instant>,
    /// After the broker closed the channel over a message: rows go one by one, so that the culprit is known.
    cautious: bool,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("held", &self.held).finish_non_exhaustive()
    }
}

/// Why a round ended early.
enum Interrupted {
    Database(DbError),
    Broker(BrokerError),
}

impl From<DbError> for Interrupted {
    fn from(error: DbError) -> Self {
        Self::Database(error)
    }
}

/// What became of the rows of one wave.
#[derive(Default)]
struct Sorted {
    remove: Vec<(String, Uuid)>,
    park: Vec<(String, Uuid, String)>,
    refused: Vec<String>,
}

impl Relay {
    /// A relay that holds nothing yet.
    pub fn new(settings: RelaySettings, pool: Pool, publisher: Publisher, wakeup: Wakeup, health: Arc<Health>) -> Self {
        let held = Held::none(settings.holder.clone());
        Self { settings, pool, publisher, wakeup, health, held, blocked: HashMap::new(), cautious: false }
    }

    /// Publishes until `stop`, then finishes its round and gives its leases back.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut pacing = Pacing::reconnect();
        while !stop.is_cancelled() {
            match self.round(&stop).await {
                Ok(published) => {
                    self.health.set("relay", Check::Ok);
                    pacing.reset();
                    if published == 0 {
                        self.idle(&stop).await;
                    }
                }
                Err(interrupted) => {
                    self.report(&interrupted);
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = tokio::time::sleep(pacing.next_wait()) => {}
                    }
                }
            }
        }
        if let Err(error) = self.held.release(&self.pool).await {
            info!(%error, "the relay's leases were not given back; they expire by themselves");
        }
    }

    async fn idle(&self, stop: &CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.wakeup.woken() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }

    /// One batch. Returns how many rows it dealt with.
    async fn round(&mut self, stop: &CancellationToken) -> Result<usize, Interrupted> {
        // Before the lease is looked at: a wait for the broker must not outlast our trust in it.
        self.publisher.ready(stop).await.map_err(Interrupted::Broker)?;
        if self.held.renewal_due() {
            self.held.renew(&self.pool).await?;
        }
        if !self.held.is_trusted() {
            return Ok(0);
        }
        let now = Instant::now();
        self.blocked.retain(|_, until| *until > now);
        if self.blocked.len() >= MAX_BLOCKED_KEYS {
            return Ok(0);
        }
        let blocked: Vec<String> = self.blocked.keys().cloned().collect();
        let tx = self.pool.begin().await?;
        let rows = store::ready(&tx, &self.held, ROWS_PER_PARTITION, &blocked).await?;
        committed(tx).await?;
        let mut dealt_with = 0;
        for wave in waves(rows) {
            if stop.is_cancelled() {
                break;
            }
            // A lease that ran out during the batch: the rows belong to whoever takes it.
            if self.held.renewal_due() {
                self.held.renew(&self.pool).await?;
            }
            dealt_with += self.wave(wave, stop).await?;
        }
        Ok(dealt_with)
    }

    async fn wave(&mut self, rows: Vec<Pending>, stop: &CancellationToken) -> Result<usize, Interrupted> {
        let rows: Vec<Pending> =
            rows.into_iter().filter(|r| self.held.holds(r.partition) && !self.blocked.contains_key(&r.key)).collect();
        let mut dealt_with = 0;
        let size = if self.cautious { 1 } else { rows.len().max(1) };
        for chunk in rows.chunks(size) {
            dealt_with += self.publish(chunk, stop).await?;
        }
        // The whole wave went through one by one: the culprit is parked.
        self.cautious = false;
        Ok(dealt_with)
    }

    async fn publish(&mut self, rows: &[Pending], stop: &CancellationToken) -> Result<usize, Interrupted> {
        if rows.is_empty() || !self.held.is_trusted() {
            return Ok(0);
        }
        let batch: Vec<Outgoing> = rows.iter().map(|row| outgoing(row, &self.settings.egress)).collect();
        let started = Instant::now();
        let sorted = match self.publisher.publish(&batch, stop).await {
            Ok(fates) => {
                failpoint::hit("relay_after_confirm");
                telemetry::outbox_publish_duration(started.elapsed());
                telemetry::outbox_batch(rows.len());
                self.sort(rows, fates)
            }
            Err(error) if error.blames_the_message() && rows.len() == 1 => blamed(&rows[0], &error),
            Err(error) => {
                self.cautious = error.blames_the_message();
                telemetry::outbox_published("error", rows.len() as u64);
                return Err(Interrupted::Broker(error));
            }
        };
        self.write_down(&sorted).await?;
        for key in sorted.refused {
            self.blocked.insert(key, Instant::now() + REFUSED_PAUSE);
        }
        Ok(sorted.remove.len() + sorted.park.len())
    }

    fn sort(&self, rows: &[Pending], fates: Vec<Fate>) -> Sorted {
        let mut sorted = Sorted::default();
        for (row, fate) in rows.iter().zip(fates) {
            match fate {
                Fate::Confirmed => {
                    note_lag(row);
                    sorted.remove.push((row.tenant.clone(), row.id));
                }
                Fate::Returned(_) if self.settings.unroutable.discard.contains(&row.event_type) => {
                    sorted.remove.push((row.tenant.clone(), row.id));
                }
                Fate::Returned(why) => {
                    warn!(event.r#type = row.event_type, why, "no queue takes {}: parked ({why})", row.event_type);
                    sorted.park.push((row.tenant.clone(), row.id, format!("unroutable: {why}")));
                }
                Fate::Nacked => sorted.refused.push(row.key.clone()),
            }
        }
        sorted
    }

    async fn write_down(&self, sorted: &Sorted) -> Result<(), DbError> {
        if sorted.remove.is_empty() && sorted.park.is_empty() {
            note_counts(sorted, 0);
            return Ok(());
        }
        let tx = self.pool.begin().await?;
        let mut removed = 0;
        if !sorted.remove.is_empty() {
            removed = store::remove(&tx, &self.held, &sorted.remove).await?;
        }
        if !sorted.park.is_empty() {
            store::park(&tx, &sorted.park).await?;
        }
        failpoint::hit("relay_before_delete");
        committed(tx).await?;
        note_counts(sorted, u64::try_from(removed).unwrap_or(0));
        Ok(())
    }

    fn report(&self, interrupted: &Interrupted) {
        let why = match interrupted {
            Interrupted::Database(error) => error.to_string(),
            Interrupted::Broker(error) => error.to_string(),
        };
        if self.health.set("relay", Check::Waiting(why.clone())) {
            warn!("the relay waits: {why}; rows stay in the outbox");
        }
    }
}

/// Only this row was in flight when the broker closed the channel over it.
fn blamed(row: &Pending, error: &BrokerError) -> Sorted {
    warn!(%error, event.r#type = row.event_type, "the broker refuses a row for good: parked ({error})");
    Sorted { park: vec![(row.tenant.clone(), row.id, format!("refused by the broker: {error}"))], ..Sorted::default() }
}

fn note_lag(row: &Pending) {
    if let Ok(lag) = Duration::try_from(clock::now().duration_since(row.created_at)) {
        telemetry::outbox_lag(lag);
    }
}

fn note_counts(sorted: &Sorted, removed: u64) {
    telemetry::outbox_published("confirmed", removed);
    telemetry::outbox_published("returned", sorted.park.len() as u64);
    telemetry::outbox_published("nacked", sorted.refused.len() as u64);
}

//! The relay: takes rows from memory or from the table, publishes them, has them removed. See the module's protocol.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use super::PARTITIONS;
use super::handover::Handover;
use super::lease::{Grant, Leases, committed};
use super::lineup::Lineup;
use super::publishing::outgoing;
use super::row::Pending;
use super::store::{self, Look};
use super::sweep::{Confirmed, Sweep};
use crate::broker::{BrokerError, Fate, Outgoing, Publisher};
use crate::clock;
use crate::db::{DbError, Pool};
use crate::failpoint;
use crate::health::{Check, Health};
use crate::pacing::Pacing;
use crate::telemetry;

/// Most rows in flight.
const WAVE_ROWS: usize = 500;
/// Most bytes in flight, one row aside.
const WAVE_BYTES: usize = 4 * 1024 * 1024;
/// Most rows at hand; those that are handed over wait while there are more.
const LINEUP_ROWS: usize = 8_192;
/// Rows per partition of one look at the table.
const LOOK_ROWS: usize = 128;
/// With so many keys at hand the table isn't looked at for more.
const ENOUGH_KEYS: usize = 256;
/// A key with so many rows at hand is set aside: its further rows stay in the table, so that they hide nobody else's.
const CROWD: usize = LOOK_ROWS;
/// With so few rows left at hand more of its rows are fetched.
const CROWD_IS_GONE: usize = LOOK_ROWS / 4;
/// How soon the table is looked at again after rows were found there, and at the latest.
const LOOK_SOON: Duration = Duration::from_millis(5);
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
    handover: Handover,
    health: Arc<Health>,
    grants: watch::Receiver<Grant>,
    obeyed: watch::Sender<u64>,
    grant: Grant,
    sweep: Sweep,
    lineup: Lineup,
    source: Source,
    look: LookTimer,
    /// Keys of which a row was refused, until they are tried again: their rows are only in the table.
    blocked: HashMap<Arc<str>, Instant>,
    /// Hot keys with their partition: rows beyond those at hand are only in the table.
    aside: HashMap<Arc<str>, i16>,
    /// After the broker closed the channel over a message: rows go one by one, so that the culprit is known.
    cautious: bool,
    leases: Option<Leases>,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("grant", &self.grant).finish_non_exhaustive()
    }
}

/// Where the next rows come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// Only the table has everything.
    Table,
    /// Everything else that is in the table is at hand: rows come from memory, and the table is looked at now and then.
    Memory,
}

/// When the table is looked at while rows come from memory.
#[derive(Debug)]
struct LookTimer {
    at: Instant,
    pause: Duration,
}

/// What a round came to.
enum Round {
    Published,
    NothingToDo,
    /// Somebody else publishes, or nobody may.
    NotGranted,
}

/// Why a round ended early.
enum Interrupted {
    Database(DbError),
    Broker(BrokerError),
    LeaseRanOut,
}

impl From<DbError> for Interrupted {
    fn from(error: DbError) -> Self {
        Self::Database(error)
    }
}

/// What became of the rows of one wave.
#[derive(Default)]
struct Sorted {
    remove: Vec<Confirmed>,
    park: Vec<(String, Uuid, String)>,
    refused: Vec<Arc<str>>,
}

impl Relay {
    /// A relay that holds nothing yet.
    pub fn new(
        settings: RelaySettings,
        pool: Pool,
        publisher: Publisher,
        handover: Handover,
        health: Arc<Health>,
    ) -> Self {
        let obeyed = watch::Sender::new(0);
        let leases = Leases::new(settings.holder.clone(), pool.clone(), health.clone(), obeyed.subscribe());
        let grants = leases.grants();
        let grant = grants.borrow().clone();
        Self {
            settings,
            pool,
            publisher,
            handover,
            health,
            grants,
            obeyed,
            grant,
            sweep: Sweep::default(),
            lineup: Lineup::default(),
            source: Source::Table,
            look: LookTimer::now(),
            blocked: HashMap::new(),
            aside: HashMap::new(),
            cautious: false,
            leases: Some(leases),
        }
    }

    /// Publishes until `stop`, then finishes its wave, removes what is confirmed and gives its leases back.
    pub async fn run(mut self, stop: CancellationToken) {
        let (swept, left) = (CancellationToken::new(), CancellationToken::new());
        // Ends both tasks also when this one is dropped.
        let _guards = (swept.clone().drop_guard(), left.clone().drop_guard());
        let leases = self.leases.take().map(|leases| tokio::spawn(leases.run(left.clone())));
        let sweep = tokio::spawn(self.sweep.clone().run(self.pool.clone(), self.grants.clone(), swept.clone()));
        self.publish_until(&stop).await;
        swept.cancel();
        ended("removing confirmed rows", sweep.await);
        left.cancel();
        if let Some(leases) = leases {
            ended("the leases", leases.await);
        }
    }

    async fn publish_until(&mut self, stop: &CancellationToken) {
        let mut pacing = Pacing::reconnect();
        while !stop.is_cancelled() {
            let pause = match self.round(stop).await {
                Ok(round) => {
                    if !matches!(round, Round::NotGranted) {
                        self.health.set("relay", Check::Ok);
                    }
                    pacing.reset();
                    if matches!(round, Round::Published) {
                        continue;
                    }
                    None
                }
                Err(interrupted) => {
                    self.report(&interrupted);
                    self.back_to_the_table();
                    Some(pacing.next_wait())
                }
            };
            stop.run_until_cancelled(self.idle(pause)).await;
        }
    }

    async fn idle(&mut self, pause: Option<Duration>) {
        if let Some(pause) = pause {
            return tokio::time::sleep(pause).await;
        }
        tokio::select! {
            () = self.handover.something() => {}
            _ = self.grants.changed() => {}
            () = tokio::time::sleep_until(self.look.at.into()) => {}
        }
    }

    /// One wave.
    async fn round(&mut self, stop: &CancellationToken) -> Result<Round, Interrupted> {
        // Before the lease is looked at: a wait for the broker must not outlast our trust in it.
        self.publisher.ready(stop).await.map_err(Interrupted::Broker)?;
        if !self.obey().await {
            return Ok(Round::NotGranted);
        }
        let now = Instant::now();
        self.blocked.retain(|_, until| *until > now);
        if self.blocked.len() >= MAX_BLOCKED_KEYS {
            self.look.later();
            return Ok(Round::NothingToDo);
        }
        match self.source {
            Source::Memory => self.fill_from_memory().await?,
            Source::Table => self.fill_from_table().await?,
        }
        self.fetch_more_of_hot_keys().await?;
        let wave = self.lineup.wave(WAVE_ROWS, WAVE_BYTES);
        if wave.is_empty() {
            return Ok(Round::NothingToDo);
        }
        self.wave(wave, stop).await?;
        Ok(Round::Published)
    }

    /// Adopts the partitions that are ours now. Returns whether anything may be published.
    async fn obey(&mut self) -> bool {
        let grant = self.grants.borrow_and_update().clone();
        let changed = grant.number != self.grant.number;
        self.grant = grant;
        if changed {
            self.back_to_the_table();
            self.handover.set_held(self.grant.partitions());
            // Whoever gets a partition from us shall not find what we have published.
            self.sweep.emptied().await;
            self.obeyed.send_replace(self.grant.number);
        }
        if !self.grant.is_trusted() {
            self.look.later();
            return false;
        }
        true
    }

    /// Forgets the rows at hand: all of them are in the table.
    fn back_to_the_table(&mut self) {
        self.handover.shut();
        self.lineup.clear();
        self.aside.clear();
        self.source = Source::Table;
        self.look = LookTimer::now();
    }

    async fn fill_from_table(&mut self) -> Result<(), DbError> {
        if self.lineup.keys() >= ENOUGH_KEYS {
            return Ok(());
        }
        // What is committed from now on is handed over; what was committed before is in what we read.
        self.handover.open();
        let everything = self.look_at_table().await?;
        if everything && self.blocked.is_empty() {
            self.source = Source::Memory;
        } else {
            self.handover.shut();
        }
        Ok(())
    }

    async fn fill_from_memory(&mut self) -> Result<(), DbError> {
        let room = LINEUP_ROWS.saturating_sub(self.lineup.len());
        if room == 0 {
            return Ok(());
        }
        self.sweep.room().await;
        let handed = self.handover.take(room);
        if !handed.complete {
            self.back_to_the_table();
            return self.fill_from_table().await;
        }
        self.take_handed(handed.rows);
        if (handed.look || self.look.is_due()) && !self.look_at_table().await? {
            self.back_to_the_table();
        }
        Ok(())
    }

    fn take_handed(&mut self, rows: Vec<Pending>) {
        for row in rows {
            if self.grant.holds(row.partition) && !self.sweep.published(row.seq) {
                self.line_up(row);
            }
        }
    }

    fn line_up(&mut self, row: Pending) {
        if self.aside.contains_key(&row.key) {
            return;
        }
        let (key, partition) = (row.key.clone(), row.partition);
        if self.lineup.add(row) >= CROWD {
            self.aside.insert(key, partition);
        }
    }

    /// Brings what is not at hand yet. Returns whether that was everything, keys aside aside.
    async fn look_at_table(&mut self) -> Result<bool, DbError> {
        let places: Vec<_> = self.grant.partitions().into_iter().map(|partition| (partition, None)).collect();
        let without: Vec<Arc<str>> = self.blocked.keys().chain(self.aside.keys()).cloned().collect();
        let rows = self.read(&places, &without).await?;
        self.look.found(rows.len());
        let mut of_partition = [0; PARTITIONS as usize];
        for row in rows {
            if let Some(count) = usize::try_from(row.partition).ok().and_then(|p| of_partition.get_mut(p)) {
                *count += 1;
            }
            self.line_up(row);
        }
        Ok(of_partition.iter().all(|count| *count < LOOK_ROWS))
    }

    async fn fetch_more_of_hot_keys(&mut self) -> Result<(), DbError> {
        let few = |(key, _): &(&Arc<str>, &i16)| self.lineup.waiting(key) < CROWD_IS_GONE;
        let places: Vec<_> =
            self.aside.iter().filter(few).map(|(key, partition)| (*partition, Some(key.clone()))).collect();
        for place in places {
            let rows = self.read(std::slice::from_ref(&place), &[]).await?;
            if let Some(key) = place.1.filter(|_| rows.len() < LOOK_ROWS) {
                // What is committed after this look is handed over again.
                self.aside.remove(&key);
            }
            for row in rows {
                self.lineup.add(row);
            }
        }
        Ok(())
    }

    async fn read(&self, places: &[(i16, Option<Arc<str>>)], without: &[Arc<str>]) -> Result<Vec<Pending>, DbError> {
        self.sweep.room().await;
        let known: Vec<i64> = self.lineup.seqs().chain(self.sweep.known()).collect();
        let without_keys: Vec<&str> = without.iter().map(|key| &**key).collect();
        let tx = self.pool.begin().await?;
        let look = Look { places, limit: LOOK_ROWS, without_keys: &without_keys, known: &known };
        let rows = store::ready(&tx, look).await?;
        committed(tx).await?;
        Ok(rows)
    }

    async fn wave(&mut self, rows: Vec<Pending>, stop: &CancellationToken) -> Result<(), Interrupted> {
        let size = if self.cautious { 1 } else { rows.len() };
        for chunk in rows.chunks(size) {
            self.publish(chunk, stop).await?;
        }
        // The whole wave went through one by one: the culprit is parked.
        self.cautious = false;
        Ok(())
    }

    async fn publish(&mut self, rows: &[Pending], stop: &CancellationToken) -> Result<(), Interrupted> {
        if !self.grants.borrow().is_trusted() {
            return Err(Interrupted::LeaseRanOut);
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
        telemetry::outbox_published("returned", sorted.park.len() as u64);
        telemetry::outbox_published("nacked", sorted.refused.len() as u64);
        self.sweep.add(sorted.remove);
        self.park(&sorted.park).await?;
        self.block(sorted.refused);
        Ok(())
    }

    fn sort(&self, rows: &[Pending], fates: Vec<Fate>) -> Sorted {
        let now = clock::now();
        let mut sorted = Sorted::default();
        let confirmed = |row: &Pending| Confirmed { tenant: row.tenant.clone(), id: row.id, seq: row.seq };
        for (row, fate) in rows.iter().zip(fates) {
            match fate {
                Fate::Confirmed => {
                    if let Ok(lag) = Duration::try_from(now.duration_since(row.created_at)) {
                        telemetry::outbox_lag(lag);
                    }
                    sorted.remove.push(confirmed(row));
                }
                Fate::Returned(_) if self.settings.unroutable.discard.contains(&row.event_type) => {
                    sorted.remove.push(confirmed(row));
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

    async fn park(&self, rows: &[(String, Uuid, String)]) -> Result<(), DbError> {
        if rows.is_empty() {
            return Ok(());
        }
        let tx = self.pool.begin().await?;
        store::park(&tx, rows).await?;
        committed(tx).await
    }

    /// The rows of these keys wait in the table.
    fn block(&mut self, keys: Vec<Arc<str>>) {
        if keys.is_empty() {
            return;
        }
        let until = Instant::now() + REFUSED_PAUSE;
        self.blocked.extend(keys.into_iter().map(|key| (key, until)));
        self.back_to_the_table();
    }

    fn report(&self, interrupted: &Interrupted) {
        let why = match interrupted {
            Interrupted::Database(error) => error.to_string(),
            Interrupted::Broker(error) => error.to_string(),
            Interrupted::LeaseRanOut => "its leases ran out before they were renewed".to_owned(),
        };
        if self.health.set("relay", Check::Waiting(why.clone())) {
            warn!("the relay waits: {why}; rows stay in the outbox");
        }
    }
}

impl LookTimer {
    fn now() -> Self {
        Self { at: Instant::now(), pause: LOOK_SOON }
    }

    fn is_due(&self) -> bool {
        Instant::now() >= self.at
    }

    /// More may come where some came; otherwise ever more rarely.
    fn found(&mut self, rows: usize) {
        self.pause = if rows > 0 { LOOK_SOON } else { (self.pause * 2).min(LOOK_EVERY) };
        self.at = Instant::now() + self.pause;
    }

    fn later(&mut self) {
        self.at = Instant::now() + LOOK_EVERY;
    }
}

/// Only this row was in flight when the broker closed the channel over it.
fn blamed(row: &Pending, error: &BrokerError) -> Sorted {
    warn!(%error, event.r#type = row.event_type, "the broker refuses a row for good: parked ({error})");
    Sorted { park: vec![(row.tenant.clone(), row.id, format!("refused by the broker: {error}"))], ..Sorted::default() }
}

fn ended(what: &str, ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        warn!(%error, "{what} ended abnormally: {error}");
    }
}

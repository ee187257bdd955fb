//! The relay: publishes the rows that its supply brings and has them removed. See the module's protocol.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use super::handover::Handover;
use super::lease::{Grant, Leases};
use super::publishing::outgoing;
use super::row::Pending;
use super::store;
use super::supply::Supply;
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
/// A wave that isn't confirmed after so long is told (I8: within 10 s).
const CONFIRMS_LATE_AFTER: Duration = Duration::from_secs(5);

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
    health: Arc<Health>,
    grants: watch::Receiver<Grant>,
    obeyed: watch::Sender<u64>,
    supply: Supply,
    sweep: Sweep,
    /// After the broker closed the channel over a message: rows go one by one, so that the culprit is known.
    cautious: bool,
    leases: Option<Leases>,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("grant", self.supply.grant()).finish_non_exhaustive()
    }
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
        let sweep = Sweep::default();
        Self {
            settings,
            supply: Supply::new(pool.clone(), handover, sweep.clone(), grant),
            pool,
            publisher,
            health,
            grants,
            obeyed,
            sweep,
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
                    match interrupted {
                        Interrupted::Database(_) => self.supply.trust_nothing(),
                        Interrupted::Broker(_) | Interrupted::LeaseRanOut => self.supply.start_over(),
                    }
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
            () = self.supply.more() => {}
            _ = self.grants.changed() => {}
        }
    }

    /// One wave.
    async fn round(&mut self, stop: &CancellationToken) -> Result<Round, Interrupted> {
        // Before the lease is looked at: a wait for the broker must not outlast our trust in it.
        self.publisher.ready(stop).await.map_err(Interrupted::Broker)?;
        let Some(next) = self.next_wave(stop).await else { return Ok(Round::NothingToDo) };
        let Some(wave) = next? else { return Ok(Round::NotGranted) };
        if wave.is_empty() {
            return Ok(Round::NothingToDo);
        }
        self.wave(wave, stop).await?;
        Ok(Round::Published)
    }

    /// The rows to publish next: nothing when `stop` came first, however long the database is away, and no wave when nothing is
    /// ours to publish.
    async fn next_wave(&mut self, stop: &CancellationToken) -> Option<Result<Option<Vec<Pending>>, DbError>> {
        let next = async {
            if !self.obey().await {
                return Ok(None);
            }
            self.supply.next_wave(WAVE_ROWS, WAVE_BYTES).await.map(Some)
        };
        stop.run_until_cancelled(next).await
    }

    /// Adopts the partitions that are ours now. Returns whether anything may be published.
    async fn obey(&mut self) -> bool {
        let grant = self.grants.borrow_and_update().clone();
        let number = grant.number;
        if self.supply.adopt(grant) {
            // Whoever gets a partition from us shall not find what we have published.
            self.sweep.emptied().await;
            self.obeyed.send_replace(number);
        }
        if !self.supply.grant().is_trusted() {
            self.supply.look_later();
            return false;
        }
        true
    }

    async fn wave(&mut self, mut rows: Vec<Pending>, stop: &CancellationToken) -> Result<(), Interrupted> {
        let size = if self.cautious { 1 } else { rows.len() };
        for chunk in rows.chunks_mut(size) {
            self.publish(chunk, stop).await?;
        }
        // The whole wave went through one by one: the culprit is parked.
        self.cautious = false;
        Ok(())
    }

    async fn publish(&mut self, rows: &mut [Pending], stop: &CancellationToken) -> Result<(), Interrupted> {
        if !self.grants.borrow().is_trusted() {
            return Err(Interrupted::LeaseRanOut);
        }
        let batch: Vec<Outgoing> = rows.iter_mut().map(|row| outgoing(row, &self.settings.egress)).collect();
        let started = Instant::now();
        let sorted = match self.patiently(self.publisher.publish(batch, stop)).await {
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
        self.supply.block(sorted.refused);
        Ok(())
    }

    /// Says so long before a wave is given up: a queue without its majority confirms nothing, and nothing else shows it.
    async fn patiently<T>(&self, publishing: impl Future<Output = T>) -> T {
        let mut publishing = pin!(publishing);
        match tokio::time::timeout(CONFIRMS_LATE_AFTER, publishing.as_mut()).await {
            Ok(published) => published,
            Err(_) => {
                self.waits(&format!("the broker has confirmed nothing for {} s", CONFIRMS_LATE_AFTER.as_secs()));
                publishing.await
            }
        }
    }

    fn sort(&self, rows: &[Pending], fates: Vec<Fate>) -> Sorted {
        let now = clock::now();
        let mut sorted = Sorted::default();
        let mut lags = Vec::with_capacity(rows.len());
        let confirmed = |row: &Pending| Confirmed { tenant: row.tenant.clone(), id: row.id, seq: row.seq };
        for (row, fate) in rows.iter().zip(fates) {
            match fate {
                Fate::Confirmed => {
                    lags.extend(Duration::try_from(now.duration_since(row.created_at)).ok());
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
        telemetry::outbox_lags(lags.into_iter());
        sorted
    }

    async fn park(&self, rows: &[(String, Uuid, String)]) -> Result<(), DbError> {
        if rows.is_empty() {
            return Ok(());
        }
        let tx = self.pool.begin().await?;
        store::park(&tx, rows).await?;
        tx.commit_repeatable().await
    }

    fn report(&self, interrupted: &Interrupted) {
        let why = match interrupted {
            Interrupted::Database(error) => error.to_string(),
            Interrupted::Broker(error) => error.to_string(),
            Interrupted::LeaseRanOut => "its leases ran out before they were renewed".to_owned(),
        };
        self.waits(&why);
    }

    fn waits(&self, why: &str) {
        if self.health.set("relay", Check::Waiting(why.to_owned())) {
            warn!("the relay waits: {why}; rows stay in the outbox");
        }
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

#[cfg(test)]
mod tests {
    use futures_util::future::poll_immediate;

    use super::*;
    use crate::broker::{self, Link, Purpose, Topology};
    use crate::db;
    use crate::tls::Tls;

    /// Where nobody listens.
    fn relay() -> Relay {
        let health = Arc::new(Health::default());
        let broker = broker::Settings {
            url: "amqp://127.0.0.1:1/%2f".into(),
            allow_plaintext: false,
            heartbeat: Duration::from_secs(10),
            tls: Tls::default(),
            name: "test".to_owned(),
            declare: true,
            signs_as: None,
        };
        let database = db::Settings {
            url: "postgres://nobody@127.0.0.1:1/none".into(),
            max_connections: 1,
            statement_timeout: Duration::from_secs(5),
            allow_plaintext: false,
            tls: Tls::default(),
            application_name: "test".to_owned(),
            rows_are_short_lived: false,
        };
        let settings = RelaySettings {
            egress: "test.out".to_owned(),
            unroutable: Unroutable::default(),
            holder: "test".to_owned(),
        };
        let publisher =
            Publisher::new(Arc::new(Link::new(broker, Purpose::Publish, health.clone())), Topology::default());
        Relay::new(settings, db::Pool::new(&database).unwrap(), publisher, Handover::default(), health)
    }

    #[tokio::test]
    async fn a_stop_does_not_wait_for_confirmed_rows_to_leave_a_database_that_is_away_i10() {
        let mut relay = relay();
        relay.leases.as_ref().unwrap().grant_for_test();
        relay.sweep.add(vec![Confirmed { tenant: "t".to_owned(), id: Uuid::nil(), seq: 1 }]);
        let stop = CancellationToken::new();
        let mut next = pin!(relay.next_wave(&stop));
        assert!(
            poll_immediate(next.as_mut()).await.is_none(),
            "other partitions wait until the confirmed rows are gone"
        );
        stop.cancel();
        assert!(next.await.is_none());
    }

    #[tokio::test]
    async fn a_broker_that_confirms_nothing_is_told_long_before_the_wave_is_given_up_i8() {
        let relay = relay();
        let (confirm, confirmed) = tokio::sync::oneshot::channel();
        let told = async {
            let mut looks = tokio::time::interval(Duration::from_millis(20));
            while !matches!(relay.health.snapshot().get("relay"), Some(Check::Waiting(why)) if why.contains("confirmed nothing"))
            {
                looks.tick().await;
            }
            confirm.send(()).unwrap();
        };
        let both = async { tokio::join!(relay.patiently(confirmed), told) };
        let (published, ()) = tokio::time::timeout(Duration::from_secs(10), both).await.unwrap();
        published.unwrap();
    }
}

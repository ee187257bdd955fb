//! The composition root: builds the parts, starts them in order, drains them in reverse.
//!
//! Start: listeners first, so that health can be asked from the first moment; then wait for the database and its schema; then
//! relay, drains and consumers, each of which waits for the broker by itself. Stop: no new deliveries, work in flight ends, the
//! relay finishes its round, the listeners close.

mod renewal;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::admin::{self, AdminState, ConsumerInfo};
use crate::broker::{Link, Publisher, Topology};
use crate::config::Config;
use crate::db::{self, Listener, Pool};
use crate::health::{Check, Health};
use crate::outbox::{Handover, Relay, RelaySettings};
use crate::replay::edit::Rules;
use crate::replay::job::{self, Loads, Outlook, Runner};
use crate::retention::{self, Aging};
use crate::runtime::{
    ABORT_MARGIN, AnyConsumer, Pauses, Share, Shared, egress_topology, fixed_topology, run_consumer, run_drain,
};
use crate::telemetry::{self, MetricsHandle};
use renewal::Ways;

pub use renewal::RenewError;

/// How often the database is asked whether it is there.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Why the process could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A URL that can't be used.
    #[error(transparent)]
    Database(#[from] db::SettingsError),
    /// An address that can't be listened on.
    #[error(transparent)]
    Listen(#[from] admin::ListenError),
    /// The metrics can't be installed.
    #[error(transparent)]
    Metrics(#[from] telemetry::InstallError),
}

/// A running process.
pub struct App {
    /// Where health and the API are served.
    pub admin: SocketAddr,
    /// Where metrics are served.
    pub metrics: SocketAddr,
    /// Its condition.
    pub health: Arc<Health>,
    stops: Stops,
    ways: Ways,
    intake: JoinSet<()>,
    relay: JoinSet<()>,
    service: JoinSet<()>,
    drain_within: Duration,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("admin", &self.admin).finish_non_exhaustive()
    }
}

/// One token per stage of the drain.
#[derive(Clone, Default)]
struct Stops {
    intake: CancellationToken,
    relay: CancellationToken,
    abort: CancellationToken,
    service: CancellationToken,
}

impl App {
    /// Starts everything; returns as soon as the listeners are up. Broker and database may come later.
    ///
    /// # Errors
    /// What no waiting can mend: addresses in use, unusable settings.
    pub async fn start(config: &Config, consumers: Vec<Box<dyn AnyConsumer>>) -> Result<Self, StartError> {
        let consumers: Vec<Arc<dyn AnyConsumer>> = consumers.into_iter().map(Arc::from).collect();
        let metrics = install_metrics(config, &consumers)?;
        let health = Arc::new(Health::default());
        expect_checks(&health, &consumers);
        let stops = Stops::default();
        let pauses = Pauses::default();
        let handover = Handover::default();
        let (ways, listener) = Ways::open(config, &health)?;
        let admin_pool = ways.admin.clone();

        let mut service = JoinSet::new();
        let loads = Arc::new(loads(config, &consumers, admin_pool.clone(), &ways.consume));
        let state = admin_state(config, &consumers, &ways, (&health, &pauses, &handover, &loads));
        let addresses = serve(config, state, metrics, (&mut service, &stops.service)).await?;
        service.spawn(watch_database(admin_pool.clone(), health.clone(), stops.service.clone()));
        let every = config.runtime.look_for_pauses;
        service.spawn(follow_pauses(admin_pool.clone(), pauses.clone(), every, stops.service.clone()));
        let runner = job_runner(config, &consumers, admin_pool.clone(), (&health, &handover, &loads));
        service.spawn(follow_loads(loads, stops.service.clone()));
        service.spawn(job::run_jobs(runner, stops.intake.clone()));
        let share = Arc::new(Share::default());
        service.spawn(follow_share(admin_pool.clone(), share.clone(), stops.intake.clone()));
        service.spawn(retention::run(admin_pool, config.retention, aging(&consumers), stops.service.clone()));

        let shared = Shared {
            settings: Arc::new(config.runtime.clone()),
            link: ways.consume.clone(),
            retries: Arc::new(Publisher::new(ways.publish.clone(), Topology::default())),
            pool: ways.consumers.clone(),
            outbox: handover.clone(),
            health: health.clone(),
            pauses,
            share,
            stop: stops.intake.clone(),
            abort: stops.abort.clone(),
        };
        let intake = start_intake(config, consumers, &shared, &ways.publish);
        let relay = start_relay(config, (&ways, listener), handover, (&health, &stops.relay));
        let drain_within = config.runtime.drain_within;
        let (admin, metrics) = addresses;
        telemetry::config_reload(true);
        Ok(Self { admin, metrics, health, stops, ways, intake, relay, service, drain_within })
    }

    /// Drains and stops. Returns whether everything ended within its time.
    pub async fn stop(mut self) -> bool {
        info!("stopping: no new deliveries, finishing what is in flight");
        self.health.set("stopping", Check::Waiting("the process is stopping".to_owned()));
        self.stops.intake.cancel();
        let mut clean = ended_within(&mut self.intake, self.drain_within + ABORT_MARGIN).await;
        self.stops.abort.cancel();
        self.stops.relay.cancel();
        clean &= ended_within(&mut self.relay, ABORT_MARGIN).await;
        for link in [&self.ways.consume, &self.ways.publish] {
            link.close().await;
        }
        self.stops.service.cancel();
        clean &= ended_within(&mut self.service, ABORT_MARGIN).await;
        info!(clean, "stopped");
        clean
    }
}

async fn ended_within(tasks: &mut JoinSet<()>, within: Duration) -> bool {
    let all = async {
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                warn!(%error, "a task ended abnormally");
            }
        }
    };
    let ended = tokio::time::timeout(within, all).await.is_ok();
    if !ended {
        tasks.abort_all();
    }
    ended
}

fn install_metrics(
    config: &Config,
    consumers: &[Arc<dyn AnyConsumer>],
) -> Result<MetricsHandle, telemetry::InstallError> {
    let types = |c: &Arc<dyn AnyConsumer>| (c.name(), c.reads().iter().map(|t| t.name).collect());
    let known: Vec<(&'static str, Vec<&'static str>)> = consumers.iter().map(types).collect();
    let millis = |rung: &Duration| u64::try_from(rung.as_millis()).unwrap_or(u64::MAX);
    let rungs: Vec<u64> = config.runtime.retry.rungs.iter().map(millis).collect();
    telemetry::install(&known, &rungs)
}

/// Every check is there from the start, so that readiness can't be claimed too early.
fn expect_checks(health: &Health, consumers: &[Arc<dyn AnyConsumer>]) {
    for name in ["database", "migrations", "broker.consume", "broker.publish", "relay"] {
        health.set(name, starting());
    }
    for consumer in consumers {
        health.set(&format!("consumer.{}", consumer.name()), starting());
    }
}

fn starting() -> Check {
    Check::Waiting("starting".to_owned())
}

fn admin_state(
    config: &Config,
    consumers: &[Arc<dyn AnyConsumer>],
    ways: &Ways,
    (health, pauses, handover, loads): (&Arc<Health>, &Pauses, &Handover, &Arc<Loads>),
) -> AdminState {
    let info = |c: &Arc<dyn AnyConsumer>| ConsumerInfo { name: c.name(), reads: c.reads(), publishes: c.publishes() };
    AdminState {
        pool: ways.admin.clone(),
        begin_within: admin::BEGIN_WITHIN,
        health: health.clone(),
        consumers: consumers.iter().map(info).collect(),
        prefix: config.runtime.names.prefix().to_owned(),
        token: ways.token.clone(),
        paused_changed: pauses.bell(),
        outbox_wakeup: handover.bell(),
        second_person_above: config.admin.second_person_above,
        loads: loads.clone(),
        keep_dead_letters: config.retention.dead_letters,
        editing: editing(config, consumers),
        version: env!("CARGO_PKG_VERSION"),
    }
}

/// What the consumers keep of persons for a while only.
fn aging(consumers: &[Arc<dyn AnyConsumer>]) -> Vec<Aging> {
    let all = consumers.iter().flat_map(|consumer| consumer.personal());
    all.filter_map(|data| data.forget_old.map(|sql| Aging { name: data.name, sql })).collect()
}

/// Copies go where a single replay goes to.
fn editing(config: &Config, consumers: &[Arc<dyn AnyConsumer>]) -> Rules {
    let queue = |c: &Arc<dyn AnyConsumer>| (c.name().to_owned(), config.runtime.names.queue(c.name()));
    Rules {
        on: config.edit,
        consumers: consumers.to_vec(),
        limits: config.runtime.limits,
        queues: consumers.iter().map(queue).collect(),
    }
}

/// Jobs send to the queue that a single replay goes to, also where the consumer has partitions.
fn job_runner(
    config: &Config,
    consumers: &[Arc<dyn AnyConsumer>],
    pool: Pool,
    (health, handover, loads): (&Arc<Health>, &Handover, &Arc<Loads>),
) -> Runner {
    let queue = |c: &Arc<dyn AnyConsumer>| (c.name().to_owned(), config.runtime.names.queue(c.name()));
    Runner {
        pool,
        queues: consumers.iter().map(queue).collect(),
        outbox: handover.clone(),
        health: health.clone(),
        loads: loads.clone(),
    }
}

/// Queues are asked for their length on the connection that consumes: the broker blocks the other one when it is short of memory.
fn loads(config: &Config, consumers: &[Arc<dyn AnyConsumer>], pool: Pool, link: &Arc<Link>) -> Loads {
    Loads::new(Outlook {
        pool,
        link: link.clone(),
        names: config.runtime.names.clone(),
        consumers: consumers.iter().map(|c| c.name()).collect(),
    })
}

async fn follow_loads(loads: Arc<Loads>, stop: CancellationToken) {
    loads.follow(&stop).await;
}

async fn serve(
    config: &Config,
    state: AdminState,
    metrics: MetricsHandle,
    (tasks, stop): (&mut JoinSet<()>, &CancellationToken),
) -> Result<(SocketAddr, SocketAddr), StartError> {
    let admin_listener = admin::bind_admin(config.admin.listen, state.token.is_some()).await?;
    let metrics_listener = admin::bind_metrics(config.admin.metrics_listen).await?;
    let local = |listener: &tokio::net::TcpListener, wanted| listener.local_addr().unwrap_or(wanted);
    let addresses =
        (local(&admin_listener, config.admin.listen), local(&metrics_listener, config.admin.metrics_listen));
    tasks.spawn(admin::sample(Arc::new(state.clone()), stop.clone()));
    let (admin_stop, metrics_stop) = (stop.clone(), stop.clone());
    tasks.spawn(async move {
        report("admin", admin::serve_admin(state, admin_listener, admin_stop).await);
    });
    tasks.spawn(async move {
        report("metrics", admin::serve_metrics(metrics, metrics_listener, metrics_stop).await);
    });
    info!("health and API on http://{}, metrics on http://{}/metrics", addresses.0, addresses.1);
    Ok(addresses)
}

fn report(server: &str, ended: std::io::Result<()>) {
    if let Err(error) = ended {
        warn!(%error, "the {server} server ended: {error}");
    }
}

/// Keeps the checks `database` and `migrations` true.
async fn watch_database(pool: Pool, health: Arc<Health>, stop: CancellationToken) {
    let mut told = starting();
    while !stop.is_cancelled() {
        look_at_database(&pool, &health, &mut told).await;
        if stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
            return;
        }
    }
}

/// A look only reads: it can't see that a server is full or read-only. So it takes back what it has `told` itself, and leaves what a
/// lane says whose writes are refused to that lane.
async fn look_at_database(pool: &Pool, health: &Health, told: &mut Check) {
    match db::schema_state(pool).await {
        Err(error) => {
            *told = Check::Waiting(error.to_string());
            if health.set("database", told.clone()) {
                warn!(%error, "waiting for the database: {error}");
            }
        }
        Ok(schema) => {
            health.replace("database", told, Check::Ok);
            let why = format!(
                "the schema is at {}, this version needs {}: run `onceflow migrate`",
                schema.applied, schema.known
            );
            let check = if schema.is_ready() { Check::Ok } else { Check::Waiting(why.clone()) };
            if health.set("migrations", check) && !schema.is_ready() {
                warn!("waiting for migrations: {why}");
            }
        }
    }
}

async fn follow_pauses(pool: Pool, pauses: Pauses, every: Duration, stop: CancellationToken) {
    pauses.follow(&pool, every, &stop).await;
}

/// Ends with the intake, so that the other replicas wait in line before this one closes its channels.
async fn follow_share(pool: Pool, share: Arc<Share>, stop: CancellationToken) {
    share.follow(&pool, &stop).await;
}

/// Consumers start once the schema is there and the pauses are known: a paused one must not read a single message.
fn start_intake(
    config: &Config,
    consumers: Vec<Arc<dyn AnyConsumer>>,
    shared: &Shared,
    publish: &Arc<Link>,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for (consumer, own) in consumers.into_iter().zip(config.consumers.clone()) {
        let name = consumer.name();
        let retries = Arc::new(Publisher::new(publish.clone(), fixed_topology(&config.runtime, name)));
        let for_drain = Shared { retries, ..shared.clone() };
        let for_consumer = for_drain.clone();
        let own_of_drain = own.clone();
        tasks.spawn(async move {
            if schema_and_pauses_known(&for_consumer).await {
                run_consumer(consumer, own, for_consumer).await;
            }
        });
        tasks.spawn(async move {
            if schema_and_pauses_known(&for_drain).await {
                run_drain(name, own_of_drain, for_drain).await;
            }
        });
    }
    tasks
}

/// Returns false when the process stops first.
async fn schema_and_pauses_known(shared: &Shared) -> bool {
    let mut changes = shared.health.subscribe();
    let ready = async {
        loop {
            let checks = shared.health.snapshot();
            let schema_known = checks.get("migrations") == Some(&Check::Ok);
            if schema_known && shared.pauses.refresh(&shared.pool).await.is_ok() {
                return;
            }
            // The watch also fires for other checks; the sleep covers a refresh that failed.
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    };
    shared.stop.run_until_cancelled(ready).await.is_some()
}

fn start_relay(
    config: &Config,
    (ways, listener): (&Ways, Listener),
    handover: Handover,
    (health, stop): (&Arc<Health>, &CancellationToken),
) -> JoinSet<()> {
    let names = &config.runtime.names;
    let settings = RelaySettings {
        egress: names.egress(),
        unroutable: config.unroutable.clone(),
        holder: Uuid::now_v7().to_string(),
    };
    let publisher = Publisher::new(ways.publish.clone(), egress_topology(names));
    let bell = handover.bell();
    let relay = Relay::new(settings, ways.relay.clone(), publisher, handover, health.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(listener.run(bell, stop.clone()));
    tasks.spawn(relay.run(stop.clone()));
    tasks
}

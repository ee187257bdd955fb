//! One consumer from start to stop: lay out its queues, read its share of them, pause, drain, and begin anew after any failure.
//!
//! What is read is decided by the layout (`layout`) and by how many replicas share it (`share`); each queue has a reader
//! (`reader`), and all readers hand their deliveries to the same lanes (`lanes`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::erased::AnyConsumer;
use super::kill_switch::KillSwitch;
use super::lanes::Lanes;
use super::layout::{Layout, Place, Unavailable, lay_out};
use super::order::{Line, sweep};
use super::pause::Pauses;
use super::reader::Queue;
use super::readers::Readers;
use super::settings::{ConsumerSettings, Settings};
use super::share::Share;
use crate::breaker::Phase;
use crate::broker::{Link, Publisher};
use crate::db::Pool;
use crate::health::{Check, Health};
use crate::outbox;
use crate::pacing::Pacing;
use crate::telemetry;

/// What all consumers of a process share.
#[derive(Clone)]
pub struct Shared {
    /// Settings of all consumers.
    pub settings: Arc<Settings>,
    /// The connection that deliveries come through.
    pub link: Arc<Link>,
    /// Publishes retries.
    pub retries: Arc<Publisher>,
    /// Connections for handlers.
    pub pool: Pool,
    /// Takes committed downstream events to the relay.
    pub outbox: outbox::Handover,
    /// Conditions of the process.
    pub health: Arc<Health>,
    /// Which consumers an operator has paused.
    pub pauses: Pauses,
    /// Which partitions are read here.
    pub share: Arc<Share>,
    /// No new deliveries; work in flight is finished.
    pub stop: CancellationToken,
    /// Everything ends now, unacknowledged.
    pub abort: CancellationToken,
}

/// Why reading ended.
enum Ended {
    Stopped,
    Paused,
    /// The kill switch stands elsewhere now.
    Switched,
    /// The layout is another one now.
    LaidOutAnew,
    Lost(Unavailable),
}

struct Running {
    consumer: Arc<dyn AnyConsumer>,
    own: ConsumerSettings,
    shared: Shared,
    check: String,
    lanes: Arc<Lanes>,
    switch: KillSwitch,
}

/// Consumes until `stop`, then drains. Returns when nothing of it is left.
pub async fn run_consumer(consumer: Arc<dyn AnyConsumer>, own: ConsumerSettings, shared: Shared) {
    let name = consumer.name();
    let mut tasks = JoinSet::new();
    let switch = KillSwitch::new(name, shared.settings.kill_switch_failures);
    let line = Line::of(name, &own, &shared.settings);
    let lanes = Arc::new(Lanes::start(&consumer, &shared, &switch, line.as_ref(), &mut tasks));
    tasks.spawn(sweep(name, own.ordering, shared.pool.clone(), shared.stop.clone()));
    let running = Running { check: format!("consumer.{name}"), consumer, own, shared, lanes, switch };
    running.run().await;
    running.lanes.close();
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            warn!(consumer = name, %error, "a lane ended abnormally");
        }
    }
}

impl Running {
    async fn run(&self) {
        let mut pacing = Pacing::reconnect();
        let (shared, producers) = (self.shared.clone(), self.own.producers.clone());
        let mut readers = Readers::new(self.consumer.clone(), shared, self.lanes.clone(), producers);
        while !self.shared.stop.is_cancelled() {
            if let Some(why) = self.shared.pauses.reason(self.consumer.name()) {
                self.wait_while_paused(&why).await;
                continue;
            }
            let phase = self.switch.phase();
            if phase == Phase::Open {
                self.wait_while_open().await;
                continue;
            }
            telemetry::paused(self.consumer.name(), phase == Phase::Probing);
            readers.trickle(phase == Phase::Probing);
            match self.laid_out_and_read(&mut readers, &mut pacing).await {
                Ended::Stopped => break,
                Ended::Paused | Ended::Switched | Ended::LaidOutAnew => {}
                Ended::Lost(error) => {
                    self.report_lost(&error);
                    let stop = &self.shared.stop;
                    if stop.run_until_cancelled(tokio::time::sleep(pacing.next_wait())).await.is_none() {
                        break;
                    }
                }
            }
        }
    }

    async fn laid_out_and_read(&self, readers: &mut Readers, pacing: &mut Pacing) -> Ended {
        let layout = match self.laid_out().await {
            Ok(Some(layout)) => layout,
            Ok(None) => return Ended::Stopped,
            Err(error) => return Ended::Lost(error),
        };
        let ended = self.read(layout, readers, pacing).await;
        telemetry::connected(self.consumer.name(), false);
        telemetry::partitions_held(self.consumer.name(), 0);
        readers.end().await;
        ended
    }

    /// Declares what the layout needs. `None` when `stop` came first.
    async fn laid_out(&self) -> Result<Option<Layout>, Unavailable> {
        let Shared { link, pool, stop, settings, share, .. } = &self.shared;
        if !link.ready(stop).await {
            return Ok(None);
        }
        let patterns = self.consumer.bindings();
        let layout = lay_out(pool, link, Place { settings, own: &self.own, patterns });
        let layout = stop.run_until_cancelled(layout).await.transpose();
        if let Ok(Some(layout)) = &layout {
            share.learn(self.consumer.name(), *layout);
        }
        layout
    }

    /// Reads our share of the queues until something ends that.
    async fn read(&self, layout: Layout, readers: &mut Readers, pacing: &mut Pacing) -> Ended {
        let (name, shared) = (self.consumer.name(), &self.shared);
        let mut changes = shared.share.changes();
        let phase = self.switch.phase();
        loop {
            if shared.share.layout(name) != Some(layout) {
                return Ended::LaidOutAnew;
            }
            let wanted = self.wanted(layout);
            readers.want(&wanted);
            self.lanes.share(shared.settings.lanes / shared.share.replicas(layout));
            telemetry::partitions_held(name, readers.partitions());
            if shared.share.is_known(layout) && readers.are_subscribed(&wanted) {
                pacing.reset();
                telemetry::connected(name, !wanted.is_empty());
                self.report_connected(layout);
            }
            tokio::select! {
                biased;
                () = shared.stop.cancelled() => return Ended::Stopped,
                () = shared.pauses.until_paused(name) => return Ended::Paused,
                () = self.switch.turned_from(phase) => return Ended::Switched,
                // The sender lives in the share that we hold.
                _ = changes.changed() => {}
                next = readers.next() => if let Err(error) = next {
                    return Ended::Lost(error.into());
                },
            }
        }
    }

    fn wanted(&self, layout: Layout) -> BTreeSet<Queue> {
        let share = &self.shared.share;
        let plain = share.reads_plain_queue(layout).then_some(Queue::Plain);
        plain.into_iter().chain(share.partitions(layout).into_iter().map(Queue::Partition)).collect()
    }

    async fn wait_while_paused(&self, why: &str) {
        let name = self.consumer.name();
        telemetry::paused(name, true);
        self.shared.health.set(&self.check, Check::Paused(why.to_owned()));
        info!(consumer = name, why, "consumer {name} is paused: {why}; messages stay at the broker");
        tokio::select! {
            () = self.shared.stop.cancelled() => {}
            () = self.shared.pauses.until_resumed(name) => info!(consumer = name, "consumer {name} resumes"),
        }
        telemetry::paused(name, false);
    }

    /// Messages stay at the broker until it is time to try a few.
    async fn wait_while_open(&self) {
        let name = self.consumer.name();
        telemetry::paused(name, true);
        self.shared.health.set(&self.check, Check::Paused(self.switch.why()));
        tokio::select! {
            () = self.shared.stop.cancelled() => {}
            // An operator's pause has other words.
            () = self.shared.pauses.until_paused(name) => {}
            () = self.switch.turned_from(Phase::Open) => {}
        }
    }

    fn report_connected(&self, layout: Layout) {
        let name = self.consumer.name();
        telemetry::prefetch(name, self.shared.settings.prefetch);
        let advice = self.own.differs_from(layout);
        let check = match self.switch.phase() {
            Phase::Closed => advice.clone().map_or(Check::Ok, Check::Advised),
            Phase::Open | Phase::Probing => Check::Paused(self.switch.why()),
        };
        if self.shared.health.set(&self.check, check) {
            let queues = layout.partitions;
            info!(consumer = name, queues, "consumer {name} reads; its events are in {queues} queues");
            if let Some(advice) = advice {
                warn!(consumer = name, "{advice}");
            }
        }
    }

    fn report_lost(&self, error: &Unavailable) {
        let name = self.consumer.name();
        let refused = match error {
            Unavailable::Broker(error) => {
                telemetry::channel_closed("consume", error.reply_code().unwrap_or(0));
                error.is_precondition_failed()
            }
            Unavailable::Database(_) => false,
        };
        let advice = if refused { "; `onceflow check` explains what differs" } else { "" };
        if self.shared.health.set(&self.check, Check::Waiting(format!("{error}{advice}"))) {
            warn!(consumer = name, %error, "consumer {name} reads nothing: {error}{advice}; trying again");
        }
    }
}

/// How long the process waits beyond the drain before it gives up.
pub const ABORT_MARGIN: Duration = Duration::from_secs(5);

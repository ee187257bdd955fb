//! One consumer from start to stop: subscribe, hand deliveries to lanes, pause, drain, and subscribe again after any failure.
//!
//! Lanes outlive subscriptions: what was delivered on a channel that died waits in front of its second delivery on the next
//! one, and is dropped there unhandled, so the order per key holds over reconnects too.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::attempt::Attempter;
use super::erased::AnyConsumer;
use super::job::{InFlight, Job};
use super::lane::Lane;
use super::names::consumer_topology;
use super::pause::Pauses;
use super::settings::{ConsumerSettings, Settings};
use super::settle::Settler;
use crate::broker::{BrokerError, Delivery, Intake, Link, Publisher, Resize, Subscription, Topology};
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
    /// No new deliveries; work in flight is finished.
    pub stop: CancellationToken,
    /// Everything ends now, unacknowledged.
    pub abort: CancellationToken,
}

/// Why a subscription ended.
enum Ended {
    Stopped,
    Paused,
    Lost(BrokerError),
}

struct Running {
    consumer: Arc<dyn AnyConsumer>,
    shared: Shared,
    topology: Topology,
    queue: String,
    check: String,
    intake: Intake,
    in_flight: InFlight,
    lanes: Vec<mpsc::Sender<Job>>,
}

/// Consumes until `stop`, then drains. Returns when nothing of it is left.
pub async fn run_consumer(consumer: Arc<dyn AnyConsumer>, own: ConsumerSettings, shared: Shared) {
    let name = consumer.name();
    let in_flight = InFlight::new(name);
    let mut tasks = JoinSet::new();
    let lanes = start_lanes(&consumer, &shared, &mut tasks);
    let running = Running {
        topology: consumer_topology(&shared.settings, &own, consumer.bindings()),
        queue: shared.settings.names.queue(name),
        check: format!("consumer.{name}"),
        intake: Intake::new(shared.settings.prefetch, shared.settings.prefetch_bytes, Resize::Allowed),
        consumer,
        shared,
        in_flight,
        lanes,
    };
    running.run().await;
    drop(running);
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            warn!(consumer = name, %error, "a lane ended abnormally");
        }
    }
}

fn start_lanes(consumer: &Arc<dyn AnyConsumer>, shared: &Shared, tasks: &mut JoinSet<()>) -> Vec<mpsc::Sender<Job>> {
    let settings = &shared.settings;
    let start = |_| {
        // As many as may be in memory, so that a lane that is held up never keeps deliveries from the others.
        let (sender, receiver) = mpsc::channel(2 * usize::from(settings.prefetch));
        let lane = Lane {
            attempter: Attempter {
                consumer: consumer.clone(),
                pool: shared.pool.clone(),
                handler_timeout: settings.handler_timeout,
                outbox: shared.outbox.clone(),
            },
            settler: Settler {
                consumer: consumer.name(),
                settings: settings.clone(),
                pool: shared.pool.clone(),
                retries: shared.retries.clone(),
                abort: shared.abort.clone(),
            },
            health: shared.health.clone(),
            batch: settings.batch,
            abort: shared.abort.clone(),
        };
        tasks.spawn(lane.run(receiver));
        sender
    };
    (0..settings.lanes).map(start).collect()
}

impl Running {
    async fn run(&self) {
        let mut pacing = Pacing::reconnect();
        while !self.shared.stop.is_cancelled() {
            if let Some(why) = self.shared.pauses.reason(self.consumer.name()) {
                self.wait_while_paused(&why).await;
                continue;
            }
            match self.subscribed(&mut pacing).await {
                Ended::Stopped => break,
                Ended::Paused => {}
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

    async fn subscribed(&self, pacing: &mut Pacing) -> Ended {
        let shared = &self.shared;
        let opened = Subscription::open(&shared.link, &self.topology, &self.queue, &self.intake, &shared.stop).await;
        let mut subscription = match opened {
            Err(error) => return Ended::Lost(error),
            Ok(None) => return Ended::Stopped,
            Ok(Some(subscription)) => subscription,
        };
        pacing.reset();
        self.report_connected();
        let ended = self.consume(&mut subscription).await;
        telemetry::connected(self.consumer.name(), false);
        if let Ended::Lost(_) = ended {
            return ended;
        }
        self.drain(&mut subscription).await;
        subscription.close().await;
        ended
    }

    async fn consume(&self, subscription: &mut Subscription) -> Ended {
        let name = self.consumer.name();
        loop {
            tokio::select! {
                biased;
                () = self.shared.stop.cancelled() => return Ended::Stopped,
                () = self.shared.pauses.until_paused(name) => return Ended::Paused,
                next = subscription.next() => match next {
                    Ok(delivery) => self.take(delivery).await,
                    Err(error) => return Ended::Lost(error),
                },
            }
        }
    }

    /// Hands a delivery to the lane of its key. Waits for room: the prefetch bounds what waits.
    async fn take(&self, delivery: Delivery) {
        let name = self.consumer.name();
        let bytes = delivery.message.body.len();
        let job = Job::new(delivery, &*self.consumer, &self.shared.settings.limits, self.in_flight.enter());
        telemetry::received(name, job.event_type(), bytes);
        let lane = lane_of(job.ordering_key(), self.lanes.len());
        if self.lanes[lane].send(job).await.is_err() {
            warn!(consumer = name, "a lane is gone; its delivery goes back to the queue");
        }
    }

    /// Lets what was delivered finish, within the grace period; the rest goes back unacknowledged.
    async fn drain(&self, subscription: &mut Subscription) {
        if let Err(error) = subscription.cancel().await {
            info!(%error, "the consumer was gone before it was cancelled");
        }
        let within = self.shared.settings.drain_within;
        if tokio::time::timeout(within, self.in_flight.none_left()).await.is_err() {
            warn!(
                consumer = self.consumer.name(),
                "work in flight did not end within {} s: it goes back to the queue",
                within.as_secs()
            );
        }
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

    fn report_connected(&self) {
        let name = self.consumer.name();
        telemetry::connected(name, true);
        telemetry::prefetch(name, self.shared.settings.prefetch);
        if self.shared.health.set(&self.check, Check::Ok) {
            info!(consumer = name, queue = self.queue, "consumer {name} reads {}", self.queue);
        }
    }

    fn report_lost(&self, error: &BrokerError) {
        let name = self.consumer.name();
        telemetry::channel_closed("consume", error.reply_code().unwrap_or(0));
        let advice = if error.is_precondition_failed() { "; `onceflow check` explains what differs" } else { "" };
        if self.shared.health.set(&self.check, Check::Waiting(format!("{error}{advice}"))) {
            warn!(consumer = name, %error, "consumer {name} lost its channel: {error}{advice}; trying again");
        }
    }
}

fn lane_of(key: &str, lanes: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    let lanes = lanes.max(1) as u64;
    usize::try_from(hasher.finish() % lanes).unwrap_or(0)
}

/// How long the process waits beyond the drain before it gives up.
pub const ABORT_MARGIN: Duration = Duration::from_secs(5);

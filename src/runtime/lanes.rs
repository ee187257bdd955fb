//! The lanes of one consumer, shared by everything that it reads: the jobs of a key meet in one lane, whichever queue brought them.
//!
//! Lanes outlive subscriptions: what was delivered on a channel that died waits in front of its second delivery on the next
//! one, and is dropped there unhandled, so the order per key holds over reconnects too.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::warn;

use super::attempt::Attempter;
use super::delivery::Shared;
use super::erased::AnyConsumer;
use super::job::Job;
use super::lane::Lane;
use super::settle::Settler;

/// Where jobs are handed over; the lanes end when this is gone.
pub(super) struct Lanes {
    consumer: &'static str,
    senders: Vec<mpsc::Sender<Job>>,
}

impl Lanes {
    /// Starts the lanes of a consumer as tasks of the caller.
    pub(super) fn start(consumer: &Arc<dyn AnyConsumer>, shared: &Shared, tasks: &mut JoinSet<()>) -> Self {
        let settings = &shared.settings;
        let start = |_| {
            let (sender, receiver) = mpsc::channel(usize::from(settings.prefetch));
            tasks.spawn(lane(consumer, shared).run(receiver));
            sender
        };
        Self { consumer: consumer.name(), senders: (0..settings.lanes).map(start).collect() }
    }

    /// Hands a job to the lane of its key; waits for room.
    pub(super) async fn hand(&self, job: Job) {
        let lane = lane_of(job.ordering_key(), self.senders.len());
        if self.senders[lane].send(job).await.is_err() {
            warn!(consumer = self.consumer, "a lane is gone; its delivery goes back to the queue");
        }
    }
}

fn lane(consumer: &Arc<dyn AnyConsumer>, shared: &Shared) -> Lane {
    Lane {
        attempter: Attempter {
            consumer: consumer.clone(),
            pool: shared.pool.clone(),
            handler_timeout: shared.settings.handler_timeout,
            outbox: shared.outbox.clone(),
        },
        settler: Settler {
            consumer: consumer.name(),
            settings: shared.settings.clone(),
            pool: shared.pool.clone(),
            retries: shared.retries.clone(),
            abort: shared.abort.clone(),
        },
        health: shared.health.clone(),
        batch: shared.settings.batch,
        abort: shared.abort.clone(),
    }
}

fn lane_of(key: &str, lanes: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    let lanes = lanes.max(1) as u64;
    usize::try_from(hasher.finish() % lanes).unwrap_or(0)
}

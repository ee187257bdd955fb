//! The queues that one consumer reads in this process: starts what is wanted, drains what no longer is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::delivery::Shared;
use super::erased::AnyConsumer;
use super::job::InFlight;
use super::lanes::Lanes;
use super::producers::Producers;
use super::reader::{Ended, Queue, Reader};
use crate::breaker::PROBE;
use crate::broker::{BrokerError, Intake, Resize};

/// How much of each queue may be in memory; what was learnt of its messages outlives its readers.
pub(super) type Intakes = BTreeMap<Queue, Intake>;

pub(super) struct Readers {
    consumer: Arc<dyn AnyConsumer>,
    shared: Shared,
    lanes: Arc<Lanes>,
    producers: Option<Producers>,
    intakes: Intakes,
    /// Each with what tells it to drain.
    running: BTreeMap<Queue, CancellationToken>,
    subscribed: BTreeSet<Queue>,
    tasks: JoinSet<(Queue, Ended)>,
    openings: (mpsc::UnboundedSender<Queue>, mpsc::UnboundedReceiver<Queue>),
    /// Readers that start take only a few events at a time.
    trickle: bool,
}

impl Readers {
    pub(super) fn new(
        consumer: Arc<dyn AnyConsumer>,
        shared: Shared,
        lanes: Arc<Lanes>,
        producers: Option<Producers>,
    ) -> Self {
        Self {
            consumer,
            shared,
            lanes,
            producers,
            intakes: Intakes::new(),
            running: BTreeMap::new(),
            subscribed: BTreeSet::new(),
            tasks: JoinSet::new(),
            openings: mpsc::unbounded_channel(),
            trickle: false,
        }
    }

    /// Whether readers that start from now on take only a few events at a time.
    pub(super) fn trickle(&mut self, trickle: bool) {
        self.trickle = trickle;
    }

    /// Starts and drains readers so that these queues are read. One that still drains is started again when it has ended.
    pub(super) fn want(&mut self, wanted: &BTreeSet<Queue>) {
        for (_, stop) in self.running.iter().filter(|(queue, _)| !wanted.contains(queue)) {
            stop.cancel();
        }
        let partitions = wanted.iter().filter(|queue| **queue != Queue::Plain).count();
        for queue in wanted {
            if !self.running.contains_key(queue) {
                self.start(*queue, partitions);
            }
        }
    }

    /// Whether all of these queues are subscribed to.
    pub(super) fn are_subscribed(&self, wanted: &BTreeSet<Queue>) -> bool {
        wanted.is_subset(&self.subscribed)
    }

    /// How many partitions are subscribed to.
    pub(super) fn partitions(&self) -> usize {
        self.subscribed.iter().filter(|queue| **queue != Queue::Plain).count()
    }

    /// Waits until a reader has subscribed or ended. Cancel safe.
    ///
    /// # Errors
    /// The reader has lost its channel.
    pub(super) async fn next(&mut self) -> Result<(), BrokerError> {
        tokio::select! {
            biased;
            Some(queue) = self.openings.1.recv() => {
                self.subscribed.insert(queue);
                Ok(())
            }
            Some(ended) = self.tasks.join_next() => match ended {
                Ok((queue, ended)) => self.ended(queue, ended),
                Err(error) => {
                    warn!(consumer = self.consumer.name(), %error, "a reader ended abnormally");
                    Err(BrokerError::ended("consume"))
                }
            },
            else => std::future::pending().await,
        }
    }

    /// Drains all of them.
    pub(super) async fn end(&mut self) {
        self.want(&BTreeSet::new());
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                warn!(consumer = self.consumer.name(), %error, "a reader ended abnormally");
            }
        }
        self.running.clear();
        self.subscribed.clear();
        self.openings = mpsc::unbounded_channel();
    }

    fn start(&mut self, queue: Queue, partitions: usize) {
        let stop = self.shared.stop.child_token();
        self.running.insert(queue, stop.clone());
        let reader = Reader {
            consumer: self.consumer.clone(),
            shared: self.shared.clone(),
            lanes: self.lanes.clone(),
            producers: self.producers.clone(),
            queue,
            intake: self.intake(queue, partitions),
            in_flight: InFlight::new(self.consumer.name()),
        };
        let openings = self.openings.0.clone();
        self.tasks.spawn(async move {
            // The receiver lives as long as the set of readers does.
            let subscribed = |queue| {
                let _told = openings.send(queue);
            };
            (queue, reader.run(stop, subscribed).await)
        });
    }

    /// The consumer's bounds, shared by its partitions. A partition has a single active consumer.
    fn intake(&mut self, queue: Queue, partitions: usize) -> Intake {
        let settings = &self.shared.settings;
        let (most, bytes, resize) = match queue {
            Queue::Plain => (settings.prefetch, settings.prefetch_bytes, Resize::Allowed),
            Queue::Partition(_) => {
                let most = prefetch(settings.prefetch, settings.batch, partitions);
                (most, settings.prefetch_bytes / partitions.max(1), Resize::Fixed)
            }
        };
        let most = if self.trickle { most.min(PROBE) } else { most };
        let intake = self.intakes.entry(queue).or_insert_with(|| Intake::new(most, bytes, resize));
        intake.bound(most, bytes);
        intake.clone()
    }

    fn ended(&mut self, queue: Queue, ended: Ended) -> Result<(), BrokerError> {
        self.running.remove(&queue);
        self.subscribed.remove(&queue);
        match ended {
            Ended::Drained => Ok(()),
            Ended::Lost(error) => Err(error),
        }
    }
}

/// The consumer's prefetch, shared by its partitions; a whole batch for each, so that a few of them can fill one.
fn prefetch(most: u16, batch: usize, partitions: usize) -> u16 {
    let share = most / u16::try_from(partitions.max(1)).unwrap_or(u16::MAX);
    share.max(u16::try_from(batch).unwrap_or(u16::MAX)).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefetch_is_shared_by_the_partitions_down_to_a_batch() {
        assert_eq!([0, 1, 2, 4, 64].map(|partitions| prefetch(1_000, 200, partitions)), [1_000, 1_000, 500, 250, 200]);
        assert_eq!(prefetch(100, 200, 4), 100);
    }
}

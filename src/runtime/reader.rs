//! One subscription to one queue, from the first delivery to its drain.
//!
//! A drain never cancels a queue with work in flight. Of a partition the broker activates the next replica in line as soon as the
//! active one is cancelled, even while its deliveries are unacknowledged, and events would overtake each other. And a queue that
//! is being moved away from counts as empty once nobody reads it. So a reader stops taking deliveries, lets finish what it
//! handed to the lanes, acknowledges that, and closes the channel. Only then the broker puts back what was not taken, in order, and
//! counts one consumer less.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::delivery::Shared;
use super::erased::AnyConsumer;
use super::job::{InFlight, Job};
use super::lanes::Lanes;
use super::producers::Producers;
use crate::broker::{BrokerError, Delivery, Intake, Subscription, Topology};
use crate::telemetry;

/// A queue of a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Queue {
    /// Shared by all replicas: everything where there is one queue, else retries and replays.
    Plain,
    /// Read by one replica at a time.
    Partition(u16),
}

/// Why a subscription ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// It was told to; nothing of it is left.
    Drained,
    /// The channel is gone; what it delivered comes again.
    Lost(BrokerError),
}

/// Reads one queue into the lanes of its consumer.
pub(super) struct Reader {
    pub(super) consumer: Arc<dyn AnyConsumer>,
    pub(super) shared: Shared,
    pub(super) lanes: Arc<Lanes>,
    /// Whose messages are taken; everybody's where absent.
    pub(super) producers: Option<Producers>,
    pub(super) queue: Queue,
    pub(super) intake: Intake,
    pub(super) in_flight: InFlight,
}

impl Reader {
    /// Subscribes, says so, and reads until `stop`; then drains.
    pub(super) async fn run(self, stop: CancellationToken, subscribed: impl Fn(Queue)) -> Ended {
        loop {
            match self.subscribed(&stop, &subscribed).await {
                // Nothing was in flight: it goes on with another window.
                Err(error) if error.is_change_of_window() => {}
                Err(error) => return Ended::Lost(error),
                Ok(()) => return Ended::Drained,
            }
        }
    }

    async fn subscribed(&self, stop: &CancellationToken, subscribed: impl Fn(Queue)) -> Result<(), BrokerError> {
        let (link, nothing) = (&self.shared.link, Topology::default());
        let opened = Subscription::open(link, &nothing, &self.name(), &self.intake, stop).await?;
        let Some(mut subscription) = opened else { return Ok(()) };
        subscribed(self.queue);
        match self.consume(&mut subscription, stop).await {
            Ok(()) if !subscription.is_connected() => return Ok(()),
            Ok(()) => self.drain().await,
            Err(error) if error.is_change_of_window() => {
                subscription.close().await;
                return Err(error);
            }
            Err(error) => return Err(error),
        }
        subscription.close().await;
        Ok(())
    }

    fn name(&self) -> String {
        let (names, consumer) = (&self.shared.settings.names, self.consumer.name());
        match self.queue {
            Queue::Plain => names.queue(consumer),
            Queue::Partition(number) => names.partition(consumer, number),
        }
    }

    async fn consume(&self, subscription: &mut Subscription, stop: &CancellationToken) -> Result<(), BrokerError> {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                next = subscription.next() => self.take(next?),
            }
        }
    }

    /// Hands a delivery to the lanes.
    fn take(&self, delivery: Delivery) {
        let bytes = delivery.message.body.len();
        let (producers, limits) = (self.producers.as_ref(), &self.shared.settings.limits);
        let job = Job::new(delivery, &*self.consumer, producers, limits, self.in_flight.enter());
        telemetry::received(self.consumer.name(), job.event_type(), bytes);
        self.lanes.hand(job);
    }

    /// Lets what was handed over finish, within the grace period; the rest goes back unacknowledged.
    async fn drain(&self) {
        let within = self.shared.settings.drain_within;
        if tokio::time::timeout(within, self.in_flight.none_left()).await.is_err() {
            warn!(
                consumer = self.consumer.name(),
                queue = self.name(),
                "work in flight did not end within {} s: it goes back to the queue",
                within.as_secs()
            );
        }
    }
}

//! One delivery on its way through the runtime.

use std::sync::Arc;
use std::time::Instant;

use aws_lc_rs::digest::{Context, SHA256};
use tokio::sync::watch;

use super::erased::{AnyConsumer, Decoded};
use super::headers::History;
use super::producers::Producers;
use super::wire::{self, Limits};
use crate::broker::Delivery;
use crate::event::{Envelope, Rejection};
use crate::telemetry;

/// A delivery, decoded as far as it can be.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) delivery: Delivery,
    pub(super) history: History,
    pub(super) content: Content,
    pub(super) received: Instant,
    /// Counts the job as in flight for as long as it lives.
    _in_flight: InFlightGuard,
}

/// What a delivery turned out to be.
#[derive(Debug)]
pub(super) enum Content {
    /// An event that its consumer understands.
    Event(Arc<Envelope>, Decoded),
    /// A readable envelope with a payload that its consumer refuses.
    Refused(Arc<Envelope>, Rejection),
    /// Not even an envelope, or from nobody who is believed.
    Unreadable(Rejection),
}

impl Job {
    /// Of a message whose sender is not believed nothing else is believed either, and nothing of it is decoded.
    pub(super) fn new(
        delivery: Delivery,
        consumer: &dyn AnyConsumer,
        producers: Option<&Producers>,
        limits: &Limits,
        guard: InFlightGuard,
    ) -> Self {
        let history = History::of(&delivery.message, &delivery.route);
        let believed = producers.map_or(Ok(()), |producers| producers.check(&delivery.message));
        let content = match believed.and_then(|()| wire::decode(&delivery.message, limits)) {
            Err(rejection) => Content::Unreadable(rejection),
            Ok(envelope) => match consumer.decode(&envelope) {
                Ok(event) => Content::Event(Arc::new(envelope), event),
                Err(rejection) => Content::Refused(Arc::new(envelope), rejection),
            },
        };
        Self { delivery, history, content, received: Instant::now(), _in_flight: guard }
    }

    pub(super) fn envelope(&self) -> Option<&Arc<Envelope>> {
        match &self.content {
            Content::Event(envelope, _) | Content::Refused(envelope, _) => Some(envelope),
            Content::Unreadable(_) => None,
        }
    }

    /// The event type as a metric's label; the metrics fold unknown ones together.
    pub(super) fn event_type(&self) -> &str {
        self.envelope().map_or("other", |e| &e.event_type)
    }

    /// Counts how it was settled, and after what time.
    pub(super) fn count(&self, consumer: &str, outcome: &'static str) {
        let took = self.received.elapsed();
        telemetry::processed(consumer, self.event_type(), outcome, took);
        if self.is_replay() {
            telemetry::replayed_delivery();
        } else {
            telemetry::live_delivery(consumer, took);
        }
    }

    /// A dead letter that was sent again.
    pub(super) fn is_replay(&self) -> bool {
        self.history.replay_id.is_some()
    }

    /// Events with the same key take the same lane.
    pub(super) fn ordering_key(&self) -> &str {
        match self.envelope() {
            Some(envelope) => &envelope.partition_key,
            None => self.delivery.message.message_id.as_deref().unwrap_or_default(),
        }
    }

    /// Tenant, source and id: two jobs with the same identity never share a batch.
    pub(super) fn identity(&self) -> Option<(&str, &str, &str)> {
        self.envelope().map(|e| (e.tenant.as_str(), e.source.as_str(), e.id.as_str()))
    }
}

/// What makes two events with one id the same: type and payload.
pub(crate) fn fingerprint(envelope: &Envelope) -> [u8; 32] {
    let mut hash = Context::new(&SHA256);
    hash.update(envelope.event_type.as_bytes());
    hash.update(&[0]);
    hash.update(&envelope.data);
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(hash.finish().as_ref());
    fingerprint
}

/// Counts jobs in flight, so that a drain can wait for none.
#[derive(Debug, Clone)]
pub(super) struct InFlight {
    consumer: &'static str,
    count: Arc<watch::Sender<usize>>,
}

impl InFlight {
    pub(super) fn new(consumer: &'static str) -> Self {
        Self { consumer, count: Arc::new(watch::Sender::new(0)) }
    }

    pub(super) fn enter(&self) -> InFlightGuard {
        self.count.send_modify(|n| *n += 1);
        telemetry::in_flight(self.consumer, 1);
        InFlightGuard(self.clone())
    }

    pub(super) async fn none_left(&self) {
        let mut watched = self.count.subscribe();
        // The sender lives in self, so the wait can't end with an error.
        if watched.wait_for(|n| *n == 0).await.is_err() {
            tracing::debug!("in-flight counter gone");
        }
    }
}

/// One job in flight.
#[derive(Debug)]
pub(super) struct InFlightGuard(InFlight);

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.0.count.send_modify(|n| *n -= 1);
        telemetry::in_flight(self.0.consumer, -1);
    }
}

//! Acknowledging many deliveries of a channel with one frame.
//!
//! One acknowledgement covers every delivery up to its tag (`multiple`), so it may be sent only for a tag below which nothing
//! is in flight. What is dealt with above a delivery in flight waits for it, but not for ever: past a bound it is acknowledged
//! one by one, so that a slow event never uses up the prefetch of the others.
//!
//! Through the channel, never through a delivery's own `acker`: that one pends for ever when it is asked just as its connection
//! ends, because the client leaves the order in a queue that nobody reads any more (lapin 4.12.3: in 20 restarts of a
//! broker it happened to 16 of 30 consumers, and to none of 30 beside them that used the channel).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lapin::Channel;
use lapin::options::BasicAckOptions;

use super::consume::Delivery;
use super::error::{BrokerError, bounded};
use super::link::ANSWER_WITHIN;

/// What was delivered on one channel and how far it is acknowledged.
pub(super) struct Acks {
    channel: Channel,
    /// Whether the subscription still runs; acknowledgements of one that ended are not sent.
    alive: AtomicBool,
    /// Held while frames are made and written: a later tag must not overtake an earlier one.
    sending: tokio::sync::Mutex<()>,
    window: Mutex<Window>,
}

impl std::fmt::Debug for Acks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acks").finish_non_exhaustive()
    }
}

impl Acks {
    /// For a channel whose prefetch is `prefetch`.
    pub(super) fn new(channel: Channel, prefetch: u16) -> Arc<Self> {
        let window = Mutex::new(Window::new(bound_for(prefetch)));
        Arc::new(Self { channel, alive: AtomicBool::new(true), sending: tokio::sync::Mutex::new(()), window })
    }

    /// From now on nothing is acknowledged, so that the prefetch is used up and nothing more is on its way.
    pub(super) fn hold(&self) {
        self.window().is_held = true;
    }

    /// How many deliveries of the running consumer the broker waits for. As many as its prefetch: none is on its way.
    pub(super) fn outstanding(&self) -> usize {
        self.window().outstanding()
    }

    /// Another consumer of the channel starts, with a prefetch of its own.
    pub(super) fn next_consumer(&self, prefetch: u16) {
        let mut window = self.window();
        window.before = window.last;
        window.bound = bound_for(prefetch);
    }

    /// Acknowledges again, what was held back too.
    pub(super) async fn let_go(&self) -> Result<(), BrokerError> {
        let _sending = self.sending.lock().await;
        let frames = {
            let mut window = self.window();
            window.is_held = false;
            window.frames()
        };
        self.send(frames).await.map(|_| ())
    }

    pub(super) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    pub(super) fn end(&self) {
        self.alive.store(false, Ordering::Release);
    }

    pub(super) fn delivered(&self, tag: u64) {
        let mut window = self.window();
        window.in_flight.insert(tag);
        window.last = tag;
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends all that waits, what is above deliveries in flight too.
    pub(super) async fn flush(&self) -> Result<(), BrokerError> {
        let _sending = self.sending.lock().await;
        let frames = {
            let mut window = self.window();
            window.is_held = false;
            let mut frames = window.frames();
            frames.extend(window.one_by_one());
            frames
        };
        self.send(frames).await.map(|_| ())
    }

    /// Returns false when the subscription has ended: the broker delivers the messages again.
    async fn dealt_with(&self, tags: impl Iterator<Item = u64>) -> Result<bool, BrokerError> {
        let _sending = self.sending.lock().await;
        let frames = self.window().dealt_with(tags);
        self.send(frames).await
    }

    async fn send(&self, frames: Vec<Frame>) -> Result<bool, BrokerError> {
        for frame in frames {
            if !self.is_alive() {
                return Ok(false);
            }
            let ack = self.channel.basic_ack(frame.tag, BasicAckOptions { multiple: frame.multiple });
            bounded("acknowledge", ANSWER_WITHIN, ack).await?;
        }
        Ok(true)
    }
}

/// Half of what may be outstanding: the other half keeps coming.
fn bound_for(prefetch: u16) -> usize {
    usize::from(prefetch) / 2
}

/// Tells the broker that these messages are dealt with; the frames for some of them may be sent later, together with others.
/// Returns false when some are stale and come again.
///
/// # Errors
/// A channel is gone; its messages come again.
pub async fn acknowledge(deliveries: &[&Delivery]) -> Result<bool, BrokerError> {
    let mut all_sent = true;
    for same_channel in deliveries.chunk_by(|a, b| Arc::ptr_eq(a.acks(), b.acks())) {
        let tags = same_channel.iter().map(|delivery| delivery.tag());
        all_sent &= same_channel[0].acks().dealt_with(tags).await?;
    }
    Ok(all_sent)
}

/// An acknowledgement to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frame {
    tag: u64,
    multiple: bool,
}

/// Which tags are in flight and which are dealt with but not acknowledged.
#[derive(Debug)]
struct Window {
    in_flight: BTreeSet<u64>,
    unsent: BTreeSet<u64>,
    /// Most tags that may wait above one in flight.
    bound: usize,
    /// All wait.
    is_held: bool,
    /// The last tag so far, and the last one before the running consumer.
    last: u64,
    before: u64,
}

impl Window {
    fn new(bound: usize) -> Self {
        let (in_flight, unsent) = Default::default();
        Self { in_flight, unsent, bound, is_held: false, last: 0, before: 0 }
    }

    fn dealt_with(&mut self, tags: impl Iterator<Item = u64>) -> Vec<Frame> {
        for tag in tags {
            if self.in_flight.remove(&tag) {
                self.unsent.insert(tag);
            }
        }
        if self.is_held { Vec::new() } else { self.frames() }
    }

    fn outstanding(&self) -> usize {
        let own = self.before + 1..;
        self.in_flight.range(own.clone()).count() + self.unsent.range(own).count()
    }

    fn frames(&mut self) -> Vec<Frame> {
        let above = match self.in_flight.first() {
            Some(first) => self.unsent.split_off(first),
            None => BTreeSet::new(),
        };
        let below = std::mem::replace(&mut self.unsent, above);
        // The greatest of them is outstanding at the broker, as the tag of every frame has to be.
        let mut frames: Vec<Frame> =
            below.last().map(|tag| Frame { tag: *tag, multiple: below.len() > 1 }).into_iter().collect();
        if self.unsent.len() > self.bound {
            frames.extend(self.one_by_one());
        }
        frames
    }

    fn one_by_one(&mut self) -> Vec<Frame> {
        std::mem::take(&mut self.unsent).into_iter().map(|tag| Frame { tag, multiple: false }).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn window(delivered: u64, bound: usize) -> Window {
        let mut window = Window::new(bound);
        window.in_flight.extend(1..=delivered);
        window
    }

    fn all(tag: u64) -> Frame {
        Frame { tag, multiple: true }
    }

    fn one(tag: u64) -> Frame {
        Frame { tag, multiple: false }
    }

    #[test]
    fn a_batch_without_anything_in_flight_below_it_is_one_frame() {
        assert_eq!(window(5, 10).dealt_with(1..=3), [all(3)]);
    }

    #[test]
    fn what_is_above_a_delivery_in_flight_waits_for_it_i1() {
        let mut window = window(5, 10);
        assert_eq!(window.dealt_with(3..=4), []);
        assert_eq!(window.dealt_with(1..=1), [one(1)]);
        assert_eq!(window.dealt_with(2..=2), [all(4)]);
        assert_eq!(window.dealt_with(5..=5), [one(5)]);
    }

    #[test]
    fn past_the_bound_those_that_wait_are_acknowledged_one_by_one() {
        let mut window = window(6, 2);
        assert_eq!(window.dealt_with(2..=3), []);
        assert_eq!(window.dealt_with(4..=4), [one(2), one(3), one(4)]);
        assert_eq!(window.dealt_with(1..=1), [one(1)]);
        assert_eq!(window.dealt_with(5..=6), [all(6)]);
    }

    #[test]
    fn while_they_are_held_nothing_is_acknowledged_and_all_of_it_is_outstanding() {
        let mut window = window(6, 2);
        window.is_held = true;
        assert_eq!(window.dealt_with(1..=5), []);
        assert_eq!(window.outstanding(), 6);
        window.before = 4;
        assert_eq!(window.outstanding(), 2, "of the next consumer");
        window.is_held = false;
        assert_eq!(window.frames(), [all(5)]);
        assert_eq!(window.outstanding(), 1);
    }

    proptest! {
        /// What the broker makes of the frames: each tag is acknowledged once, never while it is in flight, and no frame
        /// names a tag that the broker no longer waits for (it would close the channel).
        #[test]
        fn no_frame_covers_a_delivery_in_flight_or_names_a_tag_twice_i1(
            order in Just((1..=60u64).collect::<Vec<_>>()).prop_shuffle(),
            bound in 0usize..40,
            batch in 1usize..9,
        ) {
            let mut window = window(60, bound);
            let mut outstanding: BTreeSet<u64> = (1..=60).collect();
            let mut dealt_with: BTreeSet<u64> = BTreeSet::new();
            for tags in order.chunks(batch) {
                dealt_with.extend(tags);
                for frame in window.dealt_with(tags.iter().copied()) {
                    prop_assert!(outstanding.contains(&frame.tag));
                    let covered: Vec<u64> =
                        outstanding.iter().copied().filter(|t| *t == frame.tag || frame.multiple && *t < frame.tag).collect();
                    prop_assert!(covered.iter().all(|t| dealt_with.contains(t)));
                    covered.iter().for_each(|t| { outstanding.remove(t); });
                }
                prop_assert!(outstanding.len() <= 60 - dealt_with.len() + bound);
            }
            prop_assert!(outstanding.is_empty());
        }
    }
}

//! How much of a queue may be in memory: a window of deliveries that follows the size of the messages (I-8).
//!
//! AMQP bounds the number of unacknowledged deliveries, not their bytes, and RabbitMQ fixes the number when a consumer starts.
//! So the window is estimated from what came: one window of messages as they are now takes at most half of the budget. The
//! first window of a subscription is small and grows while messages come fast. Messages that are suddenly larger
//! than the window was made for may take the budget twice; then the subscription ends, and what was not acknowledged goes back.
//!
//! A delivery counts from when it was read until it is dropped, over reconnects too: what waits in memory for a slow database
//! counts whether its channel still lives or not.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::message::{Message, Seen};

/// The first window of a subscription.
const FIRST: u16 = 32;
/// A window grows by this factor at most.
const GROW_BY: usize = 4;
/// A larger message moves the estimate by this part of the difference, so that one of many does not count as all of them,
const RISE: usize = 8;
/// and a smaller one by this part.
const FALL: usize = 1_024;
/// A window is worth being larger when all of it came within so long.
const FAST: Duration = Duration::from_secs(1);
/// A window that was made smaller stays as it is for so long.
const REST: Duration = Duration::from_secs(1);
/// After a change was not possible it is not tried again for so long.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// What a delivery takes beside its body and headers.
const AROUND: usize = 1_024;

/// What a queue is read with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// The consumer is cancelled and another one started with another window, while what it brought is worked on.
    Allowed,
    /// A cancelled consumer would hand the queue to another one while deliveries are in flight (single active consumer): the
    /// subscription ends when its window has to change, and its owner opens another one.
    Fixed,
}

/// The budget of one queue; owned by whoever opens its subscriptions, so that what was learnt outlives them.
#[derive(Debug, Clone)]
pub struct Intake {
    resize: Resize,
    window: Arc<Mutex<Window>>,
    /// Rung when memory was given back.
    freed: Arc<Notify>,
}

impl Intake {
    /// At most `most` deliveries in a window, and twice as many or about `bytes` in memory.
    pub fn new(most: u16, bytes: usize, resize: Resize) -> Self {
        Self { resize, window: Arc::new(Mutex::new(Window::new(most, bytes))), freed: Arc::default() }
    }

    /// Other bounds from the next window on, as for `new`; what was learnt of the messages stays.
    pub fn bound(&self, most: u16, bytes: usize) {
        self.lock().bound(most, bytes);
    }

    /// Deliveries of the window that runs, or ran last.
    pub fn window(&self) -> u16 {
        self.lock().size
    }

    /// Bytes of the deliveries that are in memory.
    pub fn held_bytes(&self) -> usize {
        self.lock().held_bytes
    }

    pub(super) fn is_fixed(&self) -> bool {
        self.resize == Resize::Fixed
    }

    /// The size for the window of a new subscription: small at first where it may grow, else all that fits.
    pub(super) fn first(&self) -> u16 {
        match self.resize {
            Resize::Allowed => self.lock().first(),
            Resize::Fixed => self.lock().all_that_fits(),
        }
    }

    /// Another size that the window should have by now.
    pub(super) fn wanted(&self) -> Option<u16> {
        self.lock().wanted(Instant::now())
    }

    /// Whether more came than there is any room for.
    pub(super) fn is_overfull(&self) -> bool {
        self.lock().is_overfull()
    }

    /// Whether nothing is in memory.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().held == 0
    }

    /// Whether a window of this size may be opened beside what is in memory.
    pub(super) fn has_room_for(&self, size: u16) -> bool {
        self.lock().has_room_for(size)
    }

    /// Waits until something was given back.
    pub(super) async fn room_for(&self, size: u16) {
        loop {
            let freed = self.freed.notified();
            if self.has_room_for(size) {
                return;
            }
            freed.await;
        }
    }

    /// From now on the window has this size.
    pub(super) fn opened(&self, size: u16) {
        self.lock().opened(size, Instant::now());
    }

    /// It can't have another size now.
    pub(super) fn put_off(&self) {
        self.lock().put_off_until = Some(Instant::now() + TRY_AGAIN_AFTER);
    }

    /// Counts a message until what is returned is dropped.
    pub(super) fn hold(&self, message: &Message) -> Held {
        let size = |value| if let Seen::Text(text) = value { text.len() } else { 8 };
        let headers = message.headers.look().map(|(name, value)| name.len() + size(value));
        let bytes = message.body.len() + headers.sum::<usize>() + AROUND;
        self.lock().arrived(bytes);
        Held { intake: self.clone(), bytes }
    }

    fn lock(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A message in memory.
#[derive(Debug)]
pub(super) struct Held {
    intake: Intake,
    bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.intake.lock().left(self.bytes);
        self.intake.freed.notify_waiters();
    }
}

/// Sizes and counts, without time or I/O of its own.
#[derive(Debug)]
struct Window {
    most: u16,
    bytes: usize,
    /// Deliveries of the running window.
    size: u16,
    /// Bytes of a message, as far as is known; 0 before the first one.
    estimate: usize,
    held: usize,
    held_bytes: usize,
    /// Deliveries since that moment.
    seen: usize,
    seen_since: Option<Instant>,
    /// Whether a whole window came fast since it has its size: a consumer that is mostly idle needs no larger one.
    was_fast: bool,
    rests_until: Option<Instant>,
    put_off_until: Option<Instant>,
}

impl Window {
    fn new(most: u16, bytes: usize) -> Self {
        let most = most.max(1);
        let size = FIRST.min(most);
        let (estimate, held, held_bytes, seen, was_fast) = Default::default();
        let (seen_since, rests_until, put_off_until) = Default::default();
        Self { most, bytes, size, estimate, held, held_bytes, seen, seen_since, was_fast, rests_until, put_off_until }
    }

    fn bound(&mut self, most: u16, bytes: usize) {
        (self.most, self.bytes) = (most.max(1), bytes);
    }

    fn arrived(&mut self, bytes: usize) {
        self.held += 1;
        self.held_bytes += bytes;
        self.seen += 1;
        self.estimate = if bytes > self.estimate {
            self.estimate + (bytes - self.estimate).div_ceil(RISE)
        } else {
            self.estimate - (self.estimate - bytes) / FALL
        };
    }

    fn left(&mut self, bytes: usize) {
        self.held = self.held.saturating_sub(1);
        self.held_bytes = self.held_bytes.saturating_sub(bytes);
    }

    /// How many messages, as they are now, fit in half of the budget.
    fn fitting(&self) -> usize {
        (self.bytes / 2 / self.estimate.max(1)).max(1)
    }

    fn at_most(&self, size: usize) -> u16 {
        u16::try_from(size).unwrap_or(u16::MAX).min(self.most)
    }

    fn all_that_fits(&self) -> u16 {
        self.at_most(power_of_two_below(self.fitting()))
    }

    fn first(&self) -> u16 {
        self.at_most(power_of_two_below(self.fitting())).min(FIRST)
    }

    /// By powers of two, and a larger one only when it would fit with ease, so that a size at the edge does not go to and fro.
    fn wanted(&mut self, now: Instant) -> Option<u16> {
        self.look_how_fast(now);
        let (size, fitting) = (usize::from(self.size), self.fitting());
        if self.put_off_until.is_some_and(|until| now < until) {
            return None;
        }
        if fitting < size {
            return Some(self.at_most(power_of_two_below(fitting)));
        }
        let rests = self.rests_until.is_some_and(|until| now < until);
        (self.was_fast && !rests && self.size < self.most && fitting >= 2 * size)
            .then(|| self.at_most(power_of_two_below(fitting).min(size * GROW_BY)))
    }

    fn look_how_fast(&mut self, now: Instant) {
        if self.seen >= usize::from(self.size) {
            self.was_fast |= self.seen_since.is_some_and(|since| now - since <= FAST);
            (self.seen, self.seen_since) = (0, Some(now));
        }
    }

    fn opened(&mut self, size: u16, now: Instant) {
        if size < self.size && self.fitting() < usize::from(self.size) {
            self.rests_until = Some(now + REST);
        }
        self.size = size;
        (self.seen, self.seen_since) = (0, Some(now));
        self.was_fast = false;
    }

    fn has_room_for(&self, size: u16) -> bool {
        self.held == 0
            || self.held_bytes + usize::from(size) * self.estimate <= self.bytes
                && self.held + usize::from(size) <= 2 * usize::from(self.most)
    }

    fn is_overfull(&self) -> bool {
        self.held > 1 && self.held_bytes > 2 * self.bytes
    }
}

fn power_of_two_below(n: usize) -> usize {
    1 << n.max(1).ilog2()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: usize = 1024 * 1024;

    fn window() -> Window {
        Window::new(1_000, 32 * MIB)
    }

    /// As many as come: all are worked off at once.
    fn pass(window: &mut Window, count: usize, bytes: usize) {
        for _ in 0..count {
            window.arrived(bytes);
        }
        for _ in 0..count {
            window.left(bytes);
        }
    }

    /// What a subscription does with the window, once.
    fn follow(window: &mut Window, now: Instant) {
        if let Some(size) = window.wanted(now) {
            window.opened(size, now);
        }
    }

    #[test]
    fn small_messages_have_the_whole_window_after_three_steps() {
        let (mut window, now) = (window(), Instant::now());
        assert_eq!(window.first(), 32);
        window.opened(32, now);
        let mut sizes = Vec::new();
        for _ in 0..4 {
            let size = usize::from(window.size);
            pass(&mut window, size, 1_300);
            follow(&mut window, now);
            sizes.push(window.size);
        }
        assert_eq!(sizes, [128, 512, 1_000, 1_000]);
    }

    #[test]
    fn a_window_of_large_messages_takes_at_most_half_of_the_budget_i8() {
        let (mut window, now) = (window(), Instant::now());
        for _ in 0..100 {
            pass(&mut window, 1, MIB);
            follow(&mut window, now);
        }
        assert_eq!(window.size, 16);
        assert_eq!(window.first(), 16, "what was learnt holds for the next subscription");
    }

    #[test]
    fn a_window_that_can_not_grow_begins_with_all_that_fits_by_what_was_learnt_i8() {
        let mut window = window();
        assert_eq!(window.all_that_fits(), 1_000, "nothing is known yet: the budget ends a flood");
        pass(&mut window, 100, MIB);
        window.bound(250, 32 * MIB);
        assert_eq!(window.all_that_fits(), 16);
        window.bound(250, 8 * MIB);
        assert_eq!(window.all_that_fits(), 4);
    }

    #[test]
    fn messages_larger_than_the_budget_come_one_by_one_i8() {
        let (mut window, now) = (window(), Instant::now());
        for _ in 0..100 {
            pass(&mut window, 1, 100 * MIB);
            follow(&mut window, now);
        }
        assert_eq!(window.size, 1);
        window.arrived(100 * MIB);
        assert!(!window.is_overfull(), "one message is always taken");
        window.arrived(100 * MIB);
        assert!(window.is_overfull());
    }

    #[test]
    fn an_idle_consumer_keeps_its_small_window() {
        let (mut window, now) = (window(), Instant::now());
        window.opened(32, now);
        for n in 1..1_000 {
            pass(&mut window, 1, 1_300);
            assert_eq!(window.wanted(now + n * Duration::from_millis(50)), None);
        }
    }

    #[test]
    fn one_large_message_among_small_ones_does_not_count_as_all_of_them() {
        let (mut window, now) = (window(), Instant::now());
        window.opened(1_000, now);
        pass(&mut window, 1_000, 1_300);
        pass(&mut window, 1, MIB);
        assert_eq!(window.wanted(now), Some(64));
        window.opened(64, now);
        pass(&mut window, 2_000, 1_300);
        assert_eq!(window.wanted(now), None, "it rests");
        assert_eq!(window.wanted(now + REST), Some(256));
    }

    #[test]
    fn a_smaller_window_waits_until_what_is_held_has_become_little_i8() {
        let mut window = window();
        for _ in 0..40 {
            window.arrived(MIB);
        }
        assert!(!window.has_room_for(16));
        for _ in 0..24 {
            window.left(MIB);
        }
        assert!(window.has_room_for(15));
        for _ in 0..16 {
            window.left(MIB);
        }
        assert!(window.has_room_for(1_000), "with nothing in memory there is always room");
    }

    #[test]
    fn windows_that_follow_each_other_leave_no_more_than_twice_the_number_in_memory_i8() {
        let mut window = window();
        for _ in 0..1_001 {
            window.arrived(1_300);
        }
        assert!(!window.has_room_for(1_000));
        window.left(1_300);
        assert!(window.has_room_for(1_000));
    }

    proptest! {
        /// Whatever comes: a window that was just chosen fits by the estimate, never is 0, and is within its bound.
        #[test]
        fn every_window_fits_in_the_budget_i8(
            sizes in prop::collection::vec(1usize..3 * MIB, 1..200),
            most in 1u16..2_000,
            budget in MIB..64 * MIB,
        ) {
            let (mut window, now) = (Window::new(most, budget), Instant::now());
            for bytes in sizes {
                pass(&mut window, 1, bytes);
                follow(&mut window, now);
                prop_assert!((1..=most).contains(&window.size));
                prop_assert!(window.size == 1 || usize::from(window.size) * window.estimate <= budget / 2);
                let first = window.first();
                prop_assert!((1..=most.min(FIRST)).contains(&first));
            }
        }
    }
}

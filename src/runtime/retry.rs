//! When a failed event is tried again: a ladder of TTL queues, one per delay.
//!
//! One queue per delay, because a queue only expires messages at its head. Each message also carries an expiration a little
//! below the queue's, so that what failed together does not come back together.

use std::time::Duration;

use rand::Rng as _;

/// The ladder and how often it is climbed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Delays in rising order; each is a queue.
    pub rungs: Vec<Duration>,
    /// Attempts in all, the first included.
    pub max_attempts: u32,
}

/// What a failure says about the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryClass {
    /// Locks were in the way: soon again, however often it was tried.
    Contention,
    /// Timeouts, panics: longer at each attempt.
    Growing,
    /// The consumer asked for at least this.
    AtLeast(Duration),
}

/// Jittered waits lie between this share of the rung and the whole of it.
const SHORTEST_SHARE: f64 = 0.8;

impl RetryPolicy {
    /// The rung for the attempt after `attempts` failed ones; `None` when they are used up.
    pub fn rung(&self, class: RetryClass, attempts: u32) -> Option<Duration> {
        if attempts >= self.max_attempts {
            return None;
        }
        let last = self.rungs.last()?;
        let climbed = self.rungs.get(attempts.saturating_sub(1) as usize).unwrap_or(last);
        Some(match class {
            RetryClass::Contention => *self.rungs.first()?,
            RetryClass::Growing => *climbed,
            RetryClass::AtLeast(wanted) => *self.rungs.iter().find(|r| **r >= wanted).unwrap_or(last),
        })
    }
}

/// Spreads the wait of one message within its rung.
pub(super) fn jittered(rung: Duration) -> Duration {
    rung.mul_f64(rand::rng().random_range(SHORTEST_SHARE..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> RetryPolicy {
        let rungs = [1, 5, 30].map(Duration::from_secs).to_vec();
        RetryPolicy { rungs, max_attempts: 5 }
    }

    #[test]
    fn growing_retries_climb_the_ladder_and_end_after_the_last_attempt() {
        let secs = |attempts| policy().rung(RetryClass::Growing, attempts).map(|d| d.as_secs());
        assert_eq!([secs(1), secs(2), secs(3), secs(4), secs(5)], [Some(1), Some(5), Some(30), Some(30), None]);
    }

    #[test]
    fn contention_always_takes_the_lowest_rung() {
        assert_eq!(policy().rung(RetryClass::Contention, 4), Some(Duration::from_secs(1)));
        assert_eq!(policy().rung(RetryClass::Contention, 5), None);
    }

    #[test]
    fn a_consumers_wish_is_rounded_up_to_a_rung_and_capped_by_the_last() {
        let wish = |s| policy().rung(RetryClass::AtLeast(Duration::from_secs(s)), 1).map(|d| d.as_secs());
        assert_eq!([wish(0), wish(2), wish(30), wish(99)], [Some(1), Some(5), Some(30), Some(30)]);
    }

    #[test]
    fn jitter_never_leaves_its_rung_b18() {
        for _ in 0..1000 {
            let wait = jittered(Duration::from_secs(10));
            assert!((Duration::from_secs(8)..=Duration::from_secs(10)).contains(&wait), "{wait:?}");
        }
    }
}

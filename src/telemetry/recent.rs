//! The 95th percentile of the last seconds, out of counts that only rise. Pure values, no clock.

use std::collections::VecDeque;
use std::time::Duration;

use super::describe::PROCESS_BOUNDS;

/// One count for each bound of the histogram and one for what is beyond.
pub(super) const DURATIONS: usize = PROCESS_BOUNDS.len() + 1;
/// How far back is looked.
const WINDOW: Duration = Duration::from_secs(15);
/// Fewer say nothing about the slowest of twenty.
const AT_LEAST: u64 = 20;

/// How many deliveries took how long, since the start of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Durations(pub(super) [u64; DURATIONS]);

/// What was counted at some moments of the last seconds, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Recent(VecDeque<(Duration, Durations)>);

impl Recent {
    /// Takes in the counts of a moment; `now` is on any clock that only rises.
    pub fn observe(&mut self, now: Duration, counts: Durations) {
        self.0.push_back((now, counts));
        // One moment at or before the window's beginning stays, to count from.
        while self.0.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= WINDOW) {
            self.0.pop_front();
        }
    }

    /// The bound within which 95 of 100 deliveries were settled; the highest one where it is beyond. `None` for too few.
    pub fn p95(&self) -> Option<Duration> {
        let ((_, first), (_, last)) = (self.0.front()?, self.0.back()?);
        let counts: Vec<u64> = last.0.iter().zip(first.0).map(|(last, first)| last.saturating_sub(first)).collect();
        let total: u64 = counts.iter().sum();
        if total < AT_LEAST {
            return None;
        }
        let mut within = 0;
        let place = counts.iter().position(|count| {
            within += count;
            within * 100 >= total * 95
        });
        let bound = PROCESS_BOUNDS[place.unwrap_or(PROCESS_BOUNDS.len()).min(PROCESS_BOUNDS.len() - 1)];
        Some(Duration::from_secs_f64(bound))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(pairs: &[(usize, u64)]) -> Durations {
        let mut durations = Durations([0; DURATIONS]);
        pairs.iter().for_each(|(place, count)| durations.0[*place] = *count);
        durations
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn ninety_five_of_a_hundred_are_within_the_bound() {
        let mut recent = Recent::default();
        recent.observe(at(0), counts(&[]));
        recent.observe(at(1), counts(&[(3, 95), (11, 5)]));
        assert_eq!(recent.p95(), Some(Duration::from_millis(10)));
        recent.observe(at(2), counts(&[(3, 95), (11, 6)]));
        assert_eq!(recent.p95(), Some(Duration::from_secs(1)), "6 of 101 took longer");
    }

    #[test]
    fn what_is_long_ago_does_not_count_and_few_say_nothing() {
        let mut recent = Recent::default();
        recent.observe(at(0), counts(&[(16, 1_000)]));
        recent.observe(at(10), counts(&[(16, 1_019)]));
        assert_eq!(recent.p95(), None, "19 are too few");
        recent.observe(at(26), counts(&[(0, 50), (16, 1_019)]));
        assert_eq!(recent.p95(), Some(Duration::from_millis(1)));
    }

    #[test]
    fn what_is_beyond_every_bound_is_told_as_the_highest() {
        let mut recent = Recent::default();
        recent.observe(at(0), counts(&[]));
        recent.observe(at(1), counts(&[(16, 40)]));
        assert_eq!(recent.p95(), Some(Duration::from_secs(10)));
    }

    #[test]
    fn it_remembers_no_more_than_its_window() {
        let mut recent = Recent::default();
        (0..1_000).for_each(|second| recent.observe(at(second), counts(&[])));
        assert!(recent.0.len() <= 17, "{}", recent.0.len());
    }
}

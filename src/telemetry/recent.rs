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
/// So many tell it well: more of the past only hides what is new.
const ENOUGH: u64 = 200;

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

    /// Within which time 95 of 100 deliveries were settled. `None` for too few.
    pub fn p95(&self) -> Option<Duration> {
        p95(&self.0.front()?.1, &self.0.back()?.1)
    }

    /// The same of as few of the last seconds as had enough deliveries to tell; of all where none had.
    pub fn p95_lately(&self) -> Option<Duration> {
        let last = &self.0.back()?.1;
        let enough = self.0.iter().rev().find(|(_, first)| between(first, last).iter().sum::<u64>() >= ENOUGH);
        enough.map_or_else(|| self.p95(), |(_, first)| p95(first, last))
    }
}

fn between(first: &Durations, last: &Durations) -> [u64; DURATIONS] {
    std::array::from_fn(|place| last.0[place].saturating_sub(first.0[place]))
}

/// Those between two bounds count as spread evenly between them, those beyond the highest as that.
fn p95(first: &Durations, last: &Durations) -> Option<Duration> {
    let counts = between(first, last);
    let total: u64 = counts.iter().sum();
    if total < AT_LEAST {
        return None;
    }
    let (wanted, mut before) = (total as f64 * 0.95, 0.0);
    let bounds = std::iter::once(0.0).chain(PROCESS_BOUNDS).zip(PROCESS_BOUNDS);
    for (count, (low, high)) in counts.into_iter().map(|count| count as f64).zip(bounds) {
        if before + count >= wanted {
            return Some(Duration::from_secs_f64(low + (high - low) * (wanted - before) / count));
        }
        before += count;
    }
    PROCESS_BOUNDS.last().copied().map(Duration::from_secs_f64)
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
        let p95 = recent.p95().unwrap();
        assert!(p95 > Duration::from_millis(750) && p95 < Duration::from_millis(800), "6 of 101 took longer: {p95:?}");
    }

    #[test]
    fn what_is_long_ago_does_not_count_and_few_say_nothing() {
        let mut recent = Recent::default();
        recent.observe(at(0), counts(&[(16, 1_000)]));
        recent.observe(at(10), counts(&[(16, 1_019)]));
        assert_eq!(recent.p95(), None, "19 are too few");
        recent.observe(at(26), counts(&[(0, 50), (16, 1_019)]));
        assert_eq!(recent.p95(), Some(Duration::from_micros(950)), "spread evenly below the first bound");
    }

    #[test]
    fn of_many_only_the_last_count_where_what_is_new_is_asked_for() {
        let mut recent = Recent::default();
        recent.observe(at(0), counts(&[]));
        recent.observe(at(1), counts(&[(3, 10_000)]));
        recent.observe(at(2), counts(&[(3, 10_000), (7, 400)]));
        recent.observe(at(3), counts(&[(3, 10_000), (7, 800)]));
        assert!(recent.p95().is_some_and(|p95| p95 > Duration::from_millis(75)), "{:?}", recent.p95());
        assert!(recent.p95_lately().is_some_and(|p95| p95 > Duration::from_millis(95)), "{:?}", recent.p95_lately());

        let mut few = Recent::default();
        few.observe(at(0), counts(&[]));
        few.observe(at(1), counts(&[(3, 100)]));
        few.observe(at(2), counts(&[(3, 101)]));
        assert_eq!(few.p95_lately(), few.p95());
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

//! What the slower deliveries of the last seconds took, out of counts that only rise. Pure values, no clock.

use std::collections::VecDeque;
use std::time::Duration;

/// Upper bounds in microseconds, from a millisecond to ten seconds, each a fifth above the one before: "twice as long" must be told from
/// less, which the histogram's bounds can't.
const BOUNDS: [u64; 52] = bounds();
/// One count for each bound and one for what is beyond.
pub(super) const DURATIONS: usize = BOUNDS.len() + 1;
/// Fewer say nothing about the slowest of twenty.
const AT_LEAST: u64 = 20;
/// So many tell it well: more of the past only hides what is new.
const ENOUGH: u64 = 200;

const fn bounds() -> [u64; 52] {
    let mut bounds = [1_000; 52];
    let mut place = 1;
    while place < bounds.len() {
        bounds[place] = bounds[place - 1] * 6 / 5;
        place += 1;
    }
    bounds
}

/// Where a duration is counted.
pub(super) fn place(took: Duration) -> usize {
    BOUNDS.partition_point(|bound| u128::from(*bound) < took.as_micros())
}

/// How many deliveries took how long, since the start of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Durations(pub(super) [u64; DURATIONS]);

/// What was counted at some moments of the last seconds, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Recent(VecDeque<(Duration, Durations)>);

impl Recent {
    /// How far back is looked.
    pub const WINDOW: Duration = Duration::from_secs(15);

    /// Takes in the counts of a moment; `now` is on any clock that only rises.
    pub fn observe(&mut self, now: Duration, counts: Durations) {
        self.0.push_back((now, counts));
        // One moment at or before the window's beginning stays, to count from.
        while self.0.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= Self::WINDOW) {
            self.0.pop_front();
        }
    }

    /// Within which time 95 of 100 deliveries were settled. `None` for too few.
    pub fn p95(&self) -> Option<Duration> {
        within(0.95, &self.0.front()?.1, &self.0.back()?.1)
    }

    /// And 99 of 100.
    pub fn p99(&self) -> Option<Duration> {
        within(0.99, &self.0.front()?.1, &self.0.back()?.1)
    }

    /// The same of as few of the last seconds as had enough deliveries to tell; of all where none had.
    pub fn p95_lately(&self) -> Option<Duration> {
        let last = &self.0.back()?.1;
        let enough = self.0.iter().rev().find(|(_, first)| between(first, last).iter().sum::<u64>() >= ENOUGH);
        enough.map_or_else(|| self.p95(), |(_, first)| within(0.95, first, last))
    }
}

fn between(first: &Durations, last: &Durations) -> [u64; DURATIONS] {
    std::array::from_fn(|place| last.0[place].saturating_sub(first.0[place]))
}

/// Within which time such a part was settled. Those between two bounds count as spread evenly between them, those beyond the highest as that.
fn within(part: f64, first: &Durations, last: &Durations) -> Option<Duration> {
    let counts = between(first, last);
    let total: u64 = counts.iter().sum();
    if total < AT_LEAST {
        return None;
    }
    let (wanted, mut before) = (total as f64 * part, 0.0);
    let bounds = std::iter::once(0).chain(BOUNDS).zip(BOUNDS).map(|(low, high)| (low as f64, high as f64));
    for (count, (low, high)) in counts.into_iter().map(|count| count as f64).zip(bounds) {
        if before + count >= wanted {
            return Some(Duration::from_secs_f64((low + (high - low) * (wanted - before) / count) / 1e6));
        }
        before += count;
    }
    BOUNDS.last().copied().map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many that took so many milliseconds.
    fn counts(pairs: &[(u64, u64)]) -> Durations {
        let mut durations = Durations([0; DURATIONS]);
        pairs.iter().for_each(|(millis, count)| durations.0[place(Duration::from_millis(*millis))] += count);
        durations
    }

    fn millis(duration: Option<Duration>) -> f64 {
        duration.unwrap().as_secs_f64() * 1e3
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn ninety_five_of_a_hundred_are_within_the_bound() {
        let mut recent = Recent::default();
        recent.observe(at(0), counts(&[]));
        recent.observe(at(1), counts(&[(10, 95), (700, 5)]));
        let (p95, p99) = (millis(recent.p95()), millis(recent.p99()));
        assert!((10.0..12.0).contains(&p95), "{p95}");
        assert!((583.0..840.0).contains(&p99), "{p99}");
        recent.observe(at(2), counts(&[(10, 95), (700, 6)]));
        let p95 = millis(recent.p95());
        assert!((583.0..840.0).contains(&p95), "6 of 101 took longer: {p95}");
    }

    #[test]
    fn what_takes_twice_as_long_is_told_from_what_takes_half_as_much_again() {
        for usual in [2, 4, 9, 12, 30, 70, 300, 4_000] {
            let p95 = |millis| {
                let mut recent = Recent::default();
                recent.observe(at(0), counts(&[]));
                recent.observe(at(1), counts(&[(millis, 1_000)]));
                recent.p95().unwrap()
            };
            assert!(p95(usual * 3 / 2) < p95(usual) * 9 / 5, "{usual}");
            assert!(p95(usual * 2) > p95(usual) * 8 / 5, "{usual}");
        }
    }

    #[test]
    fn what_is_long_ago_does_not_count_and_few_say_nothing() {
        let mut recent = Recent::default();
        recent.observe(at(0), counts(&[(20_000, 1_000)]));
        recent.observe(at(10), counts(&[(20_000, 1_019)]));
        assert_eq!(recent.p95(), None, "19 are too few");
        recent.observe(at(26), counts(&[(0, 50), (20_000, 1_019)]));
        assert_eq!(recent.p95(), Some(Duration::from_micros(950)), "spread evenly below the first bound");
    }

    #[test]
    fn of_many_only_the_last_count_where_what_is_new_is_asked_for() {
        let mut recent = Recent::default();
        recent.observe(at(0), counts(&[]));
        recent.observe(at(1), counts(&[(9, 10_000)]));
        recent.observe(at(2), counts(&[(9, 10_000), (90, 400)]));
        recent.observe(at(3), counts(&[(9, 10_000), (90, 800)]));
        assert!(millis(recent.p95()) > 70.0, "{:?}", recent.p95());
        assert!(millis(recent.p95_lately()) > 90.0, "{:?}", recent.p95_lately());

        let mut few = Recent::default();
        few.observe(at(0), counts(&[]));
        few.observe(at(1), counts(&[(9, 100)]));
        few.observe(at(2), counts(&[(9, 101)]));
        assert_eq!(few.p95_lately(), few.p95());
    }

    #[test]
    fn what_is_beyond_every_bound_is_told_as_the_highest() {
        let mut recent = Recent::default();
        recent.observe(at(0), counts(&[]));
        recent.observe(at(1), counts(&[(60_000, 40)]));
        let p95 = millis(recent.p95());
        assert!((10_000.0..12_000.0).contains(&p95), "{p95}");
    }

    #[test]
    fn it_remembers_no_more_than_its_window() {
        let mut recent = Recent::default();
        (0..1_000).for_each(|second| recent.observe(at(second), counts(&[])));
        assert!(recent.0.len() <= 17, "{}", recent.0.len());
    }
}

//! What live deliveries take when nothing is replayed. Pure values, no clock.

use std::collections::VecDeque;
use std::time::Duration;

/// As many looks, one a second, are remembered.
const REMEMBERED: usize = 60;
/// Fewer than these say little of quiet times.
const AT_LEAST: usize = 15;

/// How long the slower of a consumer's deliveries take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tail {
    /// Within this time 95 of 100 are settled.
    pub(super) p95: Duration,
    /// And 99 of 100.
    pub(super) p99: Duration,
}

/// The last looks at a consumer's deliveries, oldest first.
#[derive(Debug, Default)]
struct Looks(VecDeque<Tail>);

impl Looks {
    fn push(&mut self, look: Tail) {
        self.0.push_back(look);
        if self.0.len() > REMEMBERED {
            self.0.pop_front();
        }
    }

    /// What a quarter of the looks came up to: neither a lucky moment, nor what a disk that stalls or a backlog that has just been worked
    /// off makes of it.
    fn quarter(&self) -> Option<Tail> {
        let quarter = |of: fn(&Tail) -> Duration| {
            let mut all: Vec<Duration> = self.0.iter().map(of).collect();
            all.sort_unstable();
            all.get(all.len() / 4).copied()
        };
        Some(Tail { p95: quarter(|look| look.p95)?, p99: quarter(|look| look.p99)? })
    }
}

/// What is usual for a consumer, learnt from look to look.
#[derive(Debug, Default)]
pub(super) struct Usual {
    quiet: Looks,
    all: Looks,
}

impl Usual {
    /// Takes in a look; `quiet` if nothing was replayed while what it tells of happened.
    pub(super) fn learn(&mut self, look: Tail, quiet: bool) {
        self.all.push(look);
        if quiet {
            self.quiet.push(look);
        }
    }

    /// Quiet times count, unless the last minute is better even so: then those were none, as after an outage.
    pub(super) fn tail(&self) -> Option<Tail> {
        let lately = self.all.quarter()?;
        let quiet = self.quiet.quarter().filter(|_| self.quiet.0.len() >= AT_LEAST).unwrap_or(lately);
        Some(Tail { p95: quiet.p95.min(lately.p95), p99: quiet.p99.min(lately.p99) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(millis: u64) -> Tail {
        let p95 = Duration::from_millis(millis);
        Tail { p95, p99: p95 * 2 }
    }

    fn learnt(looks: impl IntoIterator<Item = (u64, bool)>) -> Option<u128> {
        let mut usual = Usual::default();
        looks.into_iter().for_each(|(millis, quiet)| usual.learn(look(millis), quiet));
        usual.tail().map(|tail| {
            assert_eq!(tail.p99, tail.p95 * 2);
            tail.p95.as_millis()
        })
    }

    #[test]
    fn what_happens_beside_a_replay_does_not_become_usual() {
        let quiet = (0..60).map(|_| (4, true));
        assert_eq!(learnt(quiet.chain((0..1_000).map(|_| (40, false)))), Some(4));
    }

    #[test]
    fn neither_a_stall_nor_a_lucky_moment_is_usual() {
        assert_eq!(learnt((0..60).map(|n| (if n % 3 == 0 { 4 } else { 90 }, true))), Some(4));
        assert_eq!(learnt((0..60).map(|n| (if n % 5 == 0 { 1 } else { 4 }, true))), Some(4));
    }

    #[test]
    fn what_a_backlog_took_is_forgotten_within_seconds_even_beside_a_replay() {
        let drained = (0..60).map(|_| (3_000, true));
        assert_eq!(learnt(drained.clone()), Some(3_000));
        assert_eq!(learnt(drained.clone().chain((0..16).map(|_| (4, true)))), Some(4));
        assert_eq!(learnt(drained.chain((0..16).map(|_| (9, false)))), Some(9));
    }

    #[test]
    fn a_process_that_starts_beside_a_replay_takes_what_it_sees() {
        assert_eq!(learnt([]), None);
        assert_eq!(learnt([(12, false)]), Some(12));
        let few_quiet = (0..14).map(|_| (300, true));
        assert_eq!(learnt(few_quiet.chain((0..20).map(|_| (12, false)))), Some(12), "its first seconds say little");
    }
}

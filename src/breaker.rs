//! A kill switch for failures that have one cause: when most of what arrives fails in the same way, it is not the events that are
//! broken. Pure state: the time comes in as an argument.
//!
//! ```text
//! closed ──so many of one kind, and more than half of the last ones──► open ──pause over──► probing
//!    ▲                                                                  ▲                      │
//!    └───────────────most of a few pass, or nothing fails in time───────┼──────────────────────┘
//!                                                                       └──most fail: a longer pause
//! ```
//! A failure is told before anything is written for it. The answer may be to hold it back: it is then left where it came from.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Ends older than this don't count.
const WINDOW: Duration = Duration::from_secs(60);
/// The first pause; each failed probe doubles it.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// So many ends decide a probe, by majority.
pub(crate) const PROBE: u16 = 5;
/// A probe with fewer ends is decided after this.
const PROBE_WITHIN: Duration = Duration::from_secs(5);

/// What failed, in so few words that two failures of one cause have the same.
pub(crate) type Kind = u64;

/// Where the switch stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Everything goes its way.
    Closed,
    /// Nothing is to be taken.
    Open,
    /// A few are taken to see.
    Probing,
}

/// What is to become of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is the event's own: write it down.
    Own,
    /// It has a common cause: hold it back.
    Common,
}

/// The switch of one consumer in one process.
#[derive(Debug)]
pub(crate) struct Breaker {
    /// Failures of one kind that open it; 0 for never.
    limit: usize,
    ends: VecDeque<Ends>,
    counts: HashMap<Kind, usize>,
    all: usize,
    state: State,
}

/// Ends of one kind that came together.
#[derive(Debug)]
struct Ends {
    at: Instant,
    /// `None`: they passed.
    kind: Option<Kind>,
    count: usize,
}

#[derive(Debug)]
enum State {
    Closed,
    Open { until: Instant, pause: Duration },
    Probing { until: Instant, pause: Duration, passed: usize, failed: usize },
}

impl Breaker {
    /// Opens after `limit` failures of one kind; never for 0.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, ends: VecDeque::new(), counts: HashMap::new(), all: 0, state: State::Closed }
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.state {
            State::Closed => Phase::Closed,
            State::Open { .. } => Phase::Open,
            State::Probing { .. } => Phase::Probing,
        }
    }

    /// When [`tick`](Self::tick) has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Closed => None,
            State::Open { until, .. } | State::Probing { until, .. } => Some(until),
        }
    }

    /// So many events came to a good end.
    pub(crate) fn passed(&mut self, now: Instant, count: usize) {
        match &mut self.state {
            State::Closed => self.note(Ends { at: now, kind: None, count }),
            State::Probing { passed, .. } => {
                *passed += count;
                self.decide(now);
            }
            State::Open { .. } => {}
        }
    }

    /// An event has failed in this way.
    pub(crate) fn failed(&mut self, now: Instant, kind: Kind) -> Verdict {
        match &mut self.state {
            State::Open { .. } => Verdict::Common,
            State::Probing { failed, .. } => {
                *failed += 1;
                self.decide(now);
                Verdict::Common
            }
            State::Closed => {
                self.note(Ends { at: now, kind: Some(kind), count: 1 });
                let of_kind = self.counts.get(&kind).copied().unwrap_or(0);
                if self.limit == 0 || of_kind < self.limit || of_kind * 2 <= self.all {
                    return Verdict::Own;
                }
                self.open(now, FIRST_PAUSE);
                Verdict::Common
            }
        }
    }

    /// Goes on to the next phase where the time has come.
    pub(crate) fn tick(&mut self, now: Instant) {
        match self.state {
            State::Open { until, pause } if now >= until => {
                self.state = State::Probing { until: now + PROBE_WITHIN, pause, passed: 0, failed: 0 };
            }
            State::Probing { until, pause, passed, failed } if now >= until => match failed > passed {
                true => self.open(now, (pause * 2).min(LONGEST_PAUSE)),
                false => self.close(),
            },
            _ => {}
        }
    }

    fn decide(&mut self, now: Instant) {
        let State::Probing { pause, passed, failed, .. } = self.state else { return };
        let majority = usize::from(PROBE) / 2 + 1;
        if failed >= majority {
            self.open(now, (pause * 2).min(LONGEST_PAUSE));
        } else if passed >= majority {
            self.close();
        }
    }

    fn open(&mut self, now: Instant, pause: Duration) {
        self.forget();
        self.state = State::Open { until: now + pause, pause };
    }

    fn close(&mut self) {
        self.forget();
        self.state = State::Closed;
    }

    fn forget(&mut self) {
        self.ends.clear();
        self.counts.clear();
        self.all = 0;
    }

    /// Counts the last ends, twice the limit at most, so that what was good long ago hides nothing.
    fn note(&mut self, ends: Ends) {
        if self.limit == 0 {
            return;
        }
        self.all += ends.count;
        if let Some(kind) = ends.kind {
            *self.counts.entry(kind).or_default() += ends.count;
        }
        let now = ends.at;
        self.ends.push_back(ends);
        while let Some(oldest) = self.ends.front() {
            let old = now.saturating_duration_since(oldest.at) > WINDOW;
            if !old && self.all - oldest.count < self.limit * 2 {
                return;
            }
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let Some(oldest) = self.ends.pop_front() else { return };
        self.all -= oldest.count;
        let Some(kind) = oldest.kind else { return };
        if let Some(count) = self.counts.get_mut(&kind) {
            *count -= oldest.count;
            if *count == 0 {
                self.counts.remove(&kind);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fail(breaker: &mut Breaker, now: Instant, kind: Kind, times: usize) -> Vec<Verdict> {
        (0..times).map(|_| breaker.failed(now, kind)).collect()
    }

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::new(3);
        fail(&mut breaker, now, 1, 3);
        assert_eq!(breaker.phase(), Phase::Open);
        breaker
    }

    fn probing(now: Instant) -> (Breaker, Instant) {
        let mut breaker = opened(now);
        let now = breaker.deadline().unwrap();
        breaker.tick(now);
        assert_eq!(breaker.phase(), Phase::Probing);
        (breaker, now)
    }

    #[test]
    fn the_failure_that_opens_it_is_held_back_and_so_are_all_after_it() {
        let (mut breaker, now) = (Breaker::new(3), Instant::now());
        use Verdict::{Common, Own};
        assert_eq!(fail(&mut breaker, now, 1, 5), [Own, Own, Common, Common, Common]);
    }

    #[test]
    fn failures_of_many_kinds_are_the_events_own() {
        let (mut breaker, now) = (Breaker::new(3), Instant::now());
        for kind in 0..100 {
            assert_eq!(breaker.failed(now, kind % 4), Verdict::Own);
        }
    }

    #[test]
    fn a_minority_does_not_open_it_however_many_there_are() {
        let (mut breaker, now) = (Breaker::new(10), Instant::now());
        for _ in 0..1_000 {
            breaker.passed(now, 2);
            assert_eq!(breaker.failed(now, 1), Verdict::Own);
        }
    }

    #[test]
    fn what_was_good_long_ago_hides_no_failure() {
        let (mut breaker, now) = (Breaker::new(10), Instant::now());
        breaker.passed(now, 1_000_000);
        let verdicts = fail(&mut breaker, now, 1, 30);
        assert_eq!(breaker.phase(), Phase::Open);
        assert!(verdicts.iter().filter(|verdict| **verdict == Verdict::Own).count() <= 20);
    }

    #[test]
    fn failures_far_apart_do_not_add_up() {
        let (mut breaker, mut now) = (Breaker::new(3), Instant::now());
        for _ in 0..100 {
            assert_eq!(breaker.failed(now, 1), Verdict::Own);
            now += WINDOW / 2 + Duration::from_secs(1);
        }
    }

    #[test]
    fn a_probe_that_fails_makes_the_next_pause_longer_up_to_a_bound() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        let mut pauses = Vec::new();
        for _ in 0..6 {
            let until = breaker.deadline().unwrap();
            pauses.push((until - now).as_secs());
            now = until;
            breaker.tick(now);
            assert!(fail(&mut breaker, now, 7, 3).iter().all(|verdict| *verdict == Verdict::Common));
            assert_eq!(breaker.phase(), Phase::Open);
        }
        assert_eq!(pauses, [5, 10, 20, 40, 60, 60]);
    }

    #[test]
    fn a_probe_that_passes_closes_it_and_nothing_is_held_against_the_consumer() {
        let (mut breaker, now) = probing(Instant::now());
        breaker.failed(now, 1);
        breaker.passed(now, 3);
        assert_eq!(breaker.phase(), Phase::Closed);
        assert_eq!(fail(&mut breaker, now, 1, 2), [Verdict::Own; 2]);
    }

    #[test]
    fn a_probe_with_few_events_is_decided_when_its_time_is_over() {
        for (passed, failed, phase) in
            [(0, 0, Phase::Closed), (1, 0, Phase::Closed), (0, 1, Phase::Open), (1, 1, Phase::Closed)]
        {
            let (mut breaker, now) = probing(Instant::now());
            breaker.passed(now, passed);
            fail(&mut breaker, now, 1, failed);
            assert_eq!(breaker.phase(), Phase::Probing);
            breaker.tick(breaker.deadline().unwrap());
            assert_eq!(breaker.phase(), phase, "{passed} passed, {failed} failed");
        }
    }

    #[test]
    fn with_a_limit_of_0_it_never_opens() {
        let (mut breaker, now) = (Breaker::new(0), Instant::now());
        assert!(fail(&mut breaker, now, 1, 10_000).iter().all(|verdict| *verdict == Verdict::Own));
        assert!(breaker.ends.is_empty(), "and remembers nothing");
    }

    proptest! {
        #[test]
        fn its_books_add_up_and_stay_small_whatever_comes(ends in prop::collection::vec((0..4_u64, 0..40_u64, 1..9_usize), 0..300)) {
            let (mut breaker, mut now) = (Breaker::new(5), Instant::now());
            for (kind, seconds, count) in ends {
                now += Duration::from_secs(seconds);
                breaker.tick(now);
                if kind == 0 { breaker.passed(now, count) } else { breaker.failed(now, kind); }
                prop_assert_eq!(breaker.all, breaker.ends.iter().map(|e| e.count).sum::<usize>());
                prop_assert_eq!(breaker.counts.values().sum::<usize>(), breaker.ends.iter().filter(|e| e.kind.is_some()).map(|e| e.count).sum::<usize>());
                prop_assert!(breaker.ends.len() <= 10);
            }
        }
    }
}

//! How fast a job may go: step by step towards its rate, and back as soon as others suffer. Live traffic goes first. No I/O.
//!
//! ```text
//! share of the rate: ¼ → ½ → 1 while nothing suffers; under a strain less, again and again, the more the worse it is, ½ at most;
//! then fast up to near what was too much, and from there on carefully
//! ```

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::load::Live;
use super::machine::View;
use super::usual::Tail;

/// Share of the rate that a job begins with.
const FIRST_SHARE: f64 = 0.25;
/// The least that a strain brings it down to.
const LEAST_SHARE: f64 = 1.0 / 64.0;
/// It goes faster after so long without a strain.
const STEP: Duration = Duration::from_secs(5);
/// And slower, or slower still, after so long: by then it shows what the last change has brought.
const REACTION: Duration = Duration::from_secs(3);
/// How often it is looked.
const LOOK: Duration = Duration::from_secs(1);
/// From such a part of the share that was too much, a job feels its way.
const NEAR: f64 = 0.75;
/// By so much a step.
const CAREFUL: f64 = 1.0 / 16.0;
/// A job that has been at its slowest for so long is not the cause of what deliveries still take: that counts as their usual time.
const NOT_THE_CAUSE: Duration = Duration::from_secs(15);
/// What is left of the share under a great strain, and under a slight one.
const LEFT: RangeInclusive<f64> = 0.5..=0.9;
/// What may be sent at once after an idle time, in seconds of the rate.
const BURST: f64 = 0.25;
/// So much may be sent by one step of a job that goes on: live events wait behind it.
const AT_ONCE: f64 = 5.0;

/// A result that takes longer says that the consumer or its queue can't keep up.
const SLOW: Duration = Duration::from_secs(10);
/// So does more work on its way than it gets through in this time.
const BEHIND_SECONDS: f64 = 4.0;
/// Fewer than that on their way is never "behind".
const BEHIND_AT_LEAST: f64 = 20.0;
/// So do more messages of others that wait for the consumer, at the broker: about as many as it has taken at most already.
const LONG_QUEUE: u64 = 1_000;
/// And live deliveries of which 95 of 100 take so many times as long as usual, and longer than 99 of 100 usually do: that keeps the 99
/// within about twice their time. Where a few are always very slow, they say nothing.
const SLOWER: u32 = 2;
/// The 99 of 100 count up to so many times the 95.
const RARELY: u32 = 2 * SLOWER;
/// Deliveries that take less are quick, whatever is usual: a commit or two more at the disk, and nothing that anybody waits for.
const QUICK: Duration = Duration::from_millis(10);

/// How fast a job may go now; lives in the memory of whoever runs it.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    /// Of the rate.
    share: f64,
    /// Since when.
    since: Duration,
    /// Up to this share it is made faster in large steps.
    ceiling: f64,
    /// Since when it goes as slowly as it can.
    slowest_since: Option<Duration>,
    looked: Duration,
    tokens: f64,
    at: Duration,
    /// The rate when it was last looked at.
    per_second: f64,
    /// What made it slower, when it was last looked at.
    strain: Option<Strain>,
    /// Messages of others that waited then.
    others: Option<u64>,
    /// What a consumer's live deliveries took while this job can't have been the cause.
    accepted: BTreeMap<&'static str, Tail>,
}

/// Why a job goes slower than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strain {
    /// Its results are late, or more is on its way than comes back.
    Results,
    /// Live deliveries of a consumer take longer than they usually do.
    Latency { consumer: &'static str, p95: Duration, limit: Duration },
    /// Messages of others wait: they go first.
    Backlog(u64),
}

impl Display for Strain {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Results => f.write_str("results don't keep up"),
            Self::Latency { consumer, p95, limit } => {
                let (p95, limit) = (millis(*p95), millis(*limit));
                write!(f, "95 of 100 live deliveries of {consumer} take up to {p95} ms, more than {limit}")
            }
            Self::Backlog(others) => write!(f, "{others} other messages wait for the consumer"),
        }
    }
}

impl Strain {
    /// How much of its share a job keeps: for a little more than the limit, a little less.
    fn left(&self) -> f64 {
        match self {
            Self::Latency { p95, limit, .. } => {
                (limit.as_secs_f64() / p95.as_secs_f64()).clamp(*LEFT.start(), *LEFT.end())
            }
            Self::Results | Self::Backlog(_) => *LEFT.start(),
        }
    }
}

impl Pace {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            share: FIRST_SHARE,
            since: now,
            ceiling: 1.0,
            slowest_since: None,
            looked: now,
            tokens: 0.0,
            at: now,
            per_second: 1.0,
            strain: None,
            others: None,
            accepted: BTreeMap::new(),
        }
    }

    /// Slowly once more, with what was learnt of the consumers.
    pub(super) fn again(&self, now: Duration) -> Self {
        Self { accepted: self.accepted.clone(), ..Self::new(now) }
    }

    /// In words, while something makes it slower than it would be by now.
    pub(super) fn slowed(&self, rate: u32) -> Option<String> {
        let strain = self.strain?;
        Some(format!("it goes at {:.0} a second because {strain}", (f64::from(rate) * self.share).max(1.0)))
    }

    /// Takes in the time that has passed, and returns how many may be sent now.
    pub(super) fn allowed(&mut self, view: &View<'_>, now: Duration) -> u32 {
        self.adapt(view, now);
        let rate = f64::from(view.rate) * self.share;
        self.per_second = rate;
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = now;
        self.tokens = (self.tokens + passed * rate).min((rate * BURST).max(1.0));
        whole(self.tokens).min(view.max_in_flight.saturating_sub(view.in_flight))
    }

    /// When the next step is due: often enough that each sends little.
    pub(super) fn step_after(&self) -> Duration {
        Duration::from_secs_f64(AT_ONCE / self.per_second.max(1.0))
    }

    /// So many were sent.
    pub(super) fn spend(&mut self, sent: u32) {
        self.tokens = (self.tokens - f64::from(sent)).max(0.0);
    }

    /// Stays where it is while a long queue gets shorter.
    fn adapt(&mut self, view: &View<'_>, now: Duration) {
        let stood = now.saturating_sub(self.since);
        if stood < REACTION || now.saturating_sub(self.looked) < LOOK {
            return;
        }
        self.looked = now;
        self.learn(view, now);
        // Its own are in that queue too.
        let others = view.backlog.map(|waiting| waiting.saturating_sub(u64::from(view.in_flight)));
        let shrinks = others.zip(self.others).is_some_and(|(now, before)| now < before);
        let late = self.is_late(view);
        let before = self.strain;
        self.strain = self.cause(view, others).or(late.then_some(Strain::Results));
        match self.strain {
            Some(Strain::Backlog(_)) if shrinks && !late => {}
            Some(strain) => self.slower(strain.left(), before.is_none(), now),
            None if stood >= STEP => self.faster(),
            None => return,
        }
        (self.others, self.since) = (others, now);
    }

    fn slower(&mut self, left: f64, begins: bool, now: Duration) {
        if begins {
            self.ceiling = self.share * left.max(NEAR);
        }
        self.share = (self.share * left).max(LEAST_SHARE);
        if self.share <= LEAST_SHARE {
            self.slowest_since.get_or_insert(now);
        }
    }

    fn faster(&mut self) {
        self.slowest_since = None;
        self.share = if self.share < self.ceiling {
            (self.share * 2.0).min(self.ceiling)
        } else {
            (self.share + CAREFUL).min(1.0)
        };
    }

    /// What deliveries take at the slowest rate is not this job's doing, until they are quick again.
    fn learn(&mut self, view: &View<'_>, now: Duration) {
        self.accepted.retain(|consumer, _| {
            view.live.iter().any(|live| live.consumer == *consumer && live.now.p95 > live.usual.p95)
        });
        if self.slowest_since.is_some_and(|since| now.saturating_sub(since) >= NOT_THE_CAUSE) {
            self.slowest_since = Some(now);
            self.accepted = view.live.iter().map(|live| (live.consumer, live.now)).collect();
        }
    }

    fn is_late(&self, view: &View<'_>) -> bool {
        let per_second = (f64::from(view.rate) * self.share).max(1.0);
        let behind = f64::from(view.in_flight) > (per_second * BEHIND_SECONDS).max(BEHIND_AT_LEAST);
        behind || view.oldest > SLOW
    }

    /// What consumers suffer from, which says more than that results are late.
    fn cause(&self, view: &View<'_>, others: Option<u64>) -> Option<Strain> {
        let slow = view.live.iter().filter_map(|live| self.slow(live)).max_by_key(|(p95, _)| *p95);
        slow.map(|(_, strain)| strain).or(others.filter(|others| *others > LONG_QUEUE).map(Strain::Backlog))
    }

    fn slow(&self, live: &Live) -> Option<(Duration, Strain)> {
        let usual = bearable(live.usual);
        let limit = self.accepted.get(live.consumer).map_or(usual, |accepted| bearable(*accepted).max(usual));
        (live.lately > limit)
            .then_some((live.lately, Strain::Latency { consumer: live.consumer, p95: live.lately, limit }))
    }
}

/// What 95 of 100 may take.
fn bearable(usual: Tail) -> Duration {
    (usual.p95 * SLOWER).max(usual.p99.min(usual.p95 * RARELY)).max(QUICK)
}

fn millis(duration: Duration) -> String {
    let millis = duration.as_secs_f64() * 1e3;
    if millis < 10.0 { format!("{millis:.1}") } else { format!("{millis:.0}") }
}

/// Whole tokens; they are few and not negative.
fn whole(tokens: f64) -> u32 {
    (0..=1_000).rev().find(|n| f64::from(*n) <= tokens).unwrap_or(0)
}

#[cfg(test)]
#[path = "pace_tests.rs"]
mod tests;

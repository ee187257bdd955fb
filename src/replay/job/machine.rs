//! What a job does next: pure rules over its books, the last results and a clock. No I/O.

use std::time::Duration;

use super::load::Load;
use super::model::{Action, State};

/// Results that are remembered.
const REMEMBERED: usize = 50;
/// Failures in a row that stop a job.
const STOP_AFTER: usize = 10;
/// How long the rate stays before it doubles.
const STEP: Duration = Duration::from_secs(5);
/// The first steps of the rate: a quarter, a half, all of it.
const FIRST_LEVEL: u32 = 4;
/// The slowest part of the rate that a slow consumer brings it down to.
const LAST_LEVEL: u32 = 64;
/// What may be sent at once after an idle time, in seconds of the rate.
const BURST: f64 = 0.25;
/// So much may be sent by one step of a job that goes on: live events wait behind it.
const AT_ONCE: f64 = 20.0;
/// A result that takes longer says that the consumer or its queue can't keep up.
const SLOW: Duration = Duration::from_secs(10);
/// So does more work on its way than it gets through in this time.
const BEHIND_SECONDS: u32 = 4;
/// Fewer than that on their way is never "behind".
const BEHIND_AT_LEAST: u32 = 20;

/// So do more messages of others that wait for the consumer, at the broker: about as many as it has taken at most already.
const LONG_QUEUE: u64 = 1_000;
/// And deliveries that take so many times as long as they did when they were quickest. The bounds between which they are known are up to
/// two and a half times apart.
const SLOWER: u32 = 4;
/// Deliveries that take less are quick, however much quicker they were.
const QUICK: Duration = Duration::from_millis(100);

/// The last results of a job, newest last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Recent(String);

impl Recent {
    pub(super) fn stored(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn push(&mut self, succeeded: bool) {
        self.0.push(if succeeded { 's' } else { 'f' });
        if self.0.len() > REMEMBERED {
            self.0.remove(0);
        }
    }

    /// Why to stop, if so.
    fn verdict(&self) -> Option<String> {
        let in_a_row = self.0.bytes().rev().take_while(|b| *b == b'f').count();
        if in_a_row >= STOP_AFTER {
            return Some(format!("the last {in_a_row} replays failed again"));
        }
        let failed = self.0.bytes().filter(|b| *b == b'f').count();
        (self.0.len() == REMEMBERED && failed * 2 > REMEMBERED)
            .then(|| format!("{failed} of the last {REMEMBERED} replays failed again"))
    }
}

/// What the rules look at.
#[derive(Debug, Clone)]
pub(super) struct View<'a> {
    pub(super) action: Action,
    pub(super) state: State,
    pub(super) rate: u32,
    pub(super) max_in_flight: u32,
    /// Size of the canary.
    pub(super) canary: u32,
    pub(super) waiting: u32,
    pub(super) in_flight: u32,
    pub(super) succeeded: u32,
    pub(super) failed_again: u32,
    pub(super) skipped: u32,
    pub(super) recent: &'a Recent,
    /// The undo window is over.
    pub(super) hold_over: bool,
    /// How long the oldest on its way has been so.
    pub(super) oldest: Duration,
    /// How busy the consumer is, or the busiest of several, as far as this process knows.
    pub(super) load: Load,
    /// Why nothing may be sent now.
    pub(super) obstacle: Option<&'a str>,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// Look again after a moment.
    Wait,
    /// Nothing to do for a runner before an operator says something.
    Rest,
    /// The undo window is over: go on in this state.
    Begin(State),
    /// At most so many.
    Send(u32),
    /// Ask an operator.
    Pause(String),
    /// The canary has succeeded.
    Open,
    /// For good, with the reason.
    Stop(String),
    /// Nothing is left.
    Done,
}

/// How fast a job may go now; lives in the memory of whoever runs it.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    /// The rate is divided by this.
    level: u32,
    /// Since when.
    since: Duration,
    tokens: f64,
    at: Duration,
    /// The rate when it was last looked at.
    per_second: f64,
    /// What made it slower, when it was last looked at.
    strain: Option<Strain>,
    /// Messages of others that waited then.
    others: Option<u64>,
    /// The shortest 95th percentile that was seen.
    quickest: Option<Duration>,
}

/// Why a job goes slower than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strain {
    /// Its results are late, or more is on its way than comes back.
    Results,
    /// Deliveries take longer than they did.
    Latency(Duration),
    /// Messages of others wait: they go first.
    Backlog(u64),
}

impl std::fmt::Display for Strain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Results => f.write_str("results don't keep up"),
            Self::Latency(p95) => {
                write!(f, "95 of 100 deliveries take up to {} ms, longer than before", p95.as_millis())
            }
            Self::Backlog(others) => write!(f, "{others} other messages wait for the consumer"),
        }
    }
}

impl Pace {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            level: FIRST_LEVEL,
            since: now,
            tokens: 0.0,
            at: now,
            per_second: 1.0,
            strain: None,
            others: None,
            quickest: None,
        }
    }

    /// Slowly once more, with what was learnt of the consumer.
    fn again(&self, now: Duration) -> Self {
        Self { quickest: self.quickest, ..Self::new(now) }
    }

    /// In words, while something makes it slower than it would be by now.
    pub(super) fn slowed(&self, rate: u32) -> Option<String> {
        let strain = self.strain?;
        Some(format!("it goes at {} a second because {strain}", (rate / self.level).max(1)))
    }

    /// Takes in the time that has passed, and returns how many may be sent now.
    pub(super) fn allowed(&mut self, view: &View<'_>, now: Duration) -> u32 {
        self.adapt(view, now);
        let rate = f64::from(view.rate) / f64::from(self.level);
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

    /// Doubles after a while without strain, and halves under it. It stays where it is while a long queue gets shorter.
    fn adapt(&mut self, view: &View<'_>, now: Duration) {
        if now.saturating_sub(self.since) < STEP {
            return;
        }
        // Its own are in that queue too.
        let others = view.load.backlog.map(|waiting| waiting.saturating_sub(u64::from(view.in_flight)));
        let shrinks = others.zip(self.others).is_some_and(|(now, before)| now < before);
        self.quickest = self.quickest.into_iter().chain(view.load.p95).min();
        let late = self.is_late(view);
        self.strain = self.cause(view, others).or(late.then_some(Strain::Results));
        self.level = match self.strain {
            Some(Strain::Backlog(_)) if shrinks && !late => self.level,
            Some(_) => (self.level * 2).min(LAST_LEVEL),
            None => (self.level / 2).max(1),
        };
        (self.others, self.since) = (others, now);
    }

    fn is_late(&self, view: &View<'_>) -> bool {
        let per_second = (view.rate / self.level).max(1);
        let behind = view.in_flight > (per_second * BEHIND_SECONDS).max(BEHIND_AT_LEAST);
        behind || view.oldest > SLOW
    }

    /// What the consumer suffers from, which says more than that results are late.
    fn cause(&self, view: &View<'_>, others: Option<u64>) -> Option<Strain> {
        let slow = self.quickest.map_or(QUICK, |quickest| (quickest * SLOWER).max(QUICK));
        if let Some(p95) = view.load.p95.filter(|p95| *p95 > slow) {
            return Some(Strain::Latency(p95));
        }
        others.filter(|others| *others > LONG_QUEUE).map(Strain::Backlog)
    }
}

/// What comes next for a job.
pub(super) fn next(view: &View<'_>, pace: &mut Pace, now: Duration) -> Next {
    match view.state {
        State::Planned => Next::Rest,
        State::Held if !view.hold_over => Next::Rest,
        State::Held => Next::Begin(first_state(view)),
        State::Canary => canary(view, pace, now),
        State::Running => running(view, pace, now),
        State::Paused | State::Stopped | State::Cancelled | State::Done => {
            if view.in_flight > 0 {
                Next::Wait
            } else {
                Next::Rest
            }
        }
    }
}

fn first_state(view: &View<'_>) -> State {
    if view.canary > 0 && view.action == Action::Replay { State::Canary } else { State::Running }
}

fn canary(view: &View<'_>, pace: &mut Pace, now: Duration) -> Next {
    if view.failed_again > 0 {
        let (failed, size) = (view.failed_again, view.canary);
        return Next::Pause(format!("{failed} of the first {size} failed again: look at them, then resume or cancel"));
    }
    let touched = view.in_flight + view.succeeded + view.skipped;
    let left = view.canary.saturating_sub(touched).min(view.waiting);
    match left {
        0 if view.in_flight > 0 => Next::Wait,
        0 => {
            // What comes now begins slowly again.
            *pace = pace.again(now);
            Next::Open
        }
        left => send(view, pace.allowed(view, now).min(left)),
    }
}

fn running(view: &View<'_>, pace: &mut Pace, now: Duration) -> Next {
    if let Some(why) = view.recent.verdict() {
        return Next::Stop(why);
    }
    match (view.waiting, view.in_flight) {
        (0, 0) => Next::Done,
        (0, _) => Next::Wait,
        (waiting, _) => send(view, pace.allowed(view, now).min(waiting)),
    }
}

fn send(view: &View<'_>, count: u32) -> Next {
    if count == 0 || view.obstacle.is_some() { Next::Wait } else { Next::Send(count) }
}

/// Whole tokens; they are few and not negative.
fn whole(tokens: f64) -> u32 {
    (0..=1_000).rev().find(|n| f64::from(*n) <= tokens).unwrap_or(0)
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;

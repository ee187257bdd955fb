//! What a job does next: pure rules over its books, the last results and a clock. No I/O.

use std::time::Duration;

use super::load::Live;
use super::model::{Action, State};
use super::pace::Pace;

/// Results that are remembered.
const REMEMBERED: usize = 50;
/// Failures in a row that stop a job.
const STOP_AFTER: usize = 10;

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
    /// Messages that wait for its consumer at the broker, or for the one of several that most wait for; `None` where it isn't known.
    pub(super) backlog: Option<u64>,
    /// How long live deliveries take, of all consumers of this process: they share the database with this job.
    pub(super) live: &'a [Live],
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

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;

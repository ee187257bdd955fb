//! A job with its consumer, on a clock of its own: what the tests of its rules and of its pace step through.

use std::collections::VecDeque;
use std::time::Duration;

use super::load::Live;
use super::machine::{Next, Recent, View, next};
use super::model::{Action, State};
use super::pace::Pace;

pub(super) const TICK: Duration = Duration::from_millis(200);

/// A job with its consumer, on a clock of its own.
pub(super) struct World {
    pub(super) state: State,
    pub(super) rate: u32,
    pub(super) cap: u32,
    pub(super) canary: u32,
    pub(super) waiting: u32,
    pub(super) flying: VecDeque<(Duration, bool)>,
    pub(super) succeeded: u32,
    pub(super) failed: u32,
    pub(super) recent: Recent,
    pub(super) now: Duration,
    pub(super) pace: Pace,
    pub(super) sends: Vec<(Duration, u32)>,
    pub(super) backlog: Option<u64>,
    pub(super) live: Vec<Live>,
}

impl World {
    pub(super) fn new(planned: u32, rate: u32, canary: u32) -> Self {
        Self {
            state: State::Held,
            rate,
            cap: 500,
            canary,
            waiting: planned,
            flying: VecDeque::new(),
            succeeded: 0,
            failed: 0,
            recent: Recent::default(),
            now: Duration::ZERO,
            pace: Pace::new(Duration::ZERO),
            sends: Vec::new(),
            backlog: None,
            live: Vec::new(),
        }
    }

    pub(super) fn next(&mut self) -> Next {
        let in_flight = u32::try_from(self.flying.len()).unwrap();
        let view = View {
            action: Action::Replay,
            state: self.state,
            rate: self.rate,
            max_in_flight: self.cap,
            canary: self.canary,
            waiting: self.waiting,
            in_flight,
            succeeded: self.succeeded,
            failed_again: self.failed,
            skipped: 0,
            recent: &self.recent,
            hold_over: true,
            oldest: self.flying.front().map_or(Duration::ZERO, |(at, _)| self.now - *at),
            backlog: self.backlog,
            live: &self.live,
            obstacle: None,
        };
        next(&view, &mut self.pace, self.now)
    }

    /// One step; the results of what was sent `takes` ago come in. `fails` says which send fails.
    pub(super) fn step(&mut self, takes: Duration, fails: &mut impl FnMut() -> bool) -> Next {
        while self.flying.front().is_some_and(|(at, _)| self.now - *at >= takes) {
            let (_, fails) = self.flying.pop_front().unwrap();
            self.recent.push(!fails);
            if fails { self.failed += 1 } else { self.succeeded += 1 }
        }
        let next = self.next();
        match &next {
            Next::Begin(state) => self.state = *state,
            Next::Open => self.state = State::Running,
            Next::Pause(_) => self.state = State::Paused,
            Next::Stop(_) => self.state = State::Stopped,
            Next::Done => self.state = State::Done,
            Next::Send(count) => {
                self.pace.spend(*count);
                self.waiting -= count;
                self.sends.push((self.now, *count));
                for _ in 0..*count {
                    self.flying.push_back((self.now, fails()));
                }
            }
            Next::Wait | Next::Rest => {}
        }
        self.now += TICK;
        next
    }

    pub(super) fn run(&mut self, takes: Duration, mut fails: impl FnMut() -> bool) {
        for _ in 0..100_000 {
            if self.state.is_final() || self.state == State::Paused {
                return;
            }
            self.step(takes, &mut fails);
        }
        panic!("it never ended: {} waiting, {} flying", self.waiting, self.flying.len());
    }

    pub(super) fn sent(&self) -> u32 {
        self.sends.iter().map(|(_, n)| n).sum()
    }
}

/// A job at work, with much to send and nothing on its way.
pub(super) fn at_work(recent: &Recent) -> View<'_> {
    View {
        action: Action::Replay,
        state: State::Running,
        rate: 500,
        max_in_flight: 500,
        canary: 0,
        waiting: 1_000,
        in_flight: 0,
        succeeded: 0,
        failed_again: 0,
        skipped: 0,
        recent,
        hold_over: true,
        oldest: Duration::ZERO,
        backlog: None,
        live: &[],
        obstacle: None,
    }
}

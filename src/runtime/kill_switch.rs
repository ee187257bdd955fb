//! The kill switch of one consumer: a systemic failure shall not become a thousand dead letters.
//!
//! Every failure is told here before anything is written for it. Once most of what arrives fails in one way, further failures
//! are held back: their deliveries are dropped unacknowledged, reading ends, and the broker has them again. After a pause a few
//! events are read to see (`crate::breaker` has the rules). Replays are left out: who replays looks at the result.

use std::hash::BuildHasher as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use foldhash::fast::FixedState;
use tokio::sync::Notify;
use tracing::{info, warn};

use super::job::Job;
use crate::breaker::{Breaker, Phase, Verdict};
use crate::telemetry;

/// Longest part of an error text that is shown as the reason.
const MOST_WORDS: usize = 200;

/// Shared by the lanes and the reading side of one consumer.
#[derive(Debug, Clone)]
pub(super) struct KillSwitch {
    consumer: &'static str,
    state: Arc<Mutex<State>>,
    turned: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    breaker: Breaker,
    /// The failure that opened it.
    why: String,
    /// Failures held back since then.
    held_back: u64,
}

/// How an event failed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Failed<'a> {
    pub(super) stage: &'static str,
    pub(super) code: &'static str,
    pub(super) message: &'a str,
}

impl KillSwitch {
    /// Opens after so many failures of one kind; never for 0.
    pub(super) fn new(consumer: &'static str, limit: usize) -> Self {
        let state = State { breaker: Breaker::new(limit), why: String::new(), held_back: 0 };
        Self { consumer, state: Arc::new(Mutex::new(state)), turned: Arc::default() }
    }

    pub(super) fn phase(&self) -> Phase {
        self.state().breaker.phase()
    }

    /// Why it is open, for people.
    pub(super) fn why(&self) -> String {
        self.state().why.clone()
    }

    /// So many events came to a good end.
    pub(super) fn passed(&self, count: usize) {
        let mut state = self.state();
        let before = state.breaker.phase();
        state.breaker.passed(Instant::now(), count);
        self.tell(&mut state, before);
    }

    /// Whether a failure is to be held back instead of being written down.
    pub(super) fn holds_back(&self, job: &Job, failed: Failed<'_>) -> bool {
        if job.history.replay_id.is_some() {
            return false;
        }
        let kind = FixedState::default().hash_one((failed.stage, failed.code, job.event_type()));
        let mut state = self.state();
        let before = state.breaker.phase();
        let verdict = state.breaker.failed(Instant::now(), kind);
        if state.breaker.phase() != before {
            let words: String = failed.message.chars().take(MOST_WORDS).collect();
            let Failed { stage, code, .. } = failed;
            state.why =
                format!("kill switch: most events fail alike, {} at {stage} with {code}: {words}", job.event_type());
        }
        state.held_back += u64::from(verdict == Verdict::Common);
        self.tell(&mut state, before);
        verdict == Verdict::Common
    }

    /// Waits until it stands elsewhere than at `phase`.
    pub(super) async fn turned_from(&self, phase: Phase) {
        loop {
            let turned = self.turned.notified();
            let deadline = {
                let mut state = self.state();
                let before = state.breaker.phase();
                state.breaker.tick(Instant::now());
                self.tell(&mut state, before);
                if state.breaker.phase() != phase {
                    return;
                }
                state.breaker.deadline()
            };
            match deadline {
                Some(deadline) => {
                    // Whichever comes first, there is something to look at.
                    let _either = tokio::time::timeout_at(deadline.into(), turned).await;
                }
                None => turned.await,
            }
        }
    }

    fn tell(&self, state: &mut State, before: Phase) {
        let (consumer, phase) = (self.consumer, state.breaker.phase());
        if phase == before {
            return;
        }
        telemetry::kill_switch(consumer, phase != Phase::Closed);
        match phase {
            Phase::Open => {
                let seconds = state.breaker.deadline().map_or(0, |until| (until - Instant::now()).as_secs() + 1);
                warn!(
                    consumer,
                    seconds, "consumer {consumer} stops reading: {}; a few are tried in {seconds} s", state.why
                );
            }
            Phase::Probing => info!(consumer, "consumer {consumer} tries a few events"),
            Phase::Closed => {
                let held_back = std::mem::take(&mut state.held_back);
                info!(
                    consumer,
                    held_back, "consumer {consumer} reads again; {held_back} failures were held back and come again"
                );
            }
        }
        self.turned.notify_waiters();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

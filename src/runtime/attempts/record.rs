//! What is kept of a failed attempt.

use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use super::super::dead_letter::{DeadLetter, Identity};
use super::super::headers::cut;
use super::super::wire::text_without_nul;

/// Most errors of a chain that are kept.
const MAX_ERRORS: usize = 8;
/// Most bytes of each.
const MAX_ERROR_BYTES: usize = 2_000;

/// A failed attempt at one event.
#[derive(Debug)]
pub(in crate::runtime) struct FailedAttempt<'a> {
    pub(super) id: Uuid,
    pub(in crate::runtime) consumer: &'a str,
    pub(in crate::runtime) identity: &'a Identity,
    /// Counts from 1.
    pub(super) number: u32,
    pub(super) at: Timestamp,
    pub(super) stage: &'a str,
    pub(super) code: &'a str,
    pub(super) error_chain: Vec<String>,
    pub(super) timing: Timing,
    pub(super) replay_id: Option<Uuid>,
}

/// How long it took, and how long it waits for the next one.
#[derive(Debug, Clone, Copy)]
pub(in crate::runtime) struct Timing {
    /// As far as known.
    pub(in crate::runtime) took: Option<Duration>,
    /// `None` where there is no next one.
    pub(in crate::runtime) retry_in: Option<Duration>,
}

impl<'a> FailedAttempt<'a> {
    /// The attempt that made an event a dead letter.
    pub(in crate::runtime) fn last(dead: &'a DeadLetter<'_>, took: Option<Duration>) -> Self {
        Self {
            id: Uuid::now_v7(),
            consumer: dead.consumer,
            identity: &dead.identity,
            number: dead.attempts.max(1),
            at: dead.last_failed_at,
            stage: dead.stage,
            code: &dead.reason,
            error_chain: bounded(&dead.error_chain),
            timing: Timing { took, retry_in: None },
            replay_id: dead.replay_id,
        }
    }

    /// An attempt of which a copy goes to the retry queue: number and time, code and message.
    pub(in crate::runtime) fn passing(
        (consumer, identity): (&'a str, &'a Identity),
        (number, at): (u32, Timestamp),
        (code, message): (&'a str, &str),
        timing: Timing,
    ) -> Self {
        Self {
            id: Uuid::now_v7(),
            consumer,
            identity,
            number,
            at,
            stage: crate::event::Stage::Handle.as_str(),
            code,
            error_chain: bounded(&[message.to_owned()]),
            timing,
            replay_id: None,
        }
    }

    /// As part of a replay.
    pub(in crate::runtime) fn of_replay(self, replay_id: Option<Uuid>) -> Self {
        Self { replay_id, ..self }
    }
}

fn bounded(chain: &[String]) -> Vec<String> {
    chain.iter().take(MAX_ERRORS).map(|error| cut(&text_without_nul(error), MAX_ERROR_BYTES).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_chain_is_bounded_whatever_a_handler_says() {
        let chain: Vec<String> = (0..50).map(|_| "ü\0".repeat(10_000)).collect();
        let kept = bounded(&chain);
        assert_eq!(kept.len(), MAX_ERRORS);
        assert!(kept.iter().all(|e| e.len() <= MAX_ERROR_BYTES && !e.contains('\0')));
    }
}

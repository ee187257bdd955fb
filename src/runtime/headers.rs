//! Our own headers: what a retried or replayed message carries along. Never `x-`: those belong to the broker.

use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use crate::broker::REPLAY_ID;
use crate::message::{Message, Route};

/// Attempts that have failed so far.
const ATTEMPT: &str = "onceflow-attempt";
const FIRST_FAILED_AT: &str = "onceflow-first-failed-at";
const ERROR: &str = "onceflow-error";
const ORIGINAL_EXCHANGE: &str = "onceflow-original-exchange";
const ORIGINAL_ROUTING_KEY: &str = "onceflow-original-routing-key";
/// All headers together must fit one frame (128 KiB by default); an error text needs no more than this.
const MAX_ERROR_BYTES: usize = 500;

/// Whether a header is part of our own bookkeeping. Only what we publish ourselves may have one: a producer's is forged.
pub(super) fn is_ours(key: &str) -> bool {
    [ATTEMPT, FIRST_FAILED_AT, ERROR, ORIGINAL_EXCHANGE, ORIGINAL_ROUTING_KEY, REPLAY_ID].contains(&key)
}

/// The history that a message brings along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct History {
    pub(super) attempts: u32,
    pub(super) first_failed_at: Option<Timestamp>,
    pub(super) replay_id: Option<Uuid>,
    pub(super) origin: Route,
}

impl History {
    /// Reads the history of a message that was published to `route`. A producer's exchange can't forge it: retries and replays
    /// come through the default exchange.
    pub(super) fn of(message: &Message, route: &Route) -> Self {
        if !route.exchange.is_empty() {
            return Self { attempts: 0, first_failed_at: None, replay_id: None, origin: route.clone() };
        }
        let text = |key: &str| message.headers.get(key).and_then(Value::as_str);
        let origin = match (text(ORIGINAL_EXCHANGE), text(ORIGINAL_ROUTING_KEY)) {
            (Some(exchange), Some(key)) => Route { exchange: exchange.to_owned(), routing_key: key.to_owned() },
            _ => route.clone(),
        };
        let attempts = message.headers.get(ATTEMPT).and_then(Value::as_u64).unwrap_or(0);
        Self {
            attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
            first_failed_at: text(FIRST_FAILED_AT).and_then(|t| t.parse().ok()),
            replay_id: text(REPLAY_ID).and_then(|t| t.parse().ok()),
            origin,
        }
    }
}

/// Writes the history as it is onto a message that waits and comes back, in place of what the producer forged.
pub(super) fn mark_waiting(message: &mut Message, history: &History) {
    // The error of an attempt of ours stays, for who looks into the queue.
    message.headers.retain(|key, _| !is_ours(key) || (key == ERROR && history.attempts > 0));
    carry(history, |key, value| drop(message.headers.insert(key.to_owned(), value)));
}

/// Writes the history as it is. The headers that it is written to must have none of ours.
pub(super) fn carry(history: &History, mut set: impl FnMut(&str, Value)) {
    set(ORIGINAL_EXCHANGE, Value::from(history.origin.exchange.as_str()));
    set(ORIGINAL_ROUTING_KEY, Value::from(history.origin.routing_key.as_str()));
    if history.attempts > 0 {
        set(ATTEMPT, Value::from(history.attempts));
    }
    if let Some(at) = history.first_failed_at {
        set(FIRST_FAILED_AT, Value::from(at.to_string()));
    }
    if let Some(id) = history.replay_id {
        set(REPLAY_ID, Value::from(id.to_string()));
    }
}

/// Writes the history of one more failed attempt onto a message that goes to a retry queue.
pub(super) fn mark_failed(message: &mut Message, history: &History, error: &str, now: Timestamp) {
    let after = History {
        attempts: history.attempts.saturating_add(1),
        first_failed_at: history.first_failed_at.or(Some(now)),
        ..history.clone()
    };
    mark_waiting(message, &after);
    message.headers.insert(ERROR.to_owned(), Value::from(cut(error, MAX_ERROR_BYTES)));
}

/// The longest prefix of whole characters within `max` bytes.
pub(super) fn cut(text: &str, max: usize) -> &str {
    if text.len() <= max {
        return text;
    }
    let end = (0..=max).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(exchange: &str) -> Route {
        Route { exchange: exchange.to_owned(), routing_key: "org.user.upserted.v1".to_owned() }
    }

    #[test]
    fn a_retried_message_brings_its_history_back() {
        let mut message = Message::default();
        let fresh = History::of(&message, &route("onceflow.in"));
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        mark_failed(&mut message, &fresh, "boom", now);
        let back = Route { exchange: String::new(), routing_key: "onceflow.org".to_owned() };
        let history = History::of(&message, &back);
        assert_eq!((history.attempts, history.first_failed_at), (1, Some(now)));
        assert_eq!(history.origin, route("onceflow.in"));
    }

    #[test]
    fn a_message_that_waited_has_not_failed_once_more() {
        let mut message = Message::default();
        let before = History {
            attempts: 2,
            first_failed_at: Some("2026-01-01T00:00:00Z".parse().unwrap()),
            replay_id: Some(Uuid::from_u128(7)),
            origin: route("onceflow.in"),
        };
        mark_failed(&mut message, &History { attempts: 1, ..before.clone() }, "boom", Timestamp::UNIX_EPOCH);
        mark_waiting(&mut message, &before);
        let back = Route { exchange: String::new(), routing_key: "onceflow.org".to_owned() };
        assert_eq!(History::of(&message, &back), before);
        assert_eq!(message.headers[ERROR], "boom");
    }

    #[test]
    fn attempts_forged_by_a_producer_are_ignored_e10() {
        let mut message = Message::default();
        message.headers.insert(ATTEMPT.to_owned(), Value::from(99));
        assert_eq!(History::of(&message, &route("onceflow.in")).attempts, 0);
    }

    #[test]
    fn a_replay_forged_by_a_producer_does_not_survive_a_failure_or_a_wait_e10() {
        let mut forged = Message::default();
        forged.headers.insert(REPLAY_ID.to_owned(), Value::from(Uuid::from_u128(7).to_string()));
        let fresh = History::of(&forged, &route("onceflow.in"));
        let back = Route { exchange: String::new(), routing_key: "onceflow.org".to_owned() };
        let (mut failed, mut waited) = (forged.clone(), forged);
        mark_failed(&mut failed, &fresh, "boom", "2026-01-01T00:00:00Z".parse().unwrap());
        mark_waiting(&mut waited, &fresh);
        assert_eq!(History::of(&failed, &back).replay_id, None);
        assert_eq!(History::of(&waited, &back).replay_id, None);
    }

    #[test]
    fn a_cut_never_splits_a_character() {
        assert_eq!(cut("äöü", 3), "ä");
        assert_eq!(cut("ab", 3), "ab");
    }
}

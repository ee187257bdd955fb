//! Which dead letters are meant: by id, or by what they have in common.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Most rows of one page.
pub const MAX_PAGE: u32 = 500;

/// What dead letters have in common. Empty fields don't restrict; of the states `open` is meant where none is named.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// The consumer that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumer: Option<String>,
    /// Event type.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
    /// Whose data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Where in its way the event failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// Stable reason code, e.g. `invalid_json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason_code: Option<String>,
    /// Id of a group, as [`Group::id`](super::Group::id) shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// State; `open` where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// Last failed at this time or later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Last failed before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Part of the error text, or the whole event id, subject or ordering key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The ordering key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Given up after at least so many attempts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<i32>,
    /// Replayed at least so often.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replays: Option<i32>,
}

impl Filter {
    /// Conditions that are numbers; in a query they are text like the others.
    const NUMBERS: [&'static str; 2] = ["attempts", "replays"];

    /// Reads the parameters of a query.
    ///
    /// # Errors
    /// When there is no such condition, or its value doesn't fit.
    pub fn from_query(params: BTreeMap<String, String>) -> Result<Self, serde_json::Error> {
        let value = |(name, text): (String, String)| {
            let number = text.parse::<i32>().ok().filter(|_| Self::NUMBERS.contains(&name.as_str()));
            (name, number.map_or_else(|| text.into(), serde_json::Value::from))
        };
        serde_json::from_value(params.into_iter().map(value).collect::<serde_json::Map<_, _>>().into())
    }

    /// Whether nothing but the state is restricted: every dead letter is meant.
    pub fn is_empty(&self) -> bool {
        Self { state: None, ..self.clone() } == Self::default()
    }

    /// The state to look for; `None` for any.
    pub(super) fn state_name(&self) -> Option<&'static str> {
        match self.state.unwrap_or(State::Open) {
            State::Any => None,
            state => Some(state.as_str()),
        }
    }
}

/// State of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "DeadLetterStates")]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waits for someone.
    Open,
    /// On its way back to the consumer.
    Replaying,
    /// The consumer has dealt with it.
    Replayed,
    /// Dropped by an operator.
    Discarded,
    /// Put away by an operator; can be restored.
    Archived,
    /// Replaced by an edited copy.
    Edited,
    /// Whatever the state.
    Any,
}

impl State {
    /// Those that a row can have.
    pub(super) const STORED: [&'static str; 6] = ["open", "replaying", "replayed", "discarded", "archived", "edited"];

    /// The stable name, as stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Replaying => "replaying",
            Self::Replayed => "replayed",
            Self::Discarded => "discarded",
            Self::Archived => "archived",
            Self::Edited => "edited",
            Self::Any => "any",
        }
    }
}

/// What a change applies to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one of them at a time: a box would only stand in everybody's way"
)]
pub enum Selection {
    /// These, and nothing else.
    Ids(Vec<Uuid>),
    /// All that match now. Newcomers are not included.
    Filter(Filter),
}

/// Where a page ended: the newest first, so the next page is older.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// `last_failed_at` of the last row.
    pub at: Timestamp,
    /// Its id.
    pub id: Uuid,
}

/// A cursor that no page of ours gave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor of this list; start again without it")]
pub struct CursorError;

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.at.as_microsecond(), self.id.simple())
    }
}

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let (at, id) = text.split_once('.').ok_or(CursorError)?;
        let at = at.parse().ok().and_then(|us| Timestamp::from_microsecond(us).ok()).ok_or(CursorError)?;
        Ok(Self { at, id: Uuid::parse_str(id).map_err(|_| CursorError)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_its_way_through_a_client() {
        let cursor = Cursor { at: "2026-01-02T03:04:05.678901Z".parse().unwrap(), id: Uuid::from_u128(7) };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
    }

    #[test]
    fn a_forged_cursor_is_refused() {
        for text in ["", "1", "x.y", "99999999999999999999.00000000000000000000000000000007", "1.zz"] {
            assert_eq!(text.parse::<Cursor>(), Err(CursorError), "{text}");
        }
    }

    #[test]
    fn only_open_dead_letters_are_meant_unless_a_state_is_named() {
        assert_eq!(Filter::default().state_name(), Some("open"));
        assert_eq!(Filter { state: Some(State::Any), ..Filter::default() }.state_name(), None);
    }

    #[test]
    fn every_state_that_can_be_asked_for_is_one_that_rows_have() {
        let asked = [State::Open, State::Replaying, State::Replayed, State::Discarded, State::Archived, State::Edited];
        assert_eq!(asked.map(State::as_str), State::STORED);
    }

    #[test]
    fn a_misspelt_filter_is_refused_rather_than_ignored() {
        assert!(serde_json::from_str::<Filter>(r#"{"consumr":"org"}"#).is_err());
    }
}

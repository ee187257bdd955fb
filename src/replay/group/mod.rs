//! Groups: dead letters that failed in the same way, what became of their last replay, and what people say of them.

mod store;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::filter::Filter;
use crate::db::{DbError, Tx};

/// Dead letters that failed in the same way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "DeadLetterGroup")]
pub struct Group {
    /// Stable id: a hash of the four fields that follow and the text.
    pub id: String,
    /// The consumer that failed.
    pub consumer: String,
    /// Event type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// Where in their way they failed.
    pub stage: String,
    /// Stable reason code.
    pub reason_code: String,
    /// How many match.
    pub count: i64,
    /// First failure of any.
    pub first_failed_at: Timestamp,
    /// Last failure of any.
    pub last_failed_at: Timestamp,
    /// Error text of the newest.
    pub example: String,
    /// The error text without what differs from one to the next; absent where all are from an earlier version.
    #[serde(default)]
    pub text: Option<String>,
    /// How many of them failed last within the hour before now.
    #[serde(default)]
    pub last_hour: i64,
    /// How many of them did in the hour before that.
    #[serde(default)]
    pub hour_before: i64,
    /// The last time any were replayed out of this group.
    #[serde(default)]
    pub last_replay: Option<LastReplay>,
    /// How many of them failed for the first time after that; absent where none was replayed.
    #[serde(default)]
    pub new_since_replay: Option<i64>,
    /// What somebody says of it.
    #[serde(default)]
    pub note: Option<String>,
    /// Who cares for it.
    #[serde(default)]
    pub owner: Option<String>,
}

/// What became of the dead letters that were replayed last, all in one transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LastReplay {
    /// When they were sent.
    pub at: Timestamp,
    /// By whom, where the audit names one of them.
    pub by: Option<String>,
    /// The consumer has dealt with them.
    pub succeeded: i64,
    /// Failed again in the same way.
    pub failed_again: i64,
    /// Failed in another way: they are in other groups now.
    pub failed_differently: i64,
    /// Still on their way.
    pub waiting: i64,
}

/// What somebody says of a group. Absent: as it was; empty: nothing any more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Note {
    /// For those who look next.
    pub note: Option<String>,
    /// Who cares for it.
    pub owner: Option<String>,
}

/// What is said of a group now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "GroupNoted")]
pub struct Noted {
    /// The group.
    pub group: String,
    /// For those who look next.
    pub note: Option<String>,
    /// Who cares for it.
    pub owner: Option<String>,
    /// Who said so.
    pub changed_by: String,
    /// When.
    pub changed_at: Timestamp,
    /// Whether that is news.
    pub changed: bool,
}

/// The groups of those that match, largest first; a thousand at most.
///
/// # Errors
/// When the database is away.
pub async fn groups(tx: &Tx, filter: &Filter) -> Result<Vec<Group>, DbError> {
    super::store::plan_for_values(tx).await?;
    store::groups(tx, filter).await
}

/// Changes what is said of a group, with a row in the audit unless it was said before. `None` where no dead letter, whatever its
/// state, is in such a group.
///
/// # Errors
/// When the database fails; then the transaction is to be rolled back.
pub async fn note(tx: &Tx, group: &str, note: &Note, actor: &str) -> Result<Option<Noted>, DbError> {
    if !store::exists(tx, group).await? {
        return Ok(None);
    }
    store::prepare(tx, group, actor).await?;
    let before = store::lock(tx, group).await?;
    let changed = |new: &Option<String>, old: &Option<String>| match new {
        Some(text) => Some(text.clone()).filter(|text| !text.is_empty()),
        None => old.clone(),
    };
    let after = Note { note: changed(&note.note, &before.note), owner: changed(&note.owner, &before.owner) };
    if after.note == before.note && after.owner == before.owner {
        return Ok(Some(before));
    }
    let noted = store::change(tx, group, &after, actor).await?;
    let said = |note: &Option<String>, owner: &Option<String>| serde_json::json!({ "note": note, "owner": owner });
    let detail = serde_json::json!({
        "before": said(&before.note, &before.owner),
        "after": said(&noted.note, &noted.owner),
    });
    super::store::audit_row(tx, (actor, "dlq.note", &format!("group {group}")), None, &detail).await?;
    Ok(Some(noted))
}

//! Edit and replay: an edited copy of a dead letter is sent in its place.
//!
//! Exactly one of the original and its copy is ever applied. What rests on what:
//!
//! - The copy is an event of its own: same source, type, tenant, subject and ordering key, a new id. All that says what the event is
//!   stays locked; only the payload, its content type and headers of the sender's own can differ.
//! - One transaction marks the original's identity in the inbox (outcome `skipped`, reason `edited`), closes the dead letter
//!   (state `edited`), writes the copy's outbox row, the link between both, and the audit. So there is never a copy beside an original that
//!   can still be applied, nor an original that was closed without its copy.
//! - The mark is an insert into the key that every consumer claims. Whoever is first wins: an original that was applied before, by a
//!   redelivery or by its producer, makes the edit a refusal; whatever arrives of the original afterwards is a duplicate. An
//!   attempt that runs at the same moment is waited for.
//! - The dead letter's row is locked first and must be open. So of an edit and a replay of it one is refused.
//! - A second dead letter of the same event, which a late redelivery may leave, can't be edited: the mark is there already.
//! - A copy whose outbox row was parked can't be dropped: it is all that is left of the event.
//!
//! A copy that fails is a dead letter of its own. The mark goes with `retention.inbox`, like every proof that an event was dealt with;
//! the edited original and the link stay.

mod copy;
mod diff;
mod store;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

pub use diff::{Diff, FieldChange, MAX_FIELDS};
pub(super) use store::{Link, links};

use super::mask;
use super::store::{self as letters, Operation};
use crate::db::{DbError, Tx};
use crate::event::Rejection;
use crate::runtime::order::{self, Identity};
use crate::runtime::wire::Limits;
use crate::runtime::{self, AnyConsumer};
use copy::Copied;
use store::Original;

/// What this build and its configuration allow.
#[derive(Clone)]
pub struct Rules {
    /// `replay.edit`: nobody edits where it is off.
    pub on: bool,
    /// The consumers, which read the copy before it is accepted.
    pub consumers: Vec<Arc<dyn AnyConsumer>>,
    /// What a message may have.
    pub limits: Limits,
    /// The queue of each consumer.
    pub queues: BTreeMap<String, String>,
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules").field("on", &self.on).finish_non_exhaustive()
    }
}

/// What is wanted.
#[derive(Debug, Clone)]
pub struct NewEdit {
    /// The dead letter.
    pub id: Uuid,
    /// The whole new payload, as it stands in the message; the old one where absent.
    pub payload: Option<Vec<u8>>,
    /// Headers of the sender's own, or `amqp:content_type`: null takes one away.
    pub headers: BTreeMap<String, Value>,
    /// Why; needed unless it is a dry run.
    pub reason: Option<String>,
    /// Who.
    pub actor: String,
    /// Only tell what would differ; the caller rolls back.
    pub dry_run: bool,
}

/// Answer to an edit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EditMade {
    /// The dead letter that was edited.
    pub dead_letter: Uuid,
    /// Its event.
    pub event_id: String,
    /// The event that took its place; absent for a dry run.
    pub copy_event_id: Option<String>,
    /// What differs.
    pub diff: Diff,
    /// Nothing was changed.
    pub dry_run: bool,
}

/// An edit that was made, and what became of the copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Edited {
    /// The dead letter that was edited.
    pub dead_letter: Uuid,
    /// Its event.
    pub event_id: String,
    /// The event that took its place.
    pub copy_event_id: String,
    /// waiting, parked, sent, applied, stale, skipped, dead or edited.
    pub copy_state: String,
    /// The copy's own dead letter, where it failed too.
    pub copy_dead_letter: Option<Uuid>,
    /// Who edited it.
    pub edited_by: String,
    /// Why.
    pub reason: String,
    /// When.
    pub edited_at: Timestamp,
}

/// An edit with what differs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EditShown {
    /// Who, when, why, and what became of it.
    #[serde(flatten)]
    pub edited: Edited,
    /// What differs.
    pub diff: Diff,
    /// Values are masked: they are shown as they are only to who asks for that, which the audit tells.
    #[serde(default)]
    pub is_masked: bool,
}

impl EditShown {
    /// Without what looks like a secret or a phone number.
    #[must_use]
    pub fn masked(self) -> Self {
        self.with_values(|path, value| match path {
            // No JSON on one of the sides: what can't be read can't be masked.
            "payload" => *value = Value::from("masked"),
            path => mask::field(path, value),
        })
    }

    /// Without what stood and stands there.
    #[must_use]
    pub fn outlined(self) -> Self {
        self.with_values(|_, value| *value = Value::from("masked"))
    }

    fn with_values(mut self, mask: impl Fn(&str, &mut Value)) -> Self {
        for field in &mut self.diff.fields {
            for value in [&mut field.before, &mut field.after].into_iter().flatten() {
                mask(&field.path, value);
            }
        }
        self.is_masked = true;
        self
    }
}

/// Why nothing was edited.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The database said no, or was away.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The configuration doesn't allow it.
    #[error(
        "editing dead letters is off: set `edit = true` under `[replay]` (or ONCEFLOW_REPLAY__EDIT=true) where the service runs, and \
         start it again"
    )]
    Off,
    /// No such dead letter.
    #[error("dead letter {0} does not exist")]
    NotFound(Uuid),
    /// Nobody said why.
    #[error("a reason is needed: it is kept in the audit")]
    NoReason,
    /// Only open ones can be edited.
    #[error("dead letter {id} is {state}: only open ones can be edited")]
    NotOpen {
        /// The dead letter.
        id: Uuid,
        /// Its state.
        state: String,
    },
    /// Somebody was first.
    #[error("{by} has edited this event already, at {at}: its copy is event {copy}, edit that where it failed too")]
    AlreadyEdited {
        /// Who.
        by: String,
        /// When.
        at: Timestamp,
        /// The copy's event.
        copy: String,
    },
    /// The original has had its end.
    #[error("event {event_id} has been dealt with meanwhile ({outcome}, {at}): an edited copy would be a second one")]
    AlreadyApplied {
        /// The event.
        event_id: String,
        /// How it ended.
        outcome: String,
        /// When.
        at: Timestamp,
    },
    /// What is not the payload, its content type or a header of the sender's own.
    #[error(
        "{what} stays as it is: it says which event this is, and the copy takes its place; the copy gets a new id by itself"
    )]
    Locked {
        /// The header or attribute.
        what: String,
    },
    /// The copy would fail at once.
    #[error("consumer {consumer} would refuse the copy ({code}): {message}")]
    Refused {
        /// The consumer.
        consumer: String,
        /// Stable code.
        code: &'static str,
        /// Why.
        message: String,
    },
    /// Nothing differs.
    #[error("nothing differs: `onceflow dlq replay` sends it as it was")]
    Unchanged,
    /// Nobody would receive it.
    #[error("this build has no consumer {0}")]
    UnknownConsumer(String),
}

/// Sends an edited copy in the place of an open dead letter, or tells what would differ; a dry run is refused for the same reasons.
///
/// # Errors
/// When it is refused or the database fails; then the transaction is to be rolled back, as after a dry run.
pub async fn edit(tx: &Tx, new: &NewEdit, rules: &Rules) -> Result<EditMade, EditError> {
    let reason = new.reason.as_deref().unwrap_or_default().trim();
    if !rules.on {
        return Err(EditError::Off);
    }
    if reason.is_empty() && !new.dry_run {
        return Err(EditError::NoReason);
    }
    let original = store::lock(tx, new.id).await?.ok_or(EditError::NotFound(new.id))?;
    if original.state != "open" {
        return Err(not_open(tx, &original).await?);
    }
    let unknown = || EditError::UnknownConsumer(original.consumer.clone());
    let consumer = rules.consumers.iter().find(|c| c.name() == original.consumer).ok_or_else(unknown)?;
    let queue = rules.queues.get(&original.consumer).ok_or_else(unknown)?;
    let copied = copy::make(&original, new, consumer.as_ref(), &rules.limits)?;
    supersede(tx, &original, &copied).await?;
    store::send(tx, (&original, &copied), queue).await?;
    let why = format!("edited: event {} took its place ({reason})", copied.id);
    let replaced = Identity {
        tenant: &original.tenant,
        consumer: &original.consumer,
        source: &original.source,
        event_id: &original.event_id,
    };
    order::replaced(tx, replaced, &copied.id.to_string()).await?;
    letters::close(tx, &[original.id], "edited", (&new.actor, Some(&why))).await?;
    store::insert(tx, (&original, &copied), (&new.actor, reason)).await?;
    audit(tx, (&original, &copied), (&new.actor, reason)).await?;
    Ok(EditMade {
        dead_letter: original.id,
        event_id: original.event_id,
        copy_event_id: (!new.dry_run).then(|| copied.id.to_string()),
        diff: copied.diff,
        dry_run: new.dry_run,
    })
}

/// The edit of this dead letter, or the one that it is the copy of.
///
/// # Errors
/// When the database is away.
pub async fn edit_of(tx: &Tx, id: Uuid) -> Result<Option<EditShown>, DbError> {
    store::shown(tx, id).await
}

/// Like [`edit_of`], with the values as they are; the audit tells who has seen them.
///
/// # Errors
/// When the database is away.
pub async fn unmask(tx: &Tx, id: Uuid, by: (&str, Option<&str>)) -> Result<Option<EditShown>, DbError> {
    let shown = edit_of(tx, id).await?;
    if let Some(shown) = &shown {
        letters::audit_sight(tx, id, by, ("edit", &shown.edited.event_id)).await?;
    }
    Ok(shown)
}

/// What would differ was seen, and nothing changed.
///
/// # Errors
/// When the database is away.
pub async fn seen(tx: &Tx, plan: &EditMade, by: (&str, Option<&str>)) -> Result<(), DbError> {
    letters::audit_sight(tx, plan.dead_letter, by, ("edit", &plan.event_id)).await
}

/// Marks the original as dealt with, under every identity that it may arrive with.
async fn supersede(tx: &Tx, original: &Original, copied: &Copied) -> Result<(), EditError> {
    for superseded in &copied.originals {
        if runtime::supersede(tx, &original.consumer, superseded).await? {
            continue;
        }
        if let Some(error) = already_edited(tx, original).await? {
            return Err(error);
        }
        let end = runtime::end_of(tx, &original.consumer, superseded).await?;
        let (outcome, at) = end.ok_or_else(|| DbError::shape("an inbox row that is there and is not"))?;
        return Err(EditError::AlreadyApplied { event_id: original.event_id.clone(), outcome, at });
    }
    Ok(())
}

async fn not_open(tx: &Tx, original: &Original) -> Result<EditError, DbError> {
    let edited = if original.state == "edited" { already_edited(tx, original).await? } else { None };
    let (id, state) = (original.id, original.state.clone());
    Ok(edited.unwrap_or(EditError::NotOpen { id, state }))
}

async fn already_edited(tx: &Tx, original: &Original) -> Result<Option<EditError>, DbError> {
    let found = store::made_of(tx, original).await?;
    Ok(found.map(|(by, at, copy)| EditError::AlreadyEdited { by, at, copy }))
}

/// Which fields and which bytes, but not what stood there: the audit outlives dead letters.
async fn audit(tx: &Tx, (original, copied): (&Original, &Copied), by: (&str, &str)) -> Result<(), DbError> {
    let subject = original.id.to_string();
    let operation =
        Operation { verb: "edit", subject: &subject, actor: by.0, reason: Some(by.1), states: ("open", "edited") };
    let paths: Vec<&str> = copied.diff.fields.iter().map(|field| field.path.as_str()).collect();
    let detail = serde_json::json!({
        "count": 1, "event_id": original.event_id, "copy_event_id": copied.id, "fields": paths,
        "sha256_before": copied.diff.sha256_before, "sha256_after": copied.diff.sha256_after,
    });
    letters::audit_each(tx, &operation, &[original.id], &detail).await
}

impl EditError {
    fn refused(consumer: &str, rejection: Rejection) -> Self {
        Self::Refused { consumer: consumer.to_owned(), code: rejection.code, message: rejection.message }
    }

    fn locked(what: impl Into<String>) -> Self {
        Self::Locked { what: what.into() }
    }
}

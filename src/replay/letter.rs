//! Dead letters as operators see them: a list, groups, one with everything. Reading only.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::filter::{Cursor, Filter, MAX_PAGE};
use super::store;
use crate::db::{DbError, Tx};

/// One line of the list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The dead letter's own id.
    pub id: Uuid,
    /// Whose data.
    pub tenant: String,
    /// The consumer that failed.
    pub consumer: String,
    /// Event type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// Source of the event.
    pub source: String,
    /// Id of the event.
    pub event_id: String,
    /// The entity.
    pub subject: Option<String>,
    /// Where in its way it failed.
    pub stage: String,
    /// Stable reason code.
    pub reason_code: String,
    /// The outermost error.
    pub error: String,
    /// Group it belongs to.
    pub group: String,
    /// open, replaying, replayed or discarded.
    pub state: String,
    /// Attempts before it was given up.
    pub attempts: i32,
    /// How often it was replayed.
    pub replays: i32,
    /// Deliveries that ended here while it was open.
    pub occurrences: i32,
    /// First failure.
    pub first_failed_at: Timestamp,
    /// Last failure.
    pub last_failed_at: Timestamp,
}

/// One dead letter with everything that is known of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// As in the list.
    #[serde(flatten)]
    pub summary: Summary,
    /// Ordering key.
    pub partition_key: Option<String>,
    /// The error and its causes, outermost first.
    pub error_chain: Vec<String>,
    /// Content type of the payload.
    pub content_type: Option<String>,
    /// AMQP properties (`amqp:…`) and headers.
    pub headers: serde_json::Value,
    /// Size of the payload.
    pub payload_bytes: usize,
    /// The payload where it is UTF-8 text.
    pub payload_text: Option<String>,
    /// The payload in base64 where it isn't.
    pub payload_base64: Option<String>,
    /// Exchange it was published to.
    pub original_exchange: String,
    /// Routing key it was published with.
    pub original_routing_key: String,
    /// Version of the consumer that failed.
    pub consumer_version: String,
    /// Outbox row of the last replay.
    pub replay_id: Option<Uuid>,
    /// When it was closed.
    pub closed_at: Option<Timestamp>,
    /// Who closed it.
    pub closed_by: Option<String>,
    /// Why it was closed.
    pub closed_reason: Option<String>,
}

/// Dead letters that failed in the same way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Stable id, made of the four fields that follow.
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
    /// How many.
    pub count: i64,
    /// First failure of any.
    pub first_failed_at: Timestamp,
    /// Last failure of any.
    pub last_failed_at: Timestamp,
    /// Error text of the newest.
    pub example: String,
}

/// A page of the list, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Page {
    /// The rows.
    pub items: Vec<Summary>,
    /// Where the next page starts; `None` on the last one.
    pub next: Option<String>,
}

/// How far replayed dead letters are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// The consumer has dealt with them.
    pub replayed: usize,
    /// Failed again, open once more.
    pub failed_again: usize,
    /// Still on their way.
    pub waiting: usize,
    /// Gone meanwhile: discarded by someone, or purged.
    pub other: usize,
}

/// A page of the dead letters that match, newest first.
///
/// # Errors
/// When the database is away.
pub async fn list(tx: &Tx, filter: &Filter, after: Option<Cursor>, limit: u32) -> Result<Page, DbError> {
    let limit = limit.clamp(1, MAX_PAGE);
    let mut items = store::list(tx, filter, after, i64::from(limit) + 1).await?;
    let full = items.len() > limit as usize;
    items.truncate(limit as usize);
    let last = items.last().filter(|_| full);
    let next = last.map(|row| Cursor { at: row.last_failed_at, id: row.id }.to_string());
    Ok(Page { items, next })
}

/// One dead letter, or `None`.
///
/// # Errors
/// When the database is away.
pub async fn show(tx: &Tx, id: Uuid) -> Result<Option<DeadLetter>, DbError> {
    store::show(tx, id).await
}

/// The groups of those that match, largest first.
///
/// # Errors
/// When the database is away.
pub async fn groups(tx: &Tx, filter: &Filter) -> Result<Vec<Group>, DbError> {
    store::groups(tx, filter).await
}

/// Payloads that are no text, for JSON.
pub(super) fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

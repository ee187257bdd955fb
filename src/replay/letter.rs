//! Dead letters as operators see them: a list, groups, one with everything. Reading only, but that who sees a payload as it is stands in
//! the audit (`spec/reliability.md` §7.17).

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::edit::{self, Edited, Link};
use super::filter::{Cursor, Filter, MAX_PAGE};
use super::{mask, store};
use crate::db::{DbError, Tx};

/// Matches are counted up to here: beyond, the exact number helps nobody and takes long.
pub const COUNTED: i64 = 10_000;
/// Most related dead letters of one kind.
pub const MAX_RELATED: i64 = 20;

/// One line of the list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "DeadLetterSummary")]
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
    /// open, replaying, replayed, discarded, archived or edited.
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
    /// Events of its key that wait until it is dealt with; where the consumer is strict.
    #[serde(default)]
    pub waiting_behind: i64,
}

/// One dead letter with everything that is known of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// The payload where it is UTF-8 text; absent where it is masked.
    pub payload_text: Option<String>,
    /// The payload in base64 where it isn't; absent where it is masked.
    pub payload_base64: Option<String>,
    /// Where it is masked: the payload without what looks like a secret or a phone number, if it is JSON of at most 64 KiB and who asked
    /// is more than a viewer. Not for sending: fields are in the order of their names.
    #[serde(default)]
    pub payload_masked: Option<String>,
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
    /// Until when it can be restored at least; absent where it isn't archived, or is kept for ever.
    #[serde(default)]
    pub restorable_until: Option<Timestamp>,
    /// How the payload is to be read.
    #[serde(default)]
    pub payload_kind: PayloadKind,
    /// The error text without what differs within its group; absent in rows of earlier versions.
    #[serde(default)]
    pub group_text: Option<String>,
    /// Groups the events of one business case.
    #[serde(default)]
    pub correlation_id: Option<String>,
    /// When it was last replayed.
    #[serde(default)]
    pub replayed_at: Option<Timestamp>,
    /// The group that it was last replayed out of.
    #[serde(default)]
    pub replayed_group: Option<String>,
    /// Other dead letters that have to do with it.
    #[serde(default)]
    pub related: Relatives,
    /// It was edited: the copy that took its place.
    #[serde(default)]
    pub edited_into: Option<Edited>,
    /// Its event is an edited copy: of what.
    #[serde(default)]
    pub edited_from: Option<Edited>,
    /// Payload and the producer's own headers are masked: everything is shown only to who asks for that, which the audit tells.
    #[serde(default)]
    pub is_masked: bool,
}

impl DeadLetter {
    /// Without what looks like a secret or a phone number, in the payload and in the producer's own headers.
    #[must_use]
    pub fn masked(mut self) -> Self {
        let json = self.payload_text.take().filter(|_| self.payload_kind == PayloadKind::Json);
        self.payload_masked = json.and_then(|text| mask::whole(text.as_bytes()));
        self.payload_base64 = None;
        self.mask_headers(mask::field);
        self
    }

    /// Without what a producer wrote into it: payload and headers other than the known properties and attributes.
    #[must_use]
    pub fn outlined(mut self) -> Self {
        (self.payload_text, self.payload_base64) = (None, None);
        self.mask_headers(|_, value| *value = serde_json::Value::from("masked"));
        self
    }

    fn mask_headers(&mut self, mask: impl Fn(&str, &mut serde_json::Value)) {
        let known = |name: &str| name.starts_with("amqp:") || name.to_ascii_lowercase().starts_with("cloudevents");
        for (name, value) in self.headers.as_object_mut().into_iter().flatten().filter(|(name, _)| !known(name)) {
            mask(name, value);
        }
        self.is_masked = true;
    }
}

/// How a payload is to be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PayloadKind {
    /// JSON, whatever the content type says.
    Json,
    /// Other text.
    Text,
    /// Protobuf, as the content type says.
    Protobuf,
    /// Neither.
    #[default]
    Binary,
}

/// Dead letters that have to do with one, newest first; at most [`MAX_RELATED`] of each kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Relatives {
    /// Of the same tenant and ordering key.
    pub same_key: Vec<Relative>,
    /// Of the same tenant and correlation id.
    pub same_correlation: Vec<Relative>,
}

/// A dead letter that has to do with another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Relative {
    /// Its id.
    pub id: Uuid,
    /// The consumer that failed.
    pub consumer: String,
    /// Event type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// Id of the event.
    pub event_id: String,
    /// Stable reason code.
    pub reason_code: String,
    /// open, replaying, replayed, discarded, archived or edited.
    pub state: String,
    /// Last failure.
    pub last_failed_at: Timestamp,
}

/// A page of the list, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "DeadLetterPage")]
pub struct Page {
    /// The rows.
    pub items: Vec<Summary>,
    /// Where the next page starts; `None` on the last one.
    pub next: Option<String>,
    /// How many match, or at least do; `None` where nobody asked.
    #[serde(default)]
    pub total: Option<i64>,
    /// Whether exactly so many match.
    #[serde(default)]
    pub total_is_exact: Option<bool>,
}

/// How many match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Total {
    /// So many, at most [`COUNTED`].
    pub count: i64,
    /// Whether there are no more.
    pub is_exact: bool,
}

/// How far replayed dead letters are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ReplaysSettled")]
pub struct Settled {
    /// The consumer has dealt with them.
    pub replayed: usize,
    /// Failed again, open once more.
    pub failed_again: usize,
    /// Still on their way.
    pub waiting: usize,
    /// Gone meanwhile: discarded, archived or edited by someone, or purged.
    pub other: usize,
}

/// A page of the dead letters that match, newest first.
///
/// # Errors
/// When the database is away.
pub async fn list(tx: &Tx, filter: &Filter, after: Option<Cursor>, limit: u32) -> Result<Page, DbError> {
    let limit = limit.clamp(1, MAX_PAGE);
    store::plan_for_values(tx).await?;
    let mut items = store::list(tx, filter, after, i64::from(limit) + 1).await?;
    let full = items.len() > limit as usize;
    items.truncate(limit as usize);
    let last = items.last().filter(|_| full);
    let next = last.map(|row| Cursor { at: row.last_failed_at, id: row.id }.to_string());
    Ok(Page { items, next, total: None, total_is_exact: None })
}

/// How many match, counted up to [`COUNTED`].
///
/// # Errors
/// When the database is away.
pub async fn total(tx: &Tx, filter: &Filter) -> Result<Total, DbError> {
    store::plan_for_values(tx).await?;
    let found = store::count_up_to(tx, filter, COUNTED + 1).await?;
    Ok(Total { count: found.min(COUNTED), is_exact: found <= COUNTED })
}

/// One dead letter with those that have to do with it, or `None`.
///
/// # Errors
/// When the database is away.
pub async fn show(tx: &Tx, id: Uuid) -> Result<Option<DeadLetter>, DbError> {
    let Some(mut letter) = store::show(tx, id).await? else { return Ok(None) };
    let tenant = &letter.summary.tenant;
    if let Some(key) = &letter.partition_key {
        letter.related.same_key = store::same_key(tx, tenant, key, id).await?;
    }
    if let Some(correlation) = &letter.correlation_id {
        letter.related.same_correlation = store::same_correlation(tx, tenant, correlation, id).await?;
    }
    let Link { into, from } = edit::links(tx, id, (tenant, &letter.summary.event_id)).await?;
    (letter.edited_into, letter.edited_from) = (into, from);
    Ok(Some(letter))
}

/// One dead letter with its payload as it is; the audit tells who has seen it.
///
/// # Errors
/// When the database is away.
pub async fn unmask(tx: &Tx, id: Uuid, by: (&str, Option<&str>)) -> Result<Option<DeadLetter>, DbError> {
    let letter = show(tx, id).await?;
    if let Some(letter) = &letter {
        store::audit_sight(tx, id, by, ("payload", &letter.summary.event_id)).await?;
    }
    Ok(letter)
}

/// What a payload is: what it can be read as counts more than what its content type says, but for protobuf.
pub(super) fn payload_kind(content_type: Option<&str>, payload: &[u8]) -> PayloadKind {
    let media = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if matches!(media.as_str(), "application/protobuf" | "application/x-protobuf") {
        return PayloadKind::Protobuf;
    }
    match std::str::from_utf8(payload) {
        Ok(text) if serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() => PayloadKind::Json,
        Ok(_) => PayloadKind::Text,
        Err(_) => PayloadKind::Binary,
    }
}

/// Payloads that are no text, for JSON.
pub(super) fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_what_it_can_be_read_as() {
        let json = Some("application/json; charset=utf-8");
        assert_eq!(payload_kind(json, b"{\"a\": 1}"), PayloadKind::Json);
        assert_eq!(payload_kind(None, b" [1] "), PayloadKind::Json);
        assert_eq!(payload_kind(json, b"{\"a\": "), PayloadKind::Text);
        assert_eq!(payload_kind(json, b"\xff"), PayloadKind::Binary);
        assert_eq!(payload_kind(Some("Application/Protobuf"), b"1"), PayloadKind::Protobuf);
    }
}

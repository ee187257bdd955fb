//! A row of the outbox, as written and as read back.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::Value;
use uuid::Uuid;

use crate::event::{Downstream, Envelope};

/// An event that waits to be published.
#[derive(Debug, Clone)]
pub struct OutboxRow {
    pub(super) id: Uuid,
    pub(super) tenant: String,
    pub(super) aggregate_type: String,
    pub(super) aggregate_id: String,
    pub(super) event_type: String,
    pub(super) payload: String,
    pub(super) headers: OwnHeaders,
    pub(super) partition_key: Option<String>,
}

/// Headers that we write ourselves: no names are copied and no map is made until the message is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnHeaders(pub(super) Vec<(&'static str, String)>);

/// As the object that is stored.
impl Serialize for OwnHeaders {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

impl OutboxRow {
    /// What `consumer` publishes because of `cause`: tenant and trace are inherited.
    pub fn caused_by(cause: &Envelope, consumer: &str, event: Downstream) -> Self {
        let mut headers = Vec::with_capacity(4);
        headers.push(("cloudEvents:causationid", cause.id.clone()));
        let correlation = cause.trace.correlation_id.as_ref().unwrap_or(&cause.id);
        headers.push(("cloudEvents:correlationid", correlation.clone()));
        headers.push(("cloudEvents:source", ["onceflow/", consumer].concat()));
        headers.extend(cause.trace.traceparent.clone().map(|traceparent| ("cloudEvents:traceparent", traceparent)));
        Self {
            id: Uuid::now_v7(),
            tenant: cause.tenant.clone(),
            aggregate_type: event.aggregate_type.to_owned(),
            aggregate_id: event.aggregate_id,
            event_type: event.event_type.to_owned(),
            payload: event.payload,
            headers: OwnHeaders(headers),
            partition_key: event.partition_key,
        }
    }
}

/// A message that a consumer failed on, to be published once more as it was, to this consumer alone.
#[derive(Debug, Clone)]
pub struct Resent {
    /// Of the row: the replay's.
    pub id: Uuid,
    /// The tenant of the event.
    pub tenant: String,
    /// Which dead letter it is.
    pub dead_letter: Uuid,
    /// The type of the event.
    pub event_type: String,
    /// The message's bytes.
    pub body: Vec<u8>,
    /// An object, in which keys `amqp:…` are properties and all others headers.
    pub headers: Value,
    /// The ordering key within the tenant.
    pub key: String,
    /// The consumer's queue.
    pub queue: String,
}

/// Headers of a row on its way out.
#[derive(Debug, Clone)]
pub(super) enum RowHeaders {
    /// Of a row that this process has written.
    Own(OwnHeaders),
    /// As read: an object, in which keys `amqp:…` are properties and all others headers.
    Stored(Value),
}

impl RowHeaders {
    /// Takes them out.
    pub(super) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Stored(Value::Null))
    }
}

/// A row as the relay publishes it.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub(super) id: Uuid,
    pub(super) tenant: String,
    pub(super) aggregate_type: String,
    pub(super) aggregate_id: String,
    pub(super) event_type: String,
    pub(super) body: Bytes,
    /// Whether the body is the JSON column's text.
    pub(super) is_json: bool,
    pub(super) headers: RowHeaders,
    /// Tenant and ordering key in one.
    pub(super) key: Arc<str>,
    pub(super) exchange: Option<String>,
    pub(super) routing_key: Option<String>,
    /// Rises in commit order within a key.
    pub(super) seq: i64,
    pub(super) partition: i16,
    pub(super) created_at: Timestamp,
}

impl Pending {
    /// A row that this process has just committed, as it would be read back.
    pub(super) fn committed(row: OutboxRow, place: (i64, i16), created_at: Timestamp) -> Self {
        let ordering = row.partition_key.as_deref().unwrap_or(&row.aggregate_id);
        Self {
            key: format!("{}/{ordering}", row.tenant).into(),
            id: row.id,
            tenant: row.tenant,
            aggregate_type: row.aggregate_type,
            aggregate_id: row.aggregate_id,
            event_type: row.event_type,
            body: row.payload.into(),
            is_json: true,
            headers: RowHeaders::Own(row.headers),
            exchange: None,
            routing_key: None,
            seq: place.0,
            partition: place.1,
            created_at,
        }
    }

    /// As [`Pending::committed`].
    pub(super) fn resent(row: Resent, place: (i64, i16), created_at: Timestamp) -> Self {
        Self {
            key: format!("{}/{}", row.tenant, row.key).into(),
            id: row.id,
            tenant: row.tenant,
            aggregate_type: "dead_letter".to_owned(),
            aggregate_id: row.dead_letter.to_string(),
            event_type: row.event_type,
            body: row.body.into(),
            is_json: false,
            headers: RowHeaders::Stored(row.headers),
            exchange: Some(String::new()),
            routing_key: Some(row.queue),
            seq: place.0,
            partition: place.1,
            created_at,
        }
    }

    /// About how many bytes it takes in memory and on the wire.
    pub(super) fn weight(&self) -> usize {
        const AROUND: usize = 512;
        self.body.len() + AROUND
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A row of key `t/<key>`.
    pub(in crate::outbox) fn pending(key: &str, seq: i64) -> Pending {
        Pending {
            id: Uuid::from_u64_pair(0, seq.unsigned_abs()),
            tenant: "t".to_owned(),
            aggregate_type: "user".to_owned(),
            aggregate_id: key.to_owned(),
            event_type: "org.user.changed.v1".to_owned(),
            body: Bytes::from_static(b"{}"),
            is_json: true,
            headers: RowHeaders::Stored(
                serde_json::json!({"cloudEvents:source": "onceflow/org", "amqp:correlation_id": "c1"}),
            ),
            key: format!("t/{key}").into(),
            exchange: None,
            routing_key: None,
            seq,
            partition: 0,
            created_at: Timestamp::UNIX_EPOCH,
        }
    }
}

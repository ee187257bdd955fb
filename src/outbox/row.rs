//! A row of the outbox, as written and as read back.

use jiff::Timestamp;
use serde_json::{Map, Value};
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
    pub(super) headers: Value,
    pub(super) partition_key: Option<String>,
}

impl OutboxRow {
    /// What `consumer` publishes because of `cause`: tenant and trace are inherited.
    pub fn caused_by(cause: &Envelope, consumer: &str, event: &Downstream) -> Self {
        let mut headers = Map::new();
        let mut set = |name: &str, value: &str| headers.insert(format!("cloudEvents:{name}"), Value::from(value));
        set("source", &format!("onceflow/{consumer}"));
        set("causationid", &cause.id);
        set("correlationid", cause.trace.correlation_id.as_deref().unwrap_or(&cause.id));
        if let Some(traceparent) = &cause.trace.traceparent {
            set("traceparent", traceparent);
        }
        Self {
            id: Uuid::now_v7(),
            tenant: cause.tenant.clone(),
            aggregate_type: event.aggregate_type.to_owned(),
            aggregate_id: event.aggregate_id.clone(),
            event_type: event.event_type.to_owned(),
            payload: event.payload.clone(),
            headers: Value::Object(headers),
            partition_key: event.partition_key.clone(),
        }
    }
}

/// A row as the relay reads it.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub(super) id: Uuid,
    pub(super) tenant: String,
    pub(super) aggregate_type: String,
    pub(super) aggregate_id: String,
    pub(super) event_type: String,
    pub(super) body: Vec<u8>,
    /// Whether the body is the JSON column's text.
    pub(super) is_json: bool,
    pub(super) headers: Value,
    /// Tenant and ordering key in one.
    pub(super) key: String,
    pub(super) exchange: Option<String>,
    pub(super) routing_key: Option<String>,
    pub(super) partition: i16,
    pub(super) created_at: Timestamp,
}

//! What is kept of a message that failed for good.

use jiff::Timestamp;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::super::headers;
use super::super::wire::{sanitize_headers, text_without_nul};
use super::fingerprint::{Fingerprint, Place};
use crate::event::Envelope;
use crate::message::{Message, Route};

/// A message that failed for good, ready to be stored.
#[derive(Debug)]
pub(crate) struct DeadLetter<'a> {
    pub(crate) consumer: &'a str,
    pub(crate) identity: Identity,
    pub(crate) message: &'a Message,
    pub(crate) origin: Route,
    pub(crate) stage: &'static str,
    pub(crate) reason: String,
    pub(crate) error_chain: Vec<String>,
    pub(crate) attempts: u32,
    pub(crate) first_failed_at: Timestamp,
    pub(crate) last_failed_at: Timestamp,
    pub(crate) replay_id: Option<Uuid>,
}

/// How a dead letter is found again.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) tenant: String,
    pub(crate) source: String,
    pub(crate) event_id: String,
    pub(crate) event_type: String,
    pub(crate) subject: Option<String>,
    pub(crate) partition_key: Option<String>,
    pub(crate) correlation_id: Option<String>,
}

impl DeadLetter<'_> {
    /// Which failures it is alike.
    pub(super) fn fingerprint(&self) -> Fingerprint {
        let place = Place {
            consumer: self.consumer,
            event_type: &self.identity.event_type,
            stage: self.stage,
            code: &self.reason,
        };
        Fingerprint::of(place, &self.error_chain)
    }
}

impl Identity {
    pub(crate) fn of_event(envelope: &Envelope) -> Self {
        Self {
            tenant: envelope.tenant.clone(),
            source: envelope.source.clone(),
            event_id: envelope.id.clone(),
            event_type: envelope.event_type.clone(),
            subject: envelope.subject.clone(),
            partition_key: Some(envelope.partition_key.clone()),
            correlation_id: envelope.trace.correlation_id.clone(),
        }
    }

    /// For a message whose envelope can't be read.
    pub(crate) fn of_unreadable(message: &Message) -> Self {
        let (source, event_id) = super::super::wire::identity_of_unreadable(message);
        Self {
            tenant: crate::event::DEFAULT_TENANT.to_owned(),
            source: text_without_nul(&source),
            event_id: text_without_nul(&event_id),
            event_type: text_without_nul(message.message_type.as_deref().unwrap_or("unknown")),
            subject: None,
            partition_key: None,
            correlation_id: super::super::wire::attribute_of_unreadable(message, "correlationid"),
        }
    }
}

/// Properties and headers in the form that the outbox publishes; the broker's and our own bookkeeping left out.
pub(crate) fn stored_headers(message: &Message) -> Value {
    let mut map = Map::new();
    let mut property = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            map.insert(format!("amqp:{name}"), value);
        }
    };
    let text = |value: &Option<String>| value.as_deref().map(|v| Value::from(text_without_nul(v)));
    property("message_id", text(&message.message_id));
    property("type", text(&message.message_type));
    property("content_type", text(&message.content_type));
    property("content_encoding", text(&message.content_encoding));
    property("correlation_id", text(&message.correlation_id));
    property("timestamp", message.timestamp.map(Value::from));
    let kept = sanitize_headers(&message.headers).into_iter().filter(|(key, _)| !headers::is_ours(key));
    map.extend(kept.map(|(key, value)| (text_without_nul(&key), without_nul(value))));
    Value::Object(map)
}

fn without_nul(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(text_without_nul(&text)),
        Value::Array(items) => Value::Array(items.into_iter().map(without_nul).collect()),
        Value::Object(map) => {
            Value::Object(map.into_iter().map(|(k, v)| (text_without_nul(&k), without_nul(v))).collect())
        }
        other => other,
    }
}

//! Downstream events on the wire: always the binary form, with headers and AMQP properties both.

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;

use super::headers::cut;
use crate::event::{Format, Trace};
use crate::message::{Headers, Message};

/// A dozen headers of this size fit every frame. Attributes that we read are shorter; rows written by hand may not be.
const MAX_VALUE_BYTES: usize = 512;
/// An AMQP short string.
const MAX_PROPERTY_BYTES: usize = 255;

/// What a downstream message is made of.
#[derive(Debug, Clone)]
pub struct Parts<'a> {
    /// Stable over every resend; the broker's returns are matched by it.
    pub id: &'a str,
    /// Event type.
    pub event_type: &'a str,
    /// Who says so: the name of this deployment.
    pub source: &'a str,
    /// The entity it tells of.
    pub subject: Option<&'a str>,
    /// Ordering key.
    pub partition_key: &'a str,
    /// Whose data it is.
    pub tenant: &'a str,
    /// The attributes that tie it to its causes.
    pub trace: &'a Trace,
    /// When it was written.
    pub time: Timestamp,
    /// Encoding of the body.
    pub format: Format,
    /// The payload.
    pub body: Bytes,
}

/// Writes an event in the binary form. A text too long for an AMQP property stands in its header only.
pub fn downstream_message(parts: Parts<'_>) -> Message {
    let mut headers = Headers::new();
    let mut set = |name: &str, value: Option<&str>| {
        if let Some(text) = value.filter(|t| !t.is_empty()) {
            headers.insert(format!("cloudEvents:{name}"), Value::String(cut(text, MAX_VALUE_BYTES).to_owned()));
        }
    };
    set("specversion", Some("1.0"));
    set("id", Some(parts.id));
    set("source", Some(parts.source));
    set("type", Some(parts.event_type));
    set("subject", parts.subject);
    set("partitionkey", Some(parts.partition_key));
    set("tenant", Some(parts.tenant));
    set("time", Some(&parts.time.to_string()));
    set("traceparent", parts.trace.traceparent.as_deref());
    set("correlationid", parts.trace.correlation_id.as_deref());
    set("causationid", parts.trace.causation_id.as_deref());
    Message {
        message_id: property(Some(parts.id)),
        message_type: property(Some(parts.event_type)),
        content_type: Some(parts.format.content_type().to_owned()),
        content_encoding: None,
        correlation_id: property(parts.trace.correlation_id.as_deref()),
        timestamp: u64::try_from(parts.time.as_second()).ok(),
        expiration: None,
        user_id: None,
        headers,
        body: parts.body,
    }
}

fn property(text: Option<&str>) -> Option<String> {
    text.filter(|t| t.len() <= MAX_PROPERTY_BYTES).map(str::to_owned)
}

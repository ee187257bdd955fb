//! The copy: the original's envelope with another payload and a new id. Pure rules, no I/O.
//!
//! Whatever the form of the original, the copy has the binary form, because its new id must stand in one place.

use bytes::Bytes;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::diff::Diff;
use super::store::Original;
use super::{EditError, NewEdit};
use crate::event::Envelope;
use crate::message::Message;
use crate::outbox::stored_message;
use crate::runtime::wire::{self, Limits, Parts};
use crate::runtime::{AnyConsumer, Superseded, fingerprint, stored_headers};

/// Names the event that a copy took the place of, for whoever reads it; nothing of ours rests on it.
const EDITED_FROM: &str = "onceflow-edited-from";

/// A copy that its consumer can read.
#[derive(Debug)]
pub(super) struct Copied {
    /// Id of its event and of its outbox row.
    pub(super) id: Uuid,
    pub(super) tenant: String,
    pub(super) payload: Bytes,
    /// In the form of the outbox.
    pub(super) headers: Value,
    pub(super) partition_key: String,
    /// Under which identities the original may arrive.
    pub(super) originals: Vec<Superseded>,
    pub(super) diff: Diff,
}

pub(super) fn make(
    original: &Original,
    new: &NewEdit,
    consumer: &dyn AnyConsumer,
    limits: &Limits,
) -> Result<Copied, EditError> {
    let refused = |rejection| EditError::refused(consumer.name(), rejection);
    let headers = overlaid(&original.headers, new)?;
    let before = message(original, original.headers.clone(), &original.payload);
    let after = message(original, headers.clone(), new.payload.as_deref().unwrap_or(&original.payload));
    let was = wire::decode(&before, limits).ok();
    let is = wire::decode(&after, limits).map_err(refused)?;
    check_locked(original, was.as_ref(), &is, wire::is_structured(&before) || wire::is_structured(&after))?;
    let data = was.as_ref().map_or(&before.body, |envelope| &envelope.data);
    let diff = Diff::between((&original.headers, data), (&headers, &is.data));
    if diff.is_empty() {
        return Err(EditError::Unchanged);
    }
    let originals = originals(original, was.as_ref().unwrap_or(&is), data);
    let id = Uuid::now_v7();
    let copy = Envelope { id: id.to_string(), ..is };
    consumer.decode(&copy).map_err(refused)?;
    let headers = copy_headers(original, &copy, after);
    let Envelope { tenant, data: payload, partition_key, .. } = copy;
    Ok(Copied { id, tenant, payload, headers, partition_key, originals, diff })
}

/// The message as it is stored; one without an id has the one that its dead letter goes by.
fn message(original: &Original, headers: Value, payload: &[u8]) -> Message {
    let mut message = stored_message(headers, Bytes::copy_from_slice(payload));
    if !wire::is_structured(&message) && wire::attribute_of_unreadable(&message, "id").is_none() {
        message.message_id = Some(original.event_id.clone());
    }
    message
}

fn overlaid(headers: &Value, new: &NewEdit) -> Result<Value, EditError> {
    let mut map = headers.as_object().cloned().unwrap_or_default();
    for (name, value) in &new.headers {
        if is_locked(name) {
            return Err(EditError::locked(format!("header {name}")));
        }
        match value {
            Value::Null => drop(map.remove(name)),
            value => drop(map.insert(name.clone(), value.clone())),
        }
    }
    Ok(Value::Object(map))
}

/// All that names an event, and all that is ours or the broker's.
fn is_locked(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    match lower.strip_prefix("amqp:") {
        Some(property) => !matches!(property, "content_type" | "content_encoding"),
        None => {
            lower.starts_with("x-")
                || lower.starts_with("onceflow-")
                || wire::attribute_of_header(name).is_some_and(|attribute| attribute != "datacontenttype")
        }
    }
}

/// What the message says of itself must be what it said before. Of a structured event that could not be read, which has its
/// attributes in the payload, the dead letter's own words are all there is.
fn check_locked(
    original: &Original,
    was: Option<&Envelope>,
    is: &Envelope,
    is_structured: bool,
) -> Result<(), EditError> {
    let same = |name: &str, same: bool| if same { Ok(()) } else { Err(EditError::locked(format!("attribute {name}"))) };
    let Some(was) = was else {
        if is_structured {
            same("id", is.id == original.event_id)?;
            same("source", is.source == original.source)?;
            same("type", original.event_type == "unknown" || is.event_type == original.event_type)?;
        }
        return Ok(());
    };
    same("id", is.id == was.id)?;
    same("source", is.source == was.source)?;
    same("type", is.event_type == was.event_type)?;
    same("tenant", is.tenant == was.tenant)?;
    same("subject", is.subject == was.subject)?;
    same("partitionkey", is.partition_key == was.partition_key)?;
    same("time", is.time == was.time)?;
    same("traceparent, correlationid or causationid", is.trace == was.trace)
}

/// What the dead letter goes by, and what a consumer would read of the message: they differ where it could not be read.
fn originals(original: &Original, read: &Envelope, data: &Bytes) -> Vec<Superseded> {
    let as_read = Envelope { data: data.clone(), ..read.clone() };
    let fingerprint = fingerprint(&as_read);
    let known = Superseded {
        tenant: original.tenant.clone(),
        source: original.source.clone(),
        event_id: original.event_id.clone(),
        event_type: original.event_type.clone(),
        fingerprint,
    };
    let read = Superseded {
        tenant: as_read.tenant,
        source: as_read.source,
        event_id: as_read.id,
        event_type: as_read.event_type,
        fingerprint,
    };
    if read.is_same_event(&known) { vec![known] } else { vec![known, read] }
}

/// The sender's own headers as edited, the attributes as they were, the new id, and where the original came from.
fn copy_headers(original: &Original, copy: &Envelope, edited: Message) -> Value {
    let mut message = wire::downstream_message(Parts {
        id: &copy.id,
        event_type: &copy.event_type,
        source: &copy.source,
        subject: copy.subject.as_deref(),
        partition_key: &copy.partition_key,
        tenant: &copy.tenant,
        trace: &copy.trace,
        time: copy.time.unwrap_or_default(),
        format: copy.format,
        body: Bytes::new(),
    });
    if copy.time.is_none() {
        message.headers.remove("cloudEvents:time");
        message.timestamp = None;
    }
    let own = edited.headers.into_iter().filter(|(name, _)| wire::attribute_of_header(name).is_none());
    message.headers.extend(own.filter(|(name, _)| !is_locked(name)));
    let mut headers: Map<String, Value> = match stored_headers(&message) {
        Value::Object(headers) => headers,
        _ => Map::new(),
    };
    for (name, value) in [
        (EDITED_FROM, &original.event_id),
        ("onceflow-original-exchange", &original.original_exchange),
        ("onceflow-original-routing-key", &original.original_routing_key),
    ] {
        headers.insert(name.to_owned(), Value::from(value.as_str()));
    }
    Value::Object(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_names_the_event_is_locked_and_what_the_sender_added_is_not() {
        for name in [
            "cloudEvents:id",
            "cloudEvents_source",
            "CLOUDEVENTS:SUBJECT",
            "cloudEvents:tenant",
            "cloudEvents:partitionkey",
            "cloudEvents:type",
            "cloudEvents:time",
            "amqp:message_id",
            "amqp:type",
            "AMQP:correlation_id",
            "amqp:anything",
            "onceflow-replay-id",
            "x-death",
        ] {
            assert!(is_locked(name), "{name}");
        }
        for name in
            ["amqp:content_type", "amqp:content_encoding", "cloudEvents:datacontenttype", "region", "cloudEvents:own"]
        {
            assert!(!is_locked(name), "{name}");
        }
    }
}

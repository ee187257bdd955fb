//! Builds the message of `events publish` in each of the forms that producers may use.

use clap::ValueEnum;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::super::exit::{Exit, Failure};
use crate::event::{DEFAULT_TENANT, Format, Trace};
use crate::message::Message;
use crate::runtime::wire::{Parts, downstream_message};

/// How the attributes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Form {
    /// `message_id`, `type` and the payload: what any AMQP client can send
    Plain,
    /// CloudEvents attributes as headers, the payload as body
    Binary,
    /// The whole CloudEvent as JSON
    Structured,
}

/// How the payload is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Encoding {
    /// Canonical protobuf JSON
    Json,
    /// Protobuf
    Protobuf,
}

impl From<Encoding> for Format {
    fn from(encoding: Encoding) -> Self {
        match encoding {
            Encoding::Json => Self::Json,
            Encoding::Protobuf => Self::Protobuf,
        }
    }
}

/// The attributes of one event.
#[derive(Debug, Clone)]
pub(super) struct Attributes<'a> {
    pub(super) id: &'a str,
    pub(super) event_type: &'a str,
    pub(super) source: &'a str,
    pub(super) subject: Option<&'a str>,
    pub(super) key: Option<&'a str>,
    pub(super) tenant: Option<&'a str>,
    pub(super) time: Timestamp,
}

/// The message of one event.
pub(super) fn build(
    attributes: &Attributes<'_>,
    form: Form,
    format: Format,
    body: Vec<u8>,
) -> Result<Message, Failure> {
    let mut message = match form {
        Form::Plain => plain(attributes, format, body),
        Form::Binary => binary(attributes, format, body),
        Form::Structured => structured(attributes, format, &body)?,
    };
    // In every form: the broker finds the partition by this header, and never reads a body.
    message.headers.insert("cloudEvents:partitionkey".to_owned(), attributes.ordering_key().into());
    Ok(message)
}

impl Attributes<'_> {
    fn ordering_key(&self) -> &str {
        self.key.or(self.subject).unwrap_or(self.id)
    }
}

/// A plain message has no room for the other attributes: they fall back to what the contract says.
fn plain(attributes: &Attributes<'_>, format: Format, body: Vec<u8>) -> Message {
    Message {
        message_id: Some(attributes.id.to_owned()),
        message_type: Some(attributes.event_type.to_owned()),
        content_type: Some(format.content_type().to_owned()),
        timestamp: u64::try_from(attributes.time.as_second()).ok(),
        body: body.into(),
        ..Message::default()
    }
}

fn binary(attributes: &Attributes<'_>, format: Format, body: Vec<u8>) -> Message {
    downstream_message(Parts {
        id: attributes.id,
        event_type: attributes.event_type,
        source: attributes.source,
        subject: attributes.subject,
        partition_key: attributes.ordering_key(),
        tenant: attributes.tenant.unwrap_or(DEFAULT_TENANT),
        trace: &Trace::default(),
        time: attributes.time,
        format,
        body: body.into(),
    })
}

fn structured(attributes: &Attributes<'_>, format: Format, body: &[u8]) -> Result<Message, Failure> {
    let mut event = Map::new();
    let mut set = |name: &str, value: Option<&str>| {
        if let Some(text) = value {
            event.insert(name.to_owned(), text.into());
        }
    };
    set("specversion", Some("1.0"));
    set("id", Some(attributes.id));
    set("source", Some(attributes.source));
    set("type", Some(attributes.event_type));
    set("subject", attributes.subject);
    set("partitionkey", attributes.key);
    set("tenant", attributes.tenant);
    set("time", Some(&attributes.time.to_string()));
    set("datacontenttype", Some(format.content_type()));
    match format {
        Format::Json => {
            let data: Value = serde_json::from_slice(body).map_err(|e| not_json(&e))?;
            event.insert("data".to_owned(), data);
        }
        Format::Protobuf => {
            use base64::Engine;
            let text = base64::engine::general_purpose::STANDARD.encode(body);
            event.insert("data_base64".to_owned(), text.into());
        }
    }
    Ok(Message {
        message_id: Some(attributes.id.to_owned()),
        message_type: Some(attributes.event_type.to_owned()),
        content_type: Some("application/cloudevents+json".to_owned()),
        body: Value::Object(event).to_string().into(),
        ..Message::default()
    })
}

/// Applies `a.b=value`: JSON where it is JSON, text otherwise. A number in the path is a place in a list.
pub(in crate::cli) fn set(payload: &mut Value, assignment: &str) -> Result<(), Failure> {
    let wrong =
        |why: &str| Failure::new(Exit::Usage, format!("--set {assignment:?}")).because(why).or_try("--set a.b=value");
    let (path, text) = assignment.split_once('=').ok_or_else(|| wrong("there is no ="))?;
    let value = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
    let mut place = payload;
    for name in path.split('.') {
        place = match place {
            Value::Array(items) => {
                let index: usize = name.parse().map_err(|_| wrong("a list needs a number in the path"))?;
                items.get_mut(index).ok_or_else(|| wrong("the list is shorter than that"))?
            }
            Value::Object(fields) if !name.is_empty() => {
                fields.entry(name).or_insert_with(|| Value::Object(Map::new()))
            }
            _ => return Err(wrong("the path leads into something that has no fields")),
        };
    }
    *place = value;
    Ok(())
}

/// The failure for a payload that is no JSON at all.
pub(super) fn not_json(error: &serde_json::Error) -> Failure {
    Failure::new(Exit::Usage, "the payload is no JSON").because(error).or_try("onceflow events sample TYPE")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::wire::{Limits, decode};

    fn attributes() -> Attributes<'static> {
        Attributes {
            id: "e1",
            event_type: "org.user.upserted.v1",
            source: "hr",
            subject: Some("user/1"),
            key: None,
            tenant: Some("acme"),
            time: "2026-01-31T08:00:00Z".parse().unwrap(),
        }
    }

    #[test]
    fn every_form_is_read_back_as_the_same_event() {
        for form in [Form::Plain, Form::Binary, Form::Structured] {
            for format in [Format::Json, Format::Protobuf] {
                let body = b"{}".to_vec();
                let message = build(&attributes(), form, format, body).unwrap();
                let envelope = decode(&message, &Limits::default()).unwrap();
                assert_eq!((envelope.id.as_str(), envelope.format), ("e1", format), "{form:?}");
                assert_eq!(envelope.event_type, "org.user.upserted.v1");
                assert_eq!(envelope.partition_key, "user/1");
                assert_eq!(message.headers["cloudEvents:partitionkey"], "user/1", "{form:?}");
                if form != Form::Plain {
                    assert_eq!(envelope.tenant, "acme");
                }
            }
        }
    }

    #[test]
    fn a_field_is_set_by_its_path() {
        let mut payload = serde_json::json!({ "user": { "name": "A" }, "lines": [{ "qty": 1 }] });
        for assignment in ["user.name=B", "lines.0.qty=2", "user.new.deep=true", "user.id=\"7\""] {
            set(&mut payload, assignment).unwrap();
        }
        let expected = serde_json::json!({
            "user": { "name": "B", "new": { "deep": true }, "id": "7" }, "lines": [{ "qty": 2 }]
        });
        assert_eq!(payload, expected);
    }

    #[test]
    fn a_wrong_assignment_is_a_usage_error() {
        let mut payload = serde_json::json!({ "a": 1, "lines": [] });
        for assignment in ["a", "a.b=1", "lines.x=1", "lines.3=1", ".=1"] {
            assert_eq!(set(&mut payload, assignment).unwrap_err().exit, Exit::Usage, "{assignment}");
        }
    }
}

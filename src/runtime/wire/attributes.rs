//! CloudEvents attributes: where they stand in a message, and what a valid one looks like.

use std::borrow::Cow;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;

use super::media_type::{Body, MediaType, shown};
use crate::event::{DEFAULT_TENANT, Envelope, Format, Rejection, Trace};
use crate::message::{Message, Seen};

/// Both spellings of the CloudEvents AMQP binding; compared without regard to case.
const PREFIXES: [&str; 2] = ["cloudevents:", "cloudevents_"];
const PREFIX_BYTES: usize = PREFIXES[0].len();
/// Every attribute that has a meaning here; others are not carried.
pub(super) const KNOWN: [&str; 12] = [
    "specversion",
    "id",
    "source",
    "type",
    "subject",
    "time",
    "datacontenttype",
    "partitionkey",
    "tenant",
    "traceparent",
    "correlationid",
    "causationid",
];
/// In bytes. 255 is what an AMQP property can hold, so that a replay can carry every attribute as it came; together with
/// the source's cap it also keeps the key of the inbox below the largest index row.
pub(super) const MAX_BYTES: usize = 255;
pub(super) const MAX_SOURCE_BYTES: usize = 512;

/// The attributes of one message as text, not yet judged. Empty ones count as absent.
#[derive(Debug, Default)]
pub(super) struct Attributes<'m>(Vec<(&'static str, Cow<'m, str>)>);

impl<'m> Attributes<'m> {
    /// Collects headers first, then the AMQP properties for what no header says.
    pub(super) fn of_message(message: &'m Message) -> Result<Self, Rejection> {
        let mut attributes = Self(Vec::with_capacity(KNOWN.len()));
        for (header, value) in message.headers.look() {
            if let Some(name) = known_name(header) {
                attributes.add(name, scalar_text(name, value)?)?;
            }
        }
        if let (Some(header), Some(property)) = (attributes.get("id"), filled(&message.message_id))
            && header != property
        {
            return Err(conflict("id"));
        }
        let time = if attributes.get("time").is_some() { None } else { property_time(message.timestamp)? };
        let property = |text: &'m Option<String>| text.as_deref().map(Cow::Borrowed);
        attributes.fall_back("id", property(&message.message_id));
        attributes.fall_back("type", property(&message.message_type));
        attributes.fall_back("time", time.map(Cow::Owned));
        attributes.fall_back("correlationid", property(&message.correlation_id));
        Ok(attributes)
    }

    /// Adds one attribute; naming it twice is fine only with the same text.
    pub(super) fn add(&mut self, name: &'static str, text: Cow<'m, str>) -> Result<(), Rejection> {
        if text.is_empty() {
            return Ok(());
        }
        match self.get(name) {
            Some(other) if *other != text => Err(conflict(name)),
            Some(_) => Ok(()),
            None => {
                self.0.push((name, text));
                Ok(())
            }
        }
    }

    fn get(&self, name: &str) -> Option<&Cow<'m, str>> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, text)| text)
    }

    fn fall_back(&mut self, name: &'static str, property: Option<Cow<'m, str>>) {
        if self.get(name).is_none() {
            self.0.extend(property.filter(|text| !text.is_empty()).map(|text| (name, text)));
        }
    }

    /// How the payload is written: the attribute `datacontenttype` where given, else what the content type said.
    pub(super) fn data_kind(&self, otherwise: Body) -> Result<Body, Rejection> {
        let Some(text) = self.get("datacontenttype") else { return Ok(otherwise) };
        match MediaType::parse(Some(&**text))? {
            MediaType::Payload(body) => Ok(body),
            MediaType::Structured => Err(Rejection::decode(
                "unsupported_content_type",
                "datacontenttype names the payload's encoding; an event inside an event is not read",
            )),
        }
    }

    /// Judges every attribute and joins them with the payload.
    pub(super) fn into_envelope(mut self, format: Format, data: Bytes) -> Result<Envelope, Rejection> {
        if let Some(version) = self.get("specversion").filter(|v| *v != "1.0") {
            let text = format!("CloudEvents specversion {} is not read; send 1.0", shown(version));
            return Err(Rejection::decode("unsupported_specversion", text));
        }
        let id = self.take("id")?.ok_or_else(|| {
            Rejection::decode("missing_id", "the event has no id; set the attribute `id` or the property message_id")
        })?;
        let event_type = self.take("type")?.ok_or_else(|| {
            Rejection::decode("missing_type", "the event has no type; set the attribute `type` or the property type")
        })?;
        let subject = self.take("subject")?;
        let partition_key = self.take("partitionkey")?.or_else(|| subject.clone()).unwrap_or_else(|| id.clone());
        Ok(Envelope {
            source: self.take("source")?.unwrap_or_default(),
            time: self.take("time")?.map(|t| parse_time(&t)).transpose()?,
            tenant: self.take("tenant")?.unwrap_or_else(|| DEFAULT_TENANT.to_owned()),
            trace: Trace {
                // A broken trace context is ignored, as W3C asks: it must not stop the event.
                traceparent: self.take("traceparent").unwrap_or(None),
                correlation_id: self.take("correlationid")?,
                causation_id: self.take("causationid")?,
            },
            id,
            event_type,
            subject,
            partition_key,
            format,
            data,
        })
    }

    fn take(&mut self, name: &'static str) -> Result<Option<String>, Rejection> {
        let place = self.0.iter().position(|(known, _)| *known == name);
        match place.map(|place| self.0.swap_remove(place).1) {
            Some(text) if is_clean(name, &text) => Ok(Some(text.into_owned())),
            Some(_) => {
                let most = cap(name);
                let text = format!("attribute `{name}` is longer than {most} bytes or has control characters");
                Err(Rejection::decode("invalid_attribute", text))
            }
            None => Ok(None),
        }
    }
}

/// Whether a text may stand as this attribute: short enough for keys and properties, and printable.
pub(super) fn is_clean(name: &str, text: &str) -> bool {
    text.len() <= cap(name) && !text.chars().any(char::is_control)
}

fn cap(name: &str) -> usize {
    if name == "source" { MAX_SOURCE_BYTES } else { MAX_BYTES }
}

/// The attribute that a header stands for.
pub(super) fn known_name(header: &str) -> Option<&'static str> {
    let (prefix, name) = header.split_at_checked(PREFIX_BYTES)?;
    PREFIXES.iter().find(|known| known.eq_ignore_ascii_case(prefix))?;
    KNOWN.into_iter().find(|known| known.eq_ignore_ascii_case(name))
}

/// Text of a header's value; numbers and truth values as they would be written.
pub(super) fn scalar_text<'v>(name: &str, value: Seen<'v>) -> Result<Cow<'v, str>, Rejection> {
    match value {
        Seen::Text(text) => Ok(text.into()),
        Seen::Other(Value::Null) => Ok(Cow::default()),
        Seen::Other(Value::String(text)) => Ok(text.into()),
        Seen::Other(Value::Number(number)) => Ok(number.to_string().into()),
        Seen::Other(Value::Bool(flag)) => Ok(flag.to_string().into()),
        Seen::Other(Value::Array(_) | Value::Object(_)) => {
            Err(Rejection::decode("invalid_attribute", format!("attribute `{name}` is a list or table; send text")))
        }
    }
}

fn property_time(seconds: Option<u64>) -> Result<Option<String>, Rejection> {
    let Some(seconds) = seconds else { return Ok(None) };
    let time = i64::try_from(seconds).ok().and_then(|s| Timestamp::from_second(s).ok());
    match time {
        Some(time) => Ok(Some(time.to_string())),
        None => Err(Rejection::decode(
            "invalid_time",
            "the AMQP property timestamp is out of range; it counts seconds, not milliseconds",
        )),
    }
}

fn parse_time(text: &str) -> Result<Timestamp, Rejection> {
    text.parse().map_err(|_| {
        let text = format!("attribute `time` is {}; write it as in 2026-01-31T08:00:00Z (RFC 3339)", shown(text));
        Rejection::decode("invalid_time", text)
    })
}

fn conflict(name: &str) -> Rejection {
    let code = if name == "id" { "conflicting_id" } else { "conflicting_attribute" };
    Rejection::decode(code, format!("the message gives attribute `{name}` twice, with different texts; send it once"))
}

fn filled(property: &Option<String>) -> Option<&String> {
    property.as_ref().filter(|t| !t.is_empty())
}

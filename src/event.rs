//! The event as every layer sees it: a CloudEvents 1.0 envelope with its payload. Pure values, no I/O.

use std::fmt;

use bytes::Bytes;
use jiff::Timestamp;
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Tenant of an event that names none.
pub const DEFAULT_TENANT: &str = "default";

/// Deepest nesting of a protobuf payload: the decoder's own limit, which is never switched off.
pub const MAX_PROTOBUF_DEPTH: u32 = 100;

/// One change event, decoded from the wire but not yet understood by a domain.
#[derive(Clone, PartialEq)]
pub struct Envelope {
    /// CloudEvents `id`; with [`source`](Self::source) the identity of the event.
    pub id: String,
    /// CloudEvents `source`; empty for a plain AMQP producer that names none.
    pub source: String,
    /// CloudEvents `type`, e.g. `org.user.upserted.v1`.
    pub event_type: String,
    /// CloudEvents `subject`: the entity, e.g. `user/42`.
    pub subject: Option<String>,
    /// Ordering key: `partitionkey`, else the subject, else the id.
    pub partition_key: String,
    /// When it happened at the source.
    pub time: Option<Timestamp>,
    /// Whose data it is.
    pub tenant: String,
    /// Carried through to every downstream event.
    pub trace: Trace,
    /// How [`data`](Self::data) is encoded.
    pub format: Format,
    /// The payload, undecoded.
    pub data: Bytes,
}

/// The attributes that tie an event to its causes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// Groups the events of one business case.
    pub correlation_id: Option<String>,
    /// The id of the event that caused this one.
    pub causation_id: Option<String>,
}

/// Encoding of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `application/json`, canonical protobuf JSON mapping.
    Json,
    /// `application/protobuf`.
    Protobuf,
}

impl Format {
    /// The content type of a payload in this encoding.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf => "application/protobuf",
        }
    }
}

/// Why an event can never be applied as it is. The code is stable, the message is for people and holds no personal data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Rejection {
    /// Where in its way the event failed.
    pub stage: Stage,
    /// Stable snake-case reason code, e.g. `invalid_phone`.
    pub code: &'static str,
    /// What, where, and what to do.
    pub message: String,
}

/// The step of an event's way that refused it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The envelope or the payload can't be read.
    Decode,
    /// The payload breaks a rule of its own, whatever the database holds.
    Validate,
    /// The consumer refused it in the light of what is stored.
    Handle,
    /// The database refused it for good.
    Database,
    /// It failed in a passing way too often.
    Exhausted,
    /// The broker gave up on it.
    Broker,
}

impl Stage {
    /// The stable name, as stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Validate => "validate",
            Self::Handle => "handle",
            Self::Database => "database",
            Self::Exhausted => "exhausted",
            Self::Broker => "broker",
        }
    }
}

impl Rejection {
    /// The payload can't be read.
    pub fn decode(code: &'static str, message: impl Into<String>) -> Self {
        Self { stage: Stage::Decode, code, message: message.into() }
    }

    /// `what` is not the JSON that was expected. Tells the place and what belongs there, never what stands there: the
    /// parser's own message may quote the payload, and with it a phone number.
    pub fn json(what: &str, error: &serde_json::Error) -> Self {
        let text = error.to_string();
        let wanted = match text.rsplit_once(", expected ") {
            // The only messages that quote; what follows the last `expected` is the schema's own text.
            Some((_, wanted)) if ["invalid ", "unknown "].iter().any(|p| text.starts_with(p)) => {
                format!("expected {wanted}")
            }
            None if error.is_syntax() || error.is_eof() || text.starts_with("missing field") => text,
            None if text.starts_with("duplicate field") => text,
            _ => format!("a value does not fit at line {} column {}", error.line(), error.column()),
        };
        Self::decode("invalid_json", format!("{what}: {wanted}"))
    }

    fn protobuf(what: &str, error: &prost::DecodeError) -> Self {
        const LONGEST: usize = 300;
        let text = error.to_string();
        // The library keeps the kind to itself; a test holds this text.
        if text.ends_with("recursion limit reached") {
            let text = format!("{what} is nested deeper than {MAX_PROTOBUF_DEPTH} levels");
            return Self::decode("protobuf_too_deep", text);
        }
        // It names messages and fields, one for each level, and quotes no value.
        Self::decode("invalid_protobuf", format!("{what}: {}", &text[..text.floor_char_boundary(LONGEST)]))
    }

    /// The payload breaks a rule of its own.
    pub fn invalid(code: &'static str, message: impl Into<String>) -> Self {
        Self { stage: Stage::Validate, code, message: message.into() }
    }

    /// What is stored forbids it.
    pub fn refused(code: &'static str, message: impl Into<String>) -> Self {
        Self { stage: Stage::Handle, code, message: message.into() }
    }
}

/// Without the payload, which may hold personal data.
impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Envelope")
            .field("id", &self.id)
            .field("source", &self.source)
            .field("event_type", &self.event_type)
            .field("tenant", &self.tenant)
            .field("format", &self.format)
            .field("bytes", &self.data.len())
            .finish_non_exhaustive()
    }
}

impl Envelope {
    /// Decodes the payload into its protobuf message, from either encoding.
    ///
    /// # Errors
    /// A decode rejection that names the format and the place, without the payload's text.
    pub fn payload<M: Message + Default + DeserializeOwned>(&self) -> Result<M, Rejection> {
        let what = format!("the payload of {}", self.event_type);
        match self.format {
            Format::Json => serde_json::from_slice(&self.data).map_err(|e| Rejection::json(&what, &e)),
            Format::Protobuf => M::decode(self.data.clone()).map_err(|e| Rejection::protobuf(&what, &e)),
        }
    }
}

/// An event that a consumer publishes into the running transaction. It inherits tenant and trace of its cause.
#[derive(Debug, Clone, PartialEq)]
pub struct Downstream {
    /// Event type, e.g. `org.user.changed.v1`.
    pub event_type: &'static str,
    /// Kind of the entity it tells of, e.g. `user`.
    pub aggregate_type: &'static str,
    /// Id of the entity.
    pub aggregate_id: String,
    /// Ordering key; the aggregate's id where `None`.
    pub partition_key: Option<String>,
    /// The payload in the canonical protobuf JSON mapping.
    pub payload: String,
}

impl Downstream {
    /// Describes a change of one entity; `message` is the event type's protobuf message.
    ///
    /// # Errors
    /// When the message can't be written as JSON, e.g. a timestamp out of range.
    pub fn new(
        event_type: &'static str,
        aggregate_type: &'static str,
        aggregate_id: impl Into<String>,
        message: &impl Serialize,
    ) -> Result<Self, Rejection> {
        let payload = serde_json::to_string(message)
            .map_err(|e| Rejection::refused("unencodable_downstream", format!("{event_type}: {e}")))?;
        Ok(Self { event_type, aggregate_type, aggregate_id: aggregate_id.into(), partition_key: None, payload })
    }

    /// Sets the ordering key.
    #[must_use]
    pub fn ordered_by(mut self, key: impl Into<String>) -> Self {
        self.partition_key = Some(key.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use pbjson_types::{Struct, Timestamp, Value};

    use super::{Envelope, Format, Trace};

    fn envelope(format: Format, data: impl Into<Bytes>) -> Envelope {
        Envelope {
            id: "1".into(),
            source: String::new(),
            event_type: "a.b.v1".into(),
            subject: None,
            partition_key: "1".into(),
            time: None,
            tenant: "default".into(),
            trace: Trace::default(),
            format,
            data: data.into(),
        }
    }

    /// `levels` messages, each the only field of the one around it.
    fn nested_struct_value(levels: usize) -> Vec<u8> {
        use prost::Message as _;
        let mut bytes = Vec::new();
        for _ in 0..levels {
            // Value.list_value (6) of ListValue.values (1), in turn.
            let list = prost_bytes(1, &bytes);
            bytes = prost_bytes(6, &list);
        }
        assert!(levels > 20 || Value::decode(bytes.as_slice()).is_ok());
        bytes
    }

    fn prost_bytes(tag: u32, inner: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        prost::encoding::bytes::encode(tag, &inner.to_vec(), &mut out);
        out
    }

    #[test]
    fn e06_protobuf_deeper_than_the_limit_is_rejected_with_a_short_reason() {
        let shallow = envelope(Format::Protobuf, nested_struct_value(10));
        assert!(shallow.payload::<Value>().is_ok());
        let rejection = envelope(Format::Protobuf, nested_struct_value(200)).payload::<Value>().unwrap_err();
        assert_eq!(rejection.code, "protobuf_too_deep");
        assert!(rejection.message.len() < 200);
    }

    #[test]
    fn e05_broken_protobuf_is_rejected_with_a_short_reason() {
        let rejection = envelope(Format::Protobuf, &[0xff; 40][..]).payload::<Struct>().unwrap_err();
        assert_eq!(rejection.code, "invalid_protobuf");
        assert!(rejection.message.len() < 400);
    }

    #[test]
    fn a_json_rejection_never_quotes_the_payload() {
        for json in
            ["\"13812345678\"", "{\"a\": 13812345678", "13812345678", "[13812345678, 1, 1]", "{\"13812345678\"}"]
        {
            let rejection = envelope(Format::Json, json).payload::<Timestamp>().unwrap_err();
            assert_eq!(rejection.code, "invalid_json");
            assert!(!rejection.message.contains("13812345678"), "{}", rejection.message);
        }
    }
}

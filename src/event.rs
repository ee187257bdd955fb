//! The event as every layer sees it: a CloudEvents 1.0 envelope with its payload. Pure values, no I/O.

use bytes::Bytes;
use jiff::Timestamp;
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Tenant of an event that names none.
pub const DEFAULT_TENANT: &str = "default";

/// One change event, decoded from the wire but not yet understood by a domain.
#[derive(Debug, Clone, PartialEq)]
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

    /// The payload breaks a rule of its own.
    pub fn invalid(code: &'static str, message: impl Into<String>) -> Self {
        Self { stage: Stage::Validate, code, message: message.into() }
    }

    /// What is stored forbids it.
    pub fn refused(code: &'static str, message: impl Into<String>) -> Self {
        Self { stage: Stage::Handle, code, message: message.into() }
    }
}

impl Envelope {
    /// Decodes the payload into its protobuf message, from either encoding.
    ///
    /// # Errors
    /// A decode rejection that names the format and the place, without the payload's text.
    pub fn payload<M: Message + Default + DeserializeOwned>(&self) -> Result<M, Rejection> {
        match self.format {
            Format::Json => serde_json::from_slice(&self.data)
                .map_err(|e| Rejection::decode("invalid_json", format!("payload of {}: {e}", self.event_type))),
            Format::Protobuf => M::decode(self.data.clone())
                .map_err(|e| Rejection::decode("invalid_protobuf", format!("payload of {}: {e}", self.event_type))),
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

//! The contract on the wire: CloudEvents 1.0 in AMQP messages, read into envelopes and written from them.
//!
//! Three forms are read: *structured* (`application/cloudevents+json`), *binary* (headers `cloudEvents:` or
//! `cloudEvents_`), and the plain message with only `message_id`, `type` and a JSON body. One form is written: binary.
//! Whatever arrives ends as an envelope or as a [`Rejection`] with a stable code; nothing here panics, and what a cap
//! forbids is refused before anything is decoded.

mod attributes;
mod encode;
mod headers;
mod json_scan;
mod media_type;
mod structured;
mod unreadable;

use bytes::Bytes;

use crate::event::{Envelope, Format, Rejection};
use crate::message::Message;
use attributes::Attributes;
use media_type::{Body, MediaType};

pub use encode::{Parts, downstream_message};
pub use headers::{sanitize_headers, text_without_nul};
pub use unreadable::{attribute_of_unreadable, identity_of_unreadable};

/// How much a producer may send. Nesting of protobuf has its own, fixed limit:
/// [`MAX_PROTOBUF_DEPTH`](crate::event::MAX_PROTOBUF_DEPTH).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest body in bytes.
    pub max_body_bytes: usize,
    /// Deepest nesting of a JSON payload; the envelope of the structured form is not counted.
    pub max_json_depth: usize,
    /// Most values, keys included, of one JSON body: a body of brackets costs many times its size once decoded.
    pub max_json_nodes: usize,
    /// Most application headers, the broker's own included.
    pub max_headers: usize,
    /// Largest sum of header names and values in bytes.
    pub max_header_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body_bytes: 1024 * 1024,
            max_json_depth: 64,
            max_json_nodes: 200_000,
            max_headers: 64,
            max_header_bytes: 32 * 1024,
        }
    }
}

/// Whether the attributes of a message stand in its body.
pub fn is_structured(message: &Message) -> bool {
    MediaType::parse(message.content_type.as_deref()) == Ok(MediaType::Structured)
}

/// The CloudEvents attribute that a header stands for, of those that have a meaning here.
pub fn attribute_of_header(name: &str) -> Option<&'static str> {
    attributes::known_name(name)
}

/// Reads a message in any of the accepted forms. The payload itself stays undecoded.
///
/// # Errors
/// A decode rejection: too large, too deep, of an unknown kind, or without a usable identity.
pub fn decode(message: &Message, limits: &Limits) -> Result<Envelope, Rejection> {
    check_size(message, limits)?;
    media_type::check_encoding(message.content_encoding.as_deref())?;
    match MediaType::parse(message.content_type.as_deref())? {
        MediaType::Structured => {
            let (attributes, format, data) = structured::read(message, limits)?;
            attributes.into_envelope(format, data)
        }
        MediaType::Payload(body) => {
            let attributes = Attributes::of_message(message)?;
            let format = checked_format(attributes.data_kind(body)?, &message.body, limits)?;
            attributes.into_envelope(format, message.body.clone())
        }
    }
}

fn check_size(message: &Message, limits: &Limits) -> Result<(), Rejection> {
    if message.body.is_empty() {
        return Err(Rejection::decode("empty_body", "the message has no body; send the payload as JSON or protobuf"));
    }
    if message.body.len() > limits.max_body_bytes {
        let text = format!("the body has {} bytes, {} are allowed", message.body.len(), limits.max_body_bytes);
        return Err(Rejection::decode("body_too_large", text));
    }
    if message.headers.len() > limits.max_headers {
        let text = format!("the message has {} headers, {} are allowed", message.headers.len(), limits.max_headers);
        return Err(Rejection::decode("too_many_headers", text));
    }
    if headers::exceed(&message.headers, limits.max_header_bytes) {
        let text = format!("the headers exceed {} bytes or are nested too deeply", limits.max_header_bytes);
        return Err(Rejection::decode("headers_too_large", text));
    }
    Ok(())
}

/// Checks what can be checked of a payload without knowing its schema.
fn checked_format(body: Body, data: &Bytes, limits: &Limits) -> Result<Format, Rejection> {
    if body == Body::Protobuf {
        return Ok(Format::Protobuf);
    }
    check_utf8(data)?;
    json_scan::check(data, limits.max_json_depth, limits.max_json_nodes)?;
    Ok(Format::Json)
}

fn check_utf8(data: &[u8]) -> Result<&str, Rejection> {
    std::str::from_utf8(data).map_err(|e| {
        Rejection::decode("invalid_utf8", format!("JSON is UTF-8; the body breaks it at byte {}", e.valid_up_to()))
    })
}

#[cfg(test)]
mod tests;

//! Content type and content encoding: which form a message has.

use crate::event::Rejection;

/// What the body of a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MediaType {
    /// The whole event as JSON.
    Structured,
    /// Only the payload; the attributes are headers and properties.
    Payload(Body),
}

/// How a payload is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    Json,
    Protobuf,
}

impl MediaType {
    /// Reads a content type; a missing one means JSON.
    pub(super) fn parse(content_type: Option<&str>) -> Result<Self, Rejection> {
        let text = content_type.unwrap_or_default();
        let (name, parameters) = text.split_once(';').unwrap_or((text, ""));
        check_charset(parameters)?;
        match name.trim().to_ascii_lowercase().as_str() {
            "application/cloudevents+json" => Ok(Self::Structured),
            "application/cloudevents-batch+json" => Err(unsupported(text, "send each event as a message of its own")),
            "" | "application/json" | "text/json" => Ok(Self::Payload(Body::Json)),
            "application/protobuf" | "application/x-protobuf" | "application/vnd.google.protobuf" => {
                Ok(Self::Payload(Body::Protobuf))
            }
            other if other.starts_with("application/") && other.ends_with("+json") => Ok(Self::Payload(Body::Json)),
            _ => Err(unsupported(text, "use application/json, application/protobuf or application/cloudevents+json")),
        }
    }
}

/// Refuses compressed bodies: their size is only known once they are unpacked.
///
/// Some clients always write the charset here, which says nothing new.
pub(super) fn check_encoding(encoding: Option<&str>) -> Result<(), Rejection> {
    let name = encoding.unwrap_or_default().trim().to_ascii_lowercase();
    match name.as_str() {
        "" | "identity" | "utf-8" | "utf8" => Ok(()),
        _ => {
            let text = format!("content encoding {} is not accepted; send the body as it is", shown(&name));
            Err(Rejection::decode("unsupported_content_encoding", text))
        }
    }
}

fn check_charset(parameters: &str) -> Result<(), Rejection> {
    for (name, value) in parameters.split(';').filter_map(|p| p.split_once('=')) {
        let value = value.trim().trim_matches('"').to_ascii_lowercase();
        if name.trim().eq_ignore_ascii_case("charset") && !matches!(value.as_str(), "utf-8" | "utf8" | "us-ascii") {
            return Err(unsupported(&value, "only the charset UTF-8 is read"));
        }
    }
    Ok(())
}

fn unsupported(what: &str, remedy: &str) -> Rejection {
    Rejection::decode("unsupported_content_type", format!("content type {} is not accepted; {remedy}", shown(what)))
}

/// A producer's text, quoted and cut, for a message to people.
pub(super) fn shown(text: &str) -> String {
    const LONGEST: usize = 80;
    format!("{:?}", text.chars().take(LONGEST).collect::<String>())
}

//! The structured form: the whole event as one JSON object.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::attributes::Attributes;
use super::media_type::Body;
use super::{Limits, check_utf8, checked_format, json_scan};
use crate::event::{Format, Rejection};
use crate::message::Message;

/// Producers differ about the padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Raw values, so that numbers keep their digits and the payload keeps its bytes. A key that comes twice is an error.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, default)]
    specversion: Option<&'a RawValue>,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    source: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "type")]
    event_type: Option<&'a RawValue>,
    #[serde(borrow, default)]
    subject: Option<&'a RawValue>,
    #[serde(borrow, default)]
    time: Option<&'a RawValue>,
    #[serde(borrow, default)]
    datacontenttype: Option<&'a RawValue>,
    #[serde(borrow, default)]
    partitionkey: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tenant: Option<&'a RawValue>,
    #[serde(borrow, default)]
    traceparent: Option<&'a RawValue>,
    #[serde(borrow, default)]
    correlationid: Option<&'a RawValue>,
    #[serde(borrow, default)]
    causationid: Option<&'a RawValue>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    data_base64: Option<&'a RawValue>,
}

/// Reads attributes and payload from the body. Headers and properties have no say in this form.
pub(super) fn read(message: &Message, limits: &Limits) -> Result<(Attributes<'static>, Format, Bytes), Rejection> {
    let text = check_utf8(&message.body)?;
    // One level more: the envelope around the payload.
    json_scan::check(text.as_bytes(), limits.max_json_depth + 1, limits.max_json_nodes)?;
    let event: Event<'_> = serde_json::from_str(text).map_err(|e| Rejection::json("the CloudEvent", &e))?;
    let attributes = event.attributes()?;
    let (format, data) = event.payload(&attributes, message, limits)?;
    Ok((attributes, format, data))
}

impl Event<'_> {
    fn attributes(&self) -> Result<Attributes<'static>, Rejection> {
        let given = [
            ("specversion", self.specversion),
            ("id", self.id),
            ("source", self.source),
            ("type", self.event_type),
            ("subject", self.subject),
            ("time", self.time),
            ("datacontenttype", self.datacontenttype),
            ("partitionkey", self.partitionkey),
            ("tenant", self.tenant),
            ("traceparent", self.traceparent),
            ("correlationid", self.correlationid),
            ("causationid", self.causationid),
        ];
        let mut attributes = Attributes::default();
        for (name, value) in given {
            if let Some(value) = value {
                attributes.add(name, raw_text(name, value)?.into())?;
            }
        }
        Ok(attributes)
    }

    fn payload(
        &self,
        attributes: &Attributes<'_>,
        message: &Message,
        limits: &Limits,
    ) -> Result<(Format, Bytes), Rejection> {
        let kind = attributes.data_kind(Body::Json)?;
        match (self.data, self.data_base64) {
            (Some(_), Some(_)) => {
                Err(Rejection::decode("conflicting_attribute", "the event has both `data` and `data_base64`"))
            }
            (None, None) => Err(Rejection::decode("empty_body", "the event has neither `data` nor `data_base64`")),
            (Some(_), None) if kind == Body::Protobuf => {
                Err(Rejection::decode("invalid_attribute", "a protobuf payload belongs into `data_base64`"))
            }
            (Some(data), None) => Ok((Format::Json, message.body.slice_ref(data.get().as_bytes()))),
            (None, Some(encoded)) => {
                let data = decode_base64(&raw_text("data_base64", encoded)?)?;
                Ok((checked_format(kind, &data, limits)?, data))
            }
        }
    }
}

/// A JSON string without its quotes; a number or truth value exactly as it was written.
fn raw_text(name: &str, value: &RawValue) -> Result<String, Rejection> {
    let raw = value.get();
    match raw.as_bytes().first() {
        Some(b'"') => serde_json::from_str(raw).map_err(|e| Rejection::json(&format!("attribute `{name}`"), &e)),
        Some(b'{' | b'[') => {
            Err(Rejection::decode("invalid_attribute", format!("attribute `{name}` is a list or table; send text")))
        }
        _ => Ok(raw.to_owned()),
    }
}

fn decode_base64(text: &str) -> Result<Bytes, Rejection> {
    let data = BASE64.decode(text).map_err(|_| Rejection::decode("invalid_base64", "`data_base64` is not base64"))?;
    if data.is_empty() {
        return Err(Rejection::decode("empty_body", "`data_base64` is empty"));
    }
    Ok(Bytes::from(data))
}

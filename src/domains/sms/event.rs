//! From the wire to a request: what can't be told apart or stored is refused here, everything else is judged later.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;

use super::phone::GivenPhone;
use super::proto::{MessageClass, SmsRequested};
use crate::event::{Envelope, Rejection};

/// Region of a national number whose request names none.
const DEFAULT_REGION: &str = "CN";
const MAX_ID_BYTES: usize = 128;
const MAX_TEMPLATE_ID_BYTES: usize = 64;

/// A request to send one message.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SmsRequest {
    pub(crate) id: String,
    pub(crate) phone: GivenPhone,
    /// `None` where the text can't be the id of any template.
    pub(crate) template_id: Option<String>,
    pub(crate) params: Params,
    pub(crate) class: Option<Class>,
    pub(crate) expires_at: Option<Timestamp>,
    pub(crate) signature: Option<String>,
}

/// Values of a template's parameters. They hold one-time passwords: `Debug` shows their number only.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct Params(BTreeMap<String, String>);

/// What a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Otp,
    Transactional,
    Marketing,
}

/// The wire form holds the number and the parameters in the clear.
impl fmt::Debug for SmsRequested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SmsRequested").field("request_id", &self.request_id).finish_non_exhaustive()
    }
}

impl SmsRequest {
    /// Reads the payload of `sms.requested.v1`.
    pub(crate) fn read(envelope: &Envelope) -> Result<Self, Rejection> {
        let wire: SmsRequested = envelope.payload()?;
        let region = if wire.region.is_empty() { DEFAULT_REGION } else { wire.region.as_str() };
        Ok(Self {
            phone: GivenPhone::read(&wire.phone, region),
            template_id: Some(wire.template_id).filter(|id| is_template_id(id)),
            params: Params(wire.params.into_iter().collect()),
            class: read_class(wire.class)?,
            expires_at: wire.expires_at.as_ref().map(read_time).transpose()?,
            signature: Some(wire.signature).filter(|s| !s.is_empty()),
            id: read_id(wire.request_id)?,
        })
    }
}

impl Params {
    pub(super) fn expose(&self) -> &BTreeMap<String, String> {
        &self.0
    }

    #[cfg(test)]
    pub(super) fn new<const N: usize>(pairs: [(&str, &str); N]) -> Self {
        Self(pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).into())
    }
}

impl fmt::Debug for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} params", self.0.len())
    }
}

impl Class {
    /// The name in the database.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Otp => "OTP",
            Self::Transactional => "TRANSACTIONAL",
            Self::Marketing => "MARKETING",
        }
    }

    /// The class with this name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::Otp, Self::Transactional, Self::Marketing].into_iter().find(|c| c.as_str() == name)
    }

    pub(crate) fn to_wire(self) -> MessageClass {
        match self {
            Self::Otp => MessageClass::Otp,
            Self::Transactional => MessageClass::Transactional,
            Self::Marketing => MessageClass::Marketing,
        }
    }
}

fn read_id(id: String) -> Result<String, Rejection> {
    if id.is_empty() {
        let text = "the request has no request_id; give each request one of its own and keep it when you send again";
        return Err(Rejection::invalid("missing_request_id", text));
    }
    if id.len() > MAX_ID_BYTES || id.chars().any(char::is_control) {
        let text = format!("request_id is longer than {MAX_ID_BYTES} bytes or has control characters");
        return Err(Rejection::invalid("invalid_request_id", text));
    }
    Ok(id)
}

fn read_class(number: i32) -> Result<Option<Class>, Rejection> {
    match MessageClass::try_from(number) {
        Ok(MessageClass::ClassUnspecified) => Ok(None),
        Ok(MessageClass::Otp) => Ok(Some(Class::Otp)),
        Ok(MessageClass::Transactional) => Ok(Some(Class::Transactional)),
        Ok(MessageClass::Marketing) => Ok(Some(Class::Marketing)),
        Err(_) => Err(Rejection::invalid("unknown_class", format!("class {number} is none; see MessageClass"))),
    }
}

fn read_time(time: &pbjson_types::Timestamp) -> Result<Timestamp, Rejection> {
    let in_order = (0..1_000_000_000).contains(&time.nanos);
    let read = Timestamp::new(time.seconds, time.nanos).ok().filter(|_| in_order);
    // PostgreSQL keeps microseconds; the fingerprint must not see more than is stored.
    let read = read.and_then(|t| Timestamp::from_microsecond(t.as_microsecond()).ok());
    read.ok_or_else(|| Rejection::invalid("invalid_expires_at", "expires_at is no time between the years 0 and 9999"))
}

fn is_template_id(text: &str) -> bool {
    text.len() <= MAX_TEMPLATE_ID_BYTES
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message as _;

    use super::{Class, SmsRequest};
    use crate::domains::sms::proto::SmsRequested;
    use crate::event::{Envelope, Format, Rejection, Trace};

    pub(crate) const SAMPLE: &str = include_str!("../../../samples/sms/requested.json");

    fn envelope(format: Format, data: Vec<u8>) -> Envelope {
        Envelope {
            id: "e-1".into(),
            source: "test".into(),
            event_type: "sms.requested.v1".into(),
            subject: None,
            partition_key: "e-1".into(),
            time: None,
            tenant: "default".into(),
            trace: Trace::default(),
            format,
            data: Bytes::from(data),
        }
    }

    fn read(json: &str) -> Result<SmsRequest, Rejection> {
        SmsRequest::read(&envelope(Format::Json, json.as_bytes().to_vec()))
    }

    #[test]
    fn the_sample_reads_the_same_as_json_and_as_protobuf() {
        let wire: SmsRequested = serde_json::from_str(SAMPLE).unwrap();
        let binary = SmsRequest::read(&envelope(Format::Protobuf, wire.encode_to_vec())).unwrap();
        assert_eq!(read(SAMPLE).unwrap(), binary);
        assert_eq!((binary.class, binary.params.expose().len()), (Some(Class::Otp), 2));
    }

    #[test]
    fn a_request_without_a_usable_id_is_a_dead_letter() {
        assert_eq!(read("{}").unwrap_err().code, "missing_request_id");
        assert_eq!(read(r#"{"requestId":"a\u0000"}"#).unwrap_err().code, "invalid_request_id");
        assert_eq!(read(r#"{"requestId":"1","class":"SPAM"}"#).unwrap_err().code, "invalid_json");
        assert_eq!(read(r#"{"requestId":"1","expiresAt":"soon"}"#).unwrap_err().code, "invalid_json");
        let odd = SmsRequested { request_id: "1".into(), class: 7, ..SmsRequested::default() };
        let rejection = SmsRequest::read(&envelope(Format::Protobuf, odd.encode_to_vec())).unwrap_err();
        assert_eq!(rejection.code, "unknown_class");
        let odd = SmsRequested {
            request_id: "1".into(),
            expires_at: Some(pbjson_types::Timestamp { seconds: i64::MAX, nanos: -1 }),
            ..SmsRequested::default()
        };
        let rejection = SmsRequest::read(&envelope(Format::Protobuf, odd.encode_to_vec())).unwrap_err();
        assert_eq!(rejection.code, "invalid_expires_at");
    }

    #[test]
    fn i9_no_debug_output_of_the_domain_shows_a_phone_number_or_a_password() {
        let wire: SmsRequested = serde_json::from_str(SAMPLE).unwrap();
        let envelope = envelope(Format::Json, SAMPLE.as_bytes().to_vec());
        let request = SmsRequest::read(&envelope).unwrap();
        for shown in [format!("{wire:?}"), format!("{request:?}"), format!("{envelope:?}"), format!("{request:#?}")] {
            assert!(!shown.contains("13800138000") && !shown.contains("482913"), "{shown}");
        }
        let broken = read(r#"{"requestId":"1","params":{"a":13812345678}}"#).unwrap_err();
        assert!(!format!("{broken:?}").contains("13812345678"), "{broken:?}");
    }
}

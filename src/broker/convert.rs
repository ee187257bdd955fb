//! Between the client's types and ours.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};
use serde_json::{Map, Value};

use super::error::BrokerError;
use crate::message::{Headers, Look, Message, Received, Seen};

/// Marks a message as to be written to disk.
const PERSISTENT: u8 = 2;
/// A table inside a table inside …: deeper ones are cut, they come from a hostile producer.
const MAX_TABLE_DEPTH: usize = 8;

/// Keeps the headers where the client has put them.
pub(super) fn message_from(properties: BasicProperties, body: Vec<u8>) -> Message {
    let text = |value: &Option<ShortString>| value.as_ref().map(|v| v.as_str().to_owned());
    Message {
        message_id: text(properties.message_id()),
        message_type: text(properties.kind()),
        content_type: text(properties.content_type()),
        content_encoding: text(properties.content_encoding()),
        correlation_id: text(properties.correlation_id()),
        timestamp: *properties.timestamp(),
        expiration: text(properties.expiration()),
        user_id: text(properties.user_id()),
        headers: if properties.headers().is_some() {
            Headers::received(Arc::new(HeadersOf(properties)))
        } else {
            Headers::new()
        },
        body: Bytes::from(body),
    }
}

/// The headers among a message's properties.
struct HeadersOf(BasicProperties);

impl Received for HeadersOf {
    fn count(&self) -> usize {
        self.0.headers().as_ref().map_or(0, |table| table.inner().len())
    }

    fn look(&self) -> Look<'_> {
        let pairs = self.0.headers().iter().flat_map(|table| table.inner());
        Box::new(pairs.map(|(name, value)| (name.as_str(), seen(value))))
    }
}

fn seen(value: &AMQPValue) -> Seen<'_> {
    let text = match value {
        AMQPValue::ShortString(text) => Some(text.as_str()),
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        AMQPValue::ByteArray(bytes) => std::str::from_utf8(bytes.as_slice()).ok(),
        _ => None,
    };
    text.map_or_else(|| Seen::Other(json_from(value, 0)), Seen::Text)
}

/// Takes everything but the body out of the message: nothing is copied. The broker refuses another user's name than `user`, so that of
/// who sent the message first is left out.
pub(super) fn properties_from(message: &mut Message, user: Option<&str>) -> Result<BasicProperties, BrokerError> {
    let short = |what, value: String| ShortString::try_new(value).map_err(|_| BrokerError::too_long(what));
    let mut properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
    if let Some(id) = message.message_id.take() {
        properties = properties.with_message_id(short("message id", id)?);
    }
    if let Some(kind) = message.message_type.take() {
        properties = properties.with_type(short("type", kind)?);
    }
    if let Some(content_type) = message.content_type.take() {
        properties = properties.with_content_type(short("content type", content_type)?);
    }
    if let Some(encoding) = message.content_encoding.take() {
        properties = properties.with_content_encoding(short("content encoding", encoding)?);
    }
    if let Some(id) = message.correlation_id.take() {
        properties = properties.with_correlation_id(short("correlation id", id)?);
    }
    if let Some(seconds) = message.timestamp {
        properties = properties.with_timestamp(seconds);
    }
    if let Some(expiration) = message.expiration.take() {
        properties = properties.with_expiration(short("expiration", expiration)?);
    }
    if let Some(user) = user {
        properties = properties.with_user_id(short("user name", user.to_owned())?);
    }
    if !message.headers.is_empty() {
        properties = properties.with_headers(table_from(std::mem::take(&mut message.headers))?);
    }
    Ok(properties)
}

fn json_from(value: &AMQPValue, depth: usize) -> Value {
    if depth > MAX_TABLE_DEPTH {
        return Value::Null;
    }
    match value {
        AMQPValue::Boolean(v) => Value::from(*v),
        AMQPValue::ShortShortInt(v) => Value::from(*v),
        AMQPValue::ShortShortUInt(v) => Value::from(*v),
        AMQPValue::ShortInt(v) => Value::from(*v),
        AMQPValue::ShortUInt(v) => Value::from(*v),
        AMQPValue::LongInt(v) => Value::from(*v),
        AMQPValue::LongUInt(v) => Value::from(*v),
        AMQPValue::LongLongInt(v) => Value::from(*v),
        AMQPValue::Timestamp(v) => Value::from(*v),
        AMQPValue::Float(v) => Value::from(*v),
        AMQPValue::Double(v) => Value::from(*v),
        AMQPValue::DecimalValue(v) => Value::from(f64::from(v.value) / 10f64.powi(i32::from(v.scale))),
        AMQPValue::ShortString(v) => Value::from(v.as_str()),
        AMQPValue::LongString(v) => text_or_base64(v.as_bytes()),
        AMQPValue::ByteArray(v) => text_or_base64(v.as_slice()),
        AMQPValue::FieldArray(v) => Value::Array(v.as_slice().iter().map(|i| json_from(i, depth + 1)).collect()),
        AMQPValue::FieldTable(v) => {
            let pairs = v.inner().iter().map(|(k, v)| (k.as_str().to_owned(), json_from(v, depth + 1)));
            Value::Object(pairs.collect::<Map<_, _>>())
        }
        AMQPValue::Void => Value::Null,
    }
}

fn text_or_base64(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => Value::from(text),
        Err(_) => Value::from(BASE64.encode(bytes)),
    }
}

fn table_from(headers: Headers) -> Result<FieldTable, BrokerError> {
    // In order already: the table is built in one go, without looking for each place.
    let mut pairs = Vec::with_capacity(headers.len());
    for (key, value) in headers {
        let key = ShortString::try_new(key).map_err(|_| BrokerError::too_long("header name"))?;
        pairs.push((key, amqp_from(value)));
    }
    Ok(FieldTable::from(BTreeMap::from_iter(pairs)))
}

fn amqp_from(value: Value) -> AMQPValue {
    match value {
        Value::Null => AMQPValue::Void,
        Value::Bool(v) => AMQPValue::Boolean(v),
        Value::Number(v) => match v.as_i64() {
            Some(integer) => AMQPValue::LongLongInt(integer),
            None => AMQPValue::Double(v.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(v) => AMQPValue::LongString(v.into_bytes().into()),
        Value::Array(v) => AMQPValue::FieldArray(FieldArray::from(v.into_iter().map(amqp_from).collect::<Vec<_>>())),
        Value::Object(v) => {
            let mut table = FieldTable::default();
            for (key, value) in v {
                if let Ok(key) = ShortString::try_new(key) {
                    table.insert(key, amqp_from(value));
                }
            }
            AMQPValue::FieldTable(table)
        }
    }
}

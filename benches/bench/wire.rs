//! The payloads that the bench sends and the hand-made contenders read, in both encodings. The field numbers are those of `proto/`.

use std::collections::HashMap;

use bytes::Bytes;
use lapin::types::{AMQPValue, FieldTable};
use prost::Message;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// `org.user.upserted.v1`
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct UserUpserted {
    #[prost(string, tag = "1")]
    pub(crate) directory: String,
    #[prost(string, tag = "2")]
    pub(crate) id: String,
    #[prost(int64, tag = "3")]
    #[serde(with = "int64")]
    pub(crate) version: i64,
    #[prost(string, tag = "4")]
    pub(crate) name: String,
    #[prost(string, tag = "5")]
    pub(crate) email: String,
    #[prost(string, tag = "6")]
    pub(crate) title: String,
    #[prost(string, tag = "7")]
    pub(crate) employee_number: String,
    #[prost(bool, tag = "8")]
    pub(crate) suspended: bool,
}

/// `order.placed.v1`
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct OrderPlaced {
    #[prost(string, tag = "1")]
    pub(crate) order_no: String,
    #[prost(string, tag = "2")]
    pub(crate) merchant_id: String,
    #[prost(string, tag = "3")]
    pub(crate) currency: String,
    #[prost(message, repeated, tag = "4")]
    pub(crate) lines: Vec<OrderLine>,
    #[prost(int64, tag = "5")]
    #[serde(with = "int64")]
    pub(crate) total: i64,
}

/// One position of an order.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct OrderLine {
    #[prost(string, tag = "1")]
    pub(crate) sku: String,
    #[prost(int64, tag = "2")]
    #[serde(with = "int64")]
    pub(crate) quantity: i64,
    #[prost(int64, tag = "3")]
    #[serde(with = "int64")]
    pub(crate) unit_price: i64,
}

/// `payment.callback.received.v1`; the bench sends only successes.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct CallbackReceived {
    #[prost(string, tag = "1")]
    pub(crate) provider: String,
    #[prost(string, tag = "2")]
    pub(crate) notify_id: String,
    #[prost(string, tag = "3")]
    pub(crate) transaction_id: String,
    #[prost(string, tag = "4")]
    pub(crate) order_no: String,
    #[prost(string, tag = "5")]
    pub(crate) merchant_id: String,
    #[prost(int64, tag = "6")]
    #[serde(with = "int64")]
    pub(crate) amount: i64,
    #[prost(string, tag = "7")]
    pub(crate) currency: String,
    #[prost(int32, tag = "8")]
    #[serde(with = "success")]
    pub(crate) status: i32,
    #[prost(message, optional, tag = "9")]
    pub(crate) paid_at: Option<pbjson_types::Timestamp>,
}

/// `sms.requested.v1`; the bench sends only one-time passwords.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct SmsRequested {
    #[prost(string, tag = "1")]
    pub(crate) request_id: String,
    #[prost(string, tag = "2")]
    pub(crate) phone: String,
    #[prost(string, tag = "4")]
    pub(crate) template_id: String,
    #[prost(map = "string, string", tag = "5")]
    pub(crate) params: HashMap<String, String>,
    #[prost(message, optional, tag = "7")]
    pub(crate) expires_at: Option<pbjson_types::Timestamp>,
}

/// The attributes of a binary CloudEvent, and its payload.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) id: String,
    pub(crate) source: String,
    pub(crate) event_type: String,
    pub(crate) tenant: String,
    pub(crate) time: Option<jiff::Timestamp>,
    pub(crate) protobuf: bool,
    pub(crate) data: Bytes,
}

impl Event {
    /// Reads the attributes of a delivery.
    pub(crate) fn read(delivery: &mut lapin::message::Delivery) -> anyhow::Result<Self> {
        let data = std::mem::take(&mut delivery.data);
        let headers = delivery.properties.headers().as_ref();
        let text = |name: &str| headers.and_then(|table| text(table, name)).map(str::to_owned);
        let needed = |name: &'static str| text(name).ok_or_else(|| anyhow::anyhow!("an event without {name}"));
        Ok(Self {
            id: needed("cloudEvents:id")?,
            source: needed("cloudEvents:source")?,
            event_type: needed("cloudEvents:type")?,
            tenant: text("cloudEvents:tenant").unwrap_or_else(|| "default".to_owned()),
            time: text("cloudEvents:time").map(|time| time.parse()).transpose()?,
            protobuf: delivery.properties.content_type().as_ref().is_some_and(|t| t.as_str() == "application/protobuf"),
            data: data.into(),
        })
    }

    /// Decodes the payload from either encoding.
    pub(crate) fn payload<M: Message + Default + DeserializeOwned>(&self) -> anyhow::Result<M> {
        if self.protobuf { Ok(M::decode(self.data.clone())?) } else { Ok(serde_json::from_slice(&self.data)?) }
    }

    /// The same fingerprint as the product's inbox: SHA-256 of type and payload.
    pub(crate) fn fingerprint(&self) -> Vec<u8> {
        let mut hash = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        hash.update(self.event_type.as_bytes());
        hash.update(&[0]);
        hash.update(&self.data);
        hash.finish().as_ref().to_vec()
    }
}

/// Text of one header.
pub(crate) fn text<'a>(table: &'a FieldTable, name: &str) -> Option<&'a str> {
    match table.inner().get(name)? {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str()),
        _ => None,
    }
}

/// A table of text headers.
pub(crate) fn table<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in pairs {
        table.insert(name.into(), AMQPValue::LongString(value.as_bytes().to_vec().into()));
    }
    table
}

/// 64-bit numbers are text in the canonical mapping; plain numbers are accepted.
pub(crate) mod int64 {
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(i64),
        Text(String),
    }

    pub(crate) fn serialize<S: Serializer>(number: &i64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(number)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
        match Either::deserialize(from)? {
            Either::Number(number) => Ok(number),
            Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// The one payment status that the bench uses.
mod success {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) const NUMBER: i32 = 2;
    const NAME: &str = "PAYMENT_STATUS_SUCCESS";

    pub(super) fn serialize<S: Serializer>(_: &i32, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(NAME)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<i32, D::Error> {
        match String::deserialize(from)?.as_str() {
            NAME => Ok(NUMBER),
            other => Err(serde::de::Error::custom(format!("{other} is not what the bench sends"))),
        }
    }
}

/// `PAYMENT_STATUS_SUCCESS`
pub(crate) const SUCCESS: i32 = success::NUMBER;

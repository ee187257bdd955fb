//! A message as it lies on the broker, without any client library's types. Pure values, no I/O.

use std::collections::BTreeMap;

use bytes::Bytes;

/// Headers in a neutral form, ready to be stored as JSON. Binary values are base64 text.
pub type Headers = BTreeMap<String, serde_json::Value>;

/// What a producer sent: AMQP properties, headers and body.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Message {
    /// AMQP `message-id`.
    pub message_id: Option<String>,
    /// AMQP `type`.
    pub message_type: Option<String>,
    /// AMQP `content-type`.
    pub content_type: Option<String>,
    /// AMQP `content-encoding`.
    pub content_encoding: Option<String>,
    /// AMQP `correlation-id`.
    pub correlation_id: Option<String>,
    /// AMQP `timestamp`, seconds since the epoch.
    pub timestamp: Option<u64>,
    /// AMQP `expiration`: milliseconds as text.
    pub expiration: Option<String>,
    /// Application headers, the broker's `x-` ones included.
    pub headers: Headers,
    /// The payload.
    pub body: Bytes,
}

/// Where a message was published to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Exchange; empty for the default exchange.
    pub exchange: String,
    /// Routing key.
    pub routing_key: String,
}

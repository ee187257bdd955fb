//! A message as it lies on the broker, without any client library's types. Pure values, no I/O.

mod headers;

use std::fmt;

use bytes::Bytes;

pub use headers::{HeaderMap, Headers, Look, Received, Seen};

/// What a producer sent: AMQP properties, headers and body.
#[derive(Clone, Default, PartialEq)]
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
    /// AMQP `user-id` of a message that came: who sent it, as the broker has checked. What we send says who we are.
    pub user_id: Option<String>,
    /// Application headers, the broker's `x-` ones included.
    pub headers: Headers,
    /// The payload.
    pub body: Bytes,
}

/// Without body and header values, which may hold personal data.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("message_id", &self.message_id)
            .field("message_type", &self.message_type)
            .field("content_type", &self.content_type)
            .field("headers", &self.headers)
            .field("bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// Where a message was published to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Route {
    /// Exchange; empty for the default exchange.
    pub exchange: String,
    /// Routing key.
    pub routing_key: String,
}

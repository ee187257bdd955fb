//! From rows to messages.

use bytes::Bytes;
use serde_json::Value;

use super::row::{Pending, RowHeaders};
use crate::broker::Outgoing;
use crate::message::{Headers, Message, Route};

/// Of an event that is published.
const USUAL_HEADERS: usize = 12;

/// A row with a route of its own is published exactly as it is stored; any other becomes a CloudEvent in the binary form. Its
/// headers go into the message.
pub(super) fn outgoing(row: &mut Pending, egress: &str) -> Outgoing {
    match (row.exchange.take(), row.routing_key.take()) {
        (Some(exchange), Some(routing_key)) => {
            Outgoing { route: Route { exchange, routing_key }, message: stored(row.headers.take(), row.body.clone()) }
        }
        _ => Outgoing {
            route: Route { exchange: egress.to_owned(), routing_key: row.event_type.clone() },
            message: cloud_event(row),
        },
    }
}

/// The message that is stored with these headers: keys `amqp:…` are properties, all others headers.
pub(crate) fn stored_message(headers: Value, body: Bytes) -> Message {
    stored(RowHeaders::Stored(headers), body)
}

fn stored(headers: RowHeaders, body: Bytes) -> Message {
    let mut message = Message { body, ..Message::default() };
    overlay(&mut message, Vec::new(), headers);
    message
}

fn cloud_event(row: &mut Pending) -> Message {
    let own = |name: &str, value: String| (name.to_owned(), Value::from(value));
    let tenant_prefix = row.tenant.len() + 1;
    let key = row.key.get(tenant_prefix..).unwrap_or_default();
    // By name, so that the map is built in one go.
    let mut headers = Vec::with_capacity(USUAL_HEADERS);
    headers.extend([
        own("cloudEvents:id", row.id.to_string()),
        own("cloudEvents:partitionkey", key.to_owned()),
        own("cloudEvents:source", "onceflow/outbox".to_owned()),
        own("cloudEvents:specversion", "1.0".to_owned()),
        own("cloudEvents:subject", [&row.aggregate_type, "/", &row.aggregate_id].concat()),
        own("cloudEvents:tenant", row.tenant.clone()),
        own("cloudEvents:time", row.created_at.to_string()),
        own("cloudEvents:type", row.event_type.clone()),
    ]);
    let mut message = Message {
        message_id: Some(row.id.to_string()),
        message_type: Some(row.event_type.clone()),
        content_type: Some(if row.is_json { "application/json" } else { "application/protobuf" }.to_owned()),
        timestamp: u64::try_from(row.created_at.as_second()).ok(),
        body: row.body.clone(),
        ..Message::default()
    };
    overlay(&mut message, headers, row.headers.take());
    if message.correlation_id.is_none() {
        let correlation = message.headers.get("cloudEvents:correlationid").and_then(Value::as_str);
        message.correlation_id = correlation.filter(|id| id.len() <= 255).map(str::to_owned);
    }
    message
}

/// Keys `amqp:…` are properties, all others headers; what is stored goes before what the row has of its own.
fn overlay(message: &mut Message, mut headers: Vec<(String, Value)>, stored: RowHeaders) {
    match stored {
        RowHeaders::Own(own) => {
            headers.extend(own.0.into_iter().map(|(name, value)| (name.to_owned(), Value::String(value))));
        }
        RowHeaders::Stored(Value::Object(stored)) => {
            for (key, value) in stored {
                match key.as_str() {
                    "amqp:message_id" => message.message_id = text(value),
                    "amqp:type" => message.message_type = text(value),
                    "amqp:content_type" => message.content_type = text(value),
                    "amqp:content_encoding" => message.content_encoding = text(value),
                    "amqp:correlation_id" => message.correlation_id = text(value),
                    "amqp:timestamp" => message.timestamp = value.as_u64(),
                    _ => headers.push((key, value)),
                }
            }
        }
        // No object: it says nothing.
        RowHeaders::Stored(_) => {}
    }
    // Of two with one name the later one stays.
    message.headers = Headers::from_iter(headers);
}

fn text(value: Value) -> Option<String> {
    if let Value::String(text) = value { Some(text) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::row::OwnHeaders;
    use crate::outbox::row::tests::pending;

    #[test]
    fn a_downstream_event_is_a_binary_cloud_event() {
        let outgoing = outgoing(&mut pending("a", 7), "onceflow.out");
        assert_eq!(outgoing.route.routing_key, "org.user.changed.v1");
        let header = |name: &str| outgoing.message.headers[&format!("cloudEvents:{name}")].as_str().unwrap().to_owned();
        assert_eq!([header("source"), header("subject"), header("partitionkey")], ["onceflow/org", "user/a", "a"]);
        assert_eq!(outgoing.message.message_id.as_deref(), Some(header("id").as_str()));
        assert_eq!(outgoing.message.correlation_id.as_deref(), Some("c1"));
    }

    #[test]
    fn a_row_that_was_handed_over_is_published_as_it_would_be_read_back() {
        let own =
            OwnHeaders(vec![("cloudEvents:correlationid", "c1".to_owned()), ("cloudEvents:source", "s".to_owned())]);
        let mut read = pending("a", 7);
        read.headers = RowHeaders::Stored(serde_json::to_value(&own).unwrap());
        let mut handed = pending("a", 7);
        handed.headers = RowHeaders::Own(own);
        let message = outgoing(&mut handed, "onceflow.out").message;
        assert_eq!(message, outgoing(&mut read, "onceflow.out").message);
        assert_eq!((message.headers.len(), &message.headers["cloudEvents:source"]), (9, &Value::from("s")));
    }

    #[test]
    fn a_replay_is_published_exactly_as_it_was_stored() {
        let mut replay = pending("a", 7);
        replay.exchange = Some(String::new());
        replay.routing_key = Some("onceflow.org".to_owned());
        replay.headers = RowHeaders::Stored(serde_json::json!({"amqp:message_id": "m1", "k": 1}));
        let outgoing = outgoing(&mut replay, "onceflow.out");
        assert_eq!((outgoing.route.exchange.as_str(), outgoing.route.routing_key.as_str()), ("", "onceflow.org"));
        assert_eq!(outgoing.message.message_id.as_deref(), Some("m1"));
        assert_eq!(outgoing.message.headers.keys().collect::<Vec<_>>(), ["k"]);
    }
}

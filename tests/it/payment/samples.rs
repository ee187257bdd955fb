//! The sample payloads that ship with the event types.

use bytes::Bytes;
use onceflow::event::{Envelope, Format};
use serde_json::Value;

use super::{CALLBACK, CANCEL, PLACED, consumer, direct, downstream, event, skipped, types};

#[tokio::test]
async fn every_sample_is_accepted_as_json_and_as_protobuf() {
    let consumer = consumer();
    assert_eq!(consumer.reads().len(), 3);
    for read in consumer.reads() {
        let json: Value = serde_json::from_str(read.sample).unwrap();
        let in_json = event(read.name, &json);
        let bytes = read.to_protobuf.unwrap()(read.sample).unwrap();
        let in_protobuf = Envelope { format: Format::Protobuf, data: Bytes::from(bytes), ..in_json.clone() };
        assert!(consumer.decode(&in_json).is_ok(), "{}", read.name);
        assert!(consumer.decode(&in_protobuf).is_ok(), "{}", read.name);
    }
}

#[tokio::test]
async fn the_samples_together_tell_of_an_order_that_is_paid() {
    let direct = direct().await;
    let sample = |name: &str| {
        let read = consumer().reads().iter().find(|read| read.name == name).copied().unwrap();
        event(name, &serde_json::from_str(read.sample).unwrap())
    };
    direct.apply_one(sample(PLACED)).await.unwrap();
    let told = downstream(direct.apply_one(sample(CALLBACK)).await);
    assert_eq!(types(&told), ["payment.recorded.v1", "order.paid.v1"]);
    assert_eq!(direct.apply_one(sample(CANCEL)).await, skipped("already_paid"));
}

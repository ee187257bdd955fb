//! A failure that most events share stops the consumer instead of filling the store of dead letters.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use onceflow::db::Tx;
use onceflow::event::{Envelope, Rejection};
use onceflow::health::Check;
use onceflow::runtime::{Consumer, EventType, HandleError, Outcome, Received, erase};
use serde_json::{Value, json};

use crate::harness::{SOON, Stack, Wishes, eventually};

const EVENT: &str = "probe.done.v1";
const LIMIT: i64 = 10;
const DEAD: &str = "SELECT count(*) FROM onceflow.dead_letter";
const APPLIED: &str = "SELECT count(*) FROM onceflow.inbox WHERE outcome = 'applied'";

/// Refuses everything while it is broken, and what says so always.
#[derive(Clone, Default)]
struct Moody {
    broken: Arc<AtomicBool>,
    /// Events, each of which may be attempted several times.
    refused: Arc<Mutex<HashSet<String>>>,
}

#[async_trait]
impl Consumer for Moody {
    type Event = Value;
    const NAME: &'static str = "probe";
    const BINDINGS: &'static [&'static str] = &["probe.#"];
    const READS: &'static [EventType] =
        &[EventType { name: EVENT, summary: "", message: "", sample: "{}", to_protobuf: None }];
    const PUBLISHES: &'static [EventType] = &[];

    fn decode(&self, envelope: &Envelope) -> Result<Value, Rejection> {
        serde_json::from_slice(&envelope.data).map_err(|e| Rejection::decode("invalid_json", e.to_string()))
    }

    async fn handle_one(&self, _: &Tx, event: &Received<Value>) -> Result<Outcome, HandleError> {
        if self.broken.load(Ordering::SeqCst) || event.event["bad"] == true {
            self.refused.lock().unwrap().insert(event.envelope.id.clone());
            return Ok(Outcome::Reject(Rejection::refused("no_table", "the table is missing")));
        }
        Ok(Outcome::Applied(Vec::new()))
    }
}

async fn start(moody: &Moody) -> Stack {
    let settings = format!("kill_switch_failures = {LIMIT}\n");
    Stack::start_with(vec![erase(moody.clone())], Wishes { settings, ..Wishes::default() }).await
}

fn check(stack: &Stack) -> Check {
    stack.app.as_ref().unwrap().health.snapshot()["consumer.probe"].clone()
}

async fn until_paused(stack: &Stack) -> String {
    eventually(SOON, || async {
        match check(stack) {
            Check::Paused(why) => Some(why),
            _ => None,
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_that_all_events_share_stops_the_consumer_and_it_goes_on_by_itself_i6() {
    let moody = Moody::default();
    moody.broken.store(true, Ordering::SeqCst);
    let mut stack = start(&moody).await;
    let events = (0..200).map(|n| stack.plain(EVENT, &format!("e{n}"), &json!({})));
    stack.publish_all(events.collect()).await;

    let why = until_paused(&stack).await;
    for word in [EVENT, "no_table", "the table is missing"] {
        assert!(why.contains(word), "{why}");
    }
    assert_eq!(stack.count(DEAD).await, LIMIT - 1, "the failure that opened the switch was not written any more");
    let queue = stack.config.runtime.names.queue("probe");
    let left = 200 - u32::try_from(LIMIT).unwrap() + 1;
    eventually(SOON, || async { (stack.depth(&queue).await == left).then_some(()) }).await;

    moody.refused.lock().unwrap().clear();
    eventually(SOON, || async { (!moody.refused.lock().unwrap().is_empty()).then_some(()) }).await;
    until_paused(&stack).await;
    assert_eq!(stack.count(DEAD).await, LIMIT - 1, "a probe that fails writes nothing");
    let tried = moody.refused.lock().unwrap().len();
    assert!(tried <= 5, "a probe takes few events: {tried}");

    moody.broken.store(false, Ordering::SeqCst);
    stack.until_count(APPLIED, i64::from(left)).await;
    eventually(SOON, || async { (check(&stack) == Check::Ok).then_some(()) }).await;
    assert_eq!((stack.count(DEAD).await, stack.depth(&queue).await), (LIMIT - 1, 0));
    assert!(stack.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_of_a_few_among_many_become_dead_letters_and_nobody_waits_i6() {
    let moody = Moody::default();
    let stack = start(&moody).await;
    let events = (0..300).map(|n| stack.plain(EVENT, &format!("e{n}"), &json!({ "bad": n % 6 == 3 })));
    stack.publish_all(events.collect()).await;
    stack.until_count(DEAD, 50).await;
    stack.until_count(APPLIED, 250).await;
    assert_eq!(check(&stack), Check::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_does_not_wait_for_a_kill_switch_i10() {
    let moody = Moody::default();
    moody.broken.store(true, Ordering::SeqCst);
    let mut stack = start(&moody).await;
    let events = (0..50).map(|n| stack.plain(EVENT, &format!("e{n}"), &json!({})));
    stack.publish_all(events.collect()).await;
    until_paused(&stack).await;
    assert!(stack.stop().await);
    let queue = stack.config.runtime.names.queue("probe");
    let left = 50 - u32::try_from(LIMIT).unwrap() + 1;
    eventually(SOON, || async { (stack.depth(&queue).await == left).then_some(()) }).await;
}

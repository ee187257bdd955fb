//! Order through failure: what follows a failed event of its key waits for it, where the consumer is strict.

mod closed;
mod edges;
mod kills;

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use onceflow::broker::Outgoing;
use onceflow::db::{Commit, Tx};
use onceflow::event::{Envelope, Rejection};
use onceflow::replay::{self, Change, Filter, Selection};
use onceflow::runtime::{AnyConsumer, Consumer, EventType, HandleError, OrderPolicy, Outcome, Received, erase};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::harness::{Probe, SOON, Stack, Wishes, eventually};

const EVENT: &str = "probe.done.v1";
const HELD: &str = "SELECT count(*) FROM onceflow.held_event";
const BLOCKED: &str = "SELECT count(*) FROM onceflow.blocked_key";
const OPEN: &str = "SELECT count(*) FROM onceflow.dead_letter WHERE state = 'open'";
const STRICT: &str = "[consumers.ordered]\nordering = \"strict\"\n";

/// Applies what the test does not want to fail: those in `refused` die, those in `late` are tried again.
#[derive(Clone, Default)]
struct Ordered {
    refused: Arc<Mutex<BTreeSet<String>>>,
    late: Arc<Mutex<BTreeSet<String>>>,
}

impl Ordered {
    fn refusing(ids: &[&str]) -> Self {
        let ordered = Self::default();
        ordered.refused.lock().unwrap().extend(ids.iter().map(|id| (*id).to_owned()));
        ordered
    }

    fn mend(&self) {
        self.refused.lock().unwrap().clear();
        self.late.lock().unwrap().clear();
    }

    fn boxed(&self) -> Vec<Box<dyn AnyConsumer>> {
        vec![erase(self.clone())]
    }
}

#[async_trait]
impl Consumer for Ordered {
    type Event = i64;
    const NAME: &'static str = "ordered";
    const BINDINGS: &'static [&'static str] = &["probe.#"];
    const READS: &'static [EventType] =
        &[EventType { name: EVENT, summary: "", message: "", sample: "{}", to_protobuf: None }];
    const PUBLISHES: &'static [EventType] = &[];

    fn decode(&self, envelope: &Envelope) -> Result<i64, Rejection> {
        let body: Value = serde_json::from_slice(&envelope.data).unwrap();
        body["n"].as_i64().ok_or_else(|| Rejection::decode("no_number", "n is missing"))
    }

    async fn handle_one(&self, tx: &Tx, event: &Received<i64>) -> Result<Outcome, HandleError> {
        let Received { envelope, event: n, .. } = event;
        let insert = "INSERT INTO probe_ledger (key, event_id, n) VALUES ($1, $2, $3)";
        tx.execute(insert, &[&envelope.partition_key, &envelope.id, &**n]).await?;
        if self.refused.lock().unwrap().contains(&envelope.id) {
            return Ok(Outcome::Reject(Rejection::refused("asked_for", "the test refuses it")));
        }
        if self.late.lock().unwrap().contains(&envelope.id) {
            return Ok(Outcome::Retry { after: Duration::from_millis(1), code: "asked_for" });
        }
        Ok(Outcome::Applied(Vec::new()))
    }
}

async fn started(ordered: &Ordered, settings: &str) -> Stack {
    let wishes = Wishes { settings: settings.to_owned(), ..Wishes::default() };
    let mut stack = Stack::prepare(&ordered.boxed(), wishes).await;
    Probe::create_ledger(&stack.client).await;
    stack.run(ordered.boxed()).await;
    stack
}

/// Events `<key>0`, `<key>1`, … of one key.
fn of_key(stack: &Stack, key: &str, numbers: std::ops::Range<i64>) -> Vec<Outgoing> {
    numbers.map(|n| stack.keyed(EVENT, &format!("{key}{n}"), key, &json!({"n": n}))).collect()
}

/// What was applied of a key, first to last.
async fn applied(stack: &Stack, key: &str) -> Vec<i64> {
    let sql = "SELECT n FROM onceflow.probe_ledger WHERE key = $1 ORDER BY seq";
    stack.client.query(sql, &[&key]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

async fn until_applied(stack: &Stack, key: &str, expected: &[i64]) {
    eventually(SOON, || async { (applied(stack, key).await.len() >= expected.len()).then_some(()) }).await;
    assert_eq!(applied(stack, key).await, expected);
}

async fn nothing_waits(stack: &Stack) {
    stack.until_count(HELD, 0).await;
    stack.until_count(BLOCKED, 0).await;
    stack.until_count("SELECT count(*) FROM onceflow.outbox", 0).await;
}

fn all_open() -> Change {
    Change {
        selection: Selection::Filter(Filter::default()),
        reason: Some("mended".to_owned()),
        actor: "test".to_owned(),
        dry_run: false,
        expect_count: None,
        max: None,
    }
}

async fn replay_all(stack: &Stack) {
    let queues = [("ordered".to_owned(), "onceflow.ordered".to_owned())].into();
    let tx = stack.pool().begin().await.unwrap();
    replay::replay(&tx, &all_open(), &queues).await.unwrap();
    assert!(matches!(tx.commit().await, Commit::Committed));
}

async fn discard_all(stack: &Stack) {
    let tx = stack.pool().begin().await.unwrap();
    replay::discard(&tx, &all_open()).await.unwrap();
    assert!(matches!(tx.commit().await, Commit::Committed));
}

async fn get(stack: &Stack, path: &str) -> Value {
    let admin = stack.app.as_ref().unwrap().admin;
    reqwest::get(format!("http://{admin}/api/v1/{path}")).await.unwrap().json().await.unwrap()
}

async fn onceflow(stack: &Stack, args: &[&str]) -> String {
    let server = format!("http://{}", stack.app.as_ref().unwrap().admin);
    let mut command = Command::new(env!("CARGO_BIN_EXE_onceflow"));
    command.args(args).args(["--server", &server]).env_clear().current_dir(std::env::temp_dir());
    let output = command.stdin(Stdio::null()).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i5_strict_later_events_of_a_failed_key_wait_and_are_applied_in_order_after_its_replay() {
    let ordered = Ordered::refusing(&["a2"]);
    let stack = started(&ordered, STRICT).await;
    // Both keys in one batch: those of the failed one that come before it are applied, and the other key is not held up.
    let both = of_key(&stack, "a", 0..8).into_iter().zip(of_key(&stack, "b", 0..8));
    stack.publish_all(both.flat_map(|(a, b)| [a, b]).collect()).await;
    assert_eq!(stack.death("a2").await, ("handle".to_owned(), "asked_for".to_owned()));
    stack.until_count(HELD, 5).await;
    until_applied(&stack, "b", &[0, 1, 2, 3, 4, 5, 6, 7]).await;
    // Also those that come later.
    stack.publish_all(of_key(&stack, "a", 8..10)).await;
    stack.until_count(HELD, 7).await;
    assert_eq!(applied(&stack, "a").await, [0, 1]);
    eventually(SOON, || async { (stack.depth("onceflow.ordered").await == 0).then_some(()) }).await;

    // A replay that fails again is the same blocker.
    replay_all(&stack).await;
    stack.until_count("SELECT count(*) FROM onceflow.dead_letter WHERE state = 'open' AND replays = 1", 1).await;
    assert_eq!((stack.count(HELD).await, applied(&stack, "a").await), (7, vec![0, 1]));

    ordered.mend();
    replay_all(&stack).await;
    until_applied(&stack, "a", &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]).await;
    nothing_waits(&stack).await;
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.dead_letter WHERE state = 'replayed'").await, 1);
    stack.publish_all(of_key(&stack, "a", 10..12)).await;
    until_applied(&stack, "a", &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]).await;
    assert_eq!(stack.count(HELD).await, 0, "the key is free again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i5_strict_a_discarded_dead_letter_lets_those_behind_it_go_in_order_and_the_next_failure_blocks_again() {
    let ordered = Ordered::refusing(&["a0", "a2"]);
    let stack = started(&ordered, STRICT).await;
    stack.publish_all(of_key(&stack, "a", 0..6)).await;
    stack.until_count(HELD, 5).await;
    discard_all(&stack).await;
    stack.death("a2").await;
    assert_eq!(applied(&stack, "a").await, [1]);
    assert_eq!(stack.count(HELD).await, 3, "they wait behind the one that failed now");
    discard_all(&stack).await;
    until_applied(&stack, "a", &[1, 3, 4, 5]).await;
    nothing_waits(&stack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i5_strict_later_events_wait_for_one_that_is_tried_again() {
    let ordered = Ordered::default();
    ordered.late.lock().unwrap().insert("a0".to_owned());
    let settings = format!("{STRICT}[retry]\ndelays = [\"100ms\"]\nmax_attempts = 100\n[runtime]\n");
    let stack = started(&ordered, &settings).await;
    stack.publish_all(of_key(&stack, "a", 0..5)).await;
    stack.until_count(HELD, 4).await;
    stack.until_count("SELECT coalesce(max(attempt), 0)::bigint FROM onceflow.attempt WHERE event_id = 'a0'", 3).await;
    assert_eq!((stack.count(OPEN).await, applied(&stack, "a").await), (0, vec![]));
    ordered.mend();
    until_applied(&stack, "a", &[0, 1, 2, 3, 4]).await;
    nothing_waits(&stack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i5_strict_an_unreadable_payload_blocks_its_key_and_nothing_that_came_before_it() {
    let stack = started(&Ordered::default(), STRICT).await;
    let mut events = of_key(&stack, "a", 0..6);
    events[2].message.body = "{}".into();
    events[4].message.body = "{}".into();
    stack.publish_all(events).await;
    assert_eq!(stack.death("a2").await.1, "no_number");
    stack.until_count(HELD, 3).await;
    assert_eq!(applied(&stack, "a").await, [0, 1]);
    assert_eq!(stack.count(OPEN).await, 1, "the second one waits like any other");
    discard_all(&stack).await;
    stack.death("a4").await;
    assert_eq!(applied(&stack, "a").await, [0, 1, 3]);
    discard_all(&stack).await;
    until_applied(&stack, "a", &[0, 1, 3, 5]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i2_strict_copies_of_a_held_event_and_of_its_blocker_have_no_effect() {
    let ordered = Ordered::refusing(&["a1"]);
    let stack = started(&ordered, STRICT).await;
    let events = || of_key(&stack, "a", 0..4);
    for _ in 0..5 {
        stack.publish_all(events()).await;
    }
    stack.until_count(HELD, 2).await;
    stack.until_count("SELECT occurrences::bigint FROM onceflow.dead_letter", 5).await;
    stack.until_count("SELECT duplicates::bigint FROM onceflow.inbox WHERE event_id = 'a0'", 4).await;
    ordered.mend();
    replay_all(&stack).await;
    until_applied(&stack, "a", &[0, 1, 2, 3]).await;
    stack.publish_all(events()).await;
    nothing_waits(&stack).await;
    stack.until_count("SELECT count(*) FROM onceflow.inbox WHERE duplicates > 0", 4).await;
    assert_eq!(applied(&stack, "a").await, [0, 1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i5_i8_strict_without_room_a_message_goes_round_keeps_its_place_and_spends_no_attempt() {
    let ordered = Ordered::refusing(&["a0"]);
    let settings = format!(
        "{STRICT}[retry]\ndelays = [\"100ms\", \"200ms\"]\nmax_attempts = 3\n[runtime]\nheld_events_per_key = 2\n"
    );
    let stack = started(&ordered, &settings).await;
    stack.publish_all(of_key(&stack, "a", 0..12)).await;
    stack.death("a0").await;
    stack.until_count(HELD, 11).await;
    let stored = "SELECT count(*) FROM onceflow.held_event WHERE payload IS NOT NULL";
    assert_eq!(stack.count(stored).await, 2);
    // Long enough for more rounds than there are attempts.
    let rounds = || async {
        let settled = onceflow::telemetry::settled_since_start("ordered");
        settled.get("retry").is_some_and(|retries| *retries >= 9 * 5).then_some(())
    };
    eventually(SOON, rounds).await;
    assert_eq!((stack.count(stored).await, stack.count(OPEN).await), (2, 1));
    ordered.mend();
    replay_all(&stack).await;
    until_applied(&stack, "a", &(0..12).collect::<Vec<_>>()).await;
    nothing_waits(&stack).await;
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.dead_letter").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_how_many_wait_is_shown_with_the_dead_letter_in_the_status_and_as_a_metric() {
    let ordered = Ordered::refusing(&["a0"]);
    let stack = started(&ordered, STRICT).await;
    stack.publish_all(of_key(&stack, "a", 0..14)).await;
    stack.until_count(HELD, 13).await;
    let listed = get(&stack, "dlq").await;
    assert_eq!(listed["items"][0]["waiting_behind"], 13);
    let id = listed["items"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(get(&stack, &format!("dlq/{id}")).await["waiting_behind"], 13);
    let status = get(&stack, "status").await;
    assert_eq!(
        (&status["consumers"][0]["held_events"], &status["consumers"][0]["blocked_keys"]),
        (&json!(13), &json!(1))
    );
    assert!(onceflow(&stack, &["dlq", "list"]).await.contains("WAITING BEHIND"));
    let shown = onceflow(&stack, &["dlq", "show", &id]).await;
    assert!(shown.contains("waiting behind") && shown.contains("13 events of its key"), "{shown}");
    assert!(onceflow(&stack, &["status"]).await.contains("13 events wait behind failed ones of 1 keys"));
    let trace = onceflow(&stack, &["events", "trace", "a5"]).await;
    assert!(trace.contains("held") && trace.contains("behind event a0 of its key"), "{trace}");
    let metrics = format!("http://{}/metrics", stack.app.as_ref().unwrap().metrics);
    let sampled = || async {
        let text = reqwest::get(&metrics).await.unwrap().text().await.unwrap();
        text.contains("onceflow_held_events{consumer=\"ordered\"} 13").then_some(())
    };
    eventually(SOON, sampled).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versioned_never_asks_for_blocked_keys_on_the_way_of_an_event() {
    let ordered = Ordered::refusing(&["a1"]);
    let stack = started(&ordered, "").await;
    // Any statement that names them would fail from here on, and stop the consumer.
    let gone =
        "ALTER TABLE onceflow.blocked_key RENAME TO gone_key; ALTER TABLE onceflow.held_event RENAME TO gone_event";
    stack.client.batch_execute(gone).await.unwrap();
    ordered.late.lock().unwrap().insert("a2".to_owned());
    stack.publish_all(of_key(&stack, "a", 0..6)).await;
    stack.death("a1").await;
    assert_eq!(stack.death("a2").await.0, "exhausted");
    until_applied(&stack, "a", &[0, 3, 4, 5]).await;
    ordered.mend();
    replay_all(&stack).await;
    stack.until_count("SELECT count(*) FROM onceflow.dead_letter WHERE state = 'replayed'", 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_is_no_longer_strict_lets_go_what_waited() {
    let ordered = Ordered::refusing(&["a0"]);
    let mut stack = started(&ordered, STRICT).await;
    stack.publish_all(of_key(&stack, "a", 0..5)).await;
    stack.until_count(HELD, 4).await;
    stack.stop().await;
    stack.config.consumers[0].ordering = OrderPolicy::Versioned;
    stack.run(ordered.boxed()).await;
    until_applied(&stack, "a", &[1, 2, 3, 4]).await;
    nothing_waits(&stack).await;
    assert_eq!(stack.count(OPEN).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_whose_blocker_was_discarded_behind_its_back_is_found() {
    let ordered = Ordered::refusing(&["a0"]);
    let stack = started(&ordered, STRICT).await;
    stack.publish_all(of_key(&stack, "a", 0..4)).await;
    stack.until_count(HELD, 3).await;
    let by_hand = "UPDATE onceflow.dead_letter SET state = 'discarded', closed_at = clock_timestamp(), closed_by = 'sql', closed_reason = 'by hand'";
    stack.client.batch_execute(by_hand).await.unwrap();
    until_applied(&stack, "a", &[1, 2, 3]).await;
    nothing_waits(&stack).await;
}

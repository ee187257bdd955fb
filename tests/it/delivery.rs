//! The way of one event through the real thing: the invariants of DESIGN §2, each by name.

use std::collections::BTreeMap;
use std::time::Duration;

use onceflow::broker::queue_states;
use onceflow::db::Commit;
use onceflow::message::Message;
use onceflow::runtime::{AnyConsumer, erase};
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::probe::EVENT;
use crate::harness::{Probe, SOON, Stack, Wishes, eventually};

const LEDGER: &str = "SELECT count(*) FROM onceflow.probe_ledger";
const APPLIED: &str = "SELECT count(*) FROM onceflow.inbox WHERE outcome = 'applied'";

async fn stack() -> (Stack, Probe) {
    stack_with(Wishes::default()).await
}

/// With other settings of the runtime than the quick ones.
async fn stack_set(runtime: &str) -> (Stack, Probe) {
    stack_with(Wishes { settings: format!("[runtime]\n{runtime}\n"), ..Wishes::default() }).await
}

async fn stack_with(wishes: Wishes) -> (Stack, Probe) {
    let probe = Probe::new();
    let consumers = || -> Vec<Box<dyn AnyConsumer>> { vec![erase(probe.clone())] };
    let mut stack = Stack::prepare(&consumers(), wishes).await;
    Probe::create_ledger(&stack.client).await;
    stack.run(consumers()).await;
    (stack, probe)
}

fn order(what: &str, n: i64) -> Value {
    json!({"do": what, "n": n})
}

fn header<'a>(message: &'a Message, name: &str) -> &'a str {
    message.headers.get(name).and_then(Value::as_str).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i1_an_event_is_acknowledged_only_after_its_effects_are_committed() {
    let (mut stack, probe) = stack_set("handler_timeout = \"10m\"\ndrain_within = \"1s\"").await;
    stack.publish(EVENT, "held", &order("wait", 1)).await;
    // The handler is inside its transaction: the message must still belong to the queue.
    eventually(SOON, || async { probe_waits(&stack).await.then_some(()) }).await;
    assert_eq!(stack.count(APPLIED).await, 0);
    // The drain gives up after its grace period, and the delivery goes back to the queue.
    assert!(stack.app.is_some());
    stack.stop().await;
    eventually(SOON, || async { (stack.depth("onceflow.probe").await == 1).then_some(()) }).await;
    probe.gate.add_permits(10);
    stack.run(vec![erase(probe.clone())]).await;
    assert_eq!(stack.outcome("held").await, "applied");
    assert_eq!(stack.count(LEDGER).await, 1);
}

/// A transaction of the handler is open and idle: it waits at the gate.
async fn probe_waits(stack: &Stack) -> bool {
    let sql =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'";
    stack.count(sql).await > 0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i2_an_event_is_applied_once_however_often_it_is_delivered() {
    let (stack, _) = stack().await;
    let copies = (0..100).map(|_| stack.plain(EVENT, "same", &order("apply", 1))).collect();
    stack.publish_all(copies).await;
    stack.until_count("SELECT coalesce(sum(duplicates), 0)::bigint FROM onceflow.inbox", 99).await;
    assert_eq!(stack.count(LEDGER).await, 1);
    assert_eq!(stack.downstream().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e3_the_same_id_with_another_body_is_flagged_and_the_first_one_stands() {
    let (stack, _) = stack().await;
    stack.publish(EVENT, "id", &order("apply", 1)).await;
    assert_eq!(stack.outcome("id").await, "applied");
    stack.publish(EVENT, "id", &order("apply", 2)).await;
    stack.until_count("SELECT conflicts::bigint FROM onceflow.inbox", 1).await;
    assert_eq!(stack.count("SELECT n FROM onceflow.probe_ledger").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i3_domain_rows_inbox_row_and_outbox_rows_commit_together_or_not_at_all() {
    let (stack, _) = stack_with(Wishes { no_sibling: true, ..Wishes::default() }).await;
    for (n, what) in ["apply", "reject", "apply", "swallow", "bad_number"].iter().enumerate() {
        // A negative number breaks a CHECK of the ledger: the database refuses the row.
        let number = if *what == "bad_number" { -1 } else { 1 };
        stack.publish(EVENT, &format!("e{n}"), &order(what, number)).await;
    }
    assert_eq!(stack.death("e1").await.1, "asked_for");
    assert_eq!(stack.death("e3").await.0, "exhausted");
    assert_eq!(stack.death("e4").await, ("database".to_owned(), "database_refused".to_owned()));
    stack.until_count(APPLIED, 2).await;
    let apart = "SELECT count(*) FROM onceflow.inbox i FULL JOIN onceflow.probe_ledger l USING (event_id)
                 WHERE i.event_id IS NULL OR l.event_id IS NULL";
    assert_eq!(stack.count(apart).await, 0);
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.outbox").await, 2);
    assert_eq!(stack.count("SELECT sum(downstream)::bigint FROM onceflow.inbox").await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i4_an_unroutable_downstream_event_is_parked_with_the_reason_and_not_lost() {
    let (stack, _) = stack_with(Wishes { no_sibling: true, ..Wishes::default() }).await;
    stack.publish(EVENT, "e", &order("apply", 1)).await;
    stack.until_count("SELECT count(*) FROM onceflow.outbox WHERE parked_reason LIKE 'unroutable%'", 1).await;
    stack.bind_sibling().await;
    stack.client.execute("UPDATE onceflow.outbox SET parked_at = NULL, parked_reason = NULL", &[]).await.unwrap();
    assert_eq!(stack.downstream().await.len(), 1);
    assert_eq!(stack.count("SELECT sum(confirmed)::bigint FROM onceflow.outbox_books").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i4_returned_messages_are_told_apart_from_confirmed_ones_in_one_pipelined_batch() {
    let (stack, _) = stack_with(Wishes { no_sibling: true, ..Wishes::default() }).await;
    let sql = "INSERT INTO onceflow.outbox (aggregatetype, aggregateid, type, payload)
               SELECT 'user', n::text, CASE WHEN n % 5 = 0 THEN 'nobody.listens.v1' ELSE 'listened.v1' END, '{}'
               FROM generate_series(1, 2000) n";
    let egress = stack.config.runtime.names.egress();
    let topology = onceflow::broker::Topology {
        exchanges: vec![],
        queues: vec![onceflow::broker::QueueSpec {
            name: "sibling".to_owned(),
            kind: onceflow::broker::QueueKind::Classic,
            ttl: None,
            dead_letter_to: None,
            delivery_limit: 0,
            single_active_consumer: false,
        }],
        bindings: vec![onceflow::broker::Binding {
            queue: "sibling".to_owned(),
            exchange: egress,
            pattern: "listened.#".to_owned(),
        }],
        ..Default::default()
    };
    assert!(topology.declare_all(&stack.link).await.unwrap().is_empty());
    stack.client.execute(sql, &[]).await.unwrap();
    let received = stack.downstream().await;
    let parked = "SELECT count(*) FROM onceflow.outbox WHERE parked_at IS NOT NULL AND type = 'nobody.listens.v1'";
    assert_eq!(stack.count(parked).await, 400);
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.outbox").await, 400);
    let ids: std::collections::BTreeSet<_> = received.iter().filter_map(|m| m.message_id.clone()).collect();
    assert_eq!(ids.len(), 1600, "each routable row reached the sibling");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i5_events_of_one_key_are_applied_and_published_in_order() {
    let (stack, _) = stack().await;
    let messages = (0..600).map(|n| {
        let key = format!("k{}", n % 7);
        stack.keyed(EVENT, &format!("e{n}"), &key, &order("apply", n))
    });
    stack.publish_all(messages.collect()).await;
    stack.until_count(APPLIED, 600).await;
    let backwards = "SELECT count(*) FROM onceflow.probe_ledger a JOIN onceflow.probe_ledger b
                     ON a.key = b.key AND a.seq < b.seq AND a.n > b.n";
    assert_eq!(stack.count(backwards).await, 0);
    let mut last: BTreeMap<String, i64> = BTreeMap::new();
    for message in stack.downstream().await {
        let body: Value = serde_json::from_slice(&message.body).unwrap();
        let n = body["n"].as_i64().unwrap();
        let before = last.insert(header(&message, "cloudEvents:subject").to_owned(), n);
        assert!(before.is_none_or(|before| before < n), "{before:?} before {n}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i6_a_bad_event_harms_neither_its_batch_mates_nor_the_process_p17_p18() {
    let (stack, _) = stack().await;
    let mut messages = Vec::new();
    for n in 0..100 {
        messages.push(stack.plain(EVENT, &format!("good{n}"), &order("apply", n)));
        if n % 25 == 0 {
            for what in ["panic", "reject", "retry"] {
                messages.push(stack.plain(EVENT, &format!("{what}{n}"), &order(what, n)));
            }
        }
    }
    messages.push(stack.plain(EVENT, "hang", &order("hang", 0)));
    stack.publish_all(messages).await;
    stack.until_count(APPLIED, 100).await;
    stack.until_count("SELECT count(*) FROM onceflow.dead_letter", 13).await;
    assert_eq!(stack.death("panic0").await, ("exhausted".to_owned(), "panic".to_owned()));
    assert_eq!(stack.death("hang").await, ("exhausted".to_owned(), "timeout".to_owned()));
    assert_eq!(stack.count(LEDGER).await, 100, "nothing of a failed event is left");
    assert_eq!(stack.count("SELECT attempts::bigint FROM onceflow.dead_letter WHERE event_id = 'panic0'").await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i8_oversized_deep_and_overloaded_messages_are_refused_before_they_cost_anything() {
    let (stack, _) = stack().await;
    let raw = |id: &str, body: Vec<u8>| {
        let mut outgoing = stack.plain(EVENT, id, &json!({}));
        outgoing.message.body = body.into();
        outgoing
    };
    let mut many_headers = raw("headers", b"{}".to_vec());
    many_headers.message.headers = (0..100).map(|n| (format!("h{n}"), Value::from(n))).collect();
    let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
    stack
        .publish_all(vec![raw("large", vec![b' '; 1024 * 1024 + 1]), raw("deep", deep.into_bytes()), many_headers])
        .await;
    for id in ["large", "deep", "headers"] {
        assert_eq!(stack.death(id).await.0, "decode", "{id}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i9_looking_at_dead_letters_changes_nothing() {
    let (stack, _) = stack().await;
    stack.publish(EVENT, "bad", &order("reject", 1)).await;
    stack.death("bad").await;
    let state = "SELECT md5(string_agg(d::text, '|' ORDER BY id)) FROM onceflow.dead_letter d";
    let before: String = stack.client.query_one(state, &[]).await.unwrap().get(0);
    let admin = stack.app.as_ref().unwrap().admin;
    for path in ["status", "dlq", "dlq/groups", "consumers", "outbox"] {
        let _answer = reqwest::get(format!("http://{admin}/api/v1/{path}")).await.unwrap().text().await.unwrap();
    }
    let after: String = stack.client.query_one(state, &[]).await.unwrap().get(0);
    assert_eq!(before, after);
    assert_eq!(stack.depth("onceflow.probe").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i10_a_stop_finishes_what_is_in_flight_and_gives_the_rest_back_p15() {
    let (mut stack, _) = stack_set("drain_within = \"60s\"").await;
    let messages = (0..500).map(|n| stack.plain(EVENT, &format!("e{n}"), &order("apply", n))).collect();
    stack.publish_all(messages).await;
    assert!(stack.stop().await, "the drain ended in time");
    let left = i64::from(stack.depth("onceflow.probe").await);
    assert_eq!(stack.count(APPLIED).await + left, 500);
    assert_eq!(stack.count("SELECT coalesce(sum(duplicates), 0)::bigint FROM onceflow.inbox").await, 0);
    stack.run(vec![erase(Probe::new())]).await;
    stack.until_count(APPLIED, 500).await;
    assert_eq!(stack.count(LEDGER).await, 500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_broker_gave_up_on_is_drained_into_the_dead_letters_with_its_original_route_b15() {
    let (stack, _) = stack().await;
    let mut dead = stack.plain(EVENT, "given-up", &order("apply", 1));
    dead.route.exchange = String::new();
    dead.route.routing_key = "onceflow.probe.dlq".to_owned();
    stack.publish_all(vec![dead]).await;
    assert_eq!(stack.death("given-up").await.0, "broker");
    eventually(SOON, || async { (stack.depth("onceflow.probe.dlq").await == 0).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_queue_of_the_brokers_dead_letters_is_declared_again_b12() {
    let (stack, _) = stack().await;
    let (vhost, queue) = (stack.vhost.as_ref().unwrap(), "onceflow.probe.dlq".to_owned());
    let there = || async {
        let found = queue_states(&stack.link, std::slice::from_ref(&queue)).await.unwrap()[0];
        found.is_some_and(|state| state.consumers == 1).then_some(())
    };
    eventually(SOON, there).await;
    vhost.request(Method::DELETE, &format!("/api/queues/{}/{queue}", vhost.name()), json!({})).await;
    eventually(SOON, there).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_reaches_only_the_consumer_that_failed_keeps_its_id_and_closes_the_dead_letter_c3() {
    let (stack, probe) = stack().await;
    // It hangs at the gate until its attempts are used up; later the gate is open.
    stack.publish(EVENT, "later", &order("wait", 1)).await;
    assert_eq!(stack.death("later").await, ("exhausted".to_owned(), "timeout".to_owned()));
    probe.gate.add_permits(10);
    let pool = stack.pool();
    let queues = [("probe".to_owned(), "onceflow.probe".to_owned())].into();
    let change = onceflow::replay::Change {
        selection: onceflow::replay::Selection::Filter(onceflow::replay::Filter::default()),
        reason: Some("the gate is open".to_owned()),
        actor: "test".to_owned(),
        dry_run: false,
        expect_count: Some(1),
        max: None,
    };
    let tx = pool.begin().await.unwrap();
    onceflow::replay::replay(&tx, &change, &queues).await.unwrap();
    assert!(matches!(tx.commit().await, Commit::Committed));
    assert_eq!(stack.outcome("later").await, "applied");
    stack.until_count("SELECT count(*) FROM onceflow.dead_letter WHERE state = 'replayed'", 1).await;
    stack.until_count("SELECT sum(replayed)::bigint FROM onceflow.outbox_books", 1).await;
    assert_eq!(stack.count(LEDGER).await, 1);
    assert_eq!(stack.downstream().await.len(), 1, "nothing but the event's own downstream reached the sibling");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_cannot_touch_the_dead_letter_of_another_by_forging_its_replay_e10() {
    let (stack, _) = stack().await;
    stack.publish(EVENT, "victim", &order("reject", 1)).await;
    stack.death("victim").await;
    let replay = "UPDATE onceflow.dead_letter SET state = 'replaying', replays = 1, replay_id = '00000000-0000-0000-0000-000000000007'";
    stack.client.execute(replay, &[]).await.unwrap();
    let forged = |id: &str, what: &str| {
        let mut forged = stack.plain(EVENT, id, &order(what, 1));
        forged.message.headers.insert("onceflow-replay-id".to_owned(), json!("00000000-0000-0000-0000-000000000007"));
        forged
    };
    // This one fails, comes back from the retry queues and dies.
    stack.publish_all(vec![forged("stubborn", "retry")]).await;
    assert_eq!(stack.death("stubborn").await, ("exhausted".to_owned(), "asked_for".to_owned()));
    // This one expires in a queue that nobody reads, and the broker gives up on it.
    let pause = "INSERT INTO onceflow.consumer_state (consumer, paused, changed_by, reason) VALUES ('probe', true, 'test', 'why')";
    stack.client.execute(pause, &[]).await.unwrap();
    eventually(SOON, || async { paused(&stack).then_some(()) }).await;
    let mut late = forged("late", "apply");
    late.message.expiration = Some("1".to_owned());
    stack.publish_all(vec![late]).await;
    assert_eq!(stack.death("late").await, ("broker".to_owned(), "expired".to_owned()));
    let untouched = "SELECT count(*) FROM onceflow.dead_letter
                     WHERE event_id = 'victim' AND state = 'replaying' AND reason = 'asked_for' AND attempts = 1";
    assert_eq!(stack.count(untouched).await, 1);
}

/// The service says that its consumer is paused.
fn paused(stack: &Stack) -> bool {
    let checks = stack.app.as_ref().unwrap().health.snapshot();
    matches!(checks.get("consumer.probe"), Some(onceflow::health::Check::Paused(_)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_consumer_stays_paused_over_a_restart_and_its_messages_stay_at_the_broker() {
    let (mut stack, probe) = stack().await;
    let pause = "INSERT INTO onceflow.consumer_state (consumer, paused, changed_by, reason) VALUES ('probe', true, 'test', 'why')";
    stack.client.execute(pause, &[]).await.unwrap();
    eventually(SOON, || async { paused(&stack).then_some(()) }).await;
    stack.publish(EVENT, "waits", &order("apply", 1)).await;
    stack.stop().await;
    stack.run(vec![erase(probe)]).await;
    assert!(paused(&stack));
    assert_eq!((stack.count(APPLIED).await, stack.depth("onceflow.probe").await), (0, 1));
    stack.client.execute("UPDATE onceflow.consumer_state SET paused = false", &[]).await.unwrap();
    assert_eq!(stack.outcome("waits").await, "applied");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_written_by_hand_is_published_like_any_other() {
    let (stack, _) = stack().await;
    let sql = "INSERT INTO onceflow.outbox (aggregatetype, aggregateid, type, payload) VALUES ('shop', '7', 'shop.opened.v1', '{\"a\": 1}')";
    stack.client.execute(sql, &[]).await.unwrap();
    let received = stack.downstream().await;
    assert_eq!(received.len(), 1);
    assert_eq!((&*received[0].body, header(&received[0], "cloudEvents:subject")), (b"{\"a\": 1}".as_slice(), "shop/7"));
    assert_eq!(received[0].message_id.as_deref(), Some(header(&received[0], "cloudEvents:id")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_wait_in_ttl_queues_and_end_in_the_dead_letters_with_their_whole_history() {
    let (stack, _) = stack().await;
    stack.publish(EVENT, "stubborn", &order("retry", 1)).await;
    assert_eq!(stack.death("stubborn").await, ("exhausted".to_owned(), "asked_for".to_owned()));
    let sql =
        "SELECT attempts, original_exchange, original_routing_key, first_failed_at < last_failed_at, consumer_version,
                      headers ->> 'amqp:message_id', convert_from(payload, 'UTF8')
               FROM onceflow.dead_letter";
    let row = stack.client.query_one(sql, &[]).await.unwrap();
    assert_eq!(row.get::<_, i32>(0), 3);
    assert_eq!((row.get(1), row.get(2)), ("onceflow.in", EVENT));
    assert!(row.get::<_, bool>(3));
    assert_eq!(row.get::<_, &str>(4), env!("CARGO_PKG_VERSION"));
    assert_eq!((row.get(5), row.get(6)), ("stubborn", r#"{"do":"retry","n":1}"#));
    let first_rung = Duration::from_millis(100);
    assert_eq!(stack.depth(&stack.config.runtime.names.retry("probe", first_rung)).await, 0);
}

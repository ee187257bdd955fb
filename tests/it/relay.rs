//! The relay: rows from memory and from the table leave in one order, and several relays share the work.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use onceflow::broker::{Link, Publisher, Purpose, Topology};
use onceflow::domains;
use onceflow::event::{Downstream, Envelope};
use onceflow::health::{Check, Health};
use onceflow::outbox::{
    Handover, OutboxRow, Relay, RelaySettings, Resent, Unroutable, append_and_commit, resend_and_commit,
};
use onceflow::replay::control;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};
use tokio_postgres::{AsyncMessage, NoTls};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::harness::direct::envelope;
use crate::harness::service::Service;
use crate::harness::stack::SIBLING;
use crate::harness::{SOON, Stack, Wishes, eventually};

const TYPE: &str = "org.user.changed.v1";
const BY_HAND: &str = "INSERT INTO onceflow.outbox (aggregatetype, aggregateid, type, payload)
    SELECT 'user', n::text, 'org.user.changed.v1', '{\"by\": \"hand\"}' FROM generate_series($1::int, $2::int) AS n";
const LISTENERS: &str =
    "FROM pg_stat_activity WHERE application_name = 'onceflow listener' AND datname = current_database()";
/// How many relays hold how many partitions: `4 4`.
const SHARES: &str = "SELECT string_agg(held::text, ' ' ORDER BY held) FROM (
    SELECT count(*) AS held FROM onceflow.outbox_partition
    WHERE holder IS NOT NULL AND expires_at > clock_timestamp() GROUP BY holder) AS shares";

/// A relay of its own, without a service around it.
struct Alone {
    handover: Handover,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Alone {
    async fn start(stack: &Stack) -> Self {
        let (handover, health, stop) = (Handover::default(), Arc::new(Health::default()), CancellationToken::new());
        let link = Arc::new(Link::new(stack.config.broker.clone(), Purpose::Publish, health.clone()));
        let settings = RelaySettings {
            egress: stack.config.runtime.names.egress(),
            unroutable: Unroutable::default(),
            holder: "alone".to_owned(),
        };
        let publisher = Publisher::new(link, Topology::default());
        let relay = Relay::new(settings, stack.pool(), publisher, handover.clone(), health.clone());
        let task = tokio::spawn(relay.run(stop.clone()));
        eventually(SOON, || async { (health.snapshot().get("relay") == Some(&Check::Ok)).then_some(()) }).await;
        Self { handover, stop, task }
    }

    async fn append(&self, stack: &Stack, key: &str, n: i64) {
        self.append_all(stack, key, n..=n).await;
    }

    /// In one transaction.
    async fn append_all(&self, stack: &Stack, key: &str, ns: RangeInclusive<i64>) {
        let tx = stack.pool().begin().await.unwrap();
        let cause: Envelope = envelope("org.user.upserted.v1", "cause", &json!({}));
        let row = |n: i64| {
            let event = Downstream {
                event_type: TYPE,
                aggregate_type: "user",
                aggregate_id: key.to_owned(),
                partition_key: None,
                payload: json!({ "n": n }).to_string(),
            };
            OutboxRow::caused_by(&cause, "org", event)
        };
        let commit = append_and_commit(tx, ns.map(row).collect(), &self.handover).await;
        assert!(matches!(commit, onceflow::db::Commit::Committed), "{commit:?}");
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i5_a_row_of_somebody_else_leaves_before_a_later_one_that_was_handed_over() {
    let stack = Stack::prepare(&domains::consumers(), Wishes::default()).await;
    let relay = Alone::start(&stack).await;
    for key in 0..20i32 {
        // Nobody wakes the relay for it.
        stack.client.execute(BY_HAND, &[&key, &key]).await.unwrap();
        relay.append(&stack, &key.to_string(), 1).await;
        relay.append(&stack, &key.to_string(), 2).await;
    }
    let received = stack.downstream().await;
    for key in 0..20 {
        let subject = format!("user/{key}");
        let of_key = received.iter().filter(|m| m.headers["cloudEvents:subject"] == subject);
        let bodies: Vec<Value> = of_key.map(|m| serde_json::from_slice(&m.body).unwrap()).collect();
        assert_eq!(bodies, [json!({"by": "hand"}), json!({"n": 1}), json!({"n": 2})], "key {key}");
    }
    relay.stop().await;
}

/// Found by fault C1. So many rows of one key come at once that the key is set aside: its further rows stay in the table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i5_c1_rows_of_somebody_else_leave_before_a_crowd_of_later_ones_that_was_handed_over() {
    const ROWS: &str = "INSERT INTO onceflow.outbox (aggregatetype, aggregateid, type, payload)
        SELECT 'user', $1, 'org.user.changed.v1', json_build_object('n', n)
        FROM generate_series($2::bigint, $3::bigint) AS n";
    // The relay goes on with a key that is set aside when a quarter of a look, of 128 rows, is left of it.
    const SIZES: [(i64, i64); 4] = [(1, 130), (56, 150), (200, 100), (300, 300)];
    let stack = Stack::prepare(&domains::consumers(), Wishes::default()).await;
    let relay = Alone::start(&stack).await;
    for (others, ours) in SIZES {
        let key = format!("{others} and {ours}");
        // Nobody wakes the relay for them.
        stack.client.execute(ROWS, &[&key, &1i64, &others]).await.unwrap();
        relay.append_all(&stack, &key, others + 1..=others + ours).await;
        stack.until_count("SELECT count(*) FROM onceflow.outbox", 0).await;
    }
    let received = stack.downstream().await;
    for (others, ours) in SIZES {
        let subject = format!("user/{others} and {ours}");
        let of_key = received.iter().filter(|m| m.headers["cloudEvents:subject"] == subject);
        let order: Vec<i64> =
            of_key.map(|m| serde_json::from_slice::<Value>(&m.body).unwrap()["n"].as_i64().unwrap()).collect();
        assert_eq!(order, (1..=others + ours).collect::<Vec<_>>(), "{subject}");
    }
    relay.stop().await;
}

/// The number by which a relay's process marks its rows.
async fn writer_of(relay: &Alone, stack: &Stack) -> i64 {
    // Whoever removes rows waits for this lock.
    let held = stack.database.as_ref().unwrap().client().await;
    held.batch_execute("BEGIN; SELECT FROM onceflow.outbox_partition FOR UPDATE").await.unwrap();
    relay.append(stack, "first", 1).await;
    let writer = stack.count("SELECT writer FROM onceflow.outbox").await;
    held.batch_execute("COMMIT").await.unwrap();
    stack.until_count("SELECT count(*) FROM onceflow.outbox", 0).await;
    writer
}

/// Rows of somebody else would make each commit of a consumer ask for a look at the table, for as long as one is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_sent_again_is_handed_to_the_relay_and_leaves_exactly_as_it_was() {
    let stack = Stack::prepare(&domains::consumers(), Wishes::default()).await;
    let relay = Alone::start(&stack).await;
    let writer = writer_of(&relay, &stack).await;
    stack.downstream().await;
    let held = stack.database.as_ref().unwrap().client().await;
    held.batch_execute("BEGIN; SELECT FROM onceflow.outbox_partition FOR UPDATE").await.unwrap();
    let resent = |n: u128| Resent {
        id: Uuid::from_u128(n),
        tenant: "acme".to_owned(),
        dead_letter: Uuid::from_u128(100 + n),
        event_type: "org.user.upserted.v1".to_owned(),
        body: vec![0, 159, 146, n as u8],
        headers: json!({"amqp:message_id": format!("m{n}"), "amqp:content_type": "application/protobuf", "cloudEvents:id": "e"}),
        key: "u7".to_owned(),
        queue: SIBLING.to_owned(),
    };
    let tx = stack.pool().begin().await.unwrap();
    let commit = resend_and_commit(tx, (1..=3).map(resent).collect(), &relay.handover).await;
    assert!(matches!(commit, onceflow::db::Commit::Committed), "{commit:?}");
    assert_eq!(stack.count(&format!("SELECT count(*) FROM onceflow.outbox WHERE writer = {writer}")).await, 3);
    // Out of memory: whoever looks at the table asks for rows of others.
    let received = stack.take(SIBLING, 3).await;
    held.batch_execute("COMMIT").await.unwrap();
    for (n, message) in (1..=3u8).zip(received) {
        assert_eq!((message.message_id, &message.body[..]), (Some(format!("m{n}")), &[0, 159, 146, n][..]));
        assert_eq!(message.content_type.as_deref(), Some("application/protobuf"));
        assert_eq!(message.headers.keys().collect::<Vec<_>>(), ["cloudEvents:id"]);
    }
    let key = "SELECT count(*) FROM onceflow.outbox WHERE tenant || '/' || partitionkey = 'acme/u7' AND exchange = ''";
    stack.until_count(key, 0).await;
    assert_eq!(stack.count("SELECT sum(replayed)::bigint FROM onceflow.outbox_books").await, 3);
    relay.stop().await;
}

/// Another replica commits the next row of a key as soon as ours has freed the locks, before our process has read the answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i5_a_later_row_of_somebody_else_does_not_overtake_one_of_ours_whose_commit_is_not_answered_yet() {
    const ROW: &str = "INSERT INTO onceflow.outbox (aggregatetype, aggregateid, type, payload, writer)
        VALUES ('user', $1, 'org.user.changed.v1', json_build_object('n', $2::bigint), $3)";
    let stack = Stack::prepare(&domains::consumers(), Wishes::default()).await;
    let relay = Alone::start(&stack).await;
    let writer = writer_of(&relay, &stack).await;
    for key in 0..20 {
        let (key, undecided) = (key.to_string(), relay.handover.ticket());
        stack.client.execute(ROW, &[&key, &1i64, &writer]).await.unwrap();
        stack.client.execute(ROW, &[&key, &2i64, &0i64]).await.unwrap();
        stack
            .until_count(&format!("SELECT count(*) FROM onceflow.outbox WHERE aggregateid = '{key}' AND writer = 0"), 0)
            .await;
        drop(undecided);
    }
    let received = stack.downstream().await;
    for key in 0..20 {
        let subject = format!("user/{key}");
        let of_key = received.iter().filter(|m| m.headers["cloudEvents:subject"] == subject);
        let bodies: Vec<Value> = of_key.map(|m| serde_json::from_slice(&m.body).unwrap()).collect();
        assert_eq!(bodies, [json!({"n": 1}), json!({"n": 2})], "key {key}");
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c5_a_hot_key_leaves_in_order_and_holds_up_no_other() {
    const HOT: i64 = 600;
    let stack = Stack::prepare(&domains::consumers(), Wishes::default()).await;
    let backlog = "INSERT INTO onceflow.outbox (aggregatetype, aggregateid, type, payload)
                   SELECT 'user', 'hot', 'org.user.changed.v1', json_build_object('n', n) FROM generate_series(1, 600) n";
    stack.client.execute(backlog, &[]).await.unwrap();
    stack.client.execute(BY_HAND, &[&1i32, &50i32]).await.unwrap();
    let relay = Alone::start(&stack).await;
    relay.append(&stack, "hot", HOT + 1).await;
    relay.append(&stack, "late", 1).await;
    let received = stack.downstream().await;
    let place = |subject: &str| received.iter().position(|m| m.headers["cloudEvents:subject"] == subject);
    let hot = received.iter().filter(|m| m.headers["cloudEvents:subject"] == "user/hot");
    let order: Vec<i64> =
        hot.map(|m| serde_json::from_slice::<Value>(&m.body).unwrap()["n"].as_i64().unwrap()).collect();
    assert_eq!(order, (1..=HOT + 1).collect::<Vec<_>>());
    assert!(place("user/50").unwrap() < 300, "rows behind a hot backlog leave with its first ones");
    relay.stop().await;
    assert_eq!(stack.count("SELECT sum(confirmed)::bigint FROM onceflow.outbox_books").await, HOT + 52);
}

/// A number that was taken long ago, of a transaction that is still open, is below all that left since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d15_a_row_that_could_not_be_seen_while_thousands_of_later_ones_left_leaves_once_it_can() {
    // The floor rises twice a second; it is forgotten after a quarter of an hour.
    const FLOORS: Duration = Duration::from_secs(3);
    const LEFT_WITHIN: Duration = Duration::from_secs(30);
    let stack = Stack::prepare(&domains::consumers(), Wishes::default()).await;
    let relay = Alone::start(&stack).await;
    let held = stack.database.as_ref().unwrap().client().await;
    held.batch_execute("BEGIN").await.unwrap();
    held.execute(BY_HAND, &[&-1i32, &-1i32]).await.unwrap();
    let (begun, mut rows) = (Instant::now(), 0i32);
    while begun.elapsed() < FLOORS {
        stack.client.execute(BY_HAND, &[&rows, &(rows + 19)]).await.unwrap();
        relay.append(&stack, "ours", i64::from(rows)).await;
        rows += 20;
        stack.until_count("SELECT count(*) FROM onceflow.outbox", 0).await;
    }
    held.batch_execute("COMMIT").await.unwrap();
    let left = || async { (stack.count("SELECT count(*) FROM onceflow.outbox").await == 0).then_some(()) };
    eventually(LEFT_WITHIN, left).await;
    let received = stack.downstream().await;
    assert_eq!(received.iter().filter(|m| m.headers["cloudEvents:subject"] == "user/-1").count(), 1);
    relay.stop().await;
}

/// By an operator, after the relay has left its old number behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_row_that_is_freed_leaves_though_later_ones_have_left_long_ago() {
    const FLOORS: Duration = Duration::from_secs(2);
    const LEFT_WITHIN: Duration = Duration::from_secs(30);
    const PARKED: &str =
        "INSERT INTO onceflow.outbox (aggregatetype, aggregateid, type, payload, parked_at, parked_reason)
        VALUES ('user', 'parked', 'org.user.changed.v1', '{}', now(), 'unroutable')";
    let stack = Stack::prepare(&domains::consumers(), Wishes::default()).await;
    stack.client.execute(PARKED, &[]).await.unwrap();
    let relay = Alone::start(&stack).await;
    let (begun, mut n) = (Instant::now(), 0i32);
    while begun.elapsed() < FLOORS {
        stack.client.execute(BY_HAND, &[&n, &n]).await.unwrap();
        n += 1;
        stack.until_count("SELECT count(*) FROM onceflow.outbox", 1).await;
    }
    let id = stack.client.query_one("SELECT id FROM onceflow.outbox", &[]).await.unwrap().get(0);
    let pool = stack.pool();
    let tx = pool.begin().await.unwrap();
    let freed = control::retry_parked(&tx, &[id], ("operator", "the queue is bound now")).await.unwrap();
    assert_eq!(freed, 1);
    tx.commit_repeatable().await.unwrap();
    let left = || async { (stack.count("SELECT count(*) FROM onceflow.outbox").await == 0).then_some(()) };
    eventually(LEFT_WITHIN, left).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p13_relays_share_the_partitions_and_take_over_from_one_that_dies() {
    let stack = Stack::prepare(&domains::consumers(), Wishes::default()).await;
    let shares = |expected: &'static str| {
        let stack = &stack;
        async move {
            eventually(SOON, || async {
                let found: Option<String> = stack.client.query_one(SHARES, &[]).await.unwrap().get(0);
                (found.as_deref() == Some(expected)).then_some(())
            })
            .await;
        }
    };
    let first = Service::start(stack.config_file(), "");
    shares("8").await;
    let second = Service::start(stack.config_file(), "");
    shares("4 4").await;
    stack.client.execute(BY_HAND, &[&1i32, &100i32]).await.unwrap();
    assert_eq!(stack.downstream().await.len(), 100);
    second.kill().await;
    stack.client.execute(BY_HAND, &[&101i32, &200i32]).await.unwrap();
    shares("8").await;
    assert_eq!(stack.downstream().await.len(), 100);
    first.kill().await;
}

async fn terminate_the_listener(stack: &Stack) {
    let terminate = format!("SELECT count(pg_terminate_backend(pid)) {LISTENERS}");
    assert_eq!(stack.count(&terminate).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_of_somebody_else_rings_the_listeners_bell_also_after_its_connection_was_lost() {
    let stack = Stack::prepare(&domains::consumers(), Wishes::default()).await;
    let (bell, stop) = (Arc::new(Notify::new()), CancellationToken::new());
    let listener = stack.config.database.listener().unwrap();
    let task = tokio::spawn(listener.run(bell.clone(), stop.clone()));
    let rung = || async { tokio::time::timeout(SOON, bell.notified()).await.unwrap() };
    rung().await; // It listens now.
    stack.client.execute(BY_HAND, &[&1i32, &1i32]).await.unwrap();
    rung().await;
    terminate_the_listener(&stack).await;
    rung().await; // It listens again, and can't know what it missed.
    stack.client.execute(BY_HAND, &[&2i32, &2i32]).await.unwrap();
    rung().await;
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_rows_of_others_notify_and_once_for_each_transaction() {
    let stack = Stack::prepare(&domains::consumers(), Wishes::default()).await;
    let (client, mut connection) =
        tokio_postgres::connect(stack.database.as_ref().unwrap().url(), NoTls).await.unwrap();
    let (heard, mut hears) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut messages = stream::poll_fn(move |context| connection.poll_message(context));
        while let Some(Ok(message)) = messages.next().await {
            if let AsyncMessage::Notification(notification) = message {
                heard.send(notification.payload().to_owned()).unwrap();
            }
        }
    });
    client.batch_execute("LISTEN onceflow_outbox").await.unwrap();
    stack.client.execute(BY_HAND, &[&1i32, &100i32]).await.unwrap();
    let ours = "INSERT INTO onceflow.outbox (aggregatetype, aggregateid, type, payload, writer)
                SELECT 'user', n::text, 'org.user.changed.v1', '{}', writer
                FROM generate_series(1, 100) n, (VALUES (7), (-1)) AS w (writer)";
    let plan = stack.client.query(&format!("EXPLAIN (ANALYZE, COSTS OFF) {ours}"), &[]).await.unwrap();
    let plan: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
    assert!(!plan.join("\n").contains("outbox_notify"), "rows of ours fire no trigger: {plan:#?}");
    stack.client.batch_execute("NOTIFY onceflow_outbox, 'the end'").await.unwrap();
    assert_eq!([hears.recv().await.unwrap(), hears.recv().await.unwrap()], ["", "the end"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_others_are_published_while_the_listener_is_away_and_it_comes_back() {
    let stack = Stack::start(domains::consumers()).await;
    let listeners = || async { stack.count(&format!("SELECT count(*) {LISTENERS} AND query LIKE 'LISTEN%'")).await };
    eventually(SOON, || async { (listeners().await == 1).then_some(()) }).await;
    stack.client.execute(BY_HAND, &[&1i32, &100i32]).await.unwrap();
    assert_eq!(stack.downstream().await.len(), 100);
    terminate_the_listener(&stack).await;
    stack.client.execute(BY_HAND, &[&101i32, &200i32]).await.unwrap();
    assert_eq!(stack.downstream().await.len(), 100);
    eventually(SOON, || async { (listeners().await == 1).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_may_only_insert_writes_rows_that_are_published() {
    let stack = Stack::start(domains::consumers()).await;
    let role = format!("it_writer_{}", uuid::Uuid::now_v7().simple());
    let grants = format!(
        "CREATE ROLE {role}; GRANT USAGE ON SCHEMA onceflow TO {role}; GRANT INSERT ON onceflow.outbox TO {role}; SET ROLE {role}"
    );
    stack.client.batch_execute(&grants).await.unwrap();
    stack.client.execute(BY_HAND, &[&1i32, &3i32]).await.unwrap();
    stack.client.batch_execute(&format!("RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
    assert_eq!(stack.downstream().await.len(), 3);
}

//! Memory is bounded in bytes, whatever the size of the messages and however slow the database is (I-8).

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::poll_immediate;
use onceflow::broker::{Delivery, Intake, Outgoing, QueueKind, QueueSpec, Resize, Subscription, Topology};
use onceflow::domains;
use onceflow::message::{Message, Route};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::harness::service::Service;
use crate::harness::{SOON, Stack, Wishes, eventually};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
/// More than a service needs here (90 to 120 MiB, half of it before the first message), and less than half of what it took when
/// messages and rows were bounded by number only (330 and 460 MiB).
const BOUND: usize = 160 * MIB;
const QUEUE: &str = "numbered";

/// A queue of messages that are numbered by their ids.
struct Numbered {
    stack: Stack,
    next: usize,
}

impl Numbered {
    async fn declare(kind: QueueKind) -> Self {
        let stack = Stack::prepare(&[], Wishes::default()).await;
        let queue = QueueSpec {
            name: QUEUE.to_owned(),
            kind,
            ttl: None,
            dead_letter_to: None,
            delivery_limit: 1_000_000,
            single_active_consumer: false,
        };
        let topology = Topology { queues: vec![queue], ..Topology::default() };
        assert!(topology.declare_all(&stack.link).await.unwrap().is_empty());
        Self { stack, next: 0 }
    }

    async fn publish(&mut self, count: usize, bytes: usize) {
        let numbers = self.next..self.next + count;
        self.next += count;
        let message = |n: usize| Outgoing {
            route: Route { exchange: String::new(), routing_key: QUEUE.to_owned() },
            message: Message { message_id: Some(n.to_string()), body: vec![b'x'; bytes].into(), ..Message::default() },
        };
        self.stack.publish_all(numbers.map(message).collect()).await;
    }

    async fn open(&self, intake: &Intake) -> Subscription {
        let (topology, stop) = (Topology::default(), CancellationToken::new());
        Subscription::open(&self.stack.link, &topology, QUEUE, intake, &stop).await.unwrap().unwrap()
    }
}

async fn next(subscription: &mut Subscription) -> Result<Delivery, onceflow::broker::BrokerError> {
    tokio::time::timeout(SOON, subscription.next()).await.unwrap()
}

fn number(delivery: &Delivery) -> usize {
    delivery.message.message_id.as_deref().unwrap().parse().unwrap()
}

/// Takes `count` messages in order, with some in hand, and acknowledges them. Returns the windows it saw.
async fn take(subscription: &mut Subscription, from: usize, count: usize, intake: &Intake) -> Vec<u16> {
    const IN_HAND: usize = 40;
    let mut windows = vec![intake.window()];
    let mut in_hand = VecDeque::new();
    for expected in from..from + count {
        let delivery = next(subscription).await.unwrap();
        assert_eq!(number(&delivery), expected, "in order, and each once");
        in_hand.push_back(delivery);
        while in_hand.len() >= IN_HAND.min(usize::from(intake.window())) {
            assert!(in_hand.pop_front().unwrap().ack().await.unwrap());
        }
        if windows.last() != Some(&intake.window()) {
            windows.push(intake.window());
        }
    }
    for delivery in in_hand {
        assert!(delivery.ack().await.unwrap());
    }
    windows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i8_i5_the_window_follows_the_size_of_the_messages_and_their_order_holds() {
    for kind in [QueueKind::Classic, QueueKind::Quorum] {
        let mut queue = Numbered::declare(kind).await;
        let intake = Intake::new(500, 8 * MIB, Resize::Allowed);
        for (count, bytes) in [(1_500, 100), (60, 100 * KIB), (1_500, 100)] {
            queue.publish(count, bytes).await;
        }
        let mut subscription = queue.open(&intake).await;
        let windows = take(&mut subscription, 0, 3_060, &intake).await;
        assert_eq!(windows[..3], [32, 128, 500], "{kind:?}: {windows:?}");
        assert!(windows.iter().any(|window| *window <= 32), "{kind:?}: {windows:?}");
        subscription.close().await;
        // A quorum queue may not have got to the last acks when the channel is closed.
        assert!(kind == QueueKind::Quorum || queue.stack.depth(QUEUE).await == 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i8_a_flood_of_messages_that_are_suddenly_large_goes_back_and_comes_in_a_smaller_window() {
    let mut queue = Numbered::declare(QueueKind::Classic).await;
    let intake = Intake::new(500, 2 * MIB, Resize::Allowed);
    queue.publish(1_000, 100).await;
    let mut subscription = queue.open(&intake).await;
    take(&mut subscription, 0, 1_000, &intake).await;
    assert!(intake.window() >= 256, "{}", intake.window());
    // Nobody reads meanwhile: all of them are on their way before the first one is seen.
    queue.publish(60, MIB).await;
    let mut in_hand = Vec::new();
    let ended = loop {
        match next(&mut subscription).await {
            Ok(delivery) => in_hand.push(delivery),
            Err(error) => break error,
        }
    };
    assert!(ended.is_overfull(), "{ended}");
    assert!(intake.held_bytes() <= 6 * MIB, "{}", intake.held_bytes());
    assert!(in_hand.iter().all(|delivery| !delivery.is_current()), "all of them come again");
    drop(subscription);
    // Nothing comes while those of the channel that was closed are still in memory.
    let mut subscription = queue.open(&intake).await;
    assert!(poll_immediate(pin!(subscription.next())).await.is_none());
    drop(in_hand);
    assert_eq!(intake.held_bytes(), 0);
    let windows = take(&mut subscription, 1_000, 60, &intake).await;
    assert!(windows.iter().all(|window| *window <= 16), "{windows:?}");
    subscription.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fixed_window_changes_only_with_a_new_subscription_and_with_nothing_in_flight() {
    let mut queue = Numbered::declare(QueueKind::Classic).await;
    let intake = Intake::new(500, 8 * MIB, Resize::Fixed);
    queue.publish(200, 100).await;
    let mut subscription = queue.open(&intake).await;
    assert_eq!(take(&mut subscription, 0, 200, &intake).await, [500]);
    queue.publish(1, 400 * KIB).await;
    assert_eq!(take(&mut subscription, 200, 1, &intake).await, [500]);
    let ended = next(&mut subscription).await.unwrap_err();
    assert!(ended.is_change_of_window(), "{ended}");
    subscription.close().await;
    queue.publish(200, 100).await;
    let mut subscription = queue.open(&intake).await;
    assert_eq!(take(&mut subscription, 201, 200, &intake).await, [64]);
    subscription.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i8_a_drain_of_large_messages_on_a_database_that_is_held_stays_within_its_memory() {
    const EVENTS: usize = 240;
    let settings = "[runtime]\nprefetch_bytes = 8388608\ndrain_within = \"5s\"".to_owned();
    let stack = Stack::prepare(&domains::consumers(), Wishes { settings, ..Wishes::default() }).await;
    let service = Service::start(stack.config_file(), "");
    let other = stack.database.as_ref().unwrap().client().await;
    other.batch_execute("BEGIN; LOCK TABLE onceflow.inbox IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let pad = "x".repeat(MIB - 400);
    for chunk in (0..EVENTS).collect::<Vec<_>>().chunks(20) {
        let user = |n: &usize| {
            let body = json!({"directory": "d", "id": format!("u{n}"), "version": "1", "name": "Example", "pad": pad});
            stack.plain("org.user.upserted.v1", &format!("e{n}"), &body)
        };
        stack.publish_all(chunk.iter().map(user).collect()).await;
    }
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'onceflow.inbox'::regclass";
    eventually(SOON, || async { (stack.count(waits).await > 0).then_some(()) }).await;
    other.batch_execute("COMMIT").await.unwrap();
    stack.until_count("SELECT count(*) FROM onceflow.inbox", EVENTS as i64).await;
    let peak = service.peak_memory();
    eprintln!("{} MiB at most for {EVENTS} events of 1 MiB", peak / MIB);
    assert!(peak < BOUND, "{} MiB", peak / MIB);
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.dead_letter").await, 0);
    service.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i8_a_backlog_of_large_rows_is_published_within_the_memory_of_the_relay() {
    const ROWS: usize = 240;
    // Half of the rows compress to almost nothing, the other half not at all.
    let backlog = "
        WITH pads AS MATERIALIZED (SELECT string_agg(md5(n::text), '') AS rough, repeat('x', 1000000) AS smooth
                                   FROM generate_series(1, 31250) n)
        INSERT INTO onceflow.outbox (aggregatetype, aggregateid, type, payload)
        SELECT 'user', (n % 60)::text, 'org.user.changed.v1',
               json_build_object('n', n, 'pad', CASE WHEN n % 2 = 0 THEN rough ELSE smooth END)
        FROM pads, generate_series(1, 240) n";
    let stack = Stack::prepare(&domains::consumers(), Wishes::default()).await;
    stack.client.execute(backlog, &[]).await.unwrap();
    let service = Service::start(stack.config_file(), "");
    let confirmed = "SELECT sum(confirmed)::bigint FROM onceflow.outbox_books";
    let within = SOON + Duration::from_secs(60);
    eventually(within, || async { (stack.count(confirmed).await == ROWS as i64).then_some(()) }).await;
    let peak = service.peak_memory();
    eprintln!("{} MiB at most for {ROWS} rows of 1 MB", peak / MIB);
    assert!(peak < BOUND, "{} MiB", peak / MIB);
    service.kill().await;
    let mut last = std::collections::BTreeMap::new();
    for message in stack.downstream().await {
        let body: serde_json::Value = serde_json::from_slice(&message.body).unwrap();
        let n = body["n"].as_i64().unwrap();
        let before = last.insert(n % 60, n);
        assert!(before.is_none_or(|before| before < n), "{before:?} before {n}");
    }
    assert_eq!(last.len(), 60);
}

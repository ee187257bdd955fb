//! Servers of the test's own are stopped under load: nothing is dead-lettered, no attempt is spent, work resumes by itself (I-7).
//!
//! `ONCEFLOW_OUTAGE_SECONDS` makes the outages longer: 30 is what a release is tried with.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use onceflow::broker::publish_once;
use onceflow::db;
use onceflow::dev::servers::{Options, Servers};
use onceflow::runtime::{AnyConsumer, erase};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::harness::{Probe, SOON, Stack, Wishes, connect, eventually, pool, probe::EVENT, project, size};

const APPLIED: &str = "SELECT count(*) FROM onceflow.inbox";

/// Publishes without end, over the outage too: a chunk is repeated until it is confirmed. Returns how many ids were confirmed.
async fn publish_until(stack: Arc<Stack>, stop: CancellationToken, published: Arc<AtomicI64>) {
    let mut next = 0;
    while !stop.is_cancelled() {
        let chunk: Vec<_> = (next..next + 20)
            .map(|n| stack.keyed(EVENT, &format!("e{n}"), &format!("k{}", n % 50), &json!({"do": "apply", "n": n})))
            .collect();
        if publish_once(&stack.config.broker, &chunk).await.is_ok() {
            next += 20;
            published.store(next, Ordering::SeqCst);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i7_stopped_servers_cost_no_attempt_and_no_dead_letter_b2_b3_d1() {
    let project = project();
    let mut servers = Servers::start(project.path(), Options::both("outages"), &|_| {}).await.unwrap();
    let url = servers.database_url().unwrap();
    db::migrate(&pool(&url)).await.unwrap();
    let consumers = || -> Vec<Box<dyn AnyConsumer>> { vec![erase(Probe::new())] };
    // With one attempt for each event, one that is spent is a dead letter.
    let settings = "[retry]\nmax_attempts = 1\n[runtime]\ndrain_within = \"5s\"\n".to_owned();
    let wishes = Wishes { amqp_url: servers.amqp_url(), database_url: Some(url), settings, ..Wishes::default() };
    let mut stack = Stack::prepare(&consumers(), wishes).await;
    Probe::create_ledger(&stack.client).await;
    stack.run(consumers()).await;
    let app = stack.app.take();
    let stack = Arc::new(stack);
    let (stop, published) = (CancellationToken::new(), Arc::new(AtomicI64::new(0)));
    let load = tokio::spawn(publish_until(stack.clone(), stop.clone(), published.clone()));
    progress(&published, 200).await;

    let postgres = servers.postgres.as_mut().unwrap();
    postgres.stop_immediate().await.unwrap();
    outage().await;
    postgres.start().await.unwrap();
    resumes_after("PostgreSQL", &postgres.url()).await;
    progress(&published, 200).await;

    let url = postgres.url();
    let rabbitmq = servers.rabbitmq.as_mut().unwrap();
    rabbitmq.stop().await.unwrap();
    outage().await;
    rabbitmq.start().await.unwrap();
    resumes_after("RabbitMQ", &url).await;
    progress(&published, 200).await;

    stop.cancel();
    load.await.unwrap();
    let mut stack = Arc::into_inner(stack).unwrap();
    stack.reconnect().await;
    stack.app = app;
    let expected = published.load(Ordering::SeqCst);
    eventually(SOON, || async { (stack.count(APPLIED).await >= expected).then_some(()) }).await;
    let applied = stack.count(APPLIED).await;
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.probe_ledger").await, applied);
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.dead_letter").await, 0, "no attempt was spent");
    let ids: BTreeSet<_> = stack.downstream().await.into_iter().filter_map(|m| m.message_id).collect();
    assert_eq!(ids.len() as i64, applied, "each effect reached the sibling");
    let backwards = "SELECT count(*) FROM onceflow.probe_ledger a JOIN onceflow.probe_ledger b
                     ON a.key = b.key AND a.seq < b.seq AND a.n > b.n";
    assert_eq!(stack.count(backwards).await, 0, "order per key held over both outages (I-5)");
    assert!(stack.stop().await);
    servers.stop().await.unwrap();
}

/// How long a server is away.
async fn outage() {
    let seconds = size("ONCEFLOW_OUTAGE_SECONDS", 2);
    tokio::time::sleep(Duration::from_secs(seconds)).await; // real time: the length of the outage is the fault itself
}

/// Waits until events are applied again, and prints how long that took.
async fn resumes_after(server: &str, database_url: &str) {
    let begun = Instant::now();
    let client = connect(database_url).await;
    let count = || async { client.query_one(APPLIED, &[]).await.unwrap().get::<_, i64>(0) };
    let before = count().await;
    eventually(SOON, || async { (count().await > before).then_some(()) }).await;
    eprintln!("events are applied again {:.1} s after {server} was back", begun.elapsed().as_secs_f64());
}

/// Waits until so many more events were confirmed by the broker.
async fn progress(published: &AtomicI64, more: i64) {
    let wanted = published.load(Ordering::SeqCst) + more;
    eventually(SOON, || async { (published.load(Ordering::SeqCst) >= wanted).then_some(()) }).await;
}

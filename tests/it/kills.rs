//! `onceflow run` is killed at random moments under a stream of events: nothing is lost, nothing is applied twice.
//!
//! `ONCEFLOW_KILLS` and `ONCEFLOW_EVENTS` make it longer: 50 and 50000 are what a release is tried with.

use std::collections::BTreeSet;
use std::time::Duration;

use onceflow::broker::{Outgoing, publish_once};
use onceflow::domains;
use rand::Rng;
use serde_json::json;

use crate::harness::service::Service;
use crate::harness::{SOON, Stack, Wishes, eventually, size};
use crate::invariants::broken::check;

const TYPE: &str = "org.user.upserted.v1";
const APPLIED: &str = "SELECT count(*) FROM onceflow.inbox WHERE outcome = 'applied'";
/// Events that are published at once.
const CHUNK: usize = 500;
/// For each thousand events, beside [`SOON`].
const THOUSAND_WITHIN: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i1_i2_random_kills_under_load_lose_nothing_and_apply_nothing_twice() {
    let kills = i64::try_from(size("ONCEFLOW_KILLS", 4)).unwrap();
    let events = i64::try_from(size("ONCEFLOW_EVENTS", 2_000)).unwrap();
    let within = SOON + THOUSAND_WITHIN * u32::try_from(events / 1_000).unwrap();
    let stack = Stack::prepare(&domains::consumers(), Wishes::default()).await;
    let all: Vec<_> = (0..events).map(|n| user(&stack, n)).collect();
    let (broker, stream) = (stack.config.broker.clone(), all);
    let load = tokio::spawn(async move {
        for chunk in stream.chunks(CHUNK) {
            publish_once(&broker, chunk).await.unwrap();
        }
    });

    let mut service = Service::start(stack.config_file(), "");
    for round in 1..=kills {
        // The kills are spread over the stream; where exactly each of them hits is left to chance.
        let share = events / (kills + 1);
        let at = share * round - rand::rng().random_range(0..share.max(1));
        eventually(within, || async { (stack.count(APPLIED).await >= at).then_some(()) }).await;
        service.kill().await;
        // What a kill leaves half done is nowhere: neither before the next start nor after it.
        let url = stack.database.as_ref().unwrap().url();
        let left = check(url, &["--full", "--within", "60s"]).await;
        assert_eq!(left.status.code(), Some(0), "{}", String::from_utf8_lossy(&left.stdout));
        service = Service::start(stack.config_file(), "");
    }
    load.await.unwrap();
    eventually(within, || async { (stack.count(APPLIED).await >= events).then_some(()) }).await;
    let left = "SELECT count(*) FROM onceflow.outbox";
    eventually(within, || async { (stack.count(left).await == 0).then_some(()) }).await;

    assert_eq!(stack.count(APPLIED).await, events);
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.inbox").await, events, "nothing else was recorded");
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.org_user WHERE state = 'live'").await, events);
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.dead_letter").await, 0);
    let downstream = stack.downstream().await;
    let ids: BTreeSet<_> = downstream.iter().filter_map(|message| message.message_id.as_deref()).collect();
    // Each effect has one downstream event with an id of its own: an effect that happened twice would have two.
    assert_eq!(i64::try_from(ids.len()).unwrap(), events);
    let redelivered = stack.count("SELECT coalesce(sum(duplicates), 0)::bigint FROM onceflow.inbox").await;
    let published_again = downstream.len() - ids.len();
    eprintln!("{kills} kills, {events} events: {redelivered} duplicates recognised, {published_again} published again");
    service.kill().await;
}

fn user(stack: &Stack, n: i64) -> Outgoing {
    let body = json!({"directory": "d", "id": format!("u{n}"), "version": "1", "name": "Example Person"});
    stack.plain(TYPE, &format!("e{n}"), &body)
}

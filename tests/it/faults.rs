//! The process dies at each step of the way, and the answer to COMMIT is lost: nothing is lost, nothing is applied twice.

use std::collections::BTreeSet;

use onceflow::domains;
use serde_json::json;

use crate::harness::proxy::Proxy;
use crate::harness::service::Service;
use crate::harness::{Probe, SOON, Stack, Wishes, probe::EVENT, servers};
use onceflow::runtime::{AnyConsumer, erase};

const USERS: i64 = 60;
const TYPE: &str = "org.user.upserted.v1";

/// Runs until the process dies at `point`, runs again, and compares inbox, effects and the sibling's journal.
async fn dies_at(point: &str, events: fn(&Stack) -> Vec<onceflow::broker::Outgoing>) -> Stack {
    let stack = Stack::prepare(&domains::consumers(), Wishes::default()).await;
    stack.publish_all(events(&stack)).await;
    let mut service = Service::start(stack.config_file(), &format!("{point}=return"));
    service.died(SOON).await;
    let service = Service::start(stack.config_file(), "");
    stack.until_count("SELECT count(*) FROM onceflow.inbox WHERE outcome = 'applied'", USERS).await;
    let downstream = stack.downstream().await;
    let ids: BTreeSet<_> = downstream.iter().filter_map(|m| m.message_id.clone()).collect();
    assert_eq!(ids.len() as i64, USERS, "each effect was told downstream");
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.org_user").await, USERS);
    assert_eq!(stack.count("SELECT sum(downstream)::bigint FROM onceflow.inbox").await, USERS);
    service.kill().await;
    stack
}

fn users(stack: &Stack) -> Vec<onceflow::broker::Outgoing> {
    (0..USERS).map(|n| stack.plain(TYPE, &format!("e{n}"), &user(n))).collect()
}

fn user(n: i64) -> serde_json::Value {
    json!({"directory": "d", "id": format!("u{n}"), "version": "1", "name": "Example Person"})
}

fn users_and_a_bad_one(stack: &Stack) -> Vec<onceflow::broker::Outgoing> {
    let bad = |n| stack.plain(TYPE, &format!("bad{n}"), &json!({"directory": "d"}));
    (0..3).map(bad).chain(users(stack)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i1_death_before_begin_loses_nothing_p1() {
    dies_at("before_begin", users).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i3_death_after_the_claim_leaves_nothing_half_done_p2() {
    dies_at("after_claim", users).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i2_death_after_commit_applies_nothing_twice_p4() {
    let stack = dies_at("after_commit", users).await;
    assert!(stack.count("SELECT sum(duplicates)::bigint FROM onceflow.inbox").await > 0, "the fault was reached");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i2_death_before_the_ack_applies_nothing_twice_p5() {
    dies_at("before_ack", users).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i1_death_between_dead_letter_and_ack_keeps_one_dead_letter_p10() {
    let stack = dies_at("after_dead_letter", users_and_a_bad_one).await;
    stack.until_count("SELECT count(*) FROM onceflow.dead_letter", 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i4_relay_death_after_publish_before_the_confirm_publishes_again_with_the_same_id_p7() {
    dies_at("after_publish", users).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i4_relay_death_after_the_confirm_publishes_again_with_the_same_id_p8() {
    let stack = dies_at("relay_after_confirm", users).await;
    let removed = stack.count("SELECT sum(confirmed)::bigint FROM onceflow.outbox_books").await;
    assert_eq!(removed, USERS, "each row is removed and counted once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i4_relay_death_with_the_delete_uncommitted_publishes_again_p6() {
    dies_at("relay_before_delete", users).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i2_a_commit_whose_answer_is_lost_is_recognised_and_not_counted_as_a_duplicate_d3() {
    let port = url::Url::parse(&servers().await.database_url).unwrap().port().unwrap();
    let proxy = Proxy::before(port).await;
    let consumers = || -> Vec<Box<dyn AnyConsumer>> { vec![erase(Probe::new())] };
    let mut stack = Stack::prepare(&consumers(), Wishes::default()).await;
    Probe::create_ledger(&stack.client).await;
    stack.through(&proxy);
    stack.run(consumers()).await;
    proxy.lose_answers(20);
    let order = |n: i64| stack.plain(EVENT, &format!("e{n}"), &json!({"do": "apply", "n": n}));
    for chunk in (0..300).collect::<Vec<i64>>().chunks(10) {
        stack.publish_all(chunk.iter().map(|n| order(*n)).collect()).await;
    }
    stack.until_count("SELECT count(*) FROM onceflow.inbox WHERE outcome = 'applied'", 300).await;
    assert_eq!(stack.downstream().await.len(), 300);
    assert_eq!(proxy.lost(), 20);
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.probe_ledger").await, 300);
    assert_eq!(stack.count("SELECT sum(duplicates)::bigint FROM onceflow.inbox").await, 0);
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.dead_letter").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_whose_log_nobody_reads_any_more_goes_on_and_stops_in_an_orderly_way_p20() {
    let stack = Stack::prepare(&domains::consumers(), Wishes::default()).await;
    stack.publish_all(users(&stack)).await;
    let service = Service::deaf(stack.config_file());
    stack.until_count("SELECT count(*) FROM onceflow.inbox WHERE outcome = 'applied'", USERS).await;
    assert_eq!(stack.downstream().await.len() as i64, USERS);
    service.stop().await;
}

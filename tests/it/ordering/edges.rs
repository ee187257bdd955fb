//! Where a line is easily lost: events that arrive while it moves on, rows that are dropped, tenants, the kill switch.

use onceflow::db::Commit;
use onceflow::message::Route;
use onceflow::replay::control;
use serde_json::{Value, json};
use tokio::process::Command;
use uuid::Uuid;

use super::{BLOCKED, EVENT, HELD, OPEN, Ordered, STRICT, applied, discard_all, nothing_waits, of_key, replay_all};
use super::{started, until_applied};
use crate::harness::{SOON, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i1_strict_an_event_that_arrives_while_its_line_ends_is_not_left_behind() {
    let ordered = Ordered::refusing(&["a0"]);
    let stack = started(&ordered, STRICT).await;
    stack.publish_all(of_key(&stack, "a", 0..1)).await;
    stack.until_count(BLOCKED, 1).await;
    stack.death("a0").await;
    // Another replica has dealt with the head and has not committed yet.
    let other = stack.database.as_ref().unwrap().client().await;
    other.batch_execute("BEGIN; DELETE FROM onceflow.blocked_key").await.unwrap();
    stack.publish_all(of_key(&stack, "a", 1..3)).await;
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually(SOON, || async { (stack.count(waits).await > 0).then_some(()) }).await;
    other.batch_execute("COMMIT").await.unwrap();
    until_applied(&stack, "a", &[1, 2]).await;
    nothing_waits(&stack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_a_dropped_outbox_row_that_carried_the_head_of_a_line_lets_the_others_go() {
    let ordered = Ordered::refusing(&["a0"]);
    let mut stack = started(&ordered, STRICT).await;
    stack.publish_all(of_key(&stack, "a", 0..4)).await;
    stack.until_count(HELD, 3).await;
    // Nobody publishes the row that carries the first of them.
    stack.stop().await;
    discard_all(&stack).await;
    let park = "UPDATE onceflow.outbox SET parked_at = clock_timestamp(), parked_reason = 'test' RETURNING id";
    let row: Uuid = stack.client.query_one(park, &[]).await.unwrap().get(0);
    let tx = stack.pool().begin().await.unwrap();
    assert_eq!(control::discard_parked(&tx, &[row], ("test", "no longer wanted")).await.unwrap(), 1);
    assert!(matches!(tx.commit().await, Commit::Committed));
    stack.run(ordered.boxed()).await;
    until_applied(&stack, "a", &[2, 3]).await;
    nothing_waits(&stack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i6_strict_the_same_key_of_another_tenant_is_not_blocked() {
    let ordered = Ordered::refusing(&["a0"]);
    let stack = started(&ordered, STRICT).await;
    stack.publish_all(of_key(&stack, "a", 0..2)).await;
    stack.until_count(HELD, 1).await;
    let mut other = stack.keyed(EVENT, "other", "a", &json!({"n": 7}));
    other.message.headers.insert("cloudEvents:tenant".to_owned(), Value::from("acme"));
    stack.publish_all(vec![other]).await;
    assert_eq!(stack.outcome("other").await, "applied");
    assert_eq!((stack.count(HELD).await, applied(&stack, "a").await), (1, vec![7]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i5_strict_the_order_holds_while_the_kill_switch_holds_failures_back() {
    const KEYS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    let first: Vec<String> = KEYS.iter().map(|key| format!("{key}0")).collect();
    let ordered = Ordered::refusing(&first.iter().map(String::as_str).collect::<Vec<_>>());
    let stack = started(&ordered, &format!("{STRICT}[runtime]\nkill_switch_failures = 3\n")).await;
    // The failures first: most of what arrives fails.
    let of_turn = |n: i64| KEYS.iter().flat_map(move |key| [(key, n)]);
    let events = (0..4).flat_map(of_turn).flat_map(|(key, n)| of_key(&stack, key, n..n + 1)).collect();
    stack.publish_all(events).await;
    let paused = || async {
        let checks = stack.app.as_ref().unwrap().health.snapshot();
        matches!(checks.get("consumer.ordered"), Some(onceflow::health::Check::Paused(_))).then_some(())
    };
    eventually(SOON, paused).await;
    assert!(stack.count(OPEN).await < 6, "some were held back");
    for key in KEYS {
        assert_eq!(applied(&stack, key).await, [0_i64; 0], "{key} overtook");
    }
    ordered.mend();
    replay_all(&stack).await;
    for key in KEYS {
        until_applied(&stack, key, &[0, 1, 2, 3]).await;
    }
    nothing_waits(&stack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i5_strict_what_the_broker_gave_up_on_blocks_its_key_and_waits_like_any_other_b15() {
    let stack = started(&Ordered::default(), STRICT).await;
    let given_up = |n: i64| {
        let mut event = of_key(&stack, "a", n..n + 1).remove(0);
        event.route = Route { exchange: String::new(), routing_key: "onceflow.ordered.dlq".to_owned() };
        event
    };
    stack.publish_all(vec![given_up(0)]).await;
    assert_eq!(stack.death("a0").await.0, "broker");
    stack.publish_all(of_key(&stack, "a", 1..2)).await;
    stack.until_count(HELD, 1).await;
    stack.publish_all(vec![given_up(2)]).await;
    stack.until_count(HELD, 2).await;
    stack.publish_all(of_key(&stack, "a", 3..4)).await;
    stack.until_count(HELD, 3).await;
    eventually(SOON, || async { (stack.depth("onceflow.ordered.dlq").await == 0).then_some(()) }).await;
    assert_eq!(stack.count(OPEN).await, 1);
    discard_all(&stack).await;
    until_applied(&stack, "a", &[1, 2, 3]).await;
    nothing_waits(&stack).await;
}

#[tokio::test]
async fn an_unknown_policy_is_exit_6_and_names_the_two_there_are() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onceflow"));
    command
        .arg("check")
        .env_clear()
        .current_dir(std::env::temp_dir())
        .env("ONCEFLOW_CONSUMERS__ORG__ORDERING", "loose");
    let output = command.output().await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(6));
    assert!(said.contains("\"loose\" is neither \"versioned\" nor \"strict\""), "{said}");
}

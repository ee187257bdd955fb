//! What a plan tells to decide by, and a job that makes room for others.

use std::sync::Arc;

use onceflow::replay::job::{self, Action, Loads, NewJob, Settings};
use onceflow::runtime::{AnyConsumer, erase};
use serde_json::json;

use super::desk::{Desk, everything};
use super::service::{ask, letters, onceflow, told, until_done};
use crate::harness::probe::EVENT;
use crate::harness::{Probe, SOON, Stack, Wishes, eventually};

const VERSION: &str = env!("CARGO_PKG_VERSION");

#[tokio::test]
async fn a_canary_takes_one_of_every_group_of_one_kind_before_two_of_any() {
    let desk = Desk::new().await;
    desk.letters("probe", "many", 50, 50).await;
    let groups = "UPDATE onceflow.dead_letter SET group_text = 'it failed', group_id = CASE
        WHEN event_id = 'many-50' THEN 'cccccccccccccccc' WHEN event_id IN ('many-48', 'many-49') THEN 'bbbbbbbbbbbbbbbb'
        ELSE 'aaaaaaaaaaaaaaaa' END";
    desk.client.execute(groups, &[]).await.unwrap();
    desk.made(&NewJob { settings: Settings { canary: 4, hold_seconds: 300, ..Settings::default() }, ..everything() })
        .await;
    let canaries = "SELECT left(d.group_id, 1) FROM onceflow.bulk_job_item i JOIN onceflow.dead_letter d ON d.id = i.dead_letter_id
                     WHERE i.canary ORDER BY 1";
    let rows = desk.client.query(canaries, &[]).await.unwrap();
    let found: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(found, ["a", "a", "b", "c"]);
}

#[tokio::test]
async fn a_plan_tells_how_many_failed_in_this_version_and_a_discard_does_not_care() {
    let desk = Desk::new().await;
    desk.letters("probe", "cycle", 10, 10).await;
    let newer =
        "UPDATE onceflow.dead_letter SET consumer_version = $1 WHERE event_id IN ('cycle-1', 'cycle-2', 'cycle-9')";
    desk.client.execute(newer, &[&VERSION]).await.unwrap();
    let dry = NewJob { dry_run: true, ..everything() };
    assert_eq!(desk.create(&dry).await.unwrap().plan.same_version, 3);
    let some = NewJob { max: Some(5), ..dry.clone() };
    assert_eq!(desk.create(&some).await.unwrap().plan.same_version, 2, "of those that are taken");
    let discard = NewJob { action: Action::Discard, ..dry };
    assert_eq!(desk.create(&discard).await.unwrap().plan.same_version, 0);
}

#[tokio::test]
async fn payloads_of_a_plan_are_short_masked_and_never_stored_with_the_job() {
    let desk = Desk::new().await;
    desk.letters("probe", "cycle", 8, 8).await;
    let bodies = "UPDATE onceflow.dead_letter SET payload = CASE event_id
        WHEN 'cycle-1' THEN convert_to('{\"phone\": \"+8613812345678\", \"token\": \"t0ps3cret\"}', 'UTF8')
        WHEN 'cycle-2' THEN convert_to('{\"text\": \"' || repeat('x', 5000) || '\"}', 'UTF8')
        WHEN 'cycle-3' THEN convert_to('{\"text\": \"' || repeat('y', 70000) || '\"}', 'UTF8')
        WHEN 'cycle-4' THEN convert_to('{\"token\": \"t0ps3cret', 'UTF8') ELSE '\\xff00'::bytea END";
    desk.client.execute(bodies, &[]).await.unwrap();
    let job = desk.made(&everything()).await;
    let tx = desk.pool.begin().await.unwrap();
    let hints = job::hints(&tx, Action::Replay, &job.plan, &Loads::default()).await.unwrap();
    tx.rollback().await;
    let payloads: Vec<Option<&str>> = hints.previews.iter().map(|preview| preview.payload.as_deref()).collect();
    assert_eq!(payloads.len(), 5, "a bounded number");
    assert_eq!(payloads[0], Some(r#"{"phone":"****78","token":"****"}"#));
    assert!(payloads[1].is_some_and(|text| text.chars().count() == 301), "{payloads:?}");
    assert_eq!(payloads[2..], [None, None, None], "too large, no JSON, no text");
    assert_eq!((hints.targets.len(), hints.targets[0].backlog), (1, None), "without a broker nothing is known of it");
    let stored =
        "SELECT count(*) FROM onceflow.bulk_job WHERE plan::text LIKE '%preview%' OR plan::text LIKE '%s3cret%'";
    assert_eq!(desk.count(stored).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_plan_of_the_command_line_shows_payloads_backlog_and_the_same_version_and_asking_the_broker_changes_nothing()
 {
    let consumers = || -> Vec<Box<dyn AnyConsumer>> { vec![erase(Probe::new())] };
    let mut stack = Stack::prepare(&consumers(), Wishes::default()).await;
    Probe::create_ledger(&stack.client).await;
    stack.run(consumers()).await;
    // Paused, so that what is published waits.
    let (status, _) = ask(&stack, "li", "consumers/probe/pause", Some(json!({ "reason": "test" }))).await;
    assert_eq!(status, 200);
    let queue = "onceflow.probe".to_owned();
    let waits = (0..7).map(|n| stack.plain(EVENT, &format!("live-{n}"), &json!({ "do": "apply", "n": n }))).collect();
    eventually(SOON, || async {
        let (_, consumers) = ask(&stack, "li", "status", None).await;
        (consumers["checks"]["consumer.probe"]["state"] == "paused").then_some(())
    })
    .await;
    stack.publish_all(waits).await;
    letters(&stack, ("probe", "cycle"), 3, 3, (EVENT, "{\"do\": \"apply\", \"n\": %, \"phone\": \"13812345678\"}"))
        .await;
    stack.client.execute("UPDATE onceflow.dead_letter SET consumer_version = $1", &[&VERSION]).await.unwrap();
    let (stack_, args) = (&stack, ["dlq", "plan", "--consumer", "probe", "-o", "json"]);
    let (plan, talk) = eventually(SOON, || async move {
        let (code, plan, talk) = told(&onceflow(stack_, "li", &args).await);
        assert_eq!(code, 0, "{talk}");
        // What was seen of the queue may be a second old.
        (plan["hints"]["targets"][0]["backlog"] == 7).then_some((plan, talk))
    })
    .await;
    assert_eq!((&plan["count"], &plan["same_version"]), (&json!(3), &json!(3)), "{plan}");
    assert_eq!(plan["hints"]["previews"].as_array().unwrap().len(), 3);
    assert!(talk.contains("same version: 3 of 3"), "{talk}");
    assert!(talk.contains("probe: 7 messages wait for it"), "{talk}");
    assert!(talk.contains("\"phone\":\"****78\"") && !talk.contains("13812345678"), "{talk}");
    assert_eq!(stack.depth(&queue).await, 7, "looking takes nothing");
    let (status, _) = ask(&stack, "li", "consumers/probe/resume", Some(json!({ "reason": "test" }))).await;
    assert_eq!(status, 200);
    stack.until_count("SELECT count(*) FROM onceflow.probe_ledger", 7).await;
}

/// Patient handlers: the test holds what is published until it opens the gate.
const PATIENT: &str = "
[retry]
delays = [\"100ms\"]
max_attempts = 3
[runtime]
drain_within = \"5s\"
handler_timeout = \"50s\"
prefetch = 200
look_for_pauses = \"100ms\"
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_makes_room_while_messages_of_others_wait_and_goes_on_when_they_are_dealt_with() {
    let probe = Probe::new();
    let gate = Arc::clone(&probe.gate);
    let consumers = || -> Vec<Box<dyn AnyConsumer>> { vec![erase(probe.clone())] };
    let wishes = Wishes { settings: PATIENT.to_owned(), ..Wishes::default() };
    let mut stack = Stack::prepare(&consumers(), wishes).await;
    Probe::create_ledger(&stack.client).await;
    stack.run(consumers()).await;
    let count: usize = 1_500;
    let live = (0..count).map(|n| stack.plain(EVENT, &format!("live-{n}"), &json!({ "do": "wait", "n": n }))).collect();
    stack.publish_all(live).await;
    letters(&stack, ("probe", "cycle"), 25, 25, (EVENT, "{\"do\": \"apply\", \"n\": %}")).await;
    let job = json!({ "action": "replay", "selection": { "filter": {} }, "reason": "mended",
                      "settings": { "rate": 8, "hold_seconds": 0, "canary": 0 } });
    let (_, made) = ask(&stack, "li", "jobs", Some(job)).await;
    let path = format!("jobs/{}", made["job"]["id"].as_str().unwrap());
    let (stack_, path_) = (&stack, &path);
    let slowed = eventually(SOON, || async move {
        let (_, job) = ask(stack_, "li", path_, None).await;
        let why = job["waits_for"].as_str().unwrap_or_default();
        why.contains("other messages wait for the consumer").then_some(job)
    })
    .await;
    assert_eq!(slowed["state"], "running", "{slowed}");
    assert!(slowed["waits_for"].as_str().unwrap().starts_with("it goes at 1 a second because"), "{slowed}");
    assert!(slowed["plan"]["hints"]["targets"][0]["backlog"].as_u64().is_some_and(|n| n > 1_000), "{slowed}");

    gate.add_permits(count);
    let done = until_done(&stack, made["job"]["id"].as_str().unwrap()).await;
    assert_eq!((&done["succeeded"], &done["waits_for"]), (&json!(25), &json!(null)), "{done}");
    stack.until_count("SELECT count(*) FROM onceflow.probe_ledger", 1_525).await;
}

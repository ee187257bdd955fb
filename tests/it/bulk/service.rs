//! Jobs in the real service: relay, broker, consumer, HTTP and the command line.

use std::process::{Output, Stdio};

use onceflow::domains;
use onceflow::runtime::{AnyConsumer, erase};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio_postgres::types::ToSql;

use super::desk::INSERT;
use crate::harness::probe::EVENT;
use crate::harness::service::Service;
use crate::harness::{Probe, SOON, Stack, Wishes, eventually, size};

async fn stack() -> Stack {
    let consumers = || -> Vec<Box<dyn AnyConsumer>> { vec![erase(Probe::new())] };
    let mut stack = Stack::prepare(&consumers(), Wishes::default()).await;
    Probe::create_ledger(&stack.client).await;
    stack.run(consumers()).await;
    stack
}

pub(super) async fn letters(
    stack: &Stack,
    (consumer, reason): (&str, &str),
    count: i64,
    keys: i64,
    (event_type, body): (&str, &str),
) {
    let params: [&(dyn ToSql + Sync); 6] = [&consumer, &reason, &count, &keys, &event_type, &body];
    stack.client.execute(INSERT, &params).await.unwrap();
}

pub(super) async fn ask(stack: &Stack, actor: &str, path: &str, body: Option<Value>) -> (u16, Value) {
    let method = if body.is_some() { Method::POST } else { Method::GET };
    let url = format!("http://{}/api/v1/{path}", stack.app.as_ref().unwrap().admin);
    let mut request = reqwest::Client::new().request(method, url).header("onceflow-actor", actor);
    if let Some(body) = body {
        request = request.json(&body);
    }
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

pub(super) async fn until_done(stack: &Stack, job: &str) -> Value {
    let path = format!("jobs/{job}");
    let path = &path;
    eventually(SOON, || async move {
        let (_, job) = ask(stack, "li", path, None).await;
        (job["state"] == "done").then_some(job)
    })
    .await
}

fn quickly(filter: &Value) -> Value {
    json!({ "action": "replay", "selection": { "filter": filter }, "reason": "mended",
            "settings": { "rate": 500, "hold_seconds": 0 } })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_replays_each_dead_letter_once_in_order_per_key() {
    let stack = stack().await;
    letters(&stack, ("probe", "cycle"), 200, 20, (EVENT, "{\"do\": \"apply\", \"n\": %}")).await;
    let (status, made) = ask(&stack, "li", "jobs", Some(quickly(&json!({})))).await;
    assert_eq!((status, &made["plan"]["count"]), (200, &json!(200)), "{made}");
    let job = until_done(&stack, made["job"]["id"].as_str().unwrap()).await;
    assert_eq!((&job["succeeded"], &job["failed_again"]), (&json!(200), &json!(0)), "{job}");
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.probe_ledger").await, 200);
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.dead_letter WHERE state = 'replayed'").await, 200);
    let backwards = "SELECT count(*) FROM onceflow.probe_ledger a JOIN onceflow.probe_ledger b
                     ON a.key = b.key AND a.seq < b.seq AND a.n > b.n";
    assert_eq!(stack.count(backwards).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replays_that_fail_again_are_open_again_and_a_failing_canary_pauses() {
    let stack = stack().await;
    letters(&stack, ("probe", "bad"), 12, 12, (EVENT, "{\"do\": \"reject\", \"n\": %}")).await;
    let (_, made) = ask(&stack, "li", "jobs", Some(quickly(&json!({ "consumer": "probe" })))).await;
    let path = format!("jobs/{}", made["job"]["id"].as_str().unwrap());
    let (stack, path) = (&stack, &path);
    let paused = eventually(SOON, || async move {
        let (_, job) = ask(stack, "li", path, None).await;
        (job["state"] == "paused" && job["in_flight"] == 0).then_some(job)
    })
    .await;
    let sent = paused["failed_again"].as_i64().unwrap();
    assert!((1..=5).contains(&sent), "{paused}");
    assert_eq!(paused["waiting"], 12 - sent);
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.dead_letter WHERE state = 'open'").await, 12);
    let (status, problem) = ask(stack, "wang", "jobs", Some(quickly(&json!({ "consumer": "probe" })))).await;
    assert_eq!((status, &problem["code"]), (409, &json!("taken_by_another_job")));
    assert!(problem["detail"].as_str().unwrap().contains("of li (mended)"), "{problem}");
}

/// `ONCEFLOW_REPLAYED` makes it longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_goes_on_after_kills_and_each_dead_letter_is_applied_once_and_in_order() {
    let count = i64::try_from(size("ONCEFLOW_REPLAYED", 400)).unwrap();
    let keys = count / 8;
    let stack = Stack::prepare(&domains::consumers(), Wishes::default()).await;
    // The version rises with every event of a user, so one that comes too early makes its predecessors stale.
    let body = "{\"directory\": \"d\", \"id\": \"u%\", \"version\": \"%\", \"name\": \"N\"}";
    letters(&stack, ("org", "cycle"), count, keys, ("org.user.upserted.v1", body)).await;
    let same_user =
        "UPDATE onceflow.dead_letter SET payload = convert_to(jsonb_set(convert_from(payload, 'UTF8')::jsonb, '{id}',
                        to_jsonb(partition_key))::text, 'UTF8')";
    stack.client.execute(same_user, &[]).await.unwrap();
    let plan = onceflow::replay::job::NewJob {
        settings: onceflow::replay::job::Settings { rate: 500, max_in_flight: 500, canary: 5, hold_seconds: 0 },
        ..super::desk::everything()
    };
    let tx = stack.pool().begin().await.unwrap();
    onceflow::replay::job::create(&tx, &plan, &["org"]).await.unwrap();
    assert!(matches!(tx.commit().await, onceflow::db::Commit::Committed));

    let mut service = Service::start(stack.config_file(), "");
    let succeeded = "SELECT succeeded::int8 FROM onceflow.bulk_job";
    for share in [1, 3, 5] {
        eventually(SOON, || async { (stack.count(succeeded).await >= count * share / 8).then_some(()) }).await;
        service.kill().await;
        service = Service::start(stack.config_file(), "");
    }
    stack.until_count("SELECT count(*) FROM onceflow.bulk_job WHERE state = 'done'", 1).await;
    assert_eq!(stack.count(succeeded).await, count);
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.inbox WHERE outcome = 'applied'").await, count);
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.inbox").await, count, "none was stale: all came in order");
    assert_eq!(
        stack.count("SELECT count(*) FROM onceflow.dead_letter WHERE state <> 'replayed' OR replays <> 1").await,
        0
    );
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.audit WHERE action = 'job.replay'").await, count);
    eprintln!("{count} replayed over 3 kills; peak memory of the last process {} MiB", service.peak_memory() >> 20);
    service.kill().await;
}

pub(super) async fn onceflow(stack: &Stack, actor: &str, args: &[&str]) -> Output {
    let server = format!("http://{}", stack.app.as_ref().unwrap().admin);
    let mut command = Command::new(env!("CARGO_BIN_EXE_onceflow"));
    command.args(args).args(["--server", &server, "--actor", actor]).env_clear().current_dir(std::env::temp_dir());
    command.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap()
}

pub(super) fn told(output: &Output) -> (i32, Value, String) {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    let data = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().unwrap(), data, stderr)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_plans_replays_undoes_and_tells_conflicts() {
    let stack = stack().await;
    letters(&stack, ("probe", "cycle"), 30, 30, (EVENT, "{\"do\": \"apply\", \"n\": %}")).await;
    let run = async |actor: &str, args: &[&str]| told(&onceflow(&stack, actor, args).await);

    let (code, plan, talk) = run("li", &["dlq", "plan", "--consumer", "probe", "-o", "json"]).await;
    assert_eq!((code, &plan["schema"], &plan["count"]), (0, &json!("onceflow.dlq.plan/1"), &json!(30)), "{talk}");
    assert!(talk.contains("30 dead letters; about 1 s"), "{talk}");
    let (code, ..) = run("li", &["dlq", "plan", "--consumer", "nobody"]).await;
    assert_eq!(code, 3);
    let (code, _, talk) = run("li", &["dlq", "replay", "--consumer", "probe"]).await;
    assert_eq!(code, 2, "a reason is needed: {talk}");

    let hold =
        ["dlq", "replay", "--consumer", "probe", "--reason", "mended", "--hold", "5m", "--no-wait", "-o", "json"];
    let (code, made, talk) = run("li", &hold).await;
    assert_eq!((code, &made["job"]["state"]), (0, &json!("held")), "{talk}");
    let id = made["job"]["id"].as_str().unwrap();
    let (code, _, talk) = run("wang", &["dlq", "replay", "--consumer", "probe", "--reason", "me too"]).await;
    assert_eq!(code, 5, "{talk}");
    assert!(talk.contains(id) && talk.contains("of li (mended)"), "{talk}");
    let (code, _, talk) = run("li", &["jobs", "cancel", id, "--reason", "wrong"]).await;
    assert_eq!(code, 0);
    assert!(talk.contains("undone: nothing was sent"), "{talk}");
    assert_eq!(run("li", &["jobs", "watch", id]).await.0, 1, "a cancelled job is no success");

    let now = [
        "dlq",
        "replay",
        "--consumer",
        "probe",
        "--reason",
        "mended",
        "--hold",
        "0s",
        "--expect-count",
        "30",
        "-o",
        "json",
    ];
    let (code, done, talk) = run("li", &now).await;
    assert_eq!((code, &done["schema"], &done["succeeded"]), (0, &json!("onceflow.jobs.watch/1"), &json!(30)), "{talk}");
    assert!(talk.contains("done 30/30: 30 ok"), "{talk}");
    let (code, list, _) = run("li", &["jobs", "list", "-o", "json"]).await;
    assert_eq!((code, list["items"].as_array().unwrap().len()), (0, 2));
    let (code, _, talk) = run("li", &["jobs", "show", "00000000-0000-0000-0000-000000000000"]).await;
    assert_eq!(code, 3, "{talk}");
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.probe_ledger").await, 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_id_is_replayed_at_once_and_several_are_a_job() {
    let stack = stack().await;
    letters(&stack, ("probe", "cycle"), 3, 3, (EVENT, "{\"do\": \"apply\", \"n\": %}")).await;
    let rows =
        stack.client.query("SELECT id::text FROM onceflow.dead_letter ORDER BY first_failed_at", &[]).await.unwrap();
    let ids: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let (code, done, talk) = told(&onceflow(&stack, "li", &["dlq", "replay", &ids[0], "--wait", "-o", "json"]).await);
    assert_eq!((code, &done["schema"]), (0, &json!("onceflow.dlq.replay/1")), "{talk}");
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.bulk_job").await, 0);
    let both = ["dlq", "replay", &ids[1], &ids[2], "--reason", "mended", "--hold", "0s", "-o", "json"];
    let (code, done, talk) = told(&onceflow(&stack, "li", &both).await);
    assert_eq!((code, &done["succeeded"]), (0, &json!(2)), "{talk}");
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.probe_ledger").await, 3);
}

//! Dead letters that are put away, and taken back.

use std::process::{Output, Stdio};
use std::time::Duration;

use onceflow::replay::control;
use onceflow::retention::{Table, prune};
use onceflow::runtime::{AnyConsumer, erase};
use serde_json::{Value, json};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::admin::Door;
use crate::harness::probe::EVENT;
use crate::harness::{Database, Probe, SOON, Stack, Wishes, eventually};

const INSERT: &str = "
    INSERT INTO onceflow.dead_letter (id, tenant, consumer, source, event_id, event_type, partition_key, stage, reason, error_chain,
        content_type, payload, headers, original_exchange, original_routing_key, attempts, first_failed_at, last_failed_at,
        consumer_version)
    VALUES ($1, 'acme', 'org', 'hr', $2, 'org.user.upserted.v1', 'user/1', 'handle', 'parent_missing', ARRAY['no department 7'],
        'application/json', '{\"a\": 1}', '{\"amqp:message_id\": \"e\"}', 'onceflow.in', 'org.user.upserted.v1', 6,
        now() - interval '2 hours', now() - interval '1 hour', '1')";
/// Everything of a dead letter, and which transaction wrote it.
const ROWS: &str = "SELECT md5(string_agg(d::text || d.xmin::text, '|' ORDER BY d.id)) FROM onceflow.dead_letter AS d";
/// What a dead letter says, without who wrote it.
const TEXT: &str = "SELECT d::text FROM onceflow.dead_letter AS d WHERE id = $1";

struct Desk {
    database: Database,
    client: Client,
    door: Door,
}

impl Desk {
    async fn new() -> Self {
        let database = Database::new().await;
        Self { client: database.client().await, door: Door::open(database.pool(), None).await, database }
    }

    async fn letter(&self, event: &str) -> Uuid {
        let id = Uuid::now_v7();
        self.client.execute(INSERT, &[&id, &event]).await.unwrap();
        id
    }

    async fn change(&self, verb: &str, ids: &[Uuid]) -> Value {
        let body = json!({ "selection": { "ids": ids }, "reason": "the sender is gone" });
        let (status, done) = self.post(&format!("/api/v1/dlq/{verb}"), body).await;
        assert_eq!(status, 200, "{done}");
        done
    }

    async fn listed(&self, query: &str) -> usize {
        let (status, page) = self.door.get(&format!("/api/v1/dlq?{query}")).await;
        assert_eq!(status, 200, "{page}");
        page["items"].as_array().unwrap().len()
    }

    async fn text(&self, id: Uuid) -> String {
        self.client.query_one(TEXT, &[&id]).await.unwrap().get(0)
    }

    async fn count(&self, sql: &str) -> i64 {
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// On a machine with much to do the service may not know in time whether a token is needed: then nothing was done.
    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let body = &body;
        eventually(SOON, || async move {
            let answer = self.door.post(path, body.clone()).await;
            (answer.1["code"] != "database_unreachable").then_some(answer)
        })
        .await
    }

    async fn onceflow(&self, args: &[&str]) -> (i32, Value, String) {
        eventually(SOON, || async move {
            let ended = self.onceflow_once(args).await;
            (ended.0 != 7).then_some(ended)
        })
        .await
    }

    async fn onceflow_once(&self, args: &[&str]) -> (i32, Value, String) {
        let server = format!("http://{}", self.door.address);
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_onceflow"));
        command.args(args).args(["--server", &server, "--actor", "li"]).env_clear().current_dir(std::env::temp_dir());
        let Output { status, stdout, stderr } = command.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap();
        let data = serde_json::from_slice(&stdout).unwrap_or(Value::Null);
        (status.code().unwrap(), data, String::from_utf8(stderr).unwrap())
    }
}

fn whys(done: &Value) -> Vec<&str> {
    done["ineligible"].as_array().unwrap().iter().map(|left| left["why"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn an_archived_dead_letter_leaves_the_open_list_and_a_restore_brings_it_back_as_it_was() {
    let desk = Desk::new().await;
    let id = desk.letter("e1").await;
    let before = desk.text(id).await;
    let done = desk.change("archive", &[id]).await;
    assert_eq!(done["ids"], json!([id]));
    let until: jiff::Timestamp = done["restorable_until"].as_str().unwrap().parse().unwrap();
    let days = until.duration_since(jiff::Timestamp::now()).as_hours() / 24;
    assert!((179..=180).contains(&days), "kept as long as closed dead letters are: {until}");

    assert_eq!((desk.listed("").await, desk.listed("state=archived").await, desk.listed("state=any").await), (0, 1, 1));
    let (_, groups) = desk.door.get("/api/v1/dlq/groups?state=archived").await;
    assert_eq!(groups["items"][0]["count"], 1, "{groups}");
    assert_eq!(desk.door.get("/api/v1/dlq/groups").await.1["items"], json!([]));
    let (_, shown) = desk.door.get(&format!("/api/v1/dlq/{id}")).await;
    assert_eq!((&shown["state"], &shown["closed_reason"]), (&json!("archived"), &json!("the sender is gone")));
    assert_eq!(shown["restorable_until"], done["restorable_until"], "{shown}");
    let tx = desk.database.pool().begin().await.unwrap();
    let totals = control::dead_letter_totals(&tx).await.unwrap();
    tx.rollback().await;
    assert_eq!((totals[0].open, totals[0].archived, totals[0].groups), (0, 1, 0));

    assert_eq!(desk.change("restore", &[id]).await["ids"], json!([id]));
    assert_eq!(desk.text(id).await, before, "nothing of it was lost");
    assert_eq!(desk.listed("").await, 1);
    assert_eq!(desk.count("SELECT count(*) FROM onceflow.outbox").await, 0, "nothing was sent");
}

#[tokio::test]
async fn only_open_ones_are_archived_only_archived_ones_restored_and_each_with_a_reason() {
    let desk = Desk::new().await;
    let [open, archived, discarded, underway] =
        [desk.letter("e1").await, desk.letter("e2").await, desk.letter("e3").await, desk.letter("e4").await];
    desk.change("archive", &[archived]).await;
    desk.change("discard", &[discarded]).await;
    desk.change("replay", &[underway]).await;
    assert_eq!(
        whys(&desk.change("archive", &[archived, discarded, underway]).await),
        ["archived", "discarded", "replaying"]
    );
    assert_eq!(whys(&desk.change("replay", &[archived]).await), ["archived"]);
    assert_eq!(whys(&desk.change("discard", &[archived]).await), ["archived"]);
    assert_eq!(
        whys(&desk.change("restore", &[open, discarded, underway, Uuid::nil()]).await),
        ["not_found", "open", "discarded", "replaying"]
    );
    for verb in ["archive", "restore"] {
        let body = json!({ "selection": { "ids": [open] } });
        let (status, problem) = desk.post(&format!("/api/v1/dlq/{verb}"), body).await;
        assert_eq!((status, &problem["code"]), (400, &json!("reason_needed")), "{problem}");
    }
    let body = json!({ "selection": { "filter": { "state": "open" } }, "reason": "x" });
    let (status, problem) = desk.post("/api/v1/dlq/restore", body).await;
    assert_eq!((status, &problem["code"]), (400, &json!("not_archived")), "{problem}");
}

#[tokio::test]
async fn an_archive_and_its_undo_leave_a_row_for_the_operation_and_one_for_each_dead_letter() {
    let desk = Desk::new().await;
    let ids = [desk.letter("e1").await, desk.letter("e2").await];
    let dry = json!({ "selection": { "ids": ids }, "dry_run": true });
    assert_eq!(desk.post("/api/v1/dlq/archive", dry).await.1["ids"], json!(ids));
    assert_eq!(desk.count("SELECT count(*) FROM onceflow.audit").await, 0, "a dry run is none");
    desk.change("archive", &ids).await;
    let filter = json!({ "selection": { "filter": { "consumer": "org" } }, "reason": "back", "expect_count": 2 });
    let (status, restored) = desk.post("/api/v1/dlq/restore", filter).await;
    assert_eq!((status, restored["ids"].as_array().unwrap().len()), (200, 2), "{restored}");
    let rows =
        "SELECT count(*) FROM onceflow.audit AS l JOIN onceflow.audit AS o ON o.id::text = l.detail->>'operation'
                 WHERE l.action = 'letter.archive' AND l.detail->>'before' = 'open' AND l.detail->>'after' = 'archived'
                   AND o.action = 'dlq.archive' AND o.detail->>'count' = '2' AND l.reason = 'the sender is gone'
                   AND l.xmin = o.xmin";
    assert_eq!(desk.count(rows).await, 2);
    let back = "SELECT count(*) FROM onceflow.audit WHERE action = 'letter.restore' AND detail->>'before' = 'archived'
                   AND detail->>'after' = 'open' AND reason = 'back'";
    assert_eq!((desk.count(back).await, desk.count("SELECT count(*) FROM onceflow.audit").await), (2, 6));
    let (_, trace) = desk.door.get("/api/v1/events/trace?id=e1").await;
    let told: Vec<_> = trace["items"].as_array().unwrap().iter().filter_map(|step| step["action"].as_str()).collect();
    assert_eq!(told, ["letter.archive", "letter.restore"], "each once: {trace}");
}

#[tokio::test]
async fn what_failed_again_since_is_not_doubled_by_a_restore() {
    let desk = Desk::new().await;
    let first = desk.letter("e1").await;
    desk.change("archive", &[first]).await;
    let second = desk.letter("e1").await;
    assert_eq!(whys(&desk.change("restore", &[first]).await), ["live_again"]);
    desk.change("archive", &[second]).await;
    let done = desk.change("restore", &[first, second]).await;
    assert_eq!((&done["ids"], whys(&done)), (&json!([second]), vec!["live_again"]), "the newer one counts");
}

#[tokio::test]
async fn archived_dead_letters_go_by_retention_alone() {
    let desk = Desk::new().await;
    let [old, young] = [desk.letter("e1").await, desk.letter("e2").await];
    desk.change("archive", &[old, young]).await;
    let aged = "UPDATE onceflow.dead_letter SET closed_at = now() - interval '181 days' WHERE id = $1";
    desk.client.execute(aged, &[&old]).await.unwrap();
    let keep = Some(Duration::from_secs(180 * 86_400));
    assert_eq!(prune(&desk.database.pool(), Table::DeadLetters, keep).await.unwrap(), 1);
    assert_eq!(desk.change("restore", &[young]).await["ids"], json!([young]));
    assert_eq!(whys(&desk.change("restore", &[old]).await), ["not_found"]);
}

#[tokio::test]
async fn the_command_line_archives_says_until_when_and_restores() {
    let desk = Desk::new().await;
    let id = desk.letter("e1").await.to_string();
    let (code, _, talk) = desk.onceflow(&["dlq", "archive", &id]).await;
    assert_eq!(code, 2, "a reason is needed: {talk}");
    let (code, done, talk) = desk.onceflow(&["dlq", "archive", &id, "--reason", "gone", "-o", "json"]).await;
    assert_eq!((code, &done["schema"]), (0, &json!("onceflow.dlq.archive/1")), "{talk}");
    assert!(talk.contains("`onceflow dlq restore` undoes it until 2"), "{talk}");
    let (_, shown, talk) = desk.onceflow(&["dlq", "show", &id, "-o", "json"]).await;
    assert_eq!(shown["restorable_until"], done["restorable_until"]);
    assert!(talk.contains(&format!("onceflow dlq restore {id}")) && talk.contains("possible until 2"), "{talk}");
    let (code, _, talk) = desk.onceflow(&["dlq", "replay", &id]).await;
    assert!(code == 5 && talk.contains("restore it first"), "{code} {talk}");
    let (code, done, talk) = desk.onceflow(&["dlq", "restore", &id, "--reason", "back", "-o", "json"]).await;
    assert_eq!((code, &done["schema"]), (0, &json!("onceflow.dlq.restore/1")), "{talk}");
    assert_eq!(desk.onceflow(&["dlq", "restore", &id, "--reason", "back"]).await.0, 5);
    let (code, _, talk) = desk.onceflow(&["dlq", "restore", "--consumer", "sms", "--reason", "back"]).await;
    assert!(code == 3 && talk.contains("no archived dead letter matches"), "{code} {talk}");
}

/// A lesson of others: dead letters that came to life with the next release, because it allowed more attempts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raising_the_limits_never_sends_old_dead_letters_again() {
    let consumers = || -> Vec<Box<dyn AnyConsumer>> { vec![erase(Probe::new())] };
    let mut stack = Stack::prepare(&consumers(), Wishes::default()).await;
    Probe::create_ledger(&stack.client).await;
    stack.run(consumers()).await;
    for id in ["e1", "e2"] {
        stack.publish(EVENT, id, &json!({ "do": "retry" })).await;
        assert_eq!(stack.death(id).await, ("exhausted".to_owned(), "asked_for".to_owned()));
    }
    let archive =
        "UPDATE onceflow.dead_letter SET state = 'archived', closed_at = now(), closed_by = 'li' WHERE event_id = 'e2'";
    stack.client.execute(archive, &[]).await.unwrap();
    assert!(stack.stop().await);
    let before: String = stack.client.query_one(ROWS, &[]).await.unwrap().get(0);
    let attempts = stack.count("SELECT count(*) FROM onceflow.attempt").await;

    stack.config.runtime.retry.max_attempts = 100;
    stack.config.runtime.limits.max_body_bytes *= 2;
    stack.run(consumers()).await;
    stack.publish(EVENT, "e3", &json!({ "do": "apply" })).await;
    assert_eq!(stack.outcome("e3").await, "applied");
    assert_eq!(stack.downstream().await.len(), 1);
    assert_eq!(stack.client.query_one(ROWS, &[]).await.unwrap().get::<_, String>(0), before);
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.attempt").await, attempts);
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.inbox WHERE event_id IN ('e1', 'e2')").await, 0);
}

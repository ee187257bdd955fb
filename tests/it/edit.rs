//! Edited copies of dead letters: of the original and its copy exactly one is ever applied.

use std::process::{Output, Stdio};

use onceflow::broker::Outgoing;
use onceflow::message::Message;
use onceflow::runtime::{AnyConsumer, erase};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::process::Command;
use uuid::Uuid;

use crate::harness::probe::EVENT;
use crate::harness::{Probe, SOON, Stack, Wishes, eventually};

const LETTER: &str = "SELECT id FROM onceflow.dead_letter WHERE event_id = $1 AND state = 'open'";
const LEDGER: &str = "SELECT count(*) FROM onceflow.probe_ledger";
const NOTHING_WRITTEN: &str = "
    SELECT (SELECT count(*) FROM onceflow.outbox WHERE exchange = '') + (SELECT count(*) FROM onceflow.dead_letter_edit)
         + (SELECT count(*) FROM onceflow.audit WHERE action <> 'dlq.unmask')
         + (SELECT count(*) FROM onceflow.dead_letter WHERE state <> 'open')";
/// A dead letter that a replay would apply.
pub(crate) const INSERT: &str = "
    INSERT INTO onceflow.dead_letter (id, tenant, consumer, source, event_id, event_type, partition_key, stage, reason, error_chain,
        content_type, payload, headers, original_exchange, original_routing_key, attempts, first_failed_at, last_failed_at,
        consumer_version)
    VALUES ($1, 'default', 'probe', '', $2, 'probe.done.v1', $2, 'handle', 'asked_for', ARRAY['it failed'], 'application/json',
        '{\"do\": \"apply\", \"n\": 1}', jsonb_build_object('amqp:message_id', $2::text, 'amqp:type', 'probe.done.v1',
        'amqp:content_type', 'application/json', 'x-death', '[]'::jsonb), 'onceflow.in', 'probe.done.v1', 6, now(), now(), '1')";

async fn stack_with(settings: &str) -> Stack {
    let consumers = || -> Vec<Box<dyn AnyConsumer>> { vec![erase(Probe::new())] };
    let wishes = Wishes { settings: settings.to_owned(), ..Wishes::default() };
    let mut stack = Stack::prepare(&consumers(), wishes).await;
    Probe::create_ledger(&stack.client).await;
    stack.run(consumers()).await;
    stack
}

async fn stack() -> Stack {
    stack_with("[replay]\nedit = true\n[limits]\nmax_body_bytes = 4096\n").await
}

/// On a machine with much to do the service may not know in time whether a token is needed: then nothing was done.
async fn ask(stack: &Stack, actor: &str, path: &str, body: Option<Value>) -> (u16, Value) {
    let body = &body;
    eventually(SOON, || async move {
        let answer = ask_once(stack, actor, path, body.clone()).await;
        (answer.1["code"] != "database_unreachable").then_some(answer)
    })
    .await
}

async fn ask_once(stack: &Stack, actor: &str, path: &str, body: Option<Value>) -> (u16, Value) {
    let method = if body.is_some() { Method::POST } else { Method::GET };
    let url = format!("http://{}/api/v1/{path}", stack.app.as_ref().unwrap().admin);
    let mut request = reqwest::Client::new().request(method, url).header("onceflow-actor", actor);
    if let Some(body) = body {
        request = request.json(&body);
    }
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

/// Has li edit a dead letter.
async fn edit(stack: &Stack, id: Uuid, payload: &Value) -> (u16, Value) {
    let body = json!({ "payload": payload.to_string(), "reason": "told by hr" });
    ask(stack, "li", &format!("dlq/{id}/edit"), Some(body)).await
}

async fn letter(stack: &Stack, event: &str) -> Uuid {
    stack.death(event).await;
    stack.client.query_one(LETTER, &[&event]).await.unwrap().get(0)
}

async fn ledger(stack: &Stack) -> Vec<(String, String, i64)> {
    let rows =
        stack.client.query("SELECT key, event_id, n FROM onceflow.probe_ledger ORDER BY seq", &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

pub(crate) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("no {field} in {value}"))
}

async fn onceflow(stack: &Stack, args: &[&str]) -> (i32, Value, String) {
    eventually(SOON, || async move {
        let ended = onceflow_once(stack, args).await;
        (ended.0 != 7).then_some(ended)
    })
    .await
}

async fn onceflow_once(stack: &Stack, args: &[&str]) -> (i32, Value, String) {
    let server = format!("http://{}", stack.app.as_ref().unwrap().admin);
    let mut command = Command::new(env!("CARGO_BIN_EXE_onceflow"));
    command.args(args).args(["--server", &server, "--actor", "li"]).env_clear().current_dir(std::env::temp_dir());
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap();
    let data = serde_json::from_slice(&stdout).unwrap_or(Value::Null);
    (status.code().unwrap(), data, String::from_utf8(stderr).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edited_copy_is_applied_in_the_place_of_the_original_and_a_late_original_is_a_duplicate() {
    let stack = stack().await;
    let original = || {
        let mut sent = stack.keyed(EVENT, "e1", "user/7", &json!({ "do": "reject", "n": 1 }));
        sent.message.headers.insert("cloudEvents:tenant".to_owned(), "acme".into());
        sent.message.headers.insert("region".to_owned(), "eu".into());
        sent
    };
    stack.publish_all(vec![original()]).await;
    let id = letter(&stack, "e1").await;
    let (status, made) = edit(&stack, id, &json!({ "do": "apply", "n": 2 })).await;
    assert_eq!(status, 200, "{made}");
    let copy = text(&made, "copy_event_id").to_owned();
    let paths: Vec<_> = made["diff"]["fields"].as_array().unwrap().iter().map(|field| text(field, "path")).collect();
    assert_eq!(paths, ["payload.do", "payload.n"]);
    stack.until_count(LEDGER, 1).await;
    assert_eq!(ledger(&stack).await, [("user/7".to_owned(), copy.clone(), 2)]);

    // The broker or the producer brings the original once more.
    stack.publish_all(vec![original()]).await;
    stack.until_count("SELECT duplicates::int8 FROM onceflow.inbox WHERE event_id = 'e1'", 1).await;
    let row = "SELECT outcome || ' ' || reason || ' ' || conflicts || ' ' || tenant FROM onceflow.inbox WHERE event_id = 'e1'";
    assert_eq!(stack.client.query_one(row, &[]).await.unwrap().get::<_, &str>(0), "skipped edited 0 acme");
    assert_eq!(ledger(&stack).await.len(), 1);
    let (_, replayed) = ask(&stack, "wang", "dlq/replay", Some(json!({ "selection": { "ids": [id] } }))).await;
    assert_eq!(replayed["ineligible"][0]["why"], "edited", "{replayed}");

    let (status, second) =
        ask(&stack, "wang", &format!("dlq/{id}/edit"), Some(json!({ "payload": "{}", "reason": "x" }))).await;
    assert_eq!((status, &second["code"]), (409, &json!("already_edited")));
    assert!(text(&second, "detail").contains("li has edited") && text(&second, "detail").contains(&copy), "{second}");

    let (_, shown) = ask(&stack, "li", &format!("dlq/{id}"), None).await;
    assert_eq!(
        (&shown["state"], &shown["edited_into"]["copy_state"]),
        (&json!("edited"), &json!("applied")),
        "{shown}"
    );
    let (_, diff) = ask(&stack, "li", &format!("dlq/{id}/diff"), None).await;
    assert_eq!(
        (&diff["copy_event_id"], &diff["edited_by"], &diff["diff"]),
        (&json!(copy), &json!("li"), &made["diff"])
    );
    for event in ["e1", &copy] {
        let (_, trace) = ask(&stack, "li", &format!("events/trace?id={event}"), None).await;
        let edits: Vec<_> = trace["items"].as_array().unwrap().iter().filter(|step| step["what"] == "edited").collect();
        assert_eq!(edits.len(), 1, "{trace}");
        assert_eq!((text(edits[0], "original_event_id"), text(edits[0], "copy_event_id")), ("e1", copy.as_str()));
        assert_eq!((text(edits[0], "event_id"), text(edits[0], "tenant")), (event, "acme"));
    }
    let rows = "SELECT count(*) FROM onceflow.audit AS l JOIN onceflow.audit AS o ON o.id::text = l.detail->>'operation'
                 WHERE l.action = 'letter.edit' AND l.detail->>'before' = 'open' AND l.detail->>'after' = 'edited' AND l.actor = 'li'
                   AND o.action = 'dlq.edit' AND o.detail->'fields' = '[\"payload.do\", \"payload.n\"]' AND l.reason = 'told by hr'";
    assert_eq!(stack.count(rows).await, 1);
    let kept = "SELECT convert_from(payload, 'UTF8') FROM onceflow.dead_letter_edit";
    assert_eq!(stack.client.query_one(kept, &[]).await.unwrap().get::<_, &str>(0), "{\"do\":\"apply\",\"n\":2}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_original_that_was_applied_meanwhile_makes_the_edit_a_refusal() {
    let stack = stack().await;
    stack.publish(EVENT, "e1", &json!({ "do": 5 })).await;
    let id = letter(&stack, "e1").await;
    // The producer sends it again, as it should be.
    stack.publish(EVENT, "e1", &json!({ "do": "apply", "n": 1 })).await;
    assert_eq!(stack.outcome("e1").await, "applied");
    let (status, refused) = edit(&stack, id, &json!({ "do": "apply", "n": 2 })).await;
    assert_eq!((status, &refused["code"]), (409, &json!("already_applied")), "{refused}");
    assert!(text(&refused, "detail").contains("dealt with meanwhile (applied"), "{refused}");
    assert_eq!((stack.count(LEDGER).await, stack.count(NOTHING_WRITTEN).await), (1, 0));
    let (code, _, talk) =
        onceflow(&stack, &["dlq", "edit", &id.to_string(), "--set", "do=apply", "--reason", "x"]).await;
    assert_eq!(code, 5, "{talk}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_names_the_event_is_locked_and_a_copy_that_its_consumer_would_refuse_is_not_made() {
    let stack = stack().await;
    stack.publish(EVENT, "e1", &json!({ "do": "reject" })).await;
    let id = letter(&stack, "e1").await;
    let path = format!("dlq/{id}/edit");
    for header in
        ["cloudEvents:id", "cloudEvents_subject", "amqp:message_id", "amqp:type", "onceflow-replay-id", "x-death"]
    {
        let body = json!({ "headers": { header: "other" }, "reason": "x" });
        let (status, refused) = ask(&stack, "li", &path, Some(body)).await;
        assert_eq!((status, &refused["code"]), (400, &json!("locked")), "{header}: {refused}");
        assert!(text(&refused, "detail").starts_with(&format!("header {header} stays as it is: ")), "{refused}");
    }
    for (payload, status, code, words) in [
        ("{\"do\": 5}", 422, "payload_refused", "consumer probe would refuse the copy (invalid_json)"),
        ("{\"do\": ", 422, "payload_refused", "consumer probe would refuse the copy (invalid_json)"),
        (&format!("{{\"do\": \"{}\"}}", "x".repeat(4_096)), 422, "payload_refused", "(body_too_large)"),
        ("{\"do\":\"reject\"}", 400, "unchanged", "`onceflow dlq replay` sends it as it was"),
    ] {
        let (found, refused) = ask(&stack, "li", &path, Some(json!({ "payload": payload, "reason": "x" }))).await;
        assert_eq!((found, &refused["code"]), (status, &json!(code)), "{refused}");
        assert!(text(&refused, "detail").contains(words), "{refused}");
    }
    let (status, refused) = ask(&stack, "li", &path, Some(json!({ "payload": "{\"do\": \"apply\"}" }))).await;
    assert_eq!((status, &refused["code"]), (400, &json!("reason_needed")));
    let (status, made) =
        ask(&stack, "li", &path, Some(json!({ "payload": "{\"do\": \"apply\"}", "dry_run": true }))).await;
    assert_eq!(
        (status, &made["copy_event_id"], made["diff"]["fields"].as_array().unwrap().len()),
        (200, &Value::Null, 1)
    );
    assert_eq!(stack.count(NOTHING_WRITTEN).await, 0, "nothing of all that was written");
    let sights =
        "SELECT count(*) FROM onceflow.audit WHERE action = 'dlq.unmask' AND actor = 'li' AND detail->>'seen' = 'edit'";
    assert_eq!(stack.count(sights).await, 1, "but that the dry run showed what stands there (S7.17)");
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.inbox").await, 0);
    let missing = format!("dlq/{}/edit", Uuid::nil());
    assert_eq!(ask(&stack, "li", &missing, Some(json!({ "payload": "{}", "reason": "x" }))).await.0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_structured_event_keeps_its_attributes_and_one_of_another_name_is_refused() {
    let stack = stack().await;
    let event = |id: &str, what: &str| {
        json!({ "specversion": "1.0", "id": id, "source": "hr", "type": EVENT, "subject": "user/9", "tenant": "acme",
                "time": "2026-01-31T08:00:00Z", "data": { "do": what, "n": 3 } })
    };
    let message = Message {
        content_type: Some("application/cloudevents+json".to_owned()),
        body: event("s1", "reject").to_string().into(),
        ..Message::default()
    };
    stack.publish_all(vec![stack.to_ingress(EVENT, message)]).await;
    let id = letter(&stack, "s1").await;
    let (status, refused) = edit(&stack, id, &event("s2", "apply")).await;
    assert_eq!((status, &refused["code"]), (400, &json!("locked")), "{refused}");
    assert!(text(&refused, "detail").starts_with("attribute id stays"), "{refused}");
    let (status, made) = edit(&stack, id, &event("s1", "apply")).await;
    assert_eq!(status, 200, "{made}");
    let copy = text(&made, "copy_event_id").to_owned();
    assert_eq!(stack.outcome(&copy).await, "applied");
    assert_eq!(ledger(&stack).await, [("user/9".to_owned(), copy.clone(), 3)]);
    let same =
        "SELECT count(*) FROM onceflow.inbox AS a JOIN onceflow.inbox AS b USING (tenant, consumer, source, event_type)
                 WHERE a.event_id = 's1' AND b.event_id = $1 AND tenant = 'acme' AND source = 'hr'";
    assert_eq!(stack.client.query_one(same, &[&copy]).await.unwrap().get::<_, i64>(0), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_nobody_could_read_is_edited_once_also_when_it_comes_again() {
    let stack = stack().await;
    let broken = || {
        let mut sent = stack.keyed(EVENT, "b1", "user/3", &json!({}));
        sent.message.headers.insert("cloudEvents:tenant".to_owned(), "acme".into());
        sent.message.body = vec![0xff, b'{'].into();
        sent
    };
    stack.publish_all(vec![broken()]).await;
    let id = letter(&stack, "b1").await;
    assert_eq!(edit(&stack, id, &json!({ "do": "apply", "n": 1 })).await.0, 200);
    stack.until_count(LEDGER, 1).await;
    // Nobody could read whose it was; its copy says so.
    let (_, shown) = ask(&stack, "li", &format!("dlq/{id}"), None).await;
    assert_eq!(
        (&shown["tenant"], &shown["edited_into"]["copy_state"]),
        (&json!("default"), &json!("applied")),
        "{shown}"
    );
    let copy = text(&shown["edited_into"], "copy_event_id");
    let (_, trace) = ask(&stack, "li", &format!("events/trace?id={copy}&tenant=acme"), None).await;
    let told: Vec<_> =
        trace["items"].as_array().unwrap().iter().map(|step| (text(step, "what"), text(step, "tenant"))).collect();
    assert_eq!(told[..2], [("edited", "acme"), ("applied", "acme")], "{trace}");
    // It fails before anybody looks into the inbox, so it is a dead letter once more; which is another one of the same event.
    stack.publish_all(vec![broken()]).await;
    let again = letter(&stack, "b1").await;
    assert_ne!(id, again);
    let (status, refused) = edit(&stack, again, &json!({ "do": "apply", "n": 2 })).await;
    assert_eq!((status, &refused["code"]), (409, &json!("already_edited")), "{refused}");
    // The consumer is mended and reads it: it has no effect all the same.
    let mended = "UPDATE onceflow.dead_letter SET payload = '{\"do\": \"apply\", \"n\": 9}' WHERE id = $1";
    stack.client.execute(mended, &[&again]).await.unwrap();
    ask(&stack, "li", "dlq/replay", Some(json!({ "selection": { "ids": [again] } }))).await;
    stack.until_count("SELECT count(*) FROM onceflow.dead_letter WHERE state = 'replayed'", 1).await;
    assert_eq!(ledger(&stack).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_content_type_is_mended_without_touching_the_payload() {
    let stack = stack().await;
    let Outgoing { route, mut message } = stack.plain(EVENT, "e1", &json!({ "do": "apply", "n": 4 }));
    message.content_type = Some("text/plain".to_owned());
    stack.publish_all(vec![Outgoing { route, message }]).await;
    let id = letter(&stack, "e1").await.to_string();
    let args = [
        "dlq",
        "edit",
        &id,
        "--header",
        "amqp:content_type=application/json",
        "--reason",
        "sent as text",
        "-o",
        "json",
    ];
    let (code, made, talk) = onceflow(&stack, &args).await;
    assert_eq!((code, &made["diff"]["fields"][0]["path"]), (0, &json!("headers.amqp:content_type")), "{talk}");
    stack.until_count(LEDGER, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_fails_is_a_dead_letter_of_its_own_linked_both_ways_and_can_be_edited_too() {
    let stack = stack().await;
    stack.publish(EVENT, "e1", &json!({ "do": "reject", "n": 1 })).await;
    let id = letter(&stack, "e1").await;
    let (_, made) = edit(&stack, id, &json!({ "do": "reject", "n": 2 })).await;
    let copy = text(&made, "copy_event_id").to_owned();
    let failed = letter(&stack, &copy).await;
    let (_, original) = ask(&stack, "li", &format!("dlq/{id}"), None).await;
    assert_eq!(
        (&original["edited_into"]["copy_dead_letter"], &original["edited_from"]),
        (&json!(failed), &Value::Null)
    );
    assert_eq!(original["edited_into"]["copy_state"], "dead");
    let (_, second) = ask(&stack, "li", &format!("dlq/{failed}"), None).await;
    assert_eq!((&second["edited_from"]["dead_letter"], &second["edited_into"]), (&json!(id), &Value::Null), "{second}");
    assert_eq!(second["headers"]["onceflow-edited-from"], "e1");
    assert_eq!(second["original_exchange"], original["original_exchange"]);
    let page = |text: &str, word: &str| assert!(text.contains(word), "{word} is missing in {text}");
    for (letter, word) in [
        (id, format!("edited into    event {copy} (dead, dead letter {failed})")),
        (failed, format!("event e1, dead letter {id}")),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_onceflow"))
            .args([
                "dlq",
                "show",
                &letter.to_string(),
                "--server",
                &format!("http://{}", stack.app.as_ref().unwrap().admin),
            ])
            .env_clear()
            .current_dir(std::env::temp_dir())
            .output()
            .await
            .unwrap();
        page(&String::from_utf8(output.stdout).unwrap(), &word);
    }
    let (code, diff, talk) = onceflow(&stack, &["dlq", "diff", &failed.to_string(), "-o", "json"]).await;
    assert_eq!((code, &diff["schema"], &diff["dead_letter"]), (0, &json!("onceflow.dlq.diff/1"), &json!(id)), "{talk}");

    let args =
        ["dlq", "edit", &failed.to_string(), "--set", "do=apply", "--set", "n=3", "--reason", "now", "-o", "json"];
    let (code, made, talk) = onceflow(&stack, &args).await;
    assert_eq!((code, &made["schema"]), (0, &json!("onceflow.dlq.edit/1")), "{talk}");
    let last = text(&made, "copy_event_id");
    assert!(talk.contains(&format!("event {last} takes the place of {copy}")), "{talk}");
    stack.until_count(LEDGER, 1).await;
    assert_eq!(ledger(&stack).await[0].1, last);
    let (_, original) = ask(&stack, "li", &format!("dlq/{id}"), None).await;
    assert_eq!(original["edited_into"]["copy_state"], "edited");
    let (code, _, talk) = onceflow(&stack, &["dlq", "diff", &Uuid::nil().to_string()]).await;
    assert_eq!(code, 3, "{talk}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_word_in_the_configuration_nobody_edits_and_the_command_says_how_to_allow_it() {
    let stack = stack_with("").await;
    stack.publish(EVENT, "e1", &json!({ "do": "reject" })).await;
    let id = letter(&stack, "e1").await;
    let (status, refused) = edit(&stack, id, &json!({ "do": "apply" })).await;
    assert_eq!((status, &refused["code"]), (403, &json!("edit_off")), "{refused}");
    for more in [["--reason", "x"].as_slice(), &["--dry-run"]] {
        let id = id.to_string();
        let (code, _, talk) = onceflow(&stack, &[&["dlq", "edit", &id, "--set", "do=apply"], more].concat()).await;
        assert_eq!(code, 8, "{talk}");
        assert!(talk.contains("set `edit = true` under `[replay]`") && !talk.contains("--token-file"), "{talk}");
    }
    assert_eq!(stack.count(NOTHING_WRITTEN).await, 0);
}

/// Three at once want each event: a replay, an edit, and a producer who sends it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_an_edit_a_replay_and_a_redelivery_at_once_exactly_one_is_applied() {
    const EVENTS: i64 = 40;
    let stack = stack().await;
    let (mut edits, mut replays) = (0, 0);
    for n in 0..EVENTS {
        let (id, event) = (Uuid::now_v7(), format!("r{n}"));
        stack.client.execute(INSERT, &[&id, &event]).await.unwrap();
        let replay = json!({ "selection": { "ids": [id] } });
        let (body, original) = (json!({ "do": "apply", "n": 2 }), json!({ "do": "apply", "n": 1 }));
        let (edited, replayed, ()) = tokio::join!(
            edit(&stack, id, &body),
            ask(&stack, "wang", "dlq/replay", Some(replay)),
            stack.publish(EVENT, &event, &original),
        );
        let known = ["not_open", "already_applied"];
        assert!(edited.0 == 200 || (edited.0 == 409 && known.contains(&text(&edited.1, "code"))), "{edited:?}");
        edits += i64::from(edited.0 == 200);
        replays += i64::try_from(replayed.1["ids"].as_array().unwrap().len()).unwrap();
    }
    assert_eq!(edits + replays, EVENTS, "{edits} edits and {replays} replays: each event had one of them");
    eprintln!("of {EVENTS} events {edits} were edited, {replays} replayed first");
    // Everything has arrived: each redelivery and each replay either applied the original or is counted as a duplicate.
    let arrived = "SELECT (SELECT coalesce(sum(duplicates), 0)::int8 FROM onceflow.inbox WHERE event_id LIKE 'r%')
                        + (SELECT count(*) FROM onceflow.probe_ledger WHERE event_id LIKE 'r%')";
    stack.until_count(arrived, EVENTS + replays).await;
    stack
        .until_count("SELECT count(*) FROM onceflow.dead_letter WHERE state NOT IN ('replayed', 'edited', 'open')", 0)
        .await;
    stack.until_count(LEDGER, EVENTS).await;
    let each_once = "SELECT count(DISTINCT key) FROM onceflow.probe_ledger";
    assert_eq!(stack.count(each_once).await, EVENTS, "each key once");
    let copies = "SELECT count(*) FROM onceflow.probe_ledger AS l JOIN onceflow.dead_letter_edit AS e ON e.copy_event_id = l.event_id";
    assert_eq!(stack.count(copies).await, edits);
}

//! What is kept of a person is found and erased (§7.17): afterwards no row of any table names them, and nobody else has lost anything.

use std::process::Output;
use std::time::Duration;

use onceflow::domains::consumers;
use onceflow::retention::{Aging, forget};
use onceflow::runtime::{Outcome, Skip};
use reqwest::Client;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio_postgres::Client as Postgres;

use crate::admin::{Door, answer};
use crate::harness::Database;
use crate::harness::direct::{Direct, envelope};

const TOKEN: &str = "a-token-for-the-erasure-of-persons";
const PHONE: &str = "+8613812345678";
const FIND: &str = "/api/v1/persons/find";
const ERASE: &str = "/api/v1/persons/erase";
/// Of the person: one dead letter in each state, numbered by it, with an attempt each; that of `edited` names them in its copy alone.
/// Of somebody else: one.
const LETTERS: &str = r#"
    INSERT INTO onceflow.dead_letter (id, tenant, consumer, source, event_id, event_type, partition_key, stage, reason, error_chain, payload,
            headers, original_exchange, original_routing_key, attempts, first_failed_at, last_failed_at, consumer_version, state, replay_id,
            closed_at, closed_by)
    SELECT ('00000000-0000-0000-0000-00000000000' || n)::uuid, 'default', 'sms', 's', 'e' || n, 'sms.requested.v1', 'k' || n, 'validate',
           'r', ARRAY['broken'],
           convert_to(CASE WHEN state = 'edited' THEN '{}' WHEN n = 7 THEN '{"phone":"+8613912345678"}'
                           ELSE '{"phone":"138 1234 5678"}' END, 'UTF8'),
           '{}', 'in', 'x', 1, now(), now(), '1', state, CASE WHEN state = 'replaying' THEN gen_random_uuid() END,
           CASE WHEN state NOT IN ('open', 'replaying') THEN now() END, CASE WHEN state NOT IN ('open', 'replaying') THEN 'li' END
    FROM unnest(ARRAY['open', 'replaying', 'replayed', 'discarded', 'archived', 'edited', 'open']) WITH ORDINALITY AS s (state, n);
    INSERT INTO onceflow.dead_letter_edit (tenant, dead_letter_id, consumer, source, event_id, copy_tenant, copy_event_id, edited_by,
            reason, diff, payload)
    VALUES ('default', '00000000-0000-0000-0000-000000000006', 'sms', 's', 'e6', 'default', 'c6', 'li', 'r', '{}',
            '{"phone":"+86 13812345678"}');
    INSERT INTO onceflow.attempt (tenant, consumer, source, event_id, id, event_type, attempt, at, instance, consumer_version, stage, code,
            error_chain)
    SELECT 'default', 'sms', 's', 'e' || n, gen_random_uuid(), 't', 1, now(), 'host:1', '1', 'handle', 'r', '{}'
    FROM generate_series(1, 7) AS n"#;
const TABLES: &str = "SELECT format('%I.%I', table_schema, table_name) FROM information_schema.tables WHERE table_schema = 'onceflow' ORDER BY 1";
const LEFT: &str = "SELECT string_agg(event_id, ' ' ORDER BY event_id) FROM onceflow.dead_letter";
const TRIED: &str = "SELECT string_agg(event_id, ' ' ORDER BY event_id) FROM onceflow.attempt";
const AUDITED: &str = "
    SELECT concat_ws(' ', actor, subject, reason, detail->>'what', detail->>'count') FROM onceflow.audit
    WHERE action = 'person.erase' ORDER BY at, id";

async fn ask(door: &Door, token: &str, path: &str, body: &Value) -> (u16, Value) {
    let request = Client::new().post(format!("http://{}{path}", door.address)).json(body);
    answer(request.bearer_auth(token).send().await.unwrap()).await
}

async fn text(postgres: &Postgres, sql: &str) -> Option<String> {
    postgres.query_one(sql, &[]).await.unwrap().get(0)
}

/// Tables that hold this text, or the bytes of it.
pub(super) async fn tables_with(postgres: &Postgres, wanted: &str) -> Vec<String> {
    let hex: String = wanted.bytes().map(|byte| format!("{byte:02x}")).collect();
    let mut found = Vec::new();
    for row in postgres.query(TABLES, &[]).await.unwrap() {
        let table: String = row.get(0);
        let sql = format!("SELECT count(*) FROM {table} t WHERE t::text LIKE '%{wanted}%' OR t::text LIKE '%{hex}%'");
        if postgres.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0) > 0 {
            found.push(table);
        }
    }
    found
}

/// By kind: found, erased.
fn counts(answer: &Value) -> Vec<(String, u64, u64)> {
    let number = |item: &Value, name: &str| item[name].as_u64().unwrap();
    let items = answer["items"].as_array().unwrap();
    items.iter().map(|i| (i["what"].as_str().unwrap().to_owned(), number(i, "found"), number(i, "erased"))).collect()
}

fn count(what: &str, found: u64, erased: u64) -> (String, u64, u64) {
    (what.to_owned(), found, erased)
}

fn sms(id: &str, phone: &str) -> onceflow::event::Envelope {
    let payload =
        json!({"requestId": id, "phone": phone, "templateId": "login_code", "params": {"code": id, "minutes": "5"}});
    envelope("sms.requested.v1", &uuid::Uuid::now_v7().to_string(), &payload)
}

#[tokio::test]
async fn after_an_erasure_no_table_names_the_person_and_nobody_else_lost_anything_s7_17() {
    let direct = Direct::named("sms").await;
    for (id, phone) in [("482913", "138-1234-5678"), ("482914", "+8613912345678"), ("482915", "8613812345678")] {
        assert!(matches!(direct.apply_one(sms(id, phone)).await, Ok(Outcome::Applied(_))));
    }
    let postgres = direct.database.client().await;
    postgres.batch_execute(LETTERS).await.unwrap();
    let door = Door::open(direct.database.pool(), None).await;

    let person = json!({ "phone": "+86 138 1234 5678" });
    let (status, found) = door.post(FIND, person.clone()).await;
    let expected = [count("sms_requests", 2, 0), count("dead_letters", 5, 0), count("dead_letters_on_their_way", 1, 0)];
    assert_eq!((status, counts(&found)), (200, expected.to_vec()), "{found}");
    assert_eq!(text(&postgres, LEFT).await.unwrap(), "e1 e2 e3 e4 e5 e6 e7", "looking changes nothing");

    let order = json!({ "person": person, "reason": "request 117" });
    let (status, erased) = door.post(ERASE, order.clone()).await;
    let expected = [count("sms_requests", 2, 2), count("dead_letters", 5, 5), count("dead_letters_on_their_way", 1, 0)];
    assert_eq!((status, counts(&erased)), (200, expected.to_vec()), "{erased}");
    assert_eq!(text(&postgres, LEFT).await.unwrap(), "e2 e7", "the one on its way, and somebody else's");
    assert_eq!(text(&postgres, TRIED).await.unwrap(), "e2 e7");

    // Its replay has ended.
    let ended = "UPDATE onceflow.dead_letter SET state = 'replayed', closed_at = now() WHERE event_id = 'e2'";
    postgres.batch_execute(ended).await.unwrap();
    let (_, erased) = door.post(ERASE, order.clone()).await;
    assert_eq!(counts(&erased), [count("dead_letters", 1, 1)]);
    let nowhere: Vec<String> = Vec::new();
    assert_eq!(tables_with(&postgres, "13812345678").await, nowhere);
    assert_eq!(tables_with(&postgres, "138 1234 5678").await, nowhere);
    assert_eq!(tables_with(&postgres, "482913").await, ["onceflow.sms_request"], "the id of the request alone is left");
    assert_eq!(tables_with(&postgres, "13912345678").await.len(), 2, "somebody else's request and dead letter");

    let rows = postgres.query(AUDITED, &[]).await.unwrap();
    let audited: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let line = |what: &str| format!("unknown number ****78 request 117 {what}");
    assert_eq!(audited, [line("sms_requests 2"), line("dead_letters 5"), line("dead_letters 1")]);

    let (status, nothing) = door.post(ERASE, order).await;
    assert_eq!((status, counts(&nothing)), (200, Vec::new()), "an erasure may be repeated");
    let again = direct.apply_one(sms("482913", "138-1234-5678")).await;
    assert_eq!(again, Ok(Outcome::Skipped(Skip::Because("already_requested"))), "it is not sent a second time");
}

#[tokio::test]
async fn an_erased_head_of_a_line_lets_those_behind_it_go_on_s7_17() {
    const LINE: &str = "
        INSERT INTO onceflow.blocked_key (tenant, consumer, partition_key, source, event_id, queue)
        VALUES ('default', 'sms', 'k1', 's', 'e1', 'q');
        INSERT INTO onceflow.held_event (tenant, consumer, source, event_id, event_type, partition_key, payload, headers)
        VALUES ('default', 'sms', 's', 'h1', 'sms.requested.v1', 'k1', '{\"phone\":\"+8613812345678\"}', '{}')";
    let database = Database::new().await;
    let postgres = database.client().await;
    postgres.batch_execute(LETTERS).await.unwrap();
    postgres.batch_execute(LINE).await.unwrap();
    let door = Door::open(database.pool(), None).await;
    let order = json!({ "person": { "phone": PHONE }, "reason": "request 117" });
    let (_, erased) = door.post(ERASE, order).await;
    assert!(counts(&erased).contains(&count("held_events", 1, 0)), "it is told, not lost: {erased}");
    let head = text(&postgres, "SELECT event_id FROM onceflow.blocked_key").await;
    assert_eq!(head.as_deref(), Some("h1"));
    let sent = "SELECT convert_from(payload_raw, 'UTF8') FROM onceflow.outbox";
    assert_eq!(text(&postgres, sent).await.unwrap(), r#"{"phone":"+8613812345678"}"#);
}

#[tokio::test]
async fn operators_find_and_only_admins_erase_s7_17() {
    let database = Database::new().await;
    let door = Door::open(database.pool(), Some(TOKEN)).await;
    let person = json!({ "user": "emp-7" });
    let order = json!({ "person": person, "reason": "request 117" });
    for (role, find, erase) in [("viewer", 403, 403), ("operator", 200, 403), ("admin", 200, 200)] {
        let (_, made) = door.post("/api/v1/tokens", json!({ "name": role, "role": role })).await;
        let secret = made["secret"].as_str().unwrap();
        assert_eq!(ask(&door, secret, FIND, &person).await.0, find, "{role}");
        assert_eq!(ask(&door, secret, ERASE, &order).await.0, erase, "{role}");
    }
    for wrong in [json!({}), json!({ "phone": "13812345678" }), json!({ "text": "li" }), json!({ "user": "" })] {
        let (status, problem) = door.post(FIND, wrong).await;
        assert_eq!((status, &problem["code"]), (400, &json!("invalid_person")), "{problem}");
    }
    let (status, problem) = door.post(ERASE, json!({ "person": person, "reason": " " })).await;
    assert_eq!((status, &problem["code"]), (400, &json!("invalid_words")), "{problem}");
}

/// More than a page, in payloads of which some are large.
const MANY: &str = r#"
    INSERT INTO onceflow.dead_letter (id, tenant, consumer, source, event_id, event_type, stage, reason, error_chain, payload, headers,
            original_exchange, original_routing_key, attempts, first_failed_at, last_failed_at, consumer_version)
    SELECT ('00000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid, 'default', 'org', 's', 'e' || n, 'org.user.upserted.v1', 'decode',
           'r', '{}', convert_to(format('{"id":"emp-%s","name":"%s"}', n % 1000, repeat('x', CASE n % 500 WHEN 0 THEN 900000 ELSE 10 END)),
           'UTF8'), '{}', 'in', 'x', 1, now(), now(), '1'
    FROM generate_series(1, 4500) AS n"#;

#[tokio::test]
async fn every_dead_letter_is_looked_at_however_many_there_are_s7_17() {
    let database = Database::new().await;
    let postgres = database.client().await;
    postgres.batch_execute(MANY).await.unwrap();
    let directory = "
        INSERT INTO onceflow.org_user (tenant, directory, id, state, version, event_time, event_key, name)
        VALUES ('default', 'd', 'emp-7', 'live', 1, now(), 'k', 'Li')";
    postgres.batch_execute(directory).await.unwrap();
    let door = Door::open(database.pool(), None).await;
    let server = format!("http://{}", door.address);

    let found = onceflow(&server, &["find", "--user", "emp-7", "-o", "json"]).await;
    let answer: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!((&answer["looked"], &answer["next"]), (&json!(4_500), &Value::Null), "{answer}");
    assert_eq!(counts(&answer), [count("users", 1, 0), count("dead_letters", 5, 0)]);

    let erase = ["erase", "--user", "emp-7", "--reason", "request 118", "--yes"];
    let erased = onceflow(&server, &erase).await;
    let table = String::from_utf8_lossy(&erased.stdout).into_owned();
    assert_eq!(erased.status.code(), Some(4), "the directory has them still: {table}");
    assert!(table.contains("delete it there"), "{table}");
    let left: i64 = postgres.query_one("SELECT count(*) FROM onceflow.dead_letter", &[]).await.unwrap().get(0);
    assert_eq!(left, 4_495);

    postgres.batch_execute("DELETE FROM onceflow.org_user").await.unwrap();
    let erased = onceflow(&server, &erase).await;
    assert_eq!(erased.status.code(), Some(3), "{}", String::from_utf8_lossy(&erased.stderr));
}

async fn onceflow(server: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onceflow"));
    command.args(["--server", server, "person"]).args(args).env("NO_COLOR", "1");
    command.stdin(std::process::Stdio::null()).output().await.unwrap()
}

#[tokio::test]
async fn old_numbers_are_forgotten_and_younger_ones_stay_s7_17() {
    let direct = Direct::named("sms").await;
    for id in ["482913", "482914"] {
        assert!(matches!(direct.apply_one(sms(id, PHONE)).await, Ok(Outcome::Applied(_))));
    }
    let postgres = direct.database.client().await;
    let aged = "UPDATE onceflow.sms_request SET requested_at = now() - interval '31 days' WHERE request_id = '482913'";
    postgres.batch_execute(aged).await.unwrap();
    let data =
        consumers().iter().flat_map(|consumer| consumer.personal()).find(|data| data.forget_old.is_some()).unwrap();
    let rows = Aging { name: data.name, sql: data.forget_old.unwrap() };
    let (pool, month) = (direct.database.pool(), Duration::from_secs(30 * 86_400));
    assert_eq!(forget(&pool, &rows, None).await.unwrap(), 0, "kept for ever");
    assert_eq!(forget(&pool, &rows, Some(month)).await.unwrap(), 1);
    assert_eq!(forget(&pool, &rows, Some(month)).await.unwrap(), 0);
    let known =
        "SELECT string_agg(request_id, ' ') FROM onceflow.sms_request WHERE phone IS NOT NULL AND params IS NOT NULL";
    assert_eq!(text(&postgres, known).await.unwrap(), "482914");
}

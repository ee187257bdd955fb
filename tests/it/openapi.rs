//! The OpenAPI document against real answers: what is answered fits its schema, whatever is refused has a code that is listed.

use std::collections::BTreeSet;

use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::admin::{Door, nowhere};
use crate::harness::Database;

const TOKEN: &str = "correct horse battery";

/// The whole document, and what of it was seen to be true.
struct Document {
    value: Value,
    seen: BTreeSet<String>,
}

impl Document {
    async fn of(door: &Door) -> Self {
        let (status, value) = door.get("/api/v1/openapi.json").await;
        assert_eq!(status, 200, "{value}");
        Self { value, seen: BTreeSet::new() }
    }

    fn operations(&self) -> BTreeSet<String> {
        let paths = self.value["paths"].as_object().unwrap();
        paths
            .iter()
            .flat_map(|(path, item)| item.as_object().unwrap().keys().map(move |m| format!("{m} {path}")))
            .collect()
    }

    /// The answer to an operation fits its schema, with no field that the schema doesn't have.
    fn fits(&mut self, operation: &str, (status, answer): &(u16, Value)) {
        assert_eq!(*status, 200, "{operation}: {answer}");
        let (method, path) = operation.split_once(' ').unwrap();
        let content = &self.value["paths"][path][method]["responses"]["200"]["content"];
        let schema = &content["application/json"]["schema"];
        assert!(schema.is_object() || schema.is_boolean(), "{operation} is not in the document");
        let wrong = self.errors(schema, answer, (operation, true));
        assert!(wrong.is_empty(), "{}\n{answer:#}", wrong.join("\n"));
        self.seen.insert(operation.to_owned());
    }

    fn target(&self, schema: &Value) -> Option<&Value> {
        let target = schema["$ref"].as_str()?;
        Some(self.value.pointer(target.trim_start_matches('#')).unwrap_or_else(|| panic!("{target} leads nowhere")))
    }

    /// What of `value` doesn't fit; a small part of JSON Schema, all that our own schemas use. A `whole` schema names every field.
    fn errors(&self, schema: &Value, value: &Value, (place, whole): (&str, bool)) -> Vec<String> {
        let mut wrong = Vec::new();
        if !is_of_type(&schema["type"], value) {
            wrong.push(format!("{place}: {value} is no {}", schema["type"]));
        }
        let among = schema["enum"].as_array().is_none_or(|all| all.contains(value));
        if !among || schema.get("const").is_some_and(|only| only != value) {
            wrong.push(format!("{place}: {value} is none of the values"));
        }
        wrong.extend(self.target(schema).into_iter().flat_map(|target| self.errors(target, value, (place, false))));
        for several in ["oneOf", "anyOf"] {
            let Some(choices) = schema[several].as_array() else { continue };
            if !choices.iter().any(|choice| self.errors(choice, value, (place, false)).is_empty()) {
                wrong.push(format!("{place}: {value} fits no choice"));
            }
        }
        wrong.extend(self.errors_inside(schema, value, place));
        if let (true, Some(object), Some(known)) = (whole, value.as_object(), self.fields(schema)) {
            let unknown = object.keys().filter(|name| !known.contains(*name));
            wrong.extend(unknown.map(|name| format!("{place}: the schema has no {name}")));
        }
        wrong
    }

    fn errors_inside(&self, schema: &Value, value: &Value, place: &str) -> Vec<String> {
        let mut wrong = Vec::new();
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if value.get(name).is_none() {
                wrong.push(format!("{place}: {name} is required"));
            }
        }
        for (name, found) in value.as_object().into_iter().flatten() {
            let more = schema.get("additionalProperties").filter(|more| more.is_object());
            if let Some(field) = schema["properties"].get(name).or(more) {
                wrong.extend(self.errors(field, found, (&format!("{place}.{name}"), true)));
            }
        }
        if let (Some(item), Some(items)) = (schema.get("items"), value.as_array()) {
            wrong.extend(items.iter().flat_map(|found| self.errors(item, found, (&format!("{place}[]"), true))));
        }
        wrong
    }

    /// Names of all fields that an object may have; `None` where it may have any.
    fn fields(&self, schema: &Value) -> Option<BTreeSet<String>> {
        if schema == &json!(true) || schema.get("additionalProperties").is_some_and(|more| *more != json!(false)) {
            return None;
        }
        let own = schema["properties"].as_object();
        let mut known: BTreeSet<String> = own.into_iter().flat_map(|fields| fields.keys().cloned()).collect();
        let choices =
            ["oneOf", "anyOf"].into_iter().flat_map(|several| schema[several].as_array().into_iter().flatten());
        let parts: Vec<&Value> = choices.chain(self.target(schema)).collect();
        let anything = ["type", "const", "enum"].iter().all(|key| schema.get(*key).is_none());
        if own.is_none() && parts.is_empty() && (anything || schema["type"] == "object") {
            return None;
        }
        for part in parts {
            known.extend(self.fields(part)?);
        }
        Some(known)
    }

    fn codes(&self) -> BTreeSet<&str> {
        let codes = &self.value["components"]["schemas"]["ProblemBody"]["properties"]["code"]["oneOf"];
        codes.as_array().unwrap().iter().map(|code| code["const"].as_str().unwrap()).collect()
    }
}

fn is_of_type(types: &Value, value: &Value) -> bool {
    let is = |name: &str| match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("{other} is no type"),
    };
    match types {
        Value::String(name) => is(name),
        Value::Array(names) => names.iter().any(|name| is(name.as_str().unwrap())),
        _ => true,
    }
}

/// Something of everything: dead letters of two payload kinds, one replayed before, an attempt, a note, a parked row.
const WORLD: &str = r#"
    INSERT INTO onceflow.dead_letter (id, tenant, consumer, source, event_id, event_type, stage, reason, error_chain, content_type,
        payload, headers, original_exchange, original_routing_key, attempts, first_failed_at, last_failed_at, consumer_version,
        partition_key, correlation_id)
    SELECT gen_random_uuid(), 'default', 'org', 'hr', 'e' || n, 'org.user.upserted.v1', 'handle', CASE n % 2 WHEN 0 THEN 'cycle' ELSE 'gap' END,
        ARRAY['it failed', 'because'], 'application/json', CASE n % 2 WHEN 0 THEN '{"a":1}'::bytea ELSE '\xff' END,
        jsonb_build_object('amqp:message_id', 'e' || n, 'amqp:type', 'org.user.upserted.v1',
            'amqp:content_type', 'application/json', 'cloudEvents:source', 'hr', 'cloudEvents:subject', 'user/42'), 'flow.in', 'x', 1, now() - interval '1 hour', now() - interval '1 minute', '1', '42', 'case'
      FROM generate_series(1, 8) AS n;
    UPDATE onceflow.dead_letter SET state = 'replayed', closed_at = now(), closed_by = 'onceflow', closed_reason = 'x',
        replayed_at = now(), replay_id = gen_random_uuid(), replays = 1,
        replayed_group = onceflow.group_of(group_id, consumer, event_type, stage, reason) WHERE event_id = 'e1';
    INSERT INTO onceflow.attempt (tenant, consumer, source, event_id, id, event_type, attempt, at, instance, consumer_version, stage, code,
        error_chain, duration_us, retry_ms)
    VALUES ('default', 'org', 'hr', 'e1', gen_random_uuid(), 'org.user.upserted.v1', 1, now(), 'here:1', '1', 'handle', 'gap', ARRAY['x'], 7, 1000);
    INSERT INTO onceflow.outbox (tenant, aggregatetype, aggregateid, type, payload, parked_at, parked_reason)
    SELECT 'default', 'shop', n::text, 'shop.opened.v1', '{}', now(), 'no queue is bound' FROM generate_series(1, 2) AS n;
"#;

#[tokio::test]
async fn every_route_is_in_the_document_and_its_real_answer_fits_the_schema() {
    let database = Database::new().await;
    let client = database.client().await;
    client.batch_execute(WORLD).await.unwrap();
    let door = Door::open(database.pool(), Some(TOKEN)).await;
    let mut document = Document::of(&door).await;

    look(&door, &mut document).await;
    change_dead_letters(&door, &mut document).await;
    run_jobs(&door, &mut document, &client).await;
    change_the_rest(&door, &mut document, &client).await;
    // Once more, with jobs, pauses, notes and tokens in them.
    look(&door, &mut document).await;

    document.seen.extend(["get /livez", "get /readyz"].map(ToOwned::to_owned));
    assert_eq!(door.get("/livez").await.0, 200);
    let operations = document.operations();
    let missing: Vec<_> = operations.difference(&document.seen).collect();
    assert!(missing.is_empty(), "say in this test how to ask {missing:?}");
}

/// Asks everything that can be asked without changing anything.
async fn look(door: &Door, document: &mut Document) {
    for path in [
        "status",
        "consumers",
        "outbox",
        "tokens",
        "jobs?limit=5",
        "openapi.json",
        "dlq?state=any&limit=3&count=true",
        "dlq/groups?state=any",
    ] {
        let template = path.split('?').next().unwrap();
        document.fits(&format!("get /api/v1/{template}"), &door.get(&format!("/api/v1/{path}")).await);
    }
    for question in ["id=e1", "key=42"] {
        let answer = door.get(&format!("/api/v1/events/trace?{question}")).await;
        assert!(!answer.1["items"].as_array().unwrap().is_empty(), "{question}: {}", answer.1);
        document.fits("get /api/v1/events/trace", &answer);
    }
    let (_, page) = door.get("/api/v1/dlq?state=any").await;
    for letter in page["items"].as_array().unwrap() {
        let answer = door.get(&format!("/api/v1/dlq/{}", letter["id"].as_str().unwrap())).await;
        document.fits("get /api/v1/dlq/{id}", &answer);
        let path = format!("/api/v1/dlq/{}/unmask", letter["id"].as_str().unwrap());
        document.fits("post /api/v1/dlq/{id}/unmask", &door.post(&path, json!({ "reason": "seen" })).await);
    }
}

async fn change_dead_letters(door: &Door, document: &mut Document) {
    let (_, groups) = door.get("/api/v1/dlq/groups").await;
    let group = groups["items"][0]["id"].as_str().unwrap();
    let noted = door.post(&format!("/api/v1/dlq/groups/{group}/note"), json!({ "note": "known", "owner": "li" })).await;
    document.fits("post /api/v1/dlq/groups/{id}/note", &noted);
    for verb in ["replay", "discard"] {
        let body = json!({ "selection": { "filter": { "reason_code": "gap" } }, "reason": "seen", "max": 1 });
        let done = door.post(&format!("/api/v1/dlq/{verb}"), body).await;
        document.fits(&format!("post /api/v1/dlq/{verb}"), &done);
    }
    for verb in ["archive", "restore"] {
        let body = json!({ "selection": { "filter": { "reason_code": "cycle" } }, "reason": "not now", "max": 1 });
        let done = door.post(&format!("/api/v1/dlq/{verb}"), body).await;
        assert_eq!(done.1["ids"].as_array().unwrap().len(), 1, "{}", done.1);
        document.fits(&format!("post /api/v1/dlq/{verb}"), &done);
    }
    edit_dead_letters(door, document).await;
    let nobody = json!({ "selection": { "ids": [uuid::Uuid::nil()] } });
    document.fits("post /api/v1/dlq/replay", &door.post("/api/v1/dlq/replay", nobody.clone()).await);
    let settled = door.post("/api/v1/dlq/settled", json!({ "ids": nobody["selection"]["ids"] })).await;
    document.fits("post /api/v1/dlq/settled", &settled);
}

async fn edit_dead_letters(door: &Door, document: &mut Document) {
    let (_, page) = door.get("/api/v1/dlq?reason_code=cycle").await;
    let id = page["items"][0]["id"].as_str().unwrap();
    let payload = r#"{"directory": "hr", "id": "42", "version": "7", "name": "Li"}"#;
    let edit = json!({ "payload": payload, "reason": "told by hr" });
    let made = door.post(&format!("/api/v1/dlq/{id}/edit"), edit).await;
    document.fits("post /api/v1/dlq/{id}/edit", &made);
    document.fits("get /api/v1/dlq/{id}/diff", &door.get(&format!("/api/v1/dlq/{id}/diff")).await);
    document.fits("post /api/v1/dlq/{id}/diff", &door.post(&format!("/api/v1/dlq/{id}/diff"), json!({})).await);
}

async fn run_jobs(door: &Door, document: &mut Document, client: &tokio_postgres::Client) {
    let job = json!({ "action": "replay", "selection": { "filter": { "reason_code": "cycle" } }, "reason": "mended" });
    let with = |more: Value| {
        let mut body = job.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    document.fits("post /api/v1/jobs", &door.post("/api/v1/jobs", with(json!({ "dry_run": true }))).await);
    let made = door.post("/api/v1/jobs", with(json!({ "plan_only": true, "settings": { "hold_seconds": 300 } }))).await;
    document.fits("post /api/v1/jobs", &made);
    let id = made.1["job"]["id"].as_str().unwrap();
    client.execute("UPDATE onceflow.bulk_job SET actor = 'li', approval_needed = true", &[]).await.unwrap();
    for (verb, more) in [
        ("approve", json!({ "reason": "seen" })),
        ("start", json!({})),
        ("rate", json!({ "rate": 7 })),
        ("cancel", json!({ "reason": "seen" })),
    ] {
        let answer = door.post(&format!("/api/v1/jobs/{id}/{verb}"), more).await;
        document.fits(&format!("post /api/v1/jobs/{{id}}/{verb}"), &answer);
    }
    document.fits("get /api/v1/jobs/{id}", &door.get(&format!("/api/v1/jobs/{id}")).await);
}

async fn change_the_rest(door: &Door, document: &mut Document, client: &tokio_postgres::Client) {
    // Nobody runs jobs here: one that runs is made by hand.
    let body = json!({ "action": "discard", "selection": { "filter": { "reason_code": "gap" } }, "reason": "x", "plan_only": true });
    let (_, made) = door.post("/api/v1/jobs", body).await;
    let id = made["job"]["id"].as_str().unwrap();
    client.execute("UPDATE onceflow.bulk_job SET state = 'running' WHERE state = 'planned'", &[]).await.unwrap();
    for verb in ["pause", "resume"] {
        let answer = door.post(&format!("/api/v1/jobs/{id}/{verb}"), json!({})).await;
        document.fits(&format!("post /api/v1/jobs/{{id}}/{verb}"), &answer);
    }
    for verb in ["resume", "pause"] {
        let answer = door.post(&format!("/api/v1/consumers/org/{verb}"), json!({ "reason": "seen" })).await;
        document.fits(&format!("post /api/v1/consumers/{{name}}/{verb}"), &answer);
    }
    let (_, outbox) = door.get("/api/v1/outbox").await;
    for (n, verb) in ["retry", "discard"].into_iter().enumerate() {
        let body = json!({ "ids": [outbox["parked_rows"][n]["id"]], "reason": "seen" });
        let touched = door.post(&format!("/api/v1/outbox/{verb}"), body).await;
        assert_eq!(touched.1["count"], 1, "{}", touched.1);
        document.fits(&format!("post /api/v1/outbox/{verb}"), &touched);
    }
    let person = json!({ "user": "42" });
    let found = door.post("/api/v1/persons/find", person).await;
    assert_eq!(found.1["items"][0]["what"], "dead_letters", "{}", found.1);
    document.fits("post /api/v1/persons/find", &found);
    let order = json!({ "person": { "user": "43" }, "reason": "asked for" });
    document.fits("post /api/v1/persons/erase", &door.post("/api/v1/persons/erase", order).await);
    let token = door.post("/api/v1/tokens", json!({ "name": "li", "role": "viewer" })).await;
    document.fits("post /api/v1/tokens", &token);
    document.fits("post /api/v1/tokens/revoke", &door.post("/api/v1/tokens/revoke", json!({ "name": "li" })).await);
}

#[tokio::test]
async fn every_refusal_is_a_problem_with_a_code_of_the_document() {
    let database = Database::new().await;
    let door = Door::open(database.pool(), Some(TOKEN)).await;
    let document = Document::of(&door).await;
    let codes = document.codes();
    let ask = async |method: Method, path: &str, token: &str, body: Option<&str>| {
        let mut request = Client::new().request(method, format!("http://{}{path}", door.address)).bearer_auth(token);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_owned());
        }
        problem(request.send().await.unwrap(), path).await
    };
    let (get, post, nil) = (Method::GET, Method::POST, "00000000-0000-0000-0000-000000000000");
    let job =
        |more: &str| format!(r#"{{ "action": "replay", "selection": {{ "filter": {{}} }}, "reason": "x" {more} }}"#);
    for (method, path, body, status, code) in [
        (&get, "/nowhere".to_owned(), None, 404, "not_found"),
        (&post, "/livez".to_owned(), None, 405, "method_not_allowed"),
        (&get, "/api/v1/nothing".to_owned(), None, 404, "not_found"),
        (&post, "/api/v1/status".to_owned(), None, 405, "method_not_allowed"),
        (&Method::DELETE, format!("/api/v1/jobs/{nil}"), None, 405, "method_not_allowed"),
        (&get, "/api/v1/dlq?after=x".to_owned(), None, 400, "invalid_cursor"),
        (&get, "/api/v1/dlq?limit=x".to_owned(), None, 400, "invalid_limit"),
        (&get, "/api/v1/dlq?count=x".to_owned(), None, 400, "invalid_count"),
        (&get, "/api/v1/dlq?consumr=org".to_owned(), None, 400, "invalid_filter"),
        (&get, "/api/v1/jobs?limit=x".to_owned(), None, 400, "invalid_limit"),
        (&get, "/api/v1/jobs?state=running".to_owned(), None, 400, "invalid_query"),
        (&get, "/api/v1/events/trace".to_owned(), None, 400, "invalid_question"),
        (&get, "/api/v1/events/trace?ids=x".to_owned(), None, 400, "invalid_query"),
        (&get, "/api/v1/dlq/1".to_owned(), None, 400, "invalid_path"),
        (&post, "/api/v1/consumers/%ff/pause".to_owned(), Some(r#"{"reason": "x"}"#.to_owned()), 400, "invalid_path"),
        (&get, format!("/api/v1/jobs/{nil}"), None, 404, "not_found"),
        (&post, "/api/v1/jobs".to_owned(), None, 415, "invalid_body"),
        (&post, "/api/v1/jobs".to_owned(), Some("{".to_owned()), 400, "invalid_body"),
        (&post, "/api/v1/jobs".to_owned(), Some(r#"{"wrong": 1}"#.to_owned()), 422, "invalid_body"),
        (&post, "/api/v1/jobs".to_owned(), Some(job("")), 404, "nothing_matches"),
        (&post, "/api/v1/jobs".to_owned(), Some(job(r#", "settings": { "rate": 0 }"#)), 400, "invalid_setting"),
        (&post, format!("/api/v1/jobs/{nil}/pause"), Some(r#"{"reason": " "}"#.to_owned()), 400, "invalid_words"),
        (&post, "/api/v1/persons/find".to_owned(), Some("{}".to_owned()), 400, "invalid_person"),
        (&post, "/api/v1/tokens/revoke".to_owned(), Some(r#"{"name": "nobody"}"#.to_owned()), 404, "not_found"),
        (&post, "/api/v1/dlq/settled".to_owned(), Some("x".repeat(2 << 20)), 413, "invalid_body"),
    ] {
        let told = ask(method.clone(), &path, TOKEN, body.as_deref()).await;
        assert_eq!(
            (told["status"].as_u64(), told["code"].as_str()),
            (Some(status), Some(code)),
            "{method} {path}: {told}"
        );
        assert!(codes.contains(code), "{code} is not in the document");
    }
    assert_eq!(ask(get.clone(), "/api/v1/openapi.json", "wrong", None).await["code"], "unauthorized");
    let away = Door::open(nowhere(), None).await;
    let response = reqwest::get(format!("http://{}/api/v1/dlq", away.address)).await.unwrap();
    let told = problem(response, "/api/v1/dlq").await;
    assert!(codes.contains(told["code"].as_str().unwrap()), "{told}");
}

async fn problem(response: reqwest::Response, path: &str) -> Value {
    let status = response.status().as_u16();
    assert!(status >= 400, "{path}: {status}");
    assert_eq!(response.headers()["content-type"], "application/problem+json", "{path}");
    let told: Value = response.json().await.unwrap();
    assert_eq!(told["status"], status, "{told}");
    told
}

#[tokio::test]
async fn every_parameter_of_the_document_is_taken_and_every_field_of_a_body_is_known() {
    let database = Database::new().await;
    let door = Door::open(database.pool(), Some(TOKEN)).await;
    let document = Document::of(&door).await;
    for (path, item) in document.value["paths"].as_object().unwrap() {
        for parameter in item["get"]["parameters"].as_array().into_iter().flatten().filter(|p| p["in"] == "query") {
            let name = parameter["name"].as_str().unwrap();
            // A value that only its own parameter refuses: any other refusal would say that there is no such parameter.
            let (_, answer) = door.get(&format!("{path}?{name}=")).await;
            let unknown = format!("unknown field `{name}`");
            assert!(!answer.to_string().contains(&unknown), "{path}?{name}: {answer}");
        }
        let body = &item["post"]["requestBody"]["content"]["application/json"]["schema"];
        if body.is_null() {
            continue;
        }
        let id = if path.contains("/groups/") { "0123456789abcdef" } else { "00000000-0000-0000-0000-000000000000" };
        let path = path.replace("{id}", id).replace("{name}", "org");
        let (status, answer) = door.post(&path, json!({ "no_such_field": 1 })).await;
        assert_eq!((status, &answer["code"]), (422, &json!("invalid_body")), "{path}: {answer}");
        for name in document.fields(body).unwrap() {
            // The refusal lists the fields that there are.
            assert!(answer["detail"].as_str().unwrap().contains(&format!("`{name}`")), "{path}: {name}: {answer}");
        }
    }
}

#[tokio::test]
async fn the_command_line_prints_the_document_that_the_service_serves() {
    let door = Door::open(nowhere(), Some(TOKEN)).await;
    let served = Document::of(&door).await.value;
    let mut command = Command::new(env!("CARGO_BIN_EXE_onceflow"));
    command.arg("openapi").env_clear().current_dir(std::env::temp_dir()).kill_on_drop(true);
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed, served);
    assert_eq!(printed["openapi"], "3.1.0");
}

//! Health, metrics and the operators' API over real HTTP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use onceflow::admin::{
    AdminState, BEGIN_WITHIN, ConfiguredToken, ConsumerInfo, bind_admin, serve_admin, serve_metrics,
};
use onceflow::db::{Pool, Settings};
use onceflow::domains;
use onceflow::health::{Check, Health};
use onceflow::replay::edit::Rules;
use onceflow::runtime::wire::Limits;
use onceflow::telemetry;
use onceflow::tls::Tls;
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::harness::Database;

pub(crate) struct Door {
    health: Arc<Health>,
    wakeup: Arc<Notify>,
    pub(crate) address: SocketAddr,
    token: Option<&'static str>,
    _stop: DropGuard,
}

impl Door {
    /// A server that waits long for a connection, as a busy machine may need; the bound has a test of its own.
    pub(crate) async fn open(pool: Pool, token: Option<&'static str>) -> Self {
        Self::open_within(pool, token, Duration::from_secs(30)).await
    }

    async fn open_within(pool: Pool, token: Option<&'static str>, begin_within: Duration) -> Self {
        let (health, wakeup) = (Arc::new(Health::default()), Arc::new(Notify::new()));
        health.set("database", Check::Ok);
        let info = |c: &dyn onceflow::runtime::AnyConsumer| ConsumerInfo {
            name: c.name(),
            reads: c.reads(),
            publishes: c.publishes(),
        };
        let state = AdminState {
            pool,
            begin_within,
            health: health.clone(),
            consumers: domains::consumers().iter().map(|c| info(c.as_ref())).collect(),
            prefix: "flow".to_owned(),
            token: ConfiguredToken::new(token.map(Into::into)),
            paused_changed: Arc::new(Notify::new()),
            outbox_wakeup: wakeup.clone(),
            second_person_above: 0,
            loads: Arc::default(),
            editing: Rules {
                on: true,
                consumers: domains::consumers().into_iter().map(Arc::from).collect(),
                limits: Limits::default(),
                queues: domains::consumers()
                    .iter()
                    .map(|c| (c.name().to_owned(), format!("flow.{}", c.name())))
                    .collect(),
            },
            keep_dead_letters: Some(Duration::from_secs(180 * 86_400)),
            version: "test",
        };
        let listener = bind_admin("127.0.0.1:0".parse().unwrap(), token.is_some()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(serve_admin(state, listener, stop.clone()));
        Self { health, wakeup, address, token, _stop: stop.drop_guard() }
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = Client::new().request(method, format!("http://{}{path}", self.address));
        if let Some(token) = self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        answer(request.send().await.unwrap()).await
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        self.ask(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.ask(Method::POST, path, Some(body)).await
    }
}

pub(crate) async fn answer(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    (status, response.json().await.unwrap_or(Value::Null))
}

/// A pool whose server is not there.
pub(crate) fn nowhere() -> Pool {
    pool_at("127.0.0.1:9")
}

fn pool_at(address: &str) -> Pool {
    Pool::new(&Settings {
        url: format!("postgres://x@{address}/x").into(),
        max_connections: 2,
        statement_timeout: Duration::from_secs(5),
        allow_plaintext: false,
        tls: Tls::default(),
        application_name: "test".into(),
        rows_are_short_lived: false,
    })
    .unwrap()
}

#[tokio::test]
async fn live_never_asks_the_database_and_everything_else_says_so_within_a_second_o1() {
    let door = Door::open(nowhere(), None).await;
    let started = Instant::now();
    assert_eq!(door.get("/livez").await.0, 200);
    let (status, report) = door.get("/api/v1/status").await;
    assert_eq!(status, 200);
    assert!(report["database_problem"].is_string(), "{report}");
    let (status, problem) = door.get("/api/v1/dlq").await;
    assert_eq!((status, &problem["code"]), (503, &json!("database_unreachable")), "{problem}");
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_database_that_accepts_and_stays_silent_is_given_up_within_a_second_o1() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pool = pool_at(&silent.local_addr().unwrap().to_string());
    let door = Door::open_within(pool, None, BEGIN_WITHIN).await;
    let (status, problem) = door.get("/api/v1/dlq").await;
    assert_eq!((status, &problem["code"]), (503, &json!("database_unreachable")), "{problem}");
    assert_eq!(problem["detail"], "the database is away: no connection within 800 ms");
}

#[tokio::test]
async fn ready_tells_the_truth_and_what_is_missing() {
    let door = Door::open(nowhere(), None).await;
    assert_eq!(door.get("/readyz").await.0, 200);
    door.health.set("broker.consume", Check::Waiting("no route".to_owned()));
    let (status, body) = door.get("/readyz").await;
    assert_eq!(status, 503);
    assert_eq!(body["checks"]["broker.consume"], json!({ "state": "waiting", "why": "no route" }));
    door.health.set("broker.consume", Check::Paused("li".to_owned()));
    assert_eq!(door.get("/readyz").await.0, 200, "paused is ready");
}

#[tokio::test]
async fn without_the_token_health_says_only_ok_or_not_and_the_api_nothing() {
    let database = Database::new().await;
    let door = Door::open(database.pool(), Some("correct horse battery")).await;
    door.health.set("broker", Check::Waiting("secret.host refused".to_owned()));
    let url = |path: &str| format!("http://{}{path}", door.address);
    let (status, body) = answer(reqwest::get(url("/readyz")).await.unwrap()).await;
    assert_eq!((status, body), (503, json!({ "ready": false, "checks": {} })));
    let (status, problem) = answer(reqwest::get(url("/api/v1/status")).await.unwrap()).await;
    assert_eq!((status, &problem["code"]), (401, &json!("unauthorized")));
    let wrong = Client::new().get(url("/api/v1/status")).bearer_auth("wrong").send().await.unwrap();
    assert_eq!(wrong.headers()["www-authenticate"], "Bearer");
    assert_eq!(door.get("/api/v1/status").await.0, 200);
}

#[tokio::test]
async fn a_page_of_somebody_else_can_not_use_the_api_by_a_name_of_its_own() {
    let door = Door::open(nowhere(), None).await;
    let url = format!("http://{}/api/v1/status", door.address);
    let response = Client::new().get(url).header("host", "evil.example").send().await.unwrap();
    assert_eq!(answer(response).await.1["code"], "wrong_host");
}

#[tokio::test]
async fn a_network_address_needs_a_token() {
    assert!(bind_admin("0.0.0.0:0".parse().unwrap(), false).await.is_err());
    assert!(bind_admin("0.0.0.0:0".parse().unwrap(), true).await.is_ok());
}

#[tokio::test]
async fn wrong_questions_get_problems_with_stable_codes() {
    let database = Database::new().await;
    let door = Door::open(database.pool(), None).await;
    for (path, status, code) in [
        ("/api/v1/dlq?after=x", 400, "invalid_cursor"),
        ("/api/v1/dlq?limit=x", 400, "invalid_limit"),
        ("/api/v1/dlq?consumr=org", 400, "invalid_filter"),
        ("/api/v1/dlq?attempts=many", 400, "invalid_filter"),
        ("/api/v1/dlq?count=x", 400, "invalid_count"),
        ("/api/v1/dlq/1", 400, "invalid_path"),
        ("/api/v1/dlq/00000000-0000-0000-0000-000000000000", 404, "not_found"),
        ("/api/v1/nothing", 404, "not_found"),
    ] {
        let (found, problem) = door.get(path).await;
        assert_eq!((found, &problem["code"]), (status, &json!(code)), "{path}: {problem}");
    }
    let (status, problem) = door.post("/api/v1/consumers/nobody/pause", json!({ "reason": "x" })).await;
    assert_eq!((status, &problem["code"]), (404, &json!("not_found")));
    let (status, problem) = door.post("/api/v1/consumers/org/pause", json!({ "reason": " " })).await;
    assert_eq!((status, &problem["code"]), (400, &json!("invalid_words")));
    let large = door.post("/api/v1/dlq/settled", json!({ "ids": vec!["x".repeat(100); 20_000] })).await;
    assert_eq!(large.0, 413);
}

#[tokio::test]
async fn pausing_shows_everywhere() {
    let database = Database::new().await;
    let door = Door::open(database.pool(), None).await;
    let (status, switched) = door.post("/api/v1/consumers/org/pause", json!({ "reason": "bank is down" })).await;
    assert_eq!((status, &switched["changed"]), (200, &json!(true)), "{switched}");
    let (_, consumers) = door.get("/api/v1/consumers").await;
    let org = consumers["items"].as_array().unwrap().iter().find(|c| c["consumer"] == "org").unwrap();
    assert_eq!(org["state"], "paused");
    assert_eq!(org["why"], "bank is down (unknown)");
    assert_eq!(door.get("/api/v1/outbox").await.1["partitions"].as_array().unwrap().len(), 8);
}

#[tokio::test]
async fn a_replay_through_the_api_wakes_the_relay() {
    let database = Database::new().await;
    let client = database.client().await;
    let door = Door::open(database.pool(), None).await;
    let insert = "INSERT INTO onceflow.dead_letter (id, tenant, consumer, source, event_id, event_type, stage, reason,
            error_chain, payload, headers, original_exchange, original_routing_key, attempts, first_failed_at,
            last_failed_at, consumer_version)
        SELECT gen_random_uuid(), 'default', 'org', '', n::text, 'org.user.upserted.v1', 'decode', 'invalid_json',
            ARRAY['broken'], '\\xff', '{}', 'flow.in', 'x', 1, now(), now(), '1' FROM generate_series(1, 3) AS n";
    client.batch_execute(insert).await.unwrap();
    let filter = json!({ "filter": { "reason_code": "invalid_json" } });
    let (status, problem) = door.post("/api/v1/dlq/replay", json!({ "selection": filter })).await;
    assert_eq!((status, &problem["code"]), (400, &json!("reason_needed")), "{problem}");
    let body = json!({ "selection": filter, "reason": "fixed", "expect_count": 2 });
    let (status, problem) = door.post("/api/v1/dlq/replay", body).await;
    assert_eq!((status, &problem["code"]), (409, &json!("count_differs")), "{problem}");
    let woken = door.wakeup.notified();
    let body = json!({ "selection": filter, "reason": "fixed", "expect_count": 3 });
    let (status, done) = door.post("/api/v1/dlq/replay", body).await;
    assert_eq!((status, done["ids"].as_array().unwrap().len()), (200, 3), "{done}");
    tokio::time::timeout(Duration::from_secs(5), woken).await.unwrap();
    let (_, settled) = door.post("/api/v1/dlq/settled", json!({ "ids": done["ids"] })).await;
    assert_eq!(settled, json!({ "replayed": 0, "failed_again": 0, "waiting": 3, "other": 0 }));
    let id = done["ids"][0].as_str().unwrap();
    let (_, letter) = door.post(&format!("/api/v1/dlq/{id}/unmask"), json!({})).await;
    assert_eq!((&letter["payload_base64"], &letter["state"]), (&json!("/w=="), &json!("replaying")));
}

#[tokio::test]
async fn a_list_says_how_many_match_and_a_group_takes_a_note() {
    let database = Database::new().await;
    let client = database.client().await;
    let door = Door::open(database.pool(), None).await;
    let insert = "INSERT INTO onceflow.dead_letter (id, tenant, consumer, source, event_id, event_type, stage, reason,
            error_chain, payload, headers, original_exchange, original_routing_key, attempts, first_failed_at,
            last_failed_at, consumer_version, partition_key)
        SELECT gen_random_uuid(), 'default', 'org', '', n::text, 'org.user.upserted.v1', 'decode', 'invalid_json',
            ARRAY['broken'], '{\"a\":1}', '{}', 'flow.in', 'x', n, now(), now(), '1', '42' FROM generate_series(1, 5) AS n";
    client.batch_execute(insert).await.unwrap();
    let (_, first) = door.get("/api/v1/dlq?limit=2&key=42&attempts=2").await;
    assert_eq!((&first["total"], &first["total_is_exact"]), (&json!(4), &json!(true)), "{first}");
    let next = first["next"].as_str().unwrap();
    let (_, second) = door.get(&format!("/api/v1/dlq?limit=2&key=42&attempts=2&after={next}")).await;
    assert_eq!((&second["total"], &second["next"]), (&json!(null), &json!(null)), "counted once: {second}");
    let (_, counted) = door.get(&format!("/api/v1/dlq?limit=2&after={next}&count=true")).await;
    assert_eq!(counted["total"], 5);

    let id = first["items"][0]["id"].as_str().unwrap();
    let (_, letter) = door.get(&format!("/api/v1/dlq/{id}")).await;
    assert_eq!((&letter["payload_kind"], &letter["payload_masked"]), (&json!("json"), &json!("{\"a\":1}")));
    assert_eq!(letter["related"]["same_key"].as_array().unwrap().len(), 4);

    let (_, groups) = door.get("/api/v1/dlq/groups").await;
    let path = format!("/api/v1/dlq/groups/{}/note", groups["items"][0]["id"].as_str().unwrap());
    let (status, noted) = door.post(&path, json!({ "note": " by the new client ", "owner": "li" })).await;
    assert_eq!(
        (status, &noted["note"], &noted["changed"]),
        (200, &json!("by the new client"), &json!(true)),
        "{noted}"
    );
    assert_eq!(door.get("/api/v1/dlq/groups").await.1["items"][0]["owner"], "li");
    for (path, body, status, code) in [
        (path.as_str(), json!({ "note": "x".repeat(501) }), 400, "invalid_words"),
        (path.as_str(), json!({ "remark": "x" }), 422, "invalid_body"),
        ("/api/v1/dlq/groups/0123456789abcdef/note", json!({ "note": "x" }), 404, "not_found"),
        ("/api/v1/dlq/groups/%00/note", json!({ "note": "x" }), 404, "not_found"),
    ] {
        let (found, problem) = door.post(path, body).await;
        assert_eq!((found, &problem["code"]), (status, &json!(code)), "{path}: {problem}");
    }
}

#[tokio::test]
async fn metrics_have_every_series_from_the_start() {
    let consumers = [("metrics_it", vec!["metrics.it.v1"])];
    let handle = telemetry::install(&consumers, &[1000, 5000]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/metrics", listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    let server = tokio::spawn(serve_metrics(handle, listener, stop.clone()));
    let response = reqwest::get(url).await.unwrap();
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    let text = response.text().await.unwrap();
    for series in [
        r#"onceflow_messages_processed_total{consumer="metrics_it",event_type="metrics.it.v1",outcome="dead"} 0"#,
        r#"onceflow_retries_scheduled_total{consumer="metrics_it",rung="5000",reason="contention"} 0"#,
        r#"onceflow_dead_letters{consumer="metrics_it",state="open"} 0"#,
        "onceflow_build_info{",
        "process_start_time_seconds",
    ] {
        assert!(text.contains(series), "{series} is missing in\n{text}");
    }
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), server).await.unwrap().unwrap().unwrap();
}

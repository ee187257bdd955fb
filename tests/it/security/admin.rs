//! The operators' door against those who only want to harm: O1 and O2 of the fault catalogue, §7.6 and §7.10.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use onceflow::runtime::{AnyConsumer, erase};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::admin::{Door, nowhere};
use crate::harness::{Database, Probe, Stack, probe::EVENT};

const TOKEN: &str = "correct horse battery";
/// The bounds are 10 s; a busy machine may be late.
const CUT_WITHIN: Duration = Duration::from_secs(40);

/// Sends bytes and returns what comes back until the server hangs up.
async fn say(door: &Door, words: &[u8]) -> String {
    let mut stream = TcpStream::connect(door.address).await.unwrap();
    stream.write_all(words).await.unwrap();
    let mut said = Vec::new();
    // A server that hangs up with bytes unread resets the connection; what it said before counts.
    let _reset = tokio::time::timeout(CUT_WITHIN, stream.read_to_end(&mut said)).await.expect("it never hung up");
    String::from_utf8_lossy(&said).into_owned()
}

/// One byte of a header every 100 ms, without end.
async fn drip(door: &Door) -> Duration {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(door.address).await.unwrap();
    stream.write_all(b"GET /livez HTTP/1.1\r\nx: ").await.unwrap();
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    while stream.write_all(b"x").await.is_ok() {
        tick.tick().await;
        assert!(begun.elapsed() < CUT_WITHIN, "a head that never ends is read for ever");
    }
    begun.elapsed()
}

#[tokio::test]
async fn who_says_nothing_or_never_ends_is_cut_off_and_the_door_opens_again_o2_s7_10() {
    let door = Door::open(nowhere(), None).await;
    let mut silent = JoinSet::new();
    let mut opened = Vec::new();
    // More than there are places.
    for _ in 0..200 {
        opened.push(TcpStream::connect(door.address).await.unwrap());
    }
    for mut stream in opened {
        silent.spawn(async move { stream.read(&mut [0; 1]).await });
    }
    let slow_body = b"POST /api/v1/dlq/settled HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                      content-length: 100\r\nconnection: close\r\n\r\n{";
    let client = Client::builder().timeout(CUT_WITHIN).build().unwrap();
    let (dripped, body, live) =
        tokio::join!(drip(&door), say(&door, slow_body), client.get(format!("http://{}/livez", door.address)).send());
    assert!(dripped < CUT_WITHIN);
    assert!(body.contains("504 Gateway Timeout"), "{body}");
    assert_eq!(live.unwrap().status(), 200, "the door opened again");
    let all = async { while silent.join_next().await.is_some() {} };
    tokio::time::timeout(CUT_WITHIN, all).await.expect("a silent connection was kept");
}

#[tokio::test]
async fn heads_are_bounded_in_number_and_size_s7_10() {
    let door = Door::open(nowhere(), None).await;
    let many: String = (0..100).map(|n| format!("x{n}: 1\r\n")).collect();
    let long = format!("x: {}\r\n", "x".repeat(100_000));
    for headers in [many, long] {
        let said = say(&door, format!("GET /livez HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n").as_bytes()).await;
        assert!(said.is_empty() || said.contains(" 431 "), "{said}");
    }
    assert_eq!(door.get("/livez").await.0, 200);
}

#[tokio::test]
async fn guessing_tokens_is_slowed_down_and_the_right_one_still_works_s7_6() {
    let database = Database::new().await;
    let door = Door::open(database.pool(), Some(TOKEN)).await;
    let url = format!("http://{}/api/v1/status", door.address);
    let mut statuses = BTreeMap::new();
    let begun = Instant::now();
    for n in 0..60 {
        let response = Client::new().get(&url).bearer_auth(format!("guess {n}")).send().await.unwrap();
        if response.status() == 429 {
            assert_eq!(response.headers()["retry-after"], "1");
        }
        *statuses.entry(response.status().as_u16()).or_insert(0_u64) += 1;
    }
    let looked_at = statuses[&401];
    assert!(looked_at <= 11 + begun.elapsed().as_secs(), "{statuses:?} in {:?}", begun.elapsed());
    assert_eq!(door.get("/api/v1/status").await.0, 200, "the configured token is known without a question");
    let none = reqwest::get(&url).await.unwrap();
    assert_eq!(none.status(), 401, "no token is no guess");
}

#[tokio::test]
async fn no_page_of_another_site_gets_an_answer_or_a_change_s7_8_s7_10() {
    let database = Database::new().await;
    let door = Door::open(database.pool(), None).await;
    let pause = format!("http://{}/api/v1/consumers/org/pause", door.address);
    let ask = |method: Method, site: &'static str| {
        let body = json!({ "reason": "x" });
        let request = Client::new().request(method, &pause).header("origin", "http://evil.example");
        request.header("sec-fetch-site", site).header("access-control-request-method", "POST").json(&body).send()
    };
    for (method, site, status) in [
        (Method::OPTIONS, "cross-site", 403),
        (Method::POST, "cross-site", 403),
        (Method::POST, "same-site", 403),
        (Method::POST, "same-origin", 200),
    ] {
        let response = ask(method.clone(), site).await.unwrap();
        let granted: Vec<_> =
            response.headers().keys().filter(|name| name.as_str().starts_with("access-control")).collect();
        assert_eq!(granted, Vec::<&reqwest::header::HeaderName>::new());
        assert_eq!(response.status().as_u16(), status, "{method} {site}");
    }
    // Without scripts a page sends no JSON.
    let form = Client::new().post(&pause).header("content-type", "text/plain").body(r#"{"reason":"x"}"#);
    assert_eq!(form.send().await.unwrap().status(), 415);
}

#[tokio::test]
async fn no_answer_shows_sql_or_where_it_was_built_s7_10() {
    let database = Database::new().await;
    let door = Door::open(database.pool(), None).await;
    database.client().await.batch_execute("ALTER TABLE onceflow.dead_letter RENAME TO gone").await.unwrap();
    let id = uuid::Uuid::nil();
    let mut said = String::new();
    for path in [
        "/dlq",
        "/dlq/groups",
        "/dlq/x",
        "/jobs/x",
        "/events/trace?id=",
        "/%00",
        "/dlq?after=%27",
        "/outbox",
        "/tokens",
        "/status",
    ] {
        said += &door.get(&format!("/api/v1{path}")).await.1.to_string();
    }
    said += &door.get(&format!("/api/v1/dlq/{id}")).await.1.to_string();
    for (path, body) in [
        ("/dlq/replay", json!({ "selection": { "ids": ["'; DROP TABLE x"] } })),
        ("/dlq/replay", json!({ "selection": { "ids": [id] }, "reason": "x" })),
        ("/dlq/settled", json!([])),
        ("/dlq/groups/00/note", json!({ "note": "x" })),
        ("/jobs", json!({ "action": "replay" })),
        ("/tokens", json!({ "name": "\u{0}", "role": "admin" })),
        ("/consumers/org/pause", Value::Null),
    ] {
        said += &door.post(&format!("/api/v1{path}"), body).await.1.to_string();
    }
    assert!(said.contains("schema_not_ready"), "the questions reached the database: {said}");
    let lower = said.to_lowercase();
    for word in [
        "select ",
        "insert ",
        "update ",
        "from onceflow",
        "relation",
        ".rs",
        "/src/",
        "cargo",
        env!("CARGO_MANIFEST_DIR"),
    ] {
        assert!(!lower.contains(word), "{word} stands in {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_requests_keeps_no_event_waiting_o2() {
    let consumers = || -> Vec<Box<dyn AnyConsumer>> { vec![erase(Probe::new())] };
    let mut stack = Stack::prepare(&consumers(), crate::harness::Wishes::default()).await;
    Probe::create_ledger(&stack.client).await;
    stack.run(consumers()).await;
    let address = stack.app.as_ref().unwrap().admin;
    let mut flood = JoinSet::new();
    for _ in 0..50 {
        flood.spawn(async move {
            let client = Client::new();
            let mut statuses = BTreeMap::new();
            for _ in 0..40 {
                let sent = client.get(format!("http://{address}/api/v1/dlq")).send().await;
                *statuses.entry(sent.map_or(0, |response| response.status().as_u16())).or_insert(0_u32) += 1;
            }
            statuses
        });
    }
    let events = (0..500).map(|n| stack.plain(EVENT, &format!("f{n}"), &json!({"do": "apply", "n": n}))).collect();
    stack.publish_all(events).await;
    stack.until_count("SELECT count(*) FROM onceflow.probe_ledger", 500).await;
    let mut statuses = BTreeMap::new();
    while let Some(ended) = flood.join_next().await {
        for (status, count) in ended.unwrap() {
            *statuses.entry(status).or_insert(0) += count;
        }
    }
    eprintln!("answers to the flood: {statuses:?}");
    assert!(statuses.keys().all(|status| [200, 503].contains(status)), "an answer or a refusal, at once: {statuses:?}");
    assert!(stack.stop().await);
}

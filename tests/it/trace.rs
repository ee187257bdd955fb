//! The life of an event as it is told afterwards: attempts survive the retries, and nothing of it costs the event anything.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use onceflow::db::{Commit, Tx};
use onceflow::event::{Downstream, Envelope, Rejection};
use onceflow::replay::trace::{self, Question, Step, Trace, What};
use onceflow::replay::{self, Change, Filter, Selection, control};
use onceflow::runtime::{Consumer, EventType, HandleError, Outcome, Received, erase};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio_postgres::Client;

use crate::harness::probe::EVENT;
use crate::harness::proxy::Proxy;
use crate::harness::{Database, SOON, Stack, Wishes, eventually, servers};

const ATTEMPTS: &str = "SELECT count(*) FROM onceflow.attempt";
const NAME: &str = "flaky";
const CHANGED: &str = "probe.changed.v1";

/// A consumer that fails the first deliveries of an event, as many as the event says, and applies the next one.
#[derive(Clone, Default)]
struct Flaky {
    deliveries: Arc<Mutex<HashMap<String, u32>>>,
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    fail: u32,
    #[serde(default)]
    reject: u32,
}

/// What a delivery is to become.
enum Wanted {
    Apply,
    Retry,
    Reject,
}

impl Flaky {
    fn delivered(&self, id: &str) -> u32 {
        self.deliveries.lock().unwrap().get(id).copied().unwrap_or(0)
    }
}

#[async_trait]
impl Consumer for Flaky {
    type Event = Wanted;
    const NAME: &'static str = NAME;
    const BINDINGS: &'static [&'static str] = &["probe.#"];
    const READS: &'static [EventType] =
        &[EventType { name: EVENT, summary: "", message: "", sample: "{}", to_protobuf: None }];
    const PUBLISHES: &'static [EventType] =
        &[EventType { name: CHANGED, summary: "", message: "", sample: "", to_protobuf: None }];

    /// Called once for each delivery, unlike the handler.
    fn decode(&self, envelope: &Envelope) -> Result<Wanted, Rejection> {
        let body: Body =
            serde_json::from_slice(&envelope.data).map_err(|e| Rejection::decode("invalid_json", e.to_string()))?;
        let mut deliveries = self.deliveries.lock().unwrap();
        let nth = deliveries.entry(envelope.id.clone()).or_default();
        *nth += 1;
        Ok(match *nth {
            nth if nth <= body.reject => Wanted::Reject,
            nth if nth <= body.fail => Wanted::Retry,
            _ => Wanted::Apply,
        })
    }

    async fn handle_one(&self, tx: &Tx, event: &Received<Wanted>) -> Result<Outcome, HandleError> {
        // A round trip of its own: an attempt takes time that can be measured.
        tx.query("SELECT 1", &[]).await?;
        match *event.event {
            Wanted::Retry => Ok(Outcome::Retry { after: Duration::from_millis(1), code: "not_yet" }),
            Wanted::Reject => Ok(Outcome::Reject(Rejection::refused("never", "the event asked to be rejected"))),
            Wanted::Apply => {
                let downstream = Downstream::new(CHANGED, "probe", event.envelope.id.clone(), &json!({}))?;
                Ok(Outcome::Applied(vec![downstream]))
            }
        }
    }
}

async fn stack() -> (Stack, Flaky) {
    stack_with(Wishes::default()).await
}

async fn stack_with(wishes: Wishes) -> (Stack, Flaky) {
    let flaky = Flaky::default();
    let stack = Stack::start_with(vec![erase(flaky.clone())], wishes).await;
    (stack, flaky)
}

/// Quick retries, and so many of them.
fn retries(delays: &str, max_attempts: u32) -> Wishes {
    let settings = format!(
        "[retry]\ndelays = {delays}\nmax_attempts = {max_attempts}\n\
         [runtime]\ndrain_within = \"5s\"\nhandler_timeout = \"20s\"\nlook_for_pauses = \"100ms\"\n"
    );
    Wishes { settings, ..Wishes::default() }
}

/// What the API tells.
async fn ask(stack: &Stack, question: &str) -> Trace {
    let admin = stack.app.as_ref().unwrap().admin;
    let answer = reqwest::get(format!("http://{admin}/api/v1/events/trace?{question}")).await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.json().await.unwrap()
}

/// The names of the steps, with the number of a failed attempt.
fn names(trace: &Trace) -> Vec<String> {
    let name = |step: &Step| match &step.what {
        What::Failed(failed) | What::GaveUp(failed) => format!("{} {}", tag(step), failed.attempt),
        _ => tag(step),
    };
    trace.items.iter().map(name).collect()
}

fn tag(step: &Step) -> String {
    serde_json::to_value(step).unwrap()["what"].as_str().unwrap().to_owned()
}

async fn replay_all(stack: &Stack) {
    let queues = [(NAME.to_owned(), stack.config.runtime.names.queue(NAME))].into();
    let change = Change {
        selection: Selection::Filter(Filter::default()),
        reason: Some("it works now".to_owned()),
        actor: "li".to_owned(),
        dry_run: false,
        expect_count: Some(1),
        max: None,
    };
    let tx = stack.pool().begin().await.unwrap();
    replay::replay(&tx, &change, &queues).await.unwrap();
    assert!(matches!(tx.commit().await, Commit::Committed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_fails_twice_and_is_then_applied_has_its_attempts_and_its_end_in_order() {
    let (stack, _) = stack().await;
    stack.publish_all(vec![stack.keyed(EVENT, "e1", "order/1", &json!({"fail": 2}))]).await;
    assert_eq!(stack.outcome("e1").await, "applied");
    assert_eq!(stack.downstream().await.len(), 1);

    let trace = ask(&stack, "id=e1").await;
    assert_eq!(names(&trace), ["failed 1", "failed 2", "applied", "confirmed"], "{trace:?}");
    assert!(!trace.cut && trace.notes.is_empty(), "{trace:?}");
    let times: Vec<_> = trace.items.iter().filter_map(|step| step.at).collect();
    assert!(times.is_sorted() && times.len() == 3, "{times:?}");
    let What::Failed(first) = &trace.items[0].what else { panic!("{trace:?}") };
    assert_eq!((first.stage.as_str(), first.code.as_str(), first.retry_ms), ("handle", "not_yet", Some(100)));
    assert_eq!(first.error_chain, ["the consumer asked for another attempt: not_yet"]);
    assert!(first.duration_us.is_some_and(|us| us > 0), "{first:?}");
    assert!(first.instance.ends_with(&format!(":{}", std::process::id())), "{first:?}");
    assert_eq!(first.consumer_version, env!("CARGO_PKG_VERSION"));
    let step = &trace.items[0];
    assert_eq!((step.tenant.as_str(), step.consumer.as_str(), step.source.as_str()), ("default", NAME, ""));

    let by_key = ask(&stack, "key=order/1&tenant=default").await;
    assert_eq!(names(&by_key), names(&trace), "the key leads to the events of it that failed");
    assert!(by_key.notes[0].contains("keeps no ordering keys"), "{by_key:?}");
    assert!(ask(&stack, "id=e1&consumer=nobody").await.items.is_empty());
    assert!(ask(&stack, "id=e1&source=another").await.items.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_dies_shows_its_attempts_its_death_its_replay_and_its_end() {
    let (stack, _) = stack().await;
    stack.publish(EVENT, "e1", &json!({"fail": 3})).await;
    assert_eq!(stack.death("e1").await, ("exhausted".to_owned(), "not_yet".to_owned()));
    assert_eq!(names(&ask(&stack, "id=e1").await), ["failed 1", "failed 2", "gave_up 3", "dead"]);

    replay_all(&stack).await;
    assert_eq!(stack.outcome("e1").await, "applied");
    stack.until_count("SELECT count(*) FROM onceflow.dead_letter WHERE state = 'replayed'", 1).await;
    assert_eq!(stack.downstream().await.len(), 1);
    let trace = ask(&stack, "id=e1").await;
    let expected =
        ["failed 1", "failed 2", "gave_up 3", "dead", "replayed", "applied", "confirmed", "closed"].map(str::to_owned);
    assert_eq!(names(&trace), expected, "{trace:?}");
    let What::Replayed(hand) = &trace.items[4].what else { panic!("{trace:?}") };
    assert_eq!((hand.actor.as_str(), hand.reason.as_deref()), ("li", Some("it works now")));
    let What::Closed(letter) = &trace.items[7].what else { panic!("{trace:?}") };
    assert_eq!((letter.state.as_str(), letter.replays), ("replayed", 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_fails_again_has_its_own_attempts() {
    let (stack, _) = stack().await;
    stack.publish(EVENT, "e1", &json!({"reject": 2})).await;
    assert_eq!(stack.death("e1").await, ("handle".to_owned(), "never".to_owned()));
    replay_all(&stack).await;
    stack.until_count(ATTEMPTS, 2).await;
    stack.until_count("SELECT count(*) FROM onceflow.outbox", 0).await;
    let trace = ask(&stack, "id=e1").await;
    assert_eq!(names(&trace), ["gave_up 1", "replayed", "gave_up 1", "dead"], "{trace:?}");
    let of_replay = |n: usize| match &trace.items[n].what {
        What::GaveUp(failed) => failed.replay_id.is_some(),
        _ => false,
    };
    assert_eq!((of_replay(0), of_replay(2)), (false, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_can_not_be_read_leaves_an_attempt_without_a_duration() {
    let (stack, _) = stack().await;
    stack.publish(EVENT, "bad", &json!("no object")).await;
    assert_eq!(stack.death("bad").await.0, "decode");
    let trace = ask(&stack, "id=bad").await;
    assert_eq!(names(&trace), ["gave_up 1", "dead"]);
    let What::GaveUp(failed) = &trace.items[0].what else { panic!("{trace:?}") };
    assert_eq!((failed.stage.as_str(), failed.duration_us), ("decode", None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_one_event_the_newest_twenty_attempts_are_kept() {
    let (stack, flaky) = stack_with(retries("[\"5ms\"]", 40)).await;
    stack.publish(EVENT, "e1", &json!({"fail": 25})).await;
    assert_eq!(stack.outcome("e1").await, "applied");
    assert_eq!(flaky.delivered("e1"), 26);
    let sql = "SELECT array_agg(attempt ORDER BY at) FROM onceflow.attempt";
    let kept: Vec<i32> = stack.client.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(kept, (6..=25).collect::<Vec<i32>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_is_applied_at_once_leaves_no_attempt() {
    let (stack, _) = stack().await;
    let messages = (0..50).map(|n| stack.plain(EVENT, &format!("e{n}"), &json!({}))).collect();
    stack.publish_all(messages).await;
    stack.until_count("SELECT count(*) FROM onceflow.inbox WHERE outcome = 'applied'", 50).await;
    assert_eq!(stack.count(ATTEMPTS).await, 0);
}

/// The table is locked, which is worse than a database that is away: each row would be waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_can_not_be_written_down_holds_up_nothing() {
    let (stack, flaky) = stack().await;
    let locker = stack.database.as_ref().unwrap().client().await;
    locker.batch_execute("BEGIN; LOCK TABLE onceflow.attempt IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let begun = Instant::now();
    stack.publish(EVENT, "e1", &json!({"fail": 2})).await;
    assert_eq!(stack.outcome("e1").await, "applied", "while nothing could be written down");
    // The server's own bound of a statement is 20 s: it was not what ended the wait.
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!(flaky.delivered("e1"), 3);
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let nobody = || async { (stack.count(waiting).await == 0).then_some(()) };
    eventually(Duration::from_secs(10), nobody).await;
    locker.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!((stack.count(ATTEMPTS).await, stack.count("SELECT count(*) FROM onceflow.dead_letter").await), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i7_an_outage_of_the_database_while_retrying_loses_nothing_and_spends_no_attempt() {
    let port = url::Url::parse(&servers().await.database_url).unwrap().port().unwrap();
    let proxy = Proxy::before(port).await;
    let flaky = Flaky::default();
    // A second failure would be a dead letter.
    let mut stack = Stack::prepare(&[erase(flaky.clone())], retries("[\"50ms\"]", 2)).await;
    stack.through(&proxy);
    stack.run(vec![erase(flaky.clone())]).await;
    // The attempt has failed and is being written down: now the database goes away.
    proxy.be_away_at("onceflow.attempt");
    stack.publish(EVENT, "e1", &json!({"fail": 1})).await;
    eventually(SOON, || async { proxy.is_away().then_some(()) }).await;
    // Its copy comes back all the same, and waits.
    eventually(SOON, || async { (flaky.delivered("e1") == 2).then_some(()) }).await;
    let away = || {
        let checks = stack.app.as_ref().unwrap().health.snapshot();
        matches!(checks.get("database"), Some(onceflow::health::Check::Waiting(_)))
    };
    eventually(SOON, || async { away().then_some(()) }).await;
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.inbox").await, 0);
    proxy.be_back();
    assert_eq!(stack.outcome("e1").await, "applied");
    assert_eq!(flaky.delivered("e1"), 2, "no attempt was spent by the outage");
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.dead_letter").await, 0);
    assert_eq!(stack.downstream().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn downstream_events_that_wait_are_told_with_their_reason() {
    let (stack, _) = stack_with(Wishes { no_sibling: true, ..Wishes::default() }).await;
    stack.publish(EVENT, "e1", &json!({})).await;
    stack.until_count("SELECT count(*) FROM onceflow.outbox WHERE parked_at IS NOT NULL", 1).await;
    let trace = ask(&stack, "id=e1").await;
    assert_eq!(names(&trace), ["applied", "confirmed", "parked"], "{trace:?}");
    assert!(matches!(trace.items[1].what, What::Confirmed { left: 0, of: 1 }), "{trace:?}");
    let What::Parked(row) = &trace.items[2].what else { panic!("{trace:?}") };
    assert!(row.parked_reason.as_deref().unwrap().contains("unroutable"), "{row:?}");
    assert_eq!(names(&ask(&stack, "key=e1").await), ["parked"], "the inbox keeps no keys, the outbox does");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_tells_a_life_in_lines_and_exit_3_when_nothing_is_known() {
    let (stack, _) = stack().await;
    stack.publish(EVENT, "e1", &json!({"fail": 1})).await;
    assert_eq!(stack.outcome("e1").await, "applied");
    let server = format!("http://{}", stack.app.as_ref().unwrap().admin);
    let onceflow = |args: &'static [&'static str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_onceflow"));
        command.env_clear().args(["events", "trace"]).args(args).args(["--server", &server]);
        async move { command.output().await.unwrap() }
    };
    let told = onceflow(&["e1"]).await;
    let text = String::from_utf8(told.stdout).unwrap();
    assert_eq!(told.status.code(), Some(0), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("TIME") && lines[0].contains("WHAT") && lines[0].contains("DETAIL"), "{text}");
    assert!(lines[1].contains("Z  failed") && lines[1].contains("attempt 1 at handle with not_yet after"), "{text}");
    assert!(lines[2].contains("Z  applied") && lines[2].contains("1 downstream"), "{text}");
    let json = onceflow(&["e1", "-o", "json"]).await;
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&json["schema"], &json["items"][0]["what"]), (&json!("onceflow.events.trace/1"), &json!("failed")));
    let unknown = onceflow(&["nobody-sent-this"]).await;
    assert_eq!((unknown.status.code(), unknown.stdout.len()), (Some(3), 0));
    assert!(String::from_utf8(unknown.stderr).unwrap().contains("nothing is known of event \"nobody-sent-this\""));
    assert_eq!(onceflow(&["e1", "--key", "k"]).await.status.code(), Some(2));
    assert_eq!(onceflow(&[]).await.status.code(), Some(2));
    assert_eq!(onceflow(&["--key", "\u{1}"]).await.status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_that_can_not_be_answered_is_refused_with_what_is_missing() {
    let (stack, _) = stack().await;
    let admin = stack.app.as_ref().unwrap().admin;
    for (question, code) in [
        ("", "invalid_question"),
        ("id=e&key=k", "invalid_question"),
        ("id=", "invalid_question"),
        ("id=%00", "invalid_question"),
        ("id=e&tennant=t", "invalid_query"),
    ] {
        let answer = reqwest::get(format!("http://{admin}/api/v1/events/trace?{question}")).await.unwrap();
        let status = answer.status();
        let problem: Value = answer.json().await.unwrap();
        assert_eq!((status.as_u16(), &problem["code"]), (400, &json!(code)), "{question}: {problem}");
    }
}

/// A desk with an inbox of many tenants and sources.
struct Desk {
    _database: Database,
    client: Client,
    pool: onceflow::db::Pool,
}

impl Desk {
    /// Twenty tenants, each with three consumers and `sources` sources, and thirty events in each.
    async fn with(sources: i32) -> Self {
        let database = Database::new().await;
        let desk = Self { client: database.client().await, pool: database.pool(), _database: database };
        let insert =
            "INSERT INTO onceflow.inbox (tenant, consumer, source, event_id, event_type, fingerprint, claim_id,
                downstream)
             SELECT 't' || t, c, 'source/' || s, t || '.' || s || '.' || n, 'x', '', gen_random_uuid(), 1
               FROM generate_series(1, 20) t, unnest(ARRAY['org', 'payment', 'sms']) c, generate_series(1, $1) s,
                    generate_series(1, 30) n";
        desk.client.execute(insert, &[&sources]).await.unwrap();
        desk.client.batch_execute("ANALYZE onceflow.inbox").await.unwrap();
        desk
    }

    async fn ask(&self, question: Question) -> Trace {
        let tx = self.pool.begin().await.unwrap();
        control::read_only(&tx).await.unwrap();
        let told = trace::trace(&tx, &question, &["org", "payment", "sms"]).await.unwrap();
        tx.rollback().await;
        told
    }
}

fn of_id(id: &str) -> Question {
    Question { id: Some(id.to_owned()), ..Question::default() }
}

#[tokio::test]
async fn an_event_is_found_by_its_id_alone_whatever_its_tenant_and_source() {
    let desk = Desk::with(4).await;
    let found = desk.ask(of_id("17.3.30")).await;
    let consumers: Vec<&str> = found.items.iter().map(|step| step.consumer.as_str()).collect();
    assert_eq!(consumers.len(), 6, "applied and confirmed for each of three consumers: {found:?}");
    assert!(found.items.iter().all(|step| step.tenant == "t17" && step.source == "source/3"), "{found:?}");
    assert!(found.notes.is_empty());
    let narrowed = Question { tenant: Some("t17".into()), consumer: Some("sms".into()), ..of_id("17.3.30") };
    assert_eq!(desk.ask(narrowed).await.items.len(), 2);
    assert!(desk.ask(Question { tenant: Some("t18".into()), ..of_id("17.3.30") }).await.items.is_empty());
}

#[tokio::test]
async fn an_inbox_of_too_many_sources_says_so_and_a_named_source_is_found() {
    let desk = Desk::with(20).await;
    let unknown = desk.ask(of_id("9.20.1")).await;
    assert!(unknown.items.is_empty(), "the last of 1200 sources is not among the first 1000");
    assert!(unknown.notes[0].contains("add --source and --tenant"), "{unknown:?}");
    let named = Question { tenant: Some("t9".into()), source: Some("source/20".into()), ..of_id("9.20.1") };
    assert_eq!(desk.ask(named).await.items.len(), 6);
    assert_eq!(desk.ask(Question { tenant: Some("t9".into()), ..of_id("9.20.1") }).await.items.len(), 6);
}

#[tokio::test]
async fn looking_at_a_life_changes_nothing_i9() {
    let desk = Desk::with(1).await;
    let letter = "INSERT INTO onceflow.dead_letter (id, tenant, consumer, source, event_id, event_type, partition_key, stage,
            reason, error_chain, payload, headers, original_exchange, original_routing_key, attempts, first_failed_at,
            last_failed_at, consumer_version)
        VALUES (gen_random_uuid(), 't1', 'org', 'source/1', '1.1.1', 'x', 'k', 'handle', 'why', ARRAY['broken'], '', '{}',
            '', '', 1, now(), now(), '1');
        INSERT INTO onceflow.attempt VALUES ('t1', 'org', 'source/1', '1.1.1', gen_random_uuid(), 'x', 'k', 1, now(),
            'host:1', '1', 'handle', 'why', ARRAY['broken'], 1, NULL, NULL)";
    desk.client.batch_execute(letter).await.unwrap();
    let sql = "SELECT md5((SELECT string_agg(d::text || d.xmin::text || d.xmax::text, '|') FROM onceflow.dead_letter d)
                   || (SELECT string_agg(a::text || a.xmin::text || a.xmax::text, '|') FROM onceflow.attempt a)
                   || (SELECT string_agg(i::text || i.xmin::text || i.xmax::text, '|' ORDER BY event_id, consumer, tenant)
                         FROM onceflow.inbox i))";
    let before: String = desk.client.query_one(sql, &[]).await.unwrap().get(0);
    for _ in 0..10 {
        assert_eq!(desk.ask(of_id("1.1.1")).await.items.len(), 8);
        assert_eq!(desk.ask(Question { key: Some("k".into()), ..Question::default() }).await.items.len(), 4);
    }
    let after: String = desk.client.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(before, after);
}

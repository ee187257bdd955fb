//! Dead letters in the hands of operators: look, replay, discard.

use std::collections::BTreeMap;

use onceflow::db::{Commit, Pool, Tx};
use onceflow::replay::control;
use onceflow::replay::{self, Change, ChangeError, Filter, Selection, State, Why};
use serde_json::Value;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::harness::Database;

const INSERT: &str = "
    INSERT INTO onceflow.dead_letter (id, tenant, consumer, source, event_id, event_type, subject, partition_key,
        stage, reason, error_chain, content_type, payload, headers, original_exchange, original_routing_key,
        attempts, first_failed_at, last_failed_at, consumer_version)
    VALUES ($1, 'acme', $2, 'hr', $1::uuid::text, 'org.user.upserted.v1', 'user/1', 'user/1',
        'handle', $3, ARRAY['the parent is missing', 'no department 7'], 'application/json', '{\"a\": 1}', $4,
        'onceflow.in', 'org.user.upserted.v1', 1, now() - $5 * interval '1 minute', now() - $5 * interval '1 minute', '1')";

struct Desk {
    database: Database,
    client: Client,
    pool: Pool,
}

impl Desk {
    async fn new() -> Self {
        let database = Database::new().await;
        Self { client: database.client().await, pool: database.pool(), database }
    }

    /// A dead letter of `consumer` that failed `minutes` ago.
    async fn letter(&self, consumer: &str, reason: &str, minutes: f64) -> Uuid {
        let id = Uuid::now_v7();
        let headers = serde_json::json!({
            "amqp:message_id": "e1", "amqp:content_type": "application/json", "cloudEvents:source": "hr",
            "x-death": [{ "count": 3 }], "onceflow-attempt": 4
        });
        self.client.execute(INSERT, &[&id, &consumer, &reason, &headers, &minutes]).await.unwrap();
        id
    }

    async fn replay(&self, change: &Change) -> Result<replay::Done, ChangeError> {
        let tx = self.pool.begin().await.unwrap();
        let done = replay::replay(&tx, change, &queues()).await;
        end(tx, done).await
    }

    async fn discard(&self, change: &Change) -> Result<replay::Done, ChangeError> {
        let tx = self.pool.begin().await.unwrap();
        let done = replay::discard(&tx, change).await;
        end(tx, done).await
    }

    async fn count(&self, sql: &str) -> i64 {
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }
}

async fn end(tx: Tx, done: Result<replay::Done, ChangeError>) -> Result<replay::Done, ChangeError> {
    if done.is_err() {
        tx.rollback().await;
        return done;
    }
    assert!(matches!(tx.commit().await, Commit::Committed));
    done
}

fn queues() -> BTreeMap<String, String> {
    BTreeMap::from([("org".to_owned(), "flow.org".to_owned()), ("sms".to_owned(), "flow.sms".to_owned())])
}

fn change(selection: Selection) -> Change {
    Change {
        selection,
        reason: Some("the parent is there now".to_owned()),
        actor: "li".to_owned(),
        dry_run: false,
        expect_count: None,
        max: None,
    }
}

fn of_consumer(name: &str) -> Selection {
    Selection::Filter(Filter { consumer: Some(name.to_owned()), ..Filter::default() })
}

#[tokio::test]
async fn a_replay_targets_only_the_consumer_that_failed_with_the_message_as_it_was() {
    let desk = Desk::new().await;
    let id = desk.letter("org", "parent_missing", 1.0).await;
    let done = desk.replay(&change(Selection::Ids(vec![id]))).await.unwrap();
    assert_eq!(done.ids, [id]);

    let sql = "SELECT exchange, routingkey, convert_from(payload_raw, 'UTF8'), headers, partitionkey, tenant, id FROM onceflow.outbox";
    let row = desk.client.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, &str>(0), row.get::<_, &str>(1)), ("", "flow.org"));
    assert_eq!(row.get::<_, &str>(2), "{\"a\": 1}");
    let headers: Value = row.get(3);
    assert_eq!(headers["amqp:message_id"], "e1");
    assert_eq!(headers["cloudEvents:source"], "hr");
    assert_eq!(headers["onceflow-original-exchange"], "onceflow.in");
    assert_eq!(headers["onceflow-original-routing-key"], "org.user.upserted.v1");
    assert_eq!(headers["onceflow-replay-id"], row.get::<_, Uuid>(6).to_string());
    assert_eq!(headers.get("x-death"), None, "the broker would see a dead-letter cycle");
    assert_eq!(headers.get("onceflow-attempt"), None, "a replay has all its attempts");
    assert_eq!((row.get::<_, &str>(4), row.get::<_, &str>(5)), ("user/1", "acme"));

    let letter =
        desk.client.query_one("SELECT state, replays, replay_id FROM onceflow.dead_letter", &[]).await.unwrap();
    assert_eq!((letter.get::<_, &str>(0), letter.get::<_, i32>(1)), ("replaying", 1));
    assert_eq!(letter.get::<_, Uuid>(2), row.get::<_, Uuid>(6));
    assert_eq!(desk.count("SELECT count(*) FROM onceflow.audit WHERE action = 'dlq.replay' AND actor = 'li'").await, 1);
}

#[tokio::test]
async fn the_same_replay_twice_sends_once_c3() {
    let desk = Desk::new().await;
    let id = desk.letter("org", "parent_missing", 1.0).await;
    let change = change(Selection::Ids(vec![id, Uuid::nil()]));
    let (first, second) = tokio::join!(desk.replay(&change), desk.replay(&change));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.ids.len() + second.ids.len(), 1);
    assert_eq!(desk.count("SELECT count(*) FROM onceflow.outbox").await, 1);
    let whys: Vec<Why> = first.ineligible.iter().chain(&second.ineligible).map(|i| i.why).collect();
    assert!(whys.contains(&Why::Replaying) && whys.contains(&Why::NotFound), "{whys:?}");
}

#[tokio::test]
async fn a_bulk_replay_needs_a_reason_and_the_count_that_was_seen() {
    let desk = Desk::new().await;
    for minutes in [3.0, 2.0, 1.0] {
        desk.letter("sms", "expired", minutes).await;
    }
    let nameless = Change { reason: None, ..change(of_consumer("sms")) };
    assert!(matches!(desk.replay(&nameless).await, Err(ChangeError::ReasonNeeded(3))));
    let outdated = Change { expect_count: Some(2), ..change(of_consumer("sms")) };
    assert!(matches!(desk.replay(&outdated).await, Err(ChangeError::Count { expected: 2, found: 3 })));
    let plan = desk.replay(&Change { dry_run: true, reason: None, ..change(of_consumer("sms")) }).await.unwrap();
    assert_eq!((plan.ids.len(), plan.consumers["sms"]), (3, 3));
    assert_eq!(desk.count("SELECT count(*) FROM onceflow.outbox").await, 0, "nothing was sent so far");
    let done = desk.replay(&Change { expect_count: Some(3), ..change(of_consumer("sms")) }).await.unwrap();
    assert_eq!(done.ids, plan.ids);
    assert_eq!(desk.count("SELECT count(*) FROM onceflow.outbox").await, 3);
}

#[tokio::test]
async fn replays_leave_in_the_order_of_failure_and_a_bound_takes_the_oldest() {
    let desk = Desk::new().await;
    let newest = desk.letter("org", "cycle", 1.0).await;
    let oldest = desk.letter("org", "cycle", 9.0).await;
    let middle = desk.letter("org", "cycle", 5.0).await;
    let done = desk.replay(&Change { max: Some(2), ..change(of_consumer("org")) }).await.unwrap();
    assert_eq!((done.ids, done.left), (vec![oldest, middle], 1));
    let sql = "SELECT array_agg(aggregateid ORDER BY seq) FROM onceflow.outbox";
    let sent: Vec<String> = desk.client.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(sent, [oldest.to_string(), middle.to_string()]);
    assert_eq!(desk.replay(&change(of_consumer("org"))).await.unwrap().ids, [newest]);
}

#[tokio::test]
async fn a_dead_letter_of_a_consumer_that_is_gone_is_not_sent_nowhere() {
    let desk = Desk::new().await;
    desk.letter("gone", "cycle", 1.0).await;
    let done = desk.replay(&change(of_consumer("gone"))).await.unwrap();
    assert!(done.ids.is_empty());
    assert_eq!(done.ineligible[0].why, Why::UnknownConsumer);
    assert_eq!(desk.discard(&change(of_consumer("gone"))).await.unwrap().ids.len(), 1);
}

#[tokio::test]
async fn a_discarded_dead_letter_stays_readable_and_can_not_be_replayed() {
    let desk = Desk::new().await;
    let id = desk.letter("org", "cycle", 1.0).await;
    desk.discard(&change(Selection::Ids(vec![id]))).await.unwrap();
    let again = desk.replay(&change(Selection::Ids(vec![id]))).await.unwrap();
    assert_eq!(again.ineligible[0].why, Why::Discarded);
    let tx = desk.pool.begin().await.unwrap();
    let shown = replay::show(&tx, id).await.unwrap().unwrap();
    assert_eq!(shown.closed_by.as_deref(), Some("li"));
    assert_eq!(shown.payload_text.as_deref(), Some("{\"a\": 1}"));
    assert_eq!(shown.error_chain.len(), 2);
    tx.rollback().await;
}

#[tokio::test]
async fn looking_never_changes_anything_i9() {
    let desk = Desk::new().await;
    let id = desk.letter("org", "cycle", 1.0).await;
    let sql = "SELECT md5(string_agg(d::text || d.xmin::text || d.xmax::text, '|')) FROM onceflow.dead_letter AS d";
    let before: String = desk.client.query_one(sql, &[]).await.unwrap().get(0);
    for _ in 0..30 {
        let tx = desk.pool.begin().await.unwrap();
        control::read_only(&tx).await.unwrap();
        replay::list(&tx, &Filter::default(), None, 50).await.unwrap();
        replay::groups(&tx, &Filter::default()).await.unwrap();
        replay::show(&tx, id).await.unwrap();
        control::outbox_status(&tx).await.unwrap();
        tx.rollback().await;
    }
    let after: String = desk.client.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(before, after);
    let tx = desk.pool.begin().await.unwrap();
    control::read_only(&tx).await.unwrap();
    let refused = control::set_paused(&tx, "org", true, ("li", "why")).await;
    assert_eq!(refused.unwrap_err().sqlstate(), Some("25006"), "a reading transaction can't write");
    tx.rollback().await;
}

#[tokio::test]
async fn a_list_is_paged_without_gap_or_repetition_newest_first() {
    let desk = Desk::new().await;
    for n in 0..7 {
        // Three share each time: the id decides.
        desk.letter("org", "cycle", f64::from(n / 3)).await;
    }
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let tx = desk.pool.begin().await.unwrap();
        let page = replay::list(&tx, &Filter::default(), after, 2).await.unwrap();
        tx.rollback().await;
        seen.extend(page.items.iter().map(|d| (d.last_failed_at, d.id)));
        match page.next {
            Some(next) => after = Some(next.parse().unwrap()),
            None => break,
        }
    }
    assert_eq!(seen.len(), 7);
    assert!(seen.windows(2).all(|w| w[0].0 >= w[1].0));
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 7);
}

#[tokio::test]
async fn filters_and_groups_agree() {
    let desk = Desk::new().await;
    desk.letter("org", "cycle", 1.0).await;
    desk.letter("org", "cycle", 2.0).await;
    let other = desk.letter("sms", "expired", 90.0).await;
    let tx = desk.pool.begin().await.unwrap();
    let groups = replay::groups(&tx, &Filter::default()).await.unwrap();
    assert_eq!(groups.iter().map(|g| g.count).collect::<Vec<_>>(), [2, 1]);
    let found = |filter: Filter| {
        let tx = &tx;
        async move { replay::list(tx, &filter, None, 50).await.unwrap().items.len() }
    };
    assert_eq!(found(Filter { group: Some(groups[0].id.clone()), ..Filter::default() }).await, 2);
    assert_eq!(found(Filter { reason_code: Some("expired".into()), ..Filter::default() }).await, 1);
    assert_eq!(found(Filter { text: Some("PARENT is missing".into()), ..Filter::default() }).await, 3);
    assert_eq!(found(Filter { text: Some(other.to_string()), ..Filter::default() }).await, 1);
    for text in ["%", "parent_is", r"\", "parent is missing h"] {
        assert_eq!(found(Filter { text: Some(text.into()), ..Filter::default() }).await, 0, "no wildcards: {text}");
    }
    assert_eq!(found(Filter { state: Some(State::Discarded), ..Filter::default() }).await, 0);
    let hour_ago = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(1);
    assert_eq!(found(Filter { since: Some(hour_ago), ..Filter::default() }).await, 2);
    assert_eq!(found(Filter { until: Some(hour_ago), ..Filter::default() }).await, 1);
    tx.rollback().await;
}

#[tokio::test]
async fn dropping_the_outbox_row_of_a_replay_opens_its_dead_letter_again() {
    let desk = Desk::new().await;
    let id = desk.letter("org", "cycle", 1.0).await;
    desk.replay(&change(Selection::Ids(vec![id]))).await.unwrap();
    desk.client.execute("UPDATE onceflow.outbox SET parked_at = now(), parked_reason = 'no queue'", &[]).await.unwrap();
    let row: Uuid = desk.client.query_one("SELECT id FROM onceflow.outbox", &[]).await.unwrap().get(0);
    let tx = desk.pool.begin().await.unwrap();
    assert_eq!(control::discard_parked(&tx, &[row], ("li", "no such queue")).await.unwrap(), 1);
    assert!(matches!(tx.commit().await, Commit::Committed));
    assert_eq!(desk.count("SELECT count(*) FROM onceflow.dead_letter WHERE state = 'open'").await, 1);
}

#[tokio::test]
async fn a_pause_is_kept_and_audited_once() {
    let desk = Desk::new().await;
    for (paused, changed) in [(false, false), (true, true), (true, false), (false, true)] {
        let tx = desk.pool.begin().await.unwrap();
        assert_eq!(control::set_paused(&tx, "org", paused, ("li", "bank is down")).await.unwrap(), changed);
        assert!(matches!(tx.commit().await, Commit::Committed));
    }
    let tx = desk.pool.begin().await.unwrap();
    assert!(!control::switches(&tx).await.unwrap()[0].paused);
    tx.rollback().await;
    assert_eq!(desk.count("SELECT count(*) FROM onceflow.audit WHERE action LIKE 'consumer.%'").await, 2);
    drop(desk.database);
}

//! Dead letters by how they failed: groups, what people say of them, filters, counts and pages.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use onceflow::db::{Commit, Pool, Tx};
use onceflow::event::{Envelope, Rejection};
use onceflow::replay::control;
use onceflow::replay::{self, COUNTED, Change, Filter, Group, LastReplay, Note, Selection, State};
use onceflow::runtime::{AnyConsumer, Consumer, EventType, HandleError, Outcome, Received, erase};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::harness::{Database, Stack};

/// Dead letters number `$1` to `$2`, the newest first, as a version wrote them that knows no groups.
const OLD: &str = "
    INSERT INTO onceflow.dead_letter (id, tenant, consumer, source, event_id, event_type, subject, partition_key,
        stage, reason, error_chain, content_type, payload, headers, original_exchange, original_routing_key,
        attempts, first_failed_at, last_failed_at, consumer_version)
    SELECT gen_random_uuid(), 'acme', 'org', '', 'old-' || n, 'org.user.upserted.v1', NULL, 'user/' || n % 7, 'handle',
        $3, ARRAY['no department ' || n], 'application/json', '{}',
        jsonb_build_object('amqp:correlation_id', 'case-' || n % 5), '', '', 1 + n % 3,
        now() - n * interval '1 second', now() - n * interval '1 second', '0'
      FROM generate_series($1::int, $2::int) AS n";

struct Desk {
    client: Client,
    pool: Pool,
    _database: Database,
}

impl Desk {
    async fn new() -> Self {
        let database = Database::new().await;
        Self { client: database.client().await, pool: database.pool(), _database: database }
    }

    async fn old(&self, from: i32, to: i32, reason: &str) {
        self.client.execute(OLD, &[&from, &to, &reason]).await.unwrap();
    }

    async fn groups(&self, filter: &Filter) -> Vec<Group> {
        groups(&self.pool, filter).await
    }

    async fn total(&self, filter: &Filter) -> (i64, bool) {
        let tx = self.pool.begin().await.unwrap();
        let total = replay::total(&tx, filter).await.unwrap();
        tx.rollback().await;
        (total.count, total.is_exact)
    }

    async fn note(&self, group: &str, note: Option<&str>, owner: Option<&str>) -> Option<replay::Noted> {
        let note = Note { note: note.map(str::to_owned), owner: owner.map(str::to_owned) };
        let tx = self.pool.begin().await.unwrap();
        let noted = replay::note(&tx, group, &note, "li").await.unwrap();
        assert!(matches!(tx.commit().await, Commit::Committed));
        noted
    }
}

async fn groups(pool: &Pool, filter: &Filter) -> Vec<Group> {
    let tx = pool.begin().await.unwrap();
    let groups = replay::groups(&tx, filter).await.unwrap();
    tx.rollback().await;
    groups
}

/// Refuses every event in the way that it names, until it is mended.
#[derive(Clone, Default)]
struct Faulty {
    mended: Arc<AtomicBool>,
}

#[derive(Debug, Deserialize)]
struct Order {
    /// `parent`, `deleted` or `phone`.
    kind: String,
    n: i64,
    /// What happens once the consumer is mended: `apply`, or fail as another kind.
    #[serde(default)]
    then: String,
}

const EVENT: &str = "probe.fails.v1";

#[async_trait]
impl Consumer for Faulty {
    type Event = Order;
    const NAME: &'static str = "faulty";
    const BINDINGS: &'static [&'static str] = &["probe.#"];
    const READS: &'static [EventType] =
        &[EventType { name: EVENT, summary: "", message: "", sample: "{}", to_protobuf: None }];
    const PUBLISHES: &'static [EventType] = &[];

    fn decode(&self, envelope: &Envelope) -> Result<Order, Rejection> {
        let order: Order = serde_json::from_slice(&envelope.data).map_err(|e| Rejection::json("the payload", &e))?;
        match order.kind.as_str() {
            "phone" => Err(Rejection::invalid("invalid_phone", format!("\"+49 {}\" is no phone number", order.n))),
            _ => Ok(order),
        }
    }

    async fn handle_one(&self, _: &Tx, event: &Received<Order>) -> Result<Outcome, HandleError> {
        let order = &event.event;
        let kind = if self.mended.load(Ordering::SeqCst) { &order.then } else { &order.kind };
        let n = order.n;
        Ok(match kind.as_str() {
            "apply" => Outcome::applied(),
            "deleted" => Outcome::Reject(Rejection::refused("parent", format!("department {n} was deleted at {n}:00"))),
            _ => Outcome::Reject(Rejection::refused("parent", format!("no department {n}; send it first"))),
        })
    }
}

async fn service() -> (Stack, Faulty) {
    let faulty = Faulty::default();
    let consumers: Vec<Box<dyn AnyConsumer>> = vec![erase(faulty.clone())];
    (Stack::start(consumers).await, faulty)
}

async fn fail(stack: &Stack, id: &str, kind: &str, then: &str) {
    let n = id.bytes().fold(0_i64, |n, byte| n * 7 + i64::from(byte));
    stack.publish(EVENT, id, &json!({ "kind": kind, "n": n, "then": then })).await;
}

const OPEN: &str = "SELECT count(*) FROM onceflow.dead_letter WHERE state = 'open'";

fn texts(groups: &[Group]) -> Vec<(i64, &str)> {
    groups.iter().map(|g| (g.count, g.text.as_deref().unwrap_or("-"))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_failures_of_three_kinds_are_three_groups() {
    let (stack, _) = service().await;
    let mut events = Vec::new();
    for n in 0..60_i64 {
        let kind = if n % 2 == 0 { "parent" } else { ["deleted", "phone", "phone"][usize::try_from(n % 3).unwrap()] };
        let body = json!({ "kind": kind, "n": n * 7919 });
        events.push(stack.keyed(EVENT, &format!("e{n}"), &format!("key-{n}"), &body));
    }
    stack.publish_all(events).await;
    stack.until_count(OPEN, 60).await;
    let found = groups(&stack.pool(), &Filter::default()).await;
    let expected =
        [(30, "no department …; send it first"), (20, "… is no phone number"), (10, "department … was deleted at …")];
    assert_eq!(texts(&found), expected);
    // Two of them differ in nothing but the text.
    assert_eq!((&found[0].reason_code, &found[0].stage), (&found[2].reason_code, &found[2].stage));
    assert!(found.iter().all(|g| g.id.len() == 16 && g.last_hour == g.count && g.hour_before == 0), "{found:?}");
    for group in &found {
        let filter = Filter { group: Some(group.id.clone()), ..Filter::default() };
        let tx = stack.pool().begin().await.unwrap();
        let page = replay::list(&tx, &filter, None, 100).await.unwrap();
        tx.rollback().await;
        assert_eq!(i64::try_from(page.items.len()).unwrap(), group.count);
        assert!(page.items.iter().all(|d| d.group == group.id));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_copy_that_fails_in_another_way_moves_its_dead_letter_to_that_group() {
    let (stack, _) = service().await;
    fail(&stack, "same", "parent", "").await;
    stack.until_count(OPEN, 1).await;
    fail(&stack, "same", "phone", "").await;
    stack.until_count("SELECT occurrences::bigint FROM onceflow.dead_letter", 2).await;
    let found = groups(&stack.pool(), &Filter::default()).await;
    assert_eq!(texts(&found), [(1, "… is no phone number")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_fails_with_another_error_moves_to_another_group_and_the_old_one_tells() {
    let (stack, faulty) = service().await;
    for (id, then) in [("good", "apply"), ("same", "parent"), ("other", "deleted")] {
        fail(&stack, id, "parent", then).await;
    }
    stack.until_count(OPEN, 3).await;
    let before = groups(&stack.pool(), &Filter::default()).await;
    assert_eq!((texts(&before), &before[0].last_replay), (vec![(3, "no department …; send it first")], &None));
    assert_eq!(before[0].new_since_replay, None);

    faulty.mended.store(true, Ordering::SeqCst);
    let filter = Filter { group: Some(before[0].id.clone()), ..Filter::default() };
    let change = Change {
        selection: Selection::Filter(filter),
        reason: Some("mended".to_owned()),
        actor: "li".to_owned(),
        dry_run: false,
        expect_count: Some(3),
        max: None,
    };
    let tx = stack.pool().begin().await.unwrap();
    let queues = BTreeMap::from([("faulty".to_owned(), "onceflow.faulty".to_owned())]);
    replay::replay(&tx, &change, &queues).await.unwrap();
    assert!(matches!(tx.commit().await, Commit::Committed));
    let left = "SELECT count(*) FROM onceflow.dead_letter WHERE state = 'replaying'";
    stack.until_count(left, 0).await;

    let after = groups(&stack.pool(), &Filter::default()).await;
    let of = |text: &str| after.iter().find(|g| g.text.as_deref() == Some(text)).unwrap();
    let (old, new) = (of("no department …; send it first"), of("department … was deleted at …"));
    assert_eq!((after.len(), old.count, new.count), (2, 1, 1));
    let last = old.last_replay.clone().unwrap();
    let expected = LastReplay {
        at: last.at,
        by: Some("li".to_owned()),
        succeeded: 1,
        failed_again: 1,
        failed_differently: 1,
        waiting: 0,
    };
    assert_eq!(last, expected);
    assert_eq!((old.new_since_replay, &new.last_replay, new.new_since_replay), (Some(0), &None, None));

    fail(&stack, "newcomer", "parent", "").await;
    faulty.mended.store(false, Ordering::SeqCst);
    stack.until_count(OPEN, 3).await;
    let later = groups(&stack.pool(), &Filter::default()).await;
    let old = later.iter().find(|g| g.id == before[0].id).unwrap();
    assert_eq!((old.count, old.new_since_replay), (2, Some(1)));
}

#[tokio::test]
async fn rows_of_an_earlier_version_are_grouped_by_their_four_fields_everywhere() {
    let desk = Desk::new().await;
    desk.old(1, 30, "cycle").await;
    desk.old(31, 40, "parent_missing").await;
    let found = desk.groups(&Filter::default()).await;
    let sql = "SELECT left(md5('org|org.user.upserted.v1|handle|cycle'), 8)";
    let known: String = desk.client.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!((found.len(), found[0].count, &found[0].id, found[0].text.as_deref()), (2, 30, &known, None));
    assert_eq!(found[0].example, "no department 1");
    let filter = Filter { group: Some(known.clone()), ..Filter::default() };
    assert_eq!(desk.total(&filter).await, (30, true));
    let tx = desk.pool.begin().await.unwrap();
    let page = replay::list(&tx, &filter, None, 50).await.unwrap();
    assert!(page.items.len() == 30 && page.items.iter().all(|d| d.group == known));
    assert_eq!(replay::show(&tx, page.items[0].id).await.unwrap().unwrap().summary.group, known);
    let totals = control::dead_letter_totals(&tx).await.unwrap();
    assert_eq!((totals.len(), totals[0].open, totals[0].groups), (1, 40, 2));
    tx.rollback().await;
}

#[tokio::test]
async fn a_note_and_an_owner_stay_with_a_group_and_every_change_is_audited() {
    let desk = Desk::new().await;
    desk.old(1, 3, "cycle").await;
    let group = desk.groups(&Filter::default()).await.remove(0).id;
    let audit = "SELECT count(*) FROM onceflow.audit WHERE action = 'dlq.note' AND actor = 'li'";
    let audited = || async { desk.client.query_one(audit, &[]).await.unwrap().get::<_, i64>(0) };

    assert!(desk.note(&group, Some("tree is broken"), None).await.unwrap().changed);
    assert!(!desk.note(&group, Some("tree is broken"), None).await.unwrap().changed);
    assert_eq!(audited().await, 1, "what was said before is no change");
    let noted = desk.note(&group, None, Some("wang")).await.unwrap();
    assert_eq!((noted.note.as_deref(), noted.owner.as_deref()), (Some("tree is broken"), Some("wang")));
    let shown = desk.groups(&Filter::default()).await.remove(0);
    assert_eq!((shown.note.as_deref(), shown.owner.as_deref()), (Some("tree is broken"), Some("wang")));
    let noted = desk.note(&group, Some(""), None).await.unwrap();
    assert_eq!((noted.note, noted.owner.as_deref(), audited().await), (None, Some("wang"), 3));
    let sql = "SELECT detail FROM onceflow.audit WHERE action = 'dlq.note' ORDER BY at DESC LIMIT 1";
    let detail: Value = desk.client.query_one(sql, &[]).await.unwrap().get(0);
    let expected = json!({
        "before": { "note": "tree is broken", "owner": "wang" },
        "after": { "note": null, "owner": "wang" },
    });
    assert_eq!(detail, expected);

    assert_eq!(desk.note("0123456789abcdef", Some("who?"), None).await, None, "there is no such group");
    assert_eq!(audited().await, 3);
}

#[tokio::test]
async fn matches_are_counted_exactly_up_to_ten_thousand_and_no_further() {
    let desk = Desk::new().await;
    desk.old(1, 10_000, "cycle").await;
    assert_eq!(desk.total(&Filter::default()).await, (COUNTED, true));
    desk.old(10_001, 10_001, "other").await;
    assert_eq!(desk.total(&Filter::default()).await, (COUNTED, false));
    let of = |reason: &str| Filter { reason_code: Some(reason.to_owned()), ..Filter::default() };
    assert_eq!(desk.total(&of("cycle")).await, (COUNTED, true));
    assert_eq!(desk.total(&of("other")).await, (1, true));
    assert_eq!(desk.total(&of("neither")).await, (0, true));
}

#[tokio::test]
async fn pages_are_complete_and_stable_while_new_ones_arrive() {
    let desk = Desk::new().await;
    desk.old(1000, 1060, "cycle").await;
    let other_states =
        "UPDATE onceflow.dead_letter SET state = CASE WHEN attempts = 1 THEN 'replaying' ELSE 'discarded' END,
        closed_at = CASE WHEN attempts = 1 THEN NULL ELSE now() END WHERE attempts < 3 AND event_id < 'old-1040'";
    assert!(desk.client.execute(other_states, &[]).await.unwrap() > 20);
    for state in [State::Open, State::Any] {
        let filter = Filter { state: Some(state), ..Filter::default() };
        let all = "SELECT id FROM onceflow.dead_letter WHERE $1 IN (state, 'any') ORDER BY last_failed_at DESC, id";
        let expected: Vec<Uuid> =
            desk.client.query(all, &[&state.as_str()]).await.unwrap().iter().map(|row| row.get(0)).collect();
        let (mut seen, mut after, mut pages) = (Vec::new(), None, 0);
        loop {
            let tx = desk.pool.begin().await.unwrap();
            let page = replay::list(&tx, &filter, after, 7).await.unwrap();
            tx.rollback().await;
            seen.extend(page.items.iter().map(|d| d.id));
            pages += 1;
            // Newer than everything so far.
            desk.old(900 - pages, 900 - pages, state.as_str()).await;
            match page.next {
                Some(next) => after = Some(next.parse().unwrap()),
                None => break,
            }
        }
        assert_eq!(seen, expected, "{state:?}");
        assert!(pages > 4);
        desk.client.execute("DELETE FROM onceflow.dead_letter WHERE length(event_id) < 8", &[]).await.unwrap();
    }
}

#[tokio::test]
async fn every_condition_restricts_alone_and_together_with_others() {
    let desk = Desk::new().await;
    desk.old(1, 70, "cycle").await;
    desk.client.execute("UPDATE onceflow.dead_letter SET replays = attempts - 1", &[]).await.unwrap();
    let filter = Filter::default;
    let key = || Some("user/3".to_owned());
    for (filter, condition) in [
        (Filter { key: key(), ..filter() }, "partition_key = 'user/3'"),
        (Filter { attempts: Some(2), ..filter() }, "attempts >= 2"),
        (Filter { replays: Some(2), ..filter() }, "replays >= 2"),
        (Filter { key: key(), attempts: Some(3), ..filter() }, "partition_key = 'user/3' AND attempts >= 3"),
        (
            Filter { text: Some("DEPARTMENT 7".to_owned()), attempts: Some(2), ..filter() },
            "error_chain[1] LIKE '%department 7%' AND attempts >= 2",
        ),
        (Filter { tenant: Some("other".to_owned()), ..filter() }, "tenant = 'other'"),
        (Filter { stage: Some("handle".to_owned()), replays: Some(1), ..filter() }, "replays >= 1"),
    ] {
        let sql = format!("SELECT count(*) FROM onceflow.dead_letter WHERE {condition}");
        let expected: i64 = desk.client.query_one(&sql, &[]).await.unwrap().get(0);
        assert_eq!(desk.total(&filter).await, (expected, true), "{condition}");
        let tx = desk.pool.begin().await.unwrap();
        let listed = replay::list(&tx, &filter, None, 100).await.unwrap().items.len();
        tx.rollback().await;
        let grouped: i64 = desk.groups(&filter).await.iter().map(|g| g.count).sum();
        assert_eq!((i64::try_from(listed).unwrap(), grouped), (expected, expected), "{condition}");
    }
}

#[tokio::test]
async fn one_is_shown_with_the_newest_others_of_its_key_and_its_case() {
    let desk = Desk::new().await;
    desk.old(1, 210, "cycle").await;
    let sql = "SELECT id FROM onceflow.dead_letter WHERE event_id = 'old-35'";
    let id: Uuid = desk.client.query_one(sql, &[]).await.unwrap().get(0);
    let tx = desk.pool.begin().await.unwrap();
    let shown = replay::show(&tx, id).await.unwrap().unwrap();
    tx.rollback().await;
    assert_eq!(shown.correlation_id.as_deref(), Some("case-0"));
    let ids = |relatives: &[replay::Relative]| relatives.iter().map(|r| r.event_id.clone()).collect::<Vec<_>>();
    // Every seventh has the same key and every fifth the same case; twenty of each are shown.
    let every = |step: i32| -> Vec<String> {
        (1..).map(|k| k * step).filter(|n| *n != 35).take(20).map(|n| format!("old-{n}")).collect()
    };
    assert_eq!(ids(&shown.related.same_key), every(7));
    assert_eq!(ids(&shown.related.same_correlation), every(5));
}

#[tokio::test]
async fn looking_at_groups_counts_and_relatives_changes_nothing_i9() {
    let desk = Desk::new().await;
    desk.old(1, 50, "cycle").await;
    let group = desk.groups(&Filter::default()).await.remove(0).id;
    desk.note(&group, Some("known"), None).await;
    let sql = "SELECT (SELECT md5(string_agg(d::text || d.xmin::text || d.xmax::text, '|' ORDER BY id)) FROM onceflow.dead_letter AS d)
        || (SELECT md5(string_agg(g::text || g.xmin::text || g.xmax::text, '|')) FROM onceflow.dead_letter_group AS g)
        || (SELECT count(*) FROM onceflow.audit)";
    let before: String = desk.client.query_one(sql, &[]).await.unwrap().get(0);
    let any = Filter { state: Some(State::Any), ..Filter::default() };
    for _ in 0..20 {
        let tx = desk.pool.begin().await.unwrap();
        control::read_only(&tx).await.unwrap();
        let page = replay::list(&tx, &any, None, 5).await.unwrap();
        replay::total(&tx, &any).await.unwrap();
        replay::groups(&tx, &any).await.unwrap();
        replay::show(&tx, page.items[0].id).await.unwrap().unwrap();
        tx.rollback().await;
    }
    let after: String = desk.client.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(before, after);
    let tx = desk.pool.begin().await.unwrap();
    control::read_only(&tx).await.unwrap();
    let note = Note { note: Some("news".to_owned()), owner: None };
    let refused = replay::note(&tx, &group, &note, "li").await;
    assert_eq!(refused.unwrap_err().sqlstate(), Some("25006"), "a reading transaction can't write");
    tx.rollback().await;
}

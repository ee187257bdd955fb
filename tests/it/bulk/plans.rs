use std::time::Instant;

use onceflow::replay::job::{Action, JobError, Left, NewJob, Settings, State};
use onceflow::replay::{Filter, Selection};
use serde_json::json;
use uuid::Uuid;

use super::desk::{Desk, books, everything};
use crate::harness::size;

fn only(reason: &str) -> Selection {
    Selection::Filter(Filter { reason_code: Some(reason.to_owned()), ..Filter::default() })
}

#[tokio::test]
async fn a_plan_is_a_frozen_list_and_newcomers_are_counted() {
    let desk = Desk::new().await;
    desk.letters("probe", "cycle", 20, 5).await;
    let held = NewJob { settings: Settings { hold_seconds: 300, ..Settings::default() }, ..everything() };
    let job = desk.made(&held).await;
    desk.letters("sms", "late", 7, 7).await;
    desk.client
        .execute("UPDATE onceflow.dead_letter SET last_failed_at = now() WHERE reason = 'late'", &[])
        .await
        .unwrap();
    let now = desk.job(job.id).await;
    assert_eq!((now.state, books(&now), now.newcomers), (State::Held, json!([20, 20, 0, 0, 0, 0]), Some(7)));
    desk.steer(job.id, "start").await.unwrap();
    let running = desk.run();
    desk.deliver_until(job.id, State::Done, "").await;
    assert_eq!(books(&desk.job(job.id).await), json!([20, 0, 0, 20, 0, 0]));
    assert_eq!(
        desk.count("SELECT count(*) FROM onceflow.dead_letter WHERE state = 'open' AND reason = 'late'").await,
        7
    );
    running.stop().await;
}

#[tokio::test]
async fn a_dry_run_tells_the_whole_plan_and_writes_nothing() {
    let desk = Desk::new().await;
    desk.letters("probe", "cycle", 30, 5).await;
    desk.letters("sms", "expired", 10, 10).await;
    let new =
        NewJob { dry_run: true, reason: None, settings: Settings { rate: 10, ..Settings::default() }, ..everything() };
    let planned = desk.create(&new).await.unwrap();
    let plan = planned.plan;
    assert!(planned.job.is_none());
    assert_eq!((plan.count, plan.canary, plan.seconds, plan.samples.len()), (40, 5, 4, 5));
    let kinds: Vec<_> = plan.kinds.iter().map(|k| (k.consumer.as_str(), k.reason_code.as_str(), k.count)).collect();
    assert_eq!(kinds, [("probe", "cycle", 30), ("sms", "expired", 10)]);
    for table in ["bulk_job", "bulk_job_item", "audit", "outbox"] {
        assert_eq!(desk.count(&format!("SELECT count(*) FROM onceflow.{table}")).await, 0, "{table}");
    }
}

#[tokio::test]
async fn what_can_not_be_replayed_is_left_out_with_the_reason_and_the_replay_cap_parks() {
    let desk = Desk::new().await;
    desk.letters("probe", "fine", 3, 3).await;
    desk.letters("gone", "gone", 2, 2).await;
    desk.letters("probe", "capped", 4, 4).await;
    desk.letters("probe", "underway", 1, 1).await;
    let update = "UPDATE onceflow.dead_letter SET replays = 3 WHERE reason = 'capped';
                  UPDATE onceflow.dead_letter SET state = 'replaying', replay_id = gen_random_uuid() WHERE reason = 'underway'";
    desk.client.batch_execute(update).await.unwrap();
    let job = desk.made(&everything()).await;
    let left: Vec<_> = job.plan.left_out.iter().map(|l| (l.why, l.count, l.ids.len())).collect();
    assert_eq!(left, [(Left::Replaying, 1, 1), (Left::UnknownConsumer, 2, 2), (Left::Parked, 4, 4)]);
    assert_eq!(job.planned, 3);
    let none = NewJob { selection: only("capped"), ..everything() };
    assert!(matches!(desk.create(&none).await, Err(JobError::NoneEligible(why)) if why.contains("4 parked")));
    assert!(matches!(
        desk.create(&NewJob { selection: only("nothing"), ..everything() }).await,
        Err(JobError::Nothing)
    ));
    let nobody = NewJob { selection: Selection::Ids(vec![Uuid::nil()]), ..everything() };
    assert!(matches!(desk.create(&nobody).await, Err(JobError::Nothing)));
    // Nobody receives what is discarded, so consumer and cap don't matter.
    let discard = NewJob { action: Action::Discard, selection: only("capped"), ..everything() };
    assert_eq!(desk.made(&discard).await.planned, 4);
}

#[tokio::test]
async fn two_operators_at_once_make_one_job_and_the_second_is_told_whose_it_is() {
    let desk = Desk::new().await;
    desk.letters("probe", "cycle", 50, 5).await;
    let (li, wang) = (everything(), NewJob { actor: "wang".to_owned(), ..everything() });
    let results = tokio::join!(desk.create(&li), desk.create(&wang));
    let (made, refused) = match results {
        (Ok(made), Err(refused)) | (Err(refused), Ok(made)) => (made.job.unwrap(), refused),
        both => panic!("{both:?}"),
    };
    let JobError::Taken { count, job, actor, .. } = &refused else { panic!("{refused}") };
    assert_eq!((*count, *job, actor), (50, made.id, &made.actor));
    assert!(refused.to_string().contains(&made.id.to_string()), "{refused}");
    let dry = desk.create(&NewJob { dry_run: true, ..everything() }).await.unwrap();
    assert_eq!(dry.plan.left_out[0].why, Left::InJob);
    // Once it has ended they are free again.
    desk.steer(made.id, "cancel").await.unwrap();
    assert_eq!(desk.made(&everything()).await.planned, 50);
}

#[tokio::test]
async fn the_same_idempotency_key_is_the_same_job() {
    let desk = Desk::new().await;
    desk.letters("probe", "cycle", 5, 5).await;
    let new = NewJob { idempotency_key: Some("monday".to_owned()), ..everything() };
    let (first, second) = tokio::join!(desk.create(&new), desk.create(&new));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.job.as_ref().unwrap().id, second.job.as_ref().unwrap().id);
    assert!(first.repeated != second.repeated, "one made it");
    assert_eq!(desk.audit("job.plan").await, 1);
    let other = NewJob { selection: only("cycle"), ..new };
    assert!(matches!(desk.create(&other).await, Err(JobError::KeyUsed(_))));
}

#[tokio::test]
async fn a_job_needs_a_reason_and_the_count_that_was_seen() {
    let desk = Desk::new().await;
    desk.letters("probe", "cycle", 5, 5).await;
    assert!(matches!(desk.create(&NewJob { reason: None, ..everything() }).await, Err(JobError::ReasonNeeded)));
    let outdated = NewJob { expect_count: Some(4), ..everything() };
    assert!(matches!(desk.create(&outdated).await, Err(JobError::Count { expected: 4, found: 5 })));
    assert_eq!(desk.count("SELECT count(*) FROM onceflow.bulk_job").await, 0);
    let job = desk.made(&NewJob { expect_count: Some(5), max: Some(2), ..everything() }).await;
    assert_eq!((job.planned, job.plan.left), (2, 3));
    let oldest = "SELECT count(*) FROM onceflow.bulk_job_item i JOIN onceflow.dead_letter d ON d.id = i.dead_letter_id
                  WHERE d.event_id IN ('cycle-1', 'cycle-2')";
    assert_eq!(desk.count(oldest).await, 2);
}

#[tokio::test]
async fn a_canary_is_spread_over_the_kinds_and_is_the_first_of_its_keys() {
    let desk = Desk::new().await;
    desk.letters("probe", "many", 100, 10).await;
    desk.letters("probe", "few", 3, 3).await;
    desk.letters("sms", "one", 1, 1).await;
    let new = NewJob { settings: Settings { canary: 5, hold_seconds: 300, ..Settings::default() }, ..everything() };
    let job = desk.made(&new).await;
    assert_eq!(job.plan.canary, 5);
    let sql = "SELECT count(DISTINCT d.reason), count(*), count(DISTINCT i.key), max(i.turn)::int8
                 FROM onceflow.bulk_job_item i JOIN onceflow.dead_letter d ON d.id = i.dead_letter_id WHERE i.canary";
    let row = desk.client.query_one(sql, &[]).await.unwrap();
    let numbers: Vec<i64> = (0..4).map(|n| row.get(n)).collect();
    // The few have keys that others failed for before.
    assert_eq!(numbers, [2, 5, 5, 1], "of both kinds, five of five keys, each the first of its key");
}

/// `ONCEFLOW_PLANNED=100000` is what a release is tried with.
#[tokio::test]
async fn planning_is_one_statement_however_many_there_are() {
    let desk = Desk::new().await;
    let count = i64::try_from(size("ONCEFLOW_PLANNED", 2_000)).unwrap();
    desk.letters("probe", "cycle", count, count / 10).await;
    desk.client.batch_execute("ANALYZE onceflow.dead_letter").await.unwrap();
    let started = Instant::now();
    let job = desk.made(&everything()).await;
    eprintln!("planned {count} in {:?}", started.elapsed());
    assert_eq!(i64::from(job.planned), count);
    assert_eq!(desk.count("SELECT count(*) FROM onceflow.bulk_job_item WHERE ready").await, count / 10);
    let started = Instant::now();
    desk.steer(job.id, "cancel").await.unwrap();
    eprintln!("cancelled in {:?}", started.elapsed());
    assert_eq!(desk.count("SELECT count(*) FROM onceflow.bulk_job_item WHERE state = 'waiting'").await, 0);
}

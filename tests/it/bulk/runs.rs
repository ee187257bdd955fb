use std::collections::BTreeMap;

use onceflow::health::Check;
use onceflow::replay::job::{Action, JobError, NewJob, Settings, State};
use serde_json::json;

use super::desk::{Desk, books, everything, number};
use crate::harness::proxy::Proxy;
use crate::harness::{SOON, eventually};

fn careful(settings: Settings) -> NewJob {
    NewJob { settings, ..everything() }
}

#[tokio::test]
async fn an_undo_while_it_is_held_sends_nothing() {
    let desk = Desk::new().await;
    desk.letters("probe", "cycle", 20, 5).await;
    let running = desk.run();
    let job = desk.made(&careful(Settings { hold_seconds: 300, ..Settings::default() })).await;
    let undone = desk.steer(job.id, "cancel").await.unwrap();
    assert_eq!((undone.state, books(&undone)), (State::Cancelled, json!([20, 0, 0, 0, 0, 20])));
    // The runner has met the database once more since: another job comes to its end.
    desk.letters("sms", "later", 1, 1).await;
    let sms = onceflow::replay::Filter { consumer: Some("sms".to_owned()), ..Default::default() };
    let other = desk.made(&NewJob { selection: onceflow::replay::Selection::Filter(sms), ..everything() }).await;
    let sent = desk.deliver_until(other.id, State::Done, "").await;
    assert_eq!(sent, ["later-1"]);
    assert_eq!(desk.count("SELECT count(*) FROM onceflow.dead_letter WHERE replays > 0").await, 1);
    assert_eq!((desk.audit("job.undo").await, desk.audit("job.cancel").await), (1, 0));
    assert!(matches!(desk.steer(job.id, "resume").await, Err(JobError::WrongState { state: "cancelled", .. })));
    running.stop().await;
}

#[tokio::test]
async fn a_held_job_begins_by_itself() {
    let desk = Desk::new().await;
    desk.letters("probe", "cycle", 3, 3).await;
    let running = desk.run();
    let job = desk.made(&careful(Settings { hold_seconds: 1, canary: 1, ..Settings::default() })).await;
    assert_eq!(job.state, State::Held);
    desk.deliver_until(job.id, State::Done, "").await;
    assert_eq!(desk.audit("job.begin").await, 1);
    running.stop().await;
}

#[tokio::test]
async fn a_canary_waits_for_results_and_a_failing_one_pauses() {
    let desk = Desk::new().await;
    desk.letters("probe", "cycle", 40, 40).await;
    let running = desk.run();
    let job = desk.made(&careful(Settings { hold_seconds: 0, canary: 5, ..Settings::default() })).await;
    let waits = desk.until(job.id, |job| job.in_flight == 5).await;
    assert_eq!(waits.state, State::Canary);
    // A step later it is the same: without results nothing follows. The lease is renewed every second.
    let renewed = "SELECT extract(epoch FROM expires_at)::float8 FROM onceflow.bulk_job";
    let lease: f64 = desk.client.query_one(renewed, &[]).await.unwrap().get(0);
    crate::harness::eventually(crate::harness::SOON, || async {
        let now: f64 = desk.client.query_one(renewed, &[]).await.unwrap().get(0);
        (now > lease).then_some(())
    })
    .await;
    assert_eq!(books(&desk.job(job.id).await), json!([40, 35, 5, 0, 0, 0]));
    // One of the five fails.
    let sent: String = desk
        .client
        .query_one("SELECT min(headers->>'amqp:message_id') FROM onceflow.outbox", &[])
        .await
        .unwrap()
        .get(0);
    desk.deliver_until(job.id, State::Paused, &sent).await;
    let paused = desk.until(job.id, |job| job.in_flight == 0).await;
    assert_eq!((paused.state, books(&paused)), (State::Paused, json!([40, 35, 0, 4, 1, 0])));
    assert!(paused.stop_reason.is_some_and(|why| why.contains("1 of the first 5 failed again")));
    // An operator has looked at it: the rest follows.
    desk.steer(job.id, "resume").await.unwrap();
    desk.deliver_until(job.id, State::Done, "").await;
    assert_eq!(books(&desk.job(job.id).await), json!([40, 0, 0, 39, 1, 0]));
    running.stop().await;
}

#[tokio::test]
async fn ten_failures_in_a_row_stop_a_job_and_leave_the_rest_open() {
    let desk = Desk::new().await;
    desk.letters("probe", "bad", 300, 300).await;
    let running = desk.run();
    let job = desk.made(&careful(Settings { hold_seconds: 0, canary: 0, rate: 50, ..Settings::default() })).await;
    desk.deliver_until(job.id, State::Stopped, "bad").await;
    desk.deliver("bad").await;
    let stopped = desk.until(job.id, |job| job.in_flight == 0).await;
    assert!(stopped.stop_reason.is_some_and(|why| why.contains("failed again")));
    assert_eq!((stopped.succeeded, stopped.waiting), (0, 0));
    assert!(stopped.failed_again < 150, "{}", stopped.failed_again);
    assert_eq!(desk.count("SELECT count(*) FROM onceflow.dead_letter WHERE state = 'open'").await, 300);
    assert_eq!(desk.audit("job.stop").await, 1);
    // They are free for the next job.
    assert_eq!(desk.made(&everything()).await.planned, 300);
    running.stop().await;
}

#[tokio::test]
async fn never_two_of_a_key_are_on_their_way_and_they_go_in_the_order_of_failure() {
    let desk = Desk::new().await;
    desk.letters("probe", "cycle", 60, 4).await;
    let running = desk.run();
    let job = desk.made(&everything()).await;
    let mut last: BTreeMap<i64, i64> = BTreeMap::new();
    let mut sent = 0;
    while sent < 60 {
        desk.until(job.id, |job| job.in_flight > 0).await;
        let crowded = "SELECT count(*) FROM (SELECT FROM onceflow.dead_letter WHERE state = 'replaying'
                        GROUP BY consumer, partition_key HAVING count(*) > 1) AS crowded";
        assert_eq!(desk.count(crowded).await, 0);
        for id in desk.deliver("").await {
            let n = number(&id);
            let before = last.insert(n % 4, n);
            assert!(before.is_none_or(|before| before < n), "{before:?} before {n}");
            sent += 1;
        }
    }
    desk.until(job.id, |job| job.state == State::Done).await;
    running.stop().await;
}

#[tokio::test]
async fn a_key_that_somebody_else_replays_waits() {
    let desk = Desk::new().await;
    desk.letters("probe", "cycle", 2, 1).await;
    let single =
        "UPDATE onceflow.dead_letter SET state = 'replaying', replay_id = gen_random_uuid() WHERE event_id = 'cycle-1'";
    desk.client.execute(single, &[]).await.unwrap();
    let running = desk.run();
    let job = desk.made(&everything()).await;
    let waits = desk.until(job.id, |job| job.waits_for.is_some()).await;
    assert_eq!(books(&waits), json!([1, 1, 0, 0, 0, 0]));
    let arrives = "UPDATE onceflow.dead_letter SET state = 'replayed', closed_at = now() WHERE event_id = 'cycle-1'";
    desk.client.execute(arrives, &[]).await.unwrap();
    assert_eq!(desk.deliver_until(job.id, State::Done, "").await, ["cycle-2"]);
    running.stop().await;
}

#[tokio::test]
async fn what_somebody_else_dealt_with_meanwhile_is_skipped_with_the_reason() {
    let desk = Desk::new().await;
    desk.letters("probe", "cycle", 4, 1).await;
    let job = desk.made(&everything()).await;
    let meanwhile = "UPDATE onceflow.dead_letter SET state = 'discarded', closed_at = now() WHERE event_id = 'cycle-1';
                     DELETE FROM onceflow.dead_letter WHERE event_id = 'cycle-3'";
    desk.client.batch_execute(meanwhile).await.unwrap();
    let running = desk.run();
    assert_eq!(desk.deliver_until(job.id, State::Done, "").await, ["cycle-2", "cycle-4"]);
    assert_eq!(books(&desk.job(job.id).await), json!([4, 0, 0, 2, 0, 2]));
    let reasons =
        "SELECT count(*) FROM onceflow.bulk_job_item WHERE state = 'skipped' AND reason IN ('discarded', 'not_found')";
    assert_eq!(desk.count(reasons).await, 2);
    running.stop().await;
}

#[tokio::test]
async fn after_a_death_another_process_goes_on_and_sends_each_once() {
    let desk = Desk::new().await;
    desk.letters("probe", "cycle", 80, 80).await;
    let first = desk.run();
    let job = desk.made(&careful(Settings { hold_seconds: 0, canary: 0, rate: 40, ..Settings::default() })).await;
    desk.until(job.id, |job| job.in_flight >= 3).await;
    first.abort().await;
    let epoch = "SELECT epoch FROM onceflow.bulk_job";
    let before = desk.count(epoch).await;
    // Two more, at once: one of them takes it.
    let others = [desk.run(), desk.run()];
    let sent = desk.deliver_until(job.id, State::Done, "").await;
    let mut unique = sent.clone();
    unique.sort();
    unique.dedup();
    assert_eq!((sent.len(), unique.len()), (80, 80), "each was sent once");
    assert!(desk.count(epoch).await > before, "it was taken over");
    assert_eq!(books(&desk.job(job.id).await), json!([80, 0, 0, 80, 0, 0]));
    for other in others {
        other.stop().await;
    }
}

#[tokio::test]
async fn a_process_whose_job_was_taken_over_writes_nothing_more_of_it() {
    let desk = Desk::new().await;
    desk.letters("probe", "cycle", 50, 50).await;
    let running = desk.run();
    let job =
        desk.made(&careful(Settings { hold_seconds: 0, canary: 0, max_in_flight: 4, ..Settings::default() })).await;
    desk.until(job.id, |job| job.in_flight == 4).await;
    let taken = "UPDATE onceflow.bulk_job SET holder = gen_random_uuid(), epoch = epoch + 1, expires_at = now() + interval '1 hour'";
    desk.client.execute(taken, &[]).await.unwrap();
    assert_eq!(desk.deliver("").await.len(), 4);
    // The process is alive: it brings another job to its end.
    desk.letters("sms", "later", 1, 1).await;
    let sms = onceflow::replay::Filter { consumer: Some("sms".to_owned()), ..Default::default() };
    let other = desk.made(&NewJob { selection: onceflow::replay::Selection::Filter(sms), ..everything() }).await;
    assert_eq!(desk.deliver_until(other.id, State::Done, "").await, ["later-1"]);
    assert_eq!(books(&desk.job(job.id).await), json!([50, 46, 4, 0, 0, 0]));
    running.stop().await;
}

#[tokio::test]
async fn a_stopped_process_gives_its_jobs_back_at_once() {
    let desk = Desk::new().await;
    desk.letters("probe", "cycle", 10, 1).await;
    let running = desk.run();
    let job = desk.made(&everything()).await;
    desk.until(job.id, |job| job.in_flight == 1).await;
    running.stop().await;
    assert_eq!(
        desk.count("SELECT count(*) FROM onceflow.bulk_job WHERE holder IS NULL AND expires_at < now()").await,
        1
    );
}

#[tokio::test]
async fn while_the_broker_is_away_nothing_is_sent_and_the_job_says_so_and_goes_on() {
    let desk = Desk::new().await;
    desk.letters("probe", "cycle", 5, 5).await;
    desk.health.set("broker.publish", Check::Waiting("connection refused".to_owned()));
    let running = desk.run();
    let job = desk.made(&everything()).await;
    let waits = desk.until(job.id, |job| job.waits_for.as_deref() == Some("the broker is away")).await;
    assert_eq!((waits.state, books(&waits)), (State::Running, json!([5, 5, 0, 0, 0, 0])));
    desk.health.set("broker.publish", Check::Ok);
    desk.deliver_until(job.id, State::Done, "").await;
    assert_eq!(desk.job(job.id).await.waits_for, None);
    running.stop().await;
}

/// They go through memory.
#[tokio::test]
async fn large_messages_are_sent_a_few_at_a_time_and_none_is_left_behind_i8() {
    const LARGE: &str =
        "UPDATE onceflow.dead_letter SET payload = convert_to(repeat('x', 400 * 1024) || event_id, 'UTF8')";
    const RENEWED: &str = "SELECT extract(epoch FROM max(expires_at))::bigint FROM onceflow.bulk_job";
    /// Of one statement, but for its last message.
    const AT_ONCE: &str = "SELECT max(bytes) FROM (SELECT sum(octet_length(payload_raw))::bigint - 400 * 1024 AS bytes
                                                   FROM onceflow.outbox GROUP BY created_at) AS steps";
    let desk = Desk::new().await;
    desk.letters("probe", "cycle", 12, 12).await;
    desk.client.execute(LARGE, &[]).await.unwrap();
    // While nothing goes, what may be sent at once grows.
    desk.health.set("broker.publish", Check::Waiting("connection refused".to_owned()));
    let running = desk.run();
    let job = desk.made(&everything()).await;
    desk.until(job.id, |job| job.waits_for.is_some()).await;
    let before = desk.count(RENEWED).await;
    eventually(SOON, || async { (desk.count(RENEWED).await >= before + 2).then_some(()) }).await;
    desk.health.set("broker.publish", Check::Ok);
    desk.until(job.id, |job| job.in_flight == 12).await;
    let at_once = desk.count(AT_ONCE).await;
    assert!((400 * 1024..1024 * 1024).contains(&at_once), "{at_once} bytes");
    assert_eq!(desk.deliver("").await.len(), 12);
    desk.until(job.id, |job| job.state == State::Done).await;
    running.stop().await;
}

#[tokio::test]
async fn lost_answers_to_commit_neither_lose_nor_repeat_anything() {
    let desk = Desk::new().await;
    desk.letters("probe", "cycle", 40, 40).await;
    let mut url = url::Url::parse(desk.database.url()).unwrap();
    let proxy = Proxy::before(url.port().unwrap()).await;
    url.set_port(Some(proxy.port)).unwrap();
    proxy.lose_answers(4);
    let running = desk.run_on(crate::harness::pool(url.as_str()));
    let job = desk.made(&everything()).await;
    let mut sent = desk.deliver_until(job.id, State::Done, "").await;
    sent.sort();
    sent.dedup();
    assert_eq!((sent.len(), proxy.lost()), (40, 4));
    assert_eq!(books(&desk.job(job.id).await), json!([40, 0, 0, 40, 0, 0]));
    assert_eq!(desk.count("SELECT count(*) FROM onceflow.dead_letter WHERE replays = 1").await, 40, "each went once");
    assert_eq!(desk.audit("job.replay").await, 40);
    running.stop().await;
}

#[tokio::test]
async fn a_pause_holds_and_a_cancel_leaves_the_rest_open() {
    let desk = Desk::new().await;
    desk.letters("probe", "cycle", 50, 50).await;
    let running = desk.run();
    let job =
        desk.made(&careful(Settings { hold_seconds: 0, canary: 0, max_in_flight: 4, ..Settings::default() })).await;
    desk.until(job.id, |job| job.in_flight == 4).await;
    let paused = desk.steer(job.id, "pause").await.unwrap();
    assert_eq!(paused.stop_reason.as_deref(), Some("paused by wang: because"));
    assert_eq!(desk.deliver("").await.len(), 4);
    let settled = desk.until(job.id, |job| job.in_flight == 0).await;
    assert_eq!((settled.state, books(&settled)), (State::Paused, json!([50, 46, 0, 4, 0, 0])));
    desk.steer(job.id, "resume").await.unwrap();
    desk.until(job.id, |job| job.in_flight > 0).await;
    let cancelled = desk.steer(job.id, "cancel").await.unwrap();
    desk.deliver("").await;
    let ended = desk.until(job.id, |job| job.in_flight == 0).await;
    assert_eq!((ended.state, ended.succeeded), (State::Cancelled, 4 + cancelled.in_flight));
    assert_eq!(desk.count("SELECT count(*) FROM onceflow.outbox").await, 0, "nothing was sent after the cancel");
    assert_eq!((desk.audit("job.cancel").await, desk.audit("job.undo").await), (1, 0));
    running.stop().await;
}

#[tokio::test]
async fn the_audit_tells_every_operation_and_every_dead_letter_touched() {
    let desk = Desk::new().await;
    desk.letters("probe", "cycle", 6, 6).await;
    let running = desk.run();
    let job = desk.made(&careful(Settings { hold_seconds: 0, canary: 1, ..Settings::default() })).await;
    desk.deliver_until(job.id, State::Done, "").await;
    for (action, rows) in [
        ("job.plan", 1),
        ("job.start", 1),
        ("job.begin", 1),
        ("job.canary_passed", 1),
        ("job.done", 1),
        ("job.replay", 6),
    ] {
        assert_eq!(desk.audit(action).await, rows, "{action}");
    }
    let touched = "SELECT count(DISTINCT a.subject) FROM onceflow.audit AS a JOIN onceflow.dead_letter AS d ON d.id::text = a.subject
                    WHERE a.action = 'job.replay' AND a.actor = 'li' AND a.reason = 'mended'";
    assert_eq!(desk.count(touched).await, 6);
    let detail = desk.audit_detail("job.replay").await;
    assert_eq!(
        (&detail["job"], &detail["before"], &detail["after"]),
        (&json!(job.id), &json!("open"), &json!("replaying"))
    );
    assert_eq!(desk.audit_detail("job.done").await["books"]["succeeded"], 6);
    running.stop().await;
}

#[tokio::test]
async fn a_discard_is_a_job_too_with_the_same_undo_window() {
    let desk = Desk::new().await;
    desk.letters("gone", "wrong", 30, 2).await;
    let running = desk.run();
    let new = NewJob { action: Action::Discard, ..careful(Settings { hold_seconds: 300, ..Settings::default() }) };
    let job = desk.made(&new).await;
    desk.steer(job.id, "start").await.unwrap();
    let done = desk.until(job.id, |job| job.state == State::Done).await;
    assert_eq!(books(&done), json!([30, 0, 0, 30, 0, 0]));
    let closed = "SELECT count(*) FROM onceflow.dead_letter WHERE state = 'discarded' AND closed_by = 'li' AND closed_reason = 'mended'";
    assert_eq!((desk.count(closed).await, desk.audit("job.discard").await), (30, 30));
    assert_eq!(desk.count("SELECT count(*) FROM onceflow.outbox").await, 0);
    running.stop().await;
}

#[tokio::test]
async fn an_archive_of_many_is_a_job_too_and_leaves_out_what_is_archived_already() {
    let desk = Desk::new().await;
    desk.letters("gone", "wrong", 12, 2).await;
    desk.letters("gone", "before", 3, 3).await;
    let before = "UPDATE onceflow.dead_letter SET state = 'archived', closed_at = now(), closed_by = 'wang' WHERE reason = 'before'";
    desk.client.execute(before, &[]).await.unwrap();
    let running = desk.run();
    let rows = desk.client.query("SELECT id FROM onceflow.dead_letter", &[]).await.unwrap();
    let all = onceflow::replay::Selection::Ids(rows.iter().map(|row| row.get(0)).collect());
    let new = NewJob { action: Action::Archive, selection: all, ..everything() };
    let job = desk.made(&new).await;
    let left: Vec<_> = job.plan.left_out.iter().map(|l| (l.why.as_str(), l.count)).collect();
    assert_eq!(left, [("archived", 3)]);
    let done = desk.until(job.id, |job| job.state == State::Done).await;
    assert_eq!(books(&done), json!([12, 0, 0, 12, 0, 0]));
    let archived = "SELECT count(*) FROM onceflow.dead_letter WHERE state = 'archived' AND closed_by = 'li' AND closed_reason = 'mended'";
    assert_eq!((desk.count(archived).await, desk.audit("job.archive").await), (12, 12));
    let detail = desk.audit_detail("job.archive").await;
    assert_eq!((&detail["before"], &detail["after"]), (&json!("open"), &json!("archived")));
    assert_eq!(desk.count("SELECT count(*) FROM onceflow.outbox").await, 0);
    running.stop().await;
}

//! Large jobs are begun by two people.

use onceflow::replay::job::{JobError, NewJob, Settings, State};
use onceflow::runtime::{AnyConsumer, erase};
use serde_json::json;

use super::desk::{Desk, everything};
use super::service::{ask, letters, onceflow, told, until_done};
use crate::harness::probe::EVENT;
use crate::harness::{Probe, Stack, Wishes};

fn above(n: u32, actor: &str) -> NewJob {
    let settings = Settings { hold_seconds: 300, ..Settings::default() };
    NewJob { second_person_above: n, actor: actor.to_owned(), settings, ..everything() }
}

#[tokio::test]
async fn a_job_above_the_bound_waits_for_somebody_else_and_one_at_the_bound_does_not() {
    let desk = Desk::new().await;
    desk.letters("probe", "cycle", 5, 5).await;
    let small = desk.made(&above(5, "li")).await;
    assert_eq!((small.state, small.approval_needed), (State::Held, false));
    assert!(matches!(desk.steer(small.id, "approve").await, Err(JobError::WrongState { .. })));
    desk.steer(small.id, "cancel").await.unwrap();

    let job = desk.made(&above(4, "li")).await;
    assert_eq!((job.state, job.approval_needed, job.hold_until), (State::Planned, true, None));
    assert_eq!(job.waits_for.as_deref(), Some("the approval of a second person"));
    assert!(matches!(desk.steer(job.id, "start").await, Err(JobError::ApprovalNeeded(_))));
    let approved = desk.steer(job.id, "approve").await.unwrap();
    assert_eq!((approved.state, approved.approved_by.as_deref()), (State::Held, Some("wang")));
    assert_eq!((approved.waits_for, approved.hold_until.is_some()), (None, true), "its undo window has begun");
    assert_eq!((desk.audit("job.approve").await, desk.audit("job.start").await), (1, 1), "one of each job");
    assert!(matches!(desk.steer(job.id, "approve").await, Err(JobError::WrongState { state: "held", .. })));
}

#[tokio::test]
async fn who_planned_a_job_can_not_approve_it_under_another_word_for_themselves() {
    let desk = Desk::new().await;
    desk.letters("probe", "cycle", 5, 5).await;
    let job = desk.made(&above(1, "wang (li)")).await;
    let refused = desk.steer(job.id, "approve").await;
    assert!(matches!(&refused, Err(JobError::SamePerson(_, who)) if who == "wang (li)"), "{refused:?}");
    assert_eq!(desk.job(job.id).await.state, State::Planned);
    desk.steer(job.id, "cancel").await.unwrap();
}

#[tokio::test]
async fn the_database_itself_refuses_to_begin_a_job_that_nobody_else_approved() {
    let desk = Desk::new().await;
    desk.letters("probe", "cycle", 5, 5).await;
    desk.made(&above(1, "li")).await;
    for (change, constraint) in [
        ("state = 'held', hold_until = now()", "bulk_job_approved_before_it_begins"),
        ("state = 'running'", "bulk_job_approved_before_it_begins"),
        ("approved_by = 'li', approved_at = now()", "bulk_job_approved_by_another"),
        ("approved_by = 'wang'", "bulk_job_approved_whole"),
    ] {
        let error = desk.client.execute(&format!("UPDATE onceflow.bulk_job SET {change}"), &[]).await.unwrap_err();
        assert_eq!(error.as_db_error().and_then(|e| e.constraint()), Some(constraint), "{change}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_walks_a_large_job_through_two_people() {
    let consumers = || -> Vec<Box<dyn AnyConsumer>> { vec![erase(Probe::new())] };
    let mut stack = Stack::prepare(&consumers(), Wishes::default()).await;
    stack.config.admin.second_person_above = 2;
    Probe::create_ledger(&stack.client).await;
    stack.run(consumers()).await;
    letters(&stack, ("probe", "cycle"), 3, 3, (EVENT, "{\"do\": \"apply\", \"n\": %}")).await;
    let plan =
        ["dlq", "replay", "--consumer", "probe", "--reason", "mended", "--hold", "0s", "--no-wait", "-o", "json"];
    let (code, made, talk) = told(&onceflow(&stack, "li", &plan).await);
    assert_eq!((code, &made["job"]["state"]), (0, &json!("planned")), "{talk}");
    let id = made["job"]["id"].as_str().unwrap();
    assert!(talk.contains(&format!("onceflow jobs approve {id}")), "{talk}");
    let approve = ["jobs", "approve", id, "--reason", "looked at it", "-o", "json"];
    let (code, _, talk) = told(&onceflow(&stack, "li", &approve).await);
    assert_eq!(code, 8, "{talk}");
    let (code, _, talk) = told(&onceflow(&stack, "wang", &["jobs", "start", id]).await);
    assert_eq!(code, 5, "{talk}");
    let (status, problem) = ask(&stack, "wang", &format!("jobs/{id}/approve"), Some(json!({}))).await;
    assert_eq!((status, &problem["code"]), (400, &json!("reason_needed")));
    let (code, approved, talk) = told(&onceflow(&stack, "wang", &approve).await);
    assert_eq!((code, &approved["approved_by"]), (0, &json!("wang")), "{talk}");
    assert_eq!(approved["schema"], "onceflow.jobs.approve/1");
    assert_eq!(until_done(&stack, id).await["succeeded"], 3);
}

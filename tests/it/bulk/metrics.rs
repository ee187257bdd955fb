//! What the metrics say of jobs and replays.

use onceflow::db::Commit;
use onceflow::replay::Filter;
use onceflow::replay::Selection;
use onceflow::replay::job::{self, NewJob, Settings, State};
use onceflow::runtime::{AnyConsumer, erase};
use onceflow::telemetry;
use serde_json::json;

use super::desk::{Desk, everything};
use super::service::{ask, letters, until_done};
use crate::harness::probe::EVENT;
use crate::harness::{Probe, SOON, Stack, Wishes, eventually};

/// Value of a series in the text format.
fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{series} is missing")).parse().unwrap()
}

#[tokio::test]
async fn what_a_job_skips_and_what_its_end_leaves_open_are_counted() {
    let metrics = telemetry::install(&[("metered", vec![EVENT])], &[1_000]).unwrap();
    let outcomes = |outcome: &str| {
        value(&metrics.render(), &format!("onceflow_replays_total{{consumer=\"metered\",outcome=\"{outcome}\"}}"))
    };
    assert_eq!(["succeeded", "failed_again", "skipped", "cancelled"].map(&outcomes), [0.0; 4], "from the start");
    let desk = Desk::new().await;
    desk.letters("metered", "cycle", 6, 6).await;
    desk.letters("metered", "late", 4, 4).await;
    let made = async |reason: &str, hold_seconds: u32| {
        let filter = Filter { reason_code: Some(reason.to_owned()), ..Filter::default() };
        let settings = Settings { hold_seconds, canary: 0, ..Settings::default() };
        let new = NewJob { selection: Selection::Filter(filter), settings, ..everything() };
        let tx = desk.pool.begin().await.unwrap();
        let planned = job::create(&tx, &new, &["metered"]).await.unwrap();
        assert!(matches!(tx.commit().await, Commit::Committed));
        planned.job.unwrap()
    };
    let (first, held) = (made("cycle", 0).await, made("late", 300).await);
    let totals = async || {
        let tx = desk.pool.begin().await.unwrap();
        let totals = job::totals(&tx).await.unwrap();
        tx.rollback().await;
        totals
    };
    assert_eq!(totals().await, (vec![("held".to_owned(), 2)], 10));

    // The runner of this desk has no queue of that consumer: it skips all of them.
    let running = desk.run();
    desk.until(first.id, |job| job.state == State::Done).await;
    assert_eq!((outcomes("skipped"), outcomes("cancelled")), (6.0, 0.0));
    assert_eq!(totals().await, (vec![("held".to_owned(), 1)], 4), "an ended job is none of them");
    desk.steer(held.id, "cancel").await.unwrap();
    assert_eq!((outcomes("skipped"), outcomes("cancelled")), (6.0, 4.0));
    assert_eq!(totals().await, (vec![], 0));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replays_that_succeed_and_that_fail_again_are_counted_and_the_gauges_of_jobs_are_there() {
    let consumers = || -> Vec<Box<dyn AnyConsumer>> { vec![erase(Probe::new())] };
    let mut stack = Stack::prepare(&consumers(), Wishes::default()).await;
    Probe::create_ledger(&stack.client).await;
    stack.run(consumers()).await;
    let url = format!("http://{}/metrics", stack.app.as_ref().unwrap().metrics);
    let scrape = async || reqwest::get(&url).await.unwrap().text().await.unwrap();
    // Other tests of this process count too: what is asserted is that it rises by at least as much.
    let outcomes = |text: &str| {
        ["succeeded", "failed_again"]
            .map(|o| value(text, &format!("onceflow_replays_total{{consumer=\"probe\",outcome=\"{o}\"}}")))
    };
    let before = scrape().await;
    for state in ["planned", "held", "canary", "running", "paused"] {
        value(&before, &format!("onceflow_replay_jobs{{state=\"{state}\"}}"));
    }
    value(&before, "onceflow_replay_remaining");
    letters(&stack, ("probe", "fine"), 5, 5, (EVENT, "{\"do\": \"apply\", \"n\": %}")).await;
    letters(&stack, ("probe", "bad"), 2, 2, (EVENT, "{\"do\": \"reject\", \"n\": %}")).await;
    let job = json!({ "action": "replay", "selection": { "filter": {} }, "reason": "mended",
                      "settings": { "rate": 500, "hold_seconds": 0, "canary": 0 } });
    let (_, made) = ask(&stack, "li", "jobs", Some(job)).await;
    let done = until_done(&stack, made["job"]["id"].as_str().unwrap()).await;
    assert_eq!((&done["succeeded"], &done["failed_again"]), (&json!(5), &json!(2)), "{done}");
    let [succeeded, failed] = outcomes(&before);
    // A result is counted right after it is committed.
    let (scrape, outcomes) = (&scrape, &outcomes);
    eventually(SOON, || async move {
        let [now_succeeded, now_failed] = outcomes(&scrape().await);
        (now_succeeded >= succeeded + 5.0 && now_failed >= failed + 2.0).then_some(())
    })
    .await;
}

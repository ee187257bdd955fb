//! What operators do with a job. Each locks its row, so that it and a step of the runner come one after the other.

use serde_json::json;
use uuid::Uuid;

use super::super::filter::Selection;
use super::model::{Action, Job, JobError, MAX_RATE, State};
use super::{plan, plan_store, store};
use crate::db::{DbError, Tx};
use crate::telemetry;

/// Most jobs that are listed.
const MOST_JOBS: u32 = 200;

/// Jobs, the newest first.
///
/// # Errors
/// When the database is away.
pub async fn jobs(tx: &Tx, limit: u32) -> Result<Vec<Job>, DbError> {
    store::jobs(tx, i64::from(limit.clamp(1, MOST_JOBS))).await
}

/// One job, with the number of newcomers.
///
/// # Errors
/// When there is none, or the database is away.
pub async fn job(tx: &Tx, id: Uuid) -> Result<Job, JobError> {
    let mut job = store::job(tx, id).await?.ok_or(JobError::NotFound(id))?;
    if let Ok(selection @ Selection::Filter(_)) = serde_json::from_value(job.selection.clone()) {
        job.newcomers = Some(plan_store::newcomers(tx, &plan::filter_of(&selection), &job).await?);
    }
    Ok(job)
}

/// Begins the undo window of a planned job, or ends that of a held one. `by` is actor and reason, here and below.
///
/// # Errors
/// When the job is in another state or the database fails; then the transaction is to be rolled back, as below.
pub async fn start(tx: &Tx, id: Uuid, by: (&str, &str)) -> Result<Job, JobError> {
    let before = locked(tx, id, &[State::Planned, State::Held], "started").await?;
    if before.waits_for_approval() {
        return Err(JobError::ApprovalNeeded(id));
    }
    store::hold(tx, id).await?;
    changed(tx, ("job.start", &before), by).await
}

/// Agrees to a job that needs a second person, and begins its undo window.
///
/// # Errors
/// As [`start`], when it needs nobody, and when `by` is who planned it.
pub async fn approve(tx: &Tx, id: Uuid, by: (&str, &str)) -> Result<Job, JobError> {
    let before = locked(tx, id, &[State::Planned], "approved").await?;
    if !before.waits_for_approval() {
        return Err(JobError::WrongState { job: id, state: "in need of no approval", verb: "approved" });
    }
    if person(by.0) == person(&before.actor) {
        return Err(JobError::SamePerson(id, before.actor));
    }
    store::approve(tx, id, by.0).await?;
    store::hold(tx, id).await?;
    changed(tx, ("job.approve", &before), by).await
}

/// The owner of the token, without what they say of themselves: the name stands before it, in brackets.
fn person(actor: &str) -> &str {
    actor.split(" (").next().unwrap_or(actor).trim()
}

/// Sends nothing more until it is resumed; what is on its way goes on.
///
/// # Errors
/// As [`start`].
pub async fn pause(tx: &Tx, id: Uuid, by: (&str, &str)) -> Result<Job, JobError> {
    let before = locked(tx, id, &[State::Canary, State::Running], "paused").await?;
    store::pause(tx, id, &format!("paused by {}: {}", by.0, by.1)).await?;
    changed(tx, ("job.pause", &before), by).await
}

/// Goes on after a pause.
///
/// # Errors
/// As [`start`].
pub async fn resume(tx: &Tx, id: Uuid, by: (&str, &str)) -> Result<Job, JobError> {
    let before = locked(tx, id, &[State::Paused], "resumed").await?;
    store::resume(tx, id).await?;
    changed(tx, ("job.resume", &before), by).await
}

/// Ends it. Before anything was sent that undoes it; later the rest is left open, and what is on its way goes on.
///
/// # Errors
/// As [`start`].
pub async fn cancel(tx: &Tx, id: Uuid, by: (&str, &str)) -> Result<Job, JobError> {
    let live = [State::Planned, State::Held, State::Canary, State::Running, State::Paused];
    let before = locked(tx, id, &live, "cancelled").await?;
    let undone = matches!(before.state, State::Planned | State::Held);
    count_cancelled(before.action, &store::skip_waiting(tx, id, "cancelled").await?);
    store::cancel(tx, id, &format!("cancelled by {}: {}", by.0, by.1)).await?;
    changed(tx, (if undone { "job.undo" } else { "job.cancel" }, &before), by).await
}

/// Jobs that have not ended by state, and how many dead letters they have still to deal with, for the gauges.
///
/// # Errors
/// When the database is away.
pub async fn totals(tx: &Tx) -> Result<(Vec<(String, i64)>, i64), DbError> {
    store::totals(tx).await
}

/// Changes the rate; takes effect at once.
///
/// # Errors
/// As [`start`], and when the rate is out of bounds.
pub async fn set_rate(tx: &Tx, id: Uuid, rate: u32, by: (&str, &str)) -> Result<Job, JobError> {
    if !(1..=MAX_RATE).contains(&rate) {
        return Err(JobError::Setting(format!("rate: 1 to {MAX_RATE}, not {rate}")));
    }
    let live = [State::Planned, State::Held, State::Canary, State::Running, State::Paused];
    let before = locked(tx, id, &live, "given another rate").await?;
    store::set_rate(tx, id, rate).await?;
    changed(tx, ("job.rate", &before), by).await
}

async fn locked(tx: &Tx, id: Uuid, from: &[State], verb: &'static str) -> Result<Job, JobError> {
    if !store::lock(tx, id).await? {
        return Err(JobError::NotFound(id));
    }
    let job = store::job(tx, id).await?.ok_or(JobError::NotFound(id))?;
    if from.contains(&job.state) {
        return Ok(job);
    }
    Err(JobError::WrongState { job: id, state: job.state.as_str(), verb })
}

async fn changed(tx: &Tx, (action, before): (&str, &Job), by: (&str, &str)) -> Result<Job, JobError> {
    let after = store::job(tx, before.id).await?.ok_or(JobError::NotFound(before.id))?;
    let detail = json!({
        "before": before.state, "after": after.state, "rate_before": before.settings.rate, "rate_after": after.settings.rate,
        "books": books(&after),
    });
    store::audit(tx, action, before.id, by, &detail).await?;
    Ok(after)
}

/// Counts what an ended job leaves open, by consumer. A transaction that doesn't commit is done again and counts again.
pub(super) fn count_cancelled(action: Action, left: &[(String, u32)]) {
    for (consumer, count) in left.iter().filter(|_| action == Action::Replay) {
        telemetry::replays(consumer, "cancelled", u64::from(*count));
    }
}

/// The numbers of a job, for the audit.
pub(super) fn books(job: &Job) -> serde_json::Value {
    json!({
        "planned": job.planned, "waiting": job.waiting, "in_flight": job.in_flight, "succeeded": job.succeeded,
        "failed_again": job.failed_again, "skipped": job.skipped,
    })
}

#[cfg(test)]
mod tests {
    use super::person;

    #[test]
    fn a_person_is_the_same_whatever_it_says_of_itself() {
        assert_eq!(person("li (wang)"), person("li (li)"));
        assert_eq!(person("li"), person("li (x)"));
        assert_ne!(person("li (wang)"), person("wang"));
    }
}

//! Runs jobs: takes those that nobody runs, and makes one small transaction after the other with each.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::super::{sending_store, store as letters};
use super::control::{books, count_cancelled};
use super::load::{Live, Loads};
use super::machine::{self, Next, View};
use super::model::{Action, Job, State};
use super::pace::Pace;
use super::store::{self, End, Ended, Lease, Locked, Picked};
use crate::db::{Class, DbError, Pool, Tx};
use crate::health::{Check, Health};
use crate::outbox::{self, Handover, Resent};
use crate::pacing::Pacing;
use crate::telemetry;

/// Between two steps of a job, by how fast it goes.
const STEP_EVERY: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_millis(200);
/// How often jobs are looked for that nobody runs.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A lease is renewed by every step that changes something, and after this at the latest; well below [`super::LEASE`].
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// Most jobs that one process runs at once.
const MOST_JOBS: usize = 4;
/// Most bytes that one step sends, one message aside: they go through memory.
const MOST_BYTES: i64 = 1024 * 1024;
/// Most results that one step writes down.
const MOST_RESULTS: i64 = 1_000;
/// Who acts where no operator does.
const ITSELF: &str = "onceflow";
/// The check of the link that the relay publishes on.
const BROKER_CHECK: &str = "broker.publish";

/// What running jobs needs.
#[derive(Debug, Clone)]
pub struct Runner {
    /// The database.
    pub pool: Pool,
    /// The queue of each consumer of this build.
    pub queues: BTreeMap<String, String>,
    /// The way to the relay of this process.
    pub outbox: Handover,
    /// The process's own condition.
    pub health: Arc<Health>,
    /// How busy the consumers are.
    pub loads: Arc<Loads>,
}

/// A job of this process.
struct Mine {
    lease: Lease,
    pace: Pace,
    saved: Instant,
}

/// What became of a job in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stepped {
    /// It goes on.
    On,
    /// There is nothing to do for now, or it is somebody else's.
    Let,
}

/// Runs jobs until `stop`; then gives them back.
pub async fn run_jobs(runner: Runner, stop: CancellationToken) {
    let holder = Uuid::now_v7();
    let mut mine: HashMap<Uuid, Mine> = HashMap::new();
    let (started, mut looked, mut pacing) = (Instant::now(), None, Pacing::reconnect());
    loop {
        let result = match ready(&runner.health) {
            true => round(&runner, (holder, started), &mut mine, &mut looked).await,
            false => Ok(()),
        };
        let wait = match result {
            Ok(()) => {
                pacing.reset();
                let next = mine.values().map(|mine| mine.pace.step_after()).min();
                next.map_or(LOOK_EVERY, |after| after.clamp(*STEP_EVERY.start(), *STEP_EVERY.end()))
            }
            Err(error) => {
                tell(&error);
                pacing.next_wait()
            }
        };
        if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            break;
        }
    }
    for job in mine.into_values() {
        if let Err(error) = release(&runner, job.lease).await {
            debug!(%error, "a job was not given back; its lease runs out by itself");
        }
    }
}

/// The schema must be there; the rest shows by itself.
fn ready(health: &Health) -> bool {
    let checks = health.snapshot();
    ["database", "migrations"].iter().all(|name| checks.get(*name) == Some(&Check::Ok))
}

fn tell(error: &DbError) {
    match error.class() {
        Class::Outage | Class::Contention | Class::Timeout => debug!(%error, "jobs wait for the database: {error}"),
        _ => warn!(%error, "a step of a job failed and is tried again: {error}"),
    }
}

async fn round(
    runner: &Runner,
    (holder, started): (Uuid, Instant),
    mine: &mut HashMap<Uuid, Mine>,
    looked: &mut Option<Instant>,
) -> Result<(), DbError> {
    if mine.len() < MOST_JOBS && looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
        for lease in take(runner, holder, MOST_JOBS - mine.len()).await? {
            debug!(job = %lease.job, epoch = lease.epoch, "running job {}", lease.job);
            mine.insert(lease.job, Mine { lease, pace: Pace::new(started.elapsed()), saved: Instant::now() });
        }
        *looked = Some(Instant::now());
    }
    if !mine.is_empty() {
        runner.loads.look().await;
    }
    let ids: Vec<Uuid> = mine.keys().copied().collect();
    let mut failed = None;
    for id in ids {
        let Some(job) = mine.get_mut(&id) else { continue };
        match step(runner, job, started.elapsed()).await {
            Ok(Stepped::On) => {}
            Ok(Stepped::Let) => drop(mine.remove(&id)),
            // One job's trouble is not another's.
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(()), Err)
}

async fn take(runner: &Runner, holder: Uuid, most: usize) -> Result<Vec<Lease>, DbError> {
    let tx = runner.pool.begin().await?;
    let taken = store::take(&tx, holder, most).await?;
    if taken.is_empty() {
        tx.rollback().await;
        return Ok(taken);
    }
    tx.commit_repeatable().await.map(|()| taken)
}

async fn release(runner: &Runner, lease: Lease) -> Result<(), DbError> {
    let tx = runner.pool.begin().await?;
    store::release(&tx, lease).await?;
    tx.commit_repeatable().await
}

/// One transaction with a job: writes down results, decides, and does it.
async fn step(runner: &Runner, mine: &mut Mine, now: Duration) -> Result<Stepped, DbError> {
    let tx = runner.pool.begin().await?;
    let Some(mut locked) = store::lock_mine(&tx, mine.lease).await? else {
        tx.rollback().await;
        return Ok(Stepped::Let);
    };
    let before = locked.job.clone();
    take_in(&mut locked, store::settle(&tx, mine.lease.job, MOST_RESULTS).await?);
    let obstacle = obstacle(&runner.health, &locked.job);
    let backlog = runner.loads.longest_backlog(locked.job.plan.kinds.iter().map(|kind| kind.consumer.as_str()));
    let load = (backlog, &*runner.loads.live());
    let next = machine::next(&view(&locked, load, obstacle), &mut mine.pace, now);
    let slowed = || mine.pace.slowed(locked.job.settings.rate);
    let waits_for = if wants_to_send(&locked.job) { obstacle.map(ToOwned::to_owned).or_else(slowed) } else { None };
    locked.job.waits_for = waits_for;
    let mut messages = Vec::new();
    let stepped = match next {
        Next::Wait => Stepped::On,
        Next::Rest => Stepped::Let,
        Next::Send(count) => {
            messages = send(runner, (&tx, &mut locked), (&mut mine.pace, count)).await?;
            Stepped::On
        }
        Next::Begin(state) => to(&tx, &mut locked, (state, None), "job.begin").await?,
        Next::Open => to(&tx, &mut locked, (State::Running, None), "job.canary_passed").await?,
        Next::Pause(why) => {
            locked.resume_to = Some(State::Running);
            to(&tx, &mut locked, (State::Paused, Some(why)), "job.pause").await?
        }
        Next::Stop(why) => {
            count_cancelled(locked.job.action, &store::skip_waiting(&tx, mine.lease.job, "stopped").await?);
            locked.job.skipped += std::mem::take(&mut locked.job.waiting);
            to(&tx, &mut locked, (State::Stopped, Some(why)), "job.stop").await?
        }
        Next::Done => to(&tx, &mut locked, (State::Done, None), "job.done").await?,
    };
    let outgoing = (messages, &runner.outbox);
    finish(tx, mine, (&before, &locked), (stepped, outgoing)).await
}

/// Saves what has changed and renews the lease, or gives it back; a step that changed nothing costs no write.
async fn finish(
    tx: Tx,
    mine: &mut Mine,
    (before, locked): (&Job, &Locked),
    (stepped, (messages, outbox)): (Stepped, (Vec<Resent>, &Handover)),
) -> Result<Stepped, DbError> {
    let changed = *before != locked.job;
    let (ends, renews) = (stepped == Stepped::Let, mine.saved.elapsed() >= RENEW_EVERY);
    if !(changed || ends || renews) {
        tx.rollback().await;
        return Ok(stepped);
    }
    store::save(&tx, mine.lease, locked, changed).await?;
    if ends {
        store::release(&tx, mine.lease).await?;
    }
    outbox::resend_and_commit(tx, messages, outbox).await.repeatable()?;
    mine.saved = Instant::now();
    if before.state != locked.job.state {
        let (id, state) = (locked.job.id, locked.job.state.as_str());
        let why = locked.job.stop_reason.as_deref().unwrap_or_default();
        info!(job = %id, state, why, "job {id} is {state}");
    }
    Ok(stepped)
}

fn take_in(locked: &mut Locked, results: Vec<Ended>) {
    for Ended { succeeded, consumer } in results {
        let job = &mut locked.job;
        job.in_flight = job.in_flight.saturating_sub(1);
        match succeeded {
            Some(true) => job.succeeded += 1,
            Some(false) => job.failed_again += 1,
            None => {
                telemetry::replays(&consumer, "skipped", 1);
                job.skipped += 1;
            }
        }
        if let Some(succeeded) = succeeded {
            locked.recent.push(succeeded);
        }
    }
}

fn view<'a>(locked: &'a Locked, (backlog, live): (Option<u64>, &'a [Live]), obstacle: Option<&'a str>) -> View<'a> {
    let job = &locked.job;
    View {
        action: job.action,
        state: job.state,
        rate: job.settings.rate,
        max_in_flight: job.settings.max_in_flight,
        canary: job.plan.canary,
        waiting: job.waiting,
        in_flight: job.in_flight,
        succeeded: job.succeeded,
        failed_again: job.failed_again,
        skipped: job.skipped,
        recent: &locked.recent,
        hold_over: locked.hold_over,
        oldest: Duration::try_from_secs_f64(locked.oldest_seconds).unwrap_or_default(),
        backlog,
        live,
        obstacle,
    }
}

fn obstacle(health: &Health, job: &Job) -> Option<&'static str> {
    let away = matches!(health.snapshot().get(BROKER_CHECK), Some(Check::Waiting(_)));
    (away && job.action == Action::Replay).then_some("the broker is away")
}

fn wants_to_send(job: &Job) -> bool {
    matches!(job.state, State::Canary | State::Running) && job.waiting > 0
}

/// Into another state, with the row in the audit that says so.
async fn to(
    tx: &Tx,
    locked: &mut Locked,
    (state, why): (State, Option<String>),
    action: &'static str,
) -> Result<Stepped, DbError> {
    let before = std::mem::replace(&mut locked.job.state, state);
    let reason = why.clone().unwrap_or_else(|| locked.job.reason.clone());
    locked.job.stop_reason = why;
    locked.job.waits_for = None;
    let detail = json!({ "before": before, "after": state, "books": books(&locked.job) });
    store::audit(tx, action, locked.job.id, (ITSELF, &reason), &detail).await?;
    Ok(Stepped::On)
}

/// Does it with the next few; those that somebody else dealt with meanwhile are skipped. Returns what is to be sent.
async fn send(
    runner: &Runner,
    (tx, locked): (&Tx, &mut Locked),
    (pace, count): (&mut Pace, u32),
) -> Result<Vec<Resent>, DbError> {
    let picked = store::pick(tx, &locked.job, count).await?;
    if picked.is_empty() {
        if locked.job.in_flight == 0 {
            let why = "their consumer is paused, or others of their keys are on their way";
            locked.job.waits_for = Some(why.to_owned());
        }
        return Ok(Vec::new());
    }
    let ids: Vec<Uuid> = picked.iter().map(|p| p.dead_letter).collect();
    let found = letters::lock_by_id(tx, &ids).await?;
    let places: HashMap<Uuid, i32> = picked.iter().map(|p| (p.dead_letter, p.nth)).collect();
    let (mut fit, mut ends) = judge(runner, locked.job.action, (&picked, &found));
    let mut nths: Vec<i32> = fit.iter().filter_map(|id| places.get(id).copied()).collect();
    let skipped = number(&ends);
    let mut messages = Vec::new();
    match locked.job.action {
        Action::Replay => {
            messages = replay(runner, tx, &locked.job, (&mut fit, &mut nths)).await?;
            locked.job.in_flight += number(&fit);
        }
        Action::Discard | Action::Archive => {
            close(tx, &locked.job, &fit).await?;
            ends.extend(nths.iter().map(|nth| End { nth: *nth, state: "succeeded", reason: None }));
            locked.job.succeeded += number(&fit);
        }
    }
    let done = number(&fit);
    store::end(tx, locked.job.id, &ends).await?;
    locked.job.skipped += skipped;
    locked.job.waiting = locked.job.waiting.saturating_sub(done + skipped);
    pace.spend(done);
    Ok(messages)
}

fn number<T>(of: &[T]) -> u32 {
    u32::try_from(of.len()).unwrap_or(u32::MAX)
}

/// Which can still be changed, and how the others ended.
fn judge(
    runner: &Runner,
    action: Action,
    (picked, found): (&[Picked], &[letters::Candidate]),
) -> (Vec<Uuid>, Vec<End>) {
    let mut ends = Vec::new();
    let known: HashMap<Uuid, &letters::Candidate> = found.iter().map(|c| (c.id, c)).collect();
    for item in picked {
        let reason = match known.get(&item.dead_letter) {
            None => "not_found",
            Some(c) if c.state == "replaying" => "replaying",
            Some(c) if c.state == "replayed" => "replayed",
            Some(c) if c.state == "archived" => "archived",
            Some(c) if c.state == "edited" => "edited",
            Some(c) if c.state != "open" => "discarded",
            Some(c) if action == Action::Replay && !runner.queues.contains_key(&c.consumer) => "unknown_consumer",
            Some(_) => continue,
        };
        if action == Action::Replay {
            telemetry::replays(&item.consumer, "skipped", 1);
        }
        ends.push(End { nth: item.nth, state: "skipped", reason: Some(reason) });
    }
    let skipped: Vec<i32> = ends.iter().map(|end| end.nth).collect();
    let fit = picked.iter().filter(|item| !skipped.contains(&item.nth)).map(|item| item.dead_letter).collect();
    (fit, ends)
}

/// Marks and audit rows of what is to be sent, in the order of first failure: of the first few where all together are large.
async fn replay(
    runner: &Runner,
    tx: &Tx,
    job: &Job,
    (ids, nths): (&mut Vec<Uuid>, &mut Vec<i32>),
) -> Result<Vec<Resent>, DbError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let mut replays: Vec<Uuid> = ids.iter().map(|_| Uuid::now_v7()).collect();
    let messages = sending_store::messages(tx, (ids, &replays), &runner.queues, MOST_BYTES).await?;
    replays.truncate(messages.len());
    ids.truncate(messages.len());
    nths.truncate(messages.len());
    letters::mark_replaying(tx, ids, &replays, Some(job.created_at)).await?;
    store::mark_sent(tx, job.id, nths, &replays).await?;
    let replays: Vec<Option<Uuid>> = replays.into_iter().map(Some).collect();
    store::audit_items(tx, job, "replaying", ids, &replays).await?;
    Ok(messages)
}

/// What has its end at once, without the consumer.
async fn close(tx: &Tx, job: &Job, ids: &[Uuid]) -> Result<(), DbError> {
    if ids.is_empty() {
        return Ok(());
    }
    let after = if job.action == Action::Archive { "archived" } else { "discarded" };
    letters::close(tx, ids, after, (&job.actor, Some(&job.reason))).await?;
    store::audit_items(tx, job, after, ids, &vec![None; ids.len()]).await
}

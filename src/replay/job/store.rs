//! All SQL of `onceflow.bulk_job` and `onceflow.bulk_job_item`, with the audit rows that their changes make.

use serde_json::Value;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::super::store::column;
use super::LEASE;
use super::machine::Recent;
use super::model::{Action, Job, Settings, State};
use crate::db::{DbError, Tx};

const JOBS: &str = "
    SELECT id, action, state, actor, reason, selection, bound, plan, rate, max_in_flight, canary, hold_seconds, hold_until,
           planned, waiting, in_flight, succeeded, failed_again, skipped, stop_reason, waits_for, created_at, changed_at,
           finished_at, approval_needed, approved_by, approved_at
      FROM onceflow.bulk_job
     WHERE $1::uuid IS NULL OR id = $1
     ORDER BY created_at DESC, id LIMIT $2";

const LOCK: &str = "SELECT resume_to FROM onceflow.bulk_job WHERE id = $1 FOR UPDATE";

/// The undo window begins, or ends now.
const HOLD: &str = "
    UPDATE onceflow.bulk_job
       SET state = 'held', waits_for = NULL, changed_at = clock_timestamp(),
           hold_until = clock_timestamp() + make_interval(secs => CASE WHEN state = 'planned' THEN hold_seconds ELSE 0 END)
     WHERE id = $1";

const APPROVE: &str = "
    UPDATE onceflow.bulk_job SET approved_by = $2, approved_at = clock_timestamp(), changed_at = clock_timestamp() WHERE id = $1";

const PAUSE: &str = "
    UPDATE onceflow.bulk_job
       SET resume_to = state, state = 'paused', stop_reason = $2, waits_for = NULL, changed_at = clock_timestamp()
     WHERE id = $1";

const RESUME: &str = "
    UPDATE onceflow.bulk_job
       SET state = resume_to, resume_to = NULL, stop_reason = NULL, changed_at = clock_timestamp()
     WHERE id = $1";

const CANCEL: &str = "
    UPDATE onceflow.bulk_job
       SET state = 'cancelled', resume_to = NULL, stop_reason = $2, waits_for = NULL, skipped = skipped + waiting, waiting = 0,
           finished_at = clock_timestamp(), changed_at = clock_timestamp()
     WHERE id = $1";

const SET_RATE: &str = "UPDATE onceflow.bulk_job SET rate = $2, changed_at = clock_timestamp() WHERE id = $1";

/// Frees the dead letters that are left, so that another job may take them.
const SKIP_WAITING: &str = "
    WITH skipped AS (
        UPDATE onceflow.bulk_job_item SET state = 'skipped', reason = $2 WHERE job_id = $1 AND state = 'waiting'
        RETURNING consumer
    )
    SELECT consumer, count(*) AS count FROM skipped GROUP BY consumer";

const TAKE: &str = "
    UPDATE onceflow.bulk_job AS j
       SET holder = $1, epoch = j.epoch + 1, expires_at = clock_timestamp() + make_interval(secs => $2)
      FROM (SELECT id FROM onceflow.bulk_job
             WHERE (finished_at IS NULL OR in_flight > 0) AND expires_at < clock_timestamp()
               AND (in_flight > 0 OR state IN ('canary', 'running') OR (state = 'held' AND hold_until <= clock_timestamp()))
             ORDER BY created_at LIMIT $3 FOR UPDATE SKIP LOCKED) AS free
     WHERE j.id = free.id
    RETURNING j.id, j.epoch";

/// Whoever holds this lock runs the job until the end of the transaction: a takeover and an operator's change wait for it. What follows
/// is about a few items of many, each found by its key: nobody has counted the items of a young job, and the planner, which takes them for
/// few, would read all of them for ten.
const LOCK_MINE: &str = "
    SELECT set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true),
           set_config('enable_bitmapscan', 'off', true), set_config('random_page_cost', '1.1', true), recent, resume_to, coalesce(hold_until <= clock_timestamp(), false) AS hold_over,
           coalesce((SELECT extract(epoch FROM clock_timestamp() - min(i.sent_at)) FROM onceflow.bulk_job_item AS i
                      WHERE i.job_id = $1 AND i.state = 'sent'), 0)::float8 AS oldest
      FROM onceflow.bulk_job
     WHERE id = $1 AND holder = $2 AND epoch = $3
       FOR UPDATE";

const SAVE: &str = "
    UPDATE onceflow.bulk_job
       SET state = $4, resume_to = $5, waiting = $6, in_flight = $7, succeeded = $8, failed_again = $9, skipped = $10,
           recent = $11, stop_reason = $12, waits_for = $13, expires_at = clock_timestamp() + make_interval(secs => $14),
           changed_at = CASE WHEN $15 THEN clock_timestamp() ELSE changed_at END,
           finished_at = CASE WHEN $4 IN ('done', 'stopped', 'cancelled') THEN coalesce(finished_at, clock_timestamp()) END
     WHERE id = $1 AND holder = $2 AND epoch = $3";

const RELEASE: &str = "
    UPDATE onceflow.bulk_job SET holder = NULL, expires_at = '-infinity' WHERE id = $1 AND holder = $2 AND epoch = $3";

/// Results are read from the dead letters. One that was replayed by somebody else since must have failed again before.
const SETTLE: &str = "
    WITH ended AS (
        SELECT i.nth, i.key, i.turn, i.consumer, coalesce(d.closed_at, d.last_failed_at) AS at,
               CASE WHEN d.id IS NULL THEN 'skipped'
                    WHEN d.state = 'replayed' AND d.replay_id = i.replay_id THEN 'succeeded'
                    ELSE 'failed_again' END AS state
          FROM onceflow.bulk_job_item AS i
          LEFT JOIN onceflow.dead_letter AS d ON d.tenant = i.tenant AND d.id = i.dead_letter_id
         WHERE i.job_id = $1 AND i.state = 'sent'
           AND (d.id IS NULL OR d.state <> 'replaying' OR d.replay_id IS DISTINCT FROM i.replay_id)
         LIMIT $2
    ), changed AS (
        UPDATE onceflow.bulk_job_item AS i
           SET state = e.state, reason = CASE WHEN e.state = 'skipped' THEN 'not_found' END
          FROM ended AS e WHERE i.job_id = $1 AND i.nth = e.nth
    ), freed AS (
        UPDATE onceflow.bulk_job_item AS i SET ready = true
          FROM ended AS e WHERE i.job_id = $1 AND i.key = e.key AND i.turn = e.turn + 1
    )
    SELECT state, consumer FROM ended ORDER BY at NULLS LAST, nth";

/// What may go next. A replay waits while anything else of its key is on its way, whoever sent it, and while its consumer is paused.
const PICK: &str = "
    SELECT i.nth, i.dead_letter_id, i.consumer
      FROM onceflow.bulk_job_item AS i
     WHERE i.job_id = $1 AND i.state = 'waiting' AND i.ready AND (i.canary OR NOT $2)
       AND (NOT $3 OR (
            NOT EXISTS (SELECT FROM onceflow.bulk_job_item AS o WHERE o.key = i.key AND o.state = 'sent')
            AND i.key NOT IN (SELECT md5(concat_ws('|', d.tenant, d.consumer,
                                                   coalesce(d.partition_key, d.subject, d.event_id)))::uuid
                                FROM onceflow.dead_letter AS d WHERE d.state = 'replaying')
            AND i.consumer NOT IN (SELECT s.consumer FROM onceflow.consumer_state AS s WHERE s.paused)))
     ORDER BY i.nth LIMIT $4";

/// One lookup for each: of a job that was planned a moment ago the planner knows nothing, takes it for one row, and would read all of
/// its items. They don't move meanwhile, since the job's row is locked.
const MARK_SENT: &str = "
    UPDATE onceflow.bulk_job_item AS i
       SET state = 'sent', replay_id = r.replay_id, sent_at = clock_timestamp()
      FROM unnest($2::int4[], $3::uuid[]) AS r (nth, replay_id)
     CROSS JOIN LATERAL (SELECT w.ctid AS at FROM onceflow.bulk_job_item AS w
                          WHERE w.job_id = $1 AND w.nth = r.nth AND w.state = 'waiting' OFFSET 0) AS found
     WHERE i.ctid = found.at";

/// Ends items that were never on their way, and frees the next of their keys. One lookup for each, as in [`MARK_SENT`].
const END: &str = "
    WITH ended AS (
        UPDATE onceflow.bulk_job_item AS i SET state = e.state, reason = e.reason
          FROM unnest($2::int4[], $3::text[], $4::text[]) AS e (nth, state, reason)
         CROSS JOIN LATERAL (SELECT w.ctid AS at FROM onceflow.bulk_job_item AS w
                              WHERE w.job_id = $1 AND w.nth = e.nth AND w.state = 'waiting' OFFSET 0) AS found
         WHERE i.ctid = found.at
        RETURNING i.nth, i.key, i.turn
    ), freed AS (
        UPDATE onceflow.bulk_job_item AS i SET ready = true
          FROM ended AS e WHERE i.job_id = $1 AND i.key = e.key AND i.turn = e.turn + 1 AND NOT i.ready
    )
    SELECT count(*) AS count FROM ended";

/// From the index of live jobs: ended ones are kept for months and cost nothing here.
const TOTALS: &str = "
    SELECT state, count(*) AS jobs, sum(waiting + in_flight)::bigint AS remaining
      FROM onceflow.bulk_job WHERE finished_at IS NULL OR in_flight > 0
     GROUP BY state";

const AUDIT: &str = "
    INSERT INTO onceflow.audit (id, actor, action, subject, reason, detail) VALUES ($1, $2, $3, $4, $5, $6)";

const AUDIT_ITEMS: &str = "
    INSERT INTO onceflow.audit (id, actor, action, subject, reason, detail)
    SELECT a.id, $1, $2, a.dead_letter_id::text, $3,
           jsonb_build_object('ids', jsonb_build_array(a.dead_letter_id), 'job', $4::uuid, 'before', 'open', 'after', $5::text, 'replay_id', a.replay_id)
      FROM unnest($6::uuid[], $7::uuid[], $8::uuid[]) AS a (id, dead_letter_id, replay_id)";

/// A job whose row is locked by the process that runs it.
pub(super) struct Locked {
    pub(super) job: Job,
    pub(super) recent: Recent,
    pub(super) resume_to: Option<State>,
    pub(super) hold_over: bool,
    pub(super) oldest_seconds: f64,
}

/// Which process runs which job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) job: Uuid,
    pub(super) holder: Uuid,
    pub(super) epoch: i64,
}

/// An item that may go.
pub(super) struct Picked {
    pub(super) nth: i32,
    pub(super) dead_letter: Uuid,
    pub(super) consumer: String,
}

/// A result of what was on its way: whether it succeeded; `None` where it is gone.
pub(super) struct Ended {
    pub(super) succeeded: Option<bool>,
    pub(super) consumer: String,
}

/// How an item ended that was never on its way.
pub(super) struct End {
    pub(super) nth: i32,
    pub(super) state: &'static str,
    pub(super) reason: Option<&'static str>,
}

pub(super) async fn job(tx: &Tx, id: Uuid) -> Result<Option<Job>, DbError> {
    tx.query_opt(JOBS, &[&Some(id), &1_i64]).await?.as_ref().map(read_job).transpose()
}

pub(super) async fn jobs(tx: &Tx, limit: i64) -> Result<Vec<Job>, DbError> {
    tx.query(JOBS, &[&None::<Uuid>, &limit]).await?.iter().map(read_job).collect()
}

fn read_job(row: &Row) -> Result<Job, DbError> {
    let (action, state): (String, String) = (column(row, "action")?, column(row, "state")?);
    let action = Action::named(&action).ok_or_else(|| DbError::shape(format!("action: {action}")))?;
    let state = State::named(&state).ok_or_else(|| DbError::shape(format!("state: {state}")))?;
    let plan: Value = column(row, "plan")?;
    let settings = Settings {
        rate: number(row, "rate")?,
        max_in_flight: number(row, "max_in_flight")?,
        canary: number(row, "canary")?,
        hold_seconds: number(row, "hold_seconds")?,
    };
    let (waiting, in_flight) = (number(row, "waiting")?, number(row, "in_flight")?);
    let runs = matches!(state, State::Canary | State::Running);
    Ok(Job {
        id: column(row, "id")?,
        action,
        state,
        actor: column(row, "actor")?,
        reason: column(row, "reason")?,
        approval_needed: column(row, "approval_needed")?,
        approved_by: column(row, "approved_by")?,
        approved_at: column(row, "approved_at")?,
        selection: column(row, "selection")?,
        bound: column(row, "bound")?,
        plan: serde_json::from_value(plan).unwrap_or_default(),
        settings,
        hold_until: column(row, "hold_until")?,
        planned: number(row, "planned")?,
        waiting,
        in_flight,
        succeeded: number(row, "succeeded")?,
        failed_again: number(row, "failed_again")?,
        skipped: number(row, "skipped")?,
        stop_reason: column(row, "stop_reason")?,
        waits_for: column(row, "waits_for")?,
        eta_seconds: runs.then(|| (waiting + in_flight).div_ceil(settings.rate.max(1))),
        created_at: column(row, "created_at")?,
        changed_at: column(row, "changed_at")?,
        finished_at: column(row, "finished_at")?,
        newcomers: None,
    })
}

/// Keeps everybody else from changing the job; false where there is none.
pub(super) async fn lock(tx: &Tx, id: Uuid) -> Result<bool, DbError> {
    Ok(tx.query_opt(LOCK, &[&id]).await?.is_some())
}

pub(super) async fn hold(tx: &Tx, id: Uuid) -> Result<(), DbError> {
    tx.execute(HOLD, &[&id]).await.map(|_| ())
}

pub(super) async fn approve(tx: &Tx, id: Uuid, by: &str) -> Result<(), DbError> {
    tx.execute(APPROVE, &[&id, &by]).await.map(|_| ())
}

pub(super) async fn pause(tx: &Tx, id: Uuid, why: &str) -> Result<(), DbError> {
    tx.execute(PAUSE, &[&id, &why]).await.map(|_| ())
}

pub(super) async fn resume(tx: &Tx, id: Uuid) -> Result<(), DbError> {
    tx.execute(RESUME, &[&id]).await.map(|_| ())
}

pub(super) async fn cancel(tx: &Tx, id: Uuid, why: &str) -> Result<(), DbError> {
    tx.execute(CANCEL, &[&id, &why]).await.map(|_| ())
}

pub(super) async fn set_rate(tx: &Tx, id: Uuid, rate: u32) -> Result<(), DbError> {
    tx.execute(SET_RATE, &[&id, &signed(rate)]).await.map(|_| ())
}

/// How many of each consumer were left.
pub(super) async fn skip_waiting(tx: &Tx, id: Uuid, why: &str) -> Result<Vec<(String, u32)>, DbError> {
    let rows = tx.query(SKIP_WAITING, &[&id, &why]).await?;
    rows.iter().map(|row| Ok((column(row, "consumer")?, counted(row, "count")?))).collect()
}

/// Jobs that have not ended by state, and what they have still to deal with.
pub(super) async fn totals(tx: &Tx) -> Result<(Vec<(String, i64)>, i64), DbError> {
    let (mut by_state, mut remaining) = (Vec::new(), 0);
    for row in tx.query(TOTALS, &[]).await? {
        by_state.push((column(&row, "state")?, column(&row, "jobs")?));
        remaining += column::<i64>(&row, "remaining")?;
    }
    Ok((by_state, remaining))
}

/// Takes jobs that nobody runs.
pub(super) async fn take(tx: &Tx, holder: Uuid, most: usize) -> Result<Vec<Lease>, DbError> {
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let rows = tx.query(TAKE, &[&holder, &LEASE.as_secs_f64(), &most]).await?;
    rows.iter().map(|row| Ok(Lease { job: column(row, "id")?, holder, epoch: column(row, "epoch")? })).collect()
}

/// `None` where the job is somebody else's by now.
pub(super) async fn lock_mine(tx: &Tx, lease: Lease) -> Result<Option<Locked>, DbError> {
    let Some(row) = tx.query_opt(LOCK_MINE, &[&lease.job, &lease.holder, &lease.epoch]).await? else {
        return Ok(None);
    };
    let Some(job) = job(tx, lease.job).await? else { return Ok(None) };
    let (recent, resume_to): (String, Option<String>) = (column(&row, "recent")?, column(&row, "resume_to")?);
    Ok(Some(Locked {
        job,
        recent: Recent::stored(&recent),
        resume_to: resume_to.as_deref().and_then(State::named),
        hold_over: column(&row, "hold_over")?,
        oldest_seconds: column(&row, "oldest")?,
    }))
}

/// Writes the books and the state, and renews the lease.
pub(super) async fn save(tx: &Tx, lease: Lease, locked: &Locked, changed: bool) -> Result<(), DbError> {
    let job = &locked.job;
    let resume_to = locked.resume_to.map(State::as_str);
    let books = [job.waiting, job.in_flight, job.succeeded, job.failed_again, job.skipped].map(signed);
    let params: [&(dyn ToSql + Sync); 15] = [
        &lease.job,
        &lease.holder,
        &lease.epoch,
        &job.state.as_str(),
        &resume_to,
        &books[0],
        &books[1],
        &books[2],
        &books[3],
        &books[4],
        &locked.recent.as_str(),
        &job.stop_reason,
        &job.waits_for,
        &LEASE.as_secs_f64(),
        &changed,
    ];
    match tx.execute(SAVE, &params).await? {
        1 => Ok(()),
        _ => Err(DbError::shape(format!("job {}: its row is locked and was not saved", lease.job))),
    }
}

pub(super) async fn release(tx: &Tx, lease: Lease) -> Result<(), DbError> {
    tx.execute(RELEASE, &[&lease.job, &lease.holder, &lease.epoch]).await.map(|_| ())
}

/// Writes down results; returns them in the order in which they came about.
pub(super) async fn settle(tx: &Tx, job: Uuid, most: i64) -> Result<Vec<Ended>, DbError> {
    let result = |row: &Row| {
        let state: String = column(row, "state")?;
        let succeeded = (state != "skipped").then_some(state == "succeeded");
        Ok(Ended { succeeded, consumer: column(row, "consumer")? })
    };
    tx.query(SETTLE, &[&job, &most]).await?.iter().map(result).collect()
}

pub(super) async fn pick(tx: &Tx, job: &Job, most: u32) -> Result<Vec<Picked>, DbError> {
    let (canary, replay) = (job.state == State::Canary, job.action == Action::Replay);
    let read = |row: &Row| {
        let (nth, dead_letter) = (column(row, "nth")?, column(row, "dead_letter_id")?);
        Ok(Picked { nth, dead_letter, consumer: column(row, "consumer")? })
    };
    tx.query(PICK, &[&job.id, &canary, &replay, &i64::from(most)]).await?.iter().map(read).collect()
}

pub(super) async fn mark_sent(tx: &Tx, job: Uuid, nths: &[i32], replays: &[Uuid]) -> Result<(), DbError> {
    let marked = tx.execute(MARK_SENT, &[&job, &nths, &replays]).await?;
    all_of(marked, nths.len(), "items marked as sent")
}

pub(super) async fn end(tx: &Tx, job: Uuid, ends: &[End]) -> Result<(), DbError> {
    if ends.is_empty() {
        return Ok(());
    }
    let nths: Vec<i32> = ends.iter().map(|e| e.nth).collect();
    let states: Vec<&str> = ends.iter().map(|e| e.state).collect();
    let reasons: Vec<Option<&str>> = ends.iter().map(|e| e.reason).collect();
    let ended = counted(&tx.query_one(END, &[&job, &nths, &states, &reasons]).await?, "count")?;
    all_of(u64::from(ended), ends.len(), "items ended")
}

/// One row about the job itself.
pub(super) async fn audit(tx: &Tx, action: &str, job: Uuid, by: (&str, &str), detail: &Value) -> Result<(), DbError> {
    let (actor, reason) = by;
    let params: [&(dyn ToSql + Sync); 6] = [&Uuid::now_v7(), &actor, &action, &job.to_string(), &reason, detail];
    tx.execute(AUDIT, &params).await.map(|_| ())
}

/// One row for each dead letter that was touched.
pub(super) async fn audit_items(
    tx: &Tx,
    job: &Job,
    after: &str,
    letters: &[Uuid],
    replays: &[Option<Uuid>],
) -> Result<(), DbError> {
    let ids: Vec<Uuid> = letters.iter().map(|_| Uuid::now_v7()).collect();
    let action = format!("job.{}", job.action.as_str());
    let params: [&(dyn ToSql + Sync); 8] =
        [&job.actor, &action, &job.reason, &job.id, &after, &ids, &letters, &replays];
    let written = tx.execute(AUDIT_ITEMS, &params).await?;
    all_of(written, letters.len(), "audit rows of dead letters")
}

/// The rows are locked, so anything else than all of them is a mistake of ours and nothing may be committed.
fn all_of(touched: u64, wanted: usize, what: &str) -> Result<(), DbError> {
    if usize::try_from(touched) == Ok(wanted) {
        return Ok(());
    }
    Err(DbError::shape(format!("{what}: {touched} instead of {wanted}")))
}

pub(super) fn counted(row: &Row, name: &str) -> Result<u32, DbError> {
    let count: i64 = column(row, name)?;
    u32::try_from(count).map_err(|_| DbError::shape(format!("{name}: {count}")))
}

fn number(row: &Row, name: &str) -> Result<u32, DbError> {
    let number: i32 = column(row, name)?;
    u32::try_from(number).map_err(|_| DbError::shape(format!("{name}: {number}")))
}

/// All of them are bounded well below.
pub(super) fn signed(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

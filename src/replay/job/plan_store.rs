//! The SQL of planning a job: what matches, what is eligible, and the frozen list of it.

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::super::filter::Filter;
use super::super::letter::{PayloadKind, payload_kind};
use super::super::mask;
use super::super::store::{column, conditions};
use super::REPLAY_CAP;
use super::hints::Preview;
use super::model::{Job, Kind, Left, NewJob, Plan, Settings};
use super::store::{counted, signed};
use crate::db::{DbError, Tx};

/// Any constant. Plans are made one after the other, so that the second of two operators is told whose the first is; that no
/// dead letter is in two jobs rests on an index and not on this.
const PLANS: i64 = 0x6a6f_6273;
const ONE_PLAN_AT_A_TIME: &str = "SELECT pg_advisory_xact_lock($1)";
/// For this transaction: the plan sorts all that matches, and compiling its expressions takes longer than evaluating them.
const IN_MEMORY: &str = "SELECT set_config('work_mem', '64MB', true), set_config('jit', 'off', true)";
const NOW: &str = "SELECT clock_timestamp() AS now";

const INSERT_JOB: &str = "
    INSERT INTO onceflow.bulk_job (id, action, state, actor, reason, selection, bound, idempotency_key, plan, rate,
           max_in_flight, canary, hold_seconds, planned, waiting)
    VALUES ($1, $2, 'planned', $3, $4, $5, $6, $7, '{}', $8, $9, $10, $11, 0, 0)";

const FINISH_PLAN: &str = "
    UPDATE onceflow.bulk_job
       SET plan = $2, planned = $3, waiting = $3, approval_needed = $4, waits_for = CASE WHEN $4 THEN 'the approval of a second person' END
     WHERE id = $1";

/// Lists what matches and, where $21 says so, stores what is eligible: both from one look at the table. Of the canary is at most
/// one of a key, its first, and the groups take turns: failures of one kind may have several causes.
const PLAN: &str = "
    WITH matched AS MATERIALIZED (
        SELECT d.id, d.tenant, d.consumer, d.event_type, d.stage, d.reason, d.first_failed_at,
               onceflow.group_of(d.group_id, d.consumer, d.event_type, d.stage, d.reason) AS grp,
               d.consumer_version = $23 AS same_version,
               md5(concat_ws('|', d.tenant, d.consumer, coalesce(d.partition_key, d.subject, d.event_id)))::uuid AS key,
               CASE WHEN d.id IN (SELECT i.dead_letter_id FROM onceflow.bulk_job_item AS i
                                   WHERE i.state IN ('waiting', 'sent')) THEN 'in_job'
                    WHEN d.state <> 'open' THEN d.state
                    WHEN $16 AND d.consumer <> ALL ($17::text[]) THEN 'unknown_consumer'
                    WHEN $16 AND d.replays >= $18 THEN 'parked' END AS why
          FROM onceflow.dead_letter AS d
         WHERE ($1::text IS NULL OR consumer = $1) AND ($2::text IS NULL OR event_type = $2)
           AND ($3::text IS NULL OR tenant = $3) AND ($4::text IS NULL OR stage = $4)
           AND ($5::text IS NULL OR reason = $5)
           AND ($6::text IS NULL OR state = $6 OR ($6 = 'open' AND state = 'replaying'))
           AND ($7::text IS NULL OR onceflow.group_of(group_id, consumer, event_type, stage, reason) = $7)
           AND ($8::timestamptz IS NULL OR last_failed_at >= $8) AND ($9::timestamptz IS NULL OR last_failed_at < $9)
           AND ($10::text IS NULL OR onceflow.says($10, CASE $6 WHEN 'open' THEN ARRAY['open', 'replaying'] ELSE ARRAY[$6] END, state,
                                                   error_chain, event_id, subject, partition_key))
           AND ($11::text IS NULL OR partition_key = $11)
           AND ($12::integer IS NULL OR attempts >= $12) AND ($13::integer IS NULL OR replays >= $13)
           AND ($14::uuid[] IS NULL OR id = ANY ($14))
           AND last_failed_at <= $15
    ), eligible AS (
        SELECT m.*, row_number() OVER (ORDER BY first_failed_at, id) AS nth FROM matched AS m WHERE why IS NULL
    ), kept AS (
        SELECT e.*, row_number() OVER (PARTITION BY key ORDER BY nth) AS turn FROM eligible AS e WHERE nth <= $19
    ), heads AS (
        SELECT nth, row_number() OVER (PARTITION BY grp ORDER BY nth) AS round
          FROM kept WHERE turn = 1
    ), canaries AS (
        SELECT nth FROM heads ORDER BY round, nth LIMIT $20
    ), stored AS (
        INSERT INTO onceflow.bulk_job_item (job_id, nth, tenant, dead_letter_id, consumer, key, turn, canary, ready)
        SELECT $22::uuid, nth, tenant, id, consumer, key, turn, nth IN (SELECT nth FROM canaries), turn = 1 OR NOT $16
          FROM kept WHERE $21
    )
    SELECT m.consumer, m.event_type, m.stage, m.reason, m.tenant, m.why, count(*) AS count, count(k.id) AS kept,
           count(k.id) FILTER (WHERE m.same_version) AS same_version,
           (array_agg(m.id ORDER BY m.first_failed_at, m.id))[1:10] AS ids, (SELECT count(*) FROM canaries) AS canary
      FROM matched AS m LEFT JOIN kept AS k ON k.id = m.id
     GROUP BY m.consumer, m.event_type, m.stage, m.reason, m.tenant, m.why
     ORDER BY count DESC, 1, 2, 3, 4, 5";

const UNKNOWN_IDS: &str = "
    SELECT asked.id FROM unnest($1::uuid[]) AS asked (id)
     WHERE NOT EXISTS (SELECT FROM onceflow.dead_letter AS d WHERE d.id = asked.id)";

/// Open ones that match as well and failed after the plan, those of the job itself aside.
const NEWCOMERS: &str = "
    SELECT count(*) AS count
      FROM onceflow.dead_letter AS d
     WHERE ($1::text IS NULL OR consumer = $1) AND ($2::text IS NULL OR event_type = $2)
       AND ($3::text IS NULL OR tenant = $3) AND ($4::text IS NULL OR stage = $4)
       AND ($5::text IS NULL OR reason = $5) AND ($6::text IS NULL OR state = $6)
       AND ($7::text IS NULL OR onceflow.group_of(group_id, consumer, event_type, stage, reason) = $7)
       AND ($8::timestamptz IS NULL OR last_failed_at >= $8) AND ($9::timestamptz IS NULL OR last_failed_at < $9)
       AND ($10::text IS NULL OR onceflow.says($10, ARRAY[$6], state, error_chain, event_id, subject, partition_key))
       AND ($11::text IS NULL OR partition_key = $11)
       AND ($12::integer IS NULL OR attempts >= $12) AND ($13::integer IS NULL OR replays >= $13)
       AND state = 'open' AND last_failed_at > $14
       AND NOT EXISTS (SELECT FROM onceflow.bulk_job_item AS i WHERE i.job_id = $15 AND i.dead_letter_id = d.id)";

const OWNER: &str = "
    SELECT j.id, j.actor, j.reason
      FROM onceflow.bulk_job_item AS i JOIN onceflow.bulk_job AS j ON j.id = i.job_id
     WHERE i.dead_letter_id = ANY ($1) AND i.state IN ('waiting', 'sent')
     ORDER BY j.created_at LIMIT 1";

/// Payloads that are too large stay where they are.
const PREVIEWS: &str = "
    SELECT id, consumer, event_type, onceflow.group_of(group_id, consumer, event_type, stage, reason) AS \"group\", content_type,
           octet_length(payload) AS bytes, CASE WHEN octet_length(payload) <= $2 THEN payload END AS payload
      FROM onceflow.dead_letter
     WHERE id = ANY ($1)
     ORDER BY array_position($1, id)";

const BY_KEY: &str = "SELECT id FROM onceflow.bulk_job WHERE idempotency_key = $1";

/// One line of what a plan found.
pub(super) struct Found {
    pub(super) kind: Kind,
    pub(super) why: Option<Left>,
    /// How many of the line are in the job.
    pub(super) kept: u32,
    /// How many of those failed last in this version.
    pub(super) same_version: u32,
    pub(super) ids: Vec<Uuid>,
    pub(super) canary: u32,
}

/// What a plan looks for.
pub(super) struct Look<'a> {
    pub(super) filter: &'a Filter,
    pub(super) ids: Option<&'a [Uuid]>,
    pub(super) bound: jiff::Timestamp,
    pub(super) replay: bool,
    pub(super) consumers: &'a [&'a str],
    pub(super) max: i64,
    pub(super) canary: i64,
    /// Where the items are stored; absent for a dry run.
    pub(super) job: Option<Uuid>,
}

pub(super) async fn one_plan_at_a_time(tx: &Tx) -> Result<(), DbError> {
    tx.query(ONE_PLAN_AT_A_TIME, &[&PLANS]).await?;
    tx.query(IN_MEMORY, &[]).await.map(|_| ())
}

pub(super) async fn now(tx: &Tx) -> Result<jiff::Timestamp, DbError> {
    column(&tx.query_one(NOW, &[]).await?, "now")
}

pub(super) async fn insert_job(tx: &Tx, id: Uuid, new: &NewJob, bound: jiff::Timestamp) -> Result<(), DbError> {
    let selection = serde_json::to_value(&new.selection).map_err(|e| DbError::shape(e.to_string()))?;
    let reason = new.reason.as_deref().unwrap_or_default();
    let Settings { rate, max_in_flight, canary, hold_seconds } = new.settings;
    let numbers = [rate, max_in_flight, canary, hold_seconds].map(signed);
    let params: [&(dyn ToSql + Sync); 11] = [
        &id,
        &new.action.as_str(),
        &new.actor,
        &reason,
        &selection,
        &bound,
        &new.idempotency_key,
        &numbers[0],
        &numbers[1],
        &numbers[2],
        &numbers[3],
    ];
    tx.execute(INSERT_JOB, &params).await.map(|_| ())
}

pub(super) async fn finish_plan(tx: &Tx, id: Uuid, plan: &Plan, approval_needed: bool) -> Result<(), DbError> {
    let stored = serde_json::to_value(plan).map_err(|e| DbError::shape(e.to_string()))?;
    tx.execute(FINISH_PLAN, &[&id, &stored, &signed(plan.count), &approval_needed]).await.map(|_| ())
}

pub(super) async fn plan(tx: &Tx, look: &Look<'_>) -> Result<Vec<Found>, DbError> {
    let state = look.filter.state_name();
    let (store, job) = (look.job.is_some(), look.job.unwrap_or(Uuid::nil()));
    let mut params = conditions(look.filter, &state);
    params.extend([&look.ids as &(dyn ToSql + Sync), &look.bound, &look.replay, &look.consumers, &REPLAY_CAP]);
    let version = env!("CARGO_PKG_VERSION");
    params.extend([&look.max as &(dyn ToSql + Sync), &look.canary, &store, &job, &version]);
    tx.query(PLAN, &params).await?.iter().map(found).collect()
}

fn found(row: &Row) -> Result<Found, DbError> {
    let why: Option<String> = column(row, "why")?;
    let known = |name: String| Left::named(&name).ok_or_else(|| DbError::shape(format!("why: {name}")));
    Ok(Found {
        kind: Kind {
            consumer: column(row, "consumer")?,
            event_type: column(row, "event_type")?,
            stage: column(row, "stage")?,
            reason_code: column(row, "reason")?,
            tenant: column(row, "tenant")?,
            count: counted(row, "count")?,
        },
        why: why.map(known).transpose()?,
        kept: counted(row, "kept")?,
        same_version: counted(row, "same_version")?,
        ids: column(row, "ids")?,
        canary: counted(row, "canary")?,
    })
}

pub(super) async fn unknown_ids(tx: &Tx, ids: &[Uuid]) -> Result<Vec<Uuid>, DbError> {
    tx.query(UNKNOWN_IDS, &[&ids]).await?.iter().map(|row| column(row, "id")).collect()
}

pub(super) async fn newcomers(tx: &Tx, filter: &Filter, job: &Job) -> Result<u32, DbError> {
    let state = filter.state_name();
    let mut params = conditions(filter, &state);
    params.extend([&job.bound as &(dyn ToSql + Sync), &job.id]);
    counted(&tx.query_one(NEWCOMERS, &params).await?, "count")
}

/// Which job has one of these: id, actor, reason.
pub(super) async fn owner(tx: &Tx, ids: &[Uuid]) -> Result<Option<(Uuid, String, String)>, DbError> {
    let row = tx.query_opt(OWNER, &[&ids]).await?;
    row.map(|row| Ok((column(&row, "id")?, column(&row, "actor")?, column(&row, "reason")?))).transpose()
}

pub(super) async fn by_key(tx: &Tx, key: &str) -> Result<Option<Uuid>, DbError> {
    tx.query_opt(BY_KEY, &[&key]).await?.map(|row| column(&row, "id")).transpose()
}

/// These dead letters with their payloads in one line each, in this order; those that are gone are left out.
pub(super) async fn previews(tx: &Tx, ids: &[Uuid]) -> Result<Vec<Preview>, DbError> {
    tx.query(PREVIEWS, &[&ids, &mask::MOST_BYTES]).await?.iter().map(read_preview).collect()
}

fn read_preview(row: &Row) -> Result<Preview, DbError> {
    let (content_type, bytes): (Option<String>, i32) = (column(row, "content_type")?, column(row, "bytes")?);
    let payload: Option<Vec<u8>> = column(row, "payload")?;
    let kind = payload.as_ref().map(|payload| payload_kind(content_type.as_deref(), payload));
    Ok(Preview {
        id: column(row, "id")?,
        consumer: column(row, "consumer")?,
        event_type: column(row, "event_type")?,
        group: column(row, "group")?,
        bytes: u32::try_from(bytes).unwrap_or_default(),
        kind,
        payload: payload.filter(|_| kind == Some(PayloadKind::Json)).and_then(|payload| mask::line(&payload)),
    })
}

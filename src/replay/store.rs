//! All SQL of operators on `onceflow.dead_letter`, with the outbox rows and audit rows that their changes make.
//!
//! The conditions of a filter are the same in each statement, those of groups (`group/store.rs`) included; a null restricts
//! nothing. The group of a dead letter is told by `onceflow.group_of`, in migration 0007.

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::change::Change;
use super::filter::{Cursor, Filter, Selection, State};
use super::letter::{DeadLetter, MAX_RELATED, Relative, Relatives, Summary, payload_kind};
use crate::db::{DbError, Tx};
use crate::runtime::order;

/// The ids of the page come from an index alone where the filter allows; each state has its part of it, in the order of the list.
/// `last_failed_at <= …` stands for itself, so that a later page begins where it begins in the index.
const LIST: &str = "
    SELECT d.id, d.tenant, d.consumer, d.event_type, d.source, d.event_id, d.subject, d.stage, d.reason,
           d.error_chain[1] AS error,
           onceflow.group_of(d.group_id, d.consumer, d.event_type, d.stage, d.reason) AS \"group\",
           d.state, d.attempts, d.replays, d.occurrences, d.first_failed_at, d.last_failed_at,
           (SELECT count(*) FROM onceflow.blocked_key AS b
              JOIN onceflow.held_event AS h ON h.tenant = b.tenant AND h.consumer = b.consumer AND h.partition_key = b.partition_key
             WHERE b.tenant = d.tenant AND b.consumer = d.consumer AND b.partition_key = d.partition_key
               AND b.source = d.source AND b.event_id = d.event_id AND d.state IN ('open', 'replaying')) AS waiting_behind
      FROM (
        SELECT found.tenant, found.id
          FROM unnest($17::text[]) AS s (name)
         CROSS JOIN LATERAL (
            SELECT tenant, id, last_failed_at
              FROM onceflow.dead_letter
             WHERE state = s.name
               AND ($1::text IS NULL OR consumer = $1) AND ($2::text IS NULL OR event_type = $2)
               AND ($3::text IS NULL OR tenant = $3) AND ($4::text IS NULL OR stage = $4)
               AND ($5::text IS NULL OR reason = $5)
               AND ($7::text IS NULL OR onceflow.group_of(group_id, consumer, event_type, stage, reason) = $7)
               AND ($8::timestamptz IS NULL OR last_failed_at >= $8)
               AND ($9::timestamptz IS NULL OR last_failed_at < $9)
               AND ($10::text IS NULL OR onceflow.says($10, ARRAY[$6], state, error_chain, event_id, subject, partition_key))
               AND ($11::text IS NULL OR partition_key = $11)
               AND ($12::integer IS NULL OR attempts >= $12) AND ($13::integer IS NULL OR replays >= $13)
               AND ($14::timestamptz IS NULL OR last_failed_at <= $14 AND (last_failed_at < $14 OR id > $15))
             ORDER BY last_failed_at DESC, id
             LIMIT $16) AS found
         WHERE $6::text IS NULL OR s.name = $6
         ORDER BY found.last_failed_at DESC, found.id
         LIMIT $16) AS page
      JOIN onceflow.dead_letter AS d ON d.tenant = page.tenant AND d.id = page.id
     ORDER BY d.last_failed_at DESC, d.id";

const SHOW: &str = "
    SELECT id, tenant, consumer, event_type, source, event_id, subject, stage, reason, error_chain[1] AS error,
           onceflow.group_of(group_id, consumer, event_type, stage, reason) AS \"group\",
           state, attempts, replays, occurrences, first_failed_at, last_failed_at,
           partition_key, error_chain, content_type, headers, payload, original_exchange, original_routing_key,
           consumer_version, replay_id, closed_at, closed_by, closed_reason, group_text,
           onceflow.correlation_of(correlation_id, headers) AS correlation_id, replayed_at, replayed_group,
           (SELECT count(*) FROM onceflow.blocked_key AS b
              JOIN onceflow.held_event AS h ON h.tenant = b.tenant AND h.consumer = b.consumer AND h.partition_key = b.partition_key
             WHERE b.tenant = d.tenant AND b.consumer = d.consumer AND b.partition_key = d.partition_key
               AND b.source = d.source AND b.event_id = d.event_id AND d.state IN ('open', 'replaying')) AS waiting_behind
      FROM onceflow.dead_letter AS d
     WHERE id = $1";

const SAME_KEY: &str = "
    SELECT id, consumer, event_type, event_id, reason, state, last_failed_at
      FROM onceflow.dead_letter
     WHERE partition_key = $2 AND tenant = $1 AND id <> $3
     ORDER BY last_failed_at DESC, id
     LIMIT $4";

const SAME_CORRELATION: &str = "
    SELECT id, consumer, event_type, event_id, reason, state, last_failed_at
      FROM onceflow.dead_letter
     WHERE onceflow.correlation_of(correlation_id, headers) = $2 AND tenant = $1 AND id <> $3
     ORDER BY last_failed_at DESC, id
     LIMIT $4";

/// A filter's conditions that restrict nothing vanish only from a plan that is made for its values. What an index alone can answer is
/// done before a plan could be compiled, and costs less than the planner thinks by default, which reads the whole table instead.
/// For the rest of the transaction.
const PLAN_FOR_VALUES: &str = "
    SELECT set_config('plan_cache_mode', 'force_custom_plan', true), set_config('jit', 'off', true),
           set_config('random_page_cost', '1.1', true)";

/// Counts no further than a bound; a null is none.
const COUNT: &str = "
    SELECT count(*) AS count
      FROM (
    SELECT
      FROM onceflow.dead_letter
     WHERE ($1::text IS NULL OR consumer = $1) AND ($2::text IS NULL OR event_type = $2)
       AND ($3::text IS NULL OR tenant = $3) AND ($4::text IS NULL OR stage = $4)
       AND ($5::text IS NULL OR reason = $5) AND ($6::text IS NULL OR state = $6)
       AND ($7::text IS NULL OR onceflow.group_of(group_id, consumer, event_type, stage, reason) = $7)
       AND ($8::timestamptz IS NULL OR last_failed_at >= $8) AND ($9::timestamptz IS NULL OR last_failed_at < $9)
       AND ($10::text IS NULL OR onceflow.says($10, ARRAY[$6], state, error_chain, event_id, subject, partition_key))
       AND ($11::text IS NULL OR partition_key = $11)
       AND ($12::integer IS NULL OR attempts >= $12) AND ($13::integer IS NULL OR replays >= $13)
     LIMIT $14) AS found";

/// Oldest failure first: a key's dead letters go back in the order in which they failed.
const LOCK_BY_FILTER: &str = "
    SELECT id, consumer, state
      FROM onceflow.dead_letter
     WHERE ($1::text IS NULL OR consumer = $1) AND ($2::text IS NULL OR event_type = $2)
       AND ($3::text IS NULL OR tenant = $3) AND ($4::text IS NULL OR stage = $4)
       AND ($5::text IS NULL OR reason = $5) AND ($6::text IS NULL OR state = $6)
       AND ($7::text IS NULL OR onceflow.group_of(group_id, consumer, event_type, stage, reason) = $7)
       AND ($8::timestamptz IS NULL OR last_failed_at >= $8) AND ($9::timestamptz IS NULL OR last_failed_at < $9)
       AND ($10::text IS NULL OR onceflow.says($10, ARRAY[$6], state, error_chain, event_id, subject, partition_key))
       AND ($11::text IS NULL OR partition_key = $11)
       AND ($12::integer IS NULL OR attempts >= $12) AND ($13::integer IS NULL OR replays >= $13)
     ORDER BY first_failed_at, id
     LIMIT $14
       FOR UPDATE";

const LOCK_BY_ID: &str = "
    SELECT id, consumer, state
      FROM onceflow.dead_letter
     WHERE id = ANY ($1)
     ORDER BY first_failed_at, id
       FOR UPDATE";

/// All of one replay have the same time, by which they are found again: a job that sends in pieces names its own.
const MARK_REPLAYING: &str = "
    UPDATE onceflow.dead_letter AS d
       SET state = 'replaying', replays = d.replays + 1, replay_id = r.replay_id, replayed_at = coalesce($3, transaction_timestamp()),
           replayed_group = onceflow.group_of(d.group_id, d.consumer, d.event_type, d.stage, d.reason)
      FROM unnest($1::uuid[], $2::uuid[]) AS r (id, replay_id)
     WHERE d.id = r.id AND d.state = 'open'";

/// All of one call have the same time, so that one answer tells until when they can be restored.
const CLOSE: &str = "
    UPDATE onceflow.dead_letter
       SET state = $4, closed_at = statement_timestamp(), closed_by = $2, closed_reason = $3
     WHERE id = ANY ($1) AND state = 'open'
    RETURNING closed_at";

/// Which of these events have another dead letter that is live, or that takes the place: it came after the archive.
const LIVE_AGAIN: &str = "
    SELECT d.id
      FROM onceflow.dead_letter AS d
     WHERE d.id = ANY ($1)
       AND (EXISTS (SELECT FROM onceflow.dead_letter AS o
                     WHERE o.tenant = d.tenant AND o.consumer = d.consumer AND o.source = d.source
                       AND o.event_id = d.event_id AND o.state IN ('open', 'replaying'))
            OR EXISTS (SELECT FROM onceflow.dead_letter AS o
                        WHERE o.tenant = d.tenant AND o.consumer = d.consumer AND o.source = d.source
                          AND o.event_id = d.event_id AND o.id = ANY ($1) AND o.id > d.id AND o.state = 'archived'))";

const RESTORE: &str = "
    UPDATE onceflow.dead_letter
       SET state = 'open', closed_at = NULL, closed_by = NULL, closed_reason = NULL
     WHERE id = ANY ($1) AND state = 'archived'";

const STATES: &str = "SELECT state FROM onceflow.dead_letter WHERE id = ANY ($1)";

const AUDIT: &str = "
    INSERT INTO onceflow.audit (id, actor, action, subject, reason, detail) VALUES ($1, $2, $3, $4, $5, $6)";

/// One row for each dead letter of an operation, whose own row has no ids: a trace tells each change once.
const AUDIT_LETTERS: &str = "
    INSERT INTO onceflow.audit (id, actor, action, subject, reason, detail)
    SELECT a.id, $1, $2, a.letter::text, $3,
           jsonb_build_object('ids', jsonb_build_array(a.letter), 'operation', $4::uuid, 'before', $5::text, 'after', $6::text)
      FROM unnest($7::uuid[], $8::uuid[]) AS a (id, letter)";

/// How the audit names that somebody has seen a payload as it is.
pub(super) const UNMASK: &str = "dlq.unmask";

/// What somebody did to dead letters, for the audit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operation<'a> {
    pub(super) verb: &'a str,
    pub(super) subject: &'a str,
    pub(super) actor: &'a str,
    pub(super) reason: Option<&'a str>,
    /// Before and after.
    pub(super) states: (&'a str, &'a str),
}

/// A selected dead letter, locked.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) id: Uuid,
    pub(super) consumer: String,
    pub(super) state: String,
}

pub(super) async fn list(tx: &Tx, filter: &Filter, after: Option<Cursor>, limit: i64) -> Result<Vec<Summary>, DbError> {
    let state = filter.state_name();
    let (at, id) = (after.map(|c| c.at), after.map(|c| c.id));
    let mut params = conditions(filter, &state);
    let states: &[&str] = &State::STORED;
    params.extend([&at as &(dyn ToSql + Sync), &id, &limit, &states]);
    tx.query(LIST, &params).await?.iter().map(summary).collect()
}

pub(super) async fn plan_for_values(tx: &Tx) -> Result<(), DbError> {
    tx.query(PLAN_FOR_VALUES, &[]).await.map(|_| ())
}

pub(super) async fn show(tx: &Tx, id: Uuid) -> Result<Option<DeadLetter>, DbError> {
    tx.query_opt(SHOW, &[&id]).await?.as_ref().map(dead_letter).transpose()
}

pub(super) async fn count(tx: &Tx, filter: &Filter) -> Result<usize, DbError> {
    Ok(usize::try_from(counted(tx, filter, None).await?).unwrap_or(0))
}

pub(super) async fn count_up_to(tx: &Tx, filter: &Filter, bound: i64) -> Result<i64, DbError> {
    counted(tx, filter, Some(bound)).await
}

async fn counted(tx: &Tx, filter: &Filter, bound: Option<i64>) -> Result<i64, DbError> {
    let state = filter.state_name();
    let mut params = conditions(filter, &state);
    params.push(&bound);
    column(&tx.query_one(COUNT, &params).await?, "count")
}

pub(super) async fn same_key(tx: &Tx, tenant: &str, key: &str, but: Uuid) -> Result<Vec<Relative>, DbError> {
    tx.query(SAME_KEY, &[&tenant, &key, &but, &MAX_RELATED]).await?.iter().map(relative).collect()
}

pub(super) async fn same_correlation(tx: &Tx, tenant: &str, id: &str, but: Uuid) -> Result<Vec<Relative>, DbError> {
    tx.query(SAME_CORRELATION, &[&tenant, &id, &but, &MAX_RELATED]).await?.iter().map(relative).collect()
}

pub(super) async fn lock_by_filter(tx: &Tx, filter: &Filter, max: usize) -> Result<Vec<Candidate>, DbError> {
    let state = filter.state_name();
    let max = i64::try_from(max).unwrap_or(i64::MAX);
    let mut params = conditions(filter, &state);
    params.push(&max);
    tx.query(LOCK_BY_FILTER, &params).await?.iter().map(candidate).collect()
}

pub(super) async fn lock_by_id(tx: &Tx, ids: &[Uuid]) -> Result<Vec<Candidate>, DbError> {
    tx.query(LOCK_BY_ID, &[&ids]).await?.iter().map(candidate).collect()
}

pub(super) async fn mark_replaying(
    tx: &Tx,
    ids: &[Uuid],
    replays: &[Uuid],
    since: Option<jiff::Timestamp>,
) -> Result<(), DbError> {
    let marked = tx.execute(MARK_REPLAYING, &[&ids, &replays, &since]).await?;
    all_of(marked, ids, "dead letters marked as replaying")
}

/// Takes open ones out of the list: `discarded`, `archived` or `edited`. Returns when. `by` is actor and reason. What waits behind
/// them goes on, in the same transaction, unless a copy takes their place.
pub(super) async fn close(
    tx: &Tx,
    ids: &[Uuid],
    state: &str,
    by: (&str, Option<&str>),
) -> Result<Option<jiff::Timestamp>, DbError> {
    let (actor, reason) = by;
    let rows = tx.query(CLOSE, &[&ids, &actor, &reason, &state]).await?;
    all_of(u64::try_from(rows.len()).unwrap_or(u64::MAX), ids, "dead letters closed")?;
    if state != "edited" {
        order::closed(tx, ids).await?;
    }
    rows.first().map(|row| column(row, "closed_at")).transpose()
}

pub(super) async fn live_again(tx: &Tx, ids: &[Uuid]) -> Result<Vec<Uuid>, DbError> {
    tx.query(LIVE_AGAIN, &[&ids]).await?.iter().map(|row| column(row, "id")).collect()
}

pub(super) async fn restore(tx: &Tx, ids: &[Uuid]) -> Result<(), DbError> {
    let restored = tx.execute(RESTORE, &[&ids]).await?;
    all_of(restored, ids, "dead letters restored")
}

pub(super) async fn states(tx: &Tx, ids: &[Uuid]) -> Result<Vec<String>, DbError> {
    tx.query(STATES, &[&ids]).await?.iter().map(|row| column(row, "state")).collect()
}

pub(super) async fn audit(tx: &Tx, action: &str, change: &Change, ids: &[Uuid]) -> Result<(), DbError> {
    let subject = match &change.selection {
        Selection::Ids(_) => "ids".to_owned(),
        Selection::Filter(Filter { group: Some(group), .. }) => format!("group {group}"),
        Selection::Filter(_) => "filter".to_owned(),
    };
    let filter = match &change.selection {
        Selection::Ids(_) => None,
        Selection::Filter(filter) => Some(filter),
    };
    let detail = serde_json::json!({ "count": ids.len(), "ids": ids, "filter": filter });
    audit_row(tx, (&change.actor, action, &subject), change.reason.as_deref(), &detail).await
}

/// One row for the operation, with `detail`, and one for each dead letter with its states before and after.
pub(super) async fn audit_each(
    tx: &Tx,
    operation: &Operation<'_>,
    ids: &[Uuid],
    detail: &serde_json::Value,
) -> Result<(), DbError> {
    let Operation { verb, subject, actor, reason, states: (before, after) } = *operation;
    let (id, rows) = (Uuid::now_v7(), ids.iter().map(|_| Uuid::now_v7()).collect::<Vec<_>>());
    tx.execute(AUDIT, &[&id, &actor, &format!("dlq.{verb}"), &subject, &reason, detail]).await?;
    let action = format!("letter.{verb}");
    let params: [&(dyn ToSql + Sync); 8] = [&actor, &action, &reason, &id, &before, &after, &rows, &ids];
    let written = tx.execute(AUDIT_LETTERS, &params).await?;
    all_of(written, ids, "audit rows of dead letters")
}

/// Somebody (and why) sees `what` of the dead letter of this event as it is.
pub(super) async fn audit_sight(
    tx: &Tx,
    id: Uuid,
    (actor, reason): (&str, Option<&str>),
    (what, event_id): (&str, &str),
) -> Result<(), DbError> {
    let detail = serde_json::json!({ "count": 1, "ids": [id], "event_id": event_id, "seen": what });
    audit_row(tx, (actor, UNMASK, &id.to_string()), reason, &detail).await
}

/// `what` is actor, action and subject.
pub(super) async fn audit_row(
    tx: &Tx,
    what: (&str, &str, &str),
    reason: Option<&str>,
    detail: &serde_json::Value,
) -> Result<(), DbError> {
    let (actor, action, subject) = what;
    tx.execute(AUDIT, &[&Uuid::now_v7(), &actor, &action, &subject, &reason, detail]).await?;
    Ok(())
}

/// Parameters $1 to $13 of every statement with a filter.
pub(super) fn conditions<'a>(filter: &'a Filter, state: &'a Option<&'static str>) -> Vec<&'a (dyn ToSql + Sync)> {
    vec![
        &filter.consumer,
        &filter.event_type,
        &filter.tenant,
        &filter.stage,
        &filter.reason_code,
        state,
        &filter.group,
        &filter.since,
        &filter.until,
        &filter.text,
        &filter.key,
        &filter.attempts,
        &filter.replays,
    ]
}

/// The rows are locked, so anything else than all of them is a mistake of ours and nothing may be committed.
pub(super) fn all_of(touched: u64, ids: &[Uuid], what: &str) -> Result<(), DbError> {
    if usize::try_from(touched) == Ok(ids.len()) {
        return Ok(());
    }
    Err(DbError::shape(format!("{what}: {touched} instead of {}", ids.len())))
}

fn candidate(row: &Row) -> Result<Candidate, DbError> {
    Ok(Candidate { id: column(row, "id")?, consumer: column(row, "consumer")?, state: column(row, "state")? })
}

fn summary(row: &Row) -> Result<Summary, DbError> {
    Ok(Summary {
        id: column(row, "id")?,
        tenant: column(row, "tenant")?,
        consumer: column(row, "consumer")?,
        event_type: column(row, "event_type")?,
        source: column(row, "source")?,
        event_id: column(row, "event_id")?,
        subject: column(row, "subject")?,
        stage: column(row, "stage")?,
        reason_code: column(row, "reason")?,
        error: column::<Option<String>>(row, "error")?.unwrap_or_default(),
        group: column(row, "group")?,
        state: column(row, "state")?,
        attempts: column(row, "attempts")?,
        replays: column(row, "replays")?,
        occurrences: column(row, "occurrences")?,
        first_failed_at: column(row, "first_failed_at")?,
        last_failed_at: column(row, "last_failed_at")?,
        waiting_behind: column(row, "waiting_behind")?,
    })
}

fn dead_letter(row: &Row) -> Result<DeadLetter, DbError> {
    let payload: Vec<u8> = column(row, "payload")?;
    let payload_bytes = payload.len();
    let content_type: Option<String> = column(row, "content_type")?;
    let payload_kind = payload_kind(content_type.as_deref(), &payload);
    let (payload_text, payload_base64) = match String::from_utf8(payload) {
        Ok(text) => (Some(text), None),
        Err(e) => (None, Some(super::letter::base64(e.as_bytes()))),
    };
    Ok(DeadLetter {
        summary: summary(row)?,
        partition_key: column(row, "partition_key")?,
        error_chain: column(row, "error_chain")?,
        content_type,
        headers: column(row, "headers")?,
        payload_bytes,
        payload_text,
        payload_base64,
        payload_masked: None,
        original_exchange: column(row, "original_exchange")?,
        original_routing_key: column(row, "original_routing_key")?,
        consumer_version: column(row, "consumer_version")?,
        replay_id: column(row, "replay_id")?,
        closed_at: column(row, "closed_at")?,
        closed_by: column(row, "closed_by")?,
        closed_reason: column(row, "closed_reason")?,
        restorable_until: None,
        payload_kind,
        group_text: column(row, "group_text")?,
        correlation_id: column(row, "correlation_id")?,
        replayed_at: column(row, "replayed_at")?,
        replayed_group: column(row, "replayed_group")?,
        related: Relatives::default(),
        is_masked: false,
        edited_into: None,
        edited_from: None,
    })
}

fn relative(row: &Row) -> Result<Relative, DbError> {
    Ok(Relative {
        id: column(row, "id")?,
        consumer: column(row, "consumer")?,
        event_type: column(row, "event_type")?,
        event_id: column(row, "event_id")?,
        reason_code: column(row, "reason")?,
        state: column(row, "state")?,
        last_failed_at: column(row, "last_failed_at")?,
    })
}

pub(super) fn column<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, name: &str) -> Result<T, DbError> {
    row.try_get(name).map_err(|e| DbError::shape(format!("{name}: {e}")))
}

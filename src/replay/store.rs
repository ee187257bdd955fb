//! All SQL of operators on `onceflow.dead_letter`, with the outbox rows and audit rows that their changes make.
//!
//! The conditions of a filter are the same in each statement; a null restricts nothing. The group of a dead letter is the
//! beginning of a hash over consumer, type, stage and reason.

use std::collections::BTreeMap;

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::change::Change;
use super::filter::{Cursor, Filter, Selection};
use super::letter::{DeadLetter, Group, Summary};
use crate::db::{DbError, Tx};

const LIST: &str = "
    SELECT id, tenant, consumer, event_type, source, event_id, subject, stage, reason, error_chain[1] AS error,
           left(md5(concat_ws('|', consumer, event_type, stage, reason)), 8) AS \"group\",
           state, attempts, replays, occurrences, first_failed_at, last_failed_at
      FROM onceflow.dead_letter
     WHERE ($1::text IS NULL OR consumer = $1) AND ($2::text IS NULL OR event_type = $2)
       AND ($3::text IS NULL OR tenant = $3) AND ($4::text IS NULL OR stage = $4)
       AND ($5::text IS NULL OR reason = $5) AND ($6::text IS NULL OR state = $6)
       AND ($7::text IS NULL OR left(md5(concat_ws('|', consumer, event_type, stage, reason)), 8) = $7)
       AND ($8::timestamptz IS NULL OR last_failed_at >= $8) AND ($9::timestamptz IS NULL OR last_failed_at < $9)
       AND ($10::text IS NULL OR $10 IN (event_id, subject, partition_key)
            OR position(lower($10) IN lower(array_to_string(error_chain, ' '))) > 0)
       AND ($11::timestamptz IS NULL OR last_failed_at < $11 OR (last_failed_at = $11 AND id > $12))
     ORDER BY last_failed_at DESC, id
     LIMIT $13";

const GROUPS: &str = "
    SELECT left(md5(concat_ws('|', consumer, event_type, stage, reason)), 8) AS id,
           consumer, event_type, stage, reason, count(*) AS count,
           min(first_failed_at) AS first_failed_at, max(last_failed_at) AS last_failed_at,
           (array_agg(error_chain[1] ORDER BY last_failed_at DESC))[1] AS example
      FROM onceflow.dead_letter
     WHERE ($1::text IS NULL OR consumer = $1) AND ($2::text IS NULL OR event_type = $2)
       AND ($3::text IS NULL OR tenant = $3) AND ($4::text IS NULL OR stage = $4)
       AND ($5::text IS NULL OR reason = $5) AND ($6::text IS NULL OR state = $6)
       AND ($7::text IS NULL OR left(md5(concat_ws('|', consumer, event_type, stage, reason)), 8) = $7)
       AND ($8::timestamptz IS NULL OR last_failed_at >= $8) AND ($9::timestamptz IS NULL OR last_failed_at < $9)
       AND ($10::text IS NULL OR $10 IN (event_id, subject, partition_key)
            OR position(lower($10) IN lower(array_to_string(error_chain, ' '))) > 0)
     GROUP BY consumer, event_type, stage, reason
     ORDER BY count DESC, consumer, event_type, stage, reason
     LIMIT 1000";

const SHOW: &str = "
    SELECT id, tenant, consumer, event_type, source, event_id, subject, stage, reason, error_chain[1] AS error,
           left(md5(concat_ws('|', consumer, event_type, stage, reason)), 8) AS \"group\",
           state, attempts, replays, occurrences, first_failed_at, last_failed_at,
           partition_key, error_chain, content_type, headers, payload, original_exchange, original_routing_key,
           consumer_version, replay_id, closed_at, closed_by, closed_reason
      FROM onceflow.dead_letter
     WHERE id = $1";

const COUNT: &str = "
    SELECT count(*) AS count
      FROM onceflow.dead_letter
     WHERE ($1::text IS NULL OR consumer = $1) AND ($2::text IS NULL OR event_type = $2)
       AND ($3::text IS NULL OR tenant = $3) AND ($4::text IS NULL OR stage = $4)
       AND ($5::text IS NULL OR reason = $5) AND ($6::text IS NULL OR state = $6)
       AND ($7::text IS NULL OR left(md5(concat_ws('|', consumer, event_type, stage, reason)), 8) = $7)
       AND ($8::timestamptz IS NULL OR last_failed_at >= $8) AND ($9::timestamptz IS NULL OR last_failed_at < $9)
       AND ($10::text IS NULL OR $10 IN (event_id, subject, partition_key)
            OR position(lower($10) IN lower(array_to_string(error_chain, ' '))) > 0)";

/// Oldest failure first: a key's dead letters go back in the order in which they failed.
const LOCK_BY_FILTER: &str = "
    SELECT id, consumer, state
      FROM onceflow.dead_letter
     WHERE ($1::text IS NULL OR consumer = $1) AND ($2::text IS NULL OR event_type = $2)
       AND ($3::text IS NULL OR tenant = $3) AND ($4::text IS NULL OR stage = $4)
       AND ($5::text IS NULL OR reason = $5) AND ($6::text IS NULL OR state = $6)
       AND ($7::text IS NULL OR left(md5(concat_ws('|', consumer, event_type, stage, reason)), 8) = $7)
       AND ($8::timestamptz IS NULL OR last_failed_at >= $8) AND ($9::timestamptz IS NULL OR last_failed_at < $9)
       AND ($10::text IS NULL OR $10 IN (event_id, subject, partition_key)
            OR position(lower($10) IN lower(array_to_string(error_chain, ' '))) > 0)
     ORDER BY first_failed_at, id
     LIMIT $11
       FOR UPDATE";

const LOCK_BY_ID: &str = "
    SELECT id, consumer, state
      FROM onceflow.dead_letter
     WHERE id = ANY ($1)
     ORDER BY first_failed_at, id
       FOR UPDATE";

/// The message as it was, but for the broker's own headers (a copied `x-death` makes the broker see a cycle) and the
/// counters of the attempts that failed: a replay starts afresh.
const SEND: &str = "
    INSERT INTO onceflow.outbox
           (id, tenant, aggregatetype, aggregateid, type, payload_raw, headers, partitionkey, exchange, routingkey)
    SELECT r.replay_id, d.tenant, 'dead_letter', d.id::text, d.event_type, d.payload,
           coalesce((SELECT jsonb_object_agg(h.key, h.value) FROM jsonb_each(d.headers) AS h
                      WHERE h.key NOT LIKE 'x-%'
                        AND h.key NOT IN ('onceflow-attempt', 'onceflow-first-failed-at', 'onceflow-error')), '{}')
           || jsonb_build_object('onceflow-replay-id', r.replay_id,
                                 'onceflow-original-exchange', d.original_exchange,
                                 'onceflow-original-routing-key', d.original_routing_key),
           coalesce(d.partition_key, d.subject, d.event_id), '', q.queue
      FROM unnest($1::uuid[], $2::uuid[]) WITH ORDINALITY AS r (id, replay_id, nth)
      JOIN onceflow.dead_letter AS d ON d.id = r.id
      JOIN unnest($3::text[], $4::text[]) AS q (consumer, queue) ON q.consumer = d.consumer
     ORDER BY r.nth";

const MARK_REPLAYING: &str = "
    UPDATE onceflow.dead_letter AS d
       SET state = 'replaying', replays = d.replays + 1, replay_id = r.replay_id
      FROM unnest($1::uuid[], $2::uuid[]) AS r (id, replay_id)
     WHERE d.id = r.id AND d.state = 'open'";

const MARK_DISCARDED: &str = "
    UPDATE onceflow.dead_letter
       SET state = 'discarded', closed_at = clock_timestamp(), closed_by = $2, closed_reason = $3
     WHERE id = ANY ($1) AND state = 'open'";

const STATES: &str = "SELECT state FROM onceflow.dead_letter WHERE id = ANY ($1)";

const AUDIT: &str = "
    INSERT INTO onceflow.audit (id, actor, action, subject, reason, detail) VALUES ($1, $2, $3, $4, $5, $6)";

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
    params.extend([&at as &(dyn ToSql + Sync), &id, &limit]);
    tx.query(LIST, &params).await?.iter().map(summary).collect()
}

pub(super) async fn groups(tx: &Tx, filter: &Filter) -> Result<Vec<Group>, DbError> {
    let state = filter.state_name();
    tx.query(GROUPS, &conditions(filter, &state)).await?.iter().map(group).collect()
}

pub(super) async fn show(tx: &Tx, id: Uuid) -> Result<Option<DeadLetter>, DbError> {
    tx.query_opt(SHOW, &[&id]).await?.as_ref().map(dead_letter).transpose()
}

pub(super) async fn count(tx: &Tx, filter: &Filter) -> Result<usize, DbError> {
    let state = filter.state_name();
    let count: i64 = column(&tx.query_one(COUNT, &conditions(filter, &state)).await?, "count")?;
    Ok(usize::try_from(count).unwrap_or(0))
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

/// Writes the outbox row of each replay, in this order.
pub(super) async fn send(
    tx: &Tx,
    ids: &[Uuid],
    replays: &[Uuid],
    queues: &BTreeMap<String, String>,
) -> Result<(), DbError> {
    let consumers: Vec<&str> = queues.keys().map(String::as_str).collect();
    let names: Vec<&str> = queues.values().map(String::as_str).collect();
    let written = tx.execute(SEND, &[&ids, &replays, &consumers, &names]).await?;
    all_of(written, ids, "outbox rows of replays")
}

pub(super) async fn mark_replaying(tx: &Tx, ids: &[Uuid], replays: &[Uuid]) -> Result<(), DbError> {
    let marked = tx.execute(MARK_REPLAYING, &[&ids, &replays]).await?;
    all_of(marked, ids, "dead letters marked as replaying")
}

pub(super) async fn mark_discarded(tx: &Tx, ids: &[Uuid], actor: &str, reason: Option<&str>) -> Result<(), DbError> {
    let marked = tx.execute(MARK_DISCARDED, &[&ids, &actor, &reason]).await?;
    all_of(marked, ids, "dead letters discarded")
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
    tx.execute(AUDIT, &[&Uuid::now_v7(), &change.actor, &action, &subject, &change.reason, &detail]).await?;
    Ok(())
}

/// Parameters $1 to $10 of every statement with a filter.
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
    ]
}

/// The rows are locked, so anything else than all of them is a mistake of ours and nothing may be committed.
fn all_of(touched: u64, ids: &[Uuid], what: &str) -> Result<(), DbError> {
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
    })
}

fn dead_letter(row: &Row) -> Result<DeadLetter, DbError> {
    let payload: Vec<u8> = column(row, "payload")?;
    let payload_bytes = payload.len();
    let (payload_text, payload_base64) = match String::from_utf8(payload) {
        Ok(text) => (Some(text), None),
        Err(e) => (None, Some(super::letter::base64(e.as_bytes()))),
    };
    Ok(DeadLetter {
        summary: summary(row)?,
        partition_key: column(row, "partition_key")?,
        error_chain: column(row, "error_chain")?,
        content_type: column(row, "content_type")?,
        headers: column(row, "headers")?,
        payload_bytes,
        payload_text,
        payload_base64,
        original_exchange: column(row, "original_exchange")?,
        original_routing_key: column(row, "original_routing_key")?,
        consumer_version: column(row, "consumer_version")?,
        replay_id: column(row, "replay_id")?,
        closed_at: column(row, "closed_at")?,
        closed_by: column(row, "closed_by")?,
        closed_reason: column(row, "closed_reason")?,
    })
}

fn group(row: &Row) -> Result<Group, DbError> {
    Ok(Group {
        id: column(row, "id")?,
        consumer: column(row, "consumer")?,
        event_type: column(row, "event_type")?,
        stage: column(row, "stage")?,
        reason_code: column(row, "reason")?,
        count: column(row, "count")?,
        first_failed_at: column(row, "first_failed_at")?,
        last_failed_at: column(row, "last_failed_at")?,
        example: column::<Option<String>>(row, "example")?.unwrap_or_default(),
    })
}

pub(super) fn column<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, name: &str) -> Result<T, DbError> {
    row.try_get(name).map_err(|e| DbError::shape(format!("{name}: {e}")))
}

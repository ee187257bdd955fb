//! SQL of the groups of `onceflow.dead_letter`, and of `onceflow.dead_letter_group`.

use tokio_postgres::Row;

use super::super::filter::{Filter, State};
use super::super::store::{column, conditions};
use super::{Group, LastReplay, Note, Noted};
use crate::db::{DbError, Tx};

/// Counted from an index alone where the filter allows; the rest is looked up for each group that is shown. Parameters as of every
/// statement with a filter. What was replayed is asked twice rather than kept: workers could not share it.
const GROUPS: &str = "
    WITH replayed AS NOT MATERIALIZED (
        SELECT replayed_group AS id, max(replayed_at) AS at
          FROM onceflow.dead_letter
         WHERE replayed_group IS NOT NULL
         GROUP BY replayed_group
    ), counted AS (
        SELECT onceflow.group_of(d.group_id, d.consumer, d.event_type, d.stage, d.reason) AS id,
               count(*) AS count, min(d.first_failed_at) AS first_failed_at, max(d.last_failed_at) AS last_failed_at,
               count(*) FILTER (WHERE d.last_failed_at > statement_timestamp() - interval '1 hour') AS last_hour,
               count(*) FILTER (WHERE d.last_failed_at > statement_timestamp() - interval '2 hours'
                                  AND d.last_failed_at <= statement_timestamp() - interval '1 hour') AS hour_before,
               count(*) FILTER (WHERE d.first_failed_at > r.at) AS new_since_replay
          FROM onceflow.dead_letter AS d
          LEFT JOIN replayed AS r
            ON r.id = onceflow.group_of(d.group_id, d.consumer, d.event_type, d.stage, d.reason)
         WHERE ($1::text IS NULL OR consumer = $1) AND ($2::text IS NULL OR event_type = $2)
           AND ($3::text IS NULL OR tenant = $3) AND ($4::text IS NULL OR stage = $4)
           AND ($5::text IS NULL OR reason = $5) AND ($6::text IS NULL OR state = $6)
           AND ($7::text IS NULL OR onceflow.group_of(group_id, consumer, event_type, stage, reason) = $7)
           AND ($8::timestamptz IS NULL OR last_failed_at >= $8) AND ($9::timestamptz IS NULL OR last_failed_at < $9)
           AND ($10::text IS NULL OR onceflow.says($10, ARRAY[$6], state, error_chain, event_id, subject, partition_key))
           AND ($11::text IS NULL OR partition_key = $11)
           AND ($12::integer IS NULL OR attempts >= $12) AND ($13::integer IS NULL OR replays >= $13)
         GROUP BY 1
         ORDER BY 2 DESC, 1
         LIMIT 1000
    )
    SELECT c.id, c.count, c.first_failed_at, c.last_failed_at, c.last_hour, c.hour_before, c.new_since_replay,
           newest.consumer, newest.event_type, newest.stage, newest.reason, newest.group_text, newest.example,
           r.at AS replayed_at, who.actor AS replayed_by,
           sent.succeeded, sent.failed_again, sent.failed_differently, sent.waiting, g.note, g.owner
      FROM counted AS c
     CROSS JOIN LATERAL (
        SELECT consumer, event_type, stage, reason, group_text, error_chain[1] AS example
          FROM onceflow.dead_letter
         WHERE state = ANY ($14::text[])
           AND onceflow.group_of(group_id, consumer, event_type, stage, reason) = c.id
           AND last_failed_at = c.last_failed_at
           AND ($3::text IS NULL OR tenant = $3) AND ($6::text IS NULL OR state = $6)
           AND ($10::text IS NULL OR onceflow.says($10, ARRAY[$6], state, error_chain, event_id, subject, partition_key))
           AND ($11::text IS NULL OR partition_key = $11)
           AND ($12::integer IS NULL OR attempts >= $12) AND ($13::integer IS NULL OR replays >= $13)
         ORDER BY id
         LIMIT 1) AS newest
      LEFT JOIN replayed AS r ON r.id = c.id
      LEFT JOIN LATERAL (
        SELECT count(*) FILTER (WHERE state = 'replayed') AS succeeded,
               count(*) FILTER (WHERE state = 'replaying') AS waiting,
               count(*) FILTER (WHERE state IN ('open', 'discarded', 'archived', 'edited') AND c.id =
                   onceflow.group_of(group_id, consumer, event_type, stage, reason)) AS failed_again,
               count(*) FILTER (WHERE state IN ('open', 'discarded', 'archived', 'edited') AND c.id <>
                   onceflow.group_of(group_id, consumer, event_type, stage, reason)) AS failed_differently,
               min(id::text) AS any_id
          FROM onceflow.dead_letter
         WHERE replayed_group = c.id AND replayed_at = r.at) AS sent ON true
      LEFT JOIN LATERAL (
        SELECT actor
          FROM onceflow.audit
         WHERE detail -> 'ids' ? sent.any_id AND at >= r.at AND action IN ('dlq.replay', 'job.replay')
         ORDER BY at
         LIMIT 1) AS who ON true
      LEFT JOIN onceflow.dead_letter_group AS g ON g.group_id = c.id
     ORDER BY c.count DESC, newest.consumer, newest.event_type, newest.stage, newest.reason, c.id";

const EXISTS: &str = "
    SELECT EXISTS (
        SELECT FROM onceflow.dead_letter
         WHERE state = ANY ($2::text[])
           AND onceflow.group_of(group_id, consumer, event_type, stage, reason) = $1) AS found";

/// So that two who speak first wait for each other.
const PREPARE: &str = "
    INSERT INTO onceflow.dead_letter_group (group_id, changed_by) VALUES ($1, $2) ON CONFLICT (group_id) DO NOTHING";

const LOCK: &str = "
    SELECT note, owner, changed_by, changed_at FROM onceflow.dead_letter_group WHERE group_id = $1 FOR UPDATE";

const CHANGE: &str = "
    UPDATE onceflow.dead_letter_group
       SET note = $2, owner = $3, changed_by = $4, changed_at = clock_timestamp()
     WHERE group_id = $1
    RETURNING note, owner, changed_by, changed_at";

pub(super) async fn groups(tx: &Tx, filter: &Filter) -> Result<Vec<Group>, DbError> {
    let state = filter.state_name();
    let states: &[&str] = &State::STORED;
    let mut params = conditions(filter, &state);
    params.push(&states);
    tx.query(GROUPS, &params).await?.iter().map(group).collect()
}

pub(super) async fn exists(tx: &Tx, group: &str) -> Result<bool, DbError> {
    let states: &[&str] = &State::STORED;
    column(&tx.query_one(EXISTS, &[&group, &states]).await?, "found")
}

pub(super) async fn prepare(tx: &Tx, group: &str, actor: &str) -> Result<(), DbError> {
    tx.execute(PREPARE, &[&group, &actor]).await.map(|_| ())
}

pub(super) async fn lock(tx: &Tx, group: &str) -> Result<Noted, DbError> {
    noted(group, &tx.query_one(LOCK, &[&group]).await?, false)
}

pub(super) async fn change(tx: &Tx, group: &str, after: &Note, actor: &str) -> Result<Noted, DbError> {
    noted(group, &tx.query_one(CHANGE, &[&group, &after.note, &after.owner, &actor]).await?, true)
}

fn noted(group: &str, row: &Row, changed: bool) -> Result<Noted, DbError> {
    Ok(Noted {
        group: group.to_owned(),
        note: column(row, "note")?,
        owner: column(row, "owner")?,
        changed_by: column(row, "changed_by")?,
        changed_at: column(row, "changed_at")?,
        changed,
    })
}

fn group(row: &Row) -> Result<Group, DbError> {
    let last_replay = last_replay(row)?;
    let new: i64 = column(row, "new_since_replay")?;
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
        text: column(row, "group_text")?,
        last_hour: column(row, "last_hour")?,
        hour_before: column(row, "hour_before")?,
        new_since_replay: last_replay.as_ref().map(|_| new),
        last_replay,
        note: column(row, "note")?,
        owner: column(row, "owner")?,
    })
}

fn last_replay(row: &Row) -> Result<Option<LastReplay>, DbError> {
    let Some(at) = column(row, "replayed_at")? else { return Ok(None) };
    Ok(Some(LastReplay {
        at,
        by: column(row, "replayed_by")?,
        succeeded: column(row, "succeeded")?,
        failed_again: column(row, "failed_again")?,
        failed_differently: column(row, "failed_differently")?,
        waiting: column(row, "waiting")?,
    }))
}

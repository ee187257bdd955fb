//! SQL of `onceflow.consumer_state`, of the operators' view of the outbox, and of the sampled totals.

use tokio_postgres::Row;
use uuid::Uuid;

use super::super::store::column;
use super::{ConsumerSwitch, DeadLetterTotals, HeldTotals, MAX_PARKED, OutboxTotals, Parked, Partition};
use crate::db::{DbError, Tx};

const SWITCHES: &str = "
    SELECT consumer, paused, changed_by, reason, changed_at FROM onceflow.consumer_state ORDER BY consumer";

/// A consumer that was never paused has no row: resuming it changes nothing.
const SET_PAUSED: &str = "
    INSERT INTO onceflow.consumer_state AS s (consumer, paused, changed_by, reason)
    SELECT $1, $2, $3, $4 WHERE $2 OR EXISTS (SELECT FROM onceflow.consumer_state WHERE consumer = $1)
    ON CONFLICT (consumer) DO UPDATE
       SET paused = excluded.paused, changed_by = excluded.changed_by, reason = excluded.reason,
           changed_at = clock_timestamp()
     WHERE s.paused <> excluded.paused";

const RELEASE: &str = "
    UPDATE onceflow.consumer_state SET paused = false, changed_by = $2, changed_at = clock_timestamp()
     WHERE consumer = $1 AND paused AND reason = $3";

const AUDIT: &str = "
    INSERT INTO onceflow.audit (id, actor, action, subject, reason, detail) VALUES ($1, $2, $3, $4, $5, $6)";

/// Only above the floors, and rows of other writers: below are those that were removed while somebody holds a transaction open.
const OUTBOX_TOTALS: &str = "
    WITH waiting AS (
        SELECT sum(w.rows)::bigint AS ours, min(w.oldest) AS oldest
          FROM onceflow.outbox_partition AS p
         CROSS JOIN LATERAL (SELECT count(*) AS rows, min(o.created_at) AS oldest FROM onceflow.outbox AS o
                              WHERE o.partition = p.partition AND o.seq > p.floor AND o.parked_at IS NULL) AS w
    ), late AS (
        SELECT sum(w.rows)::bigint AS theirs, min(w.oldest) AS oldest
          FROM onceflow.outbox_partition AS p
         CROSS JOIN LATERAL (SELECT count(*) AS rows, min(o.created_at) AS oldest FROM onceflow.outbox AS o
                              WHERE o.partition::int = p.partition AND o.writer IN (0, -1) AND o.seq + 0 <= p.floor
                                AND num_nulls(o.parked_at) = 1) AS w
    )
    SELECT coalesce(waiting.ours + late.theirs, 0) AS pending,
           (SELECT count(*) FROM onceflow.outbox WHERE parked_at IS NOT NULL) AS parked,
           extract(epoch FROM clock_timestamp() - least(waiting.oldest, late.oldest))::float8 AS oldest
      FROM waiting, late";

const PARTITIONS: &str = "
    SELECT p.partition, CASE WHEN p.expires_at > clock_timestamp() THEN p.holder END AS holder,
           p.epoch, b.confirmed, b.replayed,
           (SELECT count(*) FROM onceflow.outbox AS o
             WHERE o.partition = p.partition AND o.parked_at IS NULL) AS pending
      FROM onceflow.outbox_partition AS p
      JOIN onceflow.outbox_books AS b USING (partition)
     ORDER BY p.partition";

const PARKED: &str = "
    SELECT id, tenant, type, aggregateid, parked_reason, attempts, parked_at
      FROM onceflow.outbox
     WHERE parked_at IS NOT NULL
     ORDER BY parked_at, seq
     LIMIT $1";

/// With a number of its own time: below the old one the relay may not look any more.
const UNPARK: &str = "
    UPDATE onceflow.outbox SET parked_at = NULL, parked_reason = NULL, attempts = 0, seq = DEFAULT
     WHERE id = ANY ($1) AND parked_at IS NOT NULL";

/// An edited copy is all that is left of its event: it can only be tried again.
const DELETE_PARKED: &str = "
    DELETE FROM onceflow.outbox AS o
     WHERE o.id = ANY ($1) AND o.parked_at IS NOT NULL
       AND NOT EXISTS (SELECT FROM onceflow.dead_letter_edit AS e WHERE e.copy_event_id = o.id::text AND e.copy_tenant = o.tenant)
    RETURNING o.id";

/// A replay whose outbox row is dropped never reaches its consumer: its dead letter waits for someone again.
const REOPEN: &str = "
    UPDATE onceflow.dead_letter SET state = 'open' WHERE state = 'replaying' AND replay_id = ANY ($1)";

/// Groups first, from an index alone: counting distinct groups directly would sort all rows.
const DEAD_LETTER_TOTALS: &str = "
    SELECT consumer, sum(open)::bigint AS open, sum(replaying)::bigint AS replaying, sum(archived)::bigint AS archived,
           count(*) FILTER (WHERE open > 0) AS groups,
           extract(epoch FROM clock_timestamp() - min(oldest))::float8 AS oldest
      FROM (SELECT consumer, onceflow.group_of(group_id, consumer, event_type, stage, reason),
                   count(*) FILTER (WHERE state = 'open') AS open,
                   count(*) FILTER (WHERE state = 'replaying') AS replaying,
                   count(*) FILTER (WHERE state = 'archived') AS archived,
                   min(first_failed_at) FILTER (WHERE state = 'open') AS oldest
              FROM onceflow.dead_letter
             WHERE state IN ('open', 'replaying', 'archived')
             GROUP BY 1, 2) AS groups
     GROUP BY consumer";

const HELD_TOTALS: &str = "
    SELECT coalesce(h.consumer, b.consumer) AS consumer, coalesce(h.events, 0) AS events, coalesce(b.keys, 0) AS keys
      FROM (SELECT consumer, count(*) AS events FROM onceflow.held_event GROUP BY consumer) AS h
      FULL JOIN (SELECT consumer, count(*) AS keys FROM onceflow.blocked_key GROUP BY consumer) AS b
        ON b.consumer = h.consumer";

const INBOX_ESTIMATE: &str = "
    SELECT greatest(reltuples, 0)::float8 AS estimate FROM pg_class WHERE oid = 'onceflow.inbox'::regclass";

/// Looking never changes anything (I-9): the server itself refuses a write in such a transaction.
const READ_ONLY: &str = "SELECT set_config('transaction_read_only', 'on', true)";
/// A sample must not cost more as the tables grow, nor take several processors from the events.
const LIMIT_STATEMENTS: &str = "
    SELECT set_config('statement_timeout', '2s', true), set_config('max_parallel_workers_per_gather', '0', true),
           set_config('jit', 'off', true), set_config('enable_seqscan', 'off', true)";

pub(super) async fn switches(tx: &Tx) -> Result<Vec<ConsumerSwitch>, DbError> {
    let read = |row: &Row| {
        Ok(ConsumerSwitch {
            consumer: column(row, "consumer")?,
            paused: column(row, "paused")?,
            changed_by: column(row, "changed_by")?,
            reason: column(row, "reason")?,
            changed_at: column(row, "changed_at")?,
        })
    };
    tx.query(SWITCHES, &[]).await?.iter().map(read).collect()
}

pub(super) async fn set_paused(tx: &Tx, consumer: &str, paused: bool, by: (&str, &str)) -> Result<bool, DbError> {
    let (actor, reason) = by;
    Ok(tx.execute(SET_PAUSED, &[&consumer, &paused, &actor, &reason]).await? > 0)
}

pub(super) async fn release(tx: &Tx, consumer: &str, by: (&str, &str)) -> Result<bool, DbError> {
    let (actor, reason) = by;
    Ok(tx.execute(RELEASE, &[&consumer, &actor, &reason]).await? > 0)
}

/// `what` is actor, action and subject.
pub(super) async fn audit(
    tx: &Tx,
    what: (&str, &str, &str),
    reason: Option<&str>,
    detail: &serde_json::Value,
) -> Result<(), DbError> {
    let (actor, action, subject) = what;
    tx.execute(AUDIT, &[&Uuid::now_v7(), &actor, &action, &subject, &reason, detail]).await?;
    Ok(())
}

pub(super) async fn outbox_totals(tx: &Tx) -> Result<OutboxTotals, DbError> {
    let row = tx.query_one(OUTBOX_TOTALS, &[]).await?;
    Ok(OutboxTotals {
        pending: column(&row, "pending")?,
        oldest_pending_age_seconds: column(&row, "oldest")?,
        parked: column(&row, "parked")?,
    })
}

pub(super) async fn held_totals(tx: &Tx) -> Result<Vec<HeldTotals>, DbError> {
    let read = |row: &Row| {
        Ok(HeldTotals {
            consumer: column(row, "consumer")?,
            events: column(row, "events")?,
            keys: column(row, "keys")?,
        })
    };
    tx.query(HELD_TOTALS, &[]).await?.iter().map(read).collect()
}

pub(super) async fn partitions(tx: &Tx) -> Result<Vec<Partition>, DbError> {
    let read = |row: &Row| {
        Ok(Partition {
            partition: column(row, "partition")?,
            holder: column(row, "holder")?,
            epoch: column(row, "epoch")?,
            confirmed: column(row, "confirmed")?,
            replayed: column(row, "replayed")?,
            pending: column(row, "pending")?,
        })
    };
    tx.query(PARTITIONS, &[]).await?.iter().map(read).collect()
}

pub(super) async fn parked(tx: &Tx) -> Result<Vec<Parked>, DbError> {
    let limit = i64::try_from(MAX_PARKED).unwrap_or(i64::MAX);
    let read = |row: &Row| {
        Ok(Parked {
            id: column(row, "id")?,
            tenant: column(row, "tenant")?,
            event_type: column(row, "type")?,
            aggregate_id: column(row, "aggregateid")?,
            reason: column(row, "parked_reason")?,
            attempts: column(row, "attempts")?,
            parked_at: column(row, "parked_at")?,
        })
    };
    tx.query(PARKED, &[&limit]).await?.iter().map(read).collect()
}

pub(super) async fn unpark(tx: &Tx, ids: &[Uuid]) -> Result<u64, DbError> {
    tx.execute(UNPARK, &[&ids]).await
}

pub(super) async fn delete_parked(tx: &Tx, ids: &[Uuid]) -> Result<Vec<Uuid>, DbError> {
    tx.query(DELETE_PARKED, &[&ids]).await?.iter().map(|row| column(row, "id")).collect()
}

pub(super) async fn reopen(tx: &Tx, replays: &[Uuid]) -> Result<u64, DbError> {
    tx.execute(REOPEN, &[&replays]).await
}

pub(super) async fn dead_letter_totals(tx: &Tx) -> Result<Vec<DeadLetterTotals>, DbError> {
    let read = |row: &Row| {
        Ok(DeadLetterTotals {
            consumer: column(row, "consumer")?,
            open: column(row, "open")?,
            replaying: column(row, "replaying")?,
            archived: column(row, "archived")?,
            groups: column(row, "groups")?,
            oldest_age_seconds: column(row, "oldest")?,
        })
    };
    tx.query(DEAD_LETTER_TOTALS, &[]).await?.iter().map(read).collect()
}

pub(super) async fn inbox_estimate(tx: &Tx) -> Result<f64, DbError> {
    column(&tx.query_one(INBOX_ESTIMATE, &[]).await?, "estimate")
}

pub(super) async fn read_only(tx: &Tx) -> Result<(), DbError> {
    tx.query(READ_ONLY, &[]).await?;
    Ok(())
}

pub(super) async fn limit_statements(tx: &Tx) -> Result<(), DbError> {
    tx.query(LIMIT_STATEMENTS, &[]).await?;
    Ok(())
}

//! All SQL of `onceflow.outbox` on the relay's side.

use std::sync::Arc;

use tokio_postgres::Row;
use tokio_postgres::types::{Json, ToSql};
use uuid::Uuid;

use super::handover::{Handover, Ticket};
use super::lease::Grant;
use super::row::{OutboxRow, Pending, RowHeaders};
use super::sweep::Confirmed;
use crate::db::{Commit, DbError, Tx};

/// Tells where the rows went, and whether anybody else has rows in the partitions that our own relay publishes: those may
/// come before ours. `seq` rises with `n`.
const APPEND: &str = "
    WITH added AS (
        INSERT INTO onceflow.outbox
            (id, tenant, aggregatetype, aggregateid, type, payload, headers, partitionkey, created_at, writer)
        SELECT id, tenant, aggregatetype, aggregateid, type, payload::json, headers, partitionkey,
               statement_timestamp(), $9
        FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::jsonb[], $8::text[])
            WITH ORDINALITY AS r (id, tenant, aggregatetype, aggregateid, type, payload, headers, partitionkey, n)
        ORDER BY n
        RETURNING seq, partition
    )
    SELECT array_agg(seq ORDER BY seq), array_agg(partition ORDER BY seq), statement_timestamp(),
           EXISTS (SELECT FROM unnest($10::smallint[]) AS p (partition)
                   WHERE EXISTS (SELECT FROM onceflow.outbox o
                                 WHERE o.partition = p.partition AND o.writer < $9 AND o.parked_at IS NULL)
                      OR EXISTS (SELECT FROM onceflow.outbox o
                                 WHERE o.partition = p.partition AND o.writer > $9 AND o.parked_at IS NULL))
    FROM added";

/// By state, never by `seq > last seen`: numbers become visible out of order. Partition by partition, so that the index gives
/// the order whatever the backlog. A subplan over `known` is hashed, an array would be searched row by row before version 15.
///
/// CASE where OR would do: by OR the planner expects so few rows that it reads and sorts whole partitions (250 ms instead of 4
/// with 50,000 rows).
///
/// Each place brings rows up to a number and a size, at least one: first by the size as it is stored, which reads no row that
/// lies outside the table (TOAST), then by the real one, which compression hides.
const READY: &str = "
    SELECT o.id, o.tenant, o.aggregatetype, o.aggregateid, o.type, o.body, o.payload IS NOT NULL, o.headers,
           o.tenant || '/' || coalesce(o.partitionkey, o.aggregateid), o.exchange, o.routingkey,
           o.partition, o.created_at, o.seq, o.has_more
    FROM unnest($1::smallint[], $5::text[]) AS p (partition, key)
    CROSS JOIN LATERAL (
        SELECT b.*, sum(octet_length(b.body)) OVER (ORDER BY b.seq ROWS UNBOUNDED PRECEDING)
                    - octet_length(b.body) AS bytes_before
        FROM (
            SELECT s.*, coalesce(s.payload_raw, convert_to(s.payload::text, 'UTF8')) AS body
            FROM (
                SELECT r.*, lead(true, 1, false) OVER by_seq AS has_more,
                       sum(r.stored) OVER by_seq - r.stored AS stored_before
                FROM (
                    SELECT w.*, pg_column_size(w.headers)
                                + coalesce(pg_column_size(w.payload_raw), pg_column_size(w.payload)) AS stored
                    FROM onceflow.outbox w
                    WHERE w.partition = p.partition AND w.parked_at IS NULL
                      AND CASE WHEN p.key IS NULL THEN true
                               ELSE w.tenant || '/' || coalesce(w.partitionkey, w.aggregateid) = p.key END
                      AND NOT (w.tenant || '/' || coalesce(w.partitionkey, w.aggregateid) = ANY($3))
                      AND w.seq NOT IN (SELECT k FROM unnest($4::bigint[]) AS k)
                      AND w.seq <= coalesce($6::bigint, 9223372036854775807)
                    ORDER BY w.seq LIMIT $2
                ) r
                WINDOW by_seq AS (ORDER BY r.seq ROWS UNBOUNDED PRECEDING)
            ) s
            WHERE s.stored_before < $7
            OFFSET 0
        ) b
    ) o
    WHERE o.bytes_before < $7
    ORDER BY o.partition, o.seq";

/// Whether somebody other than the writer `$2` has rows to publish in the partitions.
const OTHERS_HAVE_ROWS: &str = "
    SELECT EXISTS (
        SELECT FROM unnest($1::smallint[]) AS p (partition)
        WHERE EXISTS (SELECT FROM onceflow.outbox o
                      WHERE o.partition = p.partition AND o.writer < $2 AND o.parked_at IS NULL)
           OR EXISTS (SELECT FROM onceflow.outbox o
                      WHERE o.partition = p.partition AND o.writer > $2 AND o.parked_at IS NULL))";

/// Not transactional: rows that others have not committed yet have their numbers too.
const LAST_SEQ: &str = "SELECT last_value FROM onceflow.outbox_seq_seq";

/// Deletes, counts and compares the epoch in one statement.
const REMOVE: &str = "
    WITH mine AS (
        SELECT p.partition FROM onceflow.outbox_partition p
        JOIN unnest($1::smallint[], $2::bigint[]) AS h (partition, epoch)
          ON h.partition = p.partition AND h.epoch = p.epoch
        WHERE p.holder = $5
        ORDER BY p.partition FOR UPDATE OF p
    ), gone AS (
        DELETE FROM onceflow.outbox o
        USING unnest($3::text[], $4::uuid[]) AS k (tenant, id)
        WHERE o.tenant = k.tenant AND o.id = k.id AND o.partition IN (SELECT partition FROM mine)
        RETURNING o.partition, o.exchange IS NULL AS downstream
    ), counted AS (
        UPDATE onceflow.outbox_partition p
        SET confirmed = p.confirmed + c.confirmed, replayed = p.replayed + c.replayed
        FROM (SELECT partition, count(*) FILTER (WHERE downstream) AS confirmed,
                     count(*) FILTER (WHERE NOT downstream) AS replayed
              FROM gone GROUP BY partition) c
        WHERE p.partition = c.partition
    )
    SELECT count(*) FROM gone";

/// A parked row is nobody's: whoever frees it hands it over to no relay.
const PARK: &str = "
    UPDATE onceflow.outbox o
    SET writer = 0, parked_at = clock_timestamp(), parked_reason = k.reason, attempts = o.attempts + 1
    FROM unnest($1::text[], $2::uuid[], $3::text[]) AS k (tenant, id, reason)
    WHERE o.tenant = k.tenant AND o.id = k.id AND o.parked_at IS NULL";

/// Writes rows as the last statement of `tx`, in order, commits it, and hands the rows to the relay of this process.
pub async fn append_and_commit(tx: Tx, rows: Vec<OutboxRow>, handover: &Handover) -> Commit {
    if rows.is_empty() {
        return tx.commit().await;
    }
    // With the locks that order the rows of a key held, and before the commit frees them.
    let ticket = handover.ticket();
    let (commit, answer) = {
        let ids: Vec<_> = rows.iter().map(|r| r.id).collect();
        let tenants: Vec<_> = rows.iter().map(|r| r.tenant.as_str()).collect();
        let kinds: Vec<_> = rows.iter().map(|r| r.aggregate_type.as_str()).collect();
        let aggregates: Vec<_> = rows.iter().map(|r| r.aggregate_id.as_str()).collect();
        let types: Vec<_> = rows.iter().map(|r| r.event_type.as_str()).collect();
        let payloads: Vec<_> = rows.iter().map(|r| r.payload.as_str()).collect();
        let headers: Vec<_> = rows.iter().map(|r| Json(&r.headers)).collect();
        let keys: Vec<_> = rows.iter().map(|r| r.partition_key.as_deref()).collect();
        let params: [&(dyn ToSql + Sync); 10] = [
            &ids,
            &tenants,
            &kinds,
            &aggregates,
            &types,
            &payloads,
            &headers,
            &keys,
            &handover.writer(),
            &ticket.held(),
        ];
        tx.query_and_commit(APPEND, &params).await
    };
    match commit {
        Commit::Committed => hand_over(ticket, rows, answer.first()),
        Commit::RolledBack(_) => drop(ticket),
        Commit::Unknown(_) => ticket.unknown(),
    }
    commit
}

fn hand_over(ticket: Ticket, rows: Vec<OutboxRow>, answer: Option<&Row>) {
    let Some(answer) = answer else { return ticket.unknown() };
    let seqs: Vec<i64> = answer.get(0);
    let partitions: Vec<i16> = answer.get(1);
    let created_at = answer.get(2);
    let places = seqs.into_iter().zip(partitions);
    let pending = rows.into_iter().zip(places).map(|(row, place)| Pending::committed(row, place, created_at)).collect();
    ticket.committed(pending, answer.get(3));
}

/// A partition, and either one of its keys or all.
pub(super) type Place = (i16, Option<Arc<str>>);

/// What a look at the table is to bring.
pub(super) struct Look<'a> {
    /// Where.
    pub(super) places: &'a [Place],
    /// Only rows with numbers up to this one.
    pub(super) until: Option<i64>,
    /// Most rows of each place.
    pub(super) limit: usize,
    /// Most bytes of their bodies, one row aside.
    pub(super) bytes: usize,
    /// Keys to leave out.
    pub(super) without_keys: &'a [&'a str],
    /// Rows that are known already.
    pub(super) known: &'a [i64],
}

/// What a look at the table has brought.
pub(super) struct Found {
    pub(super) rows: Vec<Pending>,
    /// Nothing else is there.
    pub(super) everything: bool,
}

/// The next rows of some places.
pub(super) async fn ready(tx: &Tx, look: Look<'_>) -> Result<Found, DbError> {
    let partitions: Vec<i16> = look.places.iter().map(|(partition, _)| *partition).collect();
    let keys: Vec<Option<&str>> = look.places.iter().map(|(_, key)| key.as_deref()).collect();
    let whole = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let (limit, bytes) = (whole(look.limit), whole(look.bytes));
    let Look { without_keys, known, until, .. } = &look;
    let params: [&(dyn ToSql + Sync); 7] = [&partitions, &limit, without_keys, known, &keys, until, &bytes];
    let rows = tx.query(READY, &params).await?;
    let of_places = rows.chunk_by(|a, b| a.get::<_, i16>(11) == b.get::<_, i16>(11));
    let is_cut = |place: &[Row]| place.len() >= look.limit || place.last().is_some_and(|row| row.get(14));
    let everything = !of_places.into_iter().any(is_cut);
    let pending = |row: Row| Pending {
        id: row.get(0),
        tenant: row.get(1),
        aggregate_type: row.get(2),
        aggregate_id: row.get(3),
        event_type: row.get(4),
        body: row.get::<_, Vec<u8>>(5).into(),
        is_json: row.get(6),
        headers: RowHeaders::Stored(row.get(7)),
        key: row.get::<_, &str>(8).into(),
        exchange: row.get(9),
        routing_key: row.get(10),
        partition: row.get(11),
        created_at: row.get(12),
        seq: row.get(13),
    };
    Ok(Found { rows: rows.into_iter().map(pending).collect(), everything })
}

/// Whether others have rows to publish in some partitions.
pub(super) async fn others_have_rows(tx: &Tx, partitions: &[i16], writer: i64) -> Result<bool, DbError> {
    Ok(tx.query_one(OTHERS_HAVE_ROWS, &[&partitions, &writer]).await?.get(0))
}

/// The greatest number that any row has so far.
pub(super) async fn last_seq(tx: &Tx) -> Result<i64, DbError> {
    Ok(tx.query_one(LAST_SEQ, &[]).await?.get(0))
}

/// Removes confirmed rows of partitions that are still ours; returns how many.
pub(super) async fn remove(tx: &Tx, grant: &Grant, rows: &[Confirmed]) -> Result<i64, DbError> {
    let tenants: Vec<_> = rows.iter().map(|row| row.tenant.as_str()).collect();
    let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
    let (partitions, epochs): (Vec<_>, Vec<_>) = grant.held.iter().copied().unzip();
    let row = tx.query_one(REMOVE, &[&partitions, &epochs, &tenants, &ids, &grant.holder]).await?;
    Ok(row.get(0))
}

/// Puts rows aside with the reason; they stay until somebody retries or discards them.
pub(super) async fn park(tx: &Tx, rows: &[(String, Uuid, String)]) -> Result<(), DbError> {
    let tenants: Vec<_> = rows.iter().map(|(tenant, ..)| tenant.as_str()).collect();
    let ids: Vec<_> = rows.iter().map(|(_, id, _)| *id).collect();
    let reasons: Vec<_> = rows.iter().map(|(.., reason)| reason.as_str()).collect();
    tx.execute(PARK, &[&tenants, &ids, &reasons]).await.map(|_| ())
}

//! All SQL of `onceflow.outbox` on the relay's side.

use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::lease::Held;
use super::row::{OutboxRow, Pending};
use crate::db::{DbError, Tx};

const APPEND: &str = "
    INSERT INTO onceflow.outbox (id, tenant, aggregatetype, aggregateid, type, payload, headers, partitionkey)
    SELECT id, tenant, aggregatetype, aggregateid, type, payload::json, headers, partitionkey
    FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::jsonb[], $8::text[])
        WITH ORDINALITY AS r (id, tenant, aggregatetype, aggregateid, type, payload, headers, partitionkey, n)
    ORDER BY n";

/// By state, never by `seq > last seen`: numbers become visible out of order. Partition by partition, so that the index gives
/// the order whatever the backlog.
const READY: &str = "
    SELECT o.id, o.tenant, o.aggregatetype, o.aggregateid, o.type,
           coalesce(o.payload_raw, convert_to(o.payload::text, 'UTF8')), o.payload IS NOT NULL, o.headers,
           o.tenant || '/' || coalesce(o.partitionkey, o.aggregateid), o.exchange, o.routingkey,
           o.partition, o.created_at
    FROM unnest($1::smallint[]) AS p (partition)
    CROSS JOIN LATERAL (
        SELECT * FROM onceflow.outbox w
        WHERE w.partition = p.partition AND w.parked_at IS NULL
          AND NOT (w.tenant || '/' || coalesce(w.partitionkey, w.aggregateid) = ANY($3))
        ORDER BY w.seq LIMIT $2
    ) o
    ORDER BY o.partition, o.seq";

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

const PARK: &str = "
    UPDATE onceflow.outbox o
    SET parked_at = clock_timestamp(), parked_reason = k.reason, attempts = o.attempts + 1
    FROM unnest($1::text[], $2::uuid[], $3::text[]) AS k (tenant, id, reason)
    WHERE o.tenant = k.tenant AND o.id = k.id AND o.parked_at IS NULL";

/// Adds rows to the running transaction, in order.
///
/// # Errors
/// As any statement of the transaction.
pub async fn append(tx: &Tx, rows: &[OutboxRow]) -> Result<(), DbError> {
    if rows.is_empty() {
        return Ok(());
    }
    let ids: Vec<_> = rows.iter().map(|r| r.id).collect();
    let tenants: Vec<_> = rows.iter().map(|r| r.tenant.as_str()).collect();
    let kinds: Vec<_> = rows.iter().map(|r| r.aggregate_type.as_str()).collect();
    let aggregates: Vec<_> = rows.iter().map(|r| r.aggregate_id.as_str()).collect();
    let types: Vec<_> = rows.iter().map(|r| r.event_type.as_str()).collect();
    let payloads: Vec<_> = rows.iter().map(|r| r.payload.as_str()).collect();
    let headers: Vec<_> = rows.iter().map(|r| &r.headers).collect();
    let keys: Vec<_> = rows.iter().map(|r| r.partition_key.as_deref()).collect();
    let params: [&(dyn ToSql + Sync); 8] = [&ids, &tenants, &kinds, &aggregates, &types, &payloads, &headers, &keys];
    tx.execute(APPEND, &params).await.map(|_| ())
}

/// The next rows of the held partitions, at most `limit` of each, without those of `blocked` keys.
pub(super) async fn ready(tx: &Tx, held: &Held, limit: i64, blocked: &[String]) -> Result<Vec<Pending>, DbError> {
    let rows = tx.query(READY, &[&held.partitions(), &limit, &blocked]).await?;
    let pending = |row: tokio_postgres::Row| Pending {
        id: row.get(0),
        tenant: row.get(1),
        aggregate_type: row.get(2),
        aggregate_id: row.get(3),
        event_type: row.get(4),
        body: row.get(5),
        is_json: row.get(6),
        headers: row.get(7),
        key: row.get(8),
        exchange: row.get(9),
        routing_key: row.get(10),
        partition: row.get(11),
        created_at: row.get(12),
    };
    Ok(rows.into_iter().map(pending).collect())
}

/// Removes confirmed rows of partitions that are still ours; returns how many.
pub(super) async fn remove(tx: &Tx, held: &Held, rows: &[(String, Uuid)]) -> Result<i64, DbError> {
    let (tenants, ids): (Vec<_>, Vec<_>) = rows.iter().map(|(tenant, id)| (tenant.as_str(), *id)).unzip();
    let row = tx.query_one(REMOVE, &[&held.partitions(), &held.epochs(), &tenants, &ids, &held.holder()]).await?;
    Ok(row.get(0))
}

/// Puts rows aside with the reason; they stay until somebody retries or discards them.
pub(super) async fn park(tx: &Tx, rows: &[(String, Uuid, String)]) -> Result<(), DbError> {
    let tenants: Vec<_> = rows.iter().map(|(tenant, ..)| tenant.as_str()).collect();
    let ids: Vec<_> = rows.iter().map(|(_, id, _)| *id).collect();
    let reasons: Vec<_> = rows.iter().map(|(.., reason)| reason.as_str()).collect();
    tx.execute(PARK, &[&tenants, &ids, &reasons]).await.map(|_| ())
}

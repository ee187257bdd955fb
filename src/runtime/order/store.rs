//! All SQL of `onceflow.blocked_key` and `onceflow.held_event`, with the outbox rows of what leaves a line.
//!
//! Statements that read a line run after the one that locks its key: they have a snapshot of their own and see what the last
//! holder of the lock has committed.

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::line::{Head, Identity, Line, Looked, Waiting};
use crate::db::{DbError, Tx};
use crate::event::Envelope;

const LOOK: &str = "
    SELECT i.n, b.source = i.source AND b.event_id = i.event_id
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
        WITH ORDINALITY AS i (tenant, partition_key, source, event_id, n)
    JOIN onceflow.blocked_key b
      ON b.tenant = i.tenant AND b.consumer = $5 AND b.partition_key = i.partition_key";

/// An event that is dealt with blocks nothing: a late copy of it must not leave a key blocked for ever.
const BLOCK: &str = "
    INSERT INTO onceflow.blocked_key (tenant, consumer, partition_key, source, event_id, queue)
    SELECT $1, $2, $3, $4, $5, $6
    WHERE NOT EXISTS (SELECT FROM onceflow.inbox
                      WHERE tenant = $1 AND consumer = $2 AND source = $4 AND event_id = $5)
    ON CONFLICT (tenant, consumer, partition_key) DO NOTHING";

/// In key order, as everybody locks them.
const LOCK: &str = "
    SELECT b.tenant FROM onceflow.blocked_key b
    WHERE b.consumer = $3 AND (b.tenant, b.partition_key) IN (SELECT t, k FROM unnest($1::text[], $2::text[]) AS i (t, k))
    ORDER BY b.tenant, b.consumer, b.partition_key
    FOR UPDATE";

const COPIES: &str = "
    SELECT i.n
    FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS i (tenant, source, event_id, n)
    JOIN onceflow.inbox b
      ON b.tenant = i.tenant AND b.consumer = $4 AND b.source = i.source AND b.event_id = i.event_id";

const LOCK_HEADS: &str = "
    SELECT b.tenant, b.consumer, b.partition_key
    FROM onceflow.blocked_key b
    JOIN unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
        AS i (tenant, consumer, partition_key, source, event_id)
      ON b.tenant = i.tenant AND b.consumer = i.consumer AND b.partition_key = i.partition_key
     AND b.source = i.source AND b.event_id = i.event_id
    ORDER BY b.tenant, b.consumer, b.partition_key
    FOR UPDATE OF b";

const LOCK_CLOSED: &str = "
    SELECT b.tenant, b.consumer, b.partition_key
    FROM onceflow.blocked_key b
    JOIN onceflow.dead_letter d
      ON d.tenant = b.tenant AND d.consumer = b.consumer AND d.partition_key = b.partition_key
     AND d.source = b.source AND d.event_id = b.event_id
    WHERE d.id = ANY ($1)
    ORDER BY b.tenant, b.consumer, b.partition_key
    FOR UPDATE OF b";

/// Not yet sent from the line: an outbox row of its own carries the copy.
const REPLACE: &str = "
    UPDATE onceflow.blocked_key
    SET event_id = $5, sent_id = NULL, since = clock_timestamp()
    WHERE tenant = $1 AND consumer = $2 AND source = $3 AND event_id = $4";

const LOCK_SENT: &str = "
    SELECT tenant, consumer, partition_key FROM onceflow.blocked_key
    WHERE sent_id = ANY ($1)
    ORDER BY tenant, consumer, partition_key
    FOR UPDATE";

/// Heads that were dealt with without their line being told.
const LOCK_ORPHANS: &str = "
    SELECT b.tenant, b.consumer, b.partition_key
    FROM onceflow.blocked_key b
    WHERE b.consumer = $1
      AND (EXISTS (SELECT FROM onceflow.inbox i
                   WHERE i.tenant = b.tenant AND i.consumer = b.consumer AND i.source = b.source AND i.event_id = b.event_id)
           OR EXISTS (SELECT FROM onceflow.dead_letter d
                      WHERE d.tenant = b.tenant AND d.consumer = b.consumer AND d.source = b.source
                        AND d.event_id = b.event_id AND d.state IN ('discarded', 'archived') AND d.closed_at > b.since)
              AND NOT EXISTS (SELECT FROM onceflow.dead_letter d
                              WHERE d.tenant = b.tenant AND d.consumer = b.consumer AND d.source = b.source
                                AND d.event_id = b.event_id AND d.state IN ('open', 'replaying')))
    ORDER BY b.tenant, b.consumer, b.partition_key LIMIT $2
    FOR UPDATE OF b SKIP LOCKED";

const LOCK_SOME: &str = "
    SELECT tenant, consumer, partition_key FROM onceflow.blocked_key
    WHERE consumer = $1
    ORDER BY tenant, consumer, partition_key LIMIT $2
    FOR UPDATE SKIP LOCKED";

/// The first of each line becomes its head, and is sent unless its message goes round outside; a line without anybody ends.
const MOVE_ON: &str = "
    WITH line AS MATERIALIZED (
        SELECT b.tenant, b.consumer, b.partition_key, b.queue, gen_random_uuid() AS sent_id,
               n.source, n.event_id, n.event_type, n.payload, n.headers
        FROM unnest($1::text[], $2::text[], $3::text[]) AS i (tenant, consumer, partition_key)
        JOIN onceflow.blocked_key b USING (tenant, consumer, partition_key)
        LEFT JOIN LATERAL (
            SELECT h.source, h.event_id, h.event_type, h.payload, h.headers
            FROM onceflow.held_event h
            WHERE h.tenant = b.tenant AND h.consumer = b.consumer AND h.partition_key = b.partition_key
            ORDER BY h.seq LIMIT 1) n ON true
    ), ended AS (
        DELETE FROM onceflow.blocked_key b USING line l
        WHERE b.tenant = l.tenant AND b.consumer = l.consumer AND b.partition_key = l.partition_key
          AND l.event_id IS NULL
    ), moved AS (
        UPDATE onceflow.blocked_key b
        SET source = l.source, event_id = l.event_id, since = clock_timestamp(),
            sent_id = CASE WHEN l.payload IS NOT NULL THEN l.sent_id END
        FROM line l
        WHERE b.tenant = l.tenant AND b.consumer = l.consumer AND b.partition_key = l.partition_key
          AND l.event_id IS NOT NULL
    ), taken AS (
        DELETE FROM onceflow.held_event h USING line l
        WHERE h.tenant = l.tenant AND h.consumer = l.consumer AND h.source = l.source AND h.event_id = l.event_id
    )
    INSERT INTO onceflow.outbox
        (id, tenant, aggregatetype, aggregateid, type, payload_raw, headers, partitionkey, exchange, routingkey)
    SELECT sent_id, tenant, 'held_event', event_id, event_type, payload, headers, partition_key, '', queue
    FROM line WHERE payload IS NOT NULL";

/// Whole lines at once: nobody waits for anybody any more.
const LET_GO: &str = "
    WITH line AS MATERIALIZED (
        SELECT b.tenant, b.consumer, b.partition_key, b.queue
        FROM unnest($1::text[], $2::text[], $3::text[]) AS i (tenant, consumer, partition_key)
        JOIN onceflow.blocked_key b USING (tenant, consumer, partition_key)
    ), ended AS (
        DELETE FROM onceflow.blocked_key b USING line l
        WHERE b.tenant = l.tenant AND b.consumer = l.consumer AND b.partition_key = l.partition_key
    ), taken AS (
        DELETE FROM onceflow.held_event h USING line l
        WHERE h.tenant = l.tenant AND h.consumer = l.consumer AND h.partition_key = l.partition_key
        RETURNING h.tenant, h.event_id, h.event_type, h.payload, h.headers, h.partition_key, h.seq, l.queue
    )
    INSERT INTO onceflow.outbox
        (id, tenant, aggregatetype, aggregateid, type, payload_raw, headers, partitionkey, exchange, routingkey)
    SELECT gen_random_uuid(), tenant, 'held_event', event_id, event_type, payload, headers, partition_key, '', queue
    FROM taken WHERE payload IS NOT NULL ORDER BY seq";

/// Places in the order of `n`; a copy has its place already.
const PLACE: &str = "
    INSERT INTO onceflow.held_event (tenant, consumer, partition_key, source, event_id, event_type)
    SELECT tenant, $6, partition_key, source, event_id, event_type
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
        WITH ORDINALITY AS i (tenant, partition_key, source, event_id, event_type, n)
    ORDER BY n
    ON CONFLICT (tenant, consumer, source, event_id) DO NOTHING";

/// Keeps messages as long as there is room, of the key exactly and of the consumer about: other keys are not locked.
const FILL: &str = "
    WITH incoming AS MATERIALIZED (
        SELECT i.*, row_number() OVER (PARTITION BY i.tenant, i.partition_key ORDER BY i.n) AS nth_of_key,
               row_number() OVER (ORDER BY i.n) AS nth_of_all
        FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::jsonb[])
            WITH ORDINALITY AS i (tenant, partition_key, source, event_id, payload, headers, n)
        JOIN onceflow.held_event h
          ON h.tenant = i.tenant AND h.consumer = $7 AND h.source = i.source AND h.event_id = i.event_id
        WHERE h.payload IS NULL
    ), stored AS MATERIALIZED (
        SELECT k.tenant, k.partition_key,
               (SELECT count(*) FROM onceflow.held_event h
                WHERE h.tenant = k.tenant AND h.consumer = $7 AND h.partition_key = k.partition_key
                  AND h.payload IS NOT NULL) AS of_key
        FROM (SELECT DISTINCT tenant, partition_key FROM incoming) k
    )
    UPDATE onceflow.held_event h
    SET payload = i.payload, headers = i.headers
    FROM incoming i JOIN stored s USING (tenant, partition_key)
    WHERE h.tenant = i.tenant AND h.consumer = $7 AND h.source = i.source AND h.event_id = i.event_id
      AND s.of_key + i.nth_of_key <= $8
      AND (SELECT count(*) FROM onceflow.held_event a WHERE a.consumer = $7 AND a.payload IS NOT NULL)
          + i.nth_of_all <= $9";

const CIRCLING: &str = "
    SELECT i.n
    FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS i (tenant, source, event_id, n)
    JOIN onceflow.held_event h
      ON h.tenant = i.tenant AND h.consumer = $4 AND h.source = i.source AND h.event_id = i.event_id
    WHERE h.payload IS NULL";

/// Keys that are locked: tenants, consumers, partition keys.
pub(super) type Keys = (Vec<String>, Vec<String>, Vec<String>);

/// How each event stands to its key.
pub(super) async fn look(tx: &Tx, consumer: &str, events: &[&Envelope]) -> Result<Vec<Looked>, DbError> {
    let column = |f: fn(&Envelope) -> &str| events.iter().map(|e| f(e)).collect::<Vec<_>>();
    let (tenants, keys) = (column(|e| &e.tenant), column(|e| &e.partition_key));
    let (sources, ids) = (column(|e| &e.source), column(|e| &e.id));
    let rows = tx.query(LOOK, &[&tenants, &keys, &sources, &ids, &consumer]).await?;
    let mut looked = vec![Looked::Free; events.len()];
    for row in &rows {
        let place = looked.get_mut(ordinal(row)?).ok_or_else(|| DbError::shape("an ordinal beyond the batch"))?;
        *place = if row.get(1) { Looked::Head } else { Looked::Blocked };
    }
    Ok(looked)
}

/// Marks copies of what was dealt with as free.
pub(super) async fn free_copies(
    tx: &Tx,
    consumer: &str,
    events: &[&Envelope],
    looked: &mut [Looked],
) -> Result<(), DbError> {
    let tenants: Vec<_> = events.iter().map(|e| e.tenant.as_str()).collect();
    let sources: Vec<_> = events.iter().map(|e| e.source.as_str()).collect();
    let ids: Vec<_> = events.iter().map(|e| e.id.as_str()).collect();
    for row in tx.query(COPIES, &[&tenants, &sources, &ids, &consumer]).await? {
        if let Some(place) = looked.get_mut(ordinal(&row)?) {
            *place = Looked::Free;
        }
    }
    Ok(())
}

fn ordinal(row: &Row) -> Result<usize, DbError> {
    let n: i64 = row.get(0);
    usize::try_from(n - 1).map_err(|_| DbError::shape("an ordinal below one"))
}

/// Blocks a key that is free.
pub(super) async fn block(tx: &Tx, head: &Head<'_>, queue: &str) -> Result<(), DbError> {
    let Head { tenant, consumer, partition_key, source, event_id } = head;
    tx.execute(BLOCK, &[tenant, consumer, partition_key, source, event_id, &queue]).await.map(|_| ())
}

/// Locks the keys of these events, those that are blocked.
pub(super) async fn lock(tx: &Tx, consumer: &str, events: &[&Envelope]) -> Result<(), DbError> {
    let tenants: Vec<_> = events.iter().map(|e| e.tenant.as_str()).collect();
    let keys: Vec<_> = events.iter().map(|e| e.partition_key.as_str()).collect();
    tx.query(LOCK, &[&tenants, &keys, &consumer]).await.map(|_| ())
}

/// Locks the keys that these events still block.
pub(super) async fn lock_heads(tx: &Tx, heads: &[Head<'_>]) -> Result<Keys, DbError> {
    let tenants: Vec<_> = heads.iter().map(|h| h.tenant).collect();
    let consumers: Vec<_> = heads.iter().map(|h| h.consumer).collect();
    let keys: Vec<_> = heads.iter().map(|h| h.partition_key).collect();
    let sources: Vec<_> = heads.iter().map(|h| h.source).collect();
    let ids: Vec<_> = heads.iter().map(|h| h.event_id).collect();
    locked(&tx.query(LOCK_HEADS, &[&tenants, &consumers, &keys, &sources, &ids]).await?)
}

/// Locks the keys that these dead letters block.
pub(super) async fn replace(tx: &Tx, original: Identity<'_>, copy: &str) -> Result<(), DbError> {
    let Identity { tenant, consumer, source, event_id } = original;
    tx.execute(REPLACE, &[&tenant, &consumer, &source, &event_id, &copy]).await.map(|_| ())
}

pub(super) async fn lock_closed(tx: &Tx, dead_letters: &[Uuid]) -> Result<Keys, DbError> {
    locked(&tx.query(LOCK_CLOSED, &[&dead_letters]).await?)
}

/// Locks the keys whose heads were sent with these outbox rows.
pub(super) async fn lock_sent(tx: &Tx, rows: &[Uuid]) -> Result<Keys, DbError> {
    locked(&tx.query(LOCK_SENT, &[&rows]).await?)
}

/// Locks some keys whose heads are dealt with.
pub(super) async fn lock_orphans(tx: &Tx, consumer: &str, most: i64) -> Result<Keys, DbError> {
    locked(&tx.query(LOCK_ORPHANS, &[&consumer, &most]).await?)
}

/// Locks some blocked keys.
pub(super) async fn lock_some(tx: &Tx, consumer: &str, most: i64) -> Result<Keys, DbError> {
    locked(&tx.query(LOCK_SOME, &[&consumer, &most]).await?)
}

fn locked(rows: &[Row]) -> Result<Keys, DbError> {
    let column = |n: usize| -> Vec<String> { rows.iter().map(|row| row.get(n)).collect() };
    Ok((column(0), column(1), column(2)))
}

/// The heads of these locked keys are done with.
pub(super) async fn move_on(tx: &Tx, keys: Keys) -> Result<(), DbError> {
    change(tx, MOVE_ON, keys).await
}

/// Nobody waits in these locked keys any more.
pub(super) async fn let_go(tx: &Tx, keys: Keys) -> Result<(), DbError> {
    change(tx, LET_GO, keys).await
}

async fn change(tx: &Tx, statement: &'static str, (tenants, consumers, keys): Keys) -> Result<(), DbError> {
    if keys.is_empty() {
        return Ok(());
    }
    tx.execute(statement, &[&tenants, &consumers, &keys]).await.map(|_| ())
}

/// Gives each event a place in its line.
pub(super) async fn place(tx: &Tx, consumer: &str, events: &[Waiting<'_>]) -> Result<(), DbError> {
    let column = |f: fn(&Envelope) -> &str| events.iter().map(|e| f(e.envelope)).collect::<Vec<_>>();
    let (tenants, keys) = (column(|e| &e.tenant), column(|e| &e.partition_key));
    let (sources, ids, types) = (column(|e| &e.source), column(|e| &e.id), column(|e| &e.event_type));
    tx.execute(PLACE, &[&tenants, &keys, &sources, &ids, &types, &consumer]).await.map(|_| ())
}

/// Keeps the messages of events that have a place, as far as there is room.
pub(super) async fn fill(tx: &Tx, line: &Line, events: &[Waiting<'_>]) -> Result<(), DbError> {
    let column = |f: fn(&Envelope) -> &str| events.iter().map(|e| f(e.envelope)).collect::<Vec<_>>();
    let (tenants, keys) = (column(|e| &e.tenant), column(|e| &e.partition_key));
    let (sources, ids) = (column(|e| &e.source), column(|e| &e.id));
    let payloads: Vec<&[u8]> = events.iter().map(|e| e.message.body.as_ref()).collect();
    let headers: Vec<_> = events.iter().map(Waiting::headers).collect();
    let params: [&(dyn ToSql + Sync); 9] =
        [&tenants, &keys, &sources, &ids, &payloads, &headers, &line.consumer, &line.of_key, &line.of_all];
    tx.execute(FILL, &params).await.map(|_| ())
}

/// Which of these have a place, but no room.
pub(super) async fn circling(tx: &Tx, consumer: &str, events: &[Waiting<'_>]) -> Result<Vec<bool>, DbError> {
    let tenants: Vec<_> = events.iter().map(|e| e.envelope.tenant.as_str()).collect();
    let sources: Vec<_> = events.iter().map(|e| e.envelope.source.as_str()).collect();
    let ids: Vec<_> = events.iter().map(|e| e.envelope.id.as_str()).collect();
    let mut circling = vec![false; events.len()];
    for row in tx.query(CIRCLING, &[&tenants, &sources, &ids, &consumer]).await? {
        if let Some(place) = circling.get_mut(ordinal(&row)?) {
            *place = true;
        }
    }
    Ok(circling)
}

//! All SQL of the relay's leases.

use tokio_postgres::types::ToSql;

use super::TTL;
use crate::db::{DbError, Tx};

/// The count sees the rows before this statement: ours is added by hand.
const ANNOUNCE: &str = "
    WITH me AS (
        INSERT INTO onceflow.outbox_relay (holder, seen_at) VALUES ($1, clock_timestamp())
        ON CONFLICT (holder) DO UPDATE SET seen_at = clock_timestamp()
    ), long_gone AS (
        DELETE FROM onceflow.outbox_relay WHERE seen_at < clock_timestamp() - interval '1 hour' AND holder <> $1
    )
    SELECT count(*) + 1 FROM onceflow.outbox_relay
    WHERE holder <> $1 AND seen_at > clock_timestamp() - make_interval(secs => $2)";

/// Rows are locked in key order, so that two statements can't deadlock; the one that removes confirmed rows holds them a while.
const RENEW: &str = "
    UPDATE onceflow.outbox_partition p
    SET epoch = p.epoch + (p.expires_at < clock_timestamp())::int,
        expires_at = clock_timestamp() + make_interval(secs => $2)
    FROM (SELECT partition FROM onceflow.outbox_partition WHERE holder = $1 ORDER BY partition FOR UPDATE) mine
    WHERE p.partition = mine.partition
    RETURNING p.partition, p.epoch";

const TAKE: &str = "
    UPDATE onceflow.outbox_partition p
    SET epoch = p.epoch + 1, holder = $1, expires_at = clock_timestamp() + make_interval(secs => $2)
    FROM (SELECT partition FROM onceflow.outbox_partition
          WHERE holder IS DISTINCT FROM $1 AND expires_at < clock_timestamp()
          ORDER BY partition LIMIT $3 FOR UPDATE SKIP LOCKED) free
    WHERE p.partition = free.partition
    RETURNING p.partition, p.epoch";

const RELEASE: &str = "
    UPDATE onceflow.outbox_partition p SET holder = NULL, expires_at = '-infinity'
    FROM (SELECT partition FROM onceflow.outbox_partition
          WHERE holder = $1 AND partition = ANY($2) ORDER BY partition FOR UPDATE) mine
    WHERE p.partition = mine.partition";

const LEAVE: &str = "DELETE FROM onceflow.outbox_relay WHERE holder = $1";

/// Says that this relay is there, and returns how many there are.
pub(super) async fn announce(tx: &Tx, holder: &str) -> Result<usize, DbError> {
    let relays: i64 = tx.query_one(ANNOUNCE, &[&holder, &TTL.as_secs_f64()]).await?.get(0);
    Ok(usize::try_from(relays).unwrap_or(1))
}

/// Renews what the relay holds; returns partitions and epochs.
pub(super) async fn renew(tx: &Tx, holder: &str) -> Result<Vec<(i16, i64)>, DbError> {
    leases(tx, RENEW, &[&holder, &TTL.as_secs_f64()]).await
}

/// Takes at most `most` partitions that nobody holds.
pub(super) async fn take(tx: &Tx, holder: &str, most: usize) -> Result<Vec<(i16, i64)>, DbError> {
    if most == 0 {
        return Ok(Vec::new());
    }
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    leases(tx, TAKE, &[&holder, &TTL.as_secs_f64(), &most]).await
}

async fn leases(tx: &Tx, sql: &'static str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<(i16, i64)>, DbError> {
    let rows = tx.query(sql, params).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Gives partitions back.
pub(super) async fn release(tx: &Tx, holder: &str, partitions: &[i16]) -> Result<(), DbError> {
    tx.execute(RELEASE, &[&holder, &partitions]).await.map(|_| ())
}

/// The relay is there no longer.
pub(super) async fn leave(tx: &Tx, holder: &str) -> Result<(), DbError> {
    tx.execute(LEAVE, &[&holder]).await.map(|_| ())
}

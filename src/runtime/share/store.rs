//! All SQL of `onceflow.replica`.

use uuid::Uuid;

use super::TTL;
use crate::db::{DbError, Tx};

/// The list is that of before this statement: our own row is left out and added by the caller.
const ANNOUNCE: &str = "
    WITH me AS (
        INSERT INTO onceflow.replica (id, seen_at) VALUES ($1, clock_timestamp())
        ON CONFLICT (id) DO UPDATE SET seen_at = clock_timestamp()
    ), long_gone AS (
        DELETE FROM onceflow.replica WHERE seen_at < clock_timestamp() - interval '1 hour' AND id <> $1
    )
    SELECT id FROM onceflow.replica
     WHERE id <> $1 AND seen_at > clock_timestamp() - make_interval(secs => $2)";

const LEAVE: &str = "DELETE FROM onceflow.replica WHERE id = $1";

/// Says that this replica is there; returns the others.
pub(super) async fn announce(tx: &Tx, id: Uuid) -> Result<Vec<Uuid>, DbError> {
    let rows = tx.query(ANNOUNCE, &[&id, &TTL.as_secs_f64()]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// This replica is there no longer.
pub(super) async fn leave(tx: &Tx, id: Uuid) -> Result<(), DbError> {
    tx.execute(LEAVE, &[&id]).await.map(|_| ())
}

//! SQL of `onceflow.attempt` on the runtime's side.

use std::time::Duration;

use tokio_postgres::types::ToSql;

use super::KEPT;
use super::record::FailedAttempt;
use crate::db::{Commit, DbError, Tx};

/// What is beyond the bound is read by the key and removed in the same statement: of one event there are never many more.
const ADD: &str = "
    WITH beyond AS (
        DELETE FROM onceflow.attempt AS a
         USING (SELECT id FROM onceflow.attempt
                 WHERE tenant = $1 AND consumer = $2 AND source = $3 AND event_id = $4
                 ORDER BY at DESC, id DESC
                OFFSET $18) AS old
         WHERE a.tenant = $1 AND a.consumer = $2 AND a.source = $3 AND a.event_id = $4 AND a.id = old.id
    )
    INSERT INTO onceflow.attempt (
        tenant, consumer, source, event_id, id, event_type, partition_key, attempt, at, instance, consumer_version,
        stage, code, error_chain, duration_us, retry_ms, replay_id)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
    ON CONFLICT DO NOTHING";

/// Below `NOTE_WITHIN`, so that the server gives up first.
const LIMIT_STATEMENTS: &str = "SELECT set_config('statement_timeout', '400ms', true)";

/// Adds a row; the same one twice is one.
pub(super) async fn add(tx: &Tx, instance: &str, failed: &FailedAttempt<'_>) -> Result<(), DbError> {
    let made = Made::of(failed);
    tx.execute(ADD, &params(failed, &made, &instance)).await.map(|_| ())
}

/// Adds a row in the round trip of its COMMIT.
pub(super) async fn add_and_commit(tx: Tx, instance: &str, failed: &FailedAttempt<'_>) -> Commit {
    let made = Made::of(failed);
    tx.query_and_commit(ADD, &params(failed, &made, &instance)).await.0
}

/// Nobody waits for the row of a retry.
pub(super) async fn limit_statements(tx: &Tx) -> Result<(), DbError> {
    tx.query(LIMIT_STATEMENTS, &[]).await.map(|_| ())
}

/// Values in the form of the columns.
struct Made {
    number: i32,
    version: &'static str,
    duration_us: Option<i64>,
    retry_ms: Option<i64>,
    /// So many stay beside the new one.
    others: i64,
}

impl Made {
    fn of(failed: &FailedAttempt<'_>) -> Self {
        let whole = |part: fn(&Duration) -> u128, of: Option<Duration>| {
            of.map(|time| i64::try_from(part(&time)).unwrap_or(i64::MAX))
        };
        Self {
            number: i32::try_from(failed.number).unwrap_or(i32::MAX),
            version: env!("CARGO_PKG_VERSION"),
            duration_us: whole(Duration::as_micros, failed.timing.took),
            retry_ms: whole(Duration::as_millis, failed.timing.retry_in),
            others: KEPT - 1,
        }
    }
}

fn params<'a>(failed: &'a FailedAttempt<'_>, made: &'a Made, instance: &'a &str) -> [&'a (dyn ToSql + Sync); 18] {
    let identity = failed.identity;
    [
        &identity.tenant,
        &failed.consumer,
        &identity.source,
        &identity.event_id,
        &failed.id,
        &identity.event_type,
        &identity.partition_key,
        &made.number,
        &failed.at,
        instance,
        &made.version,
        &failed.stage,
        &failed.code,
        &failed.error_chain,
        &made.duration_us,
        &made.retry_ms,
        &failed.replay_id,
        &made.others,
    ]
}

//! The SQL of removing old rows. The time of the statement, not of the clock: that may change from row to row, so no index is asked for
//! what is older, and all rows are read.

use std::time::Duration;

use super::Table;
use crate::db::{DbError, Tx};

const PRUNE_INBOX: &str = "
    WITH old AS MATERIALIZED (
        SELECT tenant, consumer, source, event_id FROM onceflow.inbox
        WHERE processed_at < statement_timestamp() - $1 * interval '1 second'
        ORDER BY processed_at LIMIT $2 FOR UPDATE SKIP LOCKED
    )
    DELETE FROM onceflow.inbox i USING old o
    WHERE i.tenant = o.tenant AND i.consumer = o.consumer AND i.source = o.source AND i.event_id = o.event_id";

/// Open ones and those on their way have no time of closing. The original of an edited copy stays.
const PRUNE_DEAD_LETTERS: &str = "
    WITH old AS MATERIALIZED (
        SELECT tenant, id FROM onceflow.dead_letter
        WHERE closed_at < statement_timestamp() - $1 * interval '1 second' AND state <> 'edited'
        ORDER BY closed_at LIMIT $2 FOR UPDATE SKIP LOCKED
    )
    DELETE FROM onceflow.dead_letter d USING old o WHERE d.tenant = o.tenant AND d.id = o.id";

const PRUNE_ATTEMPTS: &str = "
    WITH old AS MATERIALIZED (
        SELECT a.tenant, a.consumer, a.source, a.event_id, a.id FROM onceflow.attempt a
        WHERE a.at < statement_timestamp() - $1 * interval '1 second'
          AND NOT EXISTS (SELECT FROM onceflow.dead_letter d
                          WHERE d.event_id = a.event_id AND d.tenant = a.tenant AND d.consumer = a.consumer AND d.source = a.source)
        ORDER BY a.at LIMIT $2 FOR UPDATE OF a SKIP LOCKED
    )
    DELETE FROM onceflow.attempt a USING old o
    WHERE a.tenant = o.tenant AND a.consumer = o.consumer AND a.source = o.source AND a.event_id = o.event_id AND a.id = o.id";

/// A job's items first, in pieces; the job itself once none is left.
const PRUNE_JOBS: &str = "
    WITH gone AS (
        DELETE FROM onceflow.bulk_job j
        WHERE j.finished_at < statement_timestamp() - $1 * interval '1 second'
          AND NOT EXISTS (SELECT FROM onceflow.bulk_job_item i WHERE i.job_id = j.id)
    ), old AS MATERIALIZED (
        SELECT i.job_id, i.nth FROM onceflow.bulk_job j JOIN onceflow.bulk_job_item i ON i.job_id = j.id
        WHERE j.finished_at < statement_timestamp() - $1 * interval '1 second'
        LIMIT $2 FOR UPDATE OF i SKIP LOCKED
    )
    DELETE FROM onceflow.bulk_job_item i USING old o WHERE i.job_id = o.job_id AND i.nth = o.nth";

/// Whoever runs the service may not remove rows of the audit but through this function, which spares the last 30 days.
const PRUNE_AUDIT: &str = "SELECT onceflow.prune_audit($1, $2)";

const OLDEST_INBOX: &str =
    "SELECT extract(epoch FROM clock_timestamp() - min(processed_at))::float8 FROM onceflow.inbox";
const OLDEST_DEAD_LETTER: &str = "
    SELECT extract(epoch FROM clock_timestamp() - min(closed_at))::float8 FROM onceflow.dead_letter
    WHERE closed_at IS NOT NULL AND state <> 'edited'";
const OLDEST_ATTEMPT: &str = "SELECT extract(epoch FROM clock_timestamp() - min(at))::float8 FROM onceflow.attempt";
const OLDEST_JOB: &str =
    "SELECT extract(epoch FROM clock_timestamp() - min(finished_at))::float8 FROM onceflow.bulk_job";
const OLDEST_AUDIT: &str = "SELECT extract(epoch FROM clock_timestamp() - min(at))::float8 FROM onceflow.audit";

/// Removes at most `most` rows that are older than `keep`, the oldest first; rows that somebody has locked are passed over.
pub(super) async fn prune(tx: &Tx, table: Table, keep: Duration, most: i64) -> Result<u64, DbError> {
    let statement = match table {
        Table::Inbox => PRUNE_INBOX,
        Table::DeadLetters => PRUNE_DEAD_LETTERS,
        Table::Attempts => PRUNE_ATTEMPTS,
        Table::Jobs => PRUNE_JOBS,
        Table::Audit => {
            let removed: i64 = tx.query_one(PRUNE_AUDIT, &[&keep.as_secs_f64(), &most]).await?.get(0);
            return Ok(removed.unsigned_abs());
        }
    };
    tx.execute(statement, &[&keep.as_secs_f64(), &most]).await
}

/// Seconds since the oldest row that can ever be removed; 0 without one.
pub(super) async fn oldest(tx: &Tx, table: Table) -> Result<f64, DbError> {
    let statement = match table {
        Table::Inbox => OLDEST_INBOX,
        Table::DeadLetters => OLDEST_DEAD_LETTER,
        Table::Attempts => OLDEST_ATTEMPT,
        Table::Jobs => OLDEST_JOB,
        Table::Audit => OLDEST_AUDIT,
    };
    let age: Option<f64> = tx.query_one(statement, &[]).await?.get(0);
    Ok(age.unwrap_or(0.0))
}

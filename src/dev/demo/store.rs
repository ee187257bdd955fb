//! What the database says of the events so far. Read only.

use crate::db::{DbError, Pool};

const COUNTS: &str = "
    SELECT count(*) FILTER (WHERE outcome = 'applied'),
           count(*) FILTER (WHERE outcome = 'stale'),
           count(*) FILTER (WHERE outcome = 'skipped'),
           coalesce(sum(duplicates), 0)::bigint,
           coalesce(sum(downstream), 0)::bigint,
           (SELECT coalesce(sum(occurrences), 0)::bigint FROM onceflow.dead_letter WHERE state IN ('open', 'replaying')),
           (SELECT count(*) FROM onceflow.dead_letter WHERE state = 'replaying'),
           (SELECT count(*) FROM onceflow.outbox),
           (SELECT coalesce(sum(confirmed), 0)::bigint FROM onceflow.outbox_books)
    FROM onceflow.inbox";

/// Sums over everything that the database has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) applied: i64,
    pub(super) stale: i64,
    pub(super) skipped: i64,
    pub(super) duplicates: i64,
    pub(super) downstream: i64,
    pub(super) dead: i64,
    /// Those of them that are on their way back.
    pub(super) replaying: i64,
    pub(super) pending: i64,
    pub(super) confirmed: i64,
}

pub(super) async fn counts(pool: &Pool) -> Result<Counts, DbError> {
    let tx = pool.begin().await?;
    let row = tx.query_one(COUNTS, &[]).await?;
    tx.commit_repeatable().await?;
    Ok(Counts {
        applied: row.get(0),
        stale: row.get(1),
        skipped: row.get(2),
        duplicates: row.get(3),
        downstream: row.get(4),
        dead: row.get(5),
        replaying: row.get(6),
        pending: row.get(7),
        confirmed: row.get(8),
    })
}

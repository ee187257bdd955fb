//! What is old goes: inbox rows, closed dead letters, failed attempts, ended jobs, audit rows, and what consumers keep of persons.
//!
//! In small batches, each a transaction of its own that passes over locked rows, so that nothing on the way of an event waits for
//! it, and any number of replicas may do it side by side.
//!
//! An inbox row is what makes a repetition harmless: once it is gone, the same event sent again is applied again, as far as the version
//! guards let it. So the inbox must be kept for longer than any producer repeats itself. Open dead letters never go.

mod store;

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::db::{DbError, Pool, Tx};
use crate::telemetry;

/// How often it is looked for old rows.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Rows of one transaction.
const BATCH: i64 = 1_000;
/// Between two full batches others have the database for themselves.
const BREATH: Duration = Duration::from_millis(100);

/// How long rows are kept; `None` for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Since the event was processed.
    pub inbox: Option<Duration>,
    /// Since the dead letter was replayed with success, discarded or archived.
    pub dead_letters: Option<Duration>,
    /// Since the attempt failed; those of an event that still has a dead letter stay with it.
    pub attempts: Option<Duration>,
    /// Since the job ended.
    pub jobs: Option<Duration>,
    /// Since the operation.
    pub audit: Option<Duration>,
    /// Since it was stored: what consumers keep of persons and need no more.
    pub personal_data: Option<Duration>,
}

/// Rows of a consumer that lose their personal data when they are old.
#[derive(Debug, Clone, Copy)]
pub struct Aging {
    /// What they are, as metrics name it.
    pub name: &'static str,
    /// The statement: `$1` (double precision) the age in seconds, `$2` (bigint) most rows.
    pub sql: &'static str,
}

/// Tables that grow with every event or operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// `onceflow.inbox`
    Inbox,
    /// Closed rows of `onceflow.dead_letter`.
    DeadLetters,
    /// `onceflow.attempt`
    Attempts,
    /// `onceflow.bulk_job` with its items.
    Jobs,
    /// `onceflow.audit`
    Audit,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Inbox, Self::DeadLetters, Self::Attempts, Self::Jobs, Self::Audit];

    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inbox => "inbox",
            Self::DeadLetters => "dead_letters",
            Self::Attempts => "attempts",
            Self::Jobs => "jobs",
            Self::Audit => "audit",
        }
    }
}

impl Policy {
    fn of(self, table: Table) -> Option<Duration> {
        match table {
            Table::Inbox => self.inbox,
            Table::DeadLetters => self.dead_letters,
            Table::Attempts => self.attempts,
            Table::Jobs => self.jobs,
            Table::Audit => self.audit,
        }
    }
}

/// Removes what is old now and then, until `stop`. A database that is away is waited for.
pub async fn run(pool: Pool, policy: Policy, aging: Vec<Aging>, stop: CancellationToken) {
    loop {
        for table in Table::ALL {
            let pruned = stop.run_until_cancelled(prune(&pool, table, policy.of(table))).await;
            match pruned {
                None => return,
                Some(Ok(0)) => {}
                Some(Ok(rows)) => info!(table = table.name(), rows, "{rows} old rows of {} removed", table.name()),
                Some(Err(error)) => debug!(table = table.name(), %error, "old rows stay for now: {error}"),
            }
        }
        for rows in &aging {
            match stop.run_until_cancelled(forget(&pool, rows, policy.personal_data)).await {
                None => return,
                Some(Ok(0)) => {}
                Some(Ok(count)) => {
                    info!(table = rows.name, count, "{count} old {} lost their personal data", rows.name)
                }
                Some(Err(error)) => debug!(table = rows.name, %error, "old personal data stays for now: {error}"),
            }
        }
        if stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
            return;
        }
    }
}

/// Removes all rows of a table that are older than `keep`, batch by batch, and measures the oldest that stays. Returns how many
/// went.
///
/// # Errors
/// The database is away or says no; what was removed before stays removed.
pub async fn prune(pool: &Pool, table: Table, keep: Option<Duration>) -> Result<u64, DbError> {
    let all = match keep {
        Some(keep) => batches(pool, Old::Rows(table), keep).await?,
        None => 0,
    };
    let tx = pool.begin().await?;
    let age = store::oldest(&tx, table).await?;
    tx.commit_repeatable().await?;
    telemetry::oldest_row(table.name(), age);
    Ok(all)
}

/// Takes personal data out of all rows that are older than `keep`, batch by batch. Returns how many lost it.
///
/// # Errors
/// As [`prune`].
pub async fn forget(pool: &Pool, rows: &Aging, keep: Option<Duration>) -> Result<u64, DbError> {
    match keep {
        Some(keep) => batches(pool, Old::Personal(*rows), keep).await,
        None => Ok(0),
    }
}

/// What goes.
#[derive(Clone, Copy)]
enum Old {
    Rows(Table),
    Personal(Aging),
}

impl Old {
    fn name(self) -> &'static str {
        match self {
            Self::Rows(table) => table.name(),
            Self::Personal(rows) => rows.name,
        }
    }

    async fn one_batch(self, tx: &Tx, keep: Duration) -> Result<u64, DbError> {
        match self {
            Self::Rows(table) => store::prune(tx, table, keep, BATCH).await,
            Self::Personal(rows) => tx.execute(rows.sql, &[&keep.as_secs_f64(), &BATCH]).await,
        }
    }
}

async fn batches(pool: &Pool, old: Old, keep: Duration) -> Result<u64, DbError> {
    let mut all = 0;
    loop {
        let tx = pool.begin().await?;
        let gone = old.one_batch(&tx, keep).await?;
        tx.commit_repeatable().await?;
        telemetry::pruned(old.name(), gone);
        all += gone;
        if gone < BATCH.unsigned_abs() {
            return Ok(all);
        }
        tokio::time::sleep(BREATH).await;
    }
}

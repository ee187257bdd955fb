//! What a failed attempt leaves behind: one row, so that the history of an event outlives its retries.
//!
//! | the event | its row is written |
//! |---|---|
//! | becomes a dead letter | in the transaction of the dead letter |
//! | is tried again | before the copy is published, best effort |
//!
//! Invariant: no event waits longer than [`NOTE_WITHIN`] for the row of a retry, and none is lost or costs another attempt for the
//! lack of it (I-7). The server ends such a statement before we stop waiting, so that none is left behind that waits for a lock.
//! After a row that could not be written none is tried for [`QUIET`], so that many retries at once are not each held up.
//!
//! Of one event the newest [`KEPT`] are kept; the statement that adds one removes what is beyond. Two processes that write for
//! one event at the same moment may leave one more until the next row. What is applied at the first attempt costs nothing here.

mod instance;
mod record;
mod store;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::db::{Commit, DbError, Pool, Tx};

pub(super) use instance::instance;
pub(super) use record::{FailedAttempt, Timing};

/// Rows kept of one event and consumer.
const KEPT: i64 = 20;
/// Longest wait for the row of a retry.
const NOTE_WITHIN: Duration = Duration::from_millis(500);
/// How long no row of a retry is tried after one that could not be written.
const QUIET: Duration = Duration::from_secs(5);

/// Writes down the failed attempts of one process.
#[derive(Debug, Clone)]
pub(super) struct Attempts {
    pub(super) instance: Arc<str>,
    quiet_until: Arc<Mutex<Option<Instant>>>,
}

impl Attempts {
    pub(super) fn of(instance: Arc<str>) -> Self {
        Self { instance, quiet_until: Arc::default() }
    }

    /// Part of the transaction that stores the dead letter.
    pub(super) async fn record(&self, tx: &Tx, failed: &FailedAttempt<'_>) -> Result<(), DbError> {
        store::add(tx, &self.instance, failed).await
    }

    /// Best effort: without its row the attempt is missing in the history, and nothing else.
    pub(super) async fn note(&self, pool: &Pool, failed: &FailedAttempt<'_>) {
        if self.is_quiet() {
            return;
        }
        let why = match tokio::time::timeout(NOTE_WITHIN, self.add(pool, failed)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} ms", NOTE_WITHIN.as_millis()),
        };
        *self.quiet_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + QUIET);
        tracing::debug!(
            consumer = failed.consumer,
            event.id = failed.identity.event_id,
            why,
            "a failed attempt is missing in the history of its event: {why}"
        );
    }

    async fn add(&self, pool: &Pool, failed: &FailedAttempt<'_>) -> Result<(), DbError> {
        let tx = pool.begin_with_first_statement().await?;
        store::limit_statements(&tx).await?;
        match store::add_and_commit(tx, &self.instance, failed).await {
            Commit::Committed => Ok(()),
            Commit::RolledBack(error) | Commit::Unknown(error) => Err(error),
        }
    }

    fn is_quiet(&self) -> bool {
        let until = *self.quiet_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }
}

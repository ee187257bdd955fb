//! What the handlers share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;

use super::configured::ConfiguredToken;
use super::problem::Problem;
use crate::db::{Commit, DbError, Pool, Tx};
use crate::health::{Check, Health};
use crate::replay::control;
use crate::replay::edit::Rules;
use crate::replay::job::Loads;
use crate::runtime::EventType;

/// Longest wait of the service for a connection: an operator gets an answer within a second also when the database
/// is away.
pub const BEGIN_WITHIN: Duration = Duration::from_millis(800);
/// The check that the runtime keeps for the database.
const DATABASE_CHECK: &str = "database";

/// A consumer of this build.
#[derive(Debug, Clone)]
pub struct ConsumerInfo {
    /// Its name.
    pub name: &'static str,
    /// Event types it reads.
    pub reads: &'static [EventType],
    /// Event types it publishes.
    pub publishes: &'static [EventType],
}

/// Everything that the admin server works with.
#[derive(Debug, Clone)]
pub struct AdminState {
    /// The database.
    pub pool: Pool,
    /// Longest wait for a connection, [`BEGIN_WITHIN`] in the service.
    pub begin_within: Duration,
    /// The process's own condition.
    pub health: Arc<Health>,
    /// The consumers of this build.
    pub consumers: Vec<ConsumerInfo>,
    /// First part of every exchange's and queue's name.
    pub prefix: String,
    /// Who may use the API; anybody on this machine where absent.
    pub token: ConfiguredToken,
    /// Told after a consumer was paused or resumed.
    pub paused_changed: Arc<Notify>,
    /// Told after rows were put into the outbox.
    pub outbox_wakeup: Arc<Notify>,
    /// Jobs with more dead letters are approved by a second person; 0 for none.
    pub second_person_above: u32,
    /// How busy the consumers are.
    pub loads: Arc<Loads>,
    /// How long closed dead letters are kept; `None` for ever.
    pub keep_dead_letters: Option<Duration>,
    /// What may be edited.
    pub editing: Rules,
    /// Version of this build.
    pub version: &'static str,
}

impl AdminState {
    /// Until when a dead letter that was archived then can be restored at least: retention looks once a minute.
    pub(super) fn restorable_until(&self, archived_at: Timestamp) -> Option<Timestamp> {
        archived_at.checked_add(self.keep_dead_letters?).ok()
    }

    /// The queue of each consumer.
    pub(super) fn queues(&self) -> BTreeMap<String, String> {
        self.consumers.iter().map(|c| (c.name.to_owned(), format!("{}.{}", self.prefix, c.name))).collect()
    }

    /// A transaction that the server keeps from writing.
    pub(super) async fn begin_read(&self) -> Result<Tx, Problem> {
        let tx = self.begin().await?;
        match control::read_only(&tx).await {
            Ok(()) => Ok(tx),
            Err(error) => {
                tx.rollback().await;
                Err(Problem::from(error))
            }
        }
    }

    /// A transaction, or a clear answer at once where the database is known to be away.
    pub(super) async fn begin(&self) -> Result<Tx, Problem> {
        if let Some(Check::Waiting(why)) = self.health.snapshot().get(DATABASE_CHECK) {
            return Err(Problem::unreachable(why));
        }
        match tokio::time::timeout(self.begin_within, self.pool.begin()).await {
            Ok(Ok(tx)) => Ok(tx),
            Ok(Err(error)) => Err(Problem::from(error)),
            Err(_) => Err(Problem::unreachable(&format!("no connection within {} ms", self.begin_within.as_millis()))),
        }
    }
}

/// Ends a reading transaction with its result.
pub(super) async fn end_read<T>(tx: Tx, result: Result<T, DbError>) -> Result<T, Problem> {
    tx.rollback().await;
    Ok(result?)
}

/// Commits a change, or undoes it where it failed or was only a plan.
pub(super) async fn end_change<T, E>(tx: Tx, result: Result<T, E>, keep: bool) -> Result<T, Problem>
where
    Problem: From<E>,
{
    let value = match result {
        Ok(value) if keep => value,
        result => {
            tx.rollback().await;
            return Ok(result?);
        }
    };
    match tx.commit().await {
        Commit::Committed => Ok(value),
        Commit::RolledBack(error) => Err(<Problem as From<DbError>>::from(error)),
        Commit::Unknown(error) => Err(Problem::unknown_outcome(&error)),
    }
}

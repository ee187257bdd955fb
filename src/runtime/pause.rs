//! Consumers that an operator has paused. The table is the truth, so a pause holds over restarts and for every replica.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::db::{DbError, Pool};

const PAUSED: &str = "SELECT consumer, changed_by, reason FROM onceflow.consumer_state WHERE paused";

type Reasons = BTreeMap<String, String>;

/// Which consumers are paused, and why.
#[derive(Debug, Clone, Default)]
pub struct Pauses {
    reasons: Arc<watch::Sender<Reasons>>,
    /// Rung by whoever changes the table in this process.
    changed: Arc<Notify>,
}

impl Pauses {
    /// Why a consumer is paused, if it is.
    pub fn reason(&self, consumer: &str) -> Option<String> {
        self.reasons.borrow().get(consumer).cloned()
    }

    /// To be notified after a change of the table.
    pub fn bell(&self) -> Arc<Notify> {
        self.changed.clone()
    }

    /// Reads the table now.
    ///
    /// # Errors
    /// The database is away.
    pub async fn refresh(&self, pool: &Pool) -> Result<(), DbError> {
        let tx = pool.begin().await?;
        let rows = tx.query(PAUSED, &[]).await?;
        tx.commit_repeatable().await?;
        let why = |row: &tokio_postgres::Row| format!("{} (by {})", row.get::<_, &str>(2), row.get::<_, &str>(1));
        let reasons: Reasons = rows.iter().map(|row| (row.get(0), why(row))).collect();
        self.reasons.send_if_modified(|current| {
            let changed = *current != reasons;
            *current = reasons;
            changed
        });
        Ok(())
    }

    /// Follows the table until `stop`.
    pub async fn follow(&self, pool: &Pool, every: Duration, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            if let Err(error) = self.refresh(pool).await {
                tracing::debug!(%error, "pauses could not be read; the last ones stand");
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.changed.notified() => {}
                () = tokio::time::sleep(every) => {}
            }
        }
    }

    pub(super) async fn until_paused(&self, consumer: &str) {
        self.until(|reasons| reasons.contains_key(consumer)).await;
    }

    pub(super) async fn until_resumed(&self, consumer: &str) {
        self.until(|reasons| !reasons.contains_key(consumer)).await;
    }

    async fn until(&self, holds: impl Fn(&Reasons) -> bool) {
        let mut watched = self.reasons.subscribe();
        if watched.wait_for(|reasons| holds(reasons)).await.is_err() {
            // The sender lives in self; should it ever go, nothing changes any more.
            std::future::pending::<()>().await;
        }
    }
}

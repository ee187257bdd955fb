//! Confirmed rows on their way out of the table.
//!
//! Removing goes beside publishing, many rows with one commit: a row that was confirmed and not yet removed costs nothing but a
//! second publish with the same id should the process die.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::HashSet;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use uuid::Uuid;

use super::lease::Grant;
use super::store;
use crate::db::{DbError, Pool};
use crate::failpoint;
use crate::pacing::Pacing;
use crate::telemetry;

/// So many rows are removed at once without waiting for more.
const ENOUGH: usize = 500;
/// Most rows of one statement.
const MOST: usize = 2_000;
/// How long a few rows wait for more.
const WAIT: Duration = Duration::from_millis(100);
/// So many rows may wait; then publishing waits too.
const MOST_WAITING: usize = 4_000;
/// After so many removals their books are added up.
const ADD_UP_EVERY: u32 = 256;
/// How many published rows are remembered, to recognise one that is handed over late.
const REMEMBERED: usize = 32_768;

/// A row that the broker has confirmed.
#[derive(Debug)]
pub(super) struct Confirmed {
    pub(super) tenant: String,
    pub(super) id: Uuid,
    pub(super) seq: i64,
}

/// Rows to remove; shared by the publishing and the removing side.
#[derive(Debug, Clone, Default)]
pub(super) struct Sweep {
    state: Arc<Mutex<State>>,
    /// There is something to do.
    added: Arc<Notify>,
    /// Something was done.
    removed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<Confirmed>,
    /// Numbers of the rows that the running statement removes.
    removing: Vec<i64>,
    hurry: bool,
    lately: HashSet<i64>,
    lately_in_order: VecDeque<i64>,
}

impl Sweep {
    pub(super) fn add(&self, rows: Vec<Confirmed>) {
        let mut state = self.state();
        for row in &rows {
            state.remember(row.seq);
        }
        state.waiting.extend(rows);
        drop(state);
        self.added.notify_one();
    }

    /// Numbers of confirmed rows that may still be in the table.
    pub(super) fn known(&self) -> Vec<i64> {
        let state = self.state();
        state.waiting.iter().map(|row| row.seq).chain(state.removing.iter().copied()).collect()
    }

    /// Whether this row was published a short while ago.
    pub(super) fn published(&self, seq: i64) -> bool {
        self.state().lately.contains(&seq)
    }

    /// Waits until there is room for more rows.
    pub(super) async fn room(&self) {
        self.until(|state| state.waiting.len() < MOST_WAITING).await;
    }

    /// Removes everything now, and waits for it.
    pub(super) async fn emptied(&self) {
        self.state().hurry = true;
        self.added.notify_one();
        self.until(|state| state.waiting.is_empty() && state.removing.is_empty()).await;
    }

    async fn until(&self, done: impl Fn(&State) -> bool) {
        loop {
            let changed = self.removed.notified();
            if done(&self.state()) {
                return;
            }
            changed.await;
        }
    }

    /// Removes until `stop`, and then what is left.
    pub(super) async fn run(self, pool: Pool, grants: watch::Receiver<Grant>, stop: CancellationToken) {
        let mut pacing = Pacing::reconnect();
        // Those before us may have left some.
        let mut noted = ADD_UP_EVERY;
        loop {
            let stopping = stop.run_until_cancelled(self.gathered()).await.is_none();
            let rows = self.take();
            if rows.is_empty() && stopping {
                return;
            }
            let grant = grants.borrow().clone();
            match remove(&pool, &grant, &rows).await {
                Ok(()) => {
                    self.state().removing.clear();
                    pacing.reset();
                    noted += 1;
                }
                // The rows stay and will be published again, by us or by others.
                Err(error) if stopping => {
                    warn!(%error, "confirmed rows were not removed: {error}; they will be published again with the same ids");
                    return;
                }
                Err(error) => {
                    warn!(%error, "removing confirmed rows: {error}; trying again");
                    self.put_back(rows);
                    stop.run_until_cancelled(tokio::time::sleep(pacing.next_wait())).await;
                }
            }
            self.removed.notify_waiters();
            if noted >= ADD_UP_EVERY {
                noted = 0;
                add_up(&pool, &grant).await;
            }
        }
    }

    /// Waits for rows, and a little for more of them.
    async fn gathered(&self) {
        while self.state().waiting.is_empty() {
            self.added.notified().await;
        }
        let enough = async {
            while !self.state().is_enough() {
                self.added.notified().await;
            }
        };
        // Few rows go when the time is up.
        let _few = tokio::time::timeout(WAIT, enough).await;
    }

    fn take(&self) -> Vec<Confirmed> {
        let mut state = self.state();
        state.hurry &= state.waiting.len() > MOST;
        let most = state.waiting.len().min(MOST);
        let rows: Vec<Confirmed> = state.waiting.drain(..most).collect();
        state.removing = rows.iter().map(|row| row.seq).collect();
        rows
    }

    fn put_back(&self, rows: Vec<Confirmed>) {
        let mut state = self.state();
        state.removing.clear();
        state.waiting.extend(rows);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_enough(&self) -> bool {
        self.hurry || self.waiting.len() >= ENOUGH
    }

    fn remember(&mut self, seq: i64) {
        if self.lately.insert(seq) {
            self.lately_in_order.push_back(seq);
        }
        if self.lately_in_order.len() > REMEMBERED
            && let Some(oldest) = self.lately_in_order.pop_front()
        {
            self.lately.remove(&oldest);
        }
    }
}

async fn remove(pool: &Pool, grant: &Grant, rows: &[Confirmed]) -> Result<(), DbError> {
    if rows.is_empty() {
        return Ok(());
    }
    let tx = pool.begin().await?;
    let removed = store::remove(&tx, grant, rows).await?;
    failpoint::hit("relay_before_delete");
    tx.commit_repeatable().await?;
    telemetry::outbox_published("confirmed", u64::try_from(removed).unwrap_or(0));
    Ok(())
}

/// The books are right either way: what could not be added up now is later.
async fn add_up(pool: &Pool, grant: &Grant) {
    let added = async {
        let tx = pool.begin().await?;
        store::add_up(&tx, grant).await?;
        tx.commit_repeatable().await
    };
    if let Err(error) = added.await {
        debug!(%error, "the books of the outbox are added up later: {error}");
    }
}

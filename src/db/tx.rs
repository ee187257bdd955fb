//! One transaction that can't lie about its end.
//!
//! `tokio_postgres` reports success when the server answered a COMMIT with ROLLBACK (`spec/reliability.md` §1.2), and an
//! error when only the answer was lost (§1.3). This wrapper is poisoned by the first failed statement, commits with
//! `SELECT 1; COMMIT` so that an aborted transaction answers with 25P02, and tells three ends apart: [`Commit`].
//! A transaction that is dropped half-way takes its connection out of the pool, so that nobody inherits it.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use deadpool_postgres::Object;
use futures_util::future::{join, poll_immediate, try_join};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};

use super::error::{Class, DbError};

/// Whatever the last user of the connection left in its session is undone in the same round trip: settings, advisory locks,
/// temporary tables.
const CLEAN: &str = "RESET ALL; SELECT pg_advisory_unlock_all(); DISCARD TEMP";
/// Outside a transaction the session can't write (`default_transaction_read_only`, see the pool), so that a statement that was
/// sent together with a BEGIN that fails has no effect.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";
/// Longest wait for it: a connection that lay idle may be dead without a word.
const BEGIN_WITHIN: Duration = Duration::from_secs(5);
/// In an aborted transaction the first statement fails, where COMMIT alone would report success (§1.2).
const COMMIT: &str = "SELECT 1; COMMIT";

/// How a transaction ended.
#[derive(Debug)]
pub enum Commit {
    /// The server said so.
    Committed,
    /// Nothing of it is visible, for certain.
    RolledBack(DbError),
    /// The answer was lost: it may have been committed. Only the inbox row can tell.
    Unknown(DbError),
}

impl Commit {
    /// Of what may be done twice: an end that nobody knows counts as a failure, to be repeated.
    ///
    /// # Errors
    /// Not committed, or the answer was lost.
    pub fn repeatable(self) -> Result<(), DbError> {
        match self {
            Self::Committed => Ok(()),
            Self::RolledBack(error) | Self::Unknown(error) => Err(error),
        }
    }
}

/// Whether COMMIT was sent.
enum Sent {
    Yes,
    No,
}

/// A running transaction (READ COMMITTED).
#[derive(Debug)]
pub struct Tx {
    client: Option<Object>,
    /// Whether BEGIN was sent.
    begun: AtomicBool,
    poisoned: AtomicBool,
    statements: AtomicU64,
    in_flight: AtomicU64,
    round_trips: AtomicU64,
    /// How long any answer of the server may take; above its own `statement_timeout`.
    answer_within: Duration,
}

impl Tx {
    pub(super) async fn begin(client: Object, answer_within: Duration) -> Result<Self, DbError> {
        let tx = Self::begin_with_first_statement(client, answer_within);
        tx.bounded("begin", tx.begun()).await?;
        Ok(tx)
    }

    /// Begins in the round trip of the first statement.
    pub(super) fn begin_with_first_statement(client: Object, answer_within: Duration) -> Self {
        let (begun, poisoned) = (AtomicBool::new(false), AtomicBool::new(false));
        let (statements, in_flight, round_trips) = Default::default();
        Self { client: Some(client), begun, poisoned, statements, in_flight, round_trips, answer_within }
    }

    /// Sends BEGIN when first polled, unless it was sent before.
    async fn begun(&self) -> Result<(), Failed> {
        if self.begun.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let begun = try_join(self.client().batch_execute(CLEAN), self.client().batch_execute(BEGIN));
        match tokio::time::timeout(BEGIN_WITHIN, begun).await {
            Ok(begun) => begun.map(|_| ()).map_err(Failed::Postgres),
            Err(_) => Err(Failed::Silent(BEGIN_WITHIN)),
        }
    }

    /// Runs `statement` behind a BEGIN that is sent with it where none was sent yet.
    async fn after_begin<T>(
        &self,
        doing: &'static str,
        statement: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, DbError> {
        let _counted = InFlight::of(self);
        self.bounded(doing, async {
            // In this order: the first poll of each sends it.
            let ((), done) = try_join(self.begun(), async { Ok(statement.await?) }).await?;
            Ok(done)
        })
        .await
    }

    /// Runs a statement and returns its rows. The statement is prepared once per connection.
    ///
    /// # Errors
    /// The transaction is poisoned and can only be rolled back.
    pub async fn query(&self, sql: &'static str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, DbError> {
        let client = self.client();
        self.statements.fetch_add(1, Ordering::Relaxed);
        self.after_begin("query", async {
            let statement = client.prepare_cached(sql).await?;
            client.query(&statement, params).await
        })
        .await
    }

    /// Like [`query`](Self::query), for at most one row.
    ///
    /// # Errors
    /// As [`query`](Self::query); more than one row is an error too.
    pub async fn query_opt(&self, sql: &'static str, params: &[&(dyn ToSql + Sync)]) -> Result<Option<Row>, DbError> {
        let mut rows = self.query(sql, params).await?;
        if rows.len() > 1 {
            self.poison();
            return Err(DbError::shape("more than one row where at most one was expected"));
        }
        Ok(rows.pop())
    }

    /// Like [`query`](Self::query), for exactly one row.
    ///
    /// # Errors
    /// As [`query`](Self::query); no row is an error too.
    pub async fn query_one(&self, sql: &'static str, params: &[&(dyn ToSql + Sync)]) -> Result<Row, DbError> {
        let row = self.query_opt(sql, params).await?;
        row.ok_or_else(|| {
            self.poison();
            DbError::shape("no row where one was expected")
        })
    }

    /// Runs a statement and returns the number of rows it touched.
    ///
    /// # Errors
    /// The transaction is poisoned and can only be rolled back.
    pub async fn execute(&self, sql: &'static str, params: &[&(dyn ToSql + Sync)]) -> Result<u64, DbError> {
        let client = self.client();
        self.statements.fetch_add(1, Ordering::Relaxed);
        self.after_begin("execute", async {
            let statement = client.prepare_cached(sql).await?;
            client.execute(&statement, params).await
        })
        .await
    }

    /// How many statements were sent since it began, for tests to hold.
    pub fn statements(&self) -> u64 {
        self.statements.load(Ordering::Relaxed)
    }

    /// How often an answer was waited for so far, COMMIT aside: statements that are sent together wait once.
    pub fn round_trips(&self) -> u64 {
        self.round_trips.load(Ordering::Relaxed)
    }

    /// Commits, unless a statement has failed.
    pub async fn commit(mut self) -> Commit {
        if self.poisoned.load(Ordering::Acquire) {
            self.roll_back_quietly().await;
            return Commit::RolledBack(DbError::poisoned());
        }
        if !self.begun.load(Ordering::Acquire) {
            drop(self.client.take());
            return Commit::Committed;
        }
        let committed = self.answer("commit", self.client().simple_query(COMMIT)).await;
        self.ended(committed.map(|_| Sent::Yes)).await
    }

    /// Commits what may be done twice: an end that nobody knows counts as a failure, to be repeated.
    ///
    /// # Errors
    /// Not committed, or the answer was lost.
    pub async fn commit_repeatable(self) -> Result<(), DbError> {
        self.commit().await.repeatable()
    }

    /// Runs a last statement and commits in the same round trip. The rows are those of the statement; they count only when
    /// the transaction is committed.
    ///
    /// Safe because the server refuses the COMMIT after a failed statement (25P02), as for [`commit`](Self::commit).
    pub async fn query_and_commit(mut self, sql: &'static str, params: &[&(dyn ToSql + Sync)]) -> (Commit, Vec<Row>) {
        if self.poisoned.load(Ordering::Acquire) {
            self.roll_back_quietly().await;
            return (Commit::RolledBack(DbError::poisoned()), Vec::new());
        }
        let statement = match self.after_begin("prepare", self.client().prepare_cached(sql)).await {
            Ok(statement) => statement,
            Err(error) => {
                self.roll_back_quietly().await;
                return (Commit::RolledBack(error), Vec::new());
            }
        };
        self.statements.fetch_add(1, Ordering::Relaxed);
        match self.last_and_commit(&statement, params).await {
            (Ok(rows), committed) => (self.ended(committed).await, rows),
            // Not sent, or refused by the server, which then refuses the COMMIT too.
            (Err(error), committed) if matches!(committed, Ok(Sent::No)) || refused(&error, &committed) => {
                self.roll_back_quietly().await;
                (Commit::RolledBack(error), Vec::new())
            }
            (Err(error), _) => (Commit::Unknown(error), Vec::new()),
        }
    }

    async fn last_and_commit(
        &self,
        statement: &Statement,
        params: &[&(dyn ToSql + Sync)],
    ) -> (Result<Vec<Row>, DbError>, Result<Sent, DbError>) {
        let client = self.client();
        let mut last = pin!(self.answer("query", client.query(statement, params)));
        let commit = async { self.answer("commit", client.simple_query(COMMIT)).await.map(|_| Sent::Yes) };
        // The first poll sends it, or fails on a value that can't be sent; then COMMIT must not be sent either.
        match poll_immediate(last.as_mut()).await {
            Some(Err(error)) => (Err(error), Ok(Sent::No)),
            Some(Ok(rows)) => (Ok(rows), commit.await),
            None => join(last, commit).await,
        }
    }

    async fn ended(&mut self, committed: Result<Sent, DbError>) -> Commit {
        match committed {
            Ok(_) => {
                drop(self.client.take());
                Commit::Committed
            }
            Err(error) if error.server_decided() => {
                self.roll_back_quietly().await;
                Commit::RolledBack(error)
            }
            Err(error) => Commit::Unknown(error),
        }
    }

    /// Undoes everything; the connection goes back to the pool only if the server confirms.
    pub async fn rollback(mut self) {
        self.roll_back_quietly().await;
    }

    async fn roll_back_quietly(&mut self) {
        let begun = self.begun.load(Ordering::Acquire);
        if !begun || self.answer("rollback", self.client().batch_execute("ROLLBACK")).await.is_ok() {
            drop(self.client.take());
        }
    }

    fn client(&self) -> &Object {
        self.client.as_ref().expect("the connection leaves only when the transaction is consumed")
    }

    fn poison(&self) {
        self.poisoned.store(true, Ordering::Release);
    }

    async fn answer<T>(
        &self,
        doing: &'static str,
        work: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, DbError> {
        self.bounded(doing, async { Ok(work.await?) }).await
    }

    async fn bounded<T>(
        &self,
        doing: &'static str,
        work: impl Future<Output = Result<T, Failed>>,
    ) -> Result<T, DbError> {
        let result = match tokio::time::timeout(self.answer_within, work).await {
            Ok(result) => result.map_err(|failed| failed.into_error(doing)),
            Err(_) => Err(DbError::silent(doing, self.answer_within)),
        };
        if let Err(error) = &result {
            self.poison();
            if error.class() == Class::Schema {
                // Prepared statements may be stale: the next user gets a fresh connection.
                self.client().statement_cache.clear();
            }
        }
        result
    }
}

/// A statement that was sent and not answered yet.
struct InFlight<'a>(&'a AtomicU64);

impl<'a> InFlight<'a> {
    fn of(tx: &'a Tx) -> Self {
        if tx.in_flight.fetch_add(1, Ordering::Relaxed) == 0 {
            tx.round_trips.fetch_add(1, Ordering::Relaxed);
        }
        Self(&tx.in_flight)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why there is no good answer.
enum Failed {
    Postgres(tokio_postgres::Error),
    /// BEGIN was not answered in this time.
    Silent(Duration),
}

impl From<tokio_postgres::Error> for Failed {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Postgres(error)
    }
}

impl Failed {
    fn into_error(self, doing: &'static str) -> DbError {
        match self {
            Self::Postgres(error) => DbError::postgres(doing, error),
            Self::Silent(within) => DbError::silent("begin", within),
        }
    }
}

fn refused(statement: &DbError, commit: &Result<Sent, DbError>) -> bool {
    statement.server_decided() && commit.as_ref().is_err_and(DbError::server_decided)
}

impl Drop for Tx {
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            // Neither committed nor rolled back: closing the connection is the only rollback that needs no answer.
            drop(Object::take(client));
        }
    }
}

//! Brings the schema up to date, safely with several replicas starting together.
//!
//! The migration library takes no lock of its own (`spec/reliability.md` §1.9), so a session advisory lock surrounds it.

use refinery::{Migration, Runner};

use super::error::DbError;
use super::pool::Pool;

const MIGRATIONS: &[(i32, &str, &str)] = include!(concat!(env!("OUT_DIR"), "/migrations.rs"));
/// Any constant: the letters "once" as a number. Held for the length of a migration only.
const LOCK: i64 = 0x6f6e_6365;
const LOCK_HISTORY: &str = "SELECT pg_advisory_lock($1)";
const UNLOCK_HISTORY: &str = "SELECT pg_advisory_unlock($1)";
const MAY_WRITE: &str = "SET default_transaction_read_only = off";
const SCHEMA_EXISTS: &str = "SELECT to_regnamespace('onceflow') IS NOT NULL";
const CREATE_SCHEMA: &str = "CREATE SCHEMA IF NOT EXISTS onceflow";
/// Where the schema and its history belong to one role that we are a member of, what we make is to belong to it too: its default
/// privileges give the other roles their rights.
const BECOME_OWNER: &str = "
    SELECT set_config('role', o.rolname, false)
    FROM pg_namespace n JOIN pg_roles o ON o.oid = n.nspowner
    WHERE n.nspname = 'onceflow' AND o.rolname <> current_user AND pg_has_role(o.oid, 'USAGE')
      AND o.oid = (SELECT relowner FROM pg_class WHERE oid = to_regclass('onceflow.refinery_schema_history'))";
const BE_OURSELVES: &str = "RESET ROLE";
const APPLIED: &str = "SELECT max(version) FROM onceflow.refinery_schema_history";
const TEXT_IS_INDEXED: &str = "SELECT to_regclass('onceflow.dead_letter_by_text') IS NOT NULL";
const HISTORY_EXISTS: &str = "SELECT to_regclass('onceflow.refinery_schema_history') IS NOT NULL";

/// Why the schema could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The database said no, or was away.
    #[error(transparent)]
    Database(#[from] DbError),
    /// A migration failed or does not fit what was applied before.
    #[error("migration: {0}")]
    Migration(#[from] refinery::Error),
}

/// How far the schema is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchemaState {
    /// Number of the newest migration that the database has; 0 for none.
    pub applied: i32,
    /// Number of the newest migration that this build knows.
    pub known: i32,
}

impl SchemaState {
    /// Whether this build can run on the database. A newer schema is fine: migrations expand before they contract.
    pub fn is_ready(self) -> bool {
        self.applied >= self.known
    }
}

/// Applies what is missing and returns the names of what was applied.
///
/// # Errors
/// When the database is away or a migration fails; a failed one leaves nothing behind.
pub async fn migrate(pool: &Pool) -> Result<Vec<String>, MigrateError> {
    let mut connection = pool.connection().await?;
    let step = |doing| move |e| DbError::postgres(doing, e);
    connection.execute(MAY_WRITE, &[]).await.map_err(step("prepare"))?;
    connection.execute("SET lock_timeout = 0", &[]).await.map_err(step("prepare"))?;
    connection.execute("SET statement_timeout = 0", &[]).await.map_err(step("prepare"))?;
    connection.execute(LOCK_HISTORY, &[&LOCK]).await.map_err(step("lock"))?;
    // Asking IF NOT EXISTS takes the right to create schemas, which the owner of this one need not have.
    if !connection.query_one(SCHEMA_EXISTS, &[]).await.map_err(step("look for the schema"))?.get::<_, bool>(0) {
        connection.batch_execute(CREATE_SCHEMA).await.map_err(step("create schema"))?;
    }
    connection.execute(BECOME_OWNER, &[]).await.map_err(step("become the owner"))?;
    let result = runner()?.run_async(&mut **connection.as_mut()).await;
    connection.batch_execute(BE_OURSELVES).await.map_err(step("reset the role"))?;
    connection.execute(UNLOCK_HISTORY, &[&LOCK]).await.map_err(step("unlock"))?;
    Ok(result?.applied_migrations().iter().map(|m| format!("{:04}_{}", m.version(), m.name())).collect())
}

/// Compares the database with this build; changes nothing.
///
/// # Errors
/// When the database is away.
pub async fn schema_state(pool: &Pool) -> Result<SchemaState, DbError> {
    let known = MIGRATIONS.iter().map(|(number, ..)| *number).max().unwrap_or(0);
    let connection = pool.connection().await?;
    let step = |e| DbError::postgres("read the schema's version", e);
    let exists: bool = connection.query_one(HISTORY_EXISTS, &[]).await.map_err(step)?.get(0);
    let applied = if exists {
        connection.query_one(APPLIED, &[]).await.map_err(step)?.get::<_, Option<i32>>(0).unwrap_or(0)
    } else {
        0
    };
    Ok(SchemaState { applied, known })
}

/// Whether dead letters are found by text without reading all of them: migrations make the index only where the login may make
/// the extension that it needs.
///
/// # Errors
/// When the database is away.
pub async fn text_is_indexed(pool: &Pool) -> Result<bool, DbError> {
    let connection = pool.connection().await?;
    let row = connection.query_one(TEXT_IS_INDEXED, &[]).await;
    Ok(row.map_err(|e| DbError::postgres("look for an index", e))?.get(0))
}

fn runner() -> Result<Runner, refinery::Error> {
    let migrations: Result<Vec<_>, _> =
        MIGRATIONS.iter().map(|(number, name, sql)| Migration::unapplied(&format!("V{number}__{name}"), sql)).collect();
    Ok(Runner::new(&migrations?).set_abort_missing(false))
}

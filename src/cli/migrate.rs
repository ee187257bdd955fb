//! `onceflow migrate`

use serde_json::json;

use super::context::Context;
use super::exit::{Ending, Exit, Failure};
use super::output::Rows;
use crate::config::Role;
use crate::db::{self, DbError, MigrateError, SchemaState};

pub(super) const EXAMPLES: &str = "\
Examples:
  onceflow migrate                 apply what is missing; safe to run from several places at once
  onceflow migrate --status        compare only; exit 5 when the schema is behind

Migrations only go forward and are safe while the previous version still runs.";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Change nothing; exit 5 when the schema is behind this build
    #[arg(long)]
    status: bool,
}

pub(super) async fn run(context: &Context, args: &Args) -> Ending {
    let config = context.load_config()?;
    let address = config.database.address();
    let pool = config.database.pool(Role::Admin);
    let pool = pool.map_err(|e| Failure::new(Exit::Configuration, "database.url can't be used").because(e))?;
    let applied = if args.status { Vec::new() } else { migrate(&pool, &address).await? };
    let state = db::schema_state(&pool).await.map_err(|e| away(&address, &e))?;
    let data = json!({ "applied": applied, "at": state.applied, "known": state.known, "ready": state.is_ready() });
    context.out.data("onceflow.migrate/1", &data, || table(&applied, state))?;
    if state.is_ready() {
        return Ok(Exit::Ok);
    }
    Err(Failure::new(Exit::Conflict, format!("the schema is at {}, this build needs {}", state.applied, state.known))
        .or_try("onceflow migrate"))
}

async fn migrate(pool: &db::Pool, address: &str) -> Result<Vec<String>, Failure> {
    db::migrate(pool).await.map_err(|error| match error {
        MigrateError::Database(error) => away(address, &error),
        error @ MigrateError::Migration(_) => {
            Failure::new(Exit::Failed, "a migration failed; it left nothing behind").because(error)
        }
    })
}

/// The failure for a database that can't be reached, or says no.
fn away(address: &str, error: &DbError) -> Failure {
    let exit = if error.is_transient() { Exit::Unreachable } else { Exit::Failed };
    Failure::new(exit, format!("the database at {address}"))
        .because(error)
        .or_try("ONCEFLOW_DATABASE_URL, or `onceflow check`")
}

fn table(applied: &[String], state: SchemaState) -> Rows {
    let mut rows = Rows::new(&["APPLIED", "SCHEMA AT", "NEEDED"]);
    let names = if applied.is_empty() { "nothing".to_owned() } else { applied.join(" ") };
    rows.push(vec![names, state.applied.to_string(), state.known.to_string()]);
    rows
}

//! `onceflow migrate`

use serde_json::json;

use super::context::Context;
use super::exit::{Ending, Exit, Failure};
use super::output::{Format, Rows};
use crate::config::Role;
use crate::db::{self, Changes, DbError, Grant, MigrateError, Roles, SchemaState};

pub(super) const EXAMPLES: &str = "\
Examples:
  onceflow migrate                              apply what is missing; safe to run from several places at once
  onceflow migrate --status                     compare only; exit 5 when the schema is behind
  onceflow migrate --roles                      then make the group roles and set what each may do
  onceflow migrate --roles --dry-run | less     the SQL of that, for whoever runs the database

Migrations only go forward and are safe while the previous version still runs.
--roles makes onceflow_owner, onceflow_app, onceflow_relay and onceflow_readonly, which can't log in: grant them to logins. It says what
it changed, may be repeated, and needs a superuser, or a login with CREATEROLE that owns the schema.";

const SLOW_TEXT: &str = "`dlq list --text` will read every dead letter: the extension pg_trgm could not be made. Whoever runs the \
    database can add it and the index, see \"Searching by text\" in docs/OPERATIONS.md";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Change nothing; exit 5 when the schema is behind this build
    #[arg(long, conflicts_with = "roles")]
    status: bool,
    /// Then make the group roles of least privilege, and set their grants
    #[arg(long)]
    roles: bool,
    /// First part of the roles' names
    #[arg(long, value_name = "PREFIX", default_value = "onceflow", value_parser = Roles::new, requires = "roles")]
    role_prefix: Roles,
    /// Print the SQL of --roles and do nothing
    #[arg(long, requires = "roles")]
    dry_run: bool,
}

pub(super) async fn run(context: &Context, args: &Args) -> Ending {
    if args.dry_run {
        return told(context, &args.role_prefix.sql());
    }
    let config = context.load_config()?;
    let address = config.database.address();
    let pool = config.database.pool(Role::Admin);
    let pool = pool.map_err(|e| Failure::new(Exit::Configuration, "database.url can't be used").because(e))?;
    let applied = if args.status { Vec::new() } else { migrate(&pool, &address).await? };
    let state = db::schema_state(&pool).await.map_err(|e| away(&address, &e))?;
    if state.is_ready() && !db::text_is_indexed(&pool).await.map_err(|e| away(&address, &e))? {
        context.out.say(SLOW_TEXT);
    }
    if args.roles {
        let changes = args.role_prefix.apply(&pool).await.map_err(|e| refused(&address, &e))?;
        return roles(context, &applied, &changes);
    }
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

fn told(context: &Context, sql: &str) -> Ending {
    match context.out.format {
        Format::Table => context.out.text(sql)?,
        _ => context.out.data("onceflow.migrate.roles/1", &json!({ "sql": sql }), Rows::default)?,
    }
    Ok(Exit::Ok)
}

fn roles(context: &Context, applied: &[String], changes: &Changes) -> Ending {
    let data = json!({ "applied": applied, "roles": changes });
    context.out.data("onceflow.migrate.roles/1", &data, || changed(changes))?;
    if changes.created.is_empty() && changes.granted.is_empty() && changes.revoked.is_empty() {
        context.out.say("the roles are as they should be: nothing was changed");
    }
    if !changes.owners.is_empty() {
        let owners = changes.owners.join(", ");
        context.out.say(&format!("logins that may change the schema: {owners}. Services need the app's role only"));
    }
    if changes.public_is_open {
        context
            .out
            .say("the schema public is in use and stays open to everybody: REVOKE ALL ON SCHEMA public FROM PUBLIC");
    }
    Ok(Exit::Ok)
}

/// The failure for a database that can't be reached, or says no.
fn away(address: &str, error: &DbError) -> Failure {
    let exit = if error.is_transient() { Exit::Unreachable } else { Exit::Failed };
    Failure::new(exit, format!("the database at {address}"))
        .because(error)
        .or_try("ONCEFLOW_DATABASE_URL, or `onceflow check`")
}

fn refused(address: &str, error: &DbError) -> Failure {
    let nothing = "the roles were not set up; nothing was changed";
    match error.sqlstate() {
        Some("42501") => Failure::new(Exit::Denied, nothing)
            .because(error)
            .or_try("a superuser, or a login with CREATEROLE that owns the schema; `--dry-run` prints the SQL"),
        Some("55P03") => Failure::new(Exit::TimedOut, nothing).because(error).or_try("again: a table was in use"),
        _ => away(address, error),
    }
}

fn table(applied: &[String], state: SchemaState) -> Rows {
    let mut rows = Rows::new(&["APPLIED", "SCHEMA AT", "NEEDED"]);
    let names = if applied.is_empty() { "nothing".to_owned() } else { applied.join(" ") };
    rows.push(vec![names, state.applied.to_string(), state.known.to_string()]);
    rows
}

fn changed(changes: &Changes) -> Rows {
    let mut rows = Rows::new(&["CHANGE", "ROLE", "PRIVILEGE", "ON"]);
    for role in &changes.created {
        rows.push(vec!["created".to_owned(), role.clone(), String::new(), String::new()]);
    }
    let mut add = |change: &str, grants: &[Grant]| {
        for Grant { role, privilege, object } in grants {
            rows.push(vec![change.to_owned(), role.clone(), privilege.clone(), object.clone()]);
        }
    };
    add("granted", &changes.granted);
    add("revoked", &changes.revoked);
    rows
}

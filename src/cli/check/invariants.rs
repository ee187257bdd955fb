//! `onceflow check invariants`: whether what must always hold does, asked of a database that is at work. Changes nothing.

use std::time::Duration;

use serde::Serialize;

use super::super::context::{Context, duration};
use super::super::exit::{Ending, Exit, Failure};
use super::super::output::Rows;
use crate::config::{Config, Role};
use crate::db::{self, DbError, Pool};
use crate::domains;
use crate::invariants::{self, Bounds, Finding, State};

pub(super) const EXAMPLES: &str = "\
Examples:
  onceflow check invariants                        rows that changed within the last day
  onceflow check invariants --since 7d --within 1m
  onceflow check invariants --full                 everything, and the books of the outbox
  onceflow check invariants --only payment-paid-once --limit 20
  onceflow check invariants -o json | jq '.items[] | select(.state == \"violated\")'

Works beside a running service and needs none: read-only, in short statements, also as a role that may only read. Use the
service's configuration, so that what its retention removes is not taken as missing.
Exit codes: 0 nothing is violated, 1 something is, 7 the database can't be reached, 9 not everything could be looked at in time.";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Look at rows that changed within this time, e.g. 2h, 7d
    #[arg(long, value_name = "TIME", value_parser = back, default_value = "24h", conflicts_with = "full")]
    since: Duration,
    /// Look at everything, and add up whole tables
    #[arg(long)]
    full: bool,
    /// Longest time for each invariant
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10s")]
    within: Duration,
    /// Most examples shown of each
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..=1000), default_value_t = 5)]
    limit: i32,
    /// Only these, by name
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    items: Vec<Finding>,
}

pub(super) async fn run(context: &Context, args: &Args) -> Ending {
    let config = context.load_config()?;
    let chosen = chosen(&args.only)?;
    let pool = config.database.pool(Role::Admin);
    let pool = pool.map_err(|e| Failure::new(Exit::Configuration, "database.url can't be used").because(e))?;
    reachable(context, &config, &pool).await?;
    let bounds = Bounds {
        since: (!args.full).then_some(args.since),
        within: args.within,
        statement: config.database.statement_timeout(),
        examples: args.limit,
        retention: config.retention,
    };
    let mut items = Vec::new();
    for invariant in &chosen {
        items.push(invariants::check(&pool, invariant, &bounds).await.map_err(|e| away(&config, invariant.name, &e))?);
    }
    let report = Report { items };
    context.out.data("onceflow.check.invariants/1", &report, || table(&report))?;
    verdict(&report)
}

async fn reachable(context: &Context, config: &Config, pool: &Pool) -> Result<(), Failure> {
    let address = config.database.address();
    let silent = || Failure::new(Exit::Unreachable, format!("the database at {address}")).because("no answer in time");
    let state = tokio::time::timeout(context.timeout, db::schema_state(pool)).await.map_err(|_| silent())?;
    let state = state.map_err(|e| away(config, "migrations", &e))?;
    if state.is_ready() {
        return Ok(());
    }
    let what = format!("the schema is at {}, this build needs {}", state.applied, state.known);
    Err(Failure::new(Exit::Conflict, what).or_try("onceflow migrate"))
}

fn away(config: &Config, doing: &str, error: &DbError) -> Failure {
    let denied = error.sqlstate() == Some("42501");
    let (exit, remedy) = match denied {
        true => (Exit::Denied, "a login with the role onceflow_readonly, see `onceflow migrate --roles`"),
        false if error.is_transient() => (Exit::Unreachable, "ONCEFLOW_DATABASE_URL, or `onceflow check`"),
        false => (Exit::Failed, "does this build fit the schema? `onceflow migrate --status`"),
    };
    let what = format!("{doing} can't be asked of the database at {}", config.database.address());
    Failure::new(exit, what).because(error).or_try(remedy)
}

fn chosen(only: &[String]) -> Result<Vec<crate::runtime::Invariant>, Failure> {
    let all = invariants::all(&domains::consumers());
    let known: Vec<&str> = all.iter().map(|invariant| invariant.name).collect();
    if let Some(unknown) = only.iter().find(|name| !known.contains(&name.as_str())) {
        let there = format!("there are {}", known.join(", "));
        return Err(Failure::new(Exit::NotFound, format!("there is no invariant {unknown:?}")).or_try(there));
    }
    Ok(all.into_iter().filter(|invariant| only.is_empty() || only.iter().any(|name| name == invariant.name)).collect())
}

fn verdict(report: &Report) -> Ending {
    let names = |state: State| {
        let of_state = report.items.iter().filter(|finding| finding.state == state);
        of_state.map(|finding| finding.invariant).collect::<Vec<_>>()
    };
    let (violated, unfinished) = (names(State::Violated), names(State::Unfinished));
    if !violated.is_empty() {
        let what = format!("{} invariants are violated: {}", violated.len(), violated.join(", "));
        return Err(
            Failure::new(Exit::Failed, what).or_try("what the report says of each; `--limit` shows more examples")
        );
    }
    if !unfinished.is_empty() {
        let what = format!("not everything was looked at: {}", unfinished.join(", "));
        return Err(Failure::new(Exit::TimedOut, what).or_try("a longer --within, or a shorter --since"));
    }
    Ok(Exit::Ok)
}

fn table(report: &Report) -> Rows {
    let mut rows = Rows::new(&["INVARIANT", "STATE", "LOOKED AT", "BROKEN", "DETAIL"]);
    for finding in &report.items {
        let state = match finding.state {
            State::Ok => "ok",
            State::Violated => "VIOLATED",
            State::Notice => "notice",
            State::Unfinished => "UNFINISHED",
            State::Skipped => "skipped",
        };
        let detail = finding.why.clone().unwrap_or_else(|| finding.says.to_owned());
        let (looked, broken) = (finding.looked.to_string(), finding.broken.to_string());
        rows.push_whole(vec![finding.invariant.to_owned(), state.to_owned(), looked, broken, detail]);
        for line in finding.examples.iter().cloned().chain(finding.remedy.map(|remedy| format!("try: {remedy}"))) {
            let empty = String::new;
            rows.push_whole(vec![empty(), empty(), empty(), empty(), line]);
        }
    }
    rows
}

/// Also whole days, which a time of its own does not know.
fn back(text: &str) -> Result<Duration, String> {
    let days = text.strip_suffix('d').and_then(|days| days.parse::<u32>().ok()).filter(|days| *days > 0);
    match days {
        Some(days) => Ok(Duration::from_secs(u64::from(days) * 86_400)),
        None => duration(text).map_err(|_| "a time such as 2h, 24h or 7d is needed".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_read_in_hours_and_days() {
        assert_eq!(back("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(back("7d"), Ok(Duration::from_secs(7 * 86_400)));
        for wrong in ["", "d", "0d", "-1d", "soon"] {
            assert!(back(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_invariant_has_a_name_of_its_own_and_says_what_to_do() {
        let all = invariants::all(&domains::consumers());
        let names: std::collections::BTreeSet<_> = all.iter().map(|invariant| invariant.name).collect();
        assert_eq!(names.len(), all.len());
        assert!(all.iter().all(|invariant| !invariant.says.is_empty() && !invariant.remedy.is_empty()));
        for name in ["outbox-causes", "payment-paid-once", "org-versions", "sms-requests-come-from-events"] {
            assert!(names.contains(name), "{name}");
        }
    }
}

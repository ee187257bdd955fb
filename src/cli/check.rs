//! `onceflow check`: configuration, reachability, schema, and what the broker holds that differs.

mod invariants;

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::context::Context;
use super::exit::{Ending, Exit, Failure};
use super::output::Rows;
use crate::broker::{Link, Purpose};
use crate::config::{Config, Role};
use crate::db;
use crate::domains;
use crate::health::Health;
use crate::runtime::layout::{self, Layout};
use crate::runtime::{ConsumerSettings, OrderPolicy, Place, Unavailable, egress_topology};

pub(super) const EXAMPLES: &str = "\
Examples:
  onceflow check
  onceflow check -o json | jq '.items[] | select(.state != \"ok\")'

Exchanges, queues and bindings that are missing are declared by the check, as `onceflow run` would do. On a new
installation it decides how many partitions each consumer has; later only `onceflow topology apply` changes that.
`onceflow check invariants` asks the tables instead, and changes nothing.
Exit codes: 6 configuration, 7 broker or database unreachable, 1 anything else that is not ok.";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Whether what must always hold in the tables does; changes nothing.
    #[command(after_help = invariants::EXAMPLES)]
    Invariants(invariants::Args),
}

#[derive(Debug, Serialize)]
struct Report {
    items: Vec<Finding>,
}

#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    /// `ok`, `unreachable` or `fail`.
    state: &'static str,
    detail: String,
    #[serde(rename = "try")]
    remedy: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, state: "ok", detail: detail.into(), remedy: None }
    }

    fn bad(check: &'static str, state: &'static str, detail: impl Into<String>, remedy: &str) -> Self {
        Self { check, state, detail: detail.into(), remedy: Some(remedy.to_owned()) }
    }
}

pub(super) async fn run(context: &Context, args: &Args) -> Ending {
    match &args.command {
        Some(Command::Invariants(args)) => invariants::run(context, args).await,
        None => installation(context).await,
    }
}

async fn installation(context: &Context) -> Ending {
    let config = context.load_config()?;
    let place = config.file.as_ref().map_or_else(|| "environment and defaults".to_owned(), |f| f.display().to_string());
    let mut items = vec![Finding::ok("configuration", place)];
    items.extend(database(&config, context.timeout).await);
    let migrated = items.iter().any(|finding| finding.check == "migrations" && finding.state == "ok");
    items.extend(broker(&config, migrated, context.timeout).await);
    let report = Report { items };
    context.out.data("onceflow.check/1", &report, || table(&report))?;
    let count = |state: &str| report.items.iter().filter(|f| f.state == state).count();
    match (count("unreachable"), count("fail")) {
        (0, 0) => Ok(Exit::Ok),
        (0, failed) => Err(Failure::new(Exit::Failed, format!("{failed} checks failed"))),
        (away, _) => Err(Failure::new(Exit::Unreachable, format!("{away} dependencies can't be reached"))),
    }
}

async fn database(config: &Config, within: Duration) -> Vec<Finding> {
    let remedy = "database.url or ONCEFLOW_DATABASE_URL; is the server up?";
    let address = config.database.address();
    let pool = match config.database.pool(Role::Admin) {
        Ok(pool) => pool,
        Err(error) => return vec![Finding::bad("database", "fail", error.to_string(), remedy)],
    };
    match tokio::time::timeout(within, db::schema_state(&pool)).await {
        Ok(Ok(state)) if state.is_ready() => vec![
            Finding::ok("database", address),
            Finding::ok("migrations", format!("at {}, {} needed", state.applied, state.known)),
        ],
        Ok(Ok(state)) => {
            let detail = format!("at {}, {} needed", state.applied, state.known);
            vec![Finding::ok("database", address), Finding::bad("migrations", "fail", detail, "onceflow migrate")]
        }
        Ok(Err(error)) => vec![Finding::bad("database", "unreachable", format!("{address}: {error}"), remedy)],
        Err(_) => {
            vec![Finding::bad("database", "unreachable", format!("{address}: no answer within {within:?}"), remedy)]
        }
    }
}

async fn broker(config: &Config, migrated: bool, within: Duration) -> Vec<Finding> {
    let address = config.broker.address();
    let link = Link::new(config.broker.clone(), Purpose::Consume, Arc::new(Health::default()));
    let findings = match tokio::time::timeout(within, declare(config, migrated, &link)).await {
        Ok(Ok(findings)) => findings,
        Ok(Err(Unavailable::Database(error))) => {
            vec![Finding::bad("topology", "fail", error.to_string(), "mend the database, then check again")]
        }
        Ok(Err(Unavailable::Broker(error))) => vec![unreachable(format!("{address}: {error}"))],
        Err(_) => vec![unreachable(format!("{address}: no answer within {within:?}"))],
    };
    link.close().await;
    findings
}

/// Declares everything that a running service does, as the stored layouts say.
async fn declare(config: &Config, migrated: bool, link: &Link) -> Result<Vec<Finding>, Unavailable> {
    let mut refusals = egress_topology(&config.runtime.names).declare_all(link).await?;
    let mut findings = vec![Finding::ok("broker", config.broker.address())];
    if !migrated {
        let detail = "how many queues each consumer has is stored in the database";
        findings.push(Finding::bad("topology", "fail", detail, "mend the database first, then check again"));
        return Ok(findings);
    }
    let Ok(pool) = config.database.pool(Role::Admin) else { return Ok(findings) };
    let mut advice = Vec::new();
    for consumer in domains::consumers() {
        let Some(own) = config.consumers.iter().find(|c| c.name == consumer.name()) else { continue };
        let place = Place { settings: &config.runtime, own, patterns: consumer.bindings() };
        let (layout, refused) = layout::lay_out_all(&pool, link, place).await?;
        refusals.extend(refused);
        advice.extend(own.differs_from(layout).map(|differs| advised(&differs, layout)));
        advice.extend(order_of(own, layout));
    }
    if refusals.is_empty() {
        findings.push(Finding::ok("topology", "as stored"));
    }
    findings.extend(advice);
    // The refusal says what differs and what to do.
    findings.extend(refusals.into_iter().map(|r| Finding { remedy: None, ..Finding::bad("topology", "fail", r, "") }));
    Ok(findings)
}

/// A wish that isn't met is no failure: the service works with what there is.
fn advised(differs: &str, layout: Layout) -> Finding {
    let detail = differs.rsplit_once(": ").map_or(differs, |(detail, _)| detail);
    let remedy = if layout.moving_to.is_some() { "onceflow topology apply" } else { "onceflow topology plan" };
    Finding { remedy: Some(remedy.to_owned()), ..Finding::ok("partitions", detail) }
}

/// Who is strict is told, and what that rests on.
fn order_of(own: &ConsumerSettings, layout: Layout) -> Option<Finding> {
    let name = &own.name;
    match own.ordering {
        OrderPolicy::Versioned => None,
        OrderPolicy::Strict if layout.partitions > 1 => Some(Finding::ok(
            "ordering",
            format!("{name} is strict: what follows a failed event of its key waits for it"),
        )),
        OrderPolicy::Strict => Some(Finding {
            remedy: Some(format!("consumers.{name}.partitions above 1, where several replicas run")),
            ..Finding::ok("ordering", format!("{name} is strict; with one queue its order holds with one replica only"))
        }),
    }
}

fn unreachable(detail: String) -> Finding {
    Finding::bad(
        "broker",
        "unreachable",
        detail,
        "broker.url or ONCEFLOW_AMQP_URL; is the server up, may the user log in?",
    )
}

fn table(report: &Report) -> Rows {
    let mut rows = Rows::new(&["CHECK", "STATE", "DETAIL", "TRY"]);
    for f in &report.items {
        rows.push_whole(vec![
            f.check.to_owned(),
            f.state.to_owned(),
            f.detail.clone(),
            f.remedy.clone().unwrap_or_default(),
        ]);
    }
    rows
}

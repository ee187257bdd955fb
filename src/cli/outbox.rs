//! `onceflow outbox …`

use clap::Subcommand;
use uuid::Uuid;

use super::context::Context;
use super::exit::{Ending, Exit, Failure};
use super::output::{Rows, age, time};
use crate::admin::wire::{ParkedRequest, Touched};
use crate::replay::control::OutboxStatus;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Pending and parked rows, and who publishes which partition.
    #[command(after_help = "Examples:\n  onceflow outbox status\n  onceflow outbox status -o json | jq .parked_rows")]
    Status,
    /// Hand parked rows back to the relay.
    #[command(after_help = "Examples:\n  onceflow outbox retry --all --reason 'queue is bound now'")]
    Retry(Args),
    /// Drop parked rows: these downstream events are never published.
    #[command(after_help = "Examples:\n  onceflow outbox discard 0197…-… --reason 'nobody needs it'")]
    Discard(Args),
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Ids of parked rows
    #[arg(value_name = "ID", required_unless_present = "all")]
    ids: Vec<Uuid>,
    /// All that are parked now (at most 1000)
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    /// Why; kept in the audit
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

pub(super) async fn run(context: &Context, command: Command) -> Ending {
    match command {
        Command::Status => status(context).await,
        Command::Retry(args) => change(context, &args, "retry").await,
        Command::Discard(args) => change(context, &args, "discard").await,
    }
}

async fn status(context: &Context) -> Ending {
    let status: OutboxStatus = context.client()?.get("outbox", &()).await?;
    context.out.data("onceflow.outbox.status/1", &status, || partitions(&status))?;
    let oldest = age(status.oldest_pending_age_seconds);
    context.out.say(&format!("{} pending (oldest {oldest}), {} parked", status.pending, status.parked));
    if context.out.format == super::output::Format::Table && !status.parked_rows.is_empty() {
        context.out.text(&format!("\n{}", parked(&status).render()))?;
        context.out.say("  -> onceflow outbox retry --all --reason ...   (or discard)");
    }
    Ok(Exit::Ok)
}

async fn change(context: &Context, args: &Args, verb: &str) -> Ending {
    let client = context.client()?;
    let ids = if args.all {
        let status: OutboxStatus = client.get("outbox", &()).await?;
        status.parked_rows.iter().map(|row| row.id).collect()
    } else {
        args.ids.clone()
    };
    if ids.is_empty() {
        return Err(Failure::new(Exit::NotFound, "nothing is parked"));
    }
    let asked = ids.len();
    let body = ParkedRequest { ids, reason: args.reason.clone() };
    let touched: Touched = client.post(&format!("outbox/{verb}"), &body).await?;
    context.out.data(&format!("onceflow.outbox.{verb}/1"), &touched, || {
        let mut rows = Rows::new(&["ASKED", "CHANGED"]);
        rows.push(vec![asked.to_string(), touched.count.to_string()]);
        rows
    })?;
    match touched.count {
        0 => Err(Failure::new(Exit::NotFound, "none of these rows is parked").or_try("onceflow outbox status")),
        count if count < asked => Ok(Exit::Partly),
        _ => Ok(Exit::Ok),
    }
}

fn partitions(status: &OutboxStatus) -> Rows {
    let mut rows = Rows::new(&["PARTITION", "HOLDER", "EPOCH", "PENDING", "CONFIRMED", "REPLAYED"]);
    for p in &status.partitions {
        let holder = p.holder.clone().unwrap_or_else(|| "-".to_owned());
        let numbers = [p.epoch, p.pending, p.confirmed, p.replayed].map(|n| n.to_string());
        rows.push([vec![p.partition.to_string(), holder], numbers.to_vec()].concat());
    }
    rows
}

fn parked(status: &OutboxStatus) -> Rows {
    let mut rows = Rows::new(&["PARKED ROW", "TYPE", "AGGREGATE", "ATTEMPTS", "SINCE", "REASON"]);
    for row in &status.parked_rows {
        rows.push(vec![
            row.id.to_string(),
            row.event_type.clone(),
            row.aggregate_id.clone(),
            row.attempts.to_string(),
            time(row.parked_at),
            row.reason.clone(),
        ]);
    }
    rows
}

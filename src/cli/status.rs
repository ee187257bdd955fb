//! `onceflow status`: one screen, with the next command suggested.

use super::context::Context;
use super::exit::{Ending, Exit, Failure};
use super::output::{Rows, age};
use crate::admin::wire::{ConsumerReport, StatusReport};

pub(super) const EXAMPLES: &str = "\
Examples:
  onceflow status
  onceflow status -o json | jq '.consumers[] | {consumer, state, dead_open}'
  onceflow status --fail-unready            exit 7 unless everything is ready";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Exit 7 unless every check is met
    #[arg(long)]
    fail_unready: bool,
}

pub(super) async fn run(context: &Context, args: &Args) -> Ending {
    let client = context.client()?;
    let report: StatusReport = client.get("status", &()).await?;
    context.out.data("onceflow.status/1", &report, || table(&report))?;
    advise(context, client.address(), &report);
    if args.fail_unready && !report.ready {
        return Err(Failure::new(Exit::Unreachable, "the service is not ready").because(waiting(&report)));
    }
    Ok(Exit::Ok)
}

/// The consumers as rows; shared with `consumers list`.
pub(super) fn consumers_table(consumers: &[ConsumerReport]) -> Rows {
    let mut rows =
        Rows::new(&["CONSUMER", "STATE", "APPLIED", "DUPLICATE", "STALE", "RETRIED", "DEAD NOW", "OLDEST", "WHY"]);
    for c in consumers {
        let count = |outcome: &str| c.since_start.get(outcome).copied().unwrap_or(0).to_string();
        rows.push(vec![
            c.consumer.clone(),
            c.state.clone(),
            count("applied"),
            count("duplicate"),
            count("stale"),
            count("retry"),
            dead(c),
            age(c.dead_oldest_age_seconds),
            c.why.clone().unwrap_or_default(),
        ]);
    }
    rows
}

fn table(report: &StatusReport) -> Rows {
    consumers_table(&report.consumers)
}

fn dead(consumer: &ConsumerReport) -> String {
    match (consumer.dead_open, consumer.dead_groups) {
        (Some(0), _) => "0".to_owned(),
        (Some(open), Some(groups)) => format!("{open} in {groups}"),
        _ => "?".to_owned(),
    }
}

fn advise(context: &Context, address: &str, report: &StatusReport) {
    let out = &context.out;
    let ready = if report.ready { "ready".to_owned() } else { format!("NOT READY, {}", waiting(report)) };
    out.say(&format!("onceflow {} at {address}: {ready}", report.version));
    for advice in report.checks.values().filter(|check| check.state == "ok").filter_map(|check| check.why.as_ref()) {
        out.say(advice);
    }
    if let Some(problem) = &report.database_problem {
        out.say(&format!("{problem}; dead letters and outbox are unknown meanwhile"));
    }
    if let Some(outbox) = &report.outbox {
        let oldest = age(outbox.oldest_pending_age_seconds);
        out.say(&format!("outbox: {} pending (oldest {oldest}), {} parked", outbox.pending, outbox.parked));
        if outbox.parked > 0 {
            out.say("  -> onceflow outbox status");
        }
    }
    for consumer in &report.consumers {
        if let Some(partitions) = consumer.partitions.filter(|partitions| *partitions > 1) {
            out.say(&format!("{}: {partitions} partitions", consumer.consumer));
        }
        if consumer.dead_open.is_some_and(|open| open > 0) {
            out.say(&format!("  -> onceflow dlq groups --consumer {}", consumer.consumer));
        }
        if let (Some(held), Some(keys)) = (consumer.held_events.filter(|held| *held > 0), consumer.blocked_keys) {
            let name = &consumer.consumer;
            out.say(&format!("{name}: {held} events wait behind failed ones of {keys} keys"));
        }
        // A kill switch closes by itself.
        if consumer.switch.as_ref().is_some_and(|switch| switch.paused) {
            out.say(&format!("  -> onceflow consumers resume {} --reason ...", consumer.consumer));
        }
    }
}

fn waiting(report: &StatusReport) -> String {
    let waits = report.checks.iter().filter(|(_, check)| check.state == "waiting");
    let waits: Vec<String> = waits
        .map(|(name, check)| match &check.why {
            Some(why) => format!("{name}: {why}"),
            None => name.clone(),
        })
        .collect();
    if waits.is_empty() { "it is still starting".to_owned() } else { format!("waiting for {}", waits.join("; ")) }
}

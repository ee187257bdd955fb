//! `onceflow jobs …`: replays and discards of many dead letters.

mod watch;

use std::collections::BTreeMap;

use clap::Subcommand;
use uuid::Uuid;

pub(super) use watch::watch;

use super::context::Context;
use super::dlq::{rate, say_hints};
use super::exit::{Ending, Exit};
use super::output::{Rows, age, time};
use crate::admin::wire::{JobChange, Jobs};
use crate::replay::job::Job;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Jobs, newest first.
    #[command(after_help = "Examples:\n  onceflow jobs list\n  onceflow jobs list --limit 5 -o jsonl")]
    List(ListArgs),
    /// One job with its plan and its books.
    #[command(after_help = "Examples:\n  onceflow jobs show 0197…-…\n  onceflow jobs show 0197…-… -o json | jq .plan")]
    Show(JobId),
    /// Follow a job to its end: exit 0 all succeeded, 4 some failed again or were skipped, 1 stopped, paused or cancelled.
    #[command(after_help = "Examples:\n  onceflow jobs watch 0197…-…\n  onceflow jobs watch 0197…-… -q -o json")]
    Watch(JobId),
    /// Agree to a large job that somebody else has planned; its undo window begins.
    #[command(after_help = "Examples:\n  onceflow jobs approve 0197…-… --reason 'looked at the plan'")]
    Approve(Approval),
    /// End the undo window now.
    #[command(after_help = "Examples:\n  onceflow jobs start 0197…-… --reason 'looked at it'")]
    Start(Steer),
    /// Send nothing more until it is resumed; what is on its way goes on.
    #[command(after_help = "Examples:\n  onceflow jobs pause 0197…-… --reason 'the bank asks'")]
    Pause(Steer),
    /// Go on after a pause.
    #[command(after_help = "Examples:\n  onceflow jobs resume 0197…-… --reason 'canary looked at'")]
    Resume(Steer),
    /// End it: in the undo window nothing was sent; later the rest stays open.
    #[command(after_help = "Examples:\n  onceflow jobs cancel 0197…-… --reason 'wrong filter'")]
    Cancel(Steer),
    /// Change its rate.
    #[command(after_help = "Examples:\n  onceflow jobs rate 0197…-… 200/s --reason 'night'")]
    Rate(RateArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// Most rows
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=200))]
    limit: u32,
}

#[derive(Debug, clap::Args)]
pub(super) struct JobId {
    /// The job
    #[arg(value_name = "JOB")]
    id: Uuid,
}

#[derive(Debug, clap::Args)]
pub(super) struct Steer {
    #[command(flatten)]
    job: JobId,
    /// Why; kept in the audit
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Approval {
    #[command(flatten)]
    job: JobId,
    /// Why; kept in the audit
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct RateArgs {
    #[command(flatten)]
    job: JobId,
    /// Dead letters a second at most
    #[arg(value_name = "N/s", value_parser = rate)]
    rate: u32,
    /// Why; kept in the audit
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

pub(super) async fn run(context: &Context, command: Command) -> Ending {
    match command {
        Command::List(args) => list(context, &args).await,
        Command::Show(args) => show(context, args.id).await,
        Command::Watch(args) => watch(context, &context.client()?, args.id).await,
        Command::Approve(args) => steer(context, (args.job.id, "approve"), Some(args.reason), None).await,
        Command::Start(args) => steer(context, (args.job.id, "start"), args.reason, None).await,
        Command::Pause(args) => steer(context, (args.job.id, "pause"), args.reason, None).await,
        Command::Resume(args) => steer(context, (args.job.id, "resume"), args.reason, None).await,
        Command::Cancel(args) => steer(context, (args.job.id, "cancel"), args.reason, None).await,
        Command::Rate(args) => steer(context, (args.job.id, "rate"), args.reason, Some(args.rate)).await,
    }
}

async fn list(context: &Context, args: &ListArgs) -> Ending {
    let query = BTreeMap::from([("limit", args.limit)]);
    let jobs: Jobs = context.client()?.get("jobs", &query).await?;
    context.out.data("onceflow.jobs.list/1", &jobs, || table(&jobs.items))?;
    if jobs.items.is_empty() {
        context.out.say("no job was ever planned");
    }
    Ok(Exit::Ok)
}

async fn show(context: &Context, id: Uuid) -> Ending {
    let job: Job = context.client()?.get(&format!("jobs/{id}"), &()).await?;
    context.out.data("onceflow.jobs.show/1", &job, || table(std::slice::from_ref(&job)))?;
    say_more(context, &job);
    Ok(Exit::Ok)
}

async fn steer(context: &Context, (id, verb): (Uuid, &str), reason: Option<String>, rate: Option<u32>) -> Ending {
    let body = JobChange { reason, rate };
    let job: Job = context.client()?.post(&format!("jobs/{id}/{verb}"), &body).await?;
    context.out.data(&format!("onceflow.jobs.{verb}/1"), &job, || table(std::slice::from_ref(&job)))?;
    if verb == "cancel" && job.succeeded + job.failed_again + job.in_flight == 0 {
        context.out.say("undone: nothing was sent");
    }
    Ok(Exit::Ok)
}

/// What doesn't fit into a row.
fn say_more(context: &Context, job: &Job) {
    let out = &context.out;
    out.say(&format!("{} by {}: {}", job.action.as_str(), job.actor, job.reason));
    for kind in job.plan.kinds.iter().take(10) {
        out.say(&format!("  {} {} {} {} {}", kind.count, kind.consumer, kind.event_type, kind.stage, kind.reason_code));
    }
    for left in &job.plan.left_out {
        out.say(&format!("left out when planned: {} {}", left.count, left.why.as_str()));
    }
    say_hints(context, &job.plan);
    if let Some(newcomers) = job.newcomers.filter(|n| *n > 0) {
        out.say(&format!("{newcomers} more have failed since the plan and are not in it"));
    }
    if let Some(why) = job.stop_reason.as_deref().or(job.waits_for.as_deref()) {
        out.say(&format!("{}: {why}", job.state.as_str()));
    }
}

/// Jobs as rows.
pub(super) fn table(jobs: &[Job]) -> Rows {
    let mut rows = Rows::new(&[
        "JOB",
        "ACTION",
        "STATE",
        "PLANNED",
        "WAITING",
        "IN FLIGHT",
        "OK",
        "FAILED",
        "SKIPPED",
        "RATE",
        "ETA",
        "BY",
        "CREATED",
    ]);
    for job in jobs {
        rows.push(vec![
            job.id.to_string(),
            job.action.as_str().to_owned(),
            job.state.as_str().to_owned(),
            job.planned.to_string(),
            job.waiting.to_string(),
            job.in_flight.to_string(),
            job.succeeded.to_string(),
            job.failed_again.to_string(),
            job.skipped.to_string(),
            format!("{}/s", job.settings.rate),
            age(job.eta_seconds.map(f64::from)),
            job.actor.clone(),
            time(job.created_at),
        ]);
    }
    rows
}

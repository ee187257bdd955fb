//! `onceflow dlq plan`

use super::super::context::Context;
use super::super::exit::{Ending, Exit, Failure};
use super::super::output::{Rows, age, printable};
use super::bulk::{self, JobArgs};
use super::change::{ChangeArgs, selection};
use crate::admin::wire::JobRequest;
use crate::replay::job::{Action, Plan, Planned, Target};

pub(super) const EXAMPLES: &str = "\
Examples:
  onceflow dlq plan --group 1a2b3c4d
  onceflow dlq plan --consumer sms --since 2h --rate 100/s
  onceflow dlq plan --all -o json | jq .count

Nothing is changed. `onceflow dlq replay` with the same filter and --expect-count N does exactly this.";

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    change: ChangeArgs,
    #[command(flatten)]
    job: JobArgs,
}

pub(super) async fn run(context: &Context, args: &Args) -> Ending {
    let request = bulk::request((Action::Replay, selection(&args.change)?), &args.change, &args.job);
    let planned: Planned = context.client()?.post("jobs", &JobRequest { dry_run: true, ..request }).await?;
    print(context, &planned.plan)
}

/// The plan; exit 3 where nothing is eligible.
pub(super) fn print(context: &Context, plan: &Plan) -> Ending {
    context.out.data("onceflow.dlq.plan/1", plan, || table(plan))?;
    for left in &plan.left_out {
        let ids: Vec<String> = left.ids.iter().take(3).map(ToString::to_string).collect();
        context.out.say(&format!("left out: {} {} ({})", left.count, left.why.as_str(), ids.join(", ")));
    }
    if plan.count == 0 {
        return Err(Failure::new(Exit::NotFound, "no open dead letter is eligible"));
    }
    let left = if plan.left > 0 { format!(", {} more stay", plan.left) } else { String::new() };
    let time = age(Some(f64::from(plan.seconds)));
    context.out.say(&format!(
        "{} dead letters{left}; about {time} at this rate, the first {} as a canary",
        plan.count, plan.canary
    ));
    say_hints(context, plan);
    for id in &plan.samples {
        context.out.say(&format!("  -> onceflow dlq show {id}"));
    }
    Ok(Exit::Ok)
}

/// What helps to decide: whether anything has changed since they failed, how busy their consumers are, what the payloads look like.
pub(in crate::cli) fn say_hints(context: &Context, plan: &Plan) {
    let say = |line: &str| context.out.say(&printable(line));
    if plan.same_version > 0 {
        let (same, count) = (plan.same_version, plan.count);
        say(&format!(
            "same version: {same} of {count} failed last in this very version and will likely fail again, unless the cause lay elsewhere"
        ));
    }
    let Some(hints) = &plan.hints else { return };
    for target in &hints.targets {
        say(&format!("{}: {}", target.consumer, busy(target)));
    }
    for preview in &hints.previews {
        let payload = preview.payload.as_deref().unwrap_or("(not shown)");
        say(&format!("  {} {} {} B {payload}", preview.group, preview.event_type, preview.bytes));
    }
}

fn busy(target: &Target) -> String {
    let backlog =
        target.backlog.map_or("how much waits for it is not known".to_owned(), |n| format!("{n} messages wait for it"));
    let p95 = target.p95_ms.map_or("too few live deliveries here to tell how long they take".to_owned(), |ms| {
        format!("95 of 100 live deliveries take up to {ms} ms")
    });
    format!("{backlog}; {p95}")
}

fn table(plan: &Plan) -> Rows {
    let mut rows = Rows::new(&["COUNT", "CONSUMER", "TYPE", "STAGE", "REASON", "TENANT"]);
    for kind in &plan.kinds {
        rows.push(vec![
            kind.count.to_string(),
            kind.consumer.clone(),
            kind.event_type.clone(),
            kind.stage.clone(),
            kind.reason_code.clone(),
            kind.tenant.clone(),
        ]);
    }
    rows
}

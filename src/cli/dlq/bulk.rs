//! Many dead letters: a plan, a question on a terminal, a job.

use std::io::{self, IsTerminal};

use serde::Serialize;

use super::super::agree::agreed;
use super::super::client::Client;
use super::super::context::Context;
use super::super::exit::{Ending, Exit, Failure};
use super::super::jobs;
use super::change::ChangeArgs;
use super::plan;
use crate::admin::wire::JobRequest;
use crate::replay::Selection;
use crate::replay::job::{Action, Job, MAX_HOLD_SECONDS, MAX_RATE, Plan, Planned, Settings};

/// From here on the number is typed, not only yes.
const TYPE_THE_NUMBER_ABOVE: u32 = 100;

#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Jobs (a filter, or more than one id)")]
pub(in crate::cli) struct JobArgs {
    /// Dead letters a second at most
    #[arg(long, value_name = "N/s", value_parser = rate, default_value = "50/s")]
    rate: u32,
    /// How many go first and must succeed before the rest follows; 0 for none
    #[arg(long, value_name = "N", default_value_t = Settings::default().canary)]
    canary: u32,
    /// Nothing is sent before that, so that a cancel undoes everything: 0s to 5m
    #[arg(long, value_name = "TIME", value_parser = hold, default_value = "10s")]
    hold: u32,
    /// Most on their way at once
    #[arg(long, value_name = "N", default_value_t = Settings::default().max_in_flight)]
    max_in_flight: u32,
    /// The same key again is the same job
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Don't wait for the end of the job
    #[arg(long)]
    no_wait: bool,
}

impl JobArgs {
    pub(super) fn settings(&self) -> Settings {
        Settings { rate: self.rate, max_in_flight: self.max_in_flight, canary: self.canary, hold_seconds: self.hold }
    }
}

/// What is printed where the end isn't waited for.
#[derive(Debug, Serialize)]
struct Report<'a> {
    job: &'a Job,
    repeated: bool,
}

pub(super) fn is_bulk(selection: &Selection) -> bool {
    match selection {
        Selection::Ids(ids) => ids.len() > 1,
        Selection::Filter(_) => true,
    }
}

pub(super) async fn run(
    context: &Context,
    client: &Client,
    (action, selection): (Action, Selection),
    (args, job): (&ChangeArgs, &JobArgs),
) -> Ending {
    let mut request = request((action, selection), args, job);
    if args.dry_run {
        let planned: Planned = client.post("jobs", &request).await?;
        return plan::print(context, &planned.plan);
    }
    if args.reason.as_deref().is_none_or(|reason| reason.trim().is_empty()) {
        let what = format!("to {} many needs a reason: it is kept in the audit", action.as_str());
        return Err(Failure::new(Exit::Usage, what).or_try("--reason TEXT, or --dry-run to see what it would do"));
    }
    if !args.yes && io::stdin().is_terminal() {
        let planned: Planned = client.post("jobs", &JobRequest { dry_run: true, ..request.clone() }).await?;
        if planned.plan.count == 0 {
            return plan::print(context, &planned.plan);
        }
        confirm(context, &planned.plan, action)?;
        // What was agreed to is what is done, also when more arrived meanwhile.
        request.expect_count = Some(planned.plan.count + planned.plan.left);
    }
    let planned: Planned = client.post("jobs", &request).await?;
    let made = planned.job.ok_or_else(|| Failure::new(Exit::Failed, "the service made no job and did not say why"))?;
    tell(context, &made, planned.repeated);
    if job.no_wait {
        let schema = format!("onceflow.dlq.{}/2", action.as_str());
        let report = Report { job: &made, repeated: planned.repeated };
        context.out.data(&schema, &report, || jobs::table(std::slice::from_ref(&made)))?;
        return Ok(Exit::Ok);
    }
    jobs::watch(context, client, made.id).await
}

pub(super) fn request((action, selection): (Action, Selection), args: &ChangeArgs, job: &JobArgs) -> JobRequest {
    let bounded = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    JobRequest {
        action,
        selection,
        reason: args.reason.clone(),
        dry_run: args.dry_run,
        settings: job.settings(),
        plan_only: false,
        expect_count: args.expect_count.map(bounded),
        max: args.max.map(bounded),
        idempotency_key: job.idempotency_key.clone(),
    }
}

fn tell(context: &Context, job: &Job, repeated: bool) {
    let id = job.id;
    if repeated {
        context.out.say(&format!("this key has made job {id} before; nothing new was planned"));
        return;
    }
    context.out.say(&format!("job {id}: {} dead letters at {}/s", job.planned, job.settings.rate));
    if !job.plan.left_out.is_empty() {
        let left: Vec<String> = job.plan.left_out.iter().map(|l| format!("{} {}", l.count, l.why.as_str())).collect();
        context.out.say(&format!("left out: {}", left.join(", ")));
    }
    if job.waits_for_approval() {
        context.out.say(&format!("somebody else has to agree first: onceflow jobs approve {id} --reason WHY"));
    } else if job.settings.hold_seconds > 0 {
        let seconds = job.settings.hold_seconds;
        context.out.say(&format!("nothing is sent for {seconds} s: onceflow jobs cancel {id} undoes it"));
    }
    context.out.say(&format!("it goes on without this terminal: onceflow jobs watch {id}"));
}

fn confirm(context: &Context, plan: &Plan, action: Action) -> Result<(), Failure> {
    let (count, verb) = (plan.count, action.as_str());
    let left = if plan.left > 0 { format!(" ({} more stay)", plan.left) } else { String::new() };
    let kinds: Vec<String> =
        plan.kinds.iter().take(5).map(|k| format!("{} {} {}", k.count, k.consumer, k.reason_code)).collect();
    let wanted = if count > TYPE_THE_NUMBER_ABOVE { count.to_string() } else { "yes".to_owned() };
    plan::say_hints(context, plan);
    context.out.say(&format!("{verb} {count} dead letters: {}{left}. Type {wanted} to go on:", kinds.join(", ")));
    agreed(&wanted)
}

/// `50/s`, or `50`.
pub(in crate::cli) fn rate(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix("/s").unwrap_or(text).trim().parse().ok();
    let sentence = || format!("a rate such as 50/s is needed, 1/s to {MAX_RATE}/s");
    number.filter(|rate| (1..=MAX_RATE).contains(rate)).ok_or_else(sentence)
}

/// `10s`, `2m`, `0`: whole seconds.
fn hold(text: &str) -> Result<u32, String> {
    let sentence = || format!("a time such as 10s or 2m is needed, 0s to {MAX_HOLD_SECONDS}s");
    if text == "0" {
        return Ok(0);
    }
    let span: jiff::SignedDuration = text.parse().map_err(|_| sentence())?;
    let seconds = u32::try_from(span.as_secs()).map_err(|_| sentence())?;
    (seconds <= MAX_HOLD_SECONDS).then_some(seconds).ok_or_else(sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_undo_windows_are_read_as_people_write_them() {
        assert_eq!((rate("50/s"), rate("7")), (Ok(50), Ok(7)));
        assert!(rate("0").is_err() && rate("501/s").is_err() && rate("fast").is_err());
        assert_eq!((hold("0s"), hold("0"), hold("10s"), hold("5m")), (Ok(0), Ok(0), Ok(10), Ok(300)));
        assert!(hold("301s").is_err() && hold("-1s").is_err() && hold("soon").is_err());
    }
}

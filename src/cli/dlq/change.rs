//! `onceflow dlq replay` and `onceflow dlq discard`: one at once, more as a job.

use serde::Serialize;
use uuid::Uuid;

use super::super::client::Client;
use super::super::context::Context;
use super::super::exit::{Ending, Exit, Failure};
use super::super::output::Rows;
use super::bulk::{self, JobArgs};
use super::select::FilterArgs;
use super::wait;
use crate::admin::wire::ChangeRequest;
use crate::replay::job::Action;
use crate::replay::{Done, Selection, Settled, Why};

pub(super) const REPLAY_EXAMPLES: &str = "\
Examples:
  onceflow dlq replay 0197a1b2-…                        one, at once
  onceflow dlq plan --group 1a2b3c4d                    what a replay would do
  onceflow dlq replay --group 1a2b3c4d --reason 'parent department imported'
  onceflow dlq replay --all --reason 'fixed in 1.4' --expect-count 37 --rate 100/s --hold 0s
  onceflow dlq replay --consumer sms --reason 'provider is back' --no-wait

A filter, or more than one id, is a job: the list is frozen, nothing is sent during --hold (`onceflow jobs cancel` undoes it), the
first few must succeed before the rest follows, and it stops by itself when too many fail. It survives restarts of the service.
Waiting ends with 0 all succeeded, 4 some failed again, 1 stopped, paused or cancelled.

The message goes only to the consumer that failed, through the outbox, with its id unchanged; the inbox makes a second
application a no-op.";

pub(super) const DISCARD_EXAMPLES: &str = "\
Examples:
  onceflow dlq discard 0197a1b2-… --reason 'test message'
  onceflow dlq discard --consumer org --reason-code unknown_type --reason 'wrong queue' --expect-count 12

A filter, or more than one id, is a job, as for `onceflow dlq replay`; it needs no canary. `onceflow dlq archive` puts away what may be
wanted again: that can be undone, a discard can't.";

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ChangeArgs {
    /// Ids of dead letters
    #[arg(value_name = "ID")]
    pub(super) ids: Vec<Uuid>,
    #[command(flatten)]
    pub(super) filter: FilterArgs,
    /// Every one that the verb can change
    #[arg(long, conflicts_with = "ids")]
    pub(super) all: bool,
    /// Why; needed for more than one, kept in the audit
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: Option<String>,
    /// Only tell what would be done
    #[arg(short = 'n', long)]
    pub(super) dry_run: bool,
    /// Don't ask on a terminal
    #[arg(short, long)]
    pub(super) yes: bool,
    /// Do nothing and exit 5 unless exactly this many are eligible
    #[arg(long, value_name = "N")]
    pub(super) expect_count: Option<usize>,
    /// At most this many, the oldest first
    #[arg(long, value_name = "N")]
    pub(super) max: Option<usize>,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ReplayArgs {
    #[command(flatten)]
    change: ChangeArgs,
    #[command(flatten)]
    job: JobArgs,
    /// Of a single one: wait until the consumer has dealt with it (at most --timeout). A job is waited for anyway
    #[arg(long, conflicts_with = "no_wait")]
    wait: bool,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct DiscardArgs {
    #[command(flatten)]
    change: ChangeArgs,
    #[command(flatten)]
    job: JobArgs,
}

/// What is printed: what was done, and how it ended where that was waited for.
#[derive(Debug, Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    done: &'a Done,
    settled: Option<Settled>,
}

pub(super) async fn replay(context: &Context, args: &ReplayArgs) -> Ending {
    let (client, selection) = (context.client()?, selection(&args.change)?);
    if bulk::is_bulk(&selection) {
        return bulk::run(context, &client, (Action::Replay, selection), (&args.change, &args.job)).await;
    }
    let done = change(&client, &args.change, selection, "replay").await?;
    let waits = args.wait && !done.dry_run && !done.ids.is_empty();
    let settled = if waits { Some(wait::until_settled(context, &client, &done.ids).await?) } else { None };
    print(context, &done, settled, "replay")?;
    if !waits && !done.dry_run && !done.ids.is_empty() {
        context.out.say("on their way; `onceflow dlq list --state replaying` shows those that have not arrived");
    }
    match settled {
        Some(settled) if settled.waiting > 0 => Err(wait::timed_out(context, settled)),
        Some(settled) if settled.failed_again > 0 || settled.other > 0 => Ok(Exit::Partly),
        _ => ending(&done),
    }
}

pub(super) async fn discard(context: &Context, args: &DiscardArgs) -> Ending {
    let (client, selection) = (context.client()?, selection(&args.change)?);
    if bulk::is_bulk(&selection) {
        return bulk::run(context, &client, (Action::Discard, selection), (&args.change, &args.job)).await;
    }
    let done = change(&client, &args.change, selection, "discard").await?;
    print(context, &done, None, "discard")?;
    ending(&done)
}

pub(super) async fn change(
    client: &Client,
    args: &ChangeArgs,
    selection: Selection,
    verb: &str,
) -> Result<Done, Failure> {
    let request = ChangeRequest {
        selection,
        reason: args.reason.clone(),
        dry_run: args.dry_run,
        expect_count: args.expect_count,
        max: args.max,
    };
    client.post(&format!("dlq/{verb}"), &request).await
}

pub(super) fn selection(args: &ChangeArgs) -> Result<Selection, Failure> {
    let filter = args.filter.filter(None);
    match (args.ids.is_empty(), filter.is_empty()) {
        (false, false) => Err(Failure::new(Exit::Usage, "ids and filters can't be combined")),
        (false, true) => Ok(Selection::Ids(args.ids.clone())),
        (true, true) if !args.all => {
            let remedy = "ids, a filter such as --group or --consumer, or --all";
            Err(Failure::new(Exit::Usage, "no dead letters are named").or_try(remedy))
        }
        (true, _) => Ok(Selection::Filter(filter)),
    }
}

pub(super) fn print(context: &Context, done: &Done, settled: Option<Settled>, verb: &str) -> Result<(), Failure> {
    let report = Report { done, settled };
    context.out.data(&format!("onceflow.dlq.{verb}/1"), &report, || table(done, settled, verb))?;
    for skipped in done.ineligible.iter().take(20) {
        context.out.say(&format!("left alone: {} ({})", skipped.id, skipped.why.as_str()));
    }
    if done.ineligible.len() > 20 {
        context.out.say(&format!("… and {} more", done.ineligible.len() - 20));
    }
    if done.left > 0 {
        context.out.say(&format!("{} more match: run it again for them", done.left));
    }
    Ok(())
}

fn table(done: &Done, settled: Option<Settled>, verb: &str) -> Rows {
    let (heading, replayed) = match (verb, done.dry_run) {
        (_, true) => ("WOULD CHANGE", false),
        ("replay", _) => ("REPLAYING", true),
        ("archive", _) => ("ARCHIVED", false),
        ("restore", _) => ("RESTORED", false),
        _ => ("DISCARDED", false),
    };
    let mut row = vec![done.ids.len().to_string(), done.ineligible.len().to_string(), done.left.to_string()];
    match settled.filter(|_| replayed) {
        None => {
            let mut rows = Rows::new(&[heading, "LEFT ALONE", "LEFT OVER"]);
            rows.push(row);
            rows
        }
        Some(s) => {
            let mut rows =
                Rows::new(&["REPLAYED", "LEFT ALONE", "LEFT OVER", "SUCCEEDED", "FAILED AGAIN", "WAITING", "GONE"]);
            row.extend([s.replayed, s.failed_again, s.waiting, s.other].map(|n| n.to_string()));
            rows.push(row);
            rows
        }
    }
}

/// Nothing done is a different end for "nobody knows it" and "it was dealt with already".
pub(super) fn ending(done: &Done) -> Ending {
    let unknown = done.ineligible.iter().filter(|i| i.why == Why::NotFound).count();
    match (done.ids.is_empty(), done.ineligible.len()) {
        (false, 0) => Ok(Exit::Ok),
        (false, _) => Ok(Exit::Partly),
        (true, n) if n == unknown => Err(Failure::new(Exit::NotFound, "no open dead letter matches")),
        (true, _) => Err(Failure::new(Exit::Conflict, "none of them can be changed any more")
            .or_try("onceflow dlq list --state any")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::Ineligible;

    fn done(changed: usize, whys: &[Why]) -> Done {
        let id = Uuid::nil();
        let ineligible = whys.iter().map(|why| Ineligible { id, why: *why }).collect();
        Done { ids: vec![id; changed], ineligible, ..Done::default() }
    }

    #[test]
    fn the_exit_code_tells_how_a_change_ended() {
        let code = |done: &Done| ending(done).unwrap_or_else(|failure| failure.exit);
        assert_eq!(code(&done(2, &[])), Exit::Ok);
        assert_eq!(code(&done(2, &[Why::NotFound])), Exit::Partly);
        assert_eq!(code(&done(0, &[])), Exit::NotFound);
        assert_eq!(code(&done(0, &[Why::NotFound])), Exit::NotFound);
        assert_eq!(code(&done(0, &[Why::Replayed])), Exit::Conflict);
    }
}

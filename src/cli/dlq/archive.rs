//! `onceflow dlq archive` and `onceflow dlq restore`: put away, and take back.

use super::super::context::Context;
use super::super::exit::{Ending, Failure};
use super::super::output::time;
use super::bulk::{self, JobArgs};
use super::change::{ChangeArgs, change, ending, print, selection};
use crate::replay::Done;
use crate::replay::job::Action;

pub(super) const EXAMPLES: &str = "\
Examples:
  onceflow dlq archive 0197a1b2-… --reason 'sender is gone'
  onceflow dlq archive --group 1a2b3c4d --reason 'known, mended in the source' --expect-count 12
  onceflow dlq list --state archived

An archive takes dead letters out of the open list until somebody restores them; the answer says until when that is possible. A
discard can't be undone. A filter, or more than one id, is a job, as for `onceflow dlq discard`.";

pub(super) const RESTORE_EXAMPLES: &str = "\
Examples:
  onceflow dlq restore 0197a1b2-… --reason 'the sender is back'
  onceflow dlq restore --group 1a2b3c4d --reason 'archived by mistake' --expect-count 12

A filter means archived dead letters here. They are open again; nothing is sent before somebody replays them.";

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    change: ChangeArgs,
    #[command(flatten)]
    job: JobArgs,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct RestoreArgs {
    #[command(flatten)]
    change: ChangeArgs,
}

pub(super) async fn run(context: &Context, args: &Args) -> Ending {
    let (client, selection) = (context.client()?, selection(&args.change)?);
    if bulk::is_bulk(&selection) {
        let ended = bulk::run(context, &client, (Action::Archive, selection), (&args.change, &args.job)).await?;
        if !args.change.dry_run {
            context.out.say("`onceflow dlq restore` takes them back; `onceflow dlq show ID` says until when");
        }
        return Ok(ended);
    }
    let done = change(&client, &args.change, selection, "archive").await?;
    print(context, &done, None, "archive")?;
    if !done.dry_run && !done.ids.is_empty() {
        context.out.say(&undoable(&done));
    }
    ending(&done)
}

pub(super) async fn restore(context: &Context, args: &RestoreArgs) -> Ending {
    let (client, selection) = (context.client()?, selection(&args.change)?);
    let done = change(&client, &args.change, selection, "restore").await?;
    print(context, &done, None, "restore")?;
    ending(&done).map_err(|failure| Failure { what: failure.what.replace("no open", "no archived"), ..failure })
}

fn undoable(done: &Done) -> String {
    match done.restorable_until {
        Some(until) => format!("`onceflow dlq restore` undoes it until {}", time(until)),
        None => "`onceflow dlq restore` undoes it; archived dead letters are kept for ever here".to_owned(),
    }
}

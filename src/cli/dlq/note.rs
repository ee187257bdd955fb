//! `onceflow dlq note`

use super::super::context::Context;
use super::super::exit::{Ending, Exit};
use super::super::output::{Rows, time};
use crate::admin::wire::NoteRequest;
use crate::replay::Noted;

pub(super) const EXAMPLES: &str = "\
Examples:
  onceflow dlq note 1a2b3c4d5e6f7081 --owner li
  onceflow dlq note 1a2b3c4d5e6f7081 --note 'waits for the import of departments'
  onceflow dlq note 1a2b3c4d5e6f7081 --note '' --owner ''    # take both away

What is not named stays as it is. Every change is kept in the audit.";

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("said").args(["note", "owner"]).required(true).multiple(true))]
pub(in crate::cli) struct Args {
    /// A group, as `dlq groups` shows it
    #[arg(value_name = "GROUP", value_parser = group)]
    group: String,
    /// For those who look next; empty takes it away
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// Who cares for it; empty takes it away
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
}

pub(super) async fn run(context: &Context, args: &Args) -> Ending {
    let body = NoteRequest { note: args.note.clone(), owner: args.owner.clone() };
    let noted: Noted = context.client()?.post(&format!("dlq/groups/{}/note", args.group), &body).await?;
    context.out.data("onceflow.dlq.note/1", &noted, || table(&noted))?;
    if !noted.changed {
        context.out.say("that was said before: nothing was changed");
    }
    Ok(Exit::Ok)
}

fn table(noted: &Noted) -> Rows {
    let mut rows = Rows::new(&["GROUP", "OWNER", "NOTE", "CHANGED BY", "CHANGED"]);
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    rows.push(vec![
        noted.group.clone(),
        or_dash(&noted.owner),
        or_dash(&noted.note),
        noted.changed_by.clone(),
        time(noted.changed_at),
    ]);
    rows
}

/// It becomes a part of a path.
fn group(text: &str) -> Result<String, String> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(text.to_owned());
    }
    Err("hex digits, as the first column of `onceflow dlq groups` shows them".to_owned())
}

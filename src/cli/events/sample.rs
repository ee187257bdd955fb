//! `onceflow events sample`

use super::super::context::Context;
use super::super::exit::{Ending, Exit};
use super::find::read_type;

pub(super) const EXAMPLES: &str = "\
Examples:
  onceflow events sample org.user.upserted.v1
  onceflow events sample org.user.upserted.v1 | onceflow events publish org.user.upserted.v1 -f -";

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Event type, as `events types` lists it
    #[arg(value_name = "TYPE")]
    event_type: String,
}

pub(super) fn run(context: &Context, args: &Args) -> Ending {
    let (_, found) = read_type(&args.event_type)?;
    let end = if found.sample.ends_with('\n') { "" } else { "\n" };
    context.out.text(&format!("{}{end}", found.sample))?;
    Ok(Exit::Ok)
}

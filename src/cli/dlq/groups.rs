//! `onceflow dlq groups`

use super::super::context::Context;
use super::super::exit::{Ending, Exit};
use super::super::output::{Rows, time};
use super::list::params;
use super::select::{FilterArgs, StateArg};
use crate::admin::wire::Groups;

pub(super) const EXAMPLES: &str = "\
Examples:
  onceflow dlq groups
  onceflow dlq groups --consumer payment --since 1h
  onceflow dlq replay --group 1a2b3c4d --reason 'parent department imported' --wait";

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    filter: FilterArgs,
    /// Which state
    #[arg(long, value_enum, default_value = "open")]
    state: StateArg,
}

pub(super) async fn run(context: &Context, args: &Args) -> Ending {
    let query = params(&args.filter.filter(Some(args.state)))?;
    let groups: Groups = context.client()?.get("dlq/groups", &query).await?;
    context.out.data("onceflow.dlq.groups/1", &groups, || table(&groups))?;
    match groups.items.first() {
        None => context.out.say("no dead letter matches"),
        Some(group) => context.out.say(&format!("  -> onceflow dlq list --group {}", group.id)),
    }
    Ok(Exit::Ok)
}

fn table(groups: &Groups) -> Rows {
    let mut rows =
        Rows::new(&["GROUP", "COUNT", "CONSUMER", "TYPE", "STAGE", "REASON", "FIRST FAILED", "LAST FAILED", "EXAMPLE"]);
    for g in &groups.items {
        rows.push(vec![
            g.id.clone(),
            g.count.to_string(),
            g.consumer.clone(),
            g.event_type.clone(),
            g.stage.clone(),
            g.reason_code.clone(),
            time(g.first_failed_at),
            time(g.last_failed_at),
            g.example.clone(),
        ]);
    }
    rows
}

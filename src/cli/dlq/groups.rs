//! `onceflow dlq groups`

use std::cmp::Ordering;

use super::super::context::Context;
use super::super::exit::{Ending, Exit};
use super::super::output::{Rows, time};
use super::list::params;
use super::select::{FilterArgs, StateArg};
use crate::admin::wire::Groups;
use crate::replay::{Group, LastReplay};

pub(super) const EXAMPLES: &str = "\
Examples:
  onceflow dlq groups
  onceflow dlq groups --consumer payment --since 1h
  onceflow dlq note 1a2b3c4d5e6f7081 --owner li --note 'waits for the import of departments'
  onceflow dlq replay --group 1a2b3c4d5e6f7081 --reason 'parent department imported' --wait";

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
    let mut rows = Rows::new(&[
        "GROUP",
        "COUNT",
        "LAST HOUR",
        "CONSUMER",
        "TYPE",
        "STAGE",
        "REASON",
        "LAST FAILED",
        "LAST REPLAY",
        "NEW SINCE",
        "OWNER",
        "NOTE",
        "ERROR",
    ]);
    for g in &groups.items {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        rows.push(vec![
            g.id.clone(),
            g.count.to_string(),
            trend(g),
            g.consumer.clone(),
            g.event_type.clone(),
            g.stage.clone(),
            g.reason_code.clone(),
            time(g.last_failed_at),
            g.last_replay.as_ref().map_or_else(|| "-".to_owned(), replay),
            g.new_since_replay.map_or_else(|| "-".to_owned(), |n| n.to_string()),
            or_dash(&g.owner),
            or_dash(&g.note),
            g.text.clone().unwrap_or_else(|| g.example.clone()),
        ]);
    }
    rows
}

/// The last hour against the one before.
fn trend(group: &Group) -> String {
    let sign = match group.last_hour.cmp(&group.hour_before) {
        Ordering::Greater => "up",
        Ordering::Less => "down",
        Ordering::Equal => return group.last_hour.to_string(),
    };
    format!("{} ({sign} from {})", group.last_hour, group.hour_before)
}

fn replay(last: &LastReplay) -> String {
    let ends = [
        (last.succeeded, "succeeded"),
        (last.failed_again, "failed again"),
        (last.failed_differently, "failed differently"),
        (last.waiting, "on their way"),
    ];
    let ends: Vec<String> = ends.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    let by = last.by.as_ref().map_or_else(String::new, |by| format!(" by {by}"));
    format!("{}{by}: {}", time(last.at), ends.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_is_told_by_how_it_ended() {
        let at = "2026-01-31T08:00:00Z".parse().unwrap();
        let last =
            LastReplay { at, by: Some("li".into()), succeeded: 5, failed_again: 0, failed_differently: 1, waiting: 2 };
        assert_eq!(replay(&last), "2026-01-31 08:00:00Z by li: 5 succeeded, 1 failed differently, 2 on their way");
    }
}

//! `onceflow events types`

use serde::Serialize;

use super::super::context::Context;
use super::super::exit::{Ending, Exit};
use super::super::output::Rows;
use crate::domains;
use crate::runtime::EventType;

pub(super) const EXAMPLES: &str = "\
Examples:
  onceflow events types
  onceflow events types --consumer org -o jsonl";

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Only of this consumer
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,
}

#[derive(Debug, Serialize)]
struct Line {
    #[serde(rename = "type")]
    event_type: &'static str,
    /// `in`: read; `out`: published.
    direction: &'static str,
    consumer: &'static str,
    message: &'static str,
    summary: &'static str,
}

#[derive(Debug, Serialize)]
struct Types {
    items: Vec<Line>,
}

pub(super) fn run(context: &Context, args: &Args) -> Ending {
    let types = Types { items: lines(args.consumer.as_deref()) };
    context.out.data("onceflow.events.types/1", &types, || table(&types))?;
    context.out.say("  -> onceflow events sample TYPE | onceflow events publish TYPE");
    Ok(Exit::Ok)
}

fn lines(only: Option<&str>) -> Vec<Line> {
    let mut lines = Vec::new();
    for consumer in domains::consumers() {
        let name = consumer.name();
        if only.is_some_and(|only| only != name) {
            continue;
        }
        lines.extend(consumer.reads().iter().map(|t| line(name, "in", t)));
        lines.extend(consumer.publishes().iter().map(|t| line(name, "out", t)));
    }
    lines
}

fn line(consumer: &'static str, direction: &'static str, t: &EventType) -> Line {
    Line { event_type: t.name, direction, consumer, message: t.message, summary: t.summary }
}

fn table(types: &Types) -> Rows {
    let mut rows = Rows::new(&["TYPE", "", "CONSUMER", "MESSAGE", "SUMMARY"]);
    for t in &types.items {
        rows.push([t.event_type, t.direction, t.consumer, t.message, t.summary].map(str::to_owned).to_vec());
    }
    rows
}

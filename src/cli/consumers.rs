//! `onceflow consumers …`

use clap::Subcommand;

use super::context::Context;
use super::exit::{Ending, Exit};
use super::output::Rows;
use super::status::consumers_table;
use crate::admin::wire::{Consumers, SwitchRequest, Switched};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// The consumers with their state.
    #[command(after_help = "Examples:\n  onceflow consumers list\n  onceflow consumers list -o jsonl")]
    List,
    /// Stop taking deliveries: messages stay in the broker, over restarts, in every replica.
    #[command(after_help = "Examples:\n  onceflow consumers pause payment --reason 'bank is down'")]
    Pause(Args),
    /// Take deliveries again.
    #[command(after_help = "Examples:\n  onceflow consumers resume payment --reason 'bank is back'")]
    Resume(Args),
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The consumer
    #[arg(value_name = "CONSUMER")]
    name: String,
    /// Why; shown to everybody who looks at the status
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

pub(super) async fn run(context: &Context, command: Command) -> Ending {
    match command {
        Command::List => list(context).await,
        Command::Pause(args) => switch(context, &args, "pause").await,
        Command::Resume(args) => switch(context, &args, "resume").await,
    }
}

async fn list(context: &Context) -> Ending {
    let consumers: Consumers = context.client()?.get("consumers", &()).await?;
    context.out.data("onceflow.consumers.list/1", &consumers, || consumers_table(&consumers.items))?;
    Ok(Exit::Ok)
}

async fn switch(context: &Context, args: &Args, verb: &str) -> Ending {
    let body = SwitchRequest { reason: args.reason.clone() };
    let path = format!("consumers/{}/{verb}", segment(&args.name));
    let switched: Switched = context.client()?.post(&path, &body).await?;
    let state = if switched.paused { "paused" } else { "running" };
    context.out.data("onceflow.consumers.switch/1", &switched, || {
        let mut rows = Rows::new(&["CONSUMER", "STATE", "CHANGED"]);
        rows.push(vec![switched.consumer.clone(), state.to_owned(), switched.changed.to_string()]);
        rows
    })?;
    if !switched.changed {
        context.out.say(&format!("{} was {state} already", switched.consumer));
    }
    Ok(Exit::Ok)
}

/// A name as one segment of a path: whatever the user typed can't reach another endpoint.
fn segment(name: &str) -> String {
    url::form_urlencoded::byte_serialize(name.as_bytes()).collect::<String>().replace('+', "%20").replace('.', "%2E")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_never_reaches_another_endpoint() {
        assert_eq!(segment("org"), "org");
        assert_eq!(segment("../dlq"), "%2E%2E%2Fdlq");
    }
}

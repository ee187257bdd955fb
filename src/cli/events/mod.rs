//! `onceflow events …`: the producers' tool.

mod find;
pub(super) mod message;
mod publish;
mod sample;
mod trace;
mod types;

use clap::Subcommand;

use super::context::Context;
use super::exit::Ending;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Every event type that is read or published.
    #[command(after_help = types::EXAMPLES)]
    Types(types::Args),
    /// A valid payload of an event type.
    #[command(after_help = sample::EXAMPLES)]
    Sample(sample::Args),
    /// Publish an event to the ingress exchange, confirmed and routed or an error.
    #[command(after_help = publish::EXAMPLES)]
    Publish(publish::Args),
    /// What became of an event: attempts, end, dead letter, replays, downstream.
    #[command(after_help = trace::EXAMPLES)]
    Trace(trace::Args),
}

pub(super) async fn run(context: &Context, command: Command) -> Ending {
    match command {
        Command::Types(args) => types::run(context, &args),
        Command::Sample(args) => sample::run(context, &args),
        Command::Publish(args) => publish::run(context, &args).await,
        Command::Trace(args) => trace::run(context, &args).await,
    }
}

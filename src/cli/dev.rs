//! `onceflow dev`: private servers on this machine.

use std::path::Path;

use super::context::Context;
use super::exit::{Ending, Exit, Failure};
use crate::dev;

pub(super) const EXAMPLES: &str = "\
Examples:
  onceflow dev --servers-only < /dev/null    start both servers, print their addresses as JSON, stop at the end of stdin";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Start only RabbitMQ and PostgreSQL, print one JSON line with their addresses, stop when stdin ends
    #[arg(long, required = true)]
    servers_only: bool,
}

pub(super) async fn run(_context: &Context, args: &Args) -> Ending {
    if args.servers_only {
        let started = dev::servers_only(Path::new(".")).await;
        started.map_err(|e| Failure::new(Exit::Failed, "the private servers").because(format!("{e:#}")))?;
    }
    Ok(Exit::Ok)
}

//! `onceflow dev`: everything at once, to look at and to develop against.

use std::path::Path;

use super::context::Context;
use super::exit::{Ending, Exit, Failure};
use crate::config::LogSettings;
use crate::dev::{self, Session, Wishes};
use crate::telemetry::logs::{self, Form};

pub(super) const EXAMPLES: &str = "\
Examples:
  onceflow dev               private servers, the service, a sample world; stays until Ctrl-C
  onceflow dev --once        ends after the summary; exit code 0 only if all sums add up
  onceflow dev --no-demo     servers and service only

Uses ONCEFLOW_AMQP_URL and ONCEFLOW_DATABASE_URL where they are set, and starts private servers below ./.onceflow
otherwise. Everything it starts listens on loopback and ends with it.";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// End after the summary, non-zero if the sums do not add up (so it is without a terminal too)
    #[arg(long)]
    once: bool,
    /// Servers and service, no sample world
    #[arg(long)]
    no_demo: bool,
    /// Only the servers, until standard input ends: for the tests
    #[arg(long, hide = true)]
    servers_only: bool,
}

pub(super) async fn run(context: &Context, args: &Args) -> Ending {
    let failed = |error: anyhow::Error| Failure::new(Exit::Failed, "onceflow dev").because(format!("{error:#}"));
    let project = Path::new(".");
    if args.servers_only {
        return dev::servers_only(project).await.map(|()| Exit::Ok).map_err(failed);
    }
    let quiet = LogSettings { level: "error".to_owned(), form: Form::Auto };
    logs::init(&context.log_level(&quiet.level), quiet.form)
        .map_err(|e| Failure::new(Exit::Configuration, "log level").because(e))?;
    let wishes = Wishes { once: args.once, no_demo: args.no_demo };
    match Session::run(project, wishes).await.map_err(failed)? {
        true => Ok(Exit::Ok),
        false => {
            Err(Failure::new(Exit::Failed, "the sums do not add up")
                .because("an event is missing or was counted twice"))
        }
    }
}

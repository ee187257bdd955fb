//! The command line: `onceflow <noun> <verb>`. Data on stdout, talk on stderr, a number for scripts at the end.

mod agree;
mod check;
mod client;
mod completion;
mod consumers;
mod context;
mod dev;
mod dlq;
mod events;
mod exit;
mod jobs;
mod migrate;
mod openapi;
mod outbox;
mod output;
mod person;
mod run;
mod status;
mod token;
mod topics;
mod topology;
mod version;

use clap::{Parser, Subcommand};

pub use exit::Exit;

use self::context::{Context, Global};
use self::exit::Ending;

/// Event-driven stream processor on RabbitMQ and PostgreSQL: applies every change event once in effect.
#[derive(Debug, Parser)]
#[command(name = "onceflow", version, max_term_width = 100, after_help = topics::EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The service: read, apply, republish.
    #[command(after_help = run::EXAMPLES)]
    Run,
    /// See it work: private servers, the service, a sample world, a failure mended.
    #[command(after_help = dev::EXAMPLES)]
    Dev(dev::Args),
    /// Bring the database's schema up to date.
    #[command(after_help = migrate::EXAMPLES)]
    Migrate(migrate::Args),
    /// Configuration, reachability, schema and what differs on the broker.
    #[command(after_help = check::EXAMPLES)]
    Check(check::Args),
    /// What runs, what waits and for what.
    #[command(after_help = status::EXAMPLES)]
    Status(status::Args),
    /// Event types, samples, publishing one, and what became of it: the producers' tool.
    #[command(subcommand)]
    Events(events::Command),
    /// Dead letters: look, replay, archive, discard.
    #[command(subcommand)]
    Dlq(dlq::Command),
    /// Replays, archives and discards of many dead letters: watch, pause, resume, cancel.
    #[command(subcommand)]
    Jobs(jobs::Command),
    /// Consumers: list, pause, resume.
    #[command(subcommand)]
    Consumers(consumers::Command),
    /// The outbox and the rows that the broker would not take.
    #[command(subcommand)]
    Outbox(outbox::Command),
    /// What is kept of a person: find it, erase it.
    #[command(subcommand)]
    Person(person::Command),
    /// How many queues a consumer has: compare with the configuration, move while it runs.
    #[command(subcommand)]
    Topology(topology::Command),
    /// Tokens of the API: viewers, operators, admins.
    #[command(subcommand)]
    Token(token::Command),
    /// The OpenAPI document of the admin API, as JSON; asks no server.
    #[command(after_help = openapi::EXAMPLES)]
    Openapi,
    /// Completions for a shell.
    #[command(after_help = completion::EXAMPLES)]
    Completion(completion::Args),
    /// Version of this build.
    Version,
    /// What the exit codes mean.
    #[command(hide = true, after_help = topics::exit_codes())]
    ExitCodes,
    /// Environment variables of the command line.
    #[command(hide = true, after_help = topics::ENVIRONMENT)]
    Environment,
}

impl Cli {
    /// Runs the command, tells a failure on stderr and returns the exit code.
    pub async fn dispatch(self) -> Exit {
        let context = Context::new(self.global);
        match carry_out(&context, self.command).await {
            Ok(exit) => exit,
            Err(failure) => {
                context.out.fail(&failure);
                failure.exit
            }
        }
    }
}

async fn carry_out(context: &Context, command: Command) -> Ending {
    match command {
        Command::Run => run::run(context).await,
        Command::Dev(args) => dev::run(context, &args).await,
        Command::Migrate(args) => migrate::run(context, &args).await,
        Command::Check(args) => check::run(context, &args).await,
        Command::Status(args) => status::run(context, &args).await,
        Command::Events(command) => events::run(context, command).await,
        Command::Dlq(command) => dlq::run(context, command).await,
        Command::Jobs(command) => jobs::run(context, command).await,
        Command::Consumers(command) => consumers::run(context, command).await,
        Command::Outbox(command) => outbox::run(context, command).await,
        Command::Person(command) => person::run(context, command).await,
        Command::Topology(command) => topology::run(context, &command).await,
        Command::Token(command) => token::run(context, command).await,
        Command::Openapi => openapi::run(context),
        Command::Completion(args) => completion::run(context, &args),
        Command::Version => version::run(context),
        Command::ExitCodes => context.out.text(&topics::exit_codes()).map(|()| Exit::Ok),
        Command::Environment => context.out.text(topics::ENVIRONMENT).map(|()| Exit::Ok),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_tells_what_it_does() {
        fn check(command: &clap::Command) {
            for sub in command.get_subcommands() {
                assert!(sub.get_about().is_some(), "{} has no help", sub.get_name());
                check(sub);
            }
        }
        check(&Cli::command());
    }
}

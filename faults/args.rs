//! The command line.

use clap::{Parser, Subcommand};

/// Injects faults into the real service on private servers, and compares what was sent with what is stored and what came out.
///
/// Every fault gets a database, a virtual host and replicas of its own. docs/RELIABILITY.md tells what must hold.
#[derive(Debug, Parser)]
#[command(name = "faults", disable_help_subcommand = true)]
pub(crate) struct Args {
    /// Only these faults, by id or name; several with commas. --list names them
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub(crate) only: Vec<String>,
    /// How often each fault is injected; in chaos the number of runs, each with the next seed
    #[arg(long, default_value_t = 1, value_name = "N", global = true,
          value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) rounds: u32,
    /// Faults at the same time, each in a world of its own
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) beside: u8,
    /// Chooses the events, and in chaos the faults
    #[arg(long, default_value_t = 1, value_name = "NUMBER", global = true)]
    pub(crate) seed: u64,
    /// List the catalogue and end
    #[arg(long)]
    pub(crate) list: bool,
    /// Write the table into docs/RELIABILITY.md and the figures to docs/reliability/ instead of target/faults/
    #[arg(long, global = true)]
    pub(crate) write_docs: bool,
    #[command(subcommand)]
    pub(crate) mode: Option<Mode>,
}

/// What else it can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Mode {
    /// One world, two replicas, and one to three faults a minute, drawn at random
    Chaos {
        /// How long
        #[arg(long, default_value_t = 10, value_name = "N")]
        minutes: u64,
        /// Events a second
        #[arg(long, default_value_t = 300, value_name = "N")]
        rate: u64,
    },
}

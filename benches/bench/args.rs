//! The command line.

use clap::{Parser, Subcommand, ValueEnum};

/// Measures onceflow against the limit and the naive way, on private servers, in one run.
///
/// Every round runs each contender once, in rotating order; a figure is the median over the rounds, a ratio compares medians of
/// the same run. docs/PERFORMANCE.md tells what each scenario measures.
#[derive(Debug, Parser)]
#[command(name = "bench", disable_help_subcommand = true)]
pub(crate) struct Args {
    /// Only these scenarios; several with commas. --list names them
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub(crate) only: Vec<String>,
    /// How often every contender runs each scenario
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) rounds: u32,
    /// Multiplies the numbers of events and the times
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR", value_parser = factor)]
    pub(crate) scale: f64,
    /// The long scenarios in full: 1,000,000 events, 10,000,000 inbox rows, 10 minutes of an open transaction, 1,000,000
    /// dead letters of which 100,000 are replayed
    #[arg(long)]
    pub(crate) full: bool,
    /// List the scenarios and end
    #[arg(long)]
    pub(crate) list: bool,
    /// Write bench.json and bench.svg to docs/performance/ instead of target/bench/, and the table into docs/PERFORMANCE.md
    #[arg(long)]
    pub(crate) write_docs: bool,
    /// Fail (exit code 1) if a bound is missed
    #[arg(long)]
    pub(crate) strict: bool,
    /// Chooses which events are duplicates or go to the hot key
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    pub(crate) seed: u64,
    #[command(subcommand)]
    pub(crate) role: Option<Role>,
}

/// What this program is when the bench has started it again.
#[derive(Debug, Subcommand)]
pub(crate) enum Role {
    /// The limit
    #[command(hide = true)]
    Limit(Duty),
    /// The naive way
    #[command(hide = true)]
    Naive(Duty),
}

/// What a hand-made contender has to do.
#[derive(Debug, clap::Args)]
pub(crate) struct Duty {
    /// Whose events
    #[arg(long, value_enum)]
    pub(crate) domain: Domain,
    #[arg(long, env = "BENCH_AMQP_URL", hide_env_values = true)]
    pub(crate) amqp_url: String,
    #[arg(long, env = "BENCH_DATABASE_URL", hide_env_values = true)]
    pub(crate) database_url: String,
}

/// Whose events are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Domain {
    Org,
    Payment,
    Sms,
}

impl Domain {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Org => "org",
            Self::Payment => "payment",
            Self::Sms => "sms",
        }
    }

    /// The consumer's queue.
    pub(crate) fn queue(self) -> String {
        format!("onceflow.{}", self.name())
    }
}

fn factor(text: &str) -> Result<f64, String> {
    let factor: f64 = text.parse().map_err(|_| "is no number".to_owned())?;
    if (0.001..=1000.0).contains(&factor) { Ok(factor) } else { Err("give 0.001 to 1000".to_owned()) }
}

//! The filter flags that all verbs on dead letters share.

use clap::{Args, ValueEnum};
use jiff::{SignedDuration, Timestamp};

use crate::clock;
use crate::replay::{Filter, State};

/// Filter flags.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Filters")]
pub(super) struct FilterArgs {
    /// The consumer that failed
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,
    /// Event type
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// Whose data
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// decode, validate, handle, database, exhausted or broker
    #[arg(long, value_name = "STAGE")]
    stage: Option<String>,
    /// Stable reason code, e.g. `invalid_json`
    #[arg(long, value_name = "CODE")]
    reason_code: Option<String>,
    /// A group, as `dlq groups` shows it
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Last failed at this time or later: RFC 3339, or how long ago (2h, 30m)
    #[arg(long, value_name = "TIME", value_parser = instant)]
    since: Option<Timestamp>,
    /// Last failed before this time
    #[arg(long, value_name = "TIME", value_parser = instant)]
    until: Option<Timestamp>,
    /// Part of the error text, or the whole event id, subject or ordering key
    #[arg(long, value_name = "TEXT")]
    text: Option<String>,
    /// Ordering key
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Given up after at least so many attempts
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    attempts: Option<i32>,
    /// Replayed at least so often
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    replays: Option<i32>,
}

/// States that can be asked for.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum StateArg {
    /// Waits for someone.
    Open,
    /// On its way back to the consumer.
    Replaying,
    /// The consumer has dealt with it.
    Replayed,
    /// Dropped by an operator.
    Discarded,
    /// Put away by an operator; can be restored.
    Archived,
    /// Replaced by an edited copy.
    Edited,
    /// Whatever the state.
    Any,
}

impl FilterArgs {
    /// The filter with a state.
    pub(super) fn filter(&self, state: Option<StateArg>) -> Filter {
        Filter {
            consumer: self.consumer.clone(),
            event_type: self.event_type.clone(),
            tenant: self.tenant.clone(),
            stage: self.stage.clone(),
            reason_code: self.reason_code.clone(),
            group: self.group.clone(),
            state: state.map(State::from),
            since: self.since,
            until: self.until,
            text: self.text.clone(),
            key: self.key.clone(),
            attempts: self.attempts,
            replays: self.replays,
        }
    }
}

impl From<StateArg> for State {
    fn from(state: StateArg) -> Self {
        match state {
            StateArg::Open => Self::Open,
            StateArg::Replaying => Self::Replaying,
            StateArg::Replayed => Self::Replayed,
            StateArg::Discarded => Self::Discarded,
            StateArg::Archived => Self::Archived,
            StateArg::Edited => Self::Edited,
            StateArg::Any => Self::Any,
        }
    }
}

fn instant(text: &str) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    let ago: SignedDuration =
        text.parse().map_err(|_| "a time such as 2026-01-31T08:00:00Z, or how long ago: 2h, 30m".to_owned())?;
    clock::now().checked_sub(ago.abs()).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_absolute_or_how_long_ago() {
        assert_eq!(instant("2026-01-31T08:00:00Z").unwrap().to_string(), "2026-01-31T08:00:00Z");
        assert!(instant("2h").unwrap() < clock::now());
        assert!(instant("yesterday").is_err());
    }
}

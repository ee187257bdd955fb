//! How a command ends: a number for scripts, a sentence with a remedy for people.

use std::fmt;
use std::process::ExitCode;

/// The exit codes (`onceflow help exit-codes`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// The operation failed.
    Failed = 1,
    /// The command line or its input is wrong.
    Usage = 2,
    /// Not found, or nothing matched.
    NotFound = 3,
    /// Some of it failed.
    Partly = 4,
    /// It isn't as expected any more.
    Conflict = 5,
    /// The configuration is wrong.
    Configuration = 6,
    /// The service, the broker or the database can't be reached.
    Unreachable = 7,
    /// Not permitted.
    Denied = 8,
    /// Timed out waiting.
    TimedOut = 9,
}

impl Exit {
    /// Every code with its meaning, for the help text.
    pub const ALL: [(Self, &'static str); 10] = [
        (Self::Ok, "done"),
        (Self::Failed, "the operation failed"),
        (Self::Usage, "the command line or its input is wrong"),
        (Self::NotFound, "not found, or nothing matched (an empty list is 0)"),
        (Self::Partly, "some of it failed; the summary says how much"),
        (Self::Conflict, "not as expected any more: the count differs, already replayed"),
        (Self::Configuration, "the configuration is wrong; every error is listed with its place"),
        (Self::Unreachable, "the service, the broker or the database can't be reached"),
        (Self::Denied, "not permitted: token missing or wrong"),
        (Self::TimedOut, "timed out waiting; what was started goes on"),
    ];
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was asked: what, because of what, and what to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What failed.
    pub what: String,
    /// Why.
    pub because: Option<String>,
    /// What to do.
    pub remedy: Option<String>,
}

impl Failure {
    /// A failure with this exit code.
    pub fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: what.into(), because: None, remedy: None }
    }

    /// Says why.
    #[must_use]
    pub fn because(mut self, why: impl fmt::Display) -> Self {
        self.because = Some(why.to_string());
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn or_try(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.what)?;
        if let Some(because) = &self.because {
            write!(f, " | because {because}")?;
        }
        if let Some(remedy) = &self.remedy {
            write!(f, " | try: {remedy}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// The end of a command.
pub type Ending = Result<Exit, Failure>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_never_change() {
        let codes: Vec<u8> = Exit::ALL.iter().map(|(exit, _)| *exit as u8).collect();
        assert_eq!(codes, (0..=9).collect::<Vec<u8>>());
        assert_eq!(Exit::NotFound as u8, 3);
        assert_eq!(Exit::Unreachable as u8, 7);
    }

    #[test]
    fn an_error_says_what_why_and_what_to_try() {
        let failure = Failure::new(Exit::Unreachable, "no answer").because("it is off").or_try("onceflow run");
        assert_eq!(failure.to_string(), "error: no answer | because it is off | try: onceflow run");
    }
}

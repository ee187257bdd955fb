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
    pub(super) const ALL: [(Self, &'static str); 10] = [
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
pub(super) struct Failure {
    /// The exit code.
    pub(super) exit: Exit,
    /// What failed.
    pub(super) what: String,
    /// Why.
    pub(super) because: Option<String>,
    /// What to do.
    pub(super) remedy: Option<String>,
    /// One line each, where there is more than one thing wrong.
    pub(super) details: Vec<String>,
}

impl Failure {
    /// A failure with this exit code.
    pub(super) fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: what.into(), because: None, remedy: None, details: Vec::new() }
    }

    /// Says why.
    #[must_use]
    pub(super) fn because(mut self, why: impl fmt::Display) -> Self {
        self.because = Some(why.to_string());
        self
    }

    /// Lists what is wrong, one line each.
    #[must_use]
    pub(super) fn with_details(mut self, details: Vec<String>) -> Self {
        self.details = details;
        self
    }

    /// Says what to do.
    #[must_use]
    pub(super) fn or_try(mut self, remedy: impl Into<String>) -> Self {
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
pub(super) type Ending = Result<Exit, Failure>;

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

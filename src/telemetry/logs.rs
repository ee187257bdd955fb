//! Logs to stderr: JSON for machines, text for a terminal. Never payloads, tokens or phone numbers.

use std::io::IsTerminal;

use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, reload};

/// How the log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// One JSON object per line.
    Json,
    /// Text, for people.
    Text,
}

/// A level or filter that can't be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "log level {level:?}: {why}; use error, warn, info, debug or trace, or directives such as info,onceflow::outbox=debug"
)]
pub struct LevelError {
    level: String,
    why: String,
}

/// What is logged at the moment; may be changed while it goes on.
pub struct Level(Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>);

impl std::fmt::Debug for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Level").finish_non_exhaustive()
    }
}

impl Level {
    /// Logs by this level from now on.
    ///
    /// # Errors
    /// When the level can't be read; then it stays as it was.
    pub fn set(&self, level: &str) -> Result<(), LevelError> {
        let filter = filter(level)?;
        (self.0)(filter).map_err(|error| LevelError { level: level.to_owned(), why: error.to_string() })
    }
}

/// Whether a level can be read.
///
/// # Errors
/// What is wrong with it.
pub fn check(level: &str) -> Result<(), LevelError> {
    filter(level).map(drop)
}

/// Starts logging. A second call in the same process keeps the first set-up.
///
/// # Errors
/// When the level can't be read.
pub fn init(level: &str, form: Form) -> Result<Level, LevelError> {
    let filter = filter(level)?;
    let terminal = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_span_events(FmtSpan::NONE)
        // It would tell of a log that can't be written on the same standard error, and panic where that is closed.
        .log_internal_errors(false)
        .with_ansi(terminal);
    // The second attempt in a test process is refused; the first set-up serves.
    let (level, _already_set) = if form == Form::Json || (form == Form::Auto && !terminal) {
        let lines = lines.json().flatten_event(true).with_filter_reloading();
        let handle = lines.reload_handle();
        (Level(Box::new(move |filter| handle.reload(filter))), lines.finish().try_init())
    } else {
        let lines = lines.compact().with_filter_reloading();
        let handle = lines.reload_handle();
        (Level(Box::new(move |filter| handle.reload(filter))), lines.finish().try_init())
    };
    Ok(level)
}

/// A bare level is ours; libraries speak from `warn` on. The AMQP client stays silent: what it says as errors are the ends of
/// connections and channels, which our own supervision reports once.
fn filter(level: &str) -> Result<EnvFilter, LevelError> {
    let error = |why: String| LevelError { level: level.to_owned(), why };
    let directives = if level.contains(['=', ',']) {
        level.to_owned()
    } else {
        level.parse::<tracing::level_filters::LevelFilter>().map_err(|e| error(e.to_string()))?;
        format!("warn,lapin=off,onceflow={level}")
    };
    EnvFilter::try_new(directives).map_err(|e| error(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_level_is_ours_and_libraries_stay_quiet() {
        let filter = filter("debug").unwrap().to_string();
        assert!(["onceflow=debug", "lapin=off", "warn"].iter().all(|part| filter.contains(part)), "{filter}");
    }

    #[test]
    fn a_wrong_level_is_refused_with_the_choices() {
        assert!(filter("loud").unwrap_err().to_string().contains("error, warn, info"));
    }
}

//! Why the private servers are not there.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Lines of a server's log that an error shows.
const TAIL_LINES: usize = 15;

/// Why the private servers could not be started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServersError {
    /// The server's programs or its account are not installed.
    #[error("{0} is not installed: run `scripts/setup.sh`, which installs it, and try again")]
    Missing(&'static str),
    /// Another process runs its servers in the same directory.
    #[error("{} is in use by another process: wait until it has ended, or stop it", .0.display())]
    Busy(PathBuf),
    /// Running as root, but no directory can be found that the server's account may enter and nobody else may write.
    #[error("{} belongs to somebody else: remove it, or move the project where other accounts can enter", .0.display())]
    Untrusted(PathBuf),
    /// No free port was found.
    #[error("no free port between {0} and {1} on 127.0.0.1")]
    NoPort(u16, u16),
    /// Files or processes of this machine did not obey.
    #[error("{doing}: {source}")]
    Io {
        /// What was tried.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
    /// A server ended instead of coming up.
    #[error("{server} ended while starting; the end of {}:\n{tail}", log.display())]
    Ended {
        /// Which server.
        server: &'static str,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// A server did not come up in time.
    #[error("{server} was not ready within {} s; the end of {}:\n{tail}", waited.as_secs(), log.display())]
    Late {
        /// Which server.
        server: &'static str,
        /// How long it had.
        waited: Duration,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// A command-line program of a server failed.
    #[error("{program} failed: {output}")]
    Program {
        /// Which program.
        program: String,
        /// What it printed.
        output: String,
    },
}

impl ServersError {
    pub(super) fn ended(server: &'static str, log: &Path) -> Self {
        Self::Ended { server, log: log.to_owned(), tail: tail_of(log) }
    }

    pub(super) fn late(server: &'static str, waited: Duration, log: &Path) -> Self {
        Self::Late { server, waited, log: log.to_owned(), tail: tail_of(log) }
    }
}

/// Says what was tried when the system refused.
pub(super) fn while_doing(doing: impl Into<String>) -> impl FnOnce(io::Error) -> ServersError {
    let doing = doing.into();
    move |source| ServersError::Io { doing, source }
}

fn tail_of(log: &Path) -> String {
    let text = std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let start = lines.len().saturating_sub(TAIL_LINES);
    lines.iter().skip(start).map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

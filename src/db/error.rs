//! Database errors that can be questioned: the class decides what the runtime does, by SQLSTATE and kind, never by text.

use std::error::Error as StdError;
use std::time::Duration;

use tokio_postgres::error::SqlState;

use crate::tls;

/// What a failed statement means for the event that caused it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Serialization failure or deadlock: the same transaction may work at once.
    Contention,
    /// A lock or statement took too long: worth another attempt later.
    Timeout,
    /// The server is away, full, read-only or silent: everybody waits, no attempt is spent.
    Outage,
    /// The data can never be stored: bad text, broken constraint.
    Permanent,
    /// Tables and code don't fit: stop consuming, don't dead-letter the queue.
    Schema,
    /// Our own mistake, e.g. a statement after a swallowed error.
    Bug,
}

/// A failure of the database or of the way to it.
#[derive(Debug)]
pub struct DbError {
    kind: Kind,
    doing: &'static str,
}

#[derive(Debug)]
enum Kind {
    Postgres(tokio_postgres::Error),
    Pool(deadpool_postgres::PoolError),
    /// TLS did not come about; where, why and what to do.
    Insecure(String),
    Silent(Duration),
    Poisoned,
    Shape(String),
}

impl DbError {
    pub(super) fn postgres(doing: &'static str, error: tokio_postgres::Error) -> Self {
        Self { kind: Kind::Postgres(error), doing }
    }

    /// A connection that could not be had; `place` is host and port.
    pub(super) fn pool(place: &str, error: deadpool_postgres::PoolError) -> Self {
        match error {
            deadpool_postgres::PoolError::Backend(error) => Self::connect(place, error),
            error => Self { kind: Kind::Pool(error), doing: "connect" },
        }
    }

    /// A connection that could not be made; `place` is host and port.
    pub(super) fn connect(place: &str, error: tokio_postgres::Error) -> Self {
        let kind = match insecure(&error) {
            Some(why) => Kind::Insecure(format!("{place} {why}")),
            None => Kind::Pool(deadpool_postgres::PoolError::Backend(error)),
        };
        Self { kind, doing: "connect" }
    }

    /// Settings that can't be used, of a connection that was only tried.
    pub(super) fn settings(error: super::SettingsError) -> Self {
        Self { kind: Kind::Insecure(error.to_string()), doing: "connect" }
    }

    pub(super) fn silent(doing: &'static str, waited: Duration) -> Self {
        Self { kind: Kind::Silent(waited), doing }
    }

    pub(super) fn poisoned() -> Self {
        Self { kind: Kind::Poisoned, doing: "commit" }
    }

    /// A stored value that the code can't read: tables and code don't fit.
    pub fn shape(what: impl Into<String>) -> Self {
        Self { kind: Kind::Shape(what.into()), doing: "read a row" }
    }

    /// What the error means for the event at hand.
    pub fn class(&self) -> Class {
        match &self.kind {
            Kind::Silent(_) | Kind::Insecure(_) => Class::Outage,
            Kind::Poisoned => Class::Bug,
            Kind::Shape(_) => Class::Schema,
            // No connection, and the server didn't say why: whatever it is, everybody waits.
            Kind::Pool(deadpool_postgres::PoolError::Backend(e)) if e.code().is_some() => classify(e),
            Kind::Pool(_) => Class::Outage,
            Kind::Postgres(e) => classify(e),
        }
    }

    /// Whether the same work may succeed later without anybody changing the data.
    pub fn is_transient(&self) -> bool {
        matches!(self.class(), Class::Contention | Class::Timeout | Class::Outage)
    }

    /// We don't trust the server, or it doesn't let us in: login (28) or database (3D). No waiting mends that.
    pub fn is_about_who_we_are(&self) -> bool {
        let refused = |state: &str| state.starts_with("28") || state.starts_with("3D");
        matches!(self.kind, Kind::Insecure(_)) || self.sqlstate().is_some_and(refused)
    }

    /// The five characters of the SQLSTATE, where the server sent one.
    pub fn sqlstate(&self) -> Option<&str> {
        self.source_error().and_then(tokio_postgres::Error::code).map(SqlState::code)
    }

    /// The constraint that was broken, for domains that give it a name of their own.
    pub fn constraint(&self) -> Option<&str> {
        self.source_error()?.as_db_error()?.constraint()
    }

    /// Whether the server told us itself that the transaction ended; everything else may or may not have been committed.
    pub(super) fn server_decided(&self) -> bool {
        match (&self.kind, self.class()) {
            (_, Class::Outage) => false,
            (Kind::Postgres(e), _) => e.as_db_error().is_some(),
            (Kind::Poisoned, _) => true,
            _ => false,
        }
    }

    fn source_error(&self) -> Option<&tokio_postgres::Error> {
        match &self.kind {
            Kind::Pool(deadpool_postgres::PoolError::Backend(e)) | Kind::Postgres(e) => Some(e),
            _ => None,
        }
    }
}

/// The classes of `SQLSTATE` that we have met (`spec/reliability.md` §3).
fn classify(error: &tokio_postgres::Error) -> Class {
    let Some(code) = error.code().map(SqlState::code) else {
        // A value that does not fit its column's type never reaches the server.
        return if is_conversion(error) { Class::Bug } else { Class::Outage };
    };
    match code {
        "40001" | "40P01" => Class::Contention,
        "55P03" | "57014" => Class::Timeout,
        "25P02" => Class::Bug,
        "25006" | "3D000" => Class::Outage,
        "54001" => Class::Permanent,
        _ => match &code[..2] {
            "08" | "28" | "53" | "57" | "58" | "F0" => Class::Outage,
            "42" | "0A" | "26" => Class::Schema,
            "22" | "23" => Class::Permanent,
            "25" | "2D" => Class::Bug,
            _ => Class::Timeout,
        },
    }
}

/// Why TLS did not come about, where that is what failed. The client has no other sign for the last two than its words; they
/// choose our words and nothing else.
fn insecure(error: &tokio_postgres::Error) -> Option<String> {
    if let Some(why) = tls::explain(error) {
        return Some(format!("is not trusted: {why}"));
    }
    match error.source()?.to_string().as_str() {
        "server does not support TLS" => {
            Some("has no TLS, and nothing is sent to it in the clear: turn it on there (ssl = on)".to_owned())
        }
        "server did not use channel binding" => {
            let why = "does not prove that it alone gets the password (channel binding): use scram-sha-256 there, or, where its \
                       certificate is enough, as behind a pooler, add channel_binding=prefer to database.url";
            Some(why.to_owned())
        }
        _ => None,
    }
}

fn is_conversion(error: &tokio_postgres::Error) -> bool {
    !error.is_closed() && error.source().is_some_and(|s| s.downcast_ref::<std::io::Error>().is_none())
}

impl std::fmt::Display for DbError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let doing = self.doing;
        match &self.kind {
            Kind::Postgres(e) => write_postgres(f, doing, e),
            Kind::Pool(deadpool_postgres::PoolError::Backend(e)) => write_postgres(f, doing, e),
            Kind::Pool(e) => write!(f, "database: {doing}: {e}"),
            Kind::Insecure(why) => write!(f, "database: {doing}: {why}"),
            Kind::Silent(waited) => write!(f, "database: {doing}: no answer within {} ms", waited.as_millis()),
            Kind::Poisoned => write!(f, "database: commit refused: a statement of this transaction had failed before"),
            Kind::Shape(what) => write!(f, "database: unexpected row: {what}"),
        }
    }
}

/// Without the server's DETAIL, which quotes values of the row.
fn write_postgres(f: &mut std::fmt::Formatter<'_>, doing: &str, e: &tokio_postgres::Error) -> std::fmt::Result {
    match e.as_db_error() {
        Some(db) => write!(f, "database: {doing}: {} (SQLSTATE {})", db.message(), db.code().code()),
        None => match e.source() {
            Some(source) => write!(f, "database: {doing}: {e}: {source}"),
            None => write!(f, "database: {doing}: {e}"),
        },
    }
}

impl StdError for DbError {}

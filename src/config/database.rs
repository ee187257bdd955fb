//! `[database]`: `url`, `url_file`, `allow_plaintext`, `statement_timeout`, `max_connections`, `ca_file`, `certificate_file`,
//! `key_file`.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use super::reader::Reader;
use super::tls;
use crate::db::{self, Access, DbError, Listener, Pool, Settings, SettingsError};
use crate::tls::Tls;

/// How to reach PostgreSQL. Each part of the program has a pool of its own, so that none can starve another.
#[derive(Debug, Clone)]
pub struct DatabaseSettings {
    url: SecretString,
    allow_plaintext: bool,
    tls: Tls,
    statement_timeout: Duration,
    max_connections: usize,
}

/// Whom a pool serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Handlers and dead letters.
    Consumers,
    /// The relay.
    Relay,
    /// API, health and sampling.
    Admin,
}

/// Connections of the relay: it reads, removes and renews its leases at the same time.
const RELAY_CONNECTIONS: usize = 3;
/// What the listener calls itself.
const LISTENER: &str = "onceflow listener";
/// Connections of the API.
const ADMIN_CONNECTIONS: usize = 4;

impl DatabaseSettings {
    /// Opens the pool of a role; connects on first use.
    ///
    /// # Errors
    /// When the URL can't be used as it is.
    pub fn pool(&self, role: Role) -> Result<Pool, SettingsError> {
        Pool::new(&self.settings_of(role))
    }

    /// Hears of rows that others write into the outbox, on one connection beside the pools.
    ///
    /// # Errors
    /// When the URL can't be used as it is.
    pub fn listener(&self) -> Result<Listener, SettingsError> {
        Listener::new(&self.settings(LISTENER, 1))
    }

    /// Lets the pool of a role go the way that is said here.
    ///
    /// # Errors
    /// When the URL can't be used as it is; then the pool stays as it was.
    pub fn renew(&self, role: Role, pool: &Pool) -> Result<(), SettingsError> {
        pool.renew(&self.settings_of(role))
    }

    /// Lets the listener go the way that is said here.
    ///
    /// # Errors
    /// When the URL can't be used as it is; then it stays as it was.
    pub fn renew_listener(&self, listener: &Access) -> Result<(), SettingsError> {
        listener.renew(&self.settings(LISTENER, 1))
    }

    /// Whether the server lets us in.
    ///
    /// # Errors
    /// Why not.
    pub async fn knock(&self) -> Result<(), DbError> {
        db::knock(&self.settings_of(Role::Admin)).await
    }

    /// Whether URL and TLS are those of the other.
    pub fn is_same_way(&self, other: &Self) -> bool {
        self.settings_of(Role::Admin).is_same_way(&other.settings_of(Role::Admin))
    }

    /// These settings with URL and TLS of `next`; `None` where that leads to another database.
    pub(super) fn going_the_way_of(&self, next: &Self) -> Option<Self> {
        let target = |settings: &Self| settings.settings_of(Role::Admin).target().ok();
        let Self { url, allow_plaintext, tls, .. } = next.clone();
        (target(self)? == target(next)?).then(|| Self { url, allow_plaintext, tls, ..self.clone() })
    }

    fn settings_of(&self, role: Role) -> Settings {
        match role {
            Role::Consumers => self.settings("onceflow consumers", self.max_connections),
            Role::Relay => {
                Settings { rows_are_short_lived: true, ..self.settings("onceflow relay", RELAY_CONNECTIONS) }
            }
            Role::Admin => self.settings("onceflow admin", ADMIN_CONNECTIONS),
        }
    }

    fn settings(&self, name: &str, max_connections: usize) -> Settings {
        Settings {
            url: self.url.clone(),
            max_connections,
            statement_timeout: self.statement_timeout,
            allow_plaintext: self.allow_plaintext,
            tls: self.tls.clone(),
            application_name: name.to_owned(),
            rows_are_short_lived: false,
        }
    }

    /// The server ends a statement after this.
    pub fn statement_timeout(&self) -> Duration {
        self.statement_timeout
    }

    /// Connections that all consumers share.
    pub(super) fn max_connections(&self) -> usize {
        self.max_connections
    }

    /// Host and database, without the credentials.
    pub fn address(&self) -> String {
        match url::Url::parse(self.url.expose_secret()) {
            Ok(url) => {
                let host = url.host_str().unwrap_or("a local socket");
                format!("{host}:{}{}", url.port().unwrap_or(5432), url.path())
            }
            Err(_) => "an unusable URL".to_owned(),
        }
    }
}

pub(super) fn read(reader: &mut Reader) -> DatabaseSettings {
    let settings = DatabaseSettings {
        url: reader.required_secret("database.url", "postgres://user:password@localhost:5432/onceflow"),
        allow_plaintext: reader.get("database.allow_plaintext", false),
        tls: tls::read(reader, "database"),
        statement_timeout: reader.duration("database.statement_timeout", "20s"),
        max_connections: reader.within("database.max_connections", 16, 2..=500),
    };
    let given = !settings.url.expose_secret().is_empty();
    if let Some(error) = settings.pool(Role::Consumers).err().filter(|_| given) {
        reader.problem("database.url", error.to_string());
    }
    settings
}

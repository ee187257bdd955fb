//! `[database]`: `url`, `url_file`, `allow_plaintext`, `statement_timeout`, `max_connections`, `ca_file`, `certificate_file`,
//! `key_file`.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use super::reader::Reader;
use super::tls;
use crate::db::{Listener, Pool, Settings, SettingsError};
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
/// Connections of the API.
const ADMIN_CONNECTIONS: usize = 4;

impl DatabaseSettings {
    /// Opens the pool of a role; connects on first use.
    ///
    /// # Errors
    /// When the URL can't be used as it is.
    pub fn pool(&self, role: Role) -> Result<Pool, SettingsError> {
        let (name, max_connections) = match role {
            Role::Consumers => ("onceflow consumers", self.max_connections),
            Role::Relay => ("onceflow relay", RELAY_CONNECTIONS),
            Role::Admin => ("onceflow admin", ADMIN_CONNECTIONS),
        };
        Pool::new(&self.settings(name, max_connections))
    }

    /// Hears of rows that others write into the outbox, on one connection beside the pools.
    ///
    /// # Errors
    /// When the URL can't be used as it is.
    pub fn listener(&self) -> Result<Listener, SettingsError> {
        Listener::new(&self.settings("onceflow listener", 1))
    }

    fn settings(&self, name: &str, max_connections: usize) -> Settings {
        Settings {
            url: self.url.clone(),
            max_connections,
            statement_timeout: self.statement_timeout,
            allow_plaintext: self.allow_plaintext,
            tls: self.tls.clone(),
            application_name: name.to_owned(),
        }
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

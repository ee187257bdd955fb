//! The pool of database connections: bounded, with a deadline for every wait, TLS off the loopback.

use std::str::FromStr;
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Object, RecyclingMethod, Runtime};
use secrecy::{ExposeSecret, SecretString};
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::DbError;
use super::tx::Tx;

/// How to reach the database.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `postgres://user:password@host:port/database`.
    pub url: SecretString,
    /// Most connections of the pool.
    pub max_connections: usize,
    /// The server ends a statement after this.
    pub statement_timeout: Duration,
    /// Plaintext to a host that isn't this machine.
    pub allow_plaintext: bool,
    /// Shown in `pg_stat_activity`.
    pub application_name: String,
}

/// Longest wait for a TCP connection with TLS and authentication: a peer that accepts and stays silent must not hold us.
pub(super) const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Longest wait for a free connection.
const WAIT_WITHIN: Duration = Duration::from_secs(5);
/// The server's own timeout fires first; this is for a server that no longer answers at all.
const ANSWER_MARGIN: Duration = Duration::from_secs(5);

/// A URL that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Not a PostgreSQL URL.
    #[error("not a PostgreSQL URL (postgres://user@host:port/database): {0}")]
    Malformed(String),
    /// The password would cross a network in the clear.
    #[error("refusing plaintext to {0}: remove sslmode=disable, or set database.allow_plaintext = true")]
    Plaintext(String),
    /// TLS can't be set up.
    #[error("TLS: {0}")]
    Tls(String),
}

/// Connections to one database.
#[derive(Debug, Clone)]
pub struct Pool {
    inner: deadpool_postgres::Pool,
    answer_within: Duration,
}

impl Pool {
    /// Builds the pool; connects on first use.
    ///
    /// # Errors
    /// When the URL can't be used as it is.
    pub fn new(settings: &Settings) -> Result<Self, SettingsError> {
        let config = client_config(settings)?;
        // Every transaction cleans the session itself, in the round trip of its BEGIN.
        let manager_config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = if config.get_ssl_mode() == SslMode::Disable {
            Manager::from_config(config, NoTls, manager_config)
        } else {
            Manager::from_config(config, tls()?, manager_config)
        };
        let inner = deadpool_postgres::Pool::builder(manager)
            .max_size(settings.max_connections)
            .wait_timeout(Some(WAIT_WITHIN))
            .create_timeout(Some(CONNECT_WITHIN))
            .recycle_timeout(Some(CONNECT_WITHIN))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|e| SettingsError::Malformed(e.to_string()))?;
        Ok(Self { inner, answer_within: settings.statement_timeout + ANSWER_MARGIN })
    }

    /// Starts a transaction.
    ///
    /// # Errors
    /// When no connection can be had in time.
    pub async fn begin(&self) -> Result<Tx, DbError> {
        let client = self.connection().await?;
        Tx::begin(client, self.answer_within).await
    }

    /// Starts a transaction whose BEGIN goes with its first statement, which saves a round trip. What is wrong with the
    /// connection shows only then.
    ///
    /// # Errors
    /// When no connection can be had in time.
    pub async fn begin_with_first_statement(&self) -> Result<Tx, DbError> {
        let client = self.connection().await?;
        Ok(Tx::begin_with_first_statement(client, self.answer_within))
    }

    pub(super) async fn connection(&self) -> Result<Object, DbError> {
        self.inner.get().await.map_err(|e| DbError::pool("connect", e))
    }

    /// Connections in use, idle, and allowed.
    pub fn usage(&self) -> PoolUsage {
        let status = self.inner.status();
        PoolUsage { in_use: status.size.saturating_sub(status.available), idle: status.available, max: status.max_size }
    }

    /// Closes the pool: running transactions end, waiting callers get an error.
    pub fn close(&self) {
        self.inner.close();
    }
}

/// A look at the pool for the metrics.
#[derive(Debug, Clone, Copy)]
pub struct PoolUsage {
    /// Handed out.
    pub in_use: usize,
    /// Open and free.
    pub idle: usize,
    /// The bound.
    pub max: usize,
}

pub(super) fn client_config(settings: &Settings) -> Result<Config, SettingsError> {
    let mut config =
        Config::from_str(settings.url.expose_secret()).map_err(|e| SettingsError::Malformed(e.to_string()))?;
    let local = config.get_hosts().iter().all(is_local);
    if !local && !settings.allow_plaintext {
        if config.get_ssl_mode() == SslMode::Disable {
            return Err(SettingsError::Plaintext(host_names(&config)));
        }
        // The default, prefer, falls back to plaintext without a word.
        config.ssl_mode(SslMode::Require);
    } else if config.get_ssl_mode() == SslMode::Prefer {
        config.ssl_mode(SslMode::Disable);
    }
    config
        .application_name(&settings.application_name)
        .connect_timeout(CONNECT_WITHIN)
        .keepalives_idle(Duration::from_secs(15))
        .tcp_user_timeout(Duration::from_secs(20))
        // Start-up options, so that the RESET ALL of a recycled connection comes back to them. Nothing is written outside an
        // explicit transaction.
        .options(format!(
            "-c statement_timeout={ms} -c lock_timeout={ms} -c idle_in_transaction_session_timeout=60000 \
             -c default_transaction_read_only=on -c search_path=onceflow,pg_temp",
            ms = settings.statement_timeout.as_millis()
        ));
    Ok(config)
}

fn is_local(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
    }
}

fn host_names(config: &Config) -> String {
    let names: Vec<_> = config
        .get_hosts()
        .iter()
        .map(|h| match h {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        })
        .collect();
    names.join(", ")
}

pub(super) fn tls() -> Result<MakeRustlsConnect, SettingsError> {
    let (connect, unread) = MakeRustlsConnect::with_native_certs().map_err(|e| SettingsError::Tls(format!("{e:?}")))?;
    for problem in unread {
        tracing::warn!(%problem, "a certificate of this system can't be read and is not trusted");
    }
    Ok(connect)
}

//! The pool of database connections: bounded, with a deadline for every wait, TLS off the loopback.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Connect as _, Hook, HookError, Manager, ManagerConfig, Object, RecyclingMethod, Runtime};
use rustls::ClientConfig;
use secrecy::{ExposeSecret, SecretString};
use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, Host, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::access::Access;
use super::error::DbError;
use super::tx::Tx;
use crate::tls::{Tls, TlsError};

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
    /// Whom a TLS connection trusts, and who we are.
    pub tls: Tls,
    /// Shown in `pg_stat_activity`.
    pub application_name: String,
    /// Rows come and go so fast that an index is mostly entries of rows that are gone. Only plain index scans mark those, so that the
    /// next one skips them; a bitmap scan visits them all again until the next vacuum. And by its statistics such a table is nearly
    /// empty, so that the planner would as soon read all of it. What can't be read otherwise, a sequence, then looks so dear that the
    /// statement would be compiled first (jit, 0.1 s).
    pub rows_are_short_lived: bool,
}

/// Longest wait for a TCP connection with TLS and authentication: a peer that accepts and stays silent must not hold us.
pub(super) const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Longest wait for a free connection.
const WAIT_WITHIN: Duration = Duration::from_secs(5);
/// The server's own timeout fires first; this is for a server that no longer answers at all.
const ANSWER_MARGIN: Duration = Duration::from_secs(5);

impl Settings {
    /// Hosts, ports and database: what transactions of one process must agree on.
    ///
    /// # Errors
    /// When the URL can't be used as it is.
    pub fn target(&self) -> Result<String, SettingsError> {
        let config = client_config(self)?;
        let database = config.get_dbname().or(config.get_user()).unwrap_or_default();
        Ok(format!("{}/{database}", place_of(&config)))
    }

    /// Whether connections of these and of the other settings can't be told apart.
    pub fn is_same_way(&self, other: &Self) -> bool {
        self.url.expose_secret() == other.url.expose_secret()
            && self.allow_plaintext == other.allow_plaintext
            && self.tls.is_same(&other.tls)
    }
}

/// A URL that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Not a PostgreSQL URL.
    #[error("not a PostgreSQL URL (postgres://user@host:port/database): {0}")]
    Malformed(String),
    /// The password would cross a network in the clear.
    #[error("refusing plaintext to {0}: remove sslmode=disable, or set database.allow_plaintext = true")]
    Plaintext(String),
    /// Authorities or a certificate were given, for a connection that would not look at them.
    #[error(
        "refusing plaintext to {0}: ca_file or certificate_file is set, but the URL says sslmode=disable; remove it"
    )]
    TlsUnused(String),
    /// TLS can't be set up.
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
}

/// Connections to one database.
#[derive(Debug, Clone)]
pub struct Pool {
    inner: deadpool_postgres::Pool,
    answer_within: Duration,
    access: Access,
}

impl Pool {
    /// Builds the pool; connects on first use.
    ///
    /// # Errors
    /// When the URL can't be used as it is.
    pub fn new(settings: &Settings) -> Result<Self, SettingsError> {
        let access = Access::new(settings)?;
        // Every transaction cleans the session itself, in the round trip of its BEGIN.
        let manager_config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_connect(access.now().config.clone(), access.clone(), manager_config);
        let current = access.clone();
        let of_another_way = Hook::sync_fn(move |_, metrics| {
            let stays = metrics.created >= current.now().since;
            if stays { Ok(()) } else { Err(HookError::message("the way to the database is another one now")) }
        });
        let inner = deadpool_postgres::Pool::builder(manager)
            .max_size(settings.max_connections)
            .pre_recycle(of_another_way)
            .wait_timeout(Some(WAIT_WITHIN))
            .create_timeout(Some(CONNECT_WITHIN))
            .recycle_timeout(Some(CONNECT_WITHIN))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|e| SettingsError::Malformed(e.to_string()))?;
        Ok(Self { inner, answer_within: settings.statement_timeout + ANSWER_MARGIN, access })
    }

    /// Connects as these settings say from now on. Connections that are free end at once, those in use when they come back.
    ///
    /// # Errors
    /// When the URL can't be used as it is; then all stays as it was.
    pub fn renew(&self, settings: &Settings) -> Result<(), SettingsError> {
        self.access.renew(settings)?;
        let since = self.access.now().since;
        drop(self.inner.retain(|_, metrics| metrics.created >= since));
        Ok(())
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
        self.inner.get().await.map_err(|e| DbError::pool(&self.access.now().place, e))
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

/// Whether the server lets us in with these settings; the connection is closed at once.
///
/// # Errors
/// Why not.
pub async fn knock(settings: &Settings) -> Result<(), DbError> {
    let access = Access::new(settings).map_err(DbError::settings)?;
    let way = access.now();
    let (client, connection) = match tokio::time::timeout(CONNECT_WITHIN, access.connect(&way.config)).await {
        Ok(connected) => connected.map_err(|error| DbError::connect(&way.place, error))?,
        Err(_) => return Err(DbError::silent("connect", CONNECT_WITHIN)),
    };
    drop(client);
    // It says goodbye and ends by itself.
    let _ended = tokio::time::timeout(CONNECT_WITHIN, connection).await;
    Ok(())
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
    secure(&mut config, settings)?;
    config
        .application_name(&settings.application_name)
        .connect_timeout(CONNECT_WITHIN)
        .keepalives_idle(Duration::from_secs(15))
        .tcp_user_timeout(Duration::from_secs(20))
        // Start-up options, so that the RESET ALL of a recycled connection comes back to them. Nothing is written outside an
        // explicit transaction.
        .options(format!(
            "-c statement_timeout={ms} -c lock_timeout={ms} -c idle_in_transaction_session_timeout=60000 \
             -c default_transaction_read_only=on -c search_path=onceflow,pg_temp {scans}",
            ms = settings.statement_timeout.as_millis(),
            scans = if settings.rows_are_short_lived {
                "-c enable_bitmapscan=off -c enable_seqscan=off -c jit=off"
            } else {
                ""
            },
        ));
    Ok(config)
}

/// Plaintext only where nobody can listen in, or where it was allowed. The client's default, prefer, would fall back to it without
/// a word, and let anybody in between turn TLS off.
fn secure(config: &mut Config, settings: &Settings) -> Result<(), SettingsError> {
    let may_be_plain = is_local(config) || settings.allow_plaintext;
    match config.get_ssl_mode() {
        SslMode::Disable if settings.tls.is_configured() => Err(SettingsError::TlsUnused(place_of(config).to_string())),
        SslMode::Disable if !may_be_plain => Err(SettingsError::Plaintext(place_of(config).to_string())),
        SslMode::Disable => Ok(()),
        SslMode::Prefer if may_be_plain && !settings.tls.is_configured() => {
            config.ssl_mode(SslMode::Disable);
            Ok(())
        }
        _ => {
            config.ssl_mode(SslMode::Require);
            // Proves that the password goes to the holder of the certificate and to nobody in between. Who can't have it, as with
            // a pooler or another kind of password, says so in the URL.
            if !settings.url.expose_secret().contains("channel_binding=") {
                config.channel_binding(ChannelBinding::Require);
            }
            Ok(())
        }
    }
}

/// An address beside the host's name is where the connection goes.
fn is_local(config: &Config) -> bool {
    let named = config.get_hosts().iter().all(|host| match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
    });
    named && config.get_hostaddrs().iter().all(std::net::IpAddr::is_loopback)
}

/// Every host with its port.
pub(super) fn place_of(config: &Config) -> Arc<str> {
    let ports = config.get_ports();
    let port = |n: usize| ports.get(n).or(ports.first()).copied().unwrap_or(5432);
    let name = |(n, host): (usize, &Host)| match host {
        Host::Tcp(name) => format!("{name}:{}", port(n)),
        Host::Unix(path) => path.display().to_string(),
    };
    let mut names: Vec<String> = config.get_hosts().iter().enumerate().map(name).collect();
    if names.is_empty() {
        names =
            config.get_hostaddrs().iter().enumerate().map(|(n, address)| format!("{address}:{}", port(n))).collect();
    }
    names.join(", ").into()
}

pub(super) fn connector(tls: &Tls) -> Result<MakeRustlsConnect, SettingsError> {
    Ok(MakeRustlsConnect::new(ClientConfig::clone(&*tls.client()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> Settings {
        Settings {
            url: url.into(),
            max_connections: 1,
            statement_timeout: Duration::from_secs(20),
            allow_plaintext: false,
            tls: Tls::default(),
            application_name: "test".to_owned(),
            rows_are_short_lived: false,
        }
    }

    fn mode(url: &str) -> Result<SslMode, SettingsError> {
        client_config(&settings(url)).map(|config| config.get_ssl_mode())
    }

    #[test]
    fn off_this_machine_tls_is_required_whatever_the_url_prefers_s7_2() {
        for url in [
            "postgres://u:p@db/x",
            "postgres://u:p@db/x?sslmode=prefer",
            "postgres://u:p@10.0.0.1/x",
            "postgres://u:p@localhost,db/x",
            "host=db user=u password=p",
            // What counts is where the connection goes.
            "postgres://u:p@localhost/x?hostaddr=10.0.0.1",
            "hostaddr=10.0.0.1 user=u password=p",
        ] {
            assert_eq!(mode(url).unwrap(), SslMode::Require, "{url}");
            let url = url.replace("?sslmode=prefer", "");
            let sign = match (url.contains("://"), url.contains('?')) {
                (false, _) => " ",
                (true, false) => "?",
                (true, true) => "&",
            };
            let url = format!("{url}{sign}sslmode=disable");
            let refused = mode(&url).unwrap_err().to_string();
            assert!(refused.contains("refusing plaintext to") && !refused.contains("u:p"), "{url}: {refused}");
            assert_eq!(
                client_config(&Settings { allow_plaintext: true, ..settings(&url) }).unwrap().get_ssl_mode(),
                SslMode::Disable
            );
        }
        for url in [
            "postgres://u:p@localhost/x",
            "postgres://u:p@127.0.0.1/x",
            "postgres://u:p@[::1]/x",
            "host=/run/postgresql user=u",
        ] {
            assert_eq!(mode(url).unwrap(), SslMode::Disable, "{url}");
        }
    }

    #[test]
    fn with_tls_the_password_goes_only_to_the_holder_of_the_certificate_unless_the_url_says_otherwise_s7_2() {
        let binding = |url: &str| client_config(&settings(url)).unwrap().get_channel_binding();
        assert_eq!(binding("postgres://u:p@db/x"), ChannelBinding::Require);
        assert_eq!(binding("postgres://u:p@db/x?channel_binding=prefer"), ChannelBinding::Prefer);
        assert_eq!(binding("postgres://u:p@localhost/x"), ChannelBinding::Prefer);
    }

    #[test]
    fn a_url_that_cannot_be_read_is_never_quoted_s7_4() {
        for url in [
            "postgres://u:hunter2@db:x/y",
            "postgres:u:hunter2@db",
            "hunter2",
            "postgres://u:hunter2@db/x?port=hunter2",
        ] {
            let told = Pool::new(&settings(url)).map(drop).unwrap_err();
            assert!(!format!("{told} {told:?}").contains("hunter2"), "{told:?}");
            assert!(!format!("{:?}", settings(url)).contains("hunter2"));
        }
    }
}

//! The way to the database as it is now. A reload renews it while the service runs: what connects next goes the new way.

use std::sync::Arc;
use std::time::Instant;

use deadpool_postgres::{ConfigConnectImpl, Connect};
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, Error, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::pool::{Settings, SettingsError, client_config, connector, place_of};

/// Whereto, as whom, and with which TLS.
pub(super) struct Way {
    pub(super) config: Config,
    pub(super) tls: Option<MakeRustlsConnect>,
    /// Hosts and ports, for messages.
    pub(super) place: Arc<str>,
    /// Connections from before went another way.
    pub(super) since: Instant,
}

impl Way {
    fn of(settings: &Settings) -> Result<Self, SettingsError> {
        let config = client_config(settings)?;
        let is_plain = config.get_ssl_mode() == SslMode::Disable;
        let tls = if is_plain { None } else { Some(connector(&settings.tls)?) };
        Ok(Self { place: place_of(&config), config, tls, since: Instant::now() })
    }
}

/// Connects as it is said now; clones follow the same word.
#[derive(Clone)]
pub struct Access(Arc<watch::Sender<Arc<Way>>>);

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Access").field(&self.now().place).finish()
    }
}

impl Access {
    pub(super) fn new(settings: &Settings) -> Result<Self, SettingsError> {
        Ok(Self(Arc::new(watch::Sender::new(Arc::new(Way::of(settings)?)))))
    }

    pub(super) fn now(&self) -> Arc<Way> {
        Arc::clone(&self.0.borrow())
    }

    /// Ends when the way is another one.
    pub(super) fn changes(&self) -> watch::Receiver<Arc<Way>> {
        self.0.subscribe()
    }

    /// What connects from now on goes this way.
    ///
    /// # Errors
    /// When the URL can't be used as it is; then all stays as it was.
    pub fn renew(&self, settings: &Settings) -> Result<(), SettingsError> {
        let way = Way::of(settings)?;
        drop(self.0.send_replace(Arc::new(way)));
        Ok(())
    }
}

/// The pool's own configuration is that of its start, so it is passed over.
impl Connect for Access {
    fn connect(&self, _: &Config) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), Error>> {
        let way = self.now();
        Box::pin(async move {
            match &way.tls {
                Some(tls) => ConfigConnectImpl { tls: tls.clone() }.connect(&way.config).await,
                None => ConfigConnectImpl { tls: NoTls }.connect(&way.config).await,
            }
        })
    }
}

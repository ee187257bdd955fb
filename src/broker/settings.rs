//! How to reach the broker, checked before the first connection.

use std::str::FromStr;
use std::time::Duration;

use lapin::uri::{AMQPScheme, AMQPUri};
use secrecy::{ExposeSecret, SecretString};

/// How to reach the broker.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `amqp://user:password@host:port/vhost`, or `amqps://`.
    pub url: SecretString,
    /// Plaintext to a host that isn't this machine.
    pub allow_plaintext: bool,
    /// A dead peer is noticed after twice this.
    pub heartbeat: Duration,
    /// Shown in the broker's list of connections.
    pub name: String,
    /// Whether what is missing is declared. Without, exchanges and queues are only looked for, which takes no permission, and
    /// bindings are taken to be there.
    pub declare: bool,
}

/// A URL that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Not an AMQP URL. The text doesn't quote the URL: it may hold a password.
    #[error("not an AMQP URL (amqp://user:password@host:port/vhost): {0}")]
    Malformed(String),
    /// The password would cross a network in the clear.
    #[error("refusing plaintext to {0}: use amqps://, or set broker.allow_plaintext = true")]
    Plaintext(String),
}

impl Settings {
    /// Checks the URL without connecting.
    ///
    /// # Errors
    /// When the URL can't be used as it is.
    pub fn check(&self) -> Result<(), SettingsError> {
        self.uri().map(|_| ())
    }

    /// Host, port and vhost, without the credentials.
    pub fn address(&self) -> String {
        match self.uri() {
            Ok(uri) => format!("{}:{} vhost {}", uri.authority.host, uri.authority.port, uri.vhost),
            Err(_) => "an unusable URL".to_owned(),
        }
    }

    /// The virtual host.
    pub fn vhost(&self) -> String {
        self.uri().map_or_else(|_| "/".to_owned(), |uri| uri.vhost)
    }

    pub(super) fn uri(&self) -> Result<AMQPUri, SettingsError> {
        let mut uri = AMQPUri::from_str(self.url.expose_secret()).map_err(SettingsError::Malformed)?;
        let host = &uri.authority.host;
        let local = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if uri.scheme == AMQPScheme::AMQP && !local && !self.allow_plaintext {
            return Err(SettingsError::Plaintext(host.clone()));
        }
        uri.query.heartbeat = u16::try_from(self.heartbeat.as_secs()).ok();
        Ok(uri)
    }
}

//! How to reach the broker, checked before the first connection.

use std::str::FromStr;
use std::time::Duration;

use lapin::uri::{AMQPScheme, AMQPUri, SASLMechanism};
use secrecy::{ExposeSecret, SecretString};
use url::{Host, Url};

use crate::tls::Tls;

/// How to reach the broker.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `amqp://user:password@host:port/vhost`, or `amqps://`.
    pub url: SecretString,
    /// Plaintext to a host that isn't this machine.
    pub allow_plaintext: bool,
    /// A dead peer is noticed after twice this.
    pub heartbeat: Duration,
    /// Whom an `amqps://` connection trusts, and who we are.
    pub tls: Tls,
    /// Shown in the broker's list of connections.
    pub name: String,
    /// Whether what is missing is declared. Without, exchanges and queues are only looked for, which takes no permission, and
    /// bindings are taken to be there.
    pub declare: bool,
    /// The user whose name, which the broker checks, stands on every message that we publish; `None` for no name. It must be the
    /// one that we log in as.
    pub signs_as: Option<String>,
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
    /// Authorities or a certificate were given, for a connection that would not look at them.
    #[error("refusing plaintext to {0}: ca_file or certificate_file is set, but the URL says amqp://; use amqps://")]
    TlsUnused(String),
    /// The login rests on a certificate, and there is none to show.
    #[error("auth_mechanism=external logs in by certificate: set certificate_file and key_file, and use amqps://")]
    NoCertificate,
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

    /// The user that we log in as; `None` where only the broker knows, because the certificate says it. A user in the URL then
    /// names it for us and plays no part in the login.
    pub fn user(&self) -> Option<String> {
        let uri = parse(self.url.expose_secret()).ok()?;
        let is_named = Url::parse(self.url.expose_secret()).is_ok_and(|url| !url.username().is_empty());
        (is_named || !is_external(&uri)).then_some(uri.authority.userinfo.username)
    }

    /// Whether connections of these and of the other settings can't be told apart.
    pub fn is_same_way(&self, other: &Self) -> bool {
        self.url.expose_secret() == other.url.expose_secret()
            && (self.allow_plaintext, self.heartbeat) == (other.allow_plaintext, other.heartbeat)
            && self.tls.is_same(&other.tls)
    }

    pub(super) fn uri(&self) -> Result<AMQPUri, SettingsError> {
        let mut uri = parse(self.url.expose_secret())?;
        let host = &uri.authority.host;
        let local = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if uri.scheme == AMQPScheme::AMQP && self.tls.is_configured() {
            return Err(SettingsError::TlsUnused(host.clone()));
        }
        if uri.scheme == AMQPScheme::AMQP && !local && !self.allow_plaintext {
            return Err(SettingsError::Plaintext(host.clone()));
        }
        if is_external(&uri) && !(uri.scheme == AMQPScheme::AMQPS && self.tls.shows_certificate()) {
            return Err(SettingsError::NoCertificate);
        }
        uri.query.heartbeat = u16::try_from(self.heartbeat.as_secs()).ok();
        Ok(uri)
    }
}

/// What a login rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Login {
    Password,
    /// The broker sees a certificate, and is not asked to go by it.
    PasswordBesideCertificate,
    Certificate,
}

impl Login {
    pub(super) fn of(settings: &Settings, uri: &AMQPUri) -> Self {
        match (is_external(uri), settings.tls.shows_certificate()) {
            (true, _) => Self::Certificate,
            (false, true) => Self::PasswordBesideCertificate,
            (false, false) => Self::Password,
        }
    }
}

fn is_external(uri: &AMQPUri) -> bool {
    uri.query.auth_mechanism == Some(SASLMechanism::External)
}

fn parse(url: &str) -> Result<AMQPUri, SettingsError> {
    // The library's words may quote the whole URL.
    let unquoted = |why: String| if why.contains(url) { "it names no host".to_owned() } else { why };
    let mut uri = AMQPUri::from_str(url).map_err(|why| SettingsError::Malformed(unquoted(why)))?;
    // It doesn't know IPv6 addresses, and would go to localhost.
    if let Ok(Some(Host::Ipv6(address))) = Url::parse(url).as_ref().map(Url::host) {
        uri.authority.host = address.to_string();
    }
    Ok(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> Settings {
        let heartbeat = Duration::from_secs(10);
        let (tls, name) = (Tls::default(), "test".to_owned());
        Settings { url: url.into(), allow_plaintext: false, heartbeat, tls, name, declare: true, signs_as: None }
    }

    #[test]
    fn plaintext_is_refused_off_this_machine_unless_allowed_s7_1() {
        for url in [
            "amqp://u:p@broker/",
            "amqp://u:p@10.0.0.1:5672/",
            "amqp://u:p@[2001:db8::1]/",
            "amqp://u:p@localhost.evil/",
        ] {
            let refused = settings(url).check().unwrap_err().to_string();
            assert!(refused.contains("use amqps://, or set broker.allow_plaintext"), "{url}: {refused}");
            assert!(!refused.contains("u:p"), "{refused}");
            assert!(Settings { allow_plaintext: true, ..settings(url) }.check().is_ok(), "{url}");
            assert!(settings(&url.replace("amqp:", "amqps:")).check().is_ok(), "{url}");
        }
        for url in ["amqp://u:p@localhost/", "amqp://u:p@127.0.0.1/", "amqp://u:p@[::1]/"] {
            assert!(settings(url).check().is_ok(), "{url}");
        }
    }

    #[test]
    fn a_login_by_certificate_without_one_to_show_is_refused_before_the_first_connection_s7_1() {
        for url in ["amqps://broker/%2f?auth_mechanism=external", "amqp://localhost/?auth_mechanism=EXTERNAL"] {
            let refused = settings(url).check().unwrap_err().to_string();
            assert!(refused.contains("set certificate_file and key_file"), "{url}: {refused}");
        }
    }

    #[test]
    fn the_user_is_the_one_of_the_url_and_unknown_where_a_certificate_says_it() {
        assert_eq!(settings("amqps://hr:p@broker/").user().as_deref(), Some("hr"));
        assert_eq!(settings("amqp://localhost/").user().as_deref(), Some("guest"));
        assert_eq!(settings("amqps://broker/?auth_mechanism=external").user(), None);
        assert_eq!(settings("amqps://run@broker/?auth_mechanism=external").user().as_deref(), Some("run"));
    }

    #[test]
    fn an_ipv6_address_is_where_it_says_and_not_this_machine_s7_1() {
        assert_eq!(settings("amqps://u:p@[2001:db8::1]:7/v").address(), "2001:db8::1:7 vhost v");
    }

    #[test]
    fn a_url_that_cannot_be_read_is_never_quoted_s7_4() {
        for url in [
            "amqp:user:hunter2@host/v",
            "user:hunter2@host:5672/",
            "amqp//user:hunter2@host",
            "hunter2",
            "amqp://user:hunter2@host:x/",
        ] {
            let told = settings(url).check().unwrap_err().to_string();
            assert!(!told.contains("hunter2"), "{told}");
            assert!(!format!("{:?} {}", settings(url), settings(url).address()).contains("hunter2"));
        }
    }
}

//! Broker errors that can be questioned.

use std::time::Duration;

use lapin::ErrorKind;

use super::settings::Login;
use crate::tls;

/// What a broker answers to a login that it refuses.
const LOGIN_REFUSED: u16 = 403;
const WRONG_PASSWORD: &str = "check user and password of broker.url";
const ONLY_CERTIFICATES: &str = "if it takes only certificates as logins, add ?auth_mechanism=external to broker.url";
const NO_SUCH_CERTIFICATE: &str = "it takes the user's name from certificate_file, as its ssl_cert_login_from says, and there is no \
                                   such user, or it saw no certificate";

/// A failure of the broker or of the way to it.
#[derive(Debug)]
pub struct BrokerError {
    doing: &'static str,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Client(Box<lapin::Error>),
    Silent(Duration),
    Settings(super::SettingsError),
    /// TLS did not come about; where, why and what to do.
    Insecure(String),
    /// The broker does not let us in; where, its words and what to do.
    Login(String),
    /// It ended the connection without a word; where and what to do.
    HungUp(String),
    Ended,
    Overfull(usize),
    WindowChanges,
    TooLong(&'static str),
    NoHashExchange,
}

impl BrokerError {
    pub(super) fn client(doing: &'static str, error: lapin::Error) -> Self {
        Self { doing, kind: Kind::Client(Box::new(error)) }
    }

    pub(super) fn silent(doing: &'static str, waited: Duration) -> Self {
        Self { doing, kind: Kind::Silent(waited) }
    }

    pub(super) fn settings(error: super::SettingsError) -> Self {
        Self { doing: "connect", kind: Kind::Settings(error) }
    }

    /// With the words for a connection that was refused, by a TLS handshake or as a login; `place` is host and port.
    pub(super) fn explained(self, place: &str, login: Login) -> Self {
        let Kind::Client(error) = &self.kind else { return self };
        let doing = self.doing;
        if let Some(why) = tls::explain(error.as_ref()) {
            return Self { doing, kind: Kind::Insecure(format!("{place} is not trusted: {why}")) };
        }
        match error.kind() {
            ErrorKind::ProtocolError(amqp) if amqp.get_id() == LOGIN_REFUSED => {
                let advice = if login == Login::Certificate { NO_SUCH_CERTIFICATE } else { WRONG_PASSWORD };
                let why = format!("{place} refuses the login: {}; {advice}", amqp.get_message());
                Self { doing, kind: Kind::Login(why) }
            }
            // A broker that knows no passwords does not say so.
            ErrorKind::IOError(error) if login == Login::PasswordBesideCertificate => {
                Self { doing, kind: Kind::HungUp(format!("{place} hung up ({error}); {ONLY_CERTIFICATES}")) }
            }
            _ => self,
        }
    }

    /// The broker knows us under another name than the one that we say.
    pub(super) fn of_another_user(self) -> Self {
        let Kind::Client(error) = &self.kind else { return self };
        let said = match error.kind() {
            ErrorKind::ProtocolError(amqp) => amqp.get_message().to_string(),
            _ => error.to_string(),
        };
        let advice = "name in broker.url the user that we log in as: consumers.*.producers goes by it";
        Self { doing: self.doing, kind: Kind::Login(format!("{said}; {advice}")) }
    }

    pub(crate) fn ended(doing: &'static str) -> Self {
        Self { doing, kind: Kind::Ended }
    }

    pub(super) fn overfull(bytes: usize) -> Self {
        Self { doing: "consume", kind: Kind::Overfull(bytes) }
    }

    pub(super) fn window_changes() -> Self {
        Self { doing: "consume", kind: Kind::WindowChanges }
    }

    pub(super) fn too_long(what: &'static str) -> Self {
        Self { doing: "publish", kind: Kind::TooLong(what) }
    }

    pub(super) fn no_hash_exchange() -> Self {
        Self { doing: "declare an exchange", kind: Kind::NoHashExchange }
    }

    /// The AMQP reply code, where the broker sent one.
    pub fn reply_code(&self) -> Option<u16> {
        match &self.kind {
            Kind::Login(_) => Some(LOGIN_REFUSED),
            Kind::Client(e) => match e.kind() {
                ErrorKind::ProtocolError(amqp) => Some(amqp.get_id()),
                _ => None,
            },
            _ => None,
        }
    }

    /// An exchange or queue exists with other arguments than ours (406).
    pub fn is_precondition_failed(&self) -> bool {
        self.reply_code() == Some(406)
    }

    /// What was asked for doesn't exist (404).
    pub fn is_not_found(&self) -> bool {
        self.reply_code() == Some(404)
    }

    /// Our user may not do that (403).
    pub fn is_refused(&self) -> bool {
        self.reply_code() == Some(403)
    }

    /// We don't trust the broker, or it doesn't let us in: login (403), way of logging in (503) or virtual host (530). No waiting
    /// mends that.
    pub fn is_about_who_we_are(&self) -> bool {
        matches!(self.kind, Kind::Insecure(_) | Kind::Settings(_)) || matches!(self.reply_code(), Some(403 | 503 | 530))
    }

    /// The broker doesn't know what was asked for (503), such as an exchange type whose plugin is off.
    pub(super) fn is_command_invalid(&self) -> bool {
        self.reply_code() == Some(503)
    }

    /// The broker is there and says no, or can't do it.
    pub fn is_refusal(&self) -> bool {
        matches!(self.kind, Kind::NoHashExchange) || self.reply_code().is_some_and(|code| (402..500).contains(&code))
    }

    /// Nothing is wrong: the subscription ends so that another one is opened, with a window of another size.
    pub fn is_change_of_window(&self) -> bool {
        matches!(self.kind, Kind::WindowChanges)
    }

    /// More came at once than may be in memory; what was not acknowledged goes back, and comes in a smaller window.
    pub fn is_overfull(&self) -> bool {
        matches!(self.kind, Kind::Overfull(_))
    }

    /// The message itself was refused: too large, or a frame the broker can't read. Sending it again can't work.
    pub fn blames_the_message(&self) -> bool {
        matches!(self.kind, Kind::TooLong(_)) || matches!(self.reply_code(), Some(406 | 501 | 502))
    }
}

impl std::fmt::Display for BrokerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let doing = self.doing;
        match &self.kind {
            Kind::Client(e) => match e.kind() {
                ErrorKind::ProtocolError(amqp) => write!(f, "broker: {doing}: {}", amqp.get_message()),
                _ => write!(f, "broker: {doing}: {e}"),
            },
            Kind::Silent(waited) => write!(f, "broker: {doing}: no answer within {} ms", waited.as_millis()),
            Kind::Settings(e) => write!(f, "broker: {e}"),
            Kind::Insecure(why) | Kind::Login(why) | Kind::HungUp(why) => write!(f, "broker: {doing}: {why}"),
            Kind::Ended => write!(f, "broker: {doing}: the channel was closed"),
            Kind::NoHashExchange => write!(
                f,
                "broker: {doing}: it has no exchange type x-consistent-hash, which partitions need: its plugin \
                 rabbitmq_consistent_hash_exchange is not enabled. Run `rabbitmq-plugins enable \
                 rabbitmq_consistent_hash_exchange` on every node"
            ),
            Kind::Overfull(bytes) => write!(
                f,
                "broker: {doing}: messages became larger too suddenly, {} MiB came at once: they go back to the queue and come \
                 again, fewer at a time",
                bytes >> 20
            ),
            Kind::WindowChanges => write!(f, "broker: {doing}: the window changes"),
            Kind::TooLong(what) => write!(f, "broker: {doing}: the {what} is longer than AMQP allows (255 bytes)"),
        }
    }
}

impl std::error::Error for BrokerError {}

/// Awaits an answer of the broker, but not for ever.
pub(super) async fn bounded<T>(
    doing: &'static str,
    within: Duration,
    work: impl Future<Output = Result<T, lapin::Error>>,
) -> Result<T, BrokerError> {
    match tokio::time::timeout(within, work).await {
        Ok(result) => result.map_err(|e| BrokerError::client(doing, e)),
        Err(_) => Err(BrokerError::silent(doing, within)),
    }
}

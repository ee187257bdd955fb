//! One supervised connection.
//!
//! The client's own recovery gives up after a while and never rebuilds channels (`spec/reliability.md` §1.5), so it stays off.
//! A [`Link`] connects on demand, one attempt at a time for everybody who waits, without end and with jittered pauses. Users ask
//! it for a channel, and ask again when theirs died. Publishing and consuming use a link each: a blocked connection stops acks
//! and heartbeats too (§1.4).

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::tcp::RustlsConnector;
use lapin::types::ShortString;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{AsyncTcpStream, BasicProperties, Channel, Connection, ConnectionProperties, Event};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::error::{BrokerError, bounded};
use super::settings::{Login, Settings};
use crate::health::{Check, Health};
use crate::pacing::Pacing;
use crate::telemetry;
use crate::tls::Tls;

/// Longest wait for TCP, TLS and the AMQP handshake: a peer that accepts and stays silent must not hold us.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Longest wait for the answer to any single request.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Deliveries and acks.
    Consume,
    /// Publishes and confirms.
    Publish,
}

impl Purpose {
    /// The label in metrics and in the broker's list of connections.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Consume => "consume",
            Self::Publish => "publish",
        }
    }
}

/// A connection that comes back.
pub struct Link {
    /// A reload may replace them; what connects next follows.
    settings: RwLock<Arc<Settings>>,
    purpose: Purpose,
    health: Arc<Health>,
    current: Mutex<Option<Connection>>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("purpose", &self.purpose).finish_non_exhaustive()
    }
}

impl Link {
    /// A link that is not connected yet.
    pub fn new(settings: Settings, purpose: Purpose, health: Arc<Health>) -> Self {
        Self { settings: RwLock::new(Arc::new(settings)), purpose, health, current: Mutex::new(None) }
    }

    /// A link of its own to the same broker, for what may cost the connection.
    #[must_use]
    pub fn beside(&self) -> Self {
        Self::new(Settings::clone(&self.settings()), self.purpose, Arc::new(Health::default()))
    }

    /// Whether what is missing is declared, or only looked for.
    pub fn declares(&self) -> bool {
        self.settings().declare
    }

    /// Connects with these settings from now on. A connection that stands goes on: closing it would only have its deliveries made
    /// again.
    pub fn renew(&self, settings: Settings) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
    }

    pub(super) fn settings(&self) -> Arc<Settings> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the broker can be reached. False when `stop` came first.
    pub async fn ready(&self, stop: &CancellationToken) -> bool {
        self.channel(stop).await.is_some()
    }

    /// A new channel; connects for as long as it takes. `None` when `stop` came first.
    pub(super) async fn channel(&self, stop: &CancellationToken) -> Option<Channel> {
        tokio::select! {
            () = stop.cancelled() => None,
            channel = self.channel_at_last() => Some(channel),
        }
    }

    async fn channel_at_last(&self) -> Channel {
        let mut pacing = Pacing::reconnect();
        // Held over the waits on purpose: everybody else would only fail the same way.
        let mut current = self.current.lock().await;
        loop {
            match self.try_channel(&mut current).await {
                Ok(channel) => return channel,
                Err(error) => {
                    *current = None;
                    self.report_down(&error);
                    tokio::time::sleep(pacing.next_wait()).await;
                }
            }
        }
    }

    /// A new channel, or the reason why there is none now.
    pub(super) async fn channel_now(&self) -> Result<Channel, BrokerError> {
        let mut current = self.current.lock().await;
        self.try_channel(&mut current).await
    }

    async fn try_channel(&self, current: &mut Option<Connection>) -> Result<Channel, BrokerError> {
        let connection = match current.take() {
            Some(connection) if connection.status().connected() => current.insert(connection),
            lost => {
                if lost.is_some() {
                    telemetry::broker_reconnect(self.purpose.as_str());
                }
                let connection = self.connect().await?;
                current.insert(connection)
            }
        };
        let channel = bounded("open a channel", ANSWER_WITHIN, connection.create_channel()).await?;
        self.report_up();
        Ok(channel)
    }

    async fn connect(&self) -> Result<Connection, BrokerError> {
        let connection = connect(&self.settings(), self.purpose).await?;
        self.watch_events(&connection);
        Ok(connection)
    }

    /// Ends by itself when the connection is dropped. The listener is no broadcast: exactly one per connection.
    fn watch_events(&self, connection: &Connection) {
        let mut events = Box::pin(connection.events_listener());
        let purpose = self.purpose.as_str();
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                match event {
                    Event::ConnectionBlocked(why) => {
                        telemetry::broker_blocked(purpose, true);
                        warn!(purpose, why, "broker blocks the {purpose} connection: {why}");
                    }
                    Event::ConnectionUnblocked => {
                        telemetry::broker_blocked(purpose, false);
                        info!(purpose, "broker unblocked the {purpose} connection");
                    }
                    Event::Error(_) => break,
                    _ => {}
                }
            }
            telemetry::broker_blocked(purpose, false);
        });
    }

    /// Closes the connection; running channels end.
    pub async fn close(&self) {
        if let Some(connection) = self.current.lock().await.take() {
            close(&connection).await;
        }
    }

    fn check_name(&self) -> String {
        format!("broker.{}", self.purpose.as_str())
    }

    fn report_up(&self) {
        telemetry::broker_connected(self.purpose.as_str(), true);
        if self.health.set(&self.check_name(), Check::Ok) {
            let purpose = self.purpose.as_str();
            info!(purpose, address = self.settings().address(), "broker connected for {purpose}");
        }
    }

    fn report_down(&self, error: &BrokerError) {
        telemetry::broker_connected(self.purpose.as_str(), false);
        let waiting = Check::Waiting(format!("{error}; trying {} again", self.settings().address()));
        if self.health.set(&self.check_name(), waiting) {
            warn!(purpose = self.purpose.as_str(), %error, "waiting for the broker at {}: {error}", self.settings().address());
        }
    }
}

/// Whether the broker lets us in with these settings; the connection is closed at once.
///
/// # Errors
/// Why not.
pub async fn knock(settings: &Settings) -> Result<(), BrokerError> {
    let connection = connect(settings, Purpose::Publish).await?;
    close(&connection).await;
    Ok(())
}

async fn connect(settings: &Settings, purpose: Purpose) -> Result<Connection, BrokerError> {
    let uri = settings.uri().map_err(BrokerError::settings)?;
    let name = format!("{} {}", settings.name, purpose.as_str());
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let (place, login) = (format!("{}:{}", uri.authority.host, uri.authority.port), Login::of(settings, &uri));
    let connecting = async {
        match uri.scheme {
            AMQPScheme::AMQP => Connection::connect_uri(uri, properties).await,
            AMQPScheme::AMQPS => connect_with_tls(&settings.tls, uri, properties).await,
        }
    };
    let connected = bounded("connect", CONNECT_WITHIN, connecting).await;
    let connection = connected.map_err(|error| error.explained(&place, login))?;
    // A broker that is short of memory blocks whoever publishes, and acks must go on.
    if let Some(user) = settings.signs_as.as_ref().filter(|_| purpose == Purpose::Publish) {
        check_signature(&connection, user).await?;
    }
    Ok(connection)
}

/// Whether the broker takes a message under this name. Otherwise it would refuse each one, which would be held against the message.
/// This one goes to a queue that can't be. An end of another kind says nothing of the name: what is wrong shows at the first use.
async fn check_signature(connection: &Connection, user: &str) -> Result<(), BrokerError> {
    let name = ShortString::try_new(user.to_owned()).map_err(|_| BrokerError::too_long("user name"))?;
    let channel = bounded("open a channel", ANSWER_WITHIN, connection.create_channel()).await?;
    confirm_mode(&channel).await?;
    let publish = async {
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default().with_user_id(name));
        channel.basic_publish("".into(), "".into(), options, &[], properties).await?.await
    };
    match bounded("say who we are", ANSWER_WITHIN, publish).await {
        Err(error) if error.is_precondition_failed() => return Err(error.of_another_user()),
        Ok(_) => super::consume::close(&channel).await,
        Err(error) => tracing::debug!(%error, "whether the broker knows us as {user} could not be seen"),
    }
    Ok(())
}

/// By our own trust; the client library's own way would always trust this system's authorities too.
async fn connect_with_tls(tls: &Tls, uri: AMQPUri, properties: ConnectionProperties) -> lapin::Result<Connection> {
    let tls = RustlsConnector::from(tls.client().map_err(std::io::Error::other)?);
    let runtime = lapin::runtime::default_runtime()?;
    Connection::connector(
        uri,
        runtime,
        async move |uri, runtime| {
            let host = uri.authority.host;
            let addresses = runtime.to_socket_addrs((host.clone(), uri.authority.port));
            let stream = AsyncTcpStream::connect(&runtime, addresses).await?;
            Ok(stream.into_rustls(&tls, &host).await?)
        },
        properties,
    )
    .await
}

async fn close(connection: &Connection) {
    let closing = connection.close(200, "bye".into());
    if let Err(error) = bounded("close", ANSWER_WITHIN, closing).await {
        tracing::debug!(%error, "the connection was gone before it was closed");
    }
}

/// A channel in confirm mode.
pub(super) async fn confirm_mode(channel: &Channel) -> Result<(), BrokerError> {
    bounded("select confirms", ANSWER_WITHIN, channel.confirm_select(ConfirmSelectOptions::default())).await
}

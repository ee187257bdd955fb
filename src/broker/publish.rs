//! Publishing with confirms and the mandatory flag.
//!
//! The client attaches a returned message to the wrong confirm when publishes are pipelined (`spec/reliability.md` §1.1). So one
//! batch is in flight per channel, every confirm is awaited, all returned messages are collected, and what came back is told by
//! its identity, never by the confirm it was attached to.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::maybe_done;
use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{Channel, Confirmation, PublisherConfirm};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::consume::abandon;
use super::convert::{message_from, properties_from};
use super::declare::Topology;
use super::error::BrokerError;
use super::link::{Link, Purpose, confirm_mode};
use super::settings::Settings;
use crate::health::Health;
use crate::message::{Message, Route};
use crate::telemetry;

/// Longest wait for the confirms of one batch. A blocked broker keeps the batch waiting; it is then sent again.
const CONFIRM_WITHIN: Duration = Duration::from_secs(15);
/// Most messages that are handed to the client at once: it holds a copy of each.
const BURST: usize = 64;
/// Own header that names one publish of a message whose id may be published several times.
pub(crate) const REPLAY_ID: &str = "onceflow-replay-id";

/// A message with where it goes.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Where to.
    pub route: Route,
    /// What; in a batch every message needs an id, or the replay header, of its own.
    pub message: Message,
}

/// What the broker did with one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Stored in at least one queue.
    Confirmed,
    /// No queue is bound for it.
    Returned(String),
    /// Refused for now, e.g. a full queue.
    Nacked,
}

/// Publishes batches on a channel of its own, which it rebuilds after any failure.
#[derive(Debug)]
pub struct Publisher {
    link: Arc<Link>,
    topology: Topology,
    channel: Mutex<Option<Channel>>,
}

impl Publisher {
    /// A publisher that declares `topology` whenever it opens a channel.
    pub fn new(link: Arc<Link>, topology: Topology) -> Self {
        Self { link, topology, channel: Mutex::new(None) }
    }

    /// Publishes a batch and tells the fate of each message, in order. Waits for a connection until `stop`.
    ///
    /// # Errors
    /// The fate of the whole batch is unknown; publishing it again is safe for consumers that know its ids.
    pub async fn publish(&self, batch: Vec<Outgoing>, stop: &CancellationToken) -> Result<Vec<Fate>, BrokerError> {
        let mut slot = self.channel.lock().await;
        let channel = self.take_or_open(&mut slot, stop).await?;
        telemetry::unconfirmed(batch.len());
        let result = publish_on(&channel, batch, self.link.settings().signs_as.as_deref()).await;
        telemetry::unconfirmed(0);
        if result.is_ok() {
            *slot = Some(channel);
        } else {
            // Late confirms of this batch must never be taken for those of the next one.
            abandon(channel);
        }
        result
    }

    /// Waits until there is a channel, so that what follows is not held up by a broker that is away.
    ///
    /// # Errors
    /// The broker refuses the topology, or `stop` came first.
    pub async fn ready(&self, stop: &CancellationToken) -> Result<(), BrokerError> {
        let mut slot = self.channel.lock().await;
        let channel = self.take_or_open(&mut slot, stop).await?;
        *slot = Some(channel);
        Ok(())
    }

    /// Opens a new channel next time, which declares the topology anew: for queues that somebody deleted.
    pub async fn start_over(&self) {
        if let Some(channel) = self.channel.lock().await.take() {
            abandon(channel);
        }
    }

    async fn take_or_open(&self, slot: &mut Option<Channel>, stop: &CancellationToken) -> Result<Channel, BrokerError> {
        match slot.take() {
            Some(channel) if channel.status().connected() => Ok(channel),
            _ => self.open(stop).await,
        }
    }

    async fn open(&self, stop: &CancellationToken) -> Result<Channel, BrokerError> {
        let channel = self.link.channel(stop).await.ok_or(BrokerError::ended("open a channel"))?;
        self.topology.declare(&channel, self.link.declares()).await?;
        confirm_mode(&channel).await?;
        Ok(channel)
    }
}

async fn publish_on(channel: &Channel, batch: Vec<Outgoing>, user: Option<&str>) -> Result<Vec<Fate>, BrokerError> {
    let identities: Vec<String> = batch.iter().map(|outgoing| identity(&outgoing.message)).collect();
    let sent = send_and_confirm(channel, batch, user);
    let (confirmations, returned) = match tokio::time::timeout(CONFIRM_WITHIN, sent).await {
        Ok(result) => result?,
        Err(_) => return Err(BrokerError::silent("await confirms", CONFIRM_WITHIN)),
    };
    if identities.len() == 1 && !returned.is_empty() {
        return Ok(vec![Fate::Returned(returned_why(&returned[0]))]);
    }
    let returned: HashMap<String, String> =
        returned.iter().map(|r| (identity_of_returned(r), returned_why(r))).collect();
    let fate = |(identity, acked): (&String, bool)| match returned.get(identity) {
        Some(why) => Fate::Returned(why.clone()),
        None if acked => Fate::Confirmed,
        None => Fate::Nacked,
    };
    Ok(identities.iter().zip(confirmations).map(fate).collect())
}

type Confirmed = (Vec<bool>, Vec<BasicReturnMessage>);

async fn send_and_confirm(
    channel: &Channel,
    mut batch: Vec<Outgoing>,
    user: Option<&str>,
) -> Result<Confirmed, BrokerError> {
    let failed = |e| BrokerError::client("publish", e);
    let mut confirms = Vec::with_capacity(batch.len());
    for burst in batch.chunks_mut(BURST) {
        send(channel, burst, user, &mut confirms).await?;
    }
    crate::failpoint::hit("after_publish");
    let mut acked = Vec::with_capacity(batch.len());
    let mut returned = Vec::new();
    // The last first: then most others are there already, and this task wakes once for many.
    for confirm in confirms.into_iter().rev() {
        let confirmation = confirm.await.map_err(failed)?;
        acked.push(matches!(confirmation, Confirmation::Ack(_)));
        returned.extend(confirmation.take_message());
    }
    acked.reverse();
    // Those that the client attached to no confirm of ours.
    returned.extend(channel.wait_for_confirms().await.map_err(failed)?);
    Ok((acked, returned))
}

/// Queues a burst in order and then waits until all of it is written. The client completes a publish only once its frames are on
/// the socket: awaited one by one, each message costs a write call and a change of threads.
async fn send(
    channel: &Channel,
    burst: &mut [Outgoing],
    user: Option<&str>,
    confirms: &mut Vec<PublisherConfirm>,
) -> Result<(), BrokerError> {
    let failed = |e| BrokerError::client("publish", e);
    let mut publishes = Vec::with_capacity(burst.len());
    for outgoing in burst {
        let Route { exchange, routing_key } = std::mem::take(&mut outgoing.route);
        let (exchange, key) = (short("exchange", exchange)?, short("routing key", routing_key)?);
        let properties = properties_from(&mut outgoing.message, user)?;
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let publish = channel.basic_publish(exchange, key, options, &outgoing.message.body, properties);
        let mut publish = Box::pin(maybe_done(publish));
        // The first look queues the frames; whether they are written already does not matter.
        let _written = publish.as_mut().now_or_never();
        publishes.push(publish);
    }
    // Frames are written in order, so this wait is the only one.
    if let Some(last) = publishes.last_mut() {
        last.as_mut().await;
    }
    for mut publish in publishes {
        publish.as_mut().await;
        confirms.extend(publish.as_mut().take_output().transpose().map_err(failed)?);
    }
    Ok(())
}

fn short(what: &'static str, value: String) -> Result<ShortString, BrokerError> {
    ShortString::try_new(value).map_err(|_| BrokerError::too_long(what))
}

fn identity(message: &Message) -> String {
    let replay = message.headers.get(REPLAY_ID).and_then(|v| v.as_str());
    replay.or(message.message_id.as_deref()).unwrap_or_default().to_owned()
}

fn identity_of_returned(returned: &BasicReturnMessage) -> String {
    identity(&message_from(returned.delivery.properties.clone(), Vec::new()))
}

fn returned_why(returned: &BasicReturnMessage) -> String {
    format!(
        "{} (exchange {:?}, routing key {:?})",
        returned.reply_text.as_str(),
        returned.delivery.exchange.as_str(),
        returned.delivery.routing_key.as_str()
    )
}

/// Why a single message was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The broker is away or refused the connection.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// No queue is bound for the message.
    #[error("the broker returned the message: {0}")]
    Returned(String),
    /// A queue refused it, e.g. because it is full.
    #[error("the broker refused the message (nack): a bound queue may be full")]
    Nacked,
}

/// Publishes messages over a connection of their own, for the command line.
///
/// # Errors
/// At the first message that was not confirmed; those before it were.
pub async fn publish_once(settings: &Settings, messages: &[Outgoing]) -> Result<(), PublishError> {
    let link = Link::new(settings.clone(), Purpose::Publish, Arc::new(Health::default()));
    let result = publish_each(&link, messages).await;
    link.close().await;
    result
}

/// Most messages in flight on one channel.
const BATCH: usize = 200;

async fn publish_each(link: &Link, messages: &[Outgoing]) -> Result<(), PublishError> {
    let channel = link.channel_now().await?;
    let settings = link.settings();
    confirm_mode(&channel).await?;
    for batch in messages.chunks(BATCH) {
        for fate in publish_on(&channel, batch.to_vec(), settings.signs_as.as_deref()).await? {
            match fate {
                Fate::Confirmed => {}
                Fate::Returned(why) => return Err(PublishError::Returned(why)),
                Fate::Nacked => return Err(PublishError::Nacked),
            }
        }
    }
    Ok(())
}

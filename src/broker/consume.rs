//! Consuming: one channel per subscription, rebuilt by whoever owns it.
//!
//! After a channel error the client's stream yields one error and then pends for ever; after the queue's deletion it yields one
//! end and then pends for ever (`spec/reliability.md` §1.5). So the first of either ends the subscription, and so does a channel
//! that is found dead.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio_util::sync::CancellationToken;

use super::acks::{Acks, acknowledge};
use super::convert::message_from;
use super::declare::Topology;
use super::error::{BrokerError, bounded};
use super::link::{ANSWER_WITHIN, Link};
use crate::message::{Message, Route};

/// How often an idle subscription looks whether its channel still lives.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A running consumer of one queue.
pub struct Subscription {
    channel: Channel,
    consumer: Consumer,
    acks: Arc<Acks>,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription").finish_non_exhaustive()
    }
}

impl Subscription {
    /// Opens a channel, declares `topology` and consumes `queue` with at most `prefetch` unacknowledged deliveries. `None` when
    /// `stop` came first.
    ///
    /// # Errors
    /// The broker refuses the topology or the consumer.
    pub async fn open(
        link: &Link,
        topology: &Topology,
        queue: &str,
        prefetch: u16,
        stop: &CancellationToken,
    ) -> Result<Option<Self>, BrokerError> {
        let Some(channel) = link.channel(stop).await else { return Ok(None) };
        topology.declare(&channel).await?;
        let qos = channel.basic_qos(prefetch, BasicQosOptions::default());
        bounded("set the prefetch", ANSWER_WITHIN, qos).await?;
        let consume =
            channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default());
        let consumer = bounded("consume", ANSWER_WITHIN, consume).await?;
        let acks = Acks::new(channel.clone(), prefetch);
        Ok(Some(Self { channel, consumer, acks }))
    }

    /// The next delivery. Cancel safe.
    ///
    /// # Errors
    /// The subscription has ended; open another one.
    pub async fn next(&mut self) -> Result<Delivery, BrokerError> {
        loop {
            match tokio::time::timeout(LOOK_EVERY, self.consumer.next()).await {
                Ok(Some(Ok(delivery))) => {
                    self.acks.delivered(delivery.delivery_tag);
                    return Ok(Delivery::new(delivery, self.acks.clone()));
                }
                Ok(Some(Err(error))) => return Err(BrokerError::client("consume", error)),
                Ok(None) => return Err(BrokerError::ended("consume")),
                Err(_) if self.channel.status().connected() => {}
                Err(_) => return Err(BrokerError::ended("consume")),
            }
        }
    }

    /// Asks for no further deliveries; those on their way still arrive.
    ///
    /// # Errors
    /// The channel is gone, and with it the consumer.
    pub async fn cancel(&self) -> Result<(), BrokerError> {
        let cancel = self.channel.basic_cancel(self.consumer.tag(), BasicCancelOptions::default());
        bounded("cancel the consumer", ANSWER_WITHIN, cancel).await
    }

    /// Whether the channel still lives, as far as is known.
    pub fn is_connected(&self) -> bool {
        self.channel.status().connected()
    }

    /// Closes the channel: what was not acknowledged goes back to the queue.
    pub async fn close(self) {
        if let Err(error) = self.acks.flush().await {
            tracing::debug!(%error, "acks lost: the broker delivers the messages again");
        }
        self.acks.end();
        close(&self.channel).await;
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.acks.end();
    }
}

/// A message from a queue, not yet acknowledged.
#[derive(Debug)]
pub struct Delivery {
    /// What.
    pub message: Message,
    /// Where it was published to.
    pub route: Route,
    /// The broker has delivered it before.
    pub redelivered: bool,
    tag: u64,
    acks: Arc<Acks>,
}

impl Delivery {
    fn new(delivery: lapin::message::Delivery, acks: Arc<Acks>) -> Self {
        Self {
            message: message_from(&delivery.properties, delivery.data),
            route: Route {
                exchange: delivery.exchange.as_str().to_owned(),
                routing_key: delivery.routing_key.as_str().to_owned(),
            },
            redelivered: delivery.redelivered,
            tag: delivery.delivery_tag,
            acks,
        }
    }

    /// Whether the subscription that brought it still runs; if not, the broker delivers it again.
    pub fn is_current(&self) -> bool {
        self.acks.is_alive()
    }

    /// Tells the broker that the message is dealt with. Returns false for a stale delivery, which comes again.
    ///
    /// # Errors
    /// The channel is gone; the message comes again.
    pub async fn ack(&self) -> Result<bool, BrokerError> {
        acknowledge(&[self]).await
    }

    pub(super) fn tag(&self) -> u64 {
        self.tag
    }

    pub(super) fn acks(&self) -> &Arc<Acks> {
        &self.acks
    }
}

/// How many messages lie in each queue; 0 for one that doesn't exist.
///
/// # Errors
/// The broker is away or says no.
pub async fn queue_depths(link: &Link, queues: &[String]) -> Result<Vec<u32>, BrokerError> {
    let mut depths = Vec::with_capacity(queues.len());
    let mut channel = link.channel_now().await?;
    for queue in queues {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let looking = channel.queue_declare(queue.as_str().into(), options, FieldTable::default());
        match bounded("look at a queue", ANSWER_WITHIN, looking).await {
            Ok(found) => depths.push(found.message_count()),
            // The broker closes the channel over it.
            Err(error) if error.is_not_found() => {
                depths.push(0);
                channel = link.channel_now().await?;
            }
            Err(error) => return Err(error),
        }
    }
    close(&channel).await;
    Ok(depths)
}

pub(super) async fn close(channel: &Channel) {
    let closing = channel.close(200, "bye".into());
    if let Err(error) = bounded("close a channel", ANSWER_WITHIN, closing).await {
        tracing::debug!(%error, "the channel was gone before it was closed");
    }
}

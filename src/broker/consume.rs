//! Consuming: one channel per subscription, rebuilt by whoever owns it.
//!
//! After a channel error the client's stream yields one error and then pends for ever; after the queue's deletion it yields one
//! end and then pends for ever (`spec/reliability.md` §1.5). So the first of either ends the subscription, and so does a channel
//! that is found dead.
//!
//! The window of a subscription changes with the size of the messages ([`Intake`]): the consumer is cancelled, and another one
//! starts on the same channel once there is room. Tags go on, and so does the order, because the consumer is cancelled only when
//! nothing is on its way: acks are held back until its window is used up. A quorum queue takes back what a cancelled consumer
//! had on its way, and may deliver what follows first (seen with 3.10). Where the window isn't used up there is no hurry.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, Fuse};
use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::acks::{Acks, acknowledge};
use super::convert::message_from;
use super::declare::Topology;
use super::error::{BrokerError, bounded};
use super::intake::{Held, Intake};
use super::link::{ANSWER_WITHIN, Link};
use crate::message::{Message, Route};

/// How often an idle subscription looks whether its channel still lives.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long acks may be held back for a window that has to change.
const HOLD_WITHIN: Duration = Duration::from_millis(200);

/// A running consumer of one queue.
pub struct Subscription {
    channel: Own,
    queue: String,
    acks: Arc<Acks>,
    intake: Intake,
    state: State,
    /// Since when acks are held back.
    held_since: Option<Instant>,
    /// Read, but not yet asked for.
    arrived: VecDeque<Delivery>,
}

/// Where the deliveries come from.
enum State {
    /// A consumer.
    Reading(Consumer),
    /// A consumer that is being cancelled, with nothing on its way.
    Leaving(Consumer, Fuse<BoxFuture<'static, Result<(), BrokerError>>>),
    /// Nowhere, until there is room for the next window.
    Waiting,
    /// A consumer that is being started.
    Starting(BoxFuture<'static, Result<Consumer, BrokerError>>),
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl Subscription {
    /// Opens a channel, declares `topology` and consumes `queue` as fast as `intake` allows. `None` when `stop` came first.
    ///
    /// # Errors
    /// The broker refuses the topology or the consumer.
    pub async fn open(
        link: &Link,
        topology: &Topology,
        queue: &str,
        intake: &Intake,
        stop: &CancellationToken,
    ) -> Result<Option<Self>, BrokerError> {
        let Some(channel) = link.channel(stop).await.map(Own) else { return Ok(None) };
        topology.declare(&channel.0, link.declares()).await?;
        let size = intake.first();
        let acks = Acks::new(channel.0.clone(), size);
        intake.opened(size);
        let (queue, intake) = (queue.to_owned(), intake.clone());
        // Deliveries of a channel that died may still be in memory.
        let state = if intake.has_room_for(size) {
            State::Reading(consume(channel.0.clone(), queue.clone(), size).await?)
        } else {
            State::Waiting
        };
        Ok(Some(Self { channel, queue, acks, intake, state, held_since: None, arrived: VecDeque::new() }))
    }

    /// The next delivery. Cancel safe.
    ///
    /// # Errors
    /// The subscription has ended; open another one.
    pub async fn next(&mut self) -> Result<Delivery, BrokerError> {
        loop {
            self.read_what_is_there()?;
            if matches!(self.state, State::Reading(_)) && self.intake.is_overfull() {
                let held = self.intake.held_bytes();
                self.give_back().await;
                return Err(BrokerError::overfull(held));
            }
            self.follow_the_window().await?;
            if let Some(delivery) = self.arrived.pop_front() {
                return Ok(delivery);
            }
            let patience = if self.held_since.is_some() { HOLD_WITHIN } else { LOOK_EVERY };
            match tokio::time::timeout(patience, self.step()).await {
                Ok(done) => done?,
                Err(_) if self.is_connected() => {}
                Err(_) => return Err(BrokerError::ended("consume")),
            }
        }
    }

    /// Counts what has arrived before any of it is worked on, so that a flood is noticed at once.
    fn read_what_is_there(&mut self) -> Result<(), BrokerError> {
        while let State::Reading(consumer) = &mut self.state {
            let Some(next) = consumer.next().now_or_never() else { return Ok(()) };
            self.took(next)?;
            if self.intake.is_overfull() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn took(&mut self, next: Option<lapin::Result<lapin::message::Delivery>>) -> Result<(), BrokerError> {
        match next {
            Some(Ok(delivery)) => {
                self.acks.delivered(delivery.delivery_tag);
                self.arrived.push_back(Delivery::new(delivery, self.acks.clone(), &self.intake));
                Ok(())
            }
            Some(Err(error)) => Err(BrokerError::client("consume", error)),
            None if matches!(self.state, State::Leaving(..)) => {
                self.state = State::Waiting;
                Ok(())
            }
            None => Err(BrokerError::ended("consume")),
        }
    }

    /// Cancels the consumer when its window has to change and nothing is on its way.
    async fn follow_the_window(&mut self) -> Result<(), BrokerError> {
        let State::Reading(consumer) = &self.state else { return Ok(()) };
        let Some(size) = self.intake.wanted() else { return self.let_go().await };
        if self.intake.is_fixed() {
            // With anything in memory it would come again: only the overfull can't wait.
            return if self.intake.is_empty() { Err(BrokerError::window_changes()) } else { Ok(()) };
        }
        let held_since = *self.held_since.get_or_insert_with(|| {
            self.acks.hold();
            Instant::now()
        });
        if self.acks.outstanding() < usize::from(self.intake.window()) {
            if held_since.elapsed() < HOLD_WITHIN {
                return Ok(());
            }
            self.intake.put_off();
            return self.let_go().await;
        }
        tracing::debug!(
            queue = self.queue,
            from = self.intake.window(),
            to = size,
            "the window of {} changes",
            self.queue
        );
        let mut cancelled = cancel(self.channel.0.clone(), consumer).fuse();
        // The first look sends it.
        if let Some(done) = (&mut cancelled).now_or_never() {
            done?;
        }
        self.state = State::Leaving(consumer.clone(), cancelled);
        Ok(())
    }

    async fn let_go(&mut self) -> Result<(), BrokerError> {
        match self.held_since.take() {
            Some(_) => self.acks.let_go().await,
            None => Ok(()),
        }
    }

    /// Waits for whatever comes next: a delivery, room, or a consumer that starts.
    async fn step(&mut self) -> Result<(), BrokerError> {
        match &mut self.state {
            State::Reading(consumer) => {
                let next = consumer.next().await;
                self.took(next)
            }
            State::Leaving(consumer, cancelled) => tokio::select! {
                biased;
                next = consumer.next() => self.took(next),
                done = cancelled => done,
            },
            State::Waiting => {
                self.let_go().await?;
                let size = self.intake.wanted().unwrap_or(self.intake.window());
                self.intake.room_for(size).await;
                self.intake.opened(size);
                self.acks.next_consumer(size);
                self.state = State::Starting(consume(self.channel.0.clone(), self.queue.clone(), size));
                Ok(())
            }
            State::Starting(started) => {
                self.state = State::Reading(started.await?);
                Ok(())
            }
        }
    }

    /// Whether the channel still lives, as far as is known.
    pub fn is_connected(&self) -> bool {
        self.channel.0.status().connected()
    }

    /// Closes the channel: what was not acknowledged goes back to the queue.
    pub async fn close(self) {
        end(&self.acks).await;
        close(&self.channel.0).await;
    }

    /// Like `close`, but drops what still arrives meanwhile.
    async fn give_back(&mut self) {
        end(&self.acks).await;
        self.arrived.clear();
        let State::Reading(consumer) = &mut self.state else { return };
        let rest = async {
            while let Some(Ok(_)) = consumer.next().await {}
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = close(&self.channel.0) => {}
            () = rest => {}
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.acks.end();
    }
}

/// A channel that is closed at its end, however that comes about. Left to itself it would stay open where nobody waits for the answer
/// to `basic.consume` any more, as with a quorum queue that has lost its majority: the client takes the answer when it comes, the
/// consumer lives, and what the broker sends it is read by nobody.
struct Own(Channel);

impl Drop for Own {
    fn drop(&mut self) {
        if self.0.status().connected() {
            abandon(self.0.clone());
        }
    }
}

async fn end(acks: &Acks) {
    if let Err(error) = acks.flush().await {
        tracing::debug!(%error, "acks lost: the broker delivers the messages again");
    }
    acks.end();
}

fn consume(channel: Channel, queue: String, prefetch: u16) -> BoxFuture<'static, Result<Consumer, BrokerError>> {
    let started = async move {
        let qos = channel.basic_qos(prefetch, BasicQosOptions::default());
        bounded("set the prefetch", ANSWER_WITHIN, qos).await?;
        let consume =
            channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default());
        bounded("consume", ANSWER_WITHIN, consume).await
    };
    started.boxed()
}

fn cancel(channel: Channel, consumer: &Consumer) -> BoxFuture<'static, Result<(), BrokerError>> {
    let tag = consumer.tag();
    let cancelled = async move {
        let cancel = channel.basic_cancel(tag, BasicCancelOptions::default());
        bounded("cancel the consumer", ANSWER_WITHIN, cancel).await
    };
    cancelled.boxed()
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
    /// Counts it as in memory for as long as it lives.
    _held: Held,
}

impl Delivery {
    fn new(delivery: lapin::message::Delivery, acks: Arc<Acks>, intake: &Intake) -> Self {
        let message = message_from(delivery.properties, delivery.data);
        let route = Route { exchange: delivery.exchange.into(), routing_key: delivery.routing_key.into() };
        Self {
            _held: intake.hold(&message),
            message,
            route,
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

/// Closes a channel without waiting for it.
pub(super) fn abandon(channel: Channel) {
    // Without a runtime the connection ends too.
    if let Ok(runtime) = Handle::try_current() {
        runtime.spawn(async move { close(&channel).await });
    }
}

pub(super) async fn close(channel: &Channel) {
    let closing = channel.close(200, "bye".into());
    if let Err(error) = bounded("close a channel", ANSWER_WITHIN, closing).await {
        tracing::debug!(%error, "the channel was gone before it was closed");
    }
}

//! The producer: publishes events with confirms on, as fast as it can or by a schedule.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Confirmation, PublisherConfirm};
use tokio::sync::mpsc;

use crate::events::{Feed, Ready};
use crate::sibling::connect;

/// Unconfirmed messages when publishing at full speed.
const WINDOW: usize = 1_000;
/// Longest wait for a contender's consumer.
const CONSUMER_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A connection that publishes.
pub(crate) struct Producer {
    connection: lapin::Connection,
    channel: Channel,
}

impl Producer {
    pub(crate) async fn connect(amqp_url: &str) -> anyhow::Result<Self> {
        let connection = connect(amqp_url).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { connection, channel })
    }

    /// Publishes events as fast as the broker takes them.
    pub(crate) async fn flood(&self, feed: &Feed, events: Range<u64>) -> anyhow::Result<()> {
        let mut confirms = Vec::with_capacity(WINDOW);
        for n in events {
            confirms.push(self.publish(feed.message(n)).await?);
            if confirms.len() == WINDOW {
                // Half of them stay on their way: the window never runs empty.
                settle(confirms.drain(..WINDOW / 2)).await?;
            }
        }
        settle(confirms.drain(..)).await
    }

    /// Publishes events at `rate` a second and returns when each was due. Late ones go at once; their time still counts from
    /// when they were due, so a slow system can't hide its queue.
    pub(crate) async fn steady(&self, feed: &Feed, events: Range<u64>, rate: u64) -> anyhow::Result<Vec<Instant>> {
        let begin = Instant::now() + Duration::from_millis(50);
        let due = |i: u64| begin + Duration::from_nanos(i * 1_000_000_000 / rate);
        let schedule: Vec<Instant> = (0..events.end - events.start).map(due).collect();
        let (hand, mut ready) = mpsc::unbounded_channel();
        let pacer = pace(feed.clone(), events, schedule.clone(), hand);
        let (confirm, mut confirms) = mpsc::unbounded_channel::<PublisherConfirm>();
        let settled = tokio::spawn(async move {
            while let Some(confirm) = confirms.recv().await {
                settle([confirm]).await?;
            }
            anyhow::Ok(())
        });
        while let Some(message) = ready.recv().await {
            confirm.send(self.publish(message).await?).context("a message was not confirmed")?;
        }
        drop(confirm);
        settled.await??;
        pacer.join().map_err(|_| anyhow::anyhow!("the pacing thread panicked"))?;
        Ok(schedule)
    }

    /// Waits until every one of these queues has a consumer: the contender is ready.
    pub(crate) async fn wait_for_consumers(&self, queues: &[String], each: u32) -> anyhow::Result<()> {
        let begun = Instant::now();
        for queue in queues {
            let look = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            while self.channel.queue_declare(queue.as_str().into(), look, FieldTable::default()).await?.consumer_count()
                < each
            {
                if begun.elapsed() > CONSUMER_WITHIN {
                    bail!("{queue} has no consumer after {} s; logs are in target/bench/", CONSUMER_WITHIN.as_secs());
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        Ok(())
    }

    pub(crate) async fn close(self) -> anyhow::Result<()> {
        Ok(self.connection.close(200, "bye".into()).await?)
    }

    async fn publish(&self, message: Ready) -> anyhow::Result<PublisherConfirm> {
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let (exchange, key) = ("onceflow.in".into(), message.routing_key.into());
        Ok(self.channel.basic_publish(exchange, key, options, &message.body, message.properties).await?)
    }
}

async fn settle(confirms: impl IntoIterator<Item = PublisherConfirm>) -> anyhow::Result<()> {
    for confirm in confirms {
        match confirm.await? {
            Confirmation::Ack(None) => {}
            refused => bail!("the broker did not take an event: {refused:?}"),
        }
    }
    Ok(())
}

/// Hands each event over when it is due. A thread of its own, because the runtime's timer is only as fine as a millisecond.
fn pace(
    feed: Feed,
    events: Range<u64>,
    schedule: Vec<Instant>,
    hand: mpsc::UnboundedSender<Ready>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        for (n, due) in events.zip(schedule) {
            let message = feed.message(n);
            wait_until(due);
            if hand.send(message).is_err() {
                return;
            }
        }
    })
}

#[expect(clippy::disallowed_methods, reason = "a schedule is what this thread waits for")]
fn wait_until(due: Instant) {
    let wait = due.saturating_duration_since(Instant::now());
    if !wait.is_zero() {
        std::thread::sleep(wait);
    }
}

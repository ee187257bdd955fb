//! The sibling system: takes every downstream message and remembers when it came, by the event that caused it.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context as _, bail};
use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties, ExchangeKind};
use tokio::sync::watch;

use crate::events::number_of;
use crate::wire;

const QUEUE: &str = "bench.sibling";
const PREFETCH: u16 = 2_000;
const ACK_EVERY: usize = 200;

/// What may come, each with a bit of its own.
const KINDS: [(&str, u8); 4] =
    [("org.user.changed.v1", 1), ("sms.accepted.v1", 1), ("payment.recorded.v1", 1), ("order.paid.v1", 2)];

/// A consuming sibling; it ends with its connection.
pub(crate) struct Sibling {
    connection: Connection,
    book: Arc<Mutex<Book>>,
    seen: watch::Receiver<u64>,
}

/// What has come.
#[derive(Debug, Clone, Default)]
pub(crate) struct Book {
    /// By event: when the last of its messages came.
    pub(crate) arrived: Vec<Option<Instant>>,
    kinds: Vec<u8>,
    pub(crate) first: Option<Instant>,
    pub(crate) last: Option<Instant>,
    /// Messages that came twice.
    pub(crate) repeated: u64,
    /// Messages that belong to no event of ours.
    pub(crate) strange: Vec<String>,
}

impl Sibling {
    /// Binds a queue to the egress exchange and consumes it, for events numbered below `count`.
    pub(crate) async fn start(amqp_url: &str, count: u64) -> anyhow::Result<Self> {
        let connection = connect(amqp_url).await?;
        let channel = connection.create_channel().await?;
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        channel.exchange_declare("onceflow.out".into(), ExchangeKind::Topic, durable, FieldTable::default()).await?;
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(QUEUE.into(), durable, FieldTable::default()).await?;
        let bind = QueueBindOptions::default();
        channel.queue_bind(QUEUE.into(), "onceflow.out".into(), "#".into(), bind, FieldTable::default()).await?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let consume = BasicConsumeOptions::default();
        let consumer = channel.basic_consume(QUEUE.into(), "".into(), consume, FieldTable::default()).await?;
        let places = usize::try_from(count)?;
        let book = Book { arrived: vec![None; places], kinds: vec![0; places], ..Book::default() };
        let book = Arc::new(Mutex::new(book));
        let (tell, seen) = watch::channel(0);
        tokio::spawn(consume_all(consumer, Arc::clone(&book), tell));
        Ok(Self { connection, book, seen })
    }

    /// Waits until `count` distinct messages have come.
    pub(crate) async fn wait_for(&self, count: u64) -> anyhow::Result<()> {
        let mut seen = self.seen.clone();
        seen.wait_for(|seen| *seen >= count).await.context("the sibling's consumer ended")?;
        Ok(())
    }

    pub(crate) fn count(&self) -> u64 {
        *self.seen.borrow()
    }

    /// Ends the consumer and returns what came. Fails if anything came that should not.
    pub(crate) async fn close(self) -> anyhow::Result<Book> {
        self.connection.close(200, "bye".into()).await?;
        let book =
            std::mem::take(&mut *self.book.lock().map_err(|_| anyhow::anyhow!("the sibling's consumer panicked"))?);
        if let Some(first) = book.strange.first() {
            bail!("{} downstream messages belong to no event that was sent, e.g. {first}", book.strange.len());
        }
        Ok(book)
    }
}

pub(crate) async fn connect(amqp_url: &str) -> anyhow::Result<Connection> {
    Connection::connect(amqp_url, ConnectionProperties::default()).await.context("connect to RabbitMQ")
}

async fn consume_all(mut consumer: lapin::Consumer, book: Arc<Mutex<Book>>, tell: watch::Sender<u64>) {
    let (mut distinct, mut unacked) = (0, 0);
    while let Some(Ok(delivery)) = consumer.next().await {
        let now = Instant::now();
        if let Ok(mut book) = book.lock()
            && book.enter(&delivery, now)
        {
            distinct += 1;
        }
        // Nobody may wait any more, which is no reason to stop.
        let _ = tell.send(distinct);
        unacked += 1;
        if unacked >= ACK_EVERY {
            unacked = 0;
            if delivery.acker.ack(BasicAckOptions { multiple: true }).await.is_err() {
                return;
            }
        }
    }
}

impl Book {
    /// Writes a message down; false where it came before.
    fn enter(&mut self, delivery: &lapin::message::Delivery, now: Instant) -> bool {
        let headers = delivery.properties.headers().as_ref();
        let cause = headers.and_then(|table| wire::text(table, "cloudEvents:causationid"));
        let kind = KINDS.iter().find(|(name, _)| *name == delivery.routing_key.as_str());
        let place = cause.and_then(number_of).and_then(|n| usize::try_from(n).ok());
        let (Some((_, bit)), Some(place)) = (kind, place.filter(|place| *place < self.kinds.len())) else {
            self.strange.push(format!("{} caused by {cause:?}", delivery.routing_key));
            return false;
        };
        if self.kinds[place] & bit != 0 {
            self.repeated += 1;
            return false;
        }
        self.kinds[place] |= bit;
        self.arrived[place] = Some(now);
        self.first.get_or_insert(now);
        self.last = Some(now);
        true
    }

    /// Milliseconds from when event number `n` was due to the arrival of its message; `None` where none came or it was not due.
    pub(crate) fn waited(&self, n: u64, schedule: &[Instant]) -> Option<f64> {
        let place = usize::try_from(n).ok()?;
        let late = self.arrived.get(place).copied()??.duration_since(*schedule.get(place)?);
        Some(late.as_secs_f64() * 1e3)
    }

    /// How many messages event number `n` caused.
    pub(crate) fn messages(&self, n: usize) -> u32 {
        self.kinds[n].count_ones()
    }
}

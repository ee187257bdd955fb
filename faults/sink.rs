//! The sibling system: takes every downstream message over every outage, and keeps a journal in the order of arrival.

use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties, Consumer, ExchangeKind};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::events::table;

/// The sibling's queue.
pub(crate) const QUEUE: &str = "faults.sibling";
const EGRESS: &str = "onceflow.out";
const PREFETCH: u16 = 500;
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(200);

/// One message as it came.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    pub(crate) message_id: String,
    /// The event that caused it.
    pub(crate) cause: String,
    pub(crate) event_type: String,
    pub(crate) subject: String,
    /// Of the entity, where the payload tells it.
    pub(crate) version: Option<i64>,
    /// The broker had given it to a connection of ours before, which was lost.
    pub(crate) again: bool,
}

/// Where it consumes, and from what kind of queue.
struct At {
    amqp_url: String,
    replicated: bool,
}

/// What became of its connections, for who looks into a failure.
#[derive(Clone)]
struct Steps(Arc<Mutex<Vec<String>>>, Instant);

impl Steps {
    fn note(&self, step: impl std::fmt::Display) {
        let line = format!("{:>9.3} s  {step}", self.1.elapsed().as_secs_f64());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
}

/// A running sink.
pub(crate) struct Sink {
    arrived: Arc<Mutex<Vec<Arrival>>>,
    steps: Steps,
    task: JoinHandle<()>,
    /// The number of times that the queue was declared and bound.
    bound: watch::Receiver<u64>,
    again: Arc<tokio::sync::Notify>,
}

impl Sink {
    /// Declares its queue, bound to everything, and consumes. `replicated`: the queue survives the loss of a node.
    pub(crate) async fn start(amqp_url: &str, replicated: bool) -> anyhow::Result<Self> {
        let arrived: Arc<Mutex<Vec<Arrival>>> = Arc::default();
        let (tell, mut bound) = watch::channel(0);
        let again = Arc::new(tokio::sync::Notify::new());
        let at = At { amqp_url: amqp_url.to_owned(), replicated };
        let steps = Steps(Arc::default(), Instant::now());
        let task = tokio::spawn(consume_for_ever(at, (arrived.clone(), steps.clone()), tell, again.clone()));
        bound.wait_for(|bound| *bound > 0).await.context("the sink has ended")?;
        Ok(Self { arrived, steps, task, bound, again })
    }

    /// Binds its queue again, after a fault has taken exchange or binding away.
    pub(crate) async fn bind_again(&mut self) -> anyhow::Result<()> {
        let before = *self.bound.borrow();
        self.again.notify_one();
        self.bound.wait_for(|bound| *bound > before).await.context("the sink has ended")?;
        Ok(())
    }

    /// All that came.
    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        self.lock().clone()
    }

    /// Ends it and writes the journal down.
    pub(crate) fn end(&self, file: &Path) -> anyhow::Result<Vec<Arrival>> {
        self.task.abort();
        let arrivals = self.arrivals();
        write(&arrivals, file).with_context(|| format!("write {}", file.display()))?;
        let steps = self.steps.0.lock().unwrap_or_else(PoisonError::into_inner).join("\n");
        std::fs::write(file.with_extension("log"), steps + "\n")
            .context("write what became of the sink's connections")?;
        Ok(arrivals)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arrival>> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn consume_for_ever(
    at: At,
    (arrived, steps): (Arc<Mutex<Vec<Arrival>>>, Steps),
    tell: watch::Sender<u64>,
    again: Arc<tokio::sync::Notify>,
) {
    loop {
        // Whatever ends it, it begins again.
        let connecting = Connection::connect(&at.amqp_url, ConnectionProperties::default());
        let connected = tokio::time::timeout(CONNECT_WITHIN, connecting).await;
        if let Ok(Ok(connection)) = connected {
            match tokio::time::timeout(CONNECT_WITHIN, open(&connection, at.replicated)).await {
                Ok(Ok((channel, consumer))) => {
                    steps.note("consumes");
                    tell.send_modify(|bound| *bound += 1);
                    tokio::select! {
                        why = consume(&channel, consumer, &arrived) => steps.note(why),
                        () = again.notified() => steps.note("binds again"),
                    }
                }
                Ok(Err(error)) => steps.note(format!("can't consume: {error:#}")),
                Err(_) => steps.note("can't consume: no answer"),
            }
            // A consumer that the broker starts after we have given up would keep messages for itself, and the connection alive.
            // One that is gone already needs no close.
            match tokio::time::timeout(CONNECT_WITHIN, connection.close(200, "bye".into())).await {
                Ok(Ok(())) => steps.note("closed"),
                Ok(Err(error)) => steps.note(format!("was closed: {error}")),
                Err(_) => steps.note("close: no answer"),
            }
        } else {
            steps.note("can't connect");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn open(connection: &Connection, replicated: bool) -> anyhow::Result<(Channel, Consumer)> {
    let channel = connection.create_channel().await?;
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(EGRESS.into(), ExchangeKind::Topic, durable, FieldTable::default()).await?;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let arguments = if replicated { table([("x-queue-type", "quorum")]) } else { FieldTable::default() };
    channel.queue_declare(QUEUE.into(), durable, arguments).await?;
    let bind = QueueBindOptions::default();
    channel.queue_bind(QUEUE.into(), EGRESS.into(), "#".into(), bind, FieldTable::default()).await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let consume = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(QUEUE.into(), "".into(), consume, FieldTable::default()).await?;
    Ok((channel, consumer))
}

/// Until it ends; returns why. It acknowledges through the channel: a delivery's own `acker` may pend for ever once the connection is lost.
async fn consume(channel: &Channel, mut consumer: Consumer, arrived: &Mutex<Vec<Arrival>>) -> String {
    while let Some(next) = consumer.next().await {
        let delivery = match next {
            Ok(delivery) => delivery,
            Err(error) => return format!("ended: {error}"),
        };
        let arrival = read(&delivery);
        arrived.lock().unwrap_or_else(PoisonError::into_inner).push(arrival);
        if let Err(error) = channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await {
            return format!("can't acknowledge: {error}");
        }
    }
    "ended".to_owned()
}

fn read(delivery: &Delivery) -> Arrival {
    let headers = delivery.properties.headers().as_ref();
    let header = |name: &str| headers.and_then(|table| text(table, name)).unwrap_or_default().to_owned();
    let body: Value = serde_json::from_slice(&delivery.data).unwrap_or_default();
    let version = body["version"].as_str().and_then(|text| text.parse().ok());
    Arrival {
        message_id: delivery.properties.message_id().as_ref().map(ToString::to_string).unwrap_or_default(),
        cause: header("cloudEvents:causationid"),
        event_type: delivery.routing_key.to_string(),
        subject: header("cloudEvents:subject"),
        version,
        again: delivery.redelivered,
    }
}

fn text<'a>(table: &'a FieldTable, name: &str) -> Option<&'a str> {
    match table.inner().get(name)? {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str()),
        _ => None,
    }
}

fn write(arrivals: &[Arrival], file: &Path) -> std::io::Result<()> {
    let mut out = std::io::BufWriter::new(std::fs::File::create(file)?);
    for came in arrivals {
        let line = json!({"id": came.message_id, "cause": came.cause, "type": came.event_type, "subject": came.subject,
            "version": came.version, "again": came.again});
        writeln!(out, "{line}")?;
    }
    out.flush()
}

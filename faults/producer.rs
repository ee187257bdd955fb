//! The producer: publishes at a steady rate over every outage, repeats what was not confirmed, and keeps a journal.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation, Connection, ConnectionProperties};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::events::{About, Event, Feed};

/// One batch is published each time.
const EVERY: Duration = Duration::from_millis(50);
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// A broker that blocks us or is frozen confirms nothing; the batch is then sent again.
const CONFIRM_WITHIN: Duration = Duration::from_secs(4);
const PAUSE: Duration = Duration::from_millis(100);

/// What was sent.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) about: About,
    pub(crate) key: String,
    /// The broker has taken it: it must not be lost.
    pub(crate) confirmed: bool,
}

/// By id.
pub(crate) type Journal = BTreeMap<String, Sent>;

/// A running producer.
pub(crate) struct Producer {
    shared: Arc<Shared>,
    task: Option<JoinHandle<()>>,
    /// Events of the faults' own go over connections of their own.
    amqp_url: String,
}

struct Shared {
    journal: Mutex<Journal>,
    next: AtomicU64,
    confirmed: AtomicU64,
    paused: AtomicBool,
    idle: AtomicBool,
    ended: AtomicBool,
    per_batch: AtomicU64,
}

impl Producer {
    /// Publishes `rate` events a second from now on.
    pub(crate) fn start(amqp_url: &str, feed: Feed, rate: u64) -> Self {
        let shared = Arc::new(Shared {
            journal: Mutex::default(),
            next: AtomicU64::new(0),
            confirmed: AtomicU64::new(0),
            paused: AtomicBool::new(true),
            idle: AtomicBool::new(true),
            ended: AtomicBool::new(false),
            per_batch: AtomicU64::new((rate / 20).max(1)),
        });
        let task = tokio::spawn(publish_all(shared.clone(), amqp_url.to_owned(), feed));
        Self { shared, task: Some(task), amqp_url: amqp_url.to_owned() }
    }

    pub(crate) fn set_rate(&self, rate: u64) {
        self.shared.per_batch.store((rate / 20).max(1), Ordering::SeqCst);
    }

    pub(crate) fn resume(&self) {
        self.shared.paused.store(false, Ordering::SeqCst);
    }

    /// Stops publishing; returns once nothing is on its way.
    pub(crate) async fn pause(&self) {
        self.shared.paused.store(true, Ordering::SeqCst);
        tokio::time::sleep(EVERY).await;
        while !self.shared.idle.load(Ordering::SeqCst) {
            tokio::time::sleep(EVERY).await;
        }
    }

    /// The number of the next new event.
    pub(crate) fn next(&self) -> u64 {
        self.shared.next.load(Ordering::SeqCst)
    }

    pub(crate) fn confirmed(&self) -> u64 {
        self.shared.confirmed.load(Ordering::SeqCst)
    }

    /// Publishes events of a fault's own, which count like all others, and waits for their confirms.
    pub(crate) async fn publish(&self, events: &[Event]) -> anyhow::Result<()> {
        let (connection, channel) = connect(&self.amqp_url).await?;
        for batch in events.chunks(200) {
            self.shared.note(batch, false);
            publish_batch(&channel, batch).await?;
            self.shared.note(batch, true);
        }
        Ok(connection.close(200, "bye".into()).await?)
    }

    pub(crate) fn journal(&self) -> Journal {
        self.shared.lock().clone()
    }

    /// Ends it and writes the journal down.
    pub(crate) async fn end(&mut self, file: &Path) -> anyhow::Result<Journal> {
        self.shared.ended.store(true, Ordering::SeqCst);
        if let Some(task) = self.task.take() {
            task.await?;
        }
        let journal = self.journal();
        write(&journal, file).with_context(|| format!("write {}", file.display()))?;
        Ok(journal)
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, batch: &[Event], confirmed: bool) {
        let mut journal = self.lock();
        for event in batch {
            let sent = Sent { about: event.about, key: event.key.clone(), confirmed };
            let before = journal.get(&event.id).is_some_and(|sent| sent.confirmed);
            journal.insert(event.id.clone(), Sent { confirmed: confirmed || before, ..sent });
            if confirmed && !before {
                self.confirmed.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}

async fn publish_all(shared: Arc<Shared>, amqp_url: String, feed: Feed) {
    let mut open = None;
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !shared.ended.load(Ordering::SeqCst) {
        ticks.tick().await;
        if shared.paused.load(Ordering::SeqCst) {
            shared.idle.store(true, Ordering::SeqCst);
            continue;
        }
        shared.idle.store(false, Ordering::SeqCst);
        let count = shared.per_batch.load(Ordering::SeqCst);
        let first = shared.next.fetch_add(count, Ordering::SeqCst);
        let batch = feed.batch(first, count);
        shared.note(&batch, false);
        while !try_batch(&mut open, &amqp_url, &batch).await {
            tokio::time::sleep(PAUSE).await;
        }
        shared.note(&batch, true);
    }
}

/// Whether the whole batch was confirmed. Otherwise all of it is sent again, under the same ids.
async fn try_batch(open: &mut Option<(Connection, Channel)>, amqp_url: &str, batch: &[Event]) -> bool {
    if open.is_none() {
        *open = connect(amqp_url).await.ok();
    }
    let Some((_, channel)) = open.as_ref() else { return false };
    if publish_batch(channel, batch).await.is_ok() {
        return true;
    }
    *open = None;
    false
}

async fn connect(amqp_url: &str) -> anyhow::Result<(Connection, Channel)> {
    let opening = async {
        let connection = Connection::connect(amqp_url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        anyhow::Ok((connection, channel))
    };
    tokio::time::timeout(CONNECT_WITHIN, opening).await.context("the broker does not answer")?
}

async fn publish_batch(channel: &Channel, batch: &[Event]) -> anyhow::Result<()> {
    let publishing = async {
        let mut confirms = Vec::with_capacity(batch.len());
        for event in batch {
            let options = BasicPublishOptions { mandatory: true, immediate: false };
            let (exchange, key) = ("onceflow.in".into(), event.event_type.into());
            confirms.push(channel.basic_publish(exchange, key, options, &event.body, event.properties()).await?);
        }
        for confirm in confirms {
            // The client may attach a return to the confirm of another message: any one means that all are sent again.
            match confirm.await? {
                Confirmation::Ack(None) => {}
                refused => bail!("not taken: {refused:?}"),
            }
        }
        Ok(())
    };
    tokio::time::timeout(CONFIRM_WITHIN, publishing).await.context("no confirm in time")?
}

fn write(journal: &Journal, file: &Path) -> std::io::Result<()> {
    let mut out = std::io::BufWriter::new(std::fs::File::create(file)?);
    for (id, sent) in journal {
        let line =
            json!({"id": id, "key": sent.key, "about": format!("{:?}", sent.about), "confirmed": sent.confirmed});
        writeln!(out, "{line}")?;
    }
    out.flush()
}

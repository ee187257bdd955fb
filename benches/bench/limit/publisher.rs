//! The limit's relay: gets committed rows in memory, publishes one batch at a time, and tells what was confirmed.

use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::FutureExt as _;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::wire::{self, Event};

/// Batches that may wait for the publisher; a full hand-over holds the database's side back.
const HAND_OVER: usize = 4;
/// Messages that are handed to the client at once.
const BURST: usize = 64;
const CONFIRM_WITHIN: Duration = Duration::from_secs(15);
const PERSISTENT: u8 = 2;

const LEFT_OVER: &str = "
    SELECT id, type, aggregatetype || '/' || aggregateid, coalesce(partitionkey, aggregateid), tenant, payload::text, headers
    FROM onceflow.outbox ORDER BY seq";

/// A committed outbox row.
pub(crate) struct Row {
    pub(crate) id: Uuid,
    pub(crate) event_type: String,
    pub(crate) subject: String,
    pub(crate) key: String,
    pub(crate) tenant: String,
    pub(crate) body: String,
    pub(crate) headers: Value,
}

/// A running publisher.
pub(super) struct Publisher {
    rows: mpsc::Sender<Vec<Row>>,
    confirmed: mpsc::UnboundedReceiver<Vec<Uuid>>,
    task: JoinHandle<anyhow::Result<()>>,
    // The publisher's channel lives as long as its connection.
    _connection: lapin::Connection,
}

impl Publisher {
    pub(super) async fn start(amqp_url: &str, left_over: Vec<Row>) -> anyhow::Result<Self> {
        let connection = crate::sibling::connect(amqp_url).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let (rows, mut handed) = mpsc::channel(HAND_OVER);
        let (tell, confirmed) = mpsc::unbounded_channel();
        rows.send(left_over).await.context("just made")?;
        let task = tokio::spawn(async move {
            while let Some(mut batch) = handed.recv().await {
                while let Ok(more) = handed.try_recv() {
                    batch.extend(more);
                }
                publish(&channel, &batch).await?;
                tell.send(batch.iter().map(|row| row.id).collect()).context("the pipeline ended")?;
            }
            Ok(())
        });
        Ok(Self { rows, confirmed, task, _connection: connection })
    }

    pub(super) async fn hand_over(&mut self, rows: Vec<Row>) -> anyhow::Result<()> {
        if self.rows.send(rows).await.is_err() {
            (&mut self.task).await??;
        }
        Ok(())
    }

    /// Rows that may be deleted.
    pub(super) fn confirmed(&mut self) -> anyhow::Result<Vec<Uuid>> {
        let mut ids = Vec::new();
        loop {
            match self.confirmed.try_recv() {
                Ok(more) => ids.extend(more),
                Err(mpsc::error::TryRecvError::Empty) => return Ok(ids),
                Err(mpsc::error::TryRecvError::Disconnected) => bail!("the publisher ended"),
            }
        }
    }
}

/// What an earlier run did not publish.
pub(super) async fn left_over(client: &Client) -> anyhow::Result<Vec<Row>> {
    let row = |row: &tokio_postgres::Row| Row {
        id: row.get(0),
        event_type: row.get(1),
        subject: row.get(2),
        key: row.get(3),
        tenant: row.get(4),
        body: row.get(5),
        headers: row.get(6),
    };
    Ok(client.query(LEFT_OVER, &[]).await?.iter().map(row).collect())
}

/// What ties a downstream event to its cause, as it is stored in the outbox.
pub(crate) fn cause_headers(consumer: &str, cause: &Event) -> Value {
    json!({
        "cloudEvents:source": format!("onceflow/{consumer}"),
        "cloudEvents:causationid": cause.id,
        "cloudEvents:correlationid": cause.id,
    })
}

/// Publishes all and awaits every confirm. A refused or returned message ends the process: its row stays in the outbox.
pub(crate) async fn publish(channel: &Channel, batch: &[Row]) -> anyhow::Result<()> {
    let work = async {
        let mut confirms = Vec::with_capacity(batch.len());
        for burst in batch.chunks(BURST) {
            // Queued together: a publish awaited alone costs a write call and a change of threads.
            let publishes = burst.iter().map(|row| {
                let options = BasicPublishOptions { mandatory: true, immediate: false };
                let (exchange, key) = ("onceflow.out".into(), row.event_type.as_str().into());
                let mut publish = Box::pin(
                    channel.basic_publish(exchange, key, options, row.body.as_bytes(), properties(row)).fuse(),
                );
                (publish.as_mut().now_or_never(), publish)
            });
            for (at_once, publish) in publishes.collect::<Vec<_>>() {
                confirms.push(match at_once {
                    Some(confirm) => confirm?,
                    None => publish.await?,
                });
            }
        }
        let mut returned = 0;
        for confirm in confirms.into_iter().rev() {
            match confirm.await? {
                Confirmation::Ack(message) => returned += usize::from(message.is_some()),
                refused => bail!("the broker refused a message: {refused:?}"),
            }
        }
        // The client may attach a returned message to another confirm, or to none.
        returned += channel.wait_for_confirms().await?.len();
        if returned > 0 {
            bail!("{returned} messages of a batch were returned: no queue is bound");
        }
        Ok(())
    };
    tokio::time::timeout(CONFIRM_WITHIN, work).await.context("the confirms did not come in time")?
}

fn properties(row: &Row) -> BasicProperties {
    let (id, now) = (row.id.to_string(), jiff::Timestamp::now());
    let time = now.to_string();
    let mut pairs = vec![
        ("cloudEvents:specversion", "1.0"),
        ("cloudEvents:id", &id),
        ("cloudEvents:type", &row.event_type),
        ("cloudEvents:subject", &row.subject),
        ("cloudEvents:time", &time),
        ("cloudEvents:tenant", &row.tenant),
        ("cloudEvents:partitionkey", &row.key),
    ];
    let stored = row.headers.as_object().into_iter().flatten();
    pairs.extend(stored.filter_map(|(name, value)| Some((name.as_str(), value.as_str()?))));
    let properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_message_id(id.as_str().into())
        .with_type(row.event_type.as_str().into())
        .with_content_type("application/json".into())
        .with_headers(wire::table(pairs));
    let properties = match row.headers["cloudEvents:correlationid"].as_str() {
        Some(correlation) => properties.with_correlation_id(correlation.into()),
        None => properties,
    };
    match u64::try_from(now.as_second()) {
        Ok(seconds) => properties.with_timestamp(seconds),
        Err(_) => properties,
    }
}

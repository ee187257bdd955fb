//! The limit: the same messages and the same tables with the same guarantees on the wire, and nothing else.
//!
//! It takes what is waiting, up to a batch; writes it with one set-based statement that claims the inbox, applies the guarded
//! change and inserts the outbox rows; commits; acks once; and hands the rows in memory to the publisher. What the publisher
//! has seen confirmed is deleted inside a later batch's transaction. It has no retries, dead letters, lanes, leases, metrics or
//! shutdown: whatever goes wrong ends it, and the next start publishes what is left in the outbox.

mod org;
mod payment;
mod publisher;
mod sms;

use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::future::join4;
use futures_util::{FutureExt as _, StreamExt};
use lapin::Consumer;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio_postgres::{Client, Statement};
use uuid::Uuid;

use crate::args::{Domain, Duty};
use crate::ground::connect;
use crate::wire::Event;
use publisher::Publisher;
pub(crate) use publisher::{Row, cause_headers, publish};

const PREFETCH: u16 = 1_000;
const BATCH: usize = 200;
/// An idle pipeline deletes what is confirmed after this.
const IDLE: Duration = Duration::from_millis(20);

/// Plans for arrays of a few hundred rows, whatever the planner guesses of them.
const SESSION: &str = "SET enable_nestloop = off; SET plan_cache_mode = force_generic_plan; SET jit = off";
const REMOVE: &str = "DELETE FROM onceflow.outbox WHERE tenant = 'default' AND id = ANY($1)";

/// Runs until it is killed.
pub(crate) async fn run(duty: &Duty) -> anyhow::Result<()> {
    let client = connect(&duty.database_url).await?;
    client.batch_execute(SESSION).await?;
    let writer = Writer::prepare(&client, duty.domain).await?;
    let mut publisher = Publisher::start(&duty.amqp_url, publisher::left_over(&client).await?).await?;
    // Publishing has a connection of its own: the broker may block it, and acks must still pass.
    let connection = crate::sibling::connect(&duty.amqp_url).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let (queue, consume) = (duty.domain.queue(), BasicConsumeOptions::default());
    let mut consumer = channel.basic_consume(queue.as_str().into(), "".into(), consume, FieldTable::default()).await?;
    loop {
        let (deliveries, confirmed) = tokio::select! {
            biased;
            deliveries = waiting(&mut consumer) => (deliveries?, publisher.confirmed()?),
            confirmed = idle(&mut publisher) => (Vec::new(), confirmed?),
        };
        let Some(last) = deliveries.last().map(|delivery| delivery.acker.clone()) else {
            client.execute(&writer.remove, &[&confirmed]).await?;
            continue;
        };
        let events = deliveries.into_iter().map(|mut d| Event::read(&mut d)).collect::<anyhow::Result<Vec<_>>>()?;
        let rows = writer.write(&client, &events, &confirmed).await?;
        if !last.ack(BasicAckOptions { multiple: true }).await? {
            bail!("an ack came too late");
        }
        publisher.hand_over(rows).await?;
    }
}

/// What is waiting, up to a batch; waits only for the first.
async fn waiting(consumer: &mut Consumer) -> anyhow::Result<Vec<Delivery>> {
    let mut batch = vec![consumer.next().await.context("the queue is gone")??];
    while batch.len() < BATCH {
        match consumer.next().now_or_never() {
            Some(next) => batch.push(next.context("the queue is gone")??),
            None => break,
        }
    }
    Ok(batch)
}

/// Ids to delete, when nothing else has come for a while.
async fn idle(publisher: &mut Publisher) -> anyhow::Result<Vec<Uuid>> {
    loop {
        tokio::time::sleep(IDLE).await;
        let confirmed = publisher.confirmed()?;
        if !confirmed.is_empty() {
            return Ok(confirmed);
        }
    }
}

/// The prepared statements of one domain.
struct Writer {
    remove: Statement,
    domain: Statements,
}

enum Statements {
    Org(Statement),
    Payment(payment::Statements),
    Sms(sms::Statements),
}

impl Writer {
    async fn prepare(client: &Client, domain: Domain) -> anyhow::Result<Self> {
        let remove = client.prepare(REMOVE).await?;
        let domain = match domain {
            Domain::Org => Statements::Org(client.prepare(org::WRITE).await?),
            Domain::Payment => Statements::Payment(payment::Statements::prepare(client).await?),
            Domain::Sms => Statements::Sms(sms::Statements::prepare(client).await?),
        };
        Ok(Self { remove, domain })
    }

    /// One transaction in one round trip: begin, the domain's statements, the delete and commit are sent without waiting.
    async fn write(&self, client: &Client, events: &[Event], confirmed: &[Uuid]) -> anyhow::Result<Vec<Row>> {
        let work = async {
            match &self.domain {
                Statements::Org(statement) => org::write(client, statement, events).await,
                Statements::Payment(statements) => statements.write(client, events).await,
                Statements::Sms(statements) => statements.write(client, events).await,
            }
        };
        let remove = async {
            if !confirmed.is_empty() {
                client.execute(&self.remove, &[&confirmed]).await?;
            }
            anyhow::Ok(())
        };
        let (begun, rows, removed, committed) =
            join4(client.batch_execute("BEGIN"), work, remove, client.batch_execute("COMMIT")).await;
        begun?;
        removed?;
        // A failed statement turns COMMIT into ROLLBACK without an error of its own, so the statement's error is what counts.
        let rows = rows?;
        committed?;
        Ok(rows)
    }
}

/// The columns of the inbox that every statement fills, one entry per event.
#[derive(Default)]
struct Inbox<'a> {
    tenants: Vec<&'a str>,
    sources: Vec<&'a str>,
    ids: Vec<&'a str>,
    types: Vec<&'a str>,
    fingerprints: Vec<Vec<u8>>,
    /// Also tells the rows apart: which of them were new is answered by this column.
    claims: Vec<Uuid>,
}

impl<'a> Inbox<'a> {
    fn push(&mut self, event: &'a Event) {
        self.tenants.push(&event.tenant);
        self.sources.push(&event.source);
        self.ids.push(&event.id);
        self.types.push(&event.event_type);
        self.fingerprints.push(event.fingerprint());
        self.claims.push(Uuid::now_v7());
    }
}

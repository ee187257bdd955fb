//! A consumer that does what its events tell it to: work, fail, hang, panic. Its effects go to an append-only ledger.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use onceflow::db::Tx;
use onceflow::event::{Downstream, Envelope, Rejection};
use onceflow::runtime::{Consumer, EventType, HandleError, Outcome, Received};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio_postgres::Client;

/// What a probe event asks for.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Order {
    /// `apply`, `retry`, `reject`, `panic`, `hang`, `bad_sql`, `deadlock_code`, `swallow`, `wait`.
    #[serde(rename = "do")]
    what: String,
    /// Written to the ledger, first to last.
    #[serde(default)]
    n: i64,
}

/// The consumer; `gate` lets a test hold events that say `wait`.
#[derive(Clone)]
pub(crate) struct Probe {
    pub(crate) gate: Arc<Semaphore>,
}

pub(crate) const EVENT: &str = "probe.done.v1";
const CHANGED: &str = "probe.changed.v1";
const LEDGER: &str = "INSERT INTO probe_ledger (key, event_id, n) VALUES ($1, $2, $3)";

impl Probe {
    pub(crate) fn new() -> Self {
        Self { gate: Arc::new(Semaphore::new(0)) }
    }

    pub(crate) async fn create_ledger(client: &Client) {
        let sql = "CREATE TABLE onceflow.probe_ledger (seq bigserial PRIMARY KEY, key text, event_id text, n bigint CHECK (n >= 0))";
        client.batch_execute(sql).await.unwrap();
    }
}

#[async_trait]
impl Consumer for Probe {
    type Event = Order;
    const NAME: &'static str = "probe";
    const BINDINGS: &'static [&'static str] = &["probe.#"];
    const READS: &'static [EventType] =
        &[EventType { name: EVENT, summary: "", message: "", sample: "{}", to_protobuf: None }];
    const PUBLISHES: &'static [EventType] =
        &[EventType { name: CHANGED, summary: "", message: "", sample: "", to_protobuf: None }];

    fn decode(&self, envelope: &Envelope) -> Result<Order, Rejection> {
        serde_json::from_slice(&envelope.data).map_err(|e| Rejection::decode("invalid_json", e.to_string()))
    }

    async fn handle_one(&self, tx: &Tx, event: &Received<Order>) -> Result<Outcome, HandleError> {
        let (envelope, order) = (&event.envelope, &event.event);
        if order.what == "wait" {
            self.gate.acquire().await.unwrap().forget();
        }
        tx.execute(LEDGER, &[&envelope.partition_key, &envelope.id, &order.n]).await?;
        match order.what.as_str() {
            "retry" => return Ok(Outcome::Retry { after: Duration::from_millis(1), code: "asked_for" }),
            "reject" => return Ok(Outcome::Reject(Rejection::refused("asked_for", "the event asked to be rejected"))),
            "panic" => panic!("the event asked for a panic"),
            "hang" => std::future::pending::<()>().await,
            // The failed statement is swallowed: the transaction must refuse to commit.
            "swallow" => drop(tx.execute("SELECT 1/0", &[]).await),
            _ => {}
        }
        let body = json!({"n": order.n});
        let downstream = Downstream::new(CHANGED, "probe", envelope.partition_key.clone(), &body)?;
        Ok(Outcome::Applied(vec![downstream]))
    }
}

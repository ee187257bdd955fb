//! What helps to decide about a plan: some payloads, and how busy the consumers are that would get them. Looked up when a plan is
//! shown and never stored: payloads stay where they are, and loads are of the moment.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::super::letter::PayloadKind;
use super::load::Loads;
use super::model::{Action, Plan};
use super::plan_store;
use crate::db::{DbError, Tx};

/// What helps to decide.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "JobHints")]
pub struct Hints {
    /// Some of the payloads, those of the plan's samples.
    pub previews: Vec<Preview>,
    /// The consumers that would get them; none where nothing is sent.
    pub targets: Vec<Target>,
}

impl Hints {
    /// Takes away what producers wrote: not even masked for who may only look.
    pub fn outline(&mut self) {
        for preview in &mut self.previews {
            preview.payload = None;
        }
    }
}

/// A dead letter of the plan with its payload in one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "PayloadPreview")]
pub struct Preview {
    /// The dead letter.
    pub id: Uuid,
    /// The consumer that failed.
    pub consumer: String,
    /// Event type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// Group it belongs to.
    pub group: String,
    /// Size of the payload.
    pub bytes: u32,
    /// How the payload is to be read; absent where it is too large to be read for a plan.
    pub kind: Option<PayloadKind>,
    /// The payload, cut, with secrets and phone numbers masked; absent where it is not JSON, and for a viewer.
    pub payload: Option<String>,
}

/// A consumer that would get dead letters of the plan, as far as this process knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "JobTarget")]
pub struct Target {
    /// The consumer.
    pub consumer: String,
    /// Messages that wait for it at the broker.
    pub backlog: Option<u64>,
    /// Milliseconds, rounded up, within which 95 of 100 of its last deliveries that are no replays were settled.
    pub p95_ms: Option<u64>,
}

/// What there is to say of a plan now.
///
/// # Errors
/// When the database is away.
pub async fn hints(tx: &Tx, action: Action, plan: &Plan, loads: &Loads) -> Result<Hints, DbError> {
    let previews = plan_store::previews(tx, &plan.samples).await?;
    let consumers: BTreeSet<&str> = match action {
        Action::Replay => plan.kinds.iter().map(|kind| kind.consumer.as_str()).collect(),
        Action::Discard | Action::Archive => BTreeSet::new(),
    };
    let targets = consumers.into_iter().map(|consumer| target(consumer, loads)).collect();
    Ok(Hints { previews, targets })
}

fn target(consumer: &str, loads: &Loads) -> Target {
    let load = loads.of(consumer);
    let p95_ms = load.p95.map(|p95| u64::try_from(p95.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX));
    Target { consumer: consumer.to_owned(), backlog: load.backlog, p95_ms }
}

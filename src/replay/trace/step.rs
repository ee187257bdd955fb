//! One step of an event's life.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// One step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "TraceStep")]
pub struct Step {
    /// When; absent where no time is kept.
    pub at: Option<Timestamp>,
    /// Whose data.
    pub tenant: String,
    /// The consumer.
    pub consumer: String,
    /// Source of the event.
    pub source: String,
    /// Id of the event.
    pub event_id: String,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What happened. The field `what` names it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "TraceWhat")]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum What {
    /// An attempt failed, and another one was to follow.
    Failed(FailedTry),
    /// An attempt failed and was the last: the event became a dead letter.
    GaveUp(FailedTry),
    /// It is, or was, a dead letter; at the time of its last failure.
    Dead(DeadLetterState),
    /// An operator sent the dead letter again.
    Replayed(Hand),
    /// An edited copy took the place of an event: told of both.
    Edited(Edit),
    /// An operator has seen the payload as it is, or the values of an edit.
    Seen(Hand),
    /// An operator changed something else by hand.
    Changed(Hand),
    /// It waits behind a failed event of its key.
    Held(Hold),
    /// The consumer applied it.
    Applied(End),
    /// The consumer found it older than what is stored.
    Stale(End),
    /// The consumer found nothing to do.
    Skipped(End),
    /// A row of it waits in the outbox.
    Waits(OutboxRow),
    /// A row of it waits in the outbox for an operator.
    Parked(OutboxRow),
    /// Of its downstream events so many have left the outbox: confirmed by the broker, or dropped by an operator.
    Confirmed {
        /// How many have left.
        left: i64,
        /// Of how many.
        of: i64,
    },
    /// The dead letter was closed.
    Closed(DeadLetterState),
}

/// A failed attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FailedTry {
    /// Event type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// Counts from 1; a replay begins anew.
    pub attempt: i32,
    /// Machine and process id.
    pub instance: String,
    /// Version of the consumer.
    pub consumer_version: String,
    /// Where in its way the event failed.
    pub stage: String,
    /// Stable code.
    pub code: String,
    /// The error and its causes, outermost first.
    pub error_chain: Vec<String>,
    /// How long the attempt took, in microseconds; absent where none was made.
    pub duration_us: Option<i64>,
    /// About how long it waits for the next one, in milliseconds.
    pub retry_ms: Option<i64>,
    /// The replay that it was part of.
    pub replay_id: Option<Uuid>,
}

/// A dead letter as it is now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeadLetterState {
    /// Its id, for `onceflow dlq show`.
    pub dead_letter: Uuid,
    /// open, replaying, replayed, discarded, archived or edited.
    pub state: String,
    /// Where in its way the event failed.
    pub stage: String,
    /// Stable code.
    pub code: String,
    /// The outermost error.
    pub error: String,
    /// Attempts before it was given up, those of replays too.
    pub attempts: i32,
    /// Deliveries that ended here while it was open.
    pub occurrences: i32,
    /// How often it was replayed.
    pub replays: i32,
    /// Who closed it.
    pub closed_by: Option<String>,
    /// Why it was closed.
    pub closed_reason: Option<String>,
}

/// A change by hand, as the audit has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "TraceHand")]
pub struct Hand {
    /// What, e.g. `dlq.replay`.
    pub action: String,
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: Option<String>,
}

/// An event's place in the line of its key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Hold {
    /// Event type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// Source of the event that blocks the key.
    pub blocked_by_source: String,
    /// Id of the event that blocks the key.
    pub blocked_by: String,
}

/// An edit of a dead letter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "TraceEdit")]
pub struct Edit {
    /// The dead letter that was edited.
    pub edited_dead_letter: Uuid,
    /// The event of which it was.
    pub original_event_id: String,
    /// The event that took its place.
    pub copy_event_id: String,
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
}

/// What the inbox has of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "TraceEnd")]
pub struct End {
    /// Event type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// Why it was not applied.
    pub reason: Option<String>,
    /// Downstream events that it made.
    pub downstream: i32,
    /// Further copies that came and had no effect.
    pub duplicates: i32,
    /// Those of them that had another body.
    pub conflicts: i32,
}

/// A row of the outbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OutboxRow {
    /// Its id.
    pub row: Uuid,
    /// Type of the event that it publishes.
    pub downstream_type: String,
    /// Id of the entity.
    pub aggregate_id: String,
    /// Whether it sends a dead letter again.
    pub replay: bool,
    /// Why it was parked.
    pub parked_reason: Option<String>,
}

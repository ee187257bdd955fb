//! Switches and books beside the dead letters: paused consumers, the outbox, and the sampled totals.

mod store;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::db::{DbError, Tx};
use crate::runtime::order;

/// Most parked rows that are listed or changed in one call.
pub const MAX_PARKED: usize = 1000;

/// What operators decided about a consumer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConsumerSwitch {
    /// The consumer.
    pub consumer: String,
    /// Whether it takes no deliveries.
    pub paused: bool,
    /// Who decided.
    pub changed_by: String,
    /// Why.
    pub reason: String,
    /// When.
    pub changed_at: Timestamp,
}

/// The relay's work at a glance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OutboxStatus {
    /// Rows that wait for the relay.
    pub pending: i64,
    /// Age of the oldest of them; absent where there is none.
    pub oldest_pending_age_seconds: Option<f64>,
    /// Rows that wait for an operator.
    pub parked: i64,
    /// Who publishes which partition.
    pub partitions: Vec<Partition>,
    /// The parked rows, oldest first, bounded.
    pub parked_rows: Vec<Parked>,
}

/// One relay partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "OutboxPartition")]
pub struct Partition {
    /// Its number.
    pub partition: i16,
    /// Who holds the lease; absent where it has run out.
    pub holder: Option<String>,
    /// Rises at every takeover.
    pub epoch: i64,
    /// Rows confirmed to the egress exchange, ever.
    pub confirmed: i64,
    /// Rows confirmed to named queues (replays), ever.
    pub replayed: i64,
    /// Rows that wait in it.
    pub pending: i64,
}

/// An outbox row that the broker could not route or accept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ParkedRow")]
pub struct Parked {
    /// Row id.
    pub id: Uuid,
    /// Whose data.
    pub tenant: String,
    /// Event type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// Id of the entity.
    pub aggregate_id: String,
    /// Why it was parked.
    pub reason: String,
    /// Publishing attempts.
    pub attempts: i32,
    /// When it was parked.
    pub parked_at: Timestamp,
}

/// Totals of one consumer's dead letters.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DeadLetterTotals {
    /// The consumer.
    pub consumer: String,
    /// Waiting for someone.
    pub open: i64,
    /// On their way back.
    pub replaying: i64,
    /// Put away, to be restored or removed by retention.
    pub archived: i64,
    /// Groups of the open ones.
    pub groups: i64,
    /// Age of the oldest open one.
    pub oldest_age_seconds: Option<f64>,
}

/// What a strict consumer holds back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldTotals {
    /// The consumer.
    pub consumer: String,
    /// Events that wait behind failed ones of their keys.
    pub events: i64,
    /// Keys that a failed event blocks.
    pub keys: i64,
}

/// Totals of the outbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OutboxTotals {
    /// Rows that wait for the relay.
    pub pending: i64,
    /// Age of the oldest of them.
    pub oldest_pending_age_seconds: Option<f64>,
    /// Rows that wait for an operator.
    pub parked: i64,
}

/// Everything that operators ever decided about consumers, the latest word each.
///
/// # Errors
/// When the database is away.
pub async fn switches(tx: &Tx) -> Result<Vec<ConsumerSwitch>, DbError> {
    store::switches(tx).await
}

/// Pauses or resumes a consumer for every replica, over restarts. Returns whether that changed anything; a repetition
/// leaves no audit row.
///
/// # Errors
/// When the database fails; then the transaction is to be rolled back.
pub async fn set_paused(tx: &Tx, consumer: &str, paused: bool, by: (&str, &str)) -> Result<bool, DbError> {
    let (actor, reason) = by;
    if !store::set_paused(tx, consumer, paused, by).await? {
        return Ok(false);
    }
    let action = if paused { "consumer.pause" } else { "consumer.resume" };
    store::audit(tx, (actor, action, consumer), Some(reason), &serde_json::json!({})).await?;
    Ok(true)
}

/// Pauses a consumer for the length of a change of its queues. That change has its own row in the audit.
///
/// # Errors
/// When the database fails; then the transaction is to be rolled back.
pub async fn hold(tx: &Tx, consumer: &str, by: (&str, &str)) -> Result<(), DbError> {
    store::set_paused(tx, consumer, true, by).await.map(|_| ())
}

/// Ends what [`hold`] began, and nothing that was paused for another reason. Returns whether it was paused.
///
/// # Errors
/// When the database fails; then the transaction is to be rolled back.
pub async fn release(tx: &Tx, consumer: &str, by: (&str, &str)) -> Result<bool, DbError> {
    store::release(tx, consumer, by).await
}

/// Leaves a row in the audit about a change of a consumer's queues.
///
/// # Errors
/// When the database fails; then the transaction is to be rolled back.
pub async fn audit_layout(tx: &Tx, actor: &str, consumer: &str, detail: &serde_json::Value) -> Result<(), DbError> {
    store::audit(tx, (actor, "topology.apply", consumer), None, detail).await
}

/// The outbox with its partitions and the parked rows.
///
/// # Errors
/// When the database is away.
pub async fn outbox_status(tx: &Tx) -> Result<OutboxStatus, DbError> {
    let totals = store::outbox_totals(tx).await?;
    Ok(OutboxStatus {
        pending: totals.pending,
        oldest_pending_age_seconds: totals.oldest_pending_age_seconds,
        parked: totals.parked,
        partitions: store::partitions(tx).await?,
        parked_rows: store::parked(tx).await?,
    })
}

/// Hands parked rows back to the relay. Returns how many were parked.
///
/// # Errors
/// When the database fails; then the transaction is to be rolled back.
pub async fn retry_parked(tx: &Tx, ids: &[Uuid], by: (&str, &str)) -> Result<usize, DbError> {
    let freed = usize::try_from(store::unpark(tx, ids).await?).unwrap_or(usize::MAX);
    audit_parked(tx, "outbox.retry", ids, by).await?;
    Ok(freed)
}

/// Drops parked rows for good: those downstream events are never published. Edited copies of dead letters stay. Returns how many were
/// dropped.
///
/// # Errors
/// When the database fails; then the transaction is to be rolled back.
pub async fn discard_parked(tx: &Tx, ids: &[Uuid], by: (&str, &str)) -> Result<usize, DbError> {
    let dropped = store::delete_parked(tx, ids).await?;
    store::reopen(tx, &dropped).await?;
    order::dropped(tx, &dropped).await?;
    audit_parked(tx, "outbox.discard", &dropped, by).await?;
    Ok(dropped.len())
}

/// Open and replaying dead letters per consumer, for the gauges.
///
/// # Errors
/// When the database is away.
pub async fn dead_letter_totals(tx: &Tx) -> Result<Vec<DeadLetterTotals>, DbError> {
    store::dead_letter_totals(tx).await
}

/// What strict consumers hold back, for the gauges; no row for a consumer that holds nothing.
///
/// # Errors
/// When the database is away.
pub async fn held_totals(tx: &Tx) -> Result<Vec<HeldTotals>, DbError> {
    store::held_totals(tx).await
}

/// The outbox's totals, for the gauges.
///
/// # Errors
/// When the database is away.
pub async fn outbox_totals(tx: &Tx) -> Result<OutboxTotals, DbError> {
    store::outbox_totals(tx).await
}

/// The planner's estimate of the inbox's rows.
///
/// # Errors
/// When the database is away.
pub async fn inbox_estimate(tx: &Tx) -> Result<f64, DbError> {
    store::inbox_estimate(tx).await
}

/// From here on the server refuses any write of this transaction.
///
/// # Errors
/// When the database is away.
pub async fn read_only(tx: &Tx) -> Result<(), DbError> {
    store::read_only(tx).await
}

/// Bounds the statements of this transaction, for sampling.
///
/// # Errors
/// When the database is away.
pub async fn limit_statements(tx: &Tx) -> Result<(), DbError> {
    store::limit_statements(tx).await
}

async fn audit_parked(tx: &Tx, action: &str, ids: &[Uuid], by: (&str, &str)) -> Result<(), DbError> {
    let (actor, reason) = by;
    store::audit(tx, (actor, action, "parked rows"), Some(reason), &serde_json::json!({ "ids": ids })).await
}

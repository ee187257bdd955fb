//! The runtime's SQL of `onceflow.dead_letter`.

use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::record::{DeadLetter, stored_headers};
use crate::db::{DbError, Tx};

/// A copy of a live dead letter is counted, not stored again; what it says of the failure is the newer word.
const BURY: &str = "
    INSERT INTO onceflow.dead_letter AS d (
        id, tenant, consumer, source, event_id, event_type, subject, partition_key, stage, reason, error_chain,
        content_type, payload, headers, original_exchange, original_routing_key, attempts,
        first_failed_at, last_failed_at, consumer_version, group_id, group_text, correlation_id)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23)
    ON CONFLICT (tenant, consumer, source, event_id) WHERE state IN ('open', 'replaying')
    DO UPDATE SET
        occurrences = d.occurrences + 1,
        attempts = greatest(d.attempts, excluded.attempts),
        stage = excluded.stage, reason = excluded.reason, error_chain = excluded.error_chain,
        last_failed_at = excluded.last_failed_at, consumer_version = excluded.consumer_version,
        group_id = excluded.group_id, group_text = excluded.group_text";

/// A replay that failed again is the same dead letter with a newer failure, which may belong to another group.
const REOPEN: &str = "
    UPDATE onceflow.dead_letter
    SET state = 'open', stage = $2, reason = $3, error_chain = $4, attempts = attempts + $5,
        last_failed_at = $6, consumer_version = $7, group_id = $8, group_text = $9
    WHERE replay_id = $1 AND state = 'replaying'";

/// One lookup for each, by the index of replays: for all at once the planner reads whatever was `replaying` of late, rows that are
/// gone included, and would take the last condition for a reason to do so.
const CLOSE_REPLAYED: &str = "
    UPDATE onceflow.dead_letter AS d
    SET state = 'replayed', closed_at = clock_timestamp(), closed_by = 'onceflow', closed_reason = 'replay succeeded'
    FROM unnest($1::uuid[]) AS r (id)
    CROSS JOIN LATERAL (SELECT w.tenant, w.id FROM onceflow.dead_letter AS w
                        WHERE w.replay_id = r.id AND w.state = 'replaying' OFFSET 0) AS found
    WHERE d.tenant = found.tenant AND d.id = found.id AND (d.state = 'replaying') IS TRUE AND d.replay_id = r.id";

/// Stores a dead letter, or counts another copy of a live one.
pub(crate) async fn bury(tx: &Tx, dead: &DeadLetter<'_>) -> Result<(), DbError> {
    let attempts = i32::try_from(dead.attempts).unwrap_or(i32::MAX);
    let version = env!("CARGO_PKG_VERSION");
    let fingerprint = dead.fingerprint();
    if let Some(replay_id) = dead.replay_id {
        let params: [&(dyn ToSql + Sync); 9] = [
            &replay_id,
            &dead.stage,
            &dead.reason,
            &dead.error_chain,
            &attempts,
            &dead.last_failed_at,
            &version,
            &fingerprint.group_id,
            &fingerprint.text,
        ];
        if tx.execute(REOPEN, &params).await? > 0 {
            return Ok(());
        }
    }
    let (identity, message) = (&dead.identity, dead.message);
    let params: [&(dyn ToSql + Sync); 23] = [
        &Uuid::now_v7(),
        &identity.tenant,
        &dead.consumer,
        &identity.source,
        &identity.event_id,
        &identity.event_type,
        &identity.subject,
        &identity.partition_key,
        &dead.stage,
        &dead.reason,
        &dead.error_chain,
        &message.content_type,
        &message.body.as_ref(),
        &stored_headers(message),
        &dead.origin.exchange,
        &dead.origin.routing_key,
        &attempts,
        &dead.first_failed_at,
        &dead.last_failed_at,
        &version,
        &fingerprint.group_id,
        &fingerprint.text,
        &identity.correlation_id,
    ];
    tx.execute(BURY, &params).await.map(|_| ())
}

/// Closes the dead letters whose replays have been dealt with.
pub(crate) async fn close_replayed(tx: &Tx, replay_ids: &[Uuid]) -> Result<(), DbError> {
    if replay_ids.is_empty() {
        return Ok(());
    }
    tx.execute(CLOSE_REPLAYED, &[&replay_ids]).await.map(|_| ())
}

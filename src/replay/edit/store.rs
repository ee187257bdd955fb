//! SQL of `onceflow.dead_letter_edit`, with what an edit reads of the original and writes for the copy.

use jiff::Timestamp;
use serde_json::Value;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::super::store::column;
use super::copy::Copied;
use super::{Diff, EditShown, Edited};
use crate::db::{DbError, Tx};

/// Nobody replays, closes or edits it meanwhile.
const LOCK: &str = "
    SELECT id, tenant, consumer, source, event_id, event_type, state, payload, headers, original_exchange, original_routing_key
      FROM onceflow.dead_letter
     WHERE id = $1
       FOR UPDATE";

const SEND: &str = "
    INSERT INTO onceflow.outbox
           (id, tenant, aggregatetype, aggregateid, type, payload_raw, headers, partitionkey, exchange, routingkey)
    VALUES ($1, $2, 'dead_letter', $3, $4, $5, $6, $7, '', $8)";

const INSERT: &str = "
    INSERT INTO onceflow.dead_letter_edit
           (tenant, dead_letter_id, consumer, source, event_id, copy_tenant, copy_event_id, edited_by, reason, diff, payload)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";

/// By the event: a late redelivery may have left another dead letter of it.
const MADE_OF: &str = "
    SELECT edited_by, edited_at, copy_event_id
      FROM onceflow.dead_letter_edit
     WHERE event_id = $3 AND tenant = $1 AND consumer = $2 AND source = $4
     ORDER BY edited_at LIMIT 1";

/// The edits of a dead letter ($2) and of the event that is a copy ($3), with what became of each copy.
const SHOW: &str = "
    SELECT e.dead_letter_id, e.event_id, e.copy_event_id, e.edited_by, e.reason, e.edited_at, e.diff, c.id AS copy_dead_letter,
           CASE WHEN c.state = 'edited' THEN 'edited'
                WHEN b.outcome IS NOT NULL THEN b.outcome
                WHEN c.id IS NOT NULL THEN 'dead'
                WHEN o.parked_at IS NOT NULL THEN 'parked'
                WHEN o.id IS NOT NULL THEN 'waiting'
                ELSE 'sent' END AS copy_state
      FROM onceflow.dead_letter_edit AS e
      LEFT JOIN LATERAL (
        SELECT d.id, d.state FROM onceflow.dead_letter AS d
         WHERE d.event_id = e.copy_event_id AND d.tenant = e.copy_tenant AND d.consumer = e.consumer AND d.source = e.source
         ORDER BY d.last_failed_at DESC LIMIT 1) AS c ON true
      LEFT JOIN onceflow.inbox AS b
        ON b.tenant = e.copy_tenant AND b.consumer = e.consumer AND b.source = e.source AND b.event_id = e.copy_event_id
      LEFT JOIN onceflow.outbox AS o ON o.tenant = e.copy_tenant AND o.id = e.copy_event_id::uuid
     WHERE (e.tenant = $1 AND e.dead_letter_id = $2) OR (e.copy_tenant = $1 AND e.copy_event_id = $3)";

const IDENTITY: &str = "SELECT tenant, event_id FROM onceflow.dead_letter WHERE id = $1";

/// A dead letter as an edit needs it, locked.
#[derive(Debug)]
pub(super) struct Original {
    pub(super) id: Uuid,
    pub(super) tenant: String,
    pub(super) consumer: String,
    pub(super) source: String,
    pub(super) event_id: String,
    pub(super) event_type: String,
    pub(super) state: String,
    pub(super) payload: Vec<u8>,
    pub(super) headers: Value,
    pub(super) original_exchange: String,
    pub(super) original_routing_key: String,
}

/// The edits that a dead letter has to do with.
#[derive(Debug, Default)]
pub(in crate::replay) struct Link {
    /// It was edited.
    pub(in crate::replay) into: Option<Edited>,
    /// It is the copy of another one.
    pub(in crate::replay) from: Option<Edited>,
}

pub(super) async fn lock(tx: &Tx, id: Uuid) -> Result<Option<Original>, DbError> {
    let read = |row: &Row| {
        Ok(Original {
            id: column(row, "id")?,
            tenant: column(row, "tenant")?,
            consumer: column(row, "consumer")?,
            source: column(row, "source")?,
            event_id: column(row, "event_id")?,
            event_type: column(row, "event_type")?,
            state: column(row, "state")?,
            payload: column(row, "payload")?,
            headers: column(row, "headers")?,
            original_exchange: column(row, "original_exchange")?,
            original_routing_key: column(row, "original_routing_key")?,
        })
    };
    tx.query_opt(LOCK, &[&id]).await?.as_ref().map(read).transpose()
}

/// The copy's way to the consumer that failed, as that of any replay.
pub(super) async fn send(tx: &Tx, (original, copied): (&Original, &Copied), queue: &str) -> Result<(), DbError> {
    let params: [&(dyn ToSql + Sync); 8] = [
        &copied.id,
        &copied.tenant,
        &original.id.to_string(),
        &original.event_type,
        &copied.payload.as_ref(),
        &copied.headers,
        &copied.partition_key,
        &queue,
    ];
    tx.execute(SEND, &params).await.map(|_| ())
}

pub(super) async fn insert(
    tx: &Tx,
    (original, copied): (&Original, &Copied),
    (actor, reason): (&str, &str),
) -> Result<(), DbError> {
    let diff = serde_json::to_value(&copied.diff).map_err(|e| DbError::shape(e.to_string()))?;
    let params: [&(dyn ToSql + Sync); 11] = [
        &original.tenant,
        &original.id,
        &original.consumer,
        &original.source,
        &original.event_id,
        &copied.tenant,
        &copied.id.to_string(),
        &actor,
        &reason,
        &diff,
        &copied.payload.as_ref(),
    ];
    tx.execute(INSERT, &params).await.map(|_| ())
}

/// Who edited the event first, when, and the copy's event.
pub(super) async fn made_of(tx: &Tx, original: &Original) -> Result<Option<(String, Timestamp, String)>, DbError> {
    let params: [&(dyn ToSql + Sync); 4] = [&original.tenant, &original.consumer, &original.event_id, &original.source];
    let read = |row: &Row| Ok((column(row, "edited_by")?, column(row, "edited_at")?, column(row, "copy_event_id")?));
    tx.query_opt(MADE_OF, &params).await?.as_ref().map(read).transpose()
}

/// The edit of this dead letter, else the one that made its event.
pub(super) async fn shown(tx: &Tx, id: Uuid) -> Result<Option<EditShown>, DbError> {
    let Some(row) = tx.query_opt(IDENTITY, &[&id]).await? else { return Ok(None) };
    let (tenant, event_id): (String, String) = (column(&row, "tenant")?, column(&row, "event_id")?);
    let rows = tx.query(SHOW, &[&tenant, &id, &event_id]).await?;
    let mut found: Vec<EditShown> = rows.iter().map(edit_shown).collect::<Result<_, _>>()?;
    found.sort_by_key(|shown| shown.edited.dead_letter != id);
    Ok(found.into_iter().next())
}

pub(in crate::replay) async fn links(tx: &Tx, id: Uuid, of: (&str, &str)) -> Result<Link, DbError> {
    let (tenant, event_id) = of;
    let mut link = Link::default();
    for row in tx.query(SHOW, &[&tenant, &id, &event_id]).await? {
        let edited = edited(&row)?;
        if edited.dead_letter == id {
            link.into = Some(edited);
        } else {
            link.from = Some(edited);
        }
    }
    Ok(link)
}

fn edit_shown(row: &Row) -> Result<EditShown, DbError> {
    let diff: Value = column(row, "diff")?;
    let diff: Diff = serde_json::from_value(diff).map_err(|e| DbError::shape(format!("diff: {e}")))?;
    Ok(EditShown { edited: edited(row)?, diff, is_masked: false })
}

fn edited(row: &Row) -> Result<Edited, DbError> {
    Ok(Edited {
        dead_letter: column(row, "dead_letter_id")?,
        event_id: column(row, "event_id")?,
        copy_event_id: column(row, "copy_event_id")?,
        copy_state: column(row, "copy_state")?,
        copy_dead_letter: column(row, "copy_dead_letter")?,
        edited_by: column(row, "edited_by")?,
        reason: column(row, "reason")?,
        edited_at: column(row, "edited_at")?,
    })
}

//! The SQL of looking for a person and of erasing one.

use uuid::Uuid;

use super::super::store::column;
use super::marks::Text;
use crate::db::{DbError, Tx};

/// Rows of a page, and most bytes of its payloads: at least one row is read, whatever its size.
const PAGE: i64 = 2_000;
const PAGE_BYTES: i64 = 8 * 1024 * 1024;

/// Sizes are known without reading what is large.
const LETTERS: &str = "
    WITH page AS (
        SELECT d.id, d.tenant, d.event_type, sum(octet_length(d.payload)) OVER (ORDER BY d.id) - octet_length(d.payload) AS before
        FROM (SELECT id, tenant, event_type, payload FROM onceflow.dead_letter WHERE id > $1 ORDER BY id LIMIT $2) d
    )
    SELECT p.id, p.tenant, p.event_type, d.payload, e.payload AS edited,
           concat_ws(E'\\n', d.headers::text, e.diff::text, array_to_string(d.error_chain, E'\\n'), d.closed_reason) AS words,
           array_remove(ARRAY[d.subject, d.partition_key], NULL) AS names
    FROM page p
    JOIN onceflow.dead_letter d ON d.tenant = p.tenant AND d.id = p.id
    LEFT JOIN onceflow.dead_letter_edit e ON e.tenant = p.tenant AND e.dead_letter_id = p.id
    WHERE p.before < $3
    ORDER BY p.id";

const HELD: &str = "
    WITH page AS (
        SELECT h.seq, sum(octet_length(h.payload)) OVER (ORDER BY h.seq) - octet_length(h.payload) AS before
        FROM (SELECT seq, payload FROM onceflow.held_event WHERE payload IS NOT NULL AND seq > $1 ORDER BY seq LIMIT $2) h
    )
    SELECT h.seq, h.tenant, h.event_type, h.payload, NULL::bytea AS edited, h.headers::text AS words, ARRAY[h.partition_key] AS names
    FROM page p JOIN onceflow.held_event h ON h.seq = p.seq
    WHERE p.before < $3 ORDER BY h.seq";

const PARKED: &str = "
    WITH page AS (
        SELECT o.seq, sum(o.bytes) OVER (ORDER BY o.seq) - o.bytes AS before
        FROM (SELECT seq, coalesce(octet_length(payload_raw), octet_length(payload::text)) AS bytes
              FROM onceflow.outbox WHERE parked_at IS NOT NULL AND seq > $1 ORDER BY seq LIMIT $2) o
    )
    SELECT o.seq, o.tenant, o.type AS event_type, coalesce(o.payload_raw, convert_to(o.payload::text, 'UTF8')) AS payload,
           NULL::bytea AS edited, coalesce(o.headers::text, '') AS words, array_remove(ARRAY[o.aggregateid, o.partitionkey], NULL) AS names
    FROM page p JOIN onceflow.outbox o ON o.seq = p.seq AND o.parked_at IS NOT NULL
    WHERE p.before < $3 ORDER BY o.seq";

const ON_THEIR_WAY: &str = "SELECT id FROM onceflow.dead_letter WHERE id = ANY ($1) AND state = 'replaying'";

const ERASE: &str = "
    WITH gone AS (
        DELETE FROM onceflow.dead_letter WHERE id = ANY ($1) AND state NOT IN ('open', 'replaying')
        RETURNING id, tenant, consumer, source, event_id
    ), edits AS (
        DELETE FROM onceflow.dead_letter_edit e USING gone g WHERE e.tenant = g.tenant AND e.dead_letter_id = g.id
    ), attempts AS (
        DELETE FROM onceflow.attempt a USING gone g
        WHERE a.tenant = g.tenant AND a.consumer = g.consumer AND a.source = g.source AND a.event_id = g.event_id
    )
    SELECT id FROM gone";

/// A dead letter with everything in it that may name a person.
pub(super) struct Letter {
    pub(super) id: Uuid,
    pub(super) text: Text,
}

/// The dead letters after this one, in the order of their ids.
pub(super) async fn page(tx: &Tx, after: Uuid) -> Result<Vec<Letter>, DbError> {
    let rows = tx.query(LETTERS, &[&after, &PAGE, &PAGE_BYTES]).await?;
    rows.iter().map(|row| Ok(Letter { id: column(row, "id")?, text: text(row)? })).collect()
}

/// What is looked at and never erased.
#[derive(Debug, Clone, Copy)]
pub(super) enum Others {
    /// Events that wait in the lines of strict consumers.
    Held,
    /// Rows that the broker would not take.
    Parked,
}

/// Those after this one, each with its number.
pub(super) async fn others(tx: &Tx, kind: Others, after: i64) -> Result<Vec<(i64, Text)>, DbError> {
    let sql = match kind {
        Others::Held => HELD,
        Others::Parked => PARKED,
    };
    let rows = tx.query(sql, &[&after, &PAGE, &PAGE_BYTES]).await?;
    rows.iter().map(|row| Ok((column(row, "seq")?, text(row)?))).collect()
}

/// Which of these are being replayed.
pub(super) async fn on_their_way(tx: &Tx, ids: &[Uuid]) -> Result<Vec<Uuid>, DbError> {
    tx.query(ON_THEIR_WAY, &[&ids]).await?.iter().map(|row| column(row, "id")).collect()
}

/// Removes closed dead letters with their edits and the attempts of their events.
pub(super) async fn erase(tx: &Tx, ids: &[Uuid]) -> Result<Vec<Uuid>, DbError> {
    tx.query(ERASE, &[&ids]).await?.iter().map(|row| column(row, "id")).collect()
}

fn text(row: &tokio_postgres::Row) -> Result<Text, DbError> {
    let edited: Option<Vec<u8>> = column(row, "edited")?;
    let words: String = column(row, "words")?;
    let mut parts = vec![column(row, "payload")?, words.into_bytes()];
    parts.extend(edited);
    Ok(Text {
        tenant: column(row, "tenant")?,
        event_type: column(row, "event_type")?,
        names: column(row, "names")?,
        parts,
    })
}

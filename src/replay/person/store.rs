//! The SQL of looking for a person and of erasing one.

use uuid::Uuid;

use super::super::store::column;
use super::marks::Text;
use crate::db::{DbError, Tx};

/// Dead letters of a page, and most bytes of it: at least one letter is read, whatever its size.
const PAGE: i64 = 2_000;
const PAGE_BYTES: i64 = 8 * 1024 * 1024;
/// Held events and parked rows that are looked at: there are few, or more than this is wrong with the installation.
const MOST_OTHERS: i64 = 2_000;

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
    SELECT tenant, event_type, payload, NULL::bytea AS edited, headers::text AS words, ARRAY[partition_key] AS names
    FROM onceflow.held_event WHERE payload IS NOT NULL ORDER BY consumer, seq LIMIT $1";

const PARKED: &str = "
    SELECT tenant, type AS event_type, coalesce(payload_raw, convert_to(payload::text, 'UTF8')) AS payload, NULL::bytea AS edited,
           headers::text AS words, array_remove(ARRAY[aggregateid, partitionkey], NULL) AS names
    FROM onceflow.outbox WHERE parked_at IS NOT NULL LIMIT $1";

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

/// Events that wait in the lines of strict consumers.
pub(super) async fn held(tx: &Tx) -> Result<Vec<Text>, DbError> {
    tx.query(HELD, &[&MOST_OTHERS]).await?.iter().map(text).collect()
}

/// Rows that the broker would not take.
pub(super) async fn parked(tx: &Tx) -> Result<Vec<Text>, DbError> {
    tx.query(PARKED, &[&MOST_OTHERS]).await?.iter().map(text).collect()
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

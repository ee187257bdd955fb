//! SQL of the trace. Each statement is bounded and brings the newest rows.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use tokio_postgres::Row;
use uuid::Uuid;

use super::super::store::column;
use super::step::{DeadLetterState, Edit, End, FailedTry, Hand, Hold, OutboxRow};
use super::{Identity, MAX_SEARCHED, MAX_SOURCES, MAX_STEPS, Question};
use crate::db::{DbError, Tx};

/// One of $1 and $2 is null, and finds nothing in its index.
const ATTEMPTS: &str = "
    SELECT tenant, consumer, source, event_id, at, event_type, attempt, instance, consumer_version, stage, code,
           error_chain, duration_us, retry_ms, replay_id
      FROM onceflow.attempt
     WHERE (event_id = $1 OR partition_key = $2)
       AND ($3::text IS NULL OR tenant = $3) AND ($4::text IS NULL OR source = $4)
       AND ($5::text IS NULL OR consumer = $5)
     ORDER BY at DESC, id DESC
     LIMIT $6";

const LETTERS: &str = "
    SELECT tenant, consumer, source, event_id, last_failed_at, id, state, stage, reason, error_chain[1] AS error,
           attempts, occurrences, replays, replay_id, closed_at, closed_by, closed_reason
      FROM onceflow.dead_letter
     WHERE (event_id = $1 OR partition_key = $2)
       AND ($3::text IS NULL OR tenant = $3) AND ($4::text IS NULL OR source = $4)
       AND ($5::text IS NULL OR consumer = $5)
     ORDER BY last_failed_at DESC, id
     LIMIT $6";

/// Few rows: what is held is bounded.
const HELD: &str = "
    SELECT h.tenant, h.consumer, h.source, h.event_id, h.event_type, h.held_at, b.source AS blocked_by_source,
           b.event_id AS blocked_by
      FROM onceflow.held_event AS h
      JOIN onceflow.blocked_key AS b
        ON b.tenant = h.tenant AND b.consumer = h.consumer AND b.partition_key = h.partition_key
     WHERE (h.event_id = $1 OR h.partition_key = $2)
       AND ($3::text IS NULL OR h.tenant = $3) AND ($4::text IS NULL OR h.source = $4)
       AND ($5::text IS NULL OR h.consumer = $5)
     ORDER BY h.seq DESC
     LIMIT $6";

/// Each place of the inbox by one step of its key's index, from the last one to the next; whatever the number of rows in each.
const PLACES: &str = "
    WITH RECURSIVE place AS (
        (SELECT tenant, consumer, source FROM onceflow.inbox
          WHERE tenant >= coalesce($1::text, '')
          ORDER BY tenant, consumer, source LIMIT 1)
        UNION ALL
        SELECT n.tenant, n.consumer, n.source
          FROM place AS p
         CROSS JOIN LATERAL (
               SELECT b.tenant, b.consumer, b.source FROM onceflow.inbox AS b
                WHERE (b.tenant, b.consumer, b.source) > (p.tenant, p.consumer, p.source)
                ORDER BY b.tenant, b.consumer, b.source LIMIT 1) AS n
         WHERE $1::text IS NULL OR p.tenant = $1
    )
    SELECT tenant, consumer, source FROM place WHERE $1::text IS NULL OR tenant = $1 LIMIT $2";

const ENDS: &str = "
    SELECT b.tenant, b.consumer, b.source, b.event_id, b.event_type, b.outcome, b.reason, b.downstream, b.duplicates,
           b.conflicts, b.processed_at
      FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS i (tenant, consumer, source, event_id)
      JOIN onceflow.inbox AS b
        ON b.tenant = i.tenant AND b.consumer = i.consumer AND b.source = i.source AND b.event_id = i.event_id
     ORDER BY b.processed_at DESC
     LIMIT $5";

/// One that is asked for may be the original or the copy.
const EDITS: &str = "
    SELECT tenant, consumer, source, event_id, copy_tenant, copy_event_id, dead_letter_id, edited_by, reason, edited_at
      FROM onceflow.dead_letter_edit
     WHERE (event_id = ANY ($1) OR copy_event_id = ANY ($1))
       AND ($2::text IS NULL OR $2 IN (tenant, copy_tenant)) AND ($3::text IS NULL OR source = $3)
       AND ($4::text IS NULL OR consumer = $4)
     ORDER BY edited_at DESC
     LIMIT $5";

const OUTBOX_ROWS: &str = "SELECT count(*) AS count FROM (SELECT FROM onceflow.outbox LIMIT $1) AS o";

/// No index: every downstream event would pay for it, and the table is nearly empty but for an outage. A replay carries its event's
/// own cause, so it is found by its id only.
const OUTBOX: &str = "
    SELECT o.tenant, o.id, o.type, o.aggregateid, o.exchange IS NOT NULL AS elsewhere, o.created_at, o.parked_at,
           o.parked_reason, o.headers ->> 'cloudEvents:causationid' AS cause,
           o.headers ->> 'cloudEvents:source' AS source
      FROM (SELECT * FROM onceflow.outbox LIMIT $1) AS o
     WHERE ((o.exchange IS NULL AND o.headers ->> 'cloudEvents:causationid' = ANY ($2)) OR o.id = ANY ($3)
            OR coalesce(o.partitionkey, o.aggregateid) = $4)
       AND ($5::text IS NULL OR o.tenant = $5)
     ORDER BY o.created_at DESC, o.seq DESC
     LIMIT $6";

/// The ids of one change can be ten thousand, of which few are asked for.
const HANDS: &str = "
    WITH hit AS MATERIALIZED (
        SELECT at, actor, action, reason, detail -> 'ids' AS ids
          FROM onceflow.audit
         WHERE (detail -> 'ids') ?| $1 AND jsonb_typeof(detail -> 'ids') = 'array'
         ORDER BY at DESC
         LIMIT $2
    )
    SELECT h.at, h.actor, h.action, h.reason, e.id::uuid AS id
      FROM hit AS h
     CROSS JOIN LATERAL jsonb_array_elements_text(h.ids) AS e (id)
     WHERE e.id IN (SELECT w.id FROM unnest($1::text[]) AS w (id))
     ORDER BY h.at DESC
     LIMIT $2";

/// Tenant, consumer and source of inbox rows.
pub(super) type Places = Vec<(String, String, String)>;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) attempts: Vec<(Identity, Timestamp, FailedTry)>,
    pub(super) letters: Vec<Letter>,
    pub(super) held: Vec<(Identity, Timestamp, Hold)>,
    pub(super) ends: Vec<Ended>,
    pub(super) edits: Vec<EditStep>,
    pub(super) outbox: Vec<Waiting>,
    /// Whether the whole outbox was looked through.
    pub(super) outbox_known: bool,
    /// With the id of the dead letter or outbox row that was changed.
    pub(super) hands: Vec<(Uuid, Timestamp, Hand)>,
}

/// A dead letter.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) event: Identity,
    pub(super) last_failed_at: Timestamp,
    pub(super) closed_at: Option<Timestamp>,
    pub(super) replay_id: Option<Uuid>,
    pub(super) state: DeadLetterState,
}

/// An edit, told of the original and of the copy, as far as they are asked for.
#[derive(Debug)]
pub(super) struct EditStep {
    pub(super) event: Identity,
    pub(super) at: Timestamp,
    pub(super) edit: Edit,
    pub(super) copy_tenant: String,
    pub(super) tells_original: bool,
    pub(super) tells_copy: bool,
}

/// An inbox row.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) event: Identity,
    pub(super) at: Timestamp,
    pub(super) outcome: String,
    pub(super) end: End,
}

/// A row of the outbox.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) tenant: String,
    pub(super) cause: Option<String>,
    pub(super) source: Option<String>,
    pub(super) created_at: Timestamp,
    pub(super) parked_at: Option<Timestamp>,
    pub(super) row: OutboxRow,
}

impl EditStep {
    /// The copy has the id of its outbox row.
    pub(super) fn row(&self) -> Option<Uuid> {
        self.edit.copy_event_id.parse().ok()
    }

    /// Nothing else than the id differs, where the original could be read.
    pub(super) fn copy(&self) -> Identity {
        let (tenant, event_id) = (self.copy_tenant.clone(), self.edit.copy_event_id.clone());
        Identity { tenant, event_id, ..self.event.clone() }
    }
}

impl Found {
    /// The events that failed attempts and dead letters tell of.
    pub(super) fn events(&self) -> BTreeSet<Identity> {
        let failed = self.attempts.iter().map(|(event, ..)| event);
        failed.chain(self.letters.iter().map(|letter| &letter.event)).cloned().collect()
    }

    /// What a change by hand may have named: dead letters, their replays, rows that wait.
    pub(super) fn named(&self) -> BTreeMap<Uuid, Option<&Identity>> {
        let mut named: BTreeMap<_, _> = self.outbox.iter().map(|waiting| (waiting.row.row, None)).collect();
        for letter in &self.letters {
            named.insert(letter.state.dead_letter, Some(&letter.event));
            named.extend(letter.replay_id.map(|id| (id, Some(&letter.event))));
        }
        named
    }
}

pub(super) async fn attempts(tx: &Tx, q: &Question) -> Result<Vec<(Identity, Timestamp, FailedTry)>, DbError> {
    let rows = tx.query(ATTEMPTS, &[&q.id, &q.key, &q.tenant, &q.source, &q.consumer, &limit(MAX_STEPS)]).await?;
    rows.iter().map(|row| Ok((identity(row)?, column(row, "at")?, failed_try(row)?))).collect()
}

pub(super) async fn letters(tx: &Tx, q: &Question) -> Result<Vec<Letter>, DbError> {
    let rows = tx.query(LETTERS, &[&q.id, &q.key, &q.tenant, &q.source, &q.consumer, &limit(MAX_STEPS)]).await?;
    rows.iter().map(letter).collect()
}

pub(super) async fn held(tx: &Tx, q: &Question) -> Result<Vec<(Identity, Timestamp, Hold)>, DbError> {
    let rows = tx.query(HELD, &[&q.id, &q.key, &q.tenant, &q.source, &q.consumer, &limit(MAX_STEPS)]).await?;
    let hold = |row: &Row| {
        let (event_type, blocked_by) = (column(row, "event_type")?, column(row, "blocked_by")?);
        let hold = Hold { event_type, blocked_by_source: column(row, "blocked_by_source")?, blocked_by };
        Ok((identity(row)?, column(row, "held_at")?, hold))
    };
    rows.iter().map(hold).collect()
}

/// One more than [`MAX_SOURCES`] where there are more.
pub(super) async fn places(tx: &Tx, tenant: Option<&str>) -> Result<Places, DbError> {
    let rows = tx.query(PLACES, &[&tenant, &limit(MAX_SOURCES)]).await?;
    rows.iter().map(|row| Ok((column(row, "tenant")?, column(row, "consumer")?, column(row, "source")?))).collect()
}

pub(super) async fn ends(tx: &Tx, events: &BTreeSet<Identity>) -> Result<Vec<Ended>, DbError> {
    let of = |part: fn(&Identity) -> &str| events.iter().map(part).collect::<Vec<_>>();
    let (tenants, consumers) = (of(|e| &e.tenant), of(|e| &e.consumer));
    let (sources, ids) = (of(|e| &e.source), of(|e| &e.event_id));
    let rows = tx.query(ENDS, &[&tenants, &consumers, &sources, &ids, &limit(MAX_STEPS)]).await?;
    rows.iter().map(ended).collect()
}

pub(super) async fn edits(tx: &Tx, q: &Question, events: &BTreeSet<Identity>) -> Result<Vec<EditStep>, DbError> {
    let asked: BTreeSet<&str> = events.iter().map(|event| event.event_id.as_str()).chain(q.id.as_deref()).collect();
    let ids: Vec<&str> = asked.iter().copied().collect();
    let rows = tx.query(EDITS, &[&ids, &q.tenant, &q.source, &q.consumer, &limit(MAX_STEPS)]).await?;
    rows.iter().map(|row| edit_step(row, &asked)).collect()
}

fn edit_step(row: &Row, asked: &BTreeSet<&str>) -> Result<EditStep, DbError> {
    let (event, copy_event_id) = (identity(row)?, column::<String>(row, "copy_event_id")?);
    Ok(EditStep {
        at: column(row, "edited_at")?,
        copy_tenant: column(row, "copy_tenant")?,
        tells_original: asked.contains(event.event_id.as_str()),
        tells_copy: asked.contains(copy_event_id.as_str()),
        edit: Edit {
            edited_dead_letter: column(row, "dead_letter_id")?,
            original_event_id: event.event_id.clone(),
            copy_event_id,
            actor: column(row, "edited_by")?,
            reason: column(row, "reason")?,
        },
        event,
    })
}

/// How many rows the outbox has, counted to one more than [`MAX_SEARCHED`].
pub(super) async fn outbox_rows(tx: &Tx) -> Result<usize, DbError> {
    let count: i64 = column(&tx.query_one(OUTBOX_ROWS, &[&limit(MAX_SEARCHED)]).await?, "count")?;
    Ok(usize::try_from(count).unwrap_or(0))
}

pub(super) async fn outbox(tx: &Tx, q: &Question, found: &Found) -> Result<Vec<Waiting>, DbError> {
    let ended = found.ends.iter().map(|ended| ended.event.event_id.as_str());
    let causes: BTreeSet<&str> = ended.chain(q.id.as_deref()).collect();
    let causes: Vec<&str> = causes.into_iter().collect();
    let copies = found.edits.iter().filter(|step| step.tells_copy).filter_map(EditStep::row);
    let replays: Vec<Uuid> = found.letters.iter().filter_map(|letter| letter.replay_id).chain(copies).collect();
    let most = i64::try_from(MAX_SEARCHED).unwrap_or(i64::MAX);
    let rows = tx.query(OUTBOX, &[&most, &causes, &replays, &q.key, &q.tenant, &limit(MAX_STEPS)]).await?;
    rows.iter().map(waiting).collect()
}

pub(super) async fn hands(
    tx: &Tx,
    named: &BTreeMap<Uuid, Option<&Identity>>,
) -> Result<Vec<(Uuid, Timestamp, Hand)>, DbError> {
    if named.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<String> = named.keys().map(Uuid::to_string).collect();
    let rows = tx.query(HANDS, &[&ids, &limit(MAX_STEPS)]).await?;
    let hand = |row: &Row| {
        let (action, actor, reason) = (column(row, "action")?, column(row, "actor")?, column(row, "reason")?);
        Ok((column(row, "id")?, column(row, "at")?, Hand { action, actor, reason }))
    };
    rows.iter().map(hand).collect()
}

/// One more than is told, so that it shows when there are more.
fn limit(most: usize) -> i64 {
    i64::try_from(most).unwrap_or(i64::MAX).saturating_add(1)
}

fn identity(row: &Row) -> Result<Identity, DbError> {
    Ok(Identity {
        tenant: column(row, "tenant")?,
        consumer: column(row, "consumer")?,
        source: column(row, "source")?,
        event_id: column(row, "event_id")?,
    })
}

fn failed_try(row: &Row) -> Result<FailedTry, DbError> {
    Ok(FailedTry {
        event_type: column(row, "event_type")?,
        attempt: column(row, "attempt")?,
        instance: column(row, "instance")?,
        consumer_version: column(row, "consumer_version")?,
        stage: column(row, "stage")?,
        code: column(row, "code")?,
        error_chain: column(row, "error_chain")?,
        duration_us: column(row, "duration_us")?,
        retry_ms: column(row, "retry_ms")?,
        replay_id: column(row, "replay_id")?,
    })
}

fn letter(row: &Row) -> Result<Letter, DbError> {
    Ok(Letter {
        event: identity(row)?,
        last_failed_at: column(row, "last_failed_at")?,
        closed_at: column(row, "closed_at")?,
        replay_id: column(row, "replay_id")?,
        state: DeadLetterState {
            dead_letter: column(row, "id")?,
            state: column(row, "state")?,
            stage: column(row, "stage")?,
            code: column(row, "reason")?,
            error: column::<Option<String>>(row, "error")?.unwrap_or_default(),
            attempts: column(row, "attempts")?,
            occurrences: column(row, "occurrences")?,
            replays: column(row, "replays")?,
            closed_by: column(row, "closed_by")?,
            closed_reason: column(row, "closed_reason")?,
        },
    })
}

fn ended(row: &Row) -> Result<Ended, DbError> {
    Ok(Ended {
        event: identity(row)?,
        at: column(row, "processed_at")?,
        outcome: column(row, "outcome")?,
        end: End {
            event_type: column(row, "event_type")?,
            reason: column(row, "reason")?,
            downstream: column(row, "downstream")?,
            duplicates: column(row, "duplicates")?,
            conflicts: column(row, "conflicts")?,
        },
    })
}

fn waiting(row: &Row) -> Result<Waiting, DbError> {
    Ok(Waiting {
        tenant: column(row, "tenant")?,
        cause: column(row, "cause")?,
        source: column(row, "source")?,
        created_at: column(row, "created_at")?,
        parked_at: column(row, "parked_at")?,
        row: OutboxRow {
            row: column(row, "id")?,
            downstream_type: column(row, "type")?,
            aggregate_id: column(row, "aggregateid")?,
            replay: column(row, "elsewhere")?,
            parked_reason: column(row, "parked_reason")?,
        },
    })
}

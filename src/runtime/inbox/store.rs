//! All SQL of `onceflow.inbox`.

use uuid::Uuid;

use crate::db::{DbError, Tx};
use crate::event::Envelope;

/// Rows are inserted in key order, so that two batches with the same duplicates can't deadlock. They begin with the usual end,
/// applied with one downstream event: recording it afterwards would write each row twice. A row that is there already only
/// counts the delivery, unless it is of an earlier attempt of ours. `xmax` is 0 only in a row that this statement inserted.
const CLAIM: &str = "
    WITH incoming AS (
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[])
            WITH ORDINALITY AS t (tenant, source, event_id, event_type, fingerprint, n)
    ), claimed AS (
        INSERT INTO onceflow.inbox AS b
            (tenant, consumer, source, event_id, event_type, fingerprint, claim_id, downstream)
        SELECT tenant, $6, source, event_id, event_type, fingerprint, $7, 1
        FROM incoming ORDER BY tenant, source, event_id
        ON CONFLICT (tenant, consumer, source, event_id) DO UPDATE SET
            duplicates = b.duplicates + (b.claim_id <> excluded.claim_id)::int,
            conflicts = b.conflicts + (b.claim_id <> excluded.claim_id AND b.fingerprint <> excluded.fingerprint)::int
        RETURNING tenant, source, event_id, fingerprint, claim_id = $7 AS ours, xmax = 0 AS new
    )
    SELECT i.n, c.new, c.ours, c.fingerprint <> i.fingerprint
    FROM incoming i JOIN claimed c USING (tenant, source, event_id)";

const RECORD: &str = "
    UPDATE onceflow.inbox b
    SET outcome = i.outcome, reason = i.reason, downstream = i.downstream
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::int[])
        AS i (tenant, source, event_id, outcome, reason, downstream)
    WHERE b.tenant = i.tenant AND b.consumer = $7 AND b.source = i.source AND b.event_id = i.event_id";

/// A claim of the same event that is being made is waited for.
const SUPERSEDE: &str = "
    INSERT INTO onceflow.inbox
           (tenant, consumer, source, event_id, event_type, fingerprint, claim_id, outcome, reason, downstream)
    VALUES ($1, $2, $3, $4, $5, $6, $7, 'skipped', 'edited', 0)
    ON CONFLICT (tenant, consumer, source, event_id) DO NOTHING";

const END_OF: &str = "
    SELECT outcome, processed_at FROM onceflow.inbox
    WHERE tenant = $1 AND consumer = $2 AND source = $3 AND event_id = $4";

/// What the inbox knew of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Never seen: its effects are ours to make.
    New,
    /// Our own transaction had committed after all.
    Ours,
    /// Dealt with before; `conflict` when the body was another one.
    Duplicate {
        /// The same id came with another body.
        conflict: bool,
    },
}

/// What to write down about a claimed event that was not just applied with one downstream event.
#[derive(Debug)]
pub(crate) struct Fact<'a> {
    pub(crate) envelope: &'a Envelope,
    pub(crate) outcome: &'static str,
    pub(crate) reason: Option<&'static str>,
    pub(crate) downstream: i32,
}

/// An event whose place an edited copy takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Superseded {
    pub(crate) tenant: String,
    pub(crate) source: String,
    pub(crate) event_id: String,
    pub(crate) event_type: String,
    pub(crate) fingerprint: [u8; 32],
}

impl Superseded {
    /// Whether the inbox takes both for one.
    pub(crate) fn is_same_event(&self, other: &Self) -> bool {
        (&self.tenant, &self.source, &self.event_id) == (&other.tenant, &other.source, &other.event_id)
    }
}

/// Marks an event as dealt with, so that it is never applied. False when it has been dealt with before.
pub(crate) async fn supersede(tx: &Tx, consumer: &str, event: &Superseded) -> Result<bool, DbError> {
    let params: [&(dyn tokio_postgres::types::ToSql + Sync); 7] = [
        &event.tenant,
        &consumer,
        &event.source,
        &event.event_id,
        &event.event_type,
        &event.fingerprint.as_slice(),
        &Uuid::now_v7(),
    ];
    Ok(tx.execute(SUPERSEDE, &params).await? > 0)
}

/// How an event ended, and when; `None` where the inbox does not know it.
pub(crate) async fn end_of(
    tx: &Tx,
    consumer: &str,
    event: &Superseded,
) -> Result<Option<(String, jiff::Timestamp)>, DbError> {
    let row = tx.query_opt(END_OF, &[&event.tenant, &consumer, &event.source, &event.event_id]).await?;
    Ok(row.map(|row| (row.get(0), row.get(1))))
}

/// Claims `events` for `consumer`; one answer each. No two of them may share an identity.
pub(crate) async fn claim(
    tx: &Tx,
    consumer: &str,
    claim_id: Uuid,
    events: &[(&Envelope, [u8; 32])],
) -> Result<Vec<Claim>, DbError> {
    let column = |f: fn(&Envelope) -> &str| events.iter().map(|(e, _)| f(e)).collect::<Vec<_>>();
    let tenants = column(|e| &e.tenant);
    let sources = column(|e| &e.source);
    let ids = column(|e| &e.id);
    let types = column(|e| &e.event_type);
    let prints: Vec<&[u8]> = events.iter().map(|(_, print)| print.as_slice()).collect();
    let rows = tx.query(CLAIM, &[&tenants, &sources, &ids, &types, &prints, &consumer, &claim_id]).await?;
    let mut claims = vec![None; events.len()];
    for row in &rows {
        let claim = match (row.get(1), row.get(2)) {
            (true, _) => Claim::New,
            (false, true) => Claim::Ours,
            (false, false) => Claim::Duplicate { conflict: row.get(3) },
        };
        claims[ordinal(row)?] = Some(claim);
    }
    let all: Option<Vec<Claim>> = claims.into_iter().collect();
    all.ok_or_else(|| DbError::shape("an event that is neither claimed nor known"))
}

fn ordinal(row: &tokio_postgres::Row) -> Result<usize, DbError> {
    let n: i64 = row.get(0);
    usize::try_from(n - 1).map_err(|_| DbError::shape("an ordinal below one"))
}

/// Writes down what became of claimed events.
pub(crate) async fn record(tx: &Tx, consumer: &str, facts: &[Fact<'_>]) -> Result<(), DbError> {
    if facts.is_empty() {
        return Ok(());
    }
    let tenants: Vec<_> = facts.iter().map(|f| f.envelope.tenant.as_str()).collect();
    let sources: Vec<_> = facts.iter().map(|f| f.envelope.source.as_str()).collect();
    let ids: Vec<_> = facts.iter().map(|f| f.envelope.id.as_str()).collect();
    let outcomes: Vec<_> = facts.iter().map(|f| f.outcome).collect();
    let reasons: Vec<_> = facts.iter().map(|f| f.reason).collect();
    let downstream: Vec<_> = facts.iter().map(|f| f.downstream).collect();
    let params: [&(dyn tokio_postgres::types::ToSql + Sync); 7] =
        [&tenants, &sources, &ids, &outcomes, &reasons, &downstream, &consumer];
    tx.execute(RECORD, &params).await.map(|_| ())
}

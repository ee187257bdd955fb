//! All SQL of `onceflow.inbox`.

use uuid::Uuid;

use crate::db::{DbError, Tx};
use crate::event::Envelope;

/// Rows are inserted in key order, so that two batches with the same duplicates can't deadlock. They begin with the usual end,
/// applied with one downstream event: recording it afterwards would write each row twice.
const CLAIM: &str = "
    WITH incoming AS (
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[])
            WITH ORDINALITY AS t (tenant, source, event_id, event_type, fingerprint, n)
    ), claimed AS (
        INSERT INTO onceflow.inbox (tenant, consumer, source, event_id, event_type, fingerprint, claim_id, downstream)
        SELECT tenant, $6, source, event_id, event_type, fingerprint, $7, 1
        FROM incoming ORDER BY tenant, source, event_id
        ON CONFLICT DO NOTHING
        RETURNING tenant, source, event_id
    )
    SELECT i.n FROM incoming i JOIN claimed USING (tenant, source, event_id)";

const COUNT_DUPLICATES: &str = "
    WITH incoming AS (
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[])
            WITH ORDINALITY AS t (tenant, source, event_id, fingerprint, n)
    )
    UPDATE onceflow.inbox b
    SET duplicates = b.duplicates + 1, conflicts = b.conflicts + (b.fingerprint <> i.fingerprint)::int
    FROM incoming i
    WHERE b.tenant = i.tenant AND b.consumer = $5 AND b.source = i.source AND b.event_id = i.event_id
      AND b.claim_id <> $6
    RETURNING i.n, b.fingerprint <> i.fingerprint";

const RECORD: &str = "
    UPDATE onceflow.inbox b
    SET outcome = i.outcome, reason = i.reason, downstream = i.downstream
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::int[])
        AS i (tenant, source, event_id, outcome, reason, downstream)
    WHERE b.tenant = i.tenant AND b.consumer = $7 AND b.source = i.source AND b.event_id = i.event_id";

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
    let mut claims = vec![Claim::Ours; events.len()];
    for row in &rows {
        claims[ordinal(row)?] = Claim::New;
    }
    if rows.len() < events.len() {
        let known = tx.query(COUNT_DUPLICATES, &[&tenants, &sources, &ids, &prints, &consumer, &claim_id]).await?;
        for row in &known {
            let index = ordinal(row)?;
            if claims[index] == Claim::Ours {
                claims[index] = Claim::Duplicate { conflict: row.get(1) };
            }
        }
    }
    Ok(claims)
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

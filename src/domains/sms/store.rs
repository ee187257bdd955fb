//! All SQL of the SMS tables.

use foldhash::{HashMap, HashSet, HashSetExt as _};

use jiff::Timestamp;

use super::event::Class;
use super::model::Template;
use crate::db::{DbError, Tx};

const NOW: &str = "SELECT clock_timestamp()";
const FINGERPRINTS: &str = "
    SELECT r.tenant, r.request_id, r.fingerprint
      FROM unnest($1::text[], $2::text[]) AS w (tenant, request_id)
      JOIN onceflow.sms_request r ON r.tenant = w.tenant AND r.request_id = w.request_id";
const TEMPLATES: &str = "
    SELECT DISTINCT ON (t.tenant, t.template_id)
           t.tenant, t.template_id, t.version, t.signature, t.class, t.params, t.body
      FROM unnest($1::text[], $2::text[]) AS w (tenant, template_id)
      JOIN onceflow.sms_template t ON t.tenant = w.tenant AND t.template_id = w.template_id
     WHERE t.state = 'approved'
     ORDER BY t.tenant, t.template_id, t.version DESC";
const RECENT_CONTENT: &str = "
    SELECT w.tenant, w.content
      FROM unnest($1::text[], $2::bytea[]) AS w (tenant, content)
     WHERE EXISTS (SELECT FROM onceflow.sms_request r
                    WHERE r.tenant = w.tenant AND r.content = w.content AND r.state = 'accepted'
                      AND r.requested_at > $3)";
// A concurrent request of the same id is waited for; whoever comes second gets no row back.
const INSERT_REQUESTS: &str = "
    INSERT INTO onceflow.sms_request (tenant, request_id, fingerprint, content, state, reason, phone, phone_given,
           template_id, template_version, class, signature, params, encoding, segments, expires_at, event_id,
           correlation_id)
    SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::bytea[], $5::text[], $6::text[], $7::text[],
           $8::text[], $9::text[], $10::int4[], $11::text[], $12::text[], $13::jsonb[], $14::text[], $15::int4[],
           $16::timestamptz[], $17::text[], $18::text[])
        ON CONFLICT (tenant, request_id) DO NOTHING
    RETURNING tenant, request_id";

/// Tenant and an id within it.
pub(super) type Key = (String, String);

/// One row of `sms_request`. Not printable: it holds the number and the parameters.
pub(super) struct RequestRow {
    pub(super) key: Key,
    pub(super) fingerprint: Vec<u8>,
    pub(super) content: Option<Vec<u8>>,
    pub(super) reason: Option<&'static str>,
    pub(super) phone: Option<String>,
    pub(super) phone_given: String,
    /// Empty where the text that was given can't be the id of any template.
    pub(super) template_id: String,
    pub(super) accepted: Option<AcceptedColumns>,
    pub(super) event_id: String,
    pub(super) correlation_id: Option<String>,
}

/// The columns that only an accepted request has.
pub(super) struct AcceptedColumns {
    pub(super) template_version: i32,
    pub(super) class: &'static str,
    pub(super) signature: String,
    pub(super) params: serde_json::Value,
    pub(super) encoding: &'static str,
    pub(super) segments: i32,
    pub(super) expires_at: Timestamp,
}

pub(super) async fn now(tx: &Tx) -> Result<Timestamp, DbError> {
    read(&tx.query_one(NOW, &[]).await?, 0)
}

/// Fingerprints of those requests that are stored.
pub(super) async fn fingerprints(tx: &Tx, keys: &[Key]) -> Result<HashMap<Key, Vec<u8>>, DbError> {
    let (tenants, ids) = columns(keys);
    let rows = tx.query(FINGERPRINTS, &[&tenants, &ids]).await?;
    rows.iter().map(|row| Ok(((read(row, 0)?, read(row, 1)?), read(row, 2)?))).collect()
}

/// The newest approved version of each template, by tenant and template id.
pub(super) async fn templates(tx: &Tx, keys: &[Key]) -> Result<HashMap<Key, Template>, DbError> {
    let (tenants, ids) = columns(keys);
    let rows = tx.query(TEMPLATES, &[&tenants, &ids]).await?;
    let template = |row: &tokio_postgres::Row| {
        let class: String = read(row, 4)?;
        let template = Template {
            version: read(row, 2)?,
            signature: read(row, 3)?,
            class: Class::from_name(&class).ok_or_else(|| DbError::shape("unknown class of an SMS template"))?,
            params: read(row, 5)?,
            body: read(row, 6)?,
        };
        Ok(((read(row, 0)?, read(row, 1)?), template))
    };
    rows.iter().map(template).collect()
}

/// Which of these contents were accepted after `since`, under any request id.
pub(super) async fn recent_content(
    tx: &Tx,
    contents: &[(String, Vec<u8>)],
    since: Timestamp,
) -> Result<HashSet<(String, Vec<u8>)>, DbError> {
    let tenants: Vec<&str> = contents.iter().map(|(tenant, _)| tenant.as_str()).collect();
    let hashes: Vec<&[u8]> = contents.iter().map(|(_, hash)| hash.as_slice()).collect();
    let rows = tx.query(RECENT_CONTENT, &[&tenants, &hashes, &since]).await?;
    rows.iter().map(|row| Ok((read(row, 0)?, read(row, 1)?))).collect()
}

/// Stores new requests and returns the keys that were indeed new. In key order, so that two batches that share keys wait
/// for each other instead of in a circle.
pub(super) async fn insert(tx: &Tx, rows: &mut [RequestRow]) -> Result<HashSet<Key>, DbError> {
    if rows.is_empty() {
        return Ok(HashSet::new());
    }
    rows.sort_by(|a, b| a.key.cmp(&b.key));
    let rows: &[RequestRow] = rows;
    let accepted = || rows.iter().map(|r| r.accepted.as_ref());
    let tenants = each(rows, |r| r.key.0.as_str());
    let ids = each(rows, |r| r.key.1.as_str());
    let fingerprints = each(rows, |r| r.fingerprint.as_slice());
    let contents = each(rows, |r| r.content.as_deref());
    let states = each(rows, |r| if r.accepted.is_some() { "accepted" } else { "rejected" });
    let reasons = each(rows, |r| r.reason);
    let phones = each(rows, |r| r.phone.as_deref());
    let given = each(rows, |r| r.phone_given.as_str());
    let template_ids = each(rows, |r| r.template_id.as_str());
    let versions: Vec<_> = accepted().map(|a| a.map(|a| a.template_version)).collect();
    let classes: Vec<_> = accepted().map(|a| a.map(|a| a.class)).collect();
    let signatures: Vec<_> = accepted().map(|a| a.map(|a| a.signature.as_str())).collect();
    let params: Vec<_> = accepted().map(|a| a.map(|a| &a.params)).collect();
    let encodings: Vec<_> = accepted().map(|a| a.map(|a| a.encoding)).collect();
    let segments: Vec<_> = accepted().map(|a| a.map(|a| a.segments)).collect();
    let expiries: Vec<_> = accepted().map(|a| a.map(|a| a.expires_at)).collect();
    let event_ids = each(rows, |r| r.event_id.as_str());
    let correlations = each(rows, |r| r.correlation_id.as_deref());
    let returned = tx
        .query(
            INSERT_REQUESTS,
            &[
                &tenants,
                &ids,
                &fingerprints,
                &contents,
                &states,
                &reasons,
                &phones,
                &given,
                &template_ids,
                &versions,
                &classes,
                &signatures,
                &params,
                &encodings,
                &segments,
                &expiries,
                &event_ids,
                &correlations,
            ],
        )
        .await?;
    returned.iter().map(|row| Ok((read(row, 0)?, read(row, 1)?))).collect()
}

fn each<'a, T>(rows: &'a [RequestRow], column: impl Fn(&'a RequestRow) -> T) -> Vec<T> {
    rows.iter().map(column).collect()
}

fn columns(keys: &[Key]) -> (Vec<&str>, Vec<&str>) {
    keys.iter().map(|(tenant, id)| (tenant.as_str(), id.as_str())).unzip()
}

fn read<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a tokio_postgres::Row, column: usize) -> Result<T, DbError> {
    row.try_get(column).map_err(|e| DbError::shape(format!("SMS column {column}: {e}")))
}

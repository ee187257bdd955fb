//! All SQL of `org_waiting`.

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::super::event::{Change, MembershipKey};
use super::super::model::Stamp;
use super::super::work::{Block, Work};
use crate::db::DbError;

/// Kept changes read at once.
const PAGE_SIZE: i64 = 200;

/// A kept change.
pub(super) struct Kept {
    pub(super) change: Change,
    pub(super) stamp: Stamp,
}

/// Where a page ended: kind, object, department.
#[derive(Default)]
pub(super) struct Position(&'static str, String, String);

impl Kept {
    /// The place after which the next page begins.
    pub(super) fn position(&self) -> Position {
        let (kind, object_id, department_id) = object(&self.change);
        Position(kind, object_id.into(), department_id.into())
    }
}

// The newest wins. An equal stamp is the same change, which now waits for something else.
const KEEP: &str = "
    INSERT INTO onceflow.org_waiting AS w
        (tenant, directory, kind, object_id, department_id, op, version, event_time, event_key, attributes, reason,
         waits_for)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
    ON CONFLICT (tenant, directory, kind, object_id, department_id) DO UPDATE SET
        op = excluded.op, version = excluded.version, event_time = excluded.event_time, event_key = excluded.event_key,
        attributes = excluded.attributes, reason = excluded.reason, waits_for = excluded.waits_for
    WHERE (excluded.version, excluded.event_time, excluded.event_key) >= (w.version, w.event_time, w.event_key)";

const FORGET: &str = "
    DELETE FROM onceflow.org_waiting
    WHERE tenant = $1 AND directory = $2 AND kind = $3 AND object_id = $4 AND department_id = $5
      AND (version, event_time, event_key) <= ($6, $7, $8)";

const PAGE: &str = "
    SELECT kind, object_id, department_id, op, version, event_time, event_key, attributes
    FROM onceflow.org_waiting
    WHERE tenant = $1 AND directory = $2 AND waits_for = ANY ($3)
      AND (kind, object_id, department_id) > ($4, $5, $6)
    ORDER BY kind, object_id, department_id
    LIMIT $7";

/// Keeps the change; `false` if something newer about the object is kept.
pub(super) async fn keep(work: &Work<'_>, change: &Change, stamp: &Stamp, block: &Block) -> Result<bool, DbError> {
    let (kind, object_id, department_id) = object(change);
    let attributes = attributes(change)?;
    let op = if attributes.is_some() { "upsert" } else { "delete" };
    let Stamp { version, time, key } = stamp;
    let params: &[&(dyn ToSql + Sync)] = &[
        &work.tenant,
        &work.directory,
        &kind,
        &object_id,
        &department_id,
        &op,
        version,
        time,
        key,
        &attributes.unwrap_or_else(|| Value::Object(serde_json::Map::new())),
        &block.reason,
        &block.wake.key(),
    ];
    Ok(work.tx.execute(KEEP, params).await? == 1)
}

/// Drops what is kept for the object and isn't newer than the stamp.
pub(super) async fn forget(
    work: &Work<'_>,
    kind: &'static str,
    (object_id, department_id): (&str, &str),
    stamp: &Stamp,
) -> Result<(), DbError> {
    let Stamp { version, time, key } = stamp;
    let params: &[&(dyn ToSql + Sync)] =
        &[&work.tenant, &work.directory, &kind, &object_id, &department_id, version, time, key];
    work.tx.execute(FORGET, params).await.map(drop)
}

/// The next changes that wait for any of the keys.
pub(super) async fn page(work: &Work<'_>, keys: &[String], after: &Position) -> Result<Vec<Kept>, DbError> {
    let Position(kind, object_id, department_id) = after;
    let params: &[&(dyn ToSql + Sync)] =
        &[&work.tenant, &work.directory, &keys, kind, object_id, department_id, &PAGE_SIZE];
    work.tx.query(PAGE, params).await?.iter().map(kept).collect()
}

fn kept(row: &Row) -> Result<Kept, DbError> {
    let (kind, op): (&str, &str) = (row.get("kind"), row.get("op"));
    let id: String = row.get("object_id");
    let change = match kind {
        "department" => Change::Department { id, values: values(op, row)? },
        "membership" => {
            let key = MembershipKey { user_id: id, department_id: row.get("department_id") };
            Change::Membership { key, values: values(op, row)? }
        }
        other => return Err(DbError::shape(format!("org_waiting.kind {other}"))),
    };
    let stamp = Stamp { version: row.get("version"), time: row.get("event_time"), key: row.get("event_key") };
    Ok(Kept { change, stamp })
}

fn values<T: DeserializeOwned>(op: &str, row: &Row) -> Result<Option<T>, DbError> {
    if op == "delete" {
        return Ok(None);
    }
    let attributes: Value = row.get("attributes");
    serde_json::from_value(attributes).map(Some).map_err(|e| DbError::shape(format!("org_waiting.attributes: {e}")))
}

fn object(change: &Change) -> (&'static str, &str, &str) {
    match change {
        Change::Department { id, .. } => ("department", id, ""),
        Change::User { id, .. } => ("user", id, ""),
        Change::Membership { key, .. } => ("membership", &key.user_id, &key.department_id),
    }
}

fn attributes(change: &Change) -> Result<Option<Value>, DbError> {
    let value = match change {
        Change::Department { values, .. } => values.as_ref().map(serde_json::to_value),
        Change::Membership { values, .. } => values.as_ref().map(serde_json::to_value),
        Change::User { .. } => None,
    };
    value.transpose().map_err(|e| DbError::shape(format!("org_waiting.attributes: {e}")))
}

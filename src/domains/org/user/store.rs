//! All SQL of `org_user`.

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::super::model::{Before, Stamp, State, User};
use super::super::work::Work;
use crate::db::DbError;

// One statement for the hot path: locks and reads the old row, writes the new one if its stamp is greater. FOR UPDATE
// waits for memberships that are being added: they hold the row FOR KEY SHARE. The old row must have been seen: one that
// another transaction inserted after our snapshot is left alone, and the statement is run again.
const WRITE: &str = "
    WITH old AS (
        SELECT state, version, name, email, title, employee_number, suspended
        FROM onceflow.org_user
        WHERE tenant = $1 AND directory = $2 AND id = $3
        FOR UPDATE
    ), written AS (
        INSERT INTO onceflow.org_user AS u
            (tenant, directory, id, version, event_time, event_key, state, name, email, title, employee_number,
             suspended, deleted_at)
        SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12,
               CASE WHEN $7::text = 'deleted' THEN clock_timestamp() END
        FROM (SELECT count(*) FROM old) AS locked_first
        ON CONFLICT (tenant, directory, id) DO UPDATE SET
            version = excluded.version, event_time = excluded.event_time, event_key = excluded.event_key,
            state = excluded.state, name = excluded.name, email = excluded.email, title = excluded.title,
            employee_number = excluded.employee_number, suspended = excluded.suspended,
            deleted_at = excluded.deleted_at, updated_at = clock_timestamp()
        WHERE (excluded.version, excluded.event_time, excluded.event_key) > (u.version, u.event_time, u.event_key)
          AND EXISTS (SELECT FROM old)
        RETURNING true
    )
    SELECT old.*, EXISTS (SELECT FROM written) AS written
    FROM (SELECT) AS always LEFT JOIN old ON true";

// Makes sure that there is a row to wait at, and locks it against whoever makes it live.
const HOLD: &str = "
    INSERT INTO onceflow.org_user AS u (tenant, directory, id, version, event_time, event_key, state)
    VALUES ($1, $2, $3, 0, 'epoch', '', 'unknown')
    ON CONFLICT (tenant, directory, id) DO UPDATE SET version = u.version
    RETURNING state = 'live'";

/// Writes the user, or the tombstone where `values` is `None`, unless something newer is stored. Returns the row as it was,
/// and whether it was written.
pub(super) async fn write(
    work: &Work<'_>,
    id: &str,
    stamp: &Stamp,
    values: Option<&User>,
) -> Result<(Option<Before<User>>, bool), DbError> {
    // A second time only if the row appeared after the first one's snapshot; then the second sees it.
    for _ in 0..2 {
        let row = write_once(work, id, stamp, values).await?;
        let (before, written) = (before(&row)?, row.get("written"));
        if before.is_some() || written {
            return Ok((before, written));
        }
    }
    Err(DbError::shape("org_user: a committed row can't be seen"))
}

async fn write_once(work: &Work<'_>, id: &str, stamp: &Stamp, values: Option<&User>) -> Result<Row, DbError> {
    let state = if values.is_some() { State::Live } else { State::Deleted };
    let Stamp { version, time, key } = stamp;
    let params: &[&(dyn ToSql + Sync)] = &[
        &work.tenant,
        &work.directory,
        &id,
        version,
        time,
        key,
        &state.as_str(),
        &values.map(|v| &v.name),
        &values.map(|v| &v.email),
        &values.map(|v| &v.title),
        &values.map(|v| &v.employee_number),
        &values.is_some_and(|v| v.suspended),
    ];
    work.tx.query_one(WRITE, params).await
}

fn before(row: &Row) -> Result<Option<Before<User>>, DbError> {
    let Some(state) = row.get::<_, Option<&str>>("state") else { return Ok(None) };
    let text = |column| row.get::<_, Option<String>>(column).unwrap_or_default();
    Ok(Some(Before {
        state: State::parse(state).ok_or_else(|| DbError::shape(format!("org_user.state {state}")))?,
        version: row.get("version"),
        values: User {
            name: text("name"),
            email: text("email"),
            title: text("title"),
            employee_number: text("employee_number"),
            suspended: row.get("suspended"),
        },
    }))
}

/// Locks the user against becoming live, as an unknown one if need be, and tells whether they are live already.
pub(in super::super) async fn hold(work: &Work<'_>, id: &str) -> Result<bool, DbError> {
    Ok(work.tx.query_one(HOLD, &[&work.tenant, &work.directory, &id]).await?.get(0))
}

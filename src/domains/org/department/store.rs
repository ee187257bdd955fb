//! All SQL of `org_department` and `org_tree`.

use tokio_postgres::Row;

use super::super::model::{Before, Department, MAX_DEPTH, Stamp, State};
use super::super::work::Work;
use crate::db::DbError;

/// The place of a department to be: what is above it and how much hangs below it.
pub(in super::super) struct WayUp {
    pub(in super::super) parent_is_live: bool,
    pub(in super::super) reaches_itself: bool,
    /// Levels from the parent to its root.
    pub(in super::super) depth: i32,
    /// Levels from the department to its deepest descendant.
    pub(in super::super) height: i32,
    /// The ids from the parent upwards.
    pub(in super::super) path: String,
}

// A row and no advisory lock, so that it also holds where rows are distributed by tenant.
const LOCK_TREE: &str = "
    INSERT INTO onceflow.org_tree AS t (tenant, directory) VALUES ($1, $2)
    ON CONFLICT (tenant, directory) DO UPDATE SET writes = t.writes + 1";

const HAS_PLACE: &str = "
    SELECT EXISTS (
        SELECT FROM onceflow.org_department
        WHERE tenant = $1 AND directory = $2 AND id = $3 AND state = 'live' AND parent_id IS NOT DISTINCT FROM $4)";

// FOR UPDATE also waits for memberships that are being added: they hold the row FOR KEY SHARE.
const LOCK: &str = "
    SELECT state, version, name, parent_id, sort_order,
           ($4::bigint, $5::timestamptz, $6::text) > (version, event_time, event_key) AS newer
    FROM onceflow.org_department
    WHERE tenant = $1 AND directory = $2 AND id = $3
    FOR UPDATE";

// No guard of its own: the caller holds the row or, where there is none, the tree. Only a membership that waits for the
// department may insert the row in between, as unknown.
const WRITE: &str = "
    INSERT INTO onceflow.org_department
        (tenant, directory, id, version, event_time, event_key, state, name, parent_id, sort_order)
    VALUES ($1, $2, $3, $4, $5, $6, 'live', $7, $8, $9)
    ON CONFLICT (tenant, directory, id) DO UPDATE SET
        version = excluded.version, event_time = excluded.event_time, event_key = excluded.event_key,
        state = 'live', name = excluded.name, parent_id = excluded.parent_id, sort_order = excluded.sort_order,
        deleted_at = NULL, updated_at = clock_timestamp()";

const BURY: &str = "
    INSERT INTO onceflow.org_department
        (tenant, directory, id, version, event_time, event_key, state, deleted_at)
    VALUES ($1, $2, $3, $4, $5, $6, 'deleted', clock_timestamp())
    ON CONFLICT (tenant, directory, id) DO UPDATE SET
        version = excluded.version, event_time = excluded.event_time, event_key = excluded.event_key,
        state = 'deleted', name = NULL, parent_id = NULL, sort_order = 0,
        deleted_at = excluded.deleted_at, updated_at = clock_timestamp()";

const IS_EMPTY: &str = "
    SELECT NOT EXISTS (
        SELECT FROM onceflow.org_department WHERE tenant = $1 AND directory = $2 AND parent_id = $3)
    AND NOT EXISTS (
        SELECT FROM onceflow.org_membership
        WHERE tenant = $1 AND directory = $2 AND department_id = $3 AND state = 'live')";

// Upwards through live departments and, where one isn't live, through the place it waits for: two departments that wait
// for each other are a cycle too. The bound ends the walk, whatever is stored.
const WAY_UP: &str = "
    WITH RECURSIVE up (id, depth) AS (
        SELECT $4::text, 1
        UNION ALL
        SELECT p.parent_id, up.depth + 1
        FROM up
        LEFT JOIN onceflow.org_department d
            ON d.tenant = $1 AND d.directory = $2 AND d.id = up.id AND d.state = 'live'
        LEFT JOIN onceflow.org_waiting w
            ON w.tenant = $1 AND w.directory = $2 AND w.kind = 'department' AND w.object_id = up.id
            AND w.department_id = '' AND w.op = 'upsert' AND d.id IS NULL
        CROSS JOIN LATERAL (SELECT coalesce(d.parent_id, w.attributes ->> 'parent_id') AS parent_id) p
        WHERE p.parent_id IS NOT NULL AND up.id <> $3 AND up.depth <= $5
    ), down (id, height) AS (
        SELECT $3::text, 1
        UNION ALL
        SELECT c.id, down.height + 1
        FROM down
        JOIN onceflow.org_department c ON c.tenant = $1 AND c.directory = $2 AND c.parent_id = down.id
        WHERE down.height <= $5
    )
    SELECT EXISTS (SELECT FROM onceflow.org_department
                   WHERE tenant = $1 AND directory = $2 AND id = $4 AND state = 'live') AS parent_is_live,
           (SELECT bool_or(id = $3) FROM up) AS reaches_itself,
           (SELECT max(depth) FROM up) AS depth,
           (SELECT max(height) FROM down) AS height,
           (SELECT string_agg(id, ' > ' ORDER BY depth) FROM up) AS path";

// Makes sure that there is a row to wait at, and locks it against whoever makes it live.
const HOLD: &str = "
    INSERT INTO onceflow.org_department AS d (tenant, directory, id, version, event_time, event_key, state)
    VALUES ($1, $2, $3, 0, 'epoch', '', 'unknown')
    ON CONFLICT (tenant, directory, id) DO UPDATE SET version = d.version
    RETURNING state = 'live'";

// Whether a deletion waits for one of these to become empty.
const ANY_LEAVING: &str = "
    SELECT EXISTS (
        SELECT FROM onceflow.org_waiting
        WHERE tenant = $1 AND directory = $2 AND kind = 'department' AND object_id = ANY ($3)
          AND department_id = '' AND op = 'delete')";

// In key order. Adding memberships goes on meanwhile, removing others and deleting the departments doesn't.
const LOCK_FOR_REMOVAL: &str = "
    SELECT id FROM onceflow.org_department
    WHERE tenant = $1 AND directory = $2 AND id = ANY ($3)
    ORDER BY id
    FOR NO KEY UPDATE";

/// Serialises whoever changes the shape of the directory's tree, until the end of the transaction.
pub(in super::super) async fn lock_tree(work: &Work<'_>) -> Result<(), DbError> {
    work.tx.execute(LOCK_TREE, &[&work.tenant, &work.directory]).await.map(drop)
}

/// Whether the department is live under this parent. A look without a lock.
pub(super) async fn has_place(work: &Work<'_>, id: &str, parent_id: Option<&str>) -> Result<bool, DbError> {
    Ok(work.tx.query_one(HAS_PLACE, &[&work.tenant, &work.directory, &id, &parent_id]).await?.get(0))
}

/// Locks the row, and tells whether the stamp is newer than it.
pub(super) async fn lock(work: &Work<'_>, id: &str, stamp: &Stamp) -> Result<(Before<Department>, bool), DbError> {
    let Stamp { version, time, key } = stamp;
    match work.tx.query_opt(LOCK, &[&work.tenant, &work.directory, &id, version, time, key]).await? {
        Some(row) => Ok((before(&row)?, row.get("newer"))),
        None => Ok((Before::unknown(), true)),
    }
}

fn before(row: &Row) -> Result<Before<Department>, DbError> {
    let state: &str = row.get("state");
    Ok(Before {
        state: State::parse(state).ok_or_else(|| DbError::shape(format!("org_department.state {state}")))?,
        version: row.get("version"),
        values: Department {
            name: row.get::<_, Option<String>>("name").unwrap_or_default(),
            parent_id: row.get("parent_id"),
            sort_order: row.get("sort_order"),
        },
    })
}

/// Makes the department live with these values.
pub(super) async fn write(work: &Work<'_>, id: &str, stamp: &Stamp, values: &Department) -> Result<(), DbError> {
    let Department { name, parent_id, sort_order } = values;
    let Stamp { version, time, key } = stamp;
    work.tx
        .execute(WRITE, &[&work.tenant, &work.directory, &id, version, time, key, name, parent_id, sort_order])
        .await
        .map(drop)
}

/// Leaves the tombstone.
pub(super) async fn bury(work: &Work<'_>, id: &str, stamp: &Stamp) -> Result<(), DbError> {
    let Stamp { version, time, key } = stamp;
    work.tx.execute(BURY, &[&work.tenant, &work.directory, &id, version, time, key]).await.map(drop)
}

/// Whether it has neither children nor members.
pub(super) async fn is_empty(work: &Work<'_>, id: &str) -> Result<bool, DbError> {
    Ok(work.tx.query_one(IS_EMPTY, &[&work.tenant, &work.directory, &id]).await?.get(0))
}

/// Walks from the parent to its root, and below the department.
pub(super) async fn way_up(work: &Work<'_>, id: &str, parent_id: &str) -> Result<WayUp, DbError> {
    let row = work.tx.query_one(WAY_UP, &[&work.tenant, &work.directory, &id, &parent_id, &MAX_DEPTH]).await?;
    Ok(WayUp {
        parent_is_live: row.get("parent_is_live"),
        reaches_itself: row.get("reaches_itself"),
        depth: row.get("depth"),
        height: row.get("height"),
        path: row.get("path"),
    })
}

/// Locks the department against becoming live, as an unknown one if need be, and tells whether it is live already.
pub(in super::super) async fn hold(work: &Work<'_>, id: &str) -> Result<bool, DbError> {
    Ok(work.tx.query_one(HOLD, &[&work.tenant, &work.directory, &id]).await?.get(0))
}

/// Whether a deletion waits for one of these to become empty.
pub(in super::super) async fn any_leaving(work: &Work<'_>, ids: &[&str]) -> Result<bool, DbError> {
    Ok(work.tx.query_one(ANY_LEAVING, &[&work.tenant, &work.directory, &ids]).await?.get(0))
}

/// Locks departments that are about to lose members, in key order.
pub(in super::super) async fn lock_for_removal(work: &Work<'_>, ids: &[&str]) -> Result<(), DbError> {
    work.tx.execute(LOCK_FOR_REMOVAL, &[&work.tenant, &work.directory, &ids]).await.map(drop)
}

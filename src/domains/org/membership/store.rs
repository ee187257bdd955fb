//! All SQL of `org_membership`. Two statements also keep `org_waiting` in step, to save a round trip each.

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::super::event::MembershipKey;
use super::super::model::{Before, Membership, Stamp, State};
use super::super::work::Work;
use crate::db::DbError;

/// What a membership meets.
pub(super) struct Found {
    pub(super) user_is_live: bool,
    pub(super) department_is_live: bool,
    pub(super) before: Before<Membership>,
    /// Whether the event is newer than the stored row, or brings a detached one back.
    pub(super) newer: bool,
}

// FOR KEY SHARE: neither can be deleted until we commit, and nobody else is held up.
const LOOK: &str = "
    WITH the_user AS (
        SELECT id FROM onceflow.org_user
        WHERE tenant = $1 AND directory = $2 AND id = $3 AND state = 'live' FOR KEY SHARE
    ), the_department AS (
        SELECT id FROM onceflow.org_department
        WHERE tenant = $1 AND directory = $2 AND id = $4 AND state = 'live' FOR KEY SHARE
    )
    SELECT EXISTS (SELECT FROM the_user) AS user_is_live,
           EXISTS (SELECT FROM the_department) AS department_is_live,
           m.state, m.version, m.is_primary, m.title,
           coalesce(($5::bigint, $6::timestamptz, $7::text) > (m.version, m.event_time, m.event_key)
               OR (m.state = 'detached'
                   AND ($5::bigint, $6::timestamptz, $7::text) = (m.version, m.event_time, m.event_key)), true) AS newer
    FROM (SELECT) AS always
    LEFT JOIN onceflow.org_membership m
        ON m.tenant = $1 AND m.directory = $2 AND m.user_id = $3 AND m.department_id = $4";

// As for users: the old row is locked and read first, a row that appeared after the snapshot makes us run again.
const WRITE: &str = "
    WITH old AS (
        SELECT state, version, is_primary, title
        FROM onceflow.org_membership
        WHERE tenant = $1 AND directory = $2 AND user_id = $3 AND department_id = $4
        FOR UPDATE
    ), written AS (
        INSERT INTO onceflow.org_membership AS m
            (tenant, directory, user_id, department_id, version, event_time, event_key, state, is_primary, title,
             deleted_at)
        SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, CASE WHEN $8::text = 'deleted' THEN clock_timestamp() END
        FROM (SELECT count(*) FROM old) AS locked_first
        ON CONFLICT (tenant, directory, user_id, department_id) DO UPDATE SET
            version = excluded.version, event_time = excluded.event_time, event_key = excluded.event_key,
            state = excluded.state, is_primary = excluded.is_primary, title = excluded.title,
            deleted_at = excluded.deleted_at, updated_at = clock_timestamp()
        WHERE ((excluded.version, excluded.event_time, excluded.event_key) > (m.version, m.event_time, m.event_key)
               OR (m.state = 'detached' AND (excluded.version, excluded.event_time, excluded.event_key)
                                          = (m.version, m.event_time, m.event_key)))
          AND EXISTS (SELECT FROM old)
        RETURNING true
    ), forgotten AS (
        DELETE FROM onceflow.org_waiting
        WHERE tenant = $1 AND directory = $2 AND kind = 'membership' AND object_id = $3 AND department_id = $4
          AND (version, event_time, event_key) <= ($5, $6, $7)
    )
    SELECT old.*, EXISTS (SELECT FROM written) AS written
    FROM (SELECT) AS always LEFT JOIN old ON true";

// Leaves an unknown row where there is none, and locks it against every other event about this membership.
const HOLD: &str = "
    INSERT INTO onceflow.org_membership AS m
        (tenant, directory, user_id, department_id, version, event_time, event_key, state)
    VALUES ($1, $2, $3, $4, 0, 'epoch', '', 'unknown')
    ON CONFLICT (tenant, directory, user_id, department_id) DO UPDATE SET version = m.version
    RETURNING ($5::bigint, $6::timestamptz, $7::text) > (m.version, m.event_time, m.event_key)
        OR (m.state = 'detached'
            AND ($5::bigint, $6::timestamptz, $7::text) = (m.version, m.event_time, m.event_key))";

const DEPARTMENTS_OF: &str = "
    SELECT department_id FROM onceflow.org_membership
    WHERE tenant = $1 AND directory = $2 AND user_id = $3 AND state = 'live'
    ORDER BY department_id";

// The membership itself waits for the user's return, unless a newer event about it waits already.
const DETACH: &str = "
    WITH ended AS (
        UPDATE onceflow.org_membership SET state = 'detached', updated_at = clock_timestamp()
        WHERE tenant = $1 AND directory = $2 AND user_id = $3 AND state = 'live'
        RETURNING tenant, directory, user_id, department_id, version, event_time, event_key, is_primary, title
    ), kept AS (
        INSERT INTO onceflow.org_waiting
            (tenant, directory, kind, object_id, department_id, op, version, event_time, event_key, attributes, reason,
             waits_for)
        SELECT tenant, directory, 'membership', user_id, department_id, 'upsert', version, event_time, event_key,
               jsonb_build_object('primary', is_primary, 'title', title), 'user_missing', 'user/' || user_id
        FROM ended
        ON CONFLICT (tenant, directory, kind, object_id, department_id) DO NOTHING
    )
    SELECT department_id, 'live' AS state, version, is_primary, title FROM ended ORDER BY department_id";

/// Looks at everything that a new membership depends on, and locks its user and department against deletion.
pub(super) async fn look(work: &Work<'_>, key: &MembershipKey, stamp: &Stamp) -> Result<Found, DbError> {
    let MembershipKey { user_id, department_id } = key;
    let Stamp { version, time, key } = stamp;
    let row =
        work.tx.query_one(LOOK, &[&work.tenant, &work.directory, user_id, department_id, version, time, key]).await?;
    Ok(Found {
        user_is_live: row.get("user_is_live"),
        department_is_live: row.get("department_is_live"),
        before: before(&row)?.unwrap_or_else(Before::unknown),
        newer: row.get("newer"),
    })
}

/// Writes the membership, or the tombstone where `values` is `None`, unless something newer is stored. Returns the row as it
/// was, and whether it was written.
pub(super) async fn write(
    work: &Work<'_>,
    key: &MembershipKey,
    stamp: &Stamp,
    values: Option<&Membership>,
) -> Result<(Before<Membership>, bool), DbError> {
    // A second time only if the row appeared after the first one's snapshot; then the second sees it.
    for _ in 0..2 {
        let row = write_once(work, key, stamp, values).await?;
        let (before, written) = (before(&row)?, row.get("written"));
        if before.is_some() || written {
            return Ok((before.unwrap_or_else(Before::unknown), written));
        }
    }
    Err(DbError::shape("org_membership: a committed row can't be seen"))
}

async fn write_once(
    work: &Work<'_>,
    key: &MembershipKey,
    stamp: &Stamp,
    values: Option<&Membership>,
) -> Result<Row, DbError> {
    let MembershipKey { user_id, department_id } = key;
    let Stamp { version, time, key } = stamp;
    let state = if values.is_some() { State::Live } else { State::Deleted };
    let (primary, title) = values.map_or((false, ""), |v| (v.primary, v.title.as_str()));
    let params: &[&(dyn ToSql + Sync)] =
        &[&work.tenant, &work.directory, user_id, department_id, version, time, key, &state.as_str(), &primary, &title];
    work.tx.query_one(WRITE, params).await
}

fn before(row: &Row) -> Result<Option<Before<Membership>>, DbError> {
    let Some(state) = row.get::<_, Option<&str>>("state") else { return Ok(None) };
    Ok(Some(Before {
        state: State::parse(state).ok_or_else(|| DbError::shape(format!("org_membership.state {state}")))?,
        version: row.get("version"),
        values: Membership { primary: row.get("is_primary"), title: row.get("title") },
    }))
}

/// Locks the membership against other events about it, as an unknown one if need be, and tells whether the stamp is still
/// newer than it.
pub(super) async fn hold(work: &Work<'_>, key: &MembershipKey, stamp: &Stamp) -> Result<bool, DbError> {
    let MembershipKey { user_id, department_id } = key;
    let Stamp { version, time, key } = stamp;
    let params: &[&(dyn ToSql + Sync)] = &[&work.tenant, &work.directory, user_id, department_id, version, time, key];
    Ok(work.tx.query_one(HOLD, params).await?.get(0))
}

/// The departments that the user is a live member of, in order.
pub(super) async fn departments_of(work: &Work<'_>, user_id: &str) -> Result<Vec<String>, DbError> {
    let rows = work.tx.query(DEPARTMENTS_OF, &[&work.tenant, &work.directory, &user_id]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Ends the user's live memberships until the user returns; returns each department with the membership as it was.
pub(super) async fn detach(work: &Work<'_>, user_id: &str) -> Result<Vec<(String, Before<Membership>)>, DbError> {
    let rows = work.tx.query(DETACH, &[&work.tenant, &work.directory, &user_id]).await?;
    rows.iter()
        .map(|row| {
            let before = before(row)?.ok_or_else(|| DbError::shape("a detached membership without a state"))?;
            Ok((row.get("department_id"), before))
        })
        .collect()
}

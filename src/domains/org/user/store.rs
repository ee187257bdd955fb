//! All SQL of `org_user`.

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::super::model::{Before, Stamp, State, User};
use super::super::work::Work;
use crate::db::{DbError, Tx};

// One statement for all users of a batch: locks and reads the old rows in key order, writes the new ones whose stamp is greater.
// LATERAL, because a join that was planned while the table was small may read all of it when it has grown.
// FOR UPDATE waits for memberships that are being added: they hold the row FOR KEY SHARE. An old row must have been seen: one
// that another transaction inserted after our snapshot is left alone, and the statement is run again for it.
const WRITE: &str = "
    WITH incoming AS (
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::timestamptz[], $6::text[], $7::text[],
                             $8::text[], $9::text[], $10::text[], $11::text[], $12::bool[])
            WITH ORDINALITY AS t (tenant, directory, id, version, event_time, event_key, state, name, email, title,
                                  employee_number, suspended, n)
    ), old AS (
        SELECT u.tenant, u.directory, u.id, u.version, u.event_time, u.event_key, u.state, u.name, u.email, u.title,
               u.employee_number, u.suspended
        FROM (SELECT tenant, directory, id FROM incoming ORDER BY tenant, directory, id) AS i
        CROSS JOIN LATERAL (
            SELECT * FROM onceflow.org_user AS w
            WHERE w.tenant = i.tenant AND w.directory = i.directory AND w.id = i.id
            FOR UPDATE
        ) AS u
    ), written AS (
        INSERT INTO onceflow.org_user AS u
            (tenant, directory, id, version, event_time, event_key, state, name, email, title, employee_number,
             suspended, deleted_at)
        SELECT i.tenant, i.directory, i.id, i.version, i.event_time, i.event_key, i.state, i.name, i.email, i.title,
               i.employee_number, i.suspended, CASE WHEN i.state = 'deleted' THEN clock_timestamp() END
        FROM incoming i, (SELECT count(*) FROM old) AS locked_first
        ORDER BY i.tenant, i.directory, i.id
        ON CONFLICT (tenant, directory, id) DO UPDATE SET
            version = excluded.version, event_time = excluded.event_time, event_key = excluded.event_key,
            state = excluded.state, name = excluded.name, email = excluded.email, title = excluded.title,
            employee_number = excluded.employee_number, suspended = excluded.suspended,
            deleted_at = excluded.deleted_at, updated_at = clock_timestamp()
        WHERE (excluded.version, excluded.event_time, excluded.event_key) > (u.version, u.event_time, u.event_key)
          AND (u.tenant, u.directory, u.id) IN (SELECT tenant, directory, id FROM old)
        RETURNING tenant, directory, id
    )
    SELECT i.n, w.id IS NOT NULL AS written, o.version, o.event_time, o.event_key, o.state, o.name, o.email, o.title,
           o.employee_number, o.suspended
    FROM incoming i
    LEFT JOIN old o USING (tenant, directory, id)
    LEFT JOIN written w USING (tenant, directory, id)";

// Makes sure that there is a row to wait at, and locks it against whoever makes it live.
const HOLD: &str = "
    INSERT INTO onceflow.org_user AS u (tenant, directory, id, version, event_time, event_key, state)
    VALUES ($1, $2, $3, 0, 'epoch', '', 'unknown')
    ON CONFLICT (tenant, directory, id) DO UPDATE SET version = u.version
    RETURNING state = 'live'";

/// A user as the newest event of a batch has them; the tombstone where `values` is `None`.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Newest<'a> {
    pub(in super::super) tenant: &'a str,
    pub(in super::super) directory: &'a str,
    pub(in super::super) id: &'a str,
    pub(in super::super) stamp: &'a Stamp,
    pub(in super::super) values: Option<&'a User>,
}

/// A stored user with the stamp of the event that made them so.
pub(super) type Stored = (Before<User>, Stamp);

/// Writes different users, each unless something newer is stored. Returns each row as it was.
pub(super) async fn write(tx: &Tx, users: &[Newest<'_>]) -> Result<Vec<Option<Stored>>, DbError> {
    let mut stored = vec![None; users.len()];
    let mut left: Vec<usize> = (0..users.len()).collect();
    // A second time only for rows that appeared after the first one's snapshot; then the second sees them.
    for _ in 0..2 {
        let these: Vec<_> = left.iter().map(|&n| users[n]).collect();
        let mut unseen = Vec::new();
        for row in write_once(tx, &these).await? {
            let n = usize::try_from(row.get::<_, i64>(0) - 1).ok().and_then(|n| left.get(n).copied());
            let n = n.ok_or_else(|| DbError::shape("org_user: an ordinal that was not sent"))?;
            stored[n] = before(&row)?;
            if stored[n].is_none() && !row.get::<_, bool>(1) {
                unseen.push(n);
            }
        }
        if unseen.is_empty() {
            return Ok(stored);
        }
        left = unseen;
    }
    Err(DbError::shape("org_user: a committed row can't be seen"))
}

async fn write_once(tx: &Tx, users: &[Newest<'_>]) -> Result<Vec<Row>, DbError> {
    fn column<'a, T>(users: &[Newest<'a>], value: impl Fn(&Newest<'a>) -> T) -> Vec<T> {
        users.iter().map(value).collect()
    }
    let state = |u: &Newest<'_>| if u.values.is_some() { State::Live.as_str() } else { State::Deleted.as_str() };
    let params: &[&(dyn ToSql + Sync)] = &[
        &column(users, |u| u.tenant),
        &column(users, |u| u.directory),
        &column(users, |u| u.id),
        &column(users, |u| u.stamp.version),
        &column(users, |u| u.stamp.time),
        &column(users, |u| u.stamp.key.as_str()),
        &column(users, state),
        &column(users, |u| u.values.map(|v| v.name.as_str())),
        &column(users, |u| u.values.map(|v| v.email.as_str())),
        &column(users, |u| u.values.map(|v| v.title.as_str())),
        &column(users, |u| u.values.map(|v| v.employee_number.as_str())),
        &column(users, |u| u.values.is_some_and(|v| v.suspended)),
    ];
    tx.query(WRITE, params).await
}

/// By position: a name would be searched for in every row.
fn before(row: &Row) -> Result<Option<Stored>, DbError> {
    let Some(state) = row.get::<_, Option<&str>>(5) else { return Ok(None) };
    let text = |column: usize| row.get::<_, Option<String>>(column).unwrap_or_default();
    let version = row.get(2);
    let before = Before {
        state: State::parse(state).ok_or_else(|| DbError::shape(format!("org_user.state {state}")))?,
        version,
        values: User {
            name: text(6),
            email: text(7),
            title: text(8),
            employee_number: text(9),
            suspended: row.get(10),
        },
    };
    Ok(Some((before, Stamp { version, time: row.get(3), key: row.get(4) })))
}

/// Locks the user against becoming live, as an unknown one if need be, and tells whether they are live already.
pub(in super::super) async fn hold(work: &Work<'_>, id: &str) -> Result<bool, DbError> {
    Ok(work.tx.query_one(HOLD, &[&work.tenant, &work.directory, &id]).await?.get(0))
}

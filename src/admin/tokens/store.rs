//! All SQL of `onceflow.api_token`.

use tokio_postgres::Row;
use uuid::Uuid;

use super::super::wire::{Role, Token};
use crate::db::{DbError, Tx};

const OWNER: &str = "SELECT name, role FROM onceflow.api_token WHERE hash = $1 AND revoked_at IS NULL";

const ANY: &str = "SELECT EXISTS (SELECT FROM onceflow.api_token WHERE revoked_at IS NULL)";

/// Who makes or ends tokens does so alone: whether an admin is left is asked first.
const ALONE: &str = "LOCK TABLE onceflow.api_token IN SHARE ROW EXCLUSIVE MODE";

/// Valid ones: admins, others, and whether the one of this name is an admin's.
const LEFT: &str = "
    SELECT count(*) FILTER (WHERE role = 'admin'), count(*) FILTER (WHERE role <> 'admin'),
           coalesce(bool_or(role = 'admin') FILTER (WHERE name = $1), false)
    FROM onceflow.api_token WHERE revoked_at IS NULL";

const LIST: &str = "
    SELECT id, name, role, created_at, created_by, revoked_at, revoked_by
    FROM onceflow.api_token ORDER BY created_at DESC, id LIMIT 1000";

const INSERT: &str = "
    INSERT INTO onceflow.api_token (id, name, role, hash, created_by) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (name) WHERE revoked_at IS NULL DO NOTHING
    RETURNING id, name, role, created_at, created_by, revoked_at, revoked_by";

const REVOKE: &str = "
    UPDATE onceflow.api_token SET revoked_at = clock_timestamp(), revoked_by = $2
    WHERE name = $1 AND revoked_at IS NULL
    RETURNING id, name, role, created_at, created_by, revoked_at, revoked_by";

const AUDIT: &str = "
    INSERT INTO onceflow.audit (id, actor, action, subject, detail) VALUES ($1, $2, $3, $4, jsonb_build_object('role', $5::text))";

pub(super) async fn owner(tx: &Tx, hash: &[u8]) -> Result<Option<(String, Role)>, DbError> {
    let row = tx.query_opt(OWNER, &[&hash]).await?;
    row.map(|row| Ok((row.get(0), role(row.get(1))?))).transpose()
}

pub(super) async fn any(tx: &Tx) -> Result<bool, DbError> {
    Ok(tx.query_one(ANY, &[]).await?.get(0))
}

/// Valid tokens as they are now, and as they stay until the transaction ends.
pub(super) async fn left(tx: &Tx, name: &str) -> Result<Left, DbError> {
    tx.execute(ALONE, &[]).await?;
    let row = tx.query_one(LEFT, &[&name]).await?;
    Ok(Left { admins: row.get(0), others: row.get(1), is_admin: row.get(2) })
}

/// Valid tokens.
pub(super) struct Left {
    pub(super) admins: i64,
    pub(super) others: i64,
    /// Whether the one that was asked for is an admin's.
    pub(super) is_admin: bool,
}

pub(super) async fn list(tx: &Tx) -> Result<Vec<Token>, DbError> {
    tx.query(LIST, &[]).await?.iter().map(token).collect()
}

/// `what` is name, role and actor.
pub(super) async fn insert(tx: &Tx, id: Uuid, what: (&str, Role, &str), hash: &[u8]) -> Result<Option<Token>, DbError> {
    let (name, role, actor) = what;
    let row = tx.query_opt(INSERT, &[&id, &name, &role.as_str(), &hash, &actor]).await?;
    row.as_ref().map(token).transpose()
}

pub(super) async fn revoke(tx: &Tx, name: &str, actor: &str) -> Result<Option<Token>, DbError> {
    tx.query_opt(REVOKE, &[&name, &actor]).await?.as_ref().map(token).transpose()
}

/// `what` is actor, action and the token's name.
pub(super) async fn audit(tx: &Tx, what: (&str, &str, &str), role: Role) -> Result<(), DbError> {
    let (actor, action, name) = what;
    tx.execute(AUDIT, &[&Uuid::now_v7(), &actor, &action, &name, &role.as_str()]).await?;
    Ok(())
}

fn token(row: &Row) -> Result<Token, DbError> {
    Ok(Token {
        id: row.get(0),
        name: row.get(1),
        role: role(row.get(2))?,
        created_at: row.get(3),
        created_by: row.get(4),
        revoked_at: row.get(5),
        revoked_by: row.get(6),
    })
}

fn role(text: &str) -> Result<Role, DbError> {
    Role::parse(text).ok_or_else(|| DbError::shape(format!("api_token.role {text}")))
}

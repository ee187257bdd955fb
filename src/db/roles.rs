//! The group roles of an installation, each with no more rights than its work needs. What they may do stands in `roles.sql`.

use std::collections::BTreeSet;

use deadpool_postgres::Object;
use serde::Serialize;
use tokio_postgres::Client;

use super::error::DbError;
use super::pool::Pool;

/// For the usual names; see [`Roles::sql`].
const TEMPLATE: &str = include_str!("roles.sql");
/// What follows the prefix in the names.
const KINDS: [&str; 4] = ["owner", "app", "relay", "readonly"];
const USUAL_PREFIX: &str = "onceflow";
/// PostgreSQL cuts names at 63 bytes.
const LONGEST_PREFIX: usize = 50;

const MAY_WRITE: &str = "SET default_transaction_read_only = off";
const KNOWN: &str = "SELECT rolname::text FROM pg_roles WHERE rolname = ANY ($1::text[])";

/// Grants of roles and of everybody on the schema, its tables, columns, sequences and functions, and on the schema public.
const GRANTS: &str = "
    WITH acl (object, grantee, privilege) AS (
        SELECT 'schema ' || n.nspname, a.grantee, a.privilege_type
        FROM pg_namespace n CROSS JOIN LATERAL aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
        WHERE n.nspname IN ('onceflow', 'public')
        UNION ALL
        SELECT CASE c.relkind WHEN 'S' THEN 'sequence ' ELSE 'table ' END || c.relname, a.grantee, a.privilege_type
        FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) a
        WHERE c.relnamespace = 'onceflow'::regnamespace AND c.relkind IN ('r', 'p', 'S')
        UNION ALL
        SELECT 'column ' || c.relname || '.' || t.attname, a.grantee, a.privilege_type
        FROM pg_attribute t JOIN pg_class c ON c.oid = t.attrelid CROSS JOIN LATERAL aclexplode(t.attacl) a
        WHERE c.relnamespace = 'onceflow'::regnamespace
        UNION ALL
        SELECT 'function ' || p.proname, a.grantee, a.privilege_type
        FROM pg_proc p CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
        WHERE p.pronamespace = 'onceflow'::regnamespace
    )
    SELECT coalesce(r.rolname, 'PUBLIC')::text, acl.privilege, acl.object
    FROM acl LEFT JOIN pg_roles r ON r.oid = acl.grantee
    WHERE acl.grantee = 0 OR r.rolname = ANY ($1::text[])";

/// Logins that still are what the owner is.
const OWNERS: &str = "
    SELECT m.rolname::text FROM pg_roles m
    WHERE m.rolcanlogin AND NOT m.rolsuper AND pg_has_role(m.oid, $1::text::regrole::oid, 'MEMBER') ORDER BY 1";

/// The names of the roles.
#[derive(Debug, Clone)]
pub struct Roles {
    prefix: String,
}

/// One privilege of one role.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Grant {
    /// Whose, or `PUBLIC`.
    pub role: String,
    /// E.g. `SELECT`.
    pub privilege: String,
    /// E.g. `table inbox`.
    pub object: String,
}

/// What became different.
#[derive(Debug, Clone, Serialize)]
pub struct Changes {
    /// Roles that did not exist.
    pub created: Vec<String>,
    /// Privileges that they did not have.
    pub granted: Vec<Grant>,
    /// Privileges that they, or everybody, had and have no longer.
    pub revoked: Vec<Grant>,
    /// Logins that may change the schema, superusers aside.
    pub owners: Vec<String>,
    /// Whether everybody may still look into the schema public, because somebody uses it.
    pub public_is_open: bool,
}

impl Roles {
    /// Roles whose names begin with `prefix`.
    ///
    /// # Errors
    /// What is wrong with the prefix.
    pub fn new(prefix: &str) -> Result<Self, String> {
        let begins = prefix.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
        let is_plain = prefix.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        if begins && is_plain && prefix.len() <= LONGEST_PREFIX {
            return Ok(Self { prefix: prefix.to_owned() });
        }
        Err(format!("{prefix:?}: lower-case letters, digits and _, at most {LONGEST_PREFIX}, no digit first"))
    }

    fn name(&self, kind: &str) -> String {
        format!("{}_{kind}", self.prefix)
    }

    fn names(&self) -> Vec<String> {
        KINDS.iter().map(|kind| self.name(kind)).collect()
    }

    /// All that [`apply`](Self::apply) does, for `psql`.
    pub fn sql(&self) -> String {
        // The names hold nothing that would have to be quoted.
        KINDS
            .iter()
            .fold(TEMPLATE.to_owned(), |sql, kind| sql.replace(&format!("{USUAL_PREFIX}_{kind}"), &self.name(kind)))
    }

    /// Makes the roles where they are missing and gives each of them what it needs, and nothing else. All or nothing.
    ///
    /// # Errors
    /// The database is away, or says no.
    pub async fn apply(&self, pool: &Pool) -> Result<Changes, DbError> {
        let connection = pool.connection().await?;
        let applied = self.apply_on(&connection).await;
        // Its session can write, and a failed statement leaves an open transaction.
        drop(Object::take(connection));
        applied.map_err(|e| DbError::postgres("set up the roles", e))
    }

    async fn apply_on(&self, client: &Client) -> Result<Changes, tokio_postgres::Error> {
        let (known, before) = (self.known(client).await?, self.grants(client).await?);
        client.batch_execute(MAY_WRITE).await?;
        client.batch_execute(&self.sql()).await?;
        let after = self.grants(client).await?;
        let owners = client.query(OWNERS, &[&self.name("owner")]).await?;
        let open = |grant: &Grant| grant.role == "PUBLIC" && grant.object == "schema public";
        Ok(Changes {
            created: self.names().into_iter().filter(|name| !known.contains(name)).collect(),
            granted: after.difference(&before).cloned().collect(),
            revoked: before.difference(&after).cloned().collect(),
            owners: owners.iter().map(|row| row.get(0)).collect(),
            public_is_open: after.iter().any(open),
        })
    }

    async fn known(&self, client: &Client) -> Result<BTreeSet<String>, tokio_postgres::Error> {
        Ok(client.query(KNOWN, &[&self.names()]).await?.iter().map(|row| row.get(0)).collect())
    }

    /// What the roles may do, apart from the owner, who may do everything.
    async fn grants(&self, client: &Client) -> Result<BTreeSet<Grant>, tokio_postgres::Error> {
        let but_owner: Vec<String> = KINDS.iter().skip(1).map(|kind| self.name(kind)).collect();
        let rows = client.query(GRANTS, &[&but_owner]).await?;
        Ok(rows.iter().map(|row| Grant { role: row.get(0), privilege: row.get(1), object: row.get(2) }).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_that_would_have_to_be_quoted_is_refused() {
        for good in ["onceflow", "shop_a", "_x1"] {
            assert!(Roles::new(good).is_ok(), "{good}");
        }
        for bad in ["", "1a", "a b", "a\"b", "A", "a;drop", "ü", &"x".repeat(51)] {
            assert!(Roles::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn another_prefix_changes_every_role_and_nothing_of_the_schema() {
        let sql = Roles::new("shop").unwrap().sql();
        for kind in KINDS {
            assert!(sql.contains(&format!("shop_{kind}")) && !sql.contains(&format!("onceflow_{kind}")), "{kind}");
        }
        assert!(sql.contains("onceflow.outbox_relay"));
        assert_eq!(Roles::new("onceflow").unwrap().sql(), TEMPLATE);
    }
}

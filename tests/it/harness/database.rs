//! A database of its own for each test, copied from one that is migrated once per process.

use std::time::Duration;

use onceflow::db::{self, Pool, Settings};
use onceflow::tls::Tls;
use tokio::sync::OnceCell;
use tokio_postgres::{Client, NoTls};

use super::servers::{Addresses, servers};
use super::{in_background, unique};

const PREFIX: &str = "it_";
static TEMPLATE: OnceCell<String> = OnceCell::const_new();

/// A fresh, migrated database; dropped with this value.
#[derive(Debug)]
pub(crate) struct Database {
    name: String,
    url: String,
}

impl Database {
    pub(crate) async fn new() -> Self {
        let template = TEMPLATE.get_or_init(template).await;
        let database = Self::named(unique(PREFIX)).await;
        let admin = connect(&servers().await.database_url).await;
        let create = format!("CREATE DATABASE {} TEMPLATE {template}", database.name);
        admin.batch_execute(&create).await.unwrap();
        database
    }

    /// A fresh database without any table, for tests of the migrations.
    pub(crate) async fn empty() -> Self {
        let database = Self::named(unique(PREFIX)).await;
        let admin = connect(&servers().await.database_url).await;
        admin.batch_execute(&format!("CREATE DATABASE {}", database.name)).await.unwrap();
        database
    }

    /// A name for the roles of this database, which all databases of the server share.
    pub(crate) fn role_prefix(&self) -> &str {
        &self.name
    }

    async fn named(name: String) -> Self {
        let url = in_database(&servers().await.database_url, &name);
        Self { name, url }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// A new pool on this database.
    pub(crate) fn pool(&self) -> Pool {
        pool(&self.url)
    }

    /// A connection of its own, to ask what is stored.
    pub(crate) async fn client(&self) -> Client {
        connect(&self.url).await
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let name = std::mem::take(&mut self.name);
        let admin_url = in_database(&self.url, "postgres");
        in_background(move || async move { drop_database(&admin_url, &name).await });
    }
}

async fn template() -> String {
    let name = unique(PREFIX);
    let addresses = servers().await;
    let admin = connect(&addresses.database_url).await;
    admin.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
    let pool = pool(&in_database(&addresses.database_url, &name));
    db::migrate(&pool).await.unwrap();
    pool.close();
    name
}

/// Removes what earlier test processes could not.
pub(super) async fn remove_old(addresses: &Addresses) {
    let admin = connect(&addresses.database_url).await;
    let found =
        admin.query("SELECT datname FROM pg_database WHERE starts_with(datname, $1)", &[&PREFIX]).await.unwrap();
    for row in found {
        drop_database(&addresses.database_url, row.get(0)).await;
    }
    let roles =
        admin.query("SELECT rolname::text FROM pg_roles WHERE starts_with(rolname, $1)", &[&PREFIX]).await.unwrap();
    for row in roles {
        admin.batch_execute(&format!("DROP ROLE {}", row.get::<_, &str>(0))).await.unwrap();
    }
}

async fn drop_database(admin_url: &str, name: &str) {
    // Best effort: the server may be stopping already.
    if let Ok((client, connection)) = tokio_postgres::connect(admin_url, NoTls).await {
        tokio::spawn(connection);
        let _ = client.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await;
    }
}

pub(crate) async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

pub(crate) fn pool(url: &str) -> Pool {
    Pool::new(&Settings {
        url: url.to_owned().into(),
        max_connections: 8,
        statement_timeout: Duration::from_secs(30),
        allow_plaintext: false,
        tls: Tls::default(),
        application_name: "onceflow-test".into(),
        rows_are_short_lived: false,
    })
    .unwrap()
}

fn in_database(url: &str, name: &str) -> String {
    let mut url = url::Url::parse(url).unwrap();
    url.set_path(name);
    url.into()
}

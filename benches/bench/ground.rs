//! The private servers of a run, and a fresh database and virtual host for each measurement.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use onceflow::db::{self, Pool, Settings};
use onceflow::dev::servers::{Options, Servers};
use onceflow::tls::Tls;
use reqwest::{Client as Http, Method};
use serde_json::{Value, json};
use tokio_postgres::{Client, NoTls};

/// Names the servers' directory below `.onceflow/`.
const PLACE: &str = "bench";
const TEMPLATE: &str = "bench_template";
const PREFIX: &str = "bench_run_";

/// Both servers, empty but for the migrated template.
pub(crate) struct Ground {
    servers: Servers,
    admin: Client,
    http: Http,
    used: u32,
}

/// Where one measurement takes place.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) database: String,
    pub(crate) database_url: String,
    pub(crate) vhost: String,
    pub(crate) amqp_url: String,
}

/// Where the repository is: the programs and the documents are found from here.
pub(crate) fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where logs and results go.
pub(crate) fn output() -> anyhow::Result<PathBuf> {
    let path = project().join("target/bench");
    std::fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
    Ok(path)
}

impl Ground {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let servers =
            Servers::start(project(), Options { fresh_broker: true, ..Options::both(PLACE) }, &|line| crate::say(line))
                .await?;
        let admin = connect(&servers.database_url().context("no database")?).await?;
        let ground = Self { servers, admin, http: Http::new(), used: 0 };
        ground.remove_old().await?;
        ground.make_template().await?;
        Ok(ground)
    }

    /// An empty, migrated database and an empty virtual host.
    pub(crate) async fn site(&mut self) -> anyhow::Result<Site> {
        self.used += 1;
        let name = format!("{PREFIX}{}", self.used);
        self.admin.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE {TEMPLATE}")).await?;
        self.manage(Method::PUT, &format!("/api/vhosts/{name}"), json!({})).await?;
        let everything = json!({"configure": ".*", "write": ".*", "read": ".*"});
        self.manage(Method::PUT, &format!("/api/permissions/{name}/onceflow"), everything).await?;
        Ok(Site {
            database_url: with_path(&self.servers.database_url().context("no database")?, &name)?,
            amqp_url: with_path(&self.servers.amqp_url().context("no broker")?, &name)?,
            vhost: name.clone(),
            database: name,
        })
    }

    /// Every measurement begins with nothing left to write of the one before.
    pub(crate) async fn settle(&self) -> anyhow::Result<()> {
        self.admin.batch_execute("CHECKPOINT").await?;
        // What was filled in is history: its last gigabyte must not go to the disk beside what is measured.
        let synced = tokio::process::Command::new("sync").status().await.context("run sync")?;
        ensure!(synced.success(), "sync ended with {synced}");
        Ok(())
    }

    pub(crate) async fn clear(&self, site: &Site) -> anyhow::Result<()> {
        self.manage(Method::DELETE, &format!("/api/vhosts/{}", site.vhost), json!({})).await?;
        drop_database(&self.admin, &site.database).await
    }

    /// Versions of PostgreSQL and RabbitMQ.
    pub(crate) async fn versions(&self) -> anyhow::Result<(String, String)> {
        let postgres: String = self.admin.query_one("SHOW server_version", &[]).await?.get(0);
        let overview: Value = serde_json::from_str(&self.manage(Method::GET, "/api/overview", json!({})).await?)?;
        let rabbitmq = overview["rabbitmq_version"].as_str().unwrap_or("unknown").to_owned();
        Ok((postgres, rabbitmq))
    }

    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        drop(self.admin);
        Ok(self.servers.stop().await?)
    }

    async fn make_template(&self) -> anyhow::Result<()> {
        self.admin.batch_execute(&format!("CREATE DATABASE {TEMPLATE}")).await?;
        let url = with_path(&self.servers.database_url().context("no database")?, TEMPLATE)?;
        let pool = Pool::new(&Settings {
            url: url.into(),
            max_connections: 1,
            statement_timeout: Duration::from_secs(60),
            allow_plaintext: false,
            tls: Tls::default(),
            application_name: "onceflow bench".into(),
            rows_are_short_lived: false,
        })?;
        db::migrate(&pool).await?;
        pool.close();
        Ok(())
    }

    /// What a run that was killed left behind.
    async fn remove_old(&self) -> anyhow::Result<()> {
        let old = self.admin.query("SELECT datname FROM pg_database WHERE starts_with(datname, 'bench_')", &[]).await?;
        for row in old {
            drop_database(&self.admin, row.get(0)).await?;
        }
        let vhosts: Value = serde_json::from_str(&self.manage(Method::GET, "/api/vhosts", json!({})).await?)?;
        for name in vhosts.as_array().into_iter().flatten().filter_map(|v| v["name"].as_str()) {
            if name.starts_with(PREFIX) {
                self.manage(Method::DELETE, &format!("/api/vhosts/{name}"), json!({})).await?;
            }
        }
        Ok(())
    }

    async fn manage(&self, method: Method, path: &str, body: Value) -> anyhow::Result<String> {
        let base = self.servers.management_url().context("no broker")?;
        let answer = self.http.request(method, format!("{base}{path}")).json(&body).send().await?;
        let status = answer.status();
        if !status.is_success() {
            bail!("RabbitMQ's management API: {path}: {status}");
        }
        Ok(answer.text().await?)
    }
}

async fn drop_database(admin: &Client, name: &str) -> anyhow::Result<()> {
    Ok(admin.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await?)
}

/// A connection of the bench's own.
pub(crate) async fn connect(url: &str) -> anyhow::Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.context("connect to PostgreSQL")?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            crate::say(&format!("a connection to PostgreSQL ended: {error}"));
        }
    });
    Ok(client)
}

fn with_path(url: &str, path: &str) -> anyhow::Result<String> {
    let mut url = url::Url::parse(url)?;
    url.set_path(path);
    Ok(url.into())
}

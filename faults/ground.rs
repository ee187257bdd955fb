//! The private servers of a run, and a database, a virtual host and accounts of its own for each fault.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use onceflow::db::{self, Pool, Settings};
use onceflow::dev::servers::{Cluster, Options, RabbitMq, Servers};
use onceflow::tls::Tls;
use reqwest::{Client as Http, Method};
use serde_json::{Value, json};
use tokio::sync::RwLock;
use tokio_postgres::{Client, NoTls};

use crate::disk::Disk;

/// Names the servers' directory below `.onceflow/`.
const PLACE: &str = "faults";
/// The same for a cluster.
const CLUSTER_PLACE: &str = "faults-cluster";
const TEMPLATE: &str = "faults_template";
/// Of the accounts that the replicas use; the servers are private, and gone after the run.
const PASSWORD: &str = "secret-canary-91c4";
/// What a service may do, and nothing that it need not do.
const GRANTS: &str = "
    GRANT USAGE ON SCHEMA onceflow, public TO {role};
    GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA onceflow TO {role};
    GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role};
    GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA onceflow TO {role};
    GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA onceflow TO {role}";

/// Both servers. Faults that stop them hold the lock for writing.
pub(crate) struct Ground {
    pub(crate) servers: RwLock<Servers>,
    database_url: String,
    amqp_url: String,
    management_url: String,
    http: Http,
    used: AtomicU32,
}

/// Where one fault takes place.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) name: String,
    /// As the owner of everything: for producer, sink and checker.
    pub(crate) database_url: String,
    pub(crate) amqp_url: String,
    /// As the service's own accounts, which a fault may lock out.
    pub(crate) service_database_url: String,
    pub(crate) service_amqp_url: String,
    /// Where the broker's nodes listen: one, or as many as its cluster has.
    pub(crate) nodes: Vec<u16>,
    /// Of the first node.
    management_url: String,
    /// Configuration, logs and journals.
    pub(crate) folder: PathBuf,
}

/// Where the repository is.
pub(crate) fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where logs, journals and results go.
pub(crate) fn output() -> PathBuf {
    project().join("target/faults")
}

/// What must be seen nowhere.
pub(crate) fn secrets() -> [&'static str; 1] {
    [PASSWORD]
}

impl Ground {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let options = Options { fresh_broker: true, ..Options::both(PLACE) };
        let servers = Servers::start(project(), options, &|line| crate::say(line)).await?;
        let database_url = servers.database_url().context("no database")?;
        let amqp_url = servers.amqp_url().context("no broker")?;
        let management_url = servers.management_url().context("no broker")?;
        let (http, used) = (Http::builder().timeout(Duration::from_secs(20)).build()?, AtomicU32::new(0));
        let ground = Self { servers: RwLock::new(servers), database_url, amqp_url, management_url, http, used };
        ground.remove_old().await?;
        ground.make_template().await?;
        Ok(ground)
    }

    /// An empty, migrated database, an empty virtual host, and accounts with no more rights than a service needs.
    pub(crate) async fn site(&self, label: &str) -> anyhow::Result<Site> {
        let name = format!("faults_{}", self.used.fetch_add(1, Ordering::SeqCst));
        let admin = connect(&self.database_url).await?;
        admin.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE {TEMPLATE}")).await?;
        admin.batch_execute(&format!("CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'")).await?;
        let database_url = with_path(&self.database_url, &name)?;
        let own = connect(&database_url).await?;
        own.batch_execute(&GRANTS.replace("{role}", &name)).await?;
        self.make_vhost(&self.management_url, &name).await?;
        let folder = output().join(label);
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let amqp_url = with_path(&self.amqp_url, &name)?;
        let service_database_url = with_user(&database_url, &name)?;
        let service_amqp_url = with_user(&amqp_url, &name)?;
        let nodes = vec![port_of(&amqp_url)?];
        let management_url = self.management_url.clone();
        Ok(Site { name, database_url, amqp_url, service_database_url, service_amqp_url, nodes, management_url, folder })
    }

    /// Starts a cluster, and moves the site from the one broker there.
    pub(crate) async fn cluster(&self, site: &mut Site) -> anyhow::Result<Cluster> {
        let cluster = Cluster::start(project(), CLUSTER_PLACE, &|line| crate::say(line)).await?;
        let first = cluster.nodes.first().context("a cluster without nodes")?;
        site.management_url = first.management_url();
        self.make_vhost(&site.management_url, &site.name).await?;
        site.amqp_url = with_path(&first.amqp_url(), &site.name)?;
        site.service_amqp_url = with_user(&site.amqp_url, &site.name)?;
        site.nodes = cluster.nodes.iter().map(RabbitMq::port).collect();
        Ok(cluster)
    }

    /// A virtual host with a user of its own, which may do everything in it for now.
    async fn make_vhost(&self, api: &str, name: &str) -> anyhow::Result<()> {
        self.ask(api, Method::PUT, &format!("vhosts/{name}"), json!({})).await?;
        self.ask(api, Method::PUT, &format!("users/{name}"), json!({"password": PASSWORD, "tags": ""})).await?;
        for user in [name, "onceflow"] {
            self.ask(api, Method::PUT, &format!("permissions/{name}/{user}"), rights(".*")).await?;
        }
        Ok(())
    }

    /// What a user may do in a virtual host: a pattern of names, `^$` for none.
    pub(crate) async fn permit(&self, vhost: &str, user: &str, pattern: &str) -> anyhow::Result<()> {
        self.manage(Method::PUT, &format!("permissions/{vhost}/{user}"), rights(pattern)).await.map(drop)
    }

    pub(crate) async fn clear(&self, site: &Site) -> anyhow::Result<()> {
        let name = &site.name;
        self.manage(Method::DELETE, &format!("vhosts/{name}"), json!({})).await?;
        self.manage(Method::DELETE, &format!("users/{name}"), json!({})).await?;
        let admin = connect(&self.database_url).await?;
        admin.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await?;
        admin.batch_execute(&format!("DROP ROLE IF EXISTS {name}")).await?;
        admin.batch_execute(&format!("DROP TABLESPACE IF EXISTS {name}")).await?;
        let directory = self.servers.read().await.directory().to_owned();
        Disk::of(&directory, name).remove().await
    }

    /// Asks the broker's management API.
    pub(crate) async fn manage(&self, method: Method, path: &str, body: Value) -> anyhow::Result<String> {
        self.ask(&self.management_url, method, path, body).await
    }

    /// Asks the management API of any node.
    pub(crate) async fn ask(&self, api: &str, method: Method, path: &str, body: Value) -> anyhow::Result<String> {
        let url = format!("{api}/api/{path}");
        let answer = self.http.request(method, url).json(&body).send().await.context("ask the broker's API")?;
        let status = answer.status();
        let text = answer.text().await?;
        if !status.is_success() {
            bail!("the broker's API said {status} to {path}: {text}");
        }
        Ok(text)
    }

    /// What the broker holds of a site, one line of JSON each, for who looks into a failure.
    pub(crate) async fn holds(&self, site: &Site) -> String {
        let mut said = String::new();
        for what in ["queues", "consumers", "bindings", "connections", "channels"] {
            let path = if matches!(what, "connections" | "channels") {
                format!("vhosts/{}/{what}", site.name)
            } else {
                format!("{what}/{}", site.name)
            };
            let answer = self.ask(&site.management_url, Method::GET, &path, json!({})).await;
            said += &format!("{path}: {}\n", answer.unwrap_or_else(|error| format!("{error:#}")));
        }
        said
    }

    /// Runs `rabbitmqctl`.
    pub(crate) async fn ctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let servers = self.servers.read().await;
        Ok(servers.rabbitmq.as_ref().context("no broker")?.ctl(arguments).await?)
    }

    /// Versions of PostgreSQL and RabbitMQ.
    pub(crate) async fn versions(&self) -> anyhow::Result<(String, String)> {
        let postgres = connect(&self.database_url).await?.query_one("SHOW server_version", &[]).await?.get(0);
        let overview: Value = serde_json::from_str(&self.manage(Method::GET, "overview", json!({})).await?)?;
        Ok((postgres, overview["rabbitmq_version"].as_str().unwrap_or("unknown").to_owned()))
    }

    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        Ok(self.servers.into_inner().stop().await?)
    }

    async fn make_template(&self) -> anyhow::Result<()> {
        let admin = connect(&self.database_url).await?;
        admin.batch_execute(&format!("CREATE DATABASE {TEMPLATE}")).await?;
        let pool = Pool::new(&Settings {
            url: with_path(&self.database_url, TEMPLATE)?.into(),
            max_connections: 1,
            statement_timeout: Duration::from_secs(60),
            allow_plaintext: false,
            tls: Tls::default(),
            application_name: "onceflow faults".into(),
            rows_are_short_lived: false,
        })?;
        db::migrate(&pool).await?;
        pool.close();
        Ok(())
    }

    /// What a run that was killed left behind; the broker begins anew by itself.
    async fn remove_old(&self) -> anyhow::Result<()> {
        let admin = connect(&self.database_url).await?;
        for row in admin.query("SELECT datname FROM pg_database WHERE starts_with(datname, 'faults_')", &[]).await? {
            let name: String = row.get(0);
            admin.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await?;
        }
        for row in admin.query("SELECT rolname FROM pg_roles WHERE starts_with(rolname, 'faults_')", &[]).await? {
            let name: String = row.get(0);
            admin.batch_execute(&format!("DROP ROLE {name}")).await?;
        }
        for row in admin.query("SELECT spcname FROM pg_tablespace WHERE starts_with(spcname, 'faults_')", &[]).await? {
            let name: String = row.get(0);
            admin.batch_execute(&format!("DROP TABLESPACE {name}")).await?;
        }
        Disk::remove_all(self.servers.read().await.directory()).await
    }
}

fn rights(pattern: &str) -> Value {
    json!({"configure": pattern, "write": pattern, "read": pattern})
}

/// A connection of the suite's own. Its end shows at its next use.
pub(crate) async fn connect(url: &str) -> anyhow::Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.context("connect to PostgreSQL")?;
    tokio::spawn(connection);
    Ok(client)
}

/// The port in a URL.
pub(crate) fn port_of(url: &str) -> anyhow::Result<u16> {
    url::Url::parse(url)?.port().context("a URL without a port")
}

/// The same URL through another port.
pub(crate) fn with_port(url: &str, port: u16) -> anyhow::Result<String> {
    let mut url = url::Url::parse(url)?;
    url.set_port(Some(port)).map_err(|()| anyhow::anyhow!("a URL without a host"))?;
    Ok(url.into())
}

fn with_path(url: &str, path: &str) -> anyhow::Result<String> {
    let mut url = url::Url::parse(url)?;
    url.set_path(path);
    Ok(url.into())
}

fn with_user(url: &str, user: &str) -> anyhow::Result<String> {
    let mut url = url::Url::parse(url)?;
    let set = url.set_username(user).and_then(|()| url.set_password(Some(PASSWORD)));
    set.map_err(|()| anyhow::anyhow!("a URL without a host"))?;
    Ok(url.into())
}

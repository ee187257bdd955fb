//! `onceflow dev`: servers of its own unless some are given, the service, the demo; everything ends with it.

use std::io::{IsTerminal, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::signal::unix::{SignalKind, signal};

use super::demo::{self, Demo};
use super::servers::{Options, Servers};
use crate::app::App;
use crate::broker::{Link, Purpose};
use crate::config::{self, Config, Role};
use crate::db;
use crate::domains;
use crate::health::Health;

/// Longest wait for the service to be ready once the servers are up.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Where the service listens when nobody else does.
const ADMIN_PORT: u16 = 9463;
const METRICS_PORT: u16 = 9464;
/// The directory of the private servers and of the written configuration.
const NAME: &str = "dev";

/// What the user wants of `onceflow dev`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wishes {
    /// End after the summary.
    pub once: bool,
    /// Only servers and service, no sample world.
    pub no_demo: bool,
}

/// A development session.
#[derive(Debug)]
pub struct Session {
    servers: Option<Servers>,
    config_file: PathBuf,
    config: Config,
    app: App,
}

impl Session {
    /// Runs a whole session. Returns whether the demo's sums added up.
    ///
    /// # Errors
    /// When something can't be started, or stops in the middle.
    pub async fn run(project: &Path, wishes: Wishes) -> anyhow::Result<bool> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let begun = Instant::now();
        let session = tokio::select! {
            session = Self::start(project) => session?,
            _ = interrupt.recv() => bail!("interrupted while starting"),
            _ = terminate.recv() => bail!("terminated while starting"),
        };
        say(&format!("ready after {:.1} s", begun.elapsed().as_secs_f64()));
        let stays = !wishes.once && (std::io::stdout().is_terminal() || wishes.no_demo);
        let played = tokio::select! {
            played = session.play(wishes) => played,
            _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
            _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
        };
        if stays && played.is_ok() {
            session.show_doors();
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
        session.stop().await?;
        played
    }

    async fn start(project: &Path) -> anyhow::Result<Self> {
        let given = (config::variable("ONCEFLOW_AMQP_URL"), config::variable("ONCEFLOW_DATABASE_URL"));
        let servers = match given {
            (Some(_), Some(_)) => {
                say("using the servers of ONCEFLOW_AMQP_URL and ONCEFLOW_DATABASE_URL");
                None
            }
            (amqp, database) => {
                let options =
                    Options { name: NAME, postgres: database.is_none(), rabbitmq: amqp.is_none(), fresh_broker: false };
                say("starting private servers (RabbitMQ takes about ten seconds)");
                Some(Servers::start(project, options, &say).await?)
            }
        };
        let config_file = write_config(project, servers.as_ref()).context("writing the configuration")?;
        let names: Vec<_> = domains::consumers().iter().map(|c| c.name()).collect();
        let config = config::load(Some(&config_file), &names)?;
        let pool = config.database.pool(Role::Admin)?;
        let applied = db::migrate(&pool).await?;
        say(&format!("{} migrations applied", applied.len()));
        let app = App::start(&config, domains::consumers()).await?;
        let session = Self { servers, config_file, config, app };
        session.wait_until_ready().await?;
        say(&format!("{} consumers, relay, health on http://{}", names.len(), session.app.admin));
        Ok(session)
    }

    async fn wait_until_ready(&self) -> anyhow::Result<()> {
        let health = &self.app.health;
        let mut changes = health.subscribe();
        let ready = async {
            while !health.is_ready() {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(READY_WITHIN, ready).await.is_err() {
            bail!("not ready within {} s; still waiting for {}", READY_WITHIN.as_secs(), health.waiting().join("; "));
        }
        Ok(())
    }

    async fn play(&self, wishes: Wishes) -> anyhow::Result<bool> {
        if wishes.no_demo {
            return Ok(true);
        }
        let pool = self.config.database.pool(Role::Admin)?;
        let link = Link::new(self.config.broker.clone(), Purpose::Publish, Arc::new(Health::default()));
        let consumers = domains::consumers().iter().map(|c| c.name()).collect();
        let demo = Demo { config: &self.config, pool: &pool, link: &link, consumers };
        let result = demo::play(demo).await;
        link.close().await;
        result
    }

    fn show_doors(&self) {
        let management = self.servers.as_ref().and_then(Servers::management_url).unwrap_or_default();
        show(&format!(
            "\nIt keeps running; Ctrl-C stops it and everything it started. In another terminal, in this folder:\n\
             \x20 onceflow status                                      what runs and what waits\n\
             \x20 onceflow events publish org.user.upserted.v1         a first event of your own\n\
             \x20 onceflow dlq groups                                  what failed, by cause\n\
             \x20 onceflow dlq replay --reason-code CODE --reason WHY  try again\n\n\
             \x20 API      http://{}/api/v1/status\n\
             \x20 metrics  http://{}/metrics\n\
             \x20 RabbitMQ {management}\n\
             \x20 settings {}",
            self.app.admin,
            self.app.metrics,
            self.config_file.display()
        ));
    }

    async fn stop(self) -> anyhow::Result<()> {
        say("stopping");
        self.app.stop().await;
        if let Some(servers) = self.servers {
            servers.stop().await?;
        }
        say("stopped; nothing is left running");
        Ok(())
    }
}

/// Writes what the command line and a later `onceflow run` need to find this installation.
fn write_config(project: &Path, servers: Option<&Servers>) -> anyhow::Result<PathBuf> {
    let mut text = String::from("# Written by `onceflow dev`; the command line finds it by itself.\n");
    let mut section = |name: &str, key: &str, value: Option<String>| {
        if let Some(value) = value {
            text.push_str(&format!("[{name}]\n{key} = {value:?}\n"));
        }
    };
    section("broker", "url", servers.and_then(Servers::amqp_url));
    section("database", "url", servers.and_then(Servers::database_url));
    let (admin, metrics) = (free_port(ADMIN_PORT)?, free_port(METRICS_PORT)?);
    text.push_str(&format!("[admin]\nlisten = \"127.0.0.1:{admin}\"\nmetrics_listen = \"127.0.0.1:{metrics}\"\n"));
    let directory = project.join(".onceflow").join(NAME);
    std::fs::create_dir_all(&directory)?;
    let file = directory.join("onceflow.toml");
    std::fs::write(&file, text)?;
    Ok(file)
}

/// The wanted port, or the next free one above it.
fn free_port(wanted: u16) -> anyhow::Result<u16> {
    let free = |port: &u16| TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, *port))).is_ok();
    let port = (wanted..wanted + 400).step_by(2).find(free).context("no free port")?;
    if port != wanted {
        say(&format!("port {wanted} is taken, using {port}"));
    }
    Ok(port)
}

fn say(line: &str) {
    // Nobody may be listening any more, which is no reason to stop.
    let _ = writeln!(std::io::stderr().lock(), "onceflow: {line}");
}

fn show(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

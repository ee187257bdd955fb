//! A private RabbitMQ node with its own port mapper (`epmd`).

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use uuid::Uuid;

use super::account::Account;
use super::error::{ServersError, while_doing};
use super::guard::{Guarded, Launch, base_environment};
use super::place::Place;
use super::ports::Ports;

const NAME: &str = "rabbitmq";
const INSTALLED: &str = "/usr/lib/rabbitmq/lib";
/// In the node's directory.
const DATA: &str = "data";
const PLUGINS: [&str; 2] = ["rabbitmq_management", "rabbitmq_consistent_hash_exchange"];
/// A boot takes 7 to 10 s of processor time, which a busy machine stretches; a node that fails ends, and is noticed at once.
const READY_WITHIN: Duration = Duration::from_secs(300);
const MAPPER_READY_WITHIN: Duration = Duration::from_secs(60);
/// One question to a starting node.
const ASK_WITHIN: Duration = Duration::from_secs(2);
/// What an AMQP 0-9-1 client says first; a node that is ready answers with `connection.start`.
const PROTOCOL_HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";

/// A private RabbitMQ node, running or stopped. Its ports, name and data stay the same for the life of this value.
#[derive(Debug)]
pub struct RabbitMq {
    place: Arc<Place>,
    account: Account,
    programs: PathBuf,
    home: PathBuf,
    node: String,
    ports: NodePorts,
    settings: String,
    plugins: Vec<&'static str>,
    mapper: Option<Guarded>,
    process: Option<Guarded>,
}

#[derive(Debug)]
struct NodePorts {
    amqp: u16,
    management: u16,
    distribution: u16,
    mapper: u16,
}

impl RabbitMq {
    pub(super) fn new(place: &Arc<Place>, account: Account, ports: &mut Ports) -> Result<Self, ServersError> {
        let (version, programs) =
            newest_installed(Path::new(INSTALLED)).ok_or(ServersError::Missing("rabbitmq-server"))?;
        let ports = NodePorts {
            amqp: ports.take()?,
            management: ports.take()?,
            distribution: ports.take()?,
            mapper: ports.take()?,
        };
        // A version doesn't always read the data of another.
        let home = place.private_directory(&format!("{NAME}-{version}"), &account)?;
        let hash = Uuid::new_v5(&Uuid::NAMESPACE_URL, place.root().as_os_str().as_encoded_bytes()).simple().to_string();
        let node = format!("onceflow-{}@localhost", &hash[..12]);
        Ok(Self {
            place: Arc::clone(place),
            account,
            programs,
            home,
            node,
            ports,
            settings: String::new(),
            plugins: PLUGINS.to_vec(),
            mapper: None,
            process: None,
        })
    }

    /// Removes the data of earlier runs; only before the first start.
    pub(super) fn forget(&self) -> Result<(), ServersError> {
        match fs::remove_dir_all(self.home.join(DATA)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(while_doing("remove the broker's data")(error))
            }
            _ => Ok(()),
        }
    }

    /// More lines of `rabbitmq.conf`, from the next start on.
    pub fn configure(&mut self, lines: &str) {
        lines.clone_into(&mut self.settings);
    }

    /// One more plugin, from the next start on.
    pub fn enable(&mut self, plugin: &'static str) {
        self.plugins.push(plugin);
    }

    /// `amqp://…` of the default virtual host.
    pub fn amqp_url(&self) -> String {
        format!("amqp://onceflow:{}@127.0.0.1:{}/%2f", self.place.secret(), self.ports.amqp)
    }

    /// `http://…` of the management API, with credentials.
    pub fn management_url(&self) -> String {
        format!("http://onceflow:{}@127.0.0.1:{}", self.place.secret(), self.ports.management)
    }

    /// The AMQP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.ports.amqp
    }

    /// Starts the node, after a stop with the same data on the same ports, and waits until it takes connections.
    ///
    /// # Errors
    /// With the end of its log when it does not come up.
    pub async fn start(&mut self) -> Result<(), ServersError> {
        self.write_configuration()?;
        if self.mapper.is_none() {
            self.mapper = Some(self.start_mapper().await?);
        }
        let mut process = Guarded::spawn(&self.place, self.launch())?;
        let probe = Probe::new(self)?;
        process.wait_until(READY_WITHIN, |_| probe.is_ready()).await?;
        self.process = Some(process);
        Ok(())
    }

    /// Stops the node in an orderly way, then its port mapper.
    ///
    /// # Errors
    /// When a guard can't be waited for.
    pub async fn stop(&mut self) -> Result<(), ServersError> {
        if let Some(process) = self.process.take() {
            process.stop().await?;
        }
        match self.mapper.take() {
            Some(mapper) => mapper.stop().await,
            None => Ok(()),
        }
    }

    /// Kills the node (`SIGKILL`): what it had not written is lost.
    ///
    /// # Errors
    /// When the guard can't be reached.
    pub async fn kill(&mut self) -> Result<(), ServersError> {
        match self.process.take() {
            Some(process) => process.end_with("KILL").await,
            None => Ok(()),
        }
    }

    /// Runs `rabbitmqctl` against this node and returns what it printed.
    ///
    /// # Errors
    /// With its output when it fails.
    pub async fn ctl(&self, arguments: &[&str]) -> Result<String, ServersError> {
        let mut command = self.account.prefix();
        command.push(self.program("rabbitmqctl"));
        command.extend(["--quiet", "--node", &self.node].map(str::to_owned));
        command.extend(arguments.iter().map(|&argument| argument.to_owned()));
        let output = Command::new(&command[0])
            .args(&command[1..])
            .env_clear()
            .envs(base_environment(&self.place))
            .envs(self.environment())
            .current_dir(self.place.root())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(while_doing("run rabbitmqctl"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let text = [output.stdout, output.stderr].concat();
        let program = format!("rabbitmqctl {}", arguments.join(" "));
        Err(ServersError::Program { program, output: String::from_utf8_lossy(&text).into_owned() })
    }

    fn program(&self, name: &str) -> String {
        self.programs.join(name).display().to_string()
    }

    fn write_configuration(&self) -> Result<(), ServersError> {
        let settings = format!(
            "listeners.tcp.default = 127.0.0.1:{amqp}\n\
             management.tcp.ip = 127.0.0.1\n\
             management.tcp.port = {management}\n\
             default_user = onceflow\n\
             default_pass = {secret}\n\
             disk_free_limit.absolute = 500MB\n\
             vm_memory_high_watermark.absolute = 2GB\n\
             log.file = false\n\
             log.console = true\n\
             log.console.level = info\n\
             log.console.use_colors = off\n\
             {more}\n",
            amqp = self.ports.amqp,
            management = self.ports.management,
            secret = self.place.secret(),
            more = self.settings,
        );
        let plugins = format!("[{}].\n", self.plugins.join(","));
        for (name, text) in [("rabbitmq.conf", settings), ("enabled_plugins", plugins)] {
            let path = self.home.join(name);
            fs::write(&path, text).map_err(while_doing(format!("write {}", path.display())))?;
            self.account.give(&path)?;
        }
        Ok(())
    }

    /// The node is told to start no `epmd`: one of its own would leave our control as a daemon.
    async fn start_mapper(&self) -> Result<Guarded, ServersError> {
        let port = self.ports.mapper;
        let command = ["epmd", "-port", &port.to_string(), "-address", "127.0.0.1"].map(str::to_owned).to_vec();
        let environment = self.environment();
        let launch = Launch { name: "epmd", account: &self.account, command, environment, stop_signal: "TERM" };
        let mut mapper = Guarded::spawn(&self.place, launch)?;
        let answers = |_| async move { TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok() };
        mapper.wait_until(MAPPER_READY_WITHIN, answers).await?;
        Ok(mapper)
    }

    fn launch(&self) -> Launch<'_> {
        let mut environment = self.environment();
        // The start script then becomes the node, instead of staying beside it as a parent that a signal would hit.
        environment.push(("RABBITMQ_ALLOW_INPUT", "1".into()));
        let command = vec![self.program("rabbitmq-server"), "-noinput".into()];
        Launch { name: NAME, account: &self.account, command, environment, stop_signal: "TERM" }
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let in_home = |name: &str| self.home.join(name).display().to_string();
        vec![
            ("HOME", self.home.display().to_string()),
            ("RABBITMQ_NODENAME", self.node.clone()),
            ("RABBITMQ_MNESIA_BASE", in_home(DATA)),
            ("RABBITMQ_LOG_BASE", in_home("log")),
            ("RABBITMQ_CONFIG_FILE", in_home("rabbitmq.conf")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", in_home("enabled_plugins")),
            ("RABBITMQ_PID_FILE", in_home("pid")),
            ("RABBITMQ_CONF_ENV_FILE", "/dev/null".into()),
            ("RABBITMQ_DIST_PORT", self.ports.distribution.to_string()),
            ("ERL_EPMD_PORT", self.ports.mapper.to_string()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".into()),
            ("ERL_ZFLAGS", "-start_epmd false".into()),
            // Hardly any busy waiting, as the node shares a small machine with us; but some: with none, a boot of 16 s took
            // 45 s on a virtual machine where waking a thread is dear.
            (
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "+sbwt very_short +sbwtdcpu none +sbwtdio very_short -kernel inet_dist_use_interface {127,0,0,1}"
                    .into(),
            ),
        ]
    }
}

/// Asks a starting node whether both of its doors are open; much cheaper than `rabbitmqctl await_startup`, which boots a
/// virtual machine of its own.
struct Probe {
    http: reqwest::Client,
    overview: String,
    amqp_port: u16,
}

impl Probe {
    fn new(node: &RabbitMq) -> Result<Self, ServersError> {
        let http = reqwest::Client::builder().no_proxy().timeout(ASK_WITHIN).build();
        let http = http.map_err(|e| while_doing("prepare an HTTP client")(std::io::Error::other(e)))?;
        Ok(Self { http, overview: format!("{}/api/overview", node.management_url()), amqp_port: node.ports.amqp })
    }

    async fn is_ready(&self) -> bool {
        let managed = self.http.get(&self.overview).send().await.is_ok_and(|answer| answer.status().is_success());
        managed && matches!(tokio::time::timeout(ASK_WITHIN, self.greets()).await, Ok(Ok(())))
    }

    async fn greets(&self) -> std::io::Result<()> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.amqp_port)).await?;
        stream.write_all(PROTOCOL_HEADER).await?;
        stream.read_u8().await.map(drop)
    }
}

/// The programs of the newest `rabbitmq_server-<version>`.
fn newest_installed(directory: &Path) -> Option<(String, PathBuf)> {
    let versions = fs::read_dir(directory).ok()?.filter_map(|entry| {
        let entry = entry.ok()?;
        let version = entry.file_name().to_str()?.strip_prefix("rabbitmq_server-")?.to_owned();
        let programs = entry.path().join("sbin");
        programs.join("rabbitmq-server").is_file().then_some((version, programs))
    });
    versions.max_by_key(|(version, _)| version.split('.').map(|n| n.parse().unwrap_or(0)).collect::<Vec<u32>>())
}

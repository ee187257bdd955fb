//! A private RabbitMQ node, alone with a port mapper of its own or one of a cluster.

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
use super::mapper::Mapper;
use super::place::Place;
use super::ports::Ports;

const NAME: &str = "rabbitmq";
const INSTALLED: &str = "/usr/lib/rabbitmq/lib";
/// In the node's directory.
const DATA: &str = "data";
const PLUGINS: [&str; 2] = ["rabbitmq_management", "rabbitmq_consistent_hash_exchange"];
/// A boot takes 7 to 10 s of processor time, which a busy machine stretches; a node that fails ends, and is noticed at once.
const READY_WITHIN: Duration = Duration::from_secs(300);
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
    /// Names the log and the process.
    name: &'static str,
    node: String,
    /// Configuration and data.
    folder: PathBuf,
    /// Holds the cookie by which nodes and tools know each other.
    home: PathBuf,
    ports: NodePorts,
    settings: String,
    plugins: Vec<&'static str>,
    mapper_port: u16,
    /// Of a node alone: the mapper of a cluster outlives its nodes.
    mapper: Option<Mapper>,
    process: Option<Guarded>,
}

#[derive(Debug)]
struct NodePorts {
    amqp: u16,
    management: u16,
    distribution: u16,
}

impl NodePorts {
    fn take(ports: &mut Ports) -> Result<Self, ServersError> {
        Ok(Self { amqp: ports.take()?, management: ports.take()?, distribution: ports.take()? })
    }
}

impl RabbitMq {
    /// A node alone.
    pub(super) fn new(place: &Arc<Place>, account: Account, ports: &mut Ports) -> Result<Self, ServersError> {
        let (version, programs) = installed()?;
        // A version doesn't always read the data of another.
        let home = place.private_directory(&format!("{NAME}-{version}"), &account)?;
        let node_ports = NodePorts::take(ports)?;
        let mapper = Mapper::new(ports)?;
        Ok(Self {
            place: Arc::clone(place),
            account,
            programs,
            name: NAME,
            node: format!("{}@localhost", common_name(place)),
            folder: home.clone(),
            home,
            ports: node_ports,
            settings: String::new(),
            plugins: PLUGINS.to_vec(),
            mapper_port: mapper.port(),
            mapper: Some(mapper),
            process: None,
        })
    }

    /// One of several nodes that share `home` and a mapper, called `name`.
    pub(super) fn member(
        (place, account): (&Arc<Place>, &Account),
        ports: &mut Ports,
        name: &'static str,
        (home, mapper): (&Path, &Mapper),
    ) -> Result<Self, ServersError> {
        let (version, programs) = installed()?;
        Ok(Self {
            place: Arc::clone(place),
            account: account.clone(),
            programs,
            name,
            node: format!("{}-{name}@localhost", common_name(place)),
            folder: place.private_directory(&format!("{name}-{version}"), account)?,
            home: home.to_owned(),
            ports: NodePorts::take(ports)?,
            settings: String::new(),
            plugins: PLUGINS.to_vec(),
            mapper_port: mapper.port(),
            mapper: None,
            process: None,
        })
    }

    /// Removes the data of earlier runs; only before the first start.
    pub(super) fn forget(&self) -> Result<(), ServersError> {
        match fs::remove_dir_all(self.folder.join(DATA)) {
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

    /// How it is called among nodes.
    pub fn node(&self) -> &str {
        &self.node
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
        if let Some(mapper) = &mut self.mapper {
            mapper.start(&self.place, &self.account).await?;
        }
        let mut process = Guarded::spawn(&self.place, self.launch())?;
        let probe = Probe::new(self)?;
        process.wait_until(READY_WITHIN, |_| probe.is_ready()).await?;
        self.process = Some(process);
        Ok(())
    }

    /// Stops the node in an orderly way, then the port mapper of a node alone.
    ///
    /// # Errors
    /// When a guard can't be waited for.
    pub async fn stop(&mut self) -> Result<(), ServersError> {
        if let Some(process) = self.process.take() {
            process.stop().await?;
        }
        match &mut self.mapper {
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
            let path = self.folder.join(name);
            fs::write(&path, text).map_err(while_doing(format!("write {}", path.display())))?;
            self.account.give(&path)?;
        }
        Ok(())
    }

    fn launch(&self) -> Launch<'_> {
        let mut environment = self.environment();
        // The start script then becomes the node, instead of staying beside it as a parent that a signal would hit.
        environment.push(("RABBITMQ_ALLOW_INPUT", "1".into()));
        let command = vec![self.program("rabbitmq-server"), "-noinput".into()];
        Launch { name: self.name, account: &self.account, command, environment, stop_signal: "TERM" }
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let own = |name: &str| self.folder.join(name).display().to_string();
        vec![
            ("HOME", self.home.display().to_string()),
            ("RABBITMQ_NODENAME", self.node.clone()),
            ("RABBITMQ_MNESIA_BASE", own(DATA)),
            ("RABBITMQ_LOG_BASE", own("log")),
            ("RABBITMQ_CONFIG_FILE", own("rabbitmq.conf")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", own("enabled_plugins")),
            ("RABBITMQ_PID_FILE", own("pid")),
            ("RABBITMQ_CONF_ENV_FILE", "/dev/null".into()),
            ("RABBITMQ_DIST_PORT", self.ports.distribution.to_string()),
            ("ERL_EPMD_PORT", self.mapper_port.to_string()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".into()),
            // One that the node starts would leave our control as a daemon.
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

/// Part of the names of all nodes of a place, and of no other place's.
fn common_name(place: &Place) -> String {
    let hash = Uuid::new_v5(&Uuid::NAMESPACE_URL, place.root().as_os_str().as_encoded_bytes()).simple().to_string();
    format!("onceflow-{}", &hash[..12])
}

/// Version and programs.
pub(super) fn installed() -> Result<(String, PathBuf), ServersError> {
    newest_installed(Path::new(INSTALLED)).ok_or(ServersError::Missing("rabbitmq-server"))
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

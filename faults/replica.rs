//! One replica: the real `onceflow run` in a process of its own.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tokio::process::{Child, Command};

/// How a replica is started.
#[derive(Debug, Clone, Default)]
pub(crate) struct Start {
    pub(crate) config: PathBuf,
    pub(crate) log: PathBuf,
    /// As in `FAILPOINTS`; empty for none.
    pub(crate) failpoints: String,
    /// Nobody reads its log: the pipe is closed.
    pub(crate) deaf: bool,
    /// More variables, such as a library to be loaded first.
    pub(crate) environment: Vec<(String, String)>,
}

/// A running replica; killed with this value.
pub(crate) struct Replica {
    child: Child,
    admin: u16,
    metrics: u16,
    log: PathBuf,
}

impl Replica {
    pub(crate) fn start(start: &Start) -> anyhow::Result<Self> {
        let (admin, metrics) = (free_port()?, free_port()?);
        let mut command = bare();
        command.args(["run", "--config"]).arg(&start.config);
        command
            .env("ONCEFLOW_ADMIN_LISTEN", format!("127.0.0.1:{admin}"))
            .env("ONCEFLOW_METRICS_LISTEN", format!("127.0.0.1:{metrics}"))
            .env("ONCEFLOW_LOG__LEVEL", "info")
            .env("ONCEFLOW_LOG__FORMAT", "json")
            .env("FAILPOINTS", &start.failpoints)
            .envs(start.environment.iter().cloned());
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&start.log)?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        command.stderr(if start.deaf { Stdio::piped() } else { log.into() });
        let mut child = command.spawn().context("start onceflow")?;
        // Whatever it writes fails from now on.
        drop(child.stderr.take());
        Ok(Self { child, admin, metrics, log: start.log.clone() })
    }

    /// Where the operators' API is.
    pub(crate) fn admin_port(&self) -> u16 {
        self.admin
    }

    /// Sends a signal, e.g. `STOP`.
    pub(crate) async fn signal(&self, signal: &str) -> anyhow::Result<()> {
        let pid = self.child.id().context("the replica has ended by itself")?.to_string();
        let told = Command::new("sh").args(["-c", "kill -\"$1\" \"$2\"", "sh", signal, &pid]).status().await?;
        ensure!(told.success(), "the replica can't be signalled");
        Ok(())
    }

    /// `kill -9`.
    pub(crate) async fn kill(mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Waits until it has ended.
    pub(crate) async fn ended(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        let ended = tokio::time::timeout(within, self.child.wait()).await;
        let log = self.log.display();
        ended
            .with_context(|| format!("the replica has not ended within {} s; its log: {log}", within.as_secs()))?
            .map_err(Into::into)
    }

    /// SIGTERM; how it ended and how long that took.
    pub(crate) async fn stop(mut self, within: Duration) -> anyhow::Result<(ExitStatus, Duration)> {
        let begun = Instant::now();
        self.signal("TERM").await?;
        let status = self.ended(within).await?;
        Ok((status, begun.elapsed()))
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The most memory that it has had resident so far, in bytes; 0 once it has ended.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = self.child.id().and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/status")).ok());
        let line = status.as_deref().and_then(|text| text.lines().find_map(|line| line.strip_prefix("VmHWM:")));
        let kilobytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kilobytes.unwrap_or(0) * 1024
    }

    /// What `/readyz` says: status and body. `None` when it does not answer within a second.
    pub(crate) async fn readiness(&self) -> Option<(u16, String)> {
        get(self.admin, "readyz").await
    }

    /// The status report of the API.
    pub(crate) async fn status(&self) -> Option<(u16, String)> {
        get(self.admin, "api/v1/status").await
    }

    /// All metrics, as text.
    pub(crate) async fn metrics(&self) -> Option<String> {
        get(self.metrics, "metrics").await.map(|(_, text)| text)
    }

    /// The sum over the series of a metric whose labels hold `label`.
    pub(crate) async fn metric(&self, name: &str, label: &str) -> Option<f64> {
        Some(sum(&self.metrics().await?, name, label))
    }

    /// Runs the command line against this replica.
    pub(crate) async fn command(&self, config: &Path, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = bare();
        command.args(arguments).arg("--config").arg(config);
        command.env("ONCEFLOW_ADMIN_LISTEN", format!("127.0.0.1:{}", self.admin)).stdin(Stdio::null());
        let output = command.output().await?;
        if !output.status.success() {
            bail!("onceflow {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The real program, built together with this one, inheriting no settings. The kernel kills it when the thread that started it
/// ends: that thread belongs to the runtime, so no replica outlives the suite, `kill -9` included.
fn bare() -> Command {
    let program = std::env::current_exe().map(|own| own.with_file_name("onceflow")).unwrap_or_default();
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("LANG", "C.UTF-8")
        .current_dir(crate::ground::output());
    command
}

async fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let http = reqwest::Client::builder().timeout(Duration::from_secs(1)).build().ok()?;
    let answer = http.get(format!("http://127.0.0.1:{port}/{path}")).send().await.ok()?;
    Some((answer.status().as_u16(), answer.text().await.ok()?))
}

fn sum(text: &str, name: &str, label: &str) -> f64 {
    let series = text.lines().filter_map(|line| line.strip_prefix(name));
    let own = series.filter(|rest| rest.starts_with(['{', ' ']) && rest.contains(label));
    own.filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Below the range out of which the system takes the ports of outgoing connections (`ip_local_port_range`, from 32768).
const PORTS: std::ops::Range<u16> = 12_000..28_000;

/// Free now, and given to nobody else soon: a replica that is down for a moment would otherwise lose its place to a connection,
/// or to the replica of another world, which then answers in its stead.
fn free_port() -> anyhow::Result<u16> {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let many = u32::from(PORTS.end - PORTS.start);
    for _ in 0..many {
        // Processes at the same time begin at places of their own.
        let nth = std::process::id().wrapping_mul(500).wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % many;
        let port = PORTS.start + u16::try_from(nth)?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port between {} and {} is free", PORTS.start, PORTS.end)
}

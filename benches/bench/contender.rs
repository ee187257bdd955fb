//! The contenders: each runs in a process of its own, so that processor time and memory are its own.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tokio::process::{Child, Command};

use crate::args::Domain;
use crate::ground::{Site, output};

/// Kernel's unit of processor time in `/proc`; the same on every Linux that Rust runs on.
const TICK: Duration = Duration::from_millis(10);

/// Longest time for a service to lay out its partitions.
const LAID_OUT_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Contender {
    Limit,
    Onceflow,
    Naive,
}

impl Contender {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Onceflow => "onceflow",
            Self::Naive => "naive",
        }
    }

    /// What its processes print, of one run of the bench.
    fn log(self) -> anyhow::Result<PathBuf> {
        Ok(output()?.join(format!("{}.log", self.name())))
    }
}

/// Empties the logs of an earlier run.
pub(crate) fn forget_logs() -> anyhow::Result<()> {
    for contender in [Contender::Limit, Contender::Onceflow, Contender::Naive] {
        std::fs::write(contender.log()?, "")?;
    }
    Ok(())
}

/// How the measured service is set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) domain: Domain,
    pub(crate) quorum: bool,
    /// Queues of the consumer; 1 is one plain queue.
    pub(crate) partitions: u32,
    /// Where the API listens; 0 for anywhere.
    pub(crate) admin_port: u16,
}

/// A running contender; killed with this value.
pub(crate) struct Process {
    child: Child,
    name: &'static str,
}

/// What a process has used.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    /// Highest resident memory so far, in bytes.
    pub(crate) peak: u64,
    /// Resident memory now, in bytes.
    pub(crate) resident: u64,
}

impl Usage {
    /// Together with another process: times add up, of the memory the larger counts.
    pub(crate) fn and(self, other: Self) -> Self {
        Self { cpu: self.cpu + other.cpu, peak: self.peak.max(other.peak), resident: self.resident.max(other.resident) }
    }

    /// What was used since an earlier look.
    pub(crate) fn since(self, before: Self) -> Self {
        Self { cpu: self.cpu.saturating_sub(before.cpu), ..self }
    }
}

impl Process {
    pub(crate) fn start(contender: Contender, setup: &Setup, site: &Site) -> anyhow::Result<Self> {
        let mut command = match contender {
            Contender::Onceflow => onceflow(setup, site, &["run"])?,
            Contender::Limit | Contender::Naive => {
                let mut command = bare(&std::env::current_exe()?)?;
                command.args([contender.name(), "--domain", setup.domain.name()]);
                command.env("BENCH_AMQP_URL", &site.amqp_url).env("BENCH_DATABASE_URL", &site.database_url);
                command
            }
        };
        let log = std::fs::OpenOptions::new().create(true).append(true).open(contender.log()?)?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("start {}", contender.name()))?;
        Ok(Self { child, name: contender.name() })
    }

    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        let pid = self.child.id().with_context(|| format!("{} has ended; its log is in target/bench/", self.name))?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let usage = parse(&stat, &status);
        usage.with_context(|| format!("{} has ended or /proc/{pid} has another form", self.name))
    }

    /// Fails when the process has ended by itself.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("{} ended in the middle ({status}); its log is in target/bench/", self.name),
            None => Ok(()),
        }
    }

    /// Ends a service in an orderly way, so that its share of the work is free at once.
    async fn stop(mut self) -> anyhow::Result<()> {
        let pid = self.child.id().with_context(|| format!("{} has ended by itself", self.name))?;
        let told = Command::new("sh").args(["-c", "kill -TERM \"$1\"", "sh", &pid.to_string()]).status().await?;
        ensure!(told.success(), "{} can't be told to stop", self.name);
        self.child.wait().await?;
        Ok(())
    }

    pub(crate) async fn kill(mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }
}

/// Declares what the product needs on the broker. `None` when this build does not know the setting.
pub(crate) async fn declare(setup: &Setup, site: &Site) -> anyhow::Result<Option<()>> {
    let Err(said) = check(setup, site).await? else { return Ok(Some(())) };
    if setup.partitions == 1 {
        bail!("onceflow check: {said}");
    }
    if said.contains("there is no such key") {
        return Ok(None);
    }
    // The first service of a fresh installation lays the partitions out; the check then agrees with them.
    let service = Process::start(Contender::Onceflow, setup, site)?;
    let begun = Instant::now();
    while let Err(said) = check(setup, site).await? {
        if begun.elapsed() > LAID_OUT_WITHIN {
            bail!("onceflow check, beside a running service: {said}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    service.stop().await?;
    Ok(Some(()))
}

/// Runs `onceflow check`, which declares what is missing; an `Err` inside is what it found wrong.
async fn check(setup: &Setup, site: &Site) -> anyhow::Result<Result<(), String>> {
    let answer =
        onceflow(setup, site, &["check"])?.stdin(Stdio::null()).output().await.context("run onceflow check")?;
    if answer.status.success() {
        return Ok(Ok(()));
    }
    Ok(Err([answer.stderr, answer.stdout].map(|text| String::from_utf8_lossy(&text).into_owned()).concat()))
}

/// The real program, set by its environment alone.
fn onceflow(setup: &Setup, site: &Site, arguments: &[&str]) -> anyhow::Result<Command> {
    // Built together, into the same folder.
    let mut command = bare(&std::env::current_exe()?.with_file_name("onceflow"))?;
    command
        .args(arguments)
        .env("ONCEFLOW_AMQP_URL", &site.amqp_url)
        .env("ONCEFLOW_DATABASE_URL", &site.database_url)
        .env("ONCEFLOW_ADMIN_LISTEN", format!("127.0.0.1:{}", setup.admin_port))
        .env("ONCEFLOW_METRICS_LISTEN", "127.0.0.1:0")
        .env("ONCEFLOW_LOG__LEVEL", "warn")
        .env("ONCEFLOW_TOPOLOGY__QUEUE_TYPE", if setup.quorum { "quorum" } else { "classic" });
    if setup.partitions > 1 {
        let key = format!("ONCEFLOW_CONSUMERS__{}__PARTITIONS", setup.domain.name().to_uppercase());
        command.env(key, setup.partitions.to_string());
    }
    Ok(command)
}

/// A program that inherits no settings and finds no configuration file of the user's. The kernel kills it when the thread that
/// started it ends: that is the main thread, so no contender outlives the bench, `kill -9` included.
fn bare(program: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("LANG", "C.UTF-8").current_dir(output()?);
    Ok(command)
}

fn parse(stat: &str, status: &str) -> Option<Usage> {
    // The name in brackets may hold anything; what counts stands behind it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u32>().ok()? + fields.get(12)?.parse::<u32>().ok()?;
    let kilobytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kb| kb * 1024)
    };
    Some(Usage { cpu: TICK * ticks, peak: kilobytes("VmHWM:")?, resident: kilobytes("VmRSS:")? })
}

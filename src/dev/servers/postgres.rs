//! A private PostgreSQL cluster.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::account::Account;
use super::error::{ServersError, while_doing};
use super::guard::{Guarded, Launch, base_environment};
use super::place::Place;
use super::ports::Ports;

const NAME: &str = "postgres";
/// Debian keeps each major version's programs apart.
const INSTALLED: &str = "/usr/lib/postgresql";
/// Also the time for a recovery after a crash, on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// The line of `postmaster.pid` that tells the server's state.
const STATUS_LINE: usize = 7;

/// A private PostgreSQL cluster, running or stopped. Its port and data stay the same for the life of this value.
#[derive(Debug)]
pub struct Postgres {
    place: Arc<Place>,
    account: Account,
    programs: PathBuf,
    data: PathBuf,
    port: u16,
    process: Option<Guarded>,
}

impl Postgres {
    pub(super) fn new(place: &Arc<Place>, account: Account, ports: &mut Ports) -> Result<Self, ServersError> {
        let (version, programs) = newest_installed(Path::new(INSTALLED)).ok_or(ServersError::Missing("postgresql"))?;
        // A cluster can be read by its own major version only.
        let data = place.private_directory(NAME, &account)?.join(version.to_string());
        Ok(Self { place: Arc::clone(place), account, programs, data, port: ports.take()?, process: None })
    }

    /// `postgres://…` of the database `onceflow`.
    pub fn url(&self) -> String {
        format!("postgres://postgres:{}@127.0.0.1:{}/onceflow", self.place.secret(), self.port)
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Starts the server, after a stop with the same data on the same port, and waits until it accepts connections.
    ///
    /// # Errors
    /// With the end of its log when it does not come up.
    pub async fn start(&mut self) -> Result<(), ServersError> {
        if !self.data.is_dir() {
            self.create_cluster().await?;
        }
        let mut process = Guarded::spawn(&self.place, self.launch())?;
        let status = self.data.join("postmaster.pid");
        process.wait_until(READY_WITHIN, |pid| std::future::ready(is_ready(&status, pid))).await?;
        self.process = Some(process);
        Ok(())
    }

    /// Stops the server: sessions are ended, data are written (`pg_ctl stop -m fast`).
    ///
    /// # Errors
    /// When the guard can't be waited for.
    pub async fn stop(&mut self) -> Result<(), ServersError> {
        match self.process.take() {
            Some(process) => process.stop().await,
            None => Ok(()),
        }
    }

    /// Stops the server as a crash would: nothing is written, the next start recovers (`pg_ctl stop -m immediate`).
    ///
    /// # Errors
    /// When the guard can't be reached.
    pub async fn stop_immediate(&mut self) -> Result<(), ServersError> {
        match self.process.take() {
            Some(process) => process.end_with("QUIT").await,
            None => Ok(()),
        }
    }

    /// A crash and the start after it.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn restart_immediate(&mut self) -> Result<(), ServersError> {
        self.stop_immediate().await?;
        self.start().await
    }

    /// A crash and a start as a hot standby, which refuses writes until `SELECT pg_promote()`.
    ///
    /// # Errors
    /// As [`start`](Self::start), or when the data directory can't be written.
    pub async fn restart_as_standby(&mut self) -> Result<(), ServersError> {
        self.stop_immediate().await?;
        let signal = self.data.join("standby.signal");
        fs::write(&signal, "").map_err(while_doing(format!("create {}", signal.display())))?;
        self.start().await
    }

    fn launch(&self) -> Launch<'_> {
        let mut command = vec![self.program("postgres"), "-D".into(), self.data.display().to_string()];
        for setting in [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={}", self.port),
            // TCP only: the path of a socket may be no longer than 107 bytes.
            "unix_socket_directories=".to_owned(),
            "max_connections=200".to_owned(),
            "fsync=on".to_owned(),
            "logging_collector=off".to_owned(),
        ] {
            command.extend(["-c".to_owned(), setting]);
        }
        Launch { name: NAME, account: &self.account, command, environment: Vec::new(), stop_signal: "INT" }
    }

    fn program(&self, name: &str) -> String {
        self.programs.join(name).display().to_string()
    }

    /// Makes the cluster beside its final place and moves it there when it is whole.
    async fn create_cluster(&self) -> Result<(), ServersError> {
        let unfinished = self.data.with_extension("unfinished");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).map_err(while_doing(format!("remove {}", unfinished.display())))?;
        }
        let directory = unfinished.display().to_string();
        let password = self.password_file()?;
        let initdb = ["-D", &directory, "-U", "postgres", "-A", "password", "-E", "UTF8", "--locale=C.UTF-8"];
        let password_file = format!("--pwfile={}", password.display());
        self.run("initdb", &[&initdb[..], &[&password_file]].concat(), "").await?;
        fs::remove_file(&password).map_err(while_doing(format!("remove {}", password.display())))?;
        self.run("postgres", &["--single", "-D", &directory, "postgres"], "CREATE DATABASE onceflow\n").await?;
        fs::rename(&unfinished, &self.data).map_err(while_doing(format!("create {}", self.data.display())))
    }

    /// `initdb` takes a password only from a file that its account can read.
    fn password_file(&self) -> Result<PathBuf, ServersError> {
        let path = self.data.with_file_name("password");
        let doing = || format!("write {}", path.display());
        let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&path);
        file.and_then(|mut file| writeln!(file, "{}", self.place.secret())).map_err(while_doing(doing()))?;
        self.account.give(&path)?;
        Ok(path)
    }

    async fn run(&self, program: &str, arguments: &[&str], input: &str) -> Result<(), ServersError> {
        let doing = || format!("run {program}");
        let mut command = self.account.prefix();
        command.push(self.program(program));
        command.extend(arguments.iter().map(|&argument| argument.to_owned()));
        let mut child = Command::new(&command[0])
            .args(&command[1..])
            .env_clear()
            .envs(base_environment(&self.place))
            .current_dir(self.place.root())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(while_doing(doing()))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await.map_err(while_doing(doing()))?;
        }
        let output = child.wait_with_output().await.map_err(while_doing(doing()))?;
        if output.status.success() {
            return Ok(());
        }
        let text = [output.stdout, output.stderr].concat();
        Err(ServersError::Program { program: program.to_owned(), output: String::from_utf8_lossy(&text).into_owned() })
    }
}

/// What `pg_ctl -w start` looks at: written by this very process, and its state is "ready".
fn is_ready(status_file: &Path, pid: u32) -> bool {
    let Ok(text) = fs::read_to_string(status_file) else { return false };
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.first() == Some(&pid.to_string().as_str())
        && lines.get(STATUS_LINE).is_some_and(|status| ["ready", "standby"].contains(status))
}

fn newest_installed(directory: &Path) -> Option<(u32, PathBuf)> {
    let versions = fs::read_dir(directory).ok()?.filter_map(|entry| {
        let entry = entry.ok()?;
        let version: u32 = entry.file_name().to_str()?.parse().ok()?;
        let programs = entry.path().join("bin");
        programs.join("initdb").is_file().then_some((version, programs))
    });
    versions.max_by_key(|(version, _)| *version)
}

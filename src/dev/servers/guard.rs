//! A server process that can't outlive us.
//!
//! `PR_SET_PDEATHSIG` is bound to the thread that spawned the child, which an async runtime may end at any time. So each
//! server runs under a small shell, `guard.sh`, that reads a pipe from us: the kernel closes the pipe when we die, however we
//! die, and the guard then stops the server. It lives in its own process group: a Ctrl-C in the terminal reaches us alone.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, Command};

use super::account::Account;
use super::error::{ServersError, while_doing};
use super::place::Place;

const GUARD: &str = include_str!("guard.sh");
/// A server that has not stopped by then is killed.
const GRACE: Duration = Duration::from_secs(20);
/// How often a starting server is asked whether it is ready.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// What to run.
#[derive(Debug)]
pub(super) struct Launch<'a> {
    /// Names the log, the pid file and the errors.
    pub(super) name: &'static str,
    /// Who runs it.
    pub(super) account: &'a Account,
    /// Program and arguments.
    pub(super) command: Vec<String>,
    /// Its whole environment: nothing of ours is inherited.
    pub(super) environment: Vec<(&'static str, String)>,
    /// Asks it to stop.
    pub(super) stop_signal: &'static str,
}

/// A running server with its guard.
#[derive(Debug)]
pub(super) struct Guarded {
    name: &'static str,
    guard: Child,
    orders: Option<ChildStdin>,
    pid_file: PathBuf,
    log: PathBuf,
}

impl Guarded {
    /// Starts the server; its log begins anew.
    pub(super) fn spawn(place: &Place, launch: Launch<'_>) -> Result<Self, ServersError> {
        let (log, pid_file) = (place.log_file(launch.name), place.pid_file(launch.name));
        let out = File::create(&log).map_err(while_doing(format!("create {}", log.display())))?;
        let err = out.try_clone().map_err(while_doing("share the log"))?;
        if let Err(error) = fs::remove_file(&pid_file)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(while_doing(format!("remove {}", pid_file.display()))(error));
        }
        let mut guard = Command::new("sh")
            .args(["-c", GUARD, "onceflow-guard"])
            .arg(&pid_file)
            .args([launch.stop_signal, &GRACE.as_secs().to_string()])
            .args(launch.account.prefix())
            .args(&launch.command)
            .env_clear()
            .envs(base_environment(place))
            .envs(launch.environment)
            .current_dir(place.root())
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(while_doing(format!("start {}", launch.name)))?;
        let orders = guard.stdin.take();
        Ok(Self { name: launch.name, guard, orders, pid_file, log })
    }

    /// Waits until `ready`, asked with the server's process id, says so.
    ///
    /// # Errors
    /// The server ended, or the time is up; with the end of its log.
    pub(super) async fn wait_until<R>(&mut self, within: Duration, ready: impl Fn(u32) -> R) -> Result<(), ServersError>
    where
        R: Future<Output = bool>,
    {
        let begun = Instant::now();
        while begun.elapsed() < within {
            if self.guard.try_wait().map_err(while_doing("look after the guard"))?.is_some() {
                return Err(ServersError::ended(self.name, &self.log));
            }
            if let Some(pid) = self.pid()
                && ready(pid).await
            {
                return Ok(());
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
        Err(ServersError::late(self.name, within, &self.log))
    }

    /// The server's process id, once the guard has written it down.
    fn pid(&self) -> Option<u32> {
        fs::read_to_string(&self.pid_file).ok()?.split(' ').next()?.parse().ok()
    }

    /// Asks the server to stop and waits until it has; the guard uses force after [`GRACE`].
    pub(super) async fn stop(mut self) -> Result<(), ServersError> {
        drop(self.orders.take());
        self.wait().await
    }

    /// Sends a signal that ends the server, e.g. `KILL`, and waits until it has ended.
    pub(super) async fn end_with(mut self, signal: &str) -> Result<(), ServersError> {
        if let Some(orders) = &mut self.orders {
            let order = format!("{signal}\n");
            orders.write_all(order.as_bytes()).await.map_err(while_doing("signal the server"))?;
        }
        self.wait().await
    }

    async fn wait(&mut self) -> Result<(), ServersError> {
        self.guard.wait().await.map(drop).map_err(while_doing(format!("wait for the end of {}", self.name)))
    }
}

/// The variable by which a process is known as one of this directory's servers.
pub(super) const OWNER: &str = "ONCEFLOW_SERVERS";

/// What every program of a server needs.
pub(super) fn base_environment(place: &Place) -> Vec<(&'static str, String)> {
    vec![
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()),
        ("LANG", "C.UTF-8".into()),
        (OWNER, owner_value(place.root())),
    ]
}

/// Ends with a slash, so that `…/dev` is not taken for `…/dev-2`.
pub(super) fn owner_value(root: &Path) -> String {
    format!("{}/", root.display())
}

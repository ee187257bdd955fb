//! `onceflow run` in a process of its own, to be killed.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

/// A port that nobody listens on now.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits until the service on this admin port says that it is ready; what it waits for is told where it never is.
pub(crate) async fn until_ready(port: u16) {
    let url = format!("http://127.0.0.1:{port}/readyz");
    let ask = || async {
        let answer = reqwest::get(&url).await.ok()?;
        answer.status().is_success().then_some(())
    };
    super::eventually(super::SOON, ask).await;
}

/// A service process; killed with this value.
pub(crate) struct Service(Child);

impl Service {
    /// Starts the service; `failpoints` as in `FAILPOINTS`, empty for none.
    pub(crate) fn start(config: &Path, failpoints: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_onceflow"));
        command.arg("run").arg("--config").arg(config).args(["-q"]).env("FAILPOINTS", failpoints);
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).spawn().unwrap())
    }

    /// Starts the service with a log that nobody reads: the pipe is closed at once.
    pub(crate) fn deaf(config: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_onceflow"));
        command
            .arg("run")
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().unwrap();
        drop(child.stderr.take());
        Self(child)
    }

    /// Starts the service; its log goes to a file, by the level of its configuration.
    pub(crate) fn logging(config: &Path, log: &Path, environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_onceflow"));
        command.arg("run").arg("--config").arg(config).envs(environment.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(log).unwrap());
        Self(command.kill_on_drop(true).spawn().unwrap())
    }

    /// Starts the service in a file system that holds it and its configuration, as nobody where we may choose; `None` where we may not
    /// even change the root.
    pub(crate) async fn rooted(root: &Path) -> Option<Self> {
        let ways: [&[&str]; 2] =
            [&["chroot", "--userspec=65532:65532", "--groups="], &["unshare", "--map-root-user", "chroot"]];
        for way in ways {
            let command = |root: &Path, program: &[&str]| {
                let mut command = Command::new(way[0]);
                command.args(&way[1..]).arg(root).args(program).stdin(Stdio::null()).stdout(Stdio::null());
                command
            };
            let may = command(Path::new("/"), &["/bin/true"]).stderr(Stdio::null()).status().await;
            if may.is_ok_and(|ended| ended.success()) {
                let run = ["/usr/local/bin/onceflow", "run", "--config", "/etc/onceflow/onceflow.toml", "-q"];
                return Some(Self(command(root, &run).kill_on_drop(true).spawn().unwrap()));
            }
        }
        None
    }

    /// Waits until it has died by itself.
    pub(crate) async fn died(&mut self, within: Duration) {
        let ended = tokio::time::timeout(within, self.0.wait()).await.expect("the fail point was never reached");
        assert!(!ended.unwrap().success());
    }

    /// SIGTERM; waits until it has drained and ended.
    pub(crate) async fn stop(mut self) {
        self.signal("TERM").await;
        assert!(self.0.wait().await.unwrap().success(), "the drain took too long");
    }

    pub(crate) async fn signal(&self, name: &str) {
        let pid = self.0.id().unwrap().to_string();
        let told = Command::new("sh").args(["-c", "kill -s \"$1\" \"$2\"", "sh", name, &pid]).status().await.unwrap();
        assert!(told.success());
    }

    /// The most memory it has had resident so far, in bytes.
    pub(crate) fn peak_memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id().unwrap())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
    }

    /// `kill -9`.
    pub(crate) async fn kill(mut self) {
        self.0.kill().await.unwrap();
    }
}

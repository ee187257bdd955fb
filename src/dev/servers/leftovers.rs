//! Servers that an earlier run left behind: possible only if its guards were killed too, or are still at work.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::process::Command;

use super::Progress;
use super::error::{ServersError, while_doing};
use super::guard::owner_value;
use super::place::Place;

/// Longest wait for a leftover to stop by itself before it is killed.
const GRACE: Duration = Duration::from_secs(20);
/// Longest wait for the kernel to take a killed process away.
const BURIED_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Ends every server that a pid file of this directory names and that is provably of this directory. Called under the
/// directory's lock, so none of them belongs to a living run.
pub(super) async fn stop_all(place: &Place, progress: Progress<'_>) -> Result<(), ServersError> {
    for name in left_behind(place.root())? {
        let path = place.pid_file(&name);
        let Some((pid, signal)) = read(&path) else { continue };
        if is_ours(pid, place.root()) {
            progress(&format!("stopping {name} (process {pid}) of an earlier run"));
            stop(pid, &signal, place.root()).await?;
        }
    }
    Ok(())
}

/// The servers that pid files name; the port mapper, which others may need while they stop, is the last.
fn left_behind(root: &Path) -> Result<Vec<String>, ServersError> {
    let entries = fs::read_dir(root).map_err(while_doing(format!("look into {}", root.display())))?;
    let name =
        |entry: std::io::Result<fs::DirEntry>| Some(entry.ok()?.file_name().to_str()?.strip_suffix(".pid")?.to_owned());
    let mut names: Vec<String> = entries.filter_map(name).collect();
    names.sort_by_key(|name| name == "epmd");
    Ok(names)
}

fn read(pid_file: &Path) -> Option<(u32, String)> {
    let text = fs::read_to_string(pid_file).ok()?;
    let (pid, signal) = text.trim().split_once(' ')?;
    Some((pid.parse().ok()?, signal.to_owned()))
}

/// A process id may have been given to somebody else since: the process must name our directory.
fn is_ours(pid: u32, root: &Path) -> bool {
    let mark = owner_value(root).into_bytes();
    ["cmdline", "environ"].iter().any(|file| {
        let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        text.windows(mark.len()).any(|window| window == mark)
    })
}

async fn stop(pid: u32, signal: &str, root: &Path) -> Result<(), ServersError> {
    send(pid, signal).await?;
    if gone_within(GRACE, pid, root).await {
        return Ok(());
    }
    send(pid, "KILL").await?;
    gone_within(BURIED_WITHIN, pid, root).await;
    Ok(())
}

async fn send(pid: u32, signal: &str) -> Result<(), ServersError> {
    let script = ["-c", "kill -s \"$1\" \"$2\" 2>/dev/null || :", "sh"];
    let status = Command::new("sh").args(script).arg(signal).arg(pid.to_string()).status().await;
    status.map(drop).map_err(while_doing("signal a server of an earlier run"))
}

async fn gone_within(limit: Duration, pid: u32, root: &Path) -> bool {
    let begun = Instant::now();
    while is_ours(pid, root) {
        if begun.elapsed() > limit {
            return false;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    true
}

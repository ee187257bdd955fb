//! A small file system of its own, for tables, to be filled to the last byte. Only root may mount one.
//!
//! Nothing unmounts it when the suite is killed: the server needs it until it has stopped. The next run removes it.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use tokio::process::Command;

use crate::outcome::Skipped;

/// Begins the names of the folders that disks are mounted on.
const PREFIX: &str = "disk-";
/// More than a fault writes, and filled in a moment.
const SIZE: &str = "64m";
/// What fills it.
const FILLER: &str = "filler";

/// The place of a disk, mounted or not.
pub(crate) struct Disk(PathBuf);

impl Disk {
    /// The disk of a site whose servers live in `directory`.
    pub(crate) fn of(directory: &Path, site: &str) -> Self {
        Self(directory.join(format!("{PREFIX}{site}")))
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.0
    }

    /// Mounts it for whoever owns the folder `like`.
    ///
    /// # Errors
    /// [`Skipped`] where this machine doesn't allow it.
    pub(crate) async fn mount(&self, like: &Path) -> anyhow::Result<()> {
        let owner = fs::metadata(like).with_context(|| format!("look at {}", like.display()))?;
        let (uid, gid) = (owner.uid(), owner.gid());
        fs::create_dir_all(&self.0).with_context(|| format!("create {}", self.0.display()))?;
        // Should the disk be lost with the machine, the server finds a folder that it may write to.
        chown(&self.0, Some(uid), Some(gid)).with_context(|| format!("hand {} over", self.0.display()))?;
        let options = format!("size={SIZE},mode=0700,uid={uid},gid={gid},nosuid,nodev");
        let folder = self.0.display().to_string();
        if let Err(error) = as_root(&["mount", "-t", "tmpfs", "-o", &options, "tmpfs", &folder]).await {
            self.remove().await?;
            let (said, advice) = (format!("{error:#}"), "run the suite as root, or let sudo mount without a password");
            // The report goes to other machines.
            let said = said.replace(&folder, PREFIX.trim_end_matches('-'));
            return Err(Skipped(format!("no disk can be mounted to be filled ({said}); {advice}")).into());
        }
        Ok(())
    }

    /// Takes every byte that is free.
    pub(crate) fn fill(&self) -> anyhow::Result<()> {
        let path = self.0.join(FILLER);
        let mut filler = OpenOptions::new().create(true).append(true).open(&path).context("fill the disk")?;
        // A page: what is left at the end is less than the server takes at once.
        let page = [0; 4096];
        loop {
            match filler.write_all(&page) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error).context("fill the disk"),
            }
        }
    }

    /// Gives back what [`fill`](Self::fill) took.
    pub(crate) fn make_room(&self) -> anyhow::Result<()> {
        fs::remove_file(self.0.join(FILLER)).context("make room on the disk")
    }

    /// Unmounts and removes it, if it is there. Nobody needs its files any more.
    pub(crate) async fn remove(&self) -> anyhow::Result<()> {
        if !self.0.exists() {
            return Ok(());
        }
        let folder = self.0.display().to_string();
        let mounts = fs::read_to_string("/proc/self/mounts").context("read the list of mounts")?;
        if mounts.lines().any(|line| line.split(' ').nth(1) == Some(folder.as_str())) {
            // A server process may still have a removed table open; the disk goes when it closes it.
            as_root(&["umount", "--lazy", &folder]).await?;
        }
        fs::remove_dir_all(&self.0).with_context(|| format!("remove {folder}"))
    }

    /// Removes what a run that was killed left behind.
    pub(crate) async fn remove_all(directory: &Path) -> anyhow::Result<()> {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| name.starts_with(PREFIX)) {
                Self(path).remove().await?;
            }
        }
        Ok(())
    }
}

async fn as_root(command: &[&str]) -> anyhow::Result<()> {
    let is_root = fs::metadata("/proc/self")?.uid() == 0;
    let prefix: &[&str] = if is_root { &[] } else { &["sudo", "--non-interactive"] };
    let whole = [prefix, command].concat();
    let (program, arguments) = whole.split_first().context("no command")?;
    let output = Command::new(program).args(arguments).output().await.with_context(|| format!("run {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    // Further lines say where else to look.
    ensure!(output.status.success(), "{}", said.lines().next().unwrap_or(program).trim());
    Ok(())
}

//! Who a server runs as: ourselves, or an unprivileged account when we are root.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tokio::process::Command;

use super::error::{ServersError, while_doing};

/// The account of a server's processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Account {
    /// We are an ordinary user: the servers run as we do.
    Own,
    /// We are root: the server gives every privilege up first.
    Unprivileged {
        /// User id.
        uid: u32,
        /// Primary group id.
        gid: u32,
    },
}

impl Account {
    /// The account for the server whose Debian package makes an account of the name `name`.
    pub(super) async fn for_server(name: &'static str) -> Result<Self, ServersError> {
        if own_uid()? != 0 {
            return Ok(Self::Own);
        }
        let found = Command::new("getent").args(["passwd", name]).output().await;
        let found = found.map_err(while_doing("look up accounts with getent"))?;
        let line = String::from_utf8_lossy(&found.stdout).into_owned();
        parse_passwd(&line).ok_or(ServersError::Missing(name))
    }

    /// What to put before a command so that it runs as this account.
    pub(super) fn prefix(&self) -> Vec<String> {
        match self {
            Self::Own => Vec::new(),
            Self::Unprivileged { uid, gid } => {
                vec![
                    "setpriv".into(),
                    format!("--reuid={uid}"),
                    format!("--regid={gid}"),
                    "--clear-groups".into(),
                    "--".into(),
                ]
            }
        }
    }

    /// Hands a file or directory of ours over.
    pub(super) fn give(&self, path: &Path) -> Result<(), ServersError> {
        match self {
            Self::Own => Ok(()),
            Self::Unprivileged { uid, gid } => std::os::unix::fs::chown(path, Some(*uid), Some(*gid))
                .map_err(while_doing(format!("hand {} over", path.display()))),
        }
    }

    /// Whether the account may go into `directory`, asked of the kernel and not guessed from mode bits.
    pub(super) async fn can_enter(&self, directory: &Path) -> Result<bool, ServersError> {
        let mut command = self.prefix();
        command.push("test".into());
        let Some((program, arguments)) = command.split_first() else { return Ok(true) };
        let status = Command::new(program).args(arguments).arg("-x").arg(directory).status().await;
        Ok(status.map_err(while_doing("run setpriv"))?.success())
    }
}

/// The user id we run with.
pub(super) fn own_uid() -> Result<u32, ServersError> {
    Ok(std::fs::metadata("/proc/self").map_err(while_doing("read /proc/self"))?.uid())
}

fn parse_passwd(line: &str) -> Option<Account> {
    let mut fields = line.trim().split(':').skip(2);
    let uid = fields.next()?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some(Account::Unprivileged { uid, gid })
}

#[cfg(test)]
mod tests {
    use super::{Account, parse_passwd};

    #[test]
    fn a_line_of_passwd_gives_user_and_group() {
        let line = "postgres:x:101:104:PostgreSQL administrator,,,:/var/lib/postgresql:/bin/bash\n";
        assert_eq!(parse_passwd(line), Some(Account::Unprivileged { uid: 101, gid: 104 }));
        assert_eq!(parse_passwd(""), None);
    }
}

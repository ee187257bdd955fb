//! Where private servers keep their files, and that only one process uses the place.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::Progress;
use super::account::{Account, own_uid};
use super::error::{ServersError, while_doing};

/// A directory of ours, locked until this value is dropped or the process dies.
pub(super) struct Place {
    root: PathBuf,
    secret: String,
    _lock: File,
}

/// Without the password.
impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Place {
    /// `<project>/.onceflow/<name>`, or a directory under `/var/tmp` where the servers' accounts can't enter the project
    /// (a clone below somebody's private home) or where the broker's scripts would trip over the path.
    pub(super) async fn open(
        project: &Path,
        name: &str,
        accounts: &[&Account],
        progress: Progress<'_>,
    ) -> Result<Self, ServersError> {
        let project =
            fs::canonicalize(project).map_err(while_doing(format!("find the project {}", project.display())))?;
        let mut root = project.join(".onceflow").join(name);
        make(&root)?;
        if !is_plain(&root) || !all_can_enter(accounts, &root).await? {
            let elsewhere = elsewhere(&project)?;
            progress(&format!(
                "the servers' data go to {}: their accounts can't work in {}",
                elsewhere.display(),
                project.display()
            ));
            claim(&elsewhere)?;
            root = elsewhere.join(name);
            make(&root)?;
        }
        let lock = lock(&root)?;
        let secret = secret(&root)?;
        Ok(Self { root, secret, _lock: lock })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Password of the private servers, made once for this directory.
    pub(super) fn secret(&self) -> &str {
        &self.secret
    }

    /// The file that names a server's process.
    pub(super) fn pid_file(&self, server: &str) -> PathBuf {
        self.root.join(format!("{server}.pid"))
    }

    /// What a server prints.
    pub(super) fn log_file(&self, server: &str) -> PathBuf {
        self.root.join(format!("{server}.log"))
    }

    /// A directory that only the server's account may enter.
    pub(super) fn private_directory(&self, name: &str, account: &Account) -> Result<PathBuf, ServersError> {
        let path = self.root.join(name);
        if !path.is_dir() {
            let made = DirBuilder::new().mode(0o700).create(&path);
            made.map_err(while_doing(format!("create {}", path.display())))?;
        }
        account.give(&path)?;
        Ok(path)
    }
}

/// Makes `.onceflow/<name>`; others may pass through, whatever the umask, for the servers' accounts are others.
fn make(root: &Path) -> Result<(), ServersError> {
    fs::create_dir_all(root).map_err(while_doing(format!("create {}", root.display())))?;
    for directory in root.ancestors().take(2) {
        fs::set_permissions(directory, Permissions::from_mode(0o755))
            .map_err(while_doing(format!("open {} to the servers", directory.display())))?;
    }
    Ok(())
}

async fn all_can_enter(accounts: &[&Account], root: &Path) -> Result<bool, ServersError> {
    for account in accounts {
        if !account.can_enter(root).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The broker's shell scripts split paths at blanks and expand what looks like a pattern.
fn is_plain(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+".contains(c)))
}

fn elsewhere(project: &Path) -> Result<PathBuf, ServersError> {
    let hash = Uuid::new_v5(&Uuid::NAMESPACE_URL, project.as_os_str().as_encoded_bytes()).simple().to_string();
    Ok(PathBuf::from(format!("/var/tmp/onceflow-{}-{}", own_uid()?, &hash[..12])))
}

/// Everybody may write to `/var/tmp`: what is there under our name counts only if we made it.
fn claim(directory: &Path) -> Result<(), ServersError> {
    let doing = || format!("create {}", directory.display());
    match DirBuilder::new().mode(0o755).create(directory) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(directory).map_err(while_doing(doing()))?;
            let ours = found.is_dir() && found.uid() == own_uid()?;
            if ours { Ok(()) } else { Err(ServersError::Untrusted(directory.to_owned())) }
        }
        Err(error) => Err(while_doing(doing())(error)),
    }
}

fn lock(root: &Path) -> Result<File, ServersError> {
    let path = root.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.map_err(while_doing(format!("open {}", path.display())))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(ServersError::Busy(root.to_owned())),
        Err(TryLockError::Error(error)) => Err(while_doing(format!("lock {}", path.display()))(error)),
    }
}

fn secret(root: &Path) -> Result<String, ServersError> {
    let path = root.join("secret");
    let doing = || format!("keep the servers' password in {}", path.display());
    match fs::read_to_string(&path) {
        Ok(secret) if !secret.is_empty() => return Ok(secret),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(while_doing(doing())(error)),
    }
    let secret = format!("{:032x}", rand::random::<u128>());
    let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&path);
    let written = file.and_then(|mut file| file.write_all(secret.as_bytes()));
    written.map_err(while_doing(doing()))?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::{Account, Place, ServersError, is_plain};

    #[tokio::test]
    async fn a_directory_serves_one_process_at_a_time_and_keeps_its_secret() {
        let project = tempfile::tempdir().unwrap();
        let open = || Place::open(project.path(), "one", &[&Account::Own], &|_| {});
        let first = open().await.unwrap();
        assert!(matches!(open().await, Err(ServersError::Busy(_))));
        let secret = first.secret().to_owned();
        drop(first);
        assert_eq!(open().await.unwrap().secret(), secret);
    }

    #[tokio::test]
    async fn a_project_that_the_accounts_cannot_enter_is_left_for_var_tmp_with_a_word() {
        let project = tempfile::tempdir().unwrap();
        let odd = project.path().join("with blank");
        std::fs::create_dir(&odd).unwrap();
        let said = std::sync::Mutex::new(Vec::new());
        let tell = |line: &str| said.lock().unwrap().push(line.to_owned());
        let place = Place::open(&odd, "one", &[&Account::Own], &tell).await.unwrap();
        let elsewhere = place.root().parent().unwrap().to_owned();
        assert!(is_plain(place.root()) && elsewhere.starts_with("/var/tmp"));
        assert!(said.lock().unwrap()[0].contains("/var/tmp/onceflow-"));
        drop(place);
        std::fs::remove_dir_all(elsewhere).unwrap();
    }
}

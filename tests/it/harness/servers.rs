//! The servers that all tests of this process share.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use serde::Deserialize;
use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::{database, vhost};

/// How to reach the shared servers. The URLs hold credentials.
#[derive(Debug, Deserialize)]
pub(crate) struct Addresses {
    pub(crate) amqp_url: String,
    pub(crate) database_url: String,
    pub(crate) management_url: String,
}

/// An empty folder for servers of a test's own; unprivileged accounts can enter it.
pub(crate) fn project() -> TempDir {
    let project = tempfile::tempdir().unwrap();
    fs::set_permissions(project.path(), Permissions::from_mode(0o755)).unwrap();
    project
}

struct Shared {
    addresses: Addresses,
    /// Its standard input is ours: when this process ends, however it ends, the servers stop.
    _child: Option<Child>,
}

static SHARED: OnceCell<Shared> = OnceCell::const_new();

/// Starts the servers once per process; `ONCEFLOW_TEST_AMQP_URL`, `ONCEFLOW_TEST_DATABASE_URL` and
/// `ONCEFLOW_TEST_MANAGEMENT_URL` name servers to use instead.
pub(crate) async fn servers() -> &'static Addresses {
    let shared = SHARED.get_or_init(|| async {
        if let Some(addresses) = given() {
            return Shared { addresses, _child: None };
        }
        let shared = tokio::task::spawn_blocking(start).await.unwrap();
        // They are private to this process, so whatever a test left is from an earlier one.
        database::remove_old(&shared.addresses).await;
        vhost::remove_old(&shared.addresses).await;
        shared
    });
    &shared.await.addresses
}

fn given() -> Option<Addresses> {
    let value = |name: &str| std::env::var_os(name).map(|value| value.into_string().unwrap());
    Some(Addresses {
        amqp_url: value("ONCEFLOW_TEST_AMQP_URL")?,
        database_url: value("ONCEFLOW_TEST_DATABASE_URL")?,
        management_url: value("ONCEFLOW_TEST_MANAGEMENT_URL")?,
    })
}

fn start() -> Shared {
    let mut child = Command::new(env!("CARGO_BIN_EXE_onceflow"))
        .args(["dev", "--servers-only"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let addresses = serde_json::from_str(&line).expect("the servers did not start; the reason is on standard error");
    Shared { addresses, _child: Some(child) }
}

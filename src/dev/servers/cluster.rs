//! Three private RabbitMQ nodes that form a cluster.
//!
//! The first one boots alone and the others join it while they boot, so there is no moment in which two of them could each take
//! itself for the first. They know each other by one cookie and find each other by one port mapper.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use futures_util::future::{join_all, try_join_all};

use super::account::Account;
use super::error::{ServersError, while_doing};
use super::mapper::Mapper;
use super::place::Place;
use super::ports::Ports;
use super::rabbitmq::{RabbitMq, installed};
use super::{Progress, leftovers};

const NODES: [&str; 3] = ["rabbitmq-1", "rabbitmq-2", "rabbitmq-3"];

/// Running nodes. They also stop, in their own time, when this value is dropped or the process dies.
#[derive(Debug)]
pub struct Cluster {
    /// Each can be stopped, killed and started again; what it had it has again, and it finds the others by itself.
    pub nodes: Vec<RabbitMq>,
    mapper: Mapper,
    place: Arc<Place>,
    account: Account,
}

impl Cluster {
    /// Boots three nodes that know nothing of earlier runs, in `<project>/.onceflow/<name>/`, and returns when all of them answer
    /// as one cluster.
    ///
    /// # Errors
    /// As [`Servers::start`](super::Servers::start).
    pub async fn start(project: &Path, name: &str, progress: Progress<'_>) -> Result<Self, ServersError> {
        let account = Account::for_server("rabbitmq").await?;
        let place = Arc::new(Place::open(project, name, &[&account], progress).await?);
        leftovers::stop_all(&place, progress).await?;
        let (version, _) = installed()?;
        let home = place.private_directory(&format!("rabbitmq-{version}"), &account)?;
        share_cookie(&home, &place, &account)?;
        let mut ports = Ports::seeded_by(place.root());
        let mapper = Mapper::new(&mut ports)?;
        let mut nodes: Vec<RabbitMq> = Vec::with_capacity(NODES.len());
        for name in NODES {
            let mut node = RabbitMq::member((&place, &account), &mut ports, name, (&home, &mapper))?;
            node.forget()?;
            if let Some(first) = nodes.first().map(RabbitMq::node) {
                node.configure(&format!("cluster_formation.classic_config.nodes.1 = {first}"));
            }
            nodes.push(node);
        }
        let mut cluster = Self { nodes, mapper, place, account };
        match cluster.boot().await {
            Ok(()) => Ok(cluster),
            Err(error) => {
                // The first error is the one to tell.
                let _ = cluster.end().await;
                Err(error)
            }
        }
    }

    async fn boot(&mut self) -> Result<(), ServersError> {
        self.mapper.start(&self.place, &self.account).await?;
        let Some((first, others)) = self.nodes.split_first_mut() else { return Ok(()) };
        first.start().await?;
        try_join_all(others.iter_mut().map(RabbitMq::start)).await?;
        // They take connections a moment before the others count them in, and a virtual host made in between would never be theirs.
        first.ctl(&["await_online_nodes", &NODES.len().to_string()]).await.map(drop)
    }

    /// Kills the nodes, whose data nobody wants any more, and returns when no process of theirs is left.
    ///
    /// # Errors
    /// When a guard can't be reached.
    pub async fn end(mut self) -> Result<(), ServersError> {
        let killed = join_all(self.nodes.iter_mut().map(RabbitMq::kill)).await;
        let stopped = self.mapper.stop().await;
        killed.into_iter().collect::<Result<(), _>>().and(stopped)
    }
}

/// The first node would make a cookie of its own, which the others must have too; so it is there before.
fn share_cookie(home: &Path, place: &Place, account: &Account) -> Result<(), ServersError> {
    let path = home.join(".erlang.cookie");
    let doing = || format!("write {}", path.display());
    match OpenOptions::new().create_new(true).write(true).mode(0o400).open(&path) {
        Ok(mut file) => file.write_all(place.secret().as_bytes()).map_err(while_doing(doing()))?,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(while_doing(doing())(error)),
    }
    account.give(&path)
}

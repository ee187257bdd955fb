//! Private PostgreSQL and RabbitMQ servers: own ports, own directory under the project, loopback only, unprivileged.
//!
//! Nothing here touches the system's own servers. Every server runs under a guard (`guard`) that stops it when this
//! process ends in whatever way, `kill -9` included. Data stay in the directory, so that the next start is fast.

mod account;
mod cluster;
mod error;
mod guard;
mod leftovers;
mod mapper;
mod place;
mod ports;
mod postgres;
mod rabbitmq;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use account::Account;
use place::Place;
use ports::Ports;

pub use cluster::Cluster;
pub use error::ServersError;
pub use postgres::Postgres;
pub use rabbitmq::RabbitMq;

/// Gets one line whenever something is ready or takes another way than usual.
pub type Progress<'a> = &'a (dyn Fn(&str) + Send + Sync);

/// Which servers, and where.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// Names the directory, `<project>/.onceflow/<name>/`; one process at a time may use it.
    pub name: &'a str,
    /// Start PostgreSQL.
    pub postgres: bool,
    /// Start RabbitMQ.
    pub rabbitmq: bool,
    /// Begin with a broker that knows nothing of earlier runs. RabbitMQ 3.10 can declare no quorum queue any more after a run
    /// that was killed while virtual hosts came and went.
    pub fresh_broker: bool,
}

impl<'a> Options<'a> {
    /// Both servers.
    pub fn both(name: &'a str) -> Self {
        Self { name, postgres: true, rabbitmq: true, fresh_broker: false }
    }
}

/// Running servers. They also stop, in their own time, when this value is dropped or the process dies.
#[derive(Debug)]
pub struct Servers {
    /// The database server, if it was wanted.
    pub postgres: Option<Postgres>,
    /// The broker, if it was wanted.
    pub rabbitmq: Option<RabbitMq>,
    place: Arc<Place>,
}

impl Servers {
    /// Boots the wanted servers side by side and returns when both answer.
    ///
    /// # Errors
    /// A missing program, a directory in use by another process, or a server that does not come up (with the end of its log).
    /// Whatever was started is stopped again.
    pub async fn start(project: &Path, options: Options<'_>, progress: Progress<'_>) -> Result<Self, ServersError> {
        let accounts = Accounts::find(options).await?;
        let place = Arc::new(Place::open(project, options.name, &accounts.all(), progress).await?);
        leftovers::stop_all(&place, progress).await?;
        let mut ports = Ports::seeded_by(place.root());
        let mut postgres = match &accounts.postgres {
            Some(account) => Some(Postgres::new(&place, account.clone(), &mut ports)?),
            None => None,
        };
        let mut rabbitmq = match &accounts.rabbitmq {
            Some(account) => Some(RabbitMq::new(&place, account.clone(), &mut ports)?),
            None => None,
        };
        if let Some(server) = rabbitmq.as_ref().filter(|_| options.fresh_broker) {
            server.forget()?;
        }
        let (first, second) = tokio::join!(
            async {
                let Some(server) = &mut postgres else { return Ok(()) };
                let begun = Instant::now();
                server.start().await?;
                progress(&ready("postgres", server.port(), begun));
                Ok(())
            },
            async {
                let Some(server) = &mut rabbitmq else { return Ok(()) };
                let begun = Instant::now();
                server.start().await?;
                progress(&ready("rabbitmq", server.port(), begun));
                Ok(())
            }
        );
        let servers = Self { postgres, rabbitmq, place };
        match first.and(second) {
            Ok(()) => Ok(servers),
            Err(error) => {
                // The first error is the one to tell.
                let _ = servers.stop().await;
                Err(error)
            }
        }
    }

    /// `amqp://…` of the private broker.
    pub fn amqp_url(&self) -> Option<String> {
        self.rabbitmq.as_ref().map(RabbitMq::amqp_url)
    }

    /// `http://…` of the broker's management API, with credentials.
    pub fn management_url(&self) -> Option<String> {
        self.rabbitmq.as_ref().map(RabbitMq::management_url)
    }

    /// `postgres://…` of the private database.
    pub fn database_url(&self) -> Option<String> {
        self.postgres.as_ref().map(Postgres::url)
    }

    /// Where the servers keep their data and logs.
    pub fn directory(&self) -> &Path {
        self.place.root()
    }

    /// Stops both, side by side, and returns when no process of theirs is left.
    ///
    /// # Errors
    /// When a guard can't be waited for.
    pub async fn stop(mut self) -> Result<(), ServersError> {
        let (first, second) = tokio::join!(
            async {
                match &mut self.postgres {
                    Some(server) => server.stop().await,
                    None => Ok(()),
                }
            },
            async {
                match &mut self.rabbitmq {
                    Some(server) => server.stop().await,
                    None => Ok(()),
                }
            }
        );
        first.and(second)
    }
}

fn ready(server: &str, port: u16, begun: Instant) -> String {
    format!("{server} ready on 127.0.0.1:{port} in {:.1} s", begun.elapsed().as_secs_f64())
}

/// Who runs the wanted servers.
struct Accounts {
    postgres: Option<Account>,
    rabbitmq: Option<Account>,
}

impl Accounts {
    async fn find(options: Options<'_>) -> Result<Self, ServersError> {
        Ok(Self {
            postgres: if options.postgres { Some(Account::for_server("postgres").await?) } else { None },
            rabbitmq: if options.rabbitmq { Some(Account::for_server("rabbitmq").await?) } else { None },
        })
    }

    fn all(&self) -> Vec<&Account> {
        self.postgres.iter().chain(&self.rabbitmq).collect()
    }
}

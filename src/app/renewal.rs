//! The ways of a running process to broker and database, and what a reload makes of them.
//!
//! A new way is tried before it is gone: where a server refuses it, all stays as it was. A server that is away can't be asked, and
//! the old way may be the one that keeps it away, so then the new one is taken.

use std::sync::Arc;

use tracing::{info, warn};

use super::App;
use crate::admin::ConfiguredToken;
use crate::broker::{self, Link, Purpose};
use crate::config::{Config, Role};
use crate::db::{Access, Listener, Pool, SettingsError};
use crate::health::{Check, Health};

/// Under this name `/readyz` and `onceflow status` tell how a reload ended.
const CHECK: &str = "configuration";

/// Why a new way is not taken.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct RenewError(Vec<String>);

/// What leads out of the process, and who is let in.
pub(super) struct Ways {
    pub(super) consume: Arc<Link>,
    pub(super) publish: Arc<Link>,
    pub(super) consumers: Pool,
    pub(super) relay: Pool,
    pub(super) admin: Pool,
    pub(super) token: ConfiguredToken,
    listener: Access,
}

impl Ways {
    /// Connects nothing yet.
    pub(super) fn open(config: &Config, health: &Arc<Health>) -> Result<(Self, Listener), SettingsError> {
        let link = |purpose| Arc::new(Link::new(config.broker.clone(), purpose, health.clone()));
        let listener = config.database.listener()?;
        let ways = Self {
            consume: link(Purpose::Consume),
            publish: link(Purpose::Publish),
            consumers: config.database.pool(Role::Consumers)?,
            relay: config.database.pool(Role::Relay)?,
            admin: config.database.pool(Role::Admin)?,
            token: ConfiguredToken::new(config.admin.token.clone()),
            listener: listener.access(),
        };
        Ok((ways, listener))
    }

    fn renew_database(&self, config: &Config) -> Result<(), SettingsError> {
        let database = &config.database;
        let pools = [(Role::Consumers, &self.consumers), (Role::Relay, &self.relay), (Role::Admin, &self.admin)];
        for (role, pool) in pools {
            database.renew(role, pool)?;
        }
        database.renew_listener(&self.listener)
    }
}

impl App {
    /// Goes the ways of `next`, in the place of those of `before`, from the next connection on; who asks the API needs the token of
    /// `next` at once.
    ///
    /// # Errors
    /// A server refuses the new way; then all stays as it was.
    pub async fn renew(&self, before: &Config, next: &Config) -> Result<(), RenewError> {
        let broker = !next.broker.is_same_way(&before.broker);
        let database = !next.database.is_same_way(&before.database);
        let (to_broker, to_database) =
            tokio::join!(async { if broker { tried_broker(&next.broker).await } else { None } }, async {
                if database { tried_database(next).await } else { None }
            },);
        let refused: Vec<String> = [to_broker, to_database].into_iter().flatten().collect();
        if !refused.is_empty() {
            return Err(RenewError(refused));
        }
        if database {
            self.ways.renew_database(next).map_err(|error| RenewError(vec![error.to_string()]))?;
            info!("connections to the database are made anew, each when it is free");
        }
        if broker {
            for link in [&self.ways.consume, &self.ways.publish] {
                link.renew(next.broker.clone());
            }
            info!("the next connection to the broker is made the new way; those that stand go on");
        }
        self.ways.token.replace(next.admin.token.clone());
        Ok(())
    }

    /// Shows how the last reload ended.
    pub fn reloaded(&self, failure: Option<&str>) {
        let check = failure.map_or(Check::Ok, |why| Check::Advised(format!("not reloaded, the old one stays: {why}")));
        self.health.set(CHECK, check);
        crate::telemetry::config_reload(failure.is_none());
    }
}

/// Why the broker refuses, if it does.
async fn tried_broker(settings: &broker::Settings) -> Option<String> {
    let error = broker::knock(settings).await.err()?;
    if error.is_about_who_we_are() {
        return Some(error.to_string());
    }
    warn!(%error, "the new way to the broker can't be tried and is taken: {error}");
    None
}

/// Why the database refuses, if it does.
async fn tried_database(config: &Config) -> Option<String> {
    let error = config.database.knock().await.err()?;
    if error.is_about_who_we_are() {
        return Some(error.to_string());
    }
    warn!(%error, "the new way to the database can't be tried and is taken: {error}");
    None
}

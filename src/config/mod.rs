//! The configuration: the only reader of the environment. All errors are reported at once, each with its place and remedy.
//!
//! Order, later wins: defaults, `onceflow.toml`, environment. The file is the one given with `--config`, else the first of
//! `./onceflow.toml`, `./.onceflow/dev/onceflow.toml` (written by `onceflow dev`) and `/etc/onceflow/onceflow.toml`.
//!
//! | variable | key |
//! |---|---|
//! | `ONCEFLOW_AMQP_URL` | `broker.url` |
//! | `ONCEFLOW_DATABASE_URL` | `database.url` |
//! | `ONCEFLOW_ADMIN_LISTEN` | `admin.listen` |
//! | `ONCEFLOW_METRICS_LISTEN` | `admin.metrics_listen` |
//! | `ONCEFLOW_ADMIN_TOKEN` | `admin.token` |
//! | `ONCEFLOW_<SECTION>__<KEY>` | any other key, e.g. `ONCEFLOW_RUNTIME__PREFETCH` |
//!
//! Secrets (`broker.url`, `database.url`, `admin.token`) are also read from the file that `…_FILE` names.

mod admin;
mod broker;
mod database;
mod environment;
mod reader;
mod renewal;
mod retention;
mod runtime;
mod tls;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use admin::{AdminSettings, LogSettings};
pub use database::{DatabaseSettings, Role};
pub use environment::variable;
pub use reader::{ConfigErrors, Problem};
pub use renewal::Renewed;

use crate::broker::Settings as BrokerSettings;
use crate::outbox::Unroutable;
use crate::retention::Policy;
use crate::runtime::{ConsumerSettings, Settings as RuntimeSettings};
use reader::Reader;

/// Where a configuration file is looked for when none is named.
const PLACES: [&str; 3] = ["onceflow.toml", ".onceflow/dev/onceflow.toml", "/etc/onceflow/onceflow.toml"];

/// A complete, valid configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it came from, if any.
    pub file: Option<PathBuf>,
    /// How to reach RabbitMQ.
    pub broker: BrokerSettings,
    /// How to reach PostgreSQL.
    pub database: DatabaseSettings,
    /// How events are handled.
    pub runtime: RuntimeSettings,
    /// Per consumer; one entry for each consumer of the build.
    pub consumers: Vec<ConsumerSettings>,
    /// What happens to downstream events that no queue is bound for.
    pub unroutable: Unroutable,
    /// Whether dead letters can be edited.
    pub edit: bool,
    /// How long rows are kept.
    pub retention: Policy,
    /// Health, metrics and API.
    pub admin: AdminSettings,
    /// Logs.
    pub log: LogSettings,
    /// What was given for each key that waits for a restart, hashed.
    given: BTreeMap<String, u64>,
}

/// Reads and checks the configuration; `consumers` are the names that this build knows.
///
/// # Errors
/// Every problem found, not only the first.
pub fn load(path: Option<&Path>, consumers: &[&str]) -> Result<Config, ConfigErrors> {
    let file = path.map(Path::to_path_buf).or_else(|| PLACES.iter().map(PathBuf::from).find(|p| p.is_file()));
    let mut reader = Reader::open(file.as_deref())?;
    let mut broker = broker::read(&mut reader);
    let user = broker.user();
    let read_consumer = |name: &&str| runtime::read_consumer(&mut reader, name, user.as_deref());
    let consumers: Vec<ConsumerSettings> = consumers.iter().map(read_consumer).collect();
    if consumers.iter().any(|consumer| consumer.producers.is_some()) {
        broker.signs_as = user;
    }
    let mut config = Config {
        broker,
        database: database::read(&mut reader),
        runtime: runtime::read(&mut reader),
        consumers,
        unroutable: runtime::read_unroutable(&mut reader),
        edit: reader.get("replay.edit", false),
        retention: retention::read(&mut reader),
        admin: admin::read(&mut reader),
        log: admin::read_log(&mut reader),
        given: BTreeMap::new(),
        file,
    };
    check_connections(&mut reader, &config);
    config.given = renewal::what_waits(reader.finish()?);
    Ok(config)
}

/// A lane keeps its connection for as long as its handler takes: with one for each, a consumer that hangs takes none from others.
fn check_connections(reader: &mut Reader, config: &Config) {
    let (lanes, consumers) = (config.runtime.lanes, config.consumers.len());
    // One more of each consumer moves what the broker gave up on.
    let needed = (lanes + 1) * consumers;
    let given = config.database.max_connections();
    if needed > given {
        let what = format!(
            "{lanes} lanes of {consumers} consumers, and one more for each consumer, need {needed} connections, but \
             database.max_connections is {given}: raise it, or take fewer lanes"
        );
        reader.problem("runtime.lanes", what);
    }
}

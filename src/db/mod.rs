//! PostgreSQL: the pool, the transaction and the migrations. Nothing else in the house opens a connection.

mod access;
mod error;
mod listen;
mod migrate;
mod pool;
mod roles;
mod tx;

pub use access::Access;
pub use error::{Class, DbError};
pub use listen::Listener;
pub use migrate::{MigrateError, SchemaState, migrate, schema_state, text_is_indexed};
pub use pool::{Pool, PoolUsage, Settings, SettingsError, knock};
pub use roles::{Changes, Grant, Roles};
pub use tx::{Commit, Tx};

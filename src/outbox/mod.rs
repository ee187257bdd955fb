//! The outbox: events written in the transaction of their cause, published later by the relay.
//!
//! # Protocol
//! 1. [`append`] inserts rows in the running transaction. `seq` rises in commit order within one ordering key, because the rows
//!    of a key are written under that key's lane or row locks.
//! 2. Every row belongs to one of [`PARTITIONS`] by the hash of its key. A relay leases partitions; the lease has an epoch that
//!    rises at each takeover.
//! 3. The holder reads rows in `seq` order and publishes them in waves, at most one row per key in flight, so that a refused
//!    row never overtakes: what follows it in its key waits.
//! 4. Confirmed rows are deleted by one statement that also compares the epoch and counts them. A relay that was frozen beyond
//!    its lease deletes nothing.
//!
//! A crash after the confirm and before the delete publishes a row again with the same id: at least once, never less.

mod lease;
mod publishing;
mod relay;
mod row;
mod store;
mod wakeup;

pub use relay::{Relay, RelaySettings, Unroutable};
pub use row::OutboxRow;
pub use store::append;
pub use wakeup::Wakeup;

/// Relay partitions; the schema computes them, so this can't be configured.
pub const PARTITIONS: i16 = 8;

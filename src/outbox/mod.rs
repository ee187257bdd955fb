//! The outbox: events written in the transaction of their cause, published later by the relay.
//!
//! # Protocol
//! 1. [`append_and_commit`] writes rows as the last statement of a transaction. `seq` rises in commit order within one ordering
//!    key, because the rows of a key are written under that key's lane or row locks.
//! 2. Every row belongs to one of [`PARTITIONS`] by the hash of its key. Relays share the partitions by leases; a lease has an
//!    epoch that rises at each takeover.
//! 3. The holder gets the rows of its own process in memory, in commit order ([`Handover`]), and reads the table for
//!    all others: rows of other processes, of before a crash, of after an outage. Whether others have rows in a partition is
//!    asked by the statement that writes ours, under the locks that order them; if so the table is read before ours go out.
//!    Rows of writers that are no process of ours are told by a notification; without it they are found by looking, a little later.
//!    Every look begins above a floor, so that it visits no rows that are gone (`floor.rs`). A row of a partition that the process which
//!    writes it does not publish is marked as nobody's (writer -2).
//! 4. Rows are published in waves, at most one row per key in flight, so that a refused row never overtakes: what follows it in
//!    its key waits.
//! 5. Confirmed rows are removed beside that, many at once, by a statement that also compares the epoch and counts them. A relay
//!    that was frozen beyond its lease removes nothing.
//!
//! A crash after the confirm and before the removal publishes a row again with the same id: at least once, never less.

mod floor;
mod handover;
mod lease;
mod lineup;
mod publishing;
mod relay;
mod row;
mod store;
mod supply;
mod sweep;

pub use handover::Handover;
pub(crate) use publishing::stored_message;
pub use relay::{Relay, RelaySettings, Unroutable};
pub use row::{OutboxRow, Resent};
pub use store::{append_and_commit, resend_and_commit};

/// Relay partitions; the schema computes them, so this can't be configured.
pub const PARTITIONS: i16 = 8;

//! How an event is handled: contract, lanes, delivery, settling, retries, inbox, dead letters. Knows no domain.
//!
//! The way of one event: a `reader` of one of the consumer's queues takes it from the broker and hands it to a `lane`; the lane makes
//! `attempt`s at a batch of events; `settle` ends each of them, and the failed ones leave a row in `attempts`. Which queues are read here is decided in `delivery`, from the
//! `layout` and this replica's `share` of it. What comes back from the broker's own dead letters goes through `drain`. Where a
//! consumer is strict, what follows a failed event waits in `order`.

mod attempt;
mod attempts;
mod backlog;
mod contract;
mod copies;
mod dead_letter;
mod delivery;
mod drain;
mod erased;
mod headers;
mod inbox;
mod invariant;
mod job;
mod kill_switch;
mod lane;
mod lanes;
pub mod layout;
mod names;
pub(crate) mod order;
mod pause;
mod personal;
mod producers;
mod reader;
mod readers;
mod retry;
mod settings;
mod settle;
mod share;
mod waiting;
pub mod wire;

pub use contract::{Consumer, EventType, HandleError, Outcome, Received, Skip, ToProtobuf};
pub(crate) use dead_letter::stored_headers;
pub use delivery::{ABORT_MARGIN, Shared, run_consumer};
pub use drain::run_drain;
pub use erased::{AnyConsumer, Decoded, erase};
pub(crate) use inbox::{Superseded, end_of, supersede};
pub use invariant::{Invariant, Reach, Weight};
pub(crate) use job::fingerprint;
pub use layout::{Layout, Place, Unavailable};
pub use names::{Names, consumer_topology, egress_topology, entrance, fixed_topology, hash_exchange_topology};
pub use order::OrderPolicy;
pub use pause::Pauses;
pub use personal::{Erasure, PersonalData};
pub use producers::Producers;
pub use retry::{RetryClass, RetryPolicy};
pub(crate) use settings::counted;
pub use settings::{ConsumerSettings, ForeignBinding, Settings};
pub use share::Share;

//! How an event is handled: contract, lanes, delivery, settling, retries, inbox, dead letters. Knows no domain.
//!
//! The way of one event: `delivery` takes it from the broker and hands it to a `lane`; the lane makes `attempt`s at a batch
//! of events; `settle` ends each of them. What comes back from the broker's own dead letters goes through `drain`.

mod attempt;
mod contract;
mod copies;
mod dead_letter;
mod delivery;
mod drain;
mod erased;
mod headers;
mod inbox;
mod job;
mod lane;
mod lanes;
mod names;
mod pause;
mod retry;
mod settings;
mod settle;
pub mod wire;

pub use contract::{Consumer, EventType, HandleError, Outcome, Received, Skip, ToProtobuf};
pub use delivery::{ABORT_MARGIN, Shared, run_consumer};
pub use drain::run_drain;
pub use erased::{AnyConsumer, Decoded, erase};
pub use names::{Names, consumer_topology, egress_topology};
pub use pause::Pauses;
pub use retry::{RetryClass, RetryPolicy};
pub use settings::{ConsumerSettings, ForeignBinding, Settings};

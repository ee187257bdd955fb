//! How an event is handled: contract, lanes, delivery, settling, retries, inbox, dead letters. Knows no domain.

mod contract;
mod erased;
pub mod wire;

pub use contract::{Consumer, EventType, HandleError, Outcome, Received, Skip};
pub use erased::{AnyConsumer, Decoded, erase};

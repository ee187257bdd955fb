//! How an event is handled: contract, lanes, delivery, settling, retries, inbox, dead letters. Knows no domain.

mod contract;

pub use contract::{Consumer, EventType, HandleError, Outcome, Received, Skip};

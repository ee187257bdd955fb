//! One integration test binary: real servers, a database and a virtual host per test, all tests in parallel.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that isn't as expected")]

mod harness;

mod admin;
mod archive;
mod bulk;
mod catalogue;
mod cli;
mod consuming;
mod delivery;
mod documents;
mod edit;
mod edit_races;
mod fairness;
#[cfg(feature = "failpoints")]
mod faults;
mod groups;
mod invariants;
mod kill_switch;
mod kills;
mod memory;
mod openapi;
mod ordering;
mod org;
mod outages;
mod partitions;
mod payment;
mod publishing;
mod relay;
mod reload;
mod replay;
mod retention;
mod rights;
mod roles;
mod search;
mod security;
mod servers;
mod sms;
mod tidy;
mod tokens;
mod trace;
mod transactions;

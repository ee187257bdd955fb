//! Onceflow: an event-driven stream processor on RabbitMQ and PostgreSQL.
//!
//! It reads change events, applies each once in effect in one Postgres transaction with its outbox rows, and republishes
//! downstream events. `docs/ARCHITECTURE.md` is the map.

pub mod admin;
pub mod app;
mod breaker;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod config;
pub mod db;
pub mod dev;
pub mod domains;
pub mod event;
mod failpoint;
pub mod health;
pub mod message;
pub mod outbox;
mod pacing;
pub mod replay;
pub mod retention;
pub mod runtime;
pub mod telemetry;
pub mod tls;
pub mod topology;

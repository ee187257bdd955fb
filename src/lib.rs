//! Onceflow: an event-driven stream processor on RabbitMQ and PostgreSQL.
//!
//! It reads change events, applies each once in effect in one Postgres transaction with its outbox rows, and republishes
//! downstream events. `docs/ARCHITECTURE.md` is the map.

pub mod db;
pub mod domains;
pub mod event;
pub mod health;
pub mod message;
pub mod replay;
pub mod runtime;
pub mod telemetry;

//! Requests to send text messages: each is judged and stored once, and the decision goes downstream.
//!
//! A request that breaks a rule (number, template, parameters, expiry) is stored as rejected and says so downstream: the
//! sender must learn of it. Only what can't be stored under an id of its own, and an id that comes again with another
//! request, becomes a dead letter. Sending through a provider is not part of this domain yet.
//!
//! Phone numbers and parameters (one-time passwords) stand in the database only. Their types print masked.

mod consumer;
mod event;
mod fingerprint;
mod invariants_store;
mod model;
mod personal_store;
mod phone;
mod store;
mod template;

pub(crate) use consumer::Sms;

/// The messages of `proto/sms/v1`, with the canonical JSON mapping.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::excessive_nesting,
    clippy::too_many_lines,
    clippy::wildcard_imports,
    clippy::doc_markdown,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub(crate) mod proto {
    include!(concat!(env!("OUT_DIR"), "/onceflow.sms.v1.rs"));
    include!(concat!(env!("OUT_DIR"), "/onceflow.sms.v1.serde.rs"));
}

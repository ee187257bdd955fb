//! Orders and what payment providers say of them.
//!
//! `order.placed` creates an order with its lines; a callback is recorded once by the provider's notification id and once
//! by transaction and status, compared with its order, and moves the order along the ranked states of [`model`]. A callback
//! or cancel request that comes before its order waits for it. Whatever contradicts is recorded, sent to review, and never
//! posted.
//!
//! A micro-batch is dealt with as a whole: its orders are locked and read ([`stored`]), its events applied in memory
//! ([`plan`], [`effect`]), and what changed is written with one statement for each table ([`store`]).

mod catalog;
mod consumer;
mod downstream;
mod effect;
mod event;
mod id;
mod invariants_store;
mod model;
mod money;
mod order;
mod payments;
mod plan;
mod store;
mod stored;
mod verdict;

pub(crate) use consumer::Payment;

/// The messages of `proto/order` and `proto/payment`, with the canonical JSON mapping.
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
    pub(crate) mod order {
        include!(concat!(env!("OUT_DIR"), "/onceflow.order.v1.rs"));
        include!(concat!(env!("OUT_DIR"), "/onceflow.order.v1.serde.rs"));
    }
    pub(crate) mod payment {
        include!(concat!(env!("OUT_DIR"), "/onceflow.payment.v1.rs"));
        include!(concat!(env!("OUT_DIR"), "/onceflow.payment.v1.serde.rs"));
    }
}

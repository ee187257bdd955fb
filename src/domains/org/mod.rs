//! Departments, users and memberships of several directories.
//!
//! An object is known by tenant, directory and its id there. Each event carries the object's whole state and its version at
//! the source; only a greater [`model::Stamp`] wins, so every order of delivery ends in the same rows. Deletions leave a
//! tombstone that a late update can't pass and a newer one restores.
//!
//! What can't be applied yet is kept ([`waiting`]) and applied in the transaction that brings what was missing: a department
//! without its parent, a membership without its user or department, the deletion of a department that isn't empty. A move
//! that would close a cycle is refused. Downstream events tell only of what changed.

mod batch;
mod consumer;
mod department;
mod downstream;
mod event;
mod invariants_store;
mod membership;
mod model;
mod personal_store;
mod user;
mod validate;
mod waiting;
mod work;

pub(crate) use consumer::Org;

/// The messages of `proto/org/v1`, with the canonical JSON mapping.
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
    include!(concat!(env!("OUT_DIR"), "/onceflow.org.v1.rs"));
    include!(concat!(env!("OUT_DIR"), "/onceflow.org.v1.serde.rs"));
}

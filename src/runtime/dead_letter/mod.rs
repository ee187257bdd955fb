//! Dead letters as the runtime writes them: stored once while live, counted when copies arrive, closed when a replay works.
//!
//! Headers are stored in the form that the outbox publishes: AMQP properties under `amqp:…`, every other key a header. So a
//! replay puts the exact original back, in whatever form the producer had sent it.

mod fingerprint;
mod record;
mod store;

pub(crate) use record::{DeadLetter, Identity, stored_headers};
pub(crate) use store::{bury, close_replayed};

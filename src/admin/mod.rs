//! The operators' door: health, metrics, and the API that the command line uses.
//!
//! Two listeners: the admin port (`/livez`, `/readyz`, `/api/v1/…`) and the metrics port. Both serve plain HTTP on loopback;
//! the admin port takes another address only with a token. Nothing here waits long: health and metrics come from memory,
//! everything else has a deadline and says so.

mod api;
mod configured;
mod connections;
mod guard;
mod health;
mod listen;
mod problem;
mod sampler;
mod serve;
mod state;
mod throttle;
mod tokens;
pub mod wire;

pub use api::openapi;
pub use configured::ConfiguredToken;
pub use listen::{ListenError, bind_admin, bind_metrics};
pub use sampler::sample;
pub use serve::{serve_admin, serve_metrics};
pub use state::{AdminState, BEGIN_WITHIN, ConsumerInfo};

//! Everything in one process group, for newcomers and tests: private servers, the service, a demo.

mod demo;
pub mod servers;
mod servers_only;
mod session;

pub use servers_only::servers_only;
pub use session::{Session, Wishes};

//! What developers run on their own machine: private servers, for the demo and for the tests.

pub mod servers;
mod servers_only;

pub use servers_only::servers_only;

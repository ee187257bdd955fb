//! What every integration test stands on.
//!
//! [`servers`] are real and shared by the whole test process; [`Database`] and [`Vhost`] belong to one test; [`direct`] tries
//! a consumer without a broker; [`eventually`] waits for a state with a deadline.

#![allow(dead_code, unused_imports, reason = "a toolbox: each tool is for the tests that need it")]

mod database;
pub(crate) mod direct;
mod eventually;
pub(crate) mod probe;
pub(crate) mod proxy;
mod servers;
pub(crate) mod service;
pub(crate) mod stack;
mod vhost;

pub(crate) use database::{Database, connect, pool};
pub(crate) use eventually::eventually;
pub(crate) use probe::Probe;
pub(crate) use servers::{Addresses, project, servers};
pub(crate) use stack::{SOON, Stack, Wishes};
pub(crate) use vhost::Vhost;

/// A name that nothing else on the shared servers has. Old ones are known by their beginning and removed.
fn unique(prefix: &str) -> String {
    format!("{prefix}{}", uuid::Uuid::now_v7().simple())
}

/// A number by which a test can be made longer or shorter, from the environment.
pub(crate) fn size(name: &str, default: u64) -> u64 {
    let text = std::env::var_os(name).map(|text| text.into_string().unwrap());
    text.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")))
}

/// Cleans up after a test without keeping it waiting; at the end of the process it may not come to its end.
fn in_background<F>(work: impl FnOnce() -> F + Send + 'static)
where
    F: Future<Output = ()>,
{
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        if let Ok(runtime) = runtime {
            runtime.block_on(work());
        }
    });
}

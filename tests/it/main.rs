//! One integration test binary: real servers, a database and a virtual host per test, all tests in parallel.

mod harness;

mod org;
mod payment;
mod servers;
mod sms;

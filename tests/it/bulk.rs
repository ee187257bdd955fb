//! Jobs: many dead letters replayed or discarded with a brake.

mod approval;
mod desk;
mod hints;
mod metrics;
mod plans;
mod runs;
mod service;

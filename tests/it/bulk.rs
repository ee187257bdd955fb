//! Jobs: many dead letters replayed or discarded with a brake.

mod desk;
mod plans;
mod runs;
mod service;

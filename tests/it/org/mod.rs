//! The org domain: versions, tombstones, the tree, and what waits for what (D-2, D-4 to D-7).

mod batches;
mod downstream;
mod tombstones;
mod tree;
mod versions;
mod waiting;
mod world;

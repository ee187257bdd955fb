//! `onceflow check invariants`: silent while everything works, and it finds whatever is broken.

pub(crate) mod broken;
mod load;

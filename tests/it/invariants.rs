//! `onceflow check invariants`: silent while everything works, and it finds whatever is broken.

mod broken;
mod load;

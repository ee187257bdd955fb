//! Whether copies of events are to be expected.
//!
//! A batch without copies is handled before its claim is answered (`attempt.rs`); one that has a copy after all, or fails, costs
//! a transaction more. So after one the next batches are handled in turn.

use std::sync::atomic::{AtomicU32, Ordering};

use super::attempt::Entry;

/// How many batches after one with a copy are handled in turn: where each tenth event is a copy, nearly all.
const CAREFUL_BATCHES: u32 = 16;

/// What a consumer has seen of copies lately.
#[derive(Debug, Default)]
pub(super) struct Copies {
    careful: AtomicU32,
}

impl Copies {
    /// Whether a batch may be handled in the hope that all its events are new. A delivery that the broker has made before, and
    /// a replay, may well have been applied.
    pub(super) fn are_unlikely(&self, entries: &[Entry]) -> bool {
        let left = self.careful.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        left.is_err() && !entries.iter().any(|entry| entry.redelivered || entry.replay_id.is_some())
    }

    /// A copy was found, or a batch failed.
    pub(super) fn be_careful(&self) {
        self.careful.store(CAREFUL_BATCHES, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_copy_the_next_batches_are_handled_in_turn() {
        let copies = Copies::default();
        assert!(copies.are_unlikely(&[]));
        copies.be_careful();
        for _ in 0..CAREFUL_BATCHES {
            assert!(!copies.are_unlikely(&[]));
        }
        assert!(copies.are_unlikely(&[]));
    }
}

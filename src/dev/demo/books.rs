//! The books of a run: what was published on one side, what became of it on the other. They must add up.

use super::store::Counts;

/// A look at all ends of the way at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Look {
    pub(super) counts: Counts,
    /// Messages in the retry queues.
    pub(super) retrying: i64,
    /// Messages in the consumers' queues, their dead-letter queues included.
    pub(super) waiting: i64,
    /// Messages in the sibling's queue.
    pub(super) sibling: i64,
}

/// What happened between two looks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Books {
    pub(super) received: i64,
    pub(super) applied: i64,
    pub(super) duplicates: i64,
    pub(super) stale: i64,
    pub(super) skipped: i64,
    pub(super) retrying: i64,
    pub(super) dead: i64,
    pub(super) outbox_rows: i64,
    pub(super) confirmed: i64,
    pub(super) sibling: i64,
}

impl Books {
    pub(super) fn between(before: &Look, after: &Look, received: usize) -> Self {
        let (a, b) = (&after.counts, &before.counts);
        Self {
            received: i64::try_from(received).unwrap_or(i64::MAX),
            applied: a.applied - b.applied,
            duplicates: a.duplicates - b.duplicates,
            stale: a.stale - b.stale,
            skipped: a.skipped - b.skipped,
            retrying: after.retrying - before.retrying,
            dead: a.dead - b.dead,
            outbox_rows: a.downstream - b.downstream,
            confirmed: a.confirmed - b.confirmed,
            sibling: after.sibling - before.sibling,
        }
    }

    pub(super) fn accounted(&self) -> i64 {
        self.applied + self.duplicates + self.stale + self.skipped + self.retrying + self.dead
    }

    /// Whether each message has ended in exactly one way and each outbox row has reached the sibling once.
    pub(super) fn add_up(&self) -> bool {
        self.received == self.accounted() && self.outbox_rows == self.confirmed && self.confirmed == self.sibling
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(applied: i64, dead: i64, downstream: i64, sibling: i64) -> Look {
        let counts = Counts { applied, dead, downstream, confirmed: downstream, ..Counts::default() };
        Look { counts, sibling, ..Look::default() }
    }

    #[test]
    fn the_books_add_up_only_when_nothing_is_missing_or_double() {
        let before = look(10, 1, 5, 5);
        assert!(Books::between(&before, &look(17, 4, 9, 9), 10).add_up());
        assert!(!Books::between(&before, &look(16, 4, 9, 9), 10).add_up(), "one event lost");
        assert!(!Books::between(&before, &look(17, 4, 9, 10), 10).add_up(), "one downstream event twice");
    }
}

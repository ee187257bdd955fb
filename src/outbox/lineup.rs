//! Rows in memory that wait to be published: in order per key, the keys in turn.

use std::collections::VecDeque;
use std::sync::Arc;

use foldhash::{HashMap, HashSet};

use super::row::Pending;

/// A line of rows for each key. A wave takes the first row of each key, so at most one row of a key is in flight and a row that
/// is refused is never overtaken (I-5); keys that came later join the next wave, so a hot key holds nobody up.
#[derive(Debug, Default)]
pub(super) struct Lineup {
    lines: HashMap<Arc<str>, Line>,
    /// Keys with rows, in turn.
    turn: VecDeque<Arc<str>>,
    seqs: HashSet<i64>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Line {
    rows: VecDeque<Pending>,
    bytes: usize,
}

/// What a key has at hand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct AtHand {
    pub(super) rows: usize,
    pub(super) bytes: usize,
}

impl Lineup {
    /// Adds a row unless it is there already. Returns what its key has now.
    pub(super) fn add(&mut self, row: Pending) -> AtHand {
        if !self.seqs.insert(row.seq) {
            return self.at_hand(&row.key);
        }
        let line = self.lines.entry(row.key.clone()).or_default();
        if line.rows.is_empty() {
            self.turn.push_back(row.key.clone());
        }
        self.bytes += row.weight();
        line.bytes += row.weight();
        // Nearly always at the end: a row of another writer may have been found late.
        let place = line.rows.partition_point(|other| other.seq < row.seq);
        line.rows.insert(place, row);
        AtHand { rows: line.rows.len(), bytes: line.bytes }
    }

    /// Forgets the last rows of a key, so that it has no more than this.
    pub(super) fn cut(&mut self, key: &str, most: AtHand) {
        let Some(line) = self.lines.get_mut(key) else { return };
        while line.rows.len() > most.rows || line.bytes > most.bytes && line.rows.len() > 1 {
            let Some(row) = line.rows.pop_back() else { break };
            line.bytes -= row.weight();
            self.bytes -= row.weight();
            self.seqs.remove(&row.seq);
        }
    }

    /// Rows of a key.
    pub(super) fn at_hand(&self, key: &str) -> AtHand {
        self.lines.get(key).map_or_else(AtHand::default, |line| AtHand { rows: line.rows.len(), bytes: line.bytes })
    }

    /// Takes the next rows, one of each key, up to a number and a size in bytes; at least one where there is any.
    pub(super) fn wave(&mut self, most_rows: usize, most_bytes: usize) -> Vec<Pending> {
        let mut wave: Vec<Pending> = Vec::new();
        let mut bytes = 0;
        let mut again = Vec::new();
        while wave.len() < most_rows && (wave.is_empty() || bytes < most_bytes) {
            let Some(key) = self.turn.pop_front() else { break };
            let Some(line) = self.lines.get_mut(&key) else { continue };
            if let Some(row) = line.rows.pop_front() {
                bytes += row.weight();
                line.bytes -= row.weight();
                self.seqs.remove(&row.seq);
                wave.push(row);
            }
            if line.rows.is_empty() {
                self.lines.remove(&key);
            } else {
                again.push(key);
            }
        }
        self.turn.extend(again);
        self.bytes -= bytes;
        wave
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Rows.
    pub(super) fn len(&self) -> usize {
        self.seqs.len()
    }

    /// Bytes of all rows.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keys that could go in the next wave.
    pub(super) fn keys(&self) -> usize {
        self.turn.len()
    }

    /// The numbers of all rows.
    pub(super) fn seqs(&self) -> impl Iterator<Item = i64> {
        self.seqs.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::row::tests::pending;

    fn lineup(rows: &[(&str, i64)]) -> Lineup {
        let mut lineup = Lineup::default();
        for (key, seq) in rows {
            lineup.add(pending(key, *seq));
        }
        lineup
    }

    fn wave(lineup: &mut Lineup) -> Vec<i64> {
        lineup.wave(100, usize::MAX).iter().map(|row| row.seq).collect()
    }

    #[test]
    fn rows_of_one_key_leave_in_order_one_wave_each_i5() {
        let mut lineup = lineup(&[("a", 1), ("b", 2), ("a", 3), ("a", 4), ("b", 5)]);
        assert_eq!([wave(&mut lineup), wave(&mut lineup), wave(&mut lineup)], [vec![1, 2], vec![3, 5], vec![4]]);
        assert_eq!((wave(&mut lineup), lineup.len()), (vec![], 0));
    }

    #[test]
    fn a_key_that_comes_later_does_not_wait_behind_a_hot_one_c5() {
        let mut lineup = lineup(&[("hot", 1), ("hot", 2), ("hot", 3)]);
        assert_eq!(wave(&mut lineup), [1]);
        lineup.add(pending("cold", 4));
        assert_eq!(wave(&mut lineup), [2, 4]);
    }

    #[test]
    fn a_row_that_is_found_late_goes_to_its_place_and_one_found_twice_goes_once() {
        let mut lineup = lineup(&[("a", 3), ("a", 1), ("a", 3), ("a", 2)]);
        assert_eq!([wave(&mut lineup), wave(&mut lineup), wave(&mut lineup)], [[1], [2], [3]]);
    }

    #[test]
    fn rows_at_hand_are_counted_in_bytes_i8() {
        let mut lineup = lineup(&[("a", 1), ("a", 2), ("b", 3), ("a", 1)]);
        let weight = pending("a", 1).weight();
        assert_eq!(lineup.at_hand("t/a"), AtHand { rows: 2, bytes: 2 * weight });
        assert_eq!(lineup.bytes(), 3 * weight);
        wave(&mut lineup);
        assert_eq!((lineup.at_hand("t/a").bytes, lineup.at_hand("t/b").bytes, lineup.bytes()), (weight, 0, weight));
    }

    #[test]
    fn a_line_that_is_cut_keeps_its_first_rows_and_one_in_any_case() {
        let mut lineup = lineup(&[("a", 4), ("a", 2), ("b", 3), ("a", 1), ("a", 5)]);
        let weight = pending("a", 1).weight();
        lineup.cut("t/a", AtHand { rows: 3, bytes: usize::MAX });
        assert_eq!((lineup.at_hand("t/a").rows, lineup.bytes()), (3, 4 * weight));
        lineup.cut("t/a", AtHand { rows: 3, bytes: 2 * weight });
        assert_eq!(lineup.seqs().collect::<std::collections::BTreeSet<_>>(), [1, 2, 3].into());
        lineup.cut("t/a", AtHand { rows: 3, bytes: 1 });
        assert_eq!([wave(&mut lineup), wave(&mut lineup)], [vec![1, 3], vec![]]);
    }

    #[test]
    fn a_wave_is_bounded_in_rows_and_bytes_and_the_turn_goes_on() {
        let mut lineup = lineup(&[("a", 1), ("a", 2), ("b", 3), ("c", 4)]);
        assert_eq!(lineup.wave(2, usize::MAX).len(), 2);
        assert_eq!(lineup.wave(100, 1).len(), 1, "one row goes whatever its size");
        assert_eq!(wave(&mut lineup), [2]);
    }
}

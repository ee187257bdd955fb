//! Below which number a partition has no row any more and will never have one again.
//!
//! Rows that were removed stay in the indexes as long as any session holds a transaction open that began before: a dump, a long
//! report. Whoever looks for the first row that is left would visit all of them, ever more. So looks begin above a floor.
//!
//! Numbers are given before their rows can be seen, so "all numbers so far are used up" is no floor: a transaction may still commit a
//! lower one. But whoever inserts holds a lock on the table from before it takes a number until it ends. So the last number is
//! remembered with the transactions that hold such a lock then, and once all of these have ended, every row up to it can be seen or
//! will never be. What of it is still there is found by one look above the floor that was; the new floor is just below that.
//!
//! A transaction that has written a row and stays open keeps a floor where it is. So rows of our own processes, whose transactions are
//! short, have a floor of their own, which doesn't wait for others; those of others are few, and have an index that finds them.
//!
//! A row that comes back with its old number is found once the floors are forgotten: after every trouble with the database, when it is
//! another server or its numbers were set back, and from time to time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How often they are raised.
const RAISE_EVERY: Duration = Duration::from_millis(500);
/// How often they are told to those who only count.
const SAVE_EVERY: Duration = Duration::from_secs(10);
/// How often they are forgotten, for what nobody has thought of. The next look may visit all that is gone, for a second or so.
const FORGET_EVERY: Duration = Duration::from_secs(900);

/// The last number that was given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Last {
    pub(super) seq: i64,
    /// When the server was started, in seconds: after a failover it is another one, which may give numbers again.
    pub(super) server: f64,
}

/// Transactions that may have inserted rows which can't be seen yet.
#[derive(Debug, Clone, Default)]
pub(super) struct Writing {
    pub(super) all: BTreeSet<String>,
    /// Those that may be of our processes.
    pub(super) ours: BTreeSet<String>,
}

/// The first rows of a partition above its floors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lowest {
    pub(super) partition: i16,
    pub(super) ours: Option<i64>,
    pub(super) theirs: Option<i64>,
}

/// The floors of some partitions, in their order; zero where nothing is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Floors {
    /// For rows of our own processes.
    pub(super) ours: Vec<i64>,
    /// For rows of others: writers 0 and -1. Never above that of ours.
    pub(super) theirs: Vec<i64>,
}

impl Floors {
    /// Of partitions of which nothing is known.
    pub(super) fn unknown(partitions: usize) -> Self {
        Self { ours: vec![0; partitions], theirs: vec![0; partitions] }
    }
}

/// Raises the floors of the partitions that are ours.
#[derive(Debug, Default)]
pub(super) struct Floor {
    ours: Class,
    theirs: Class,
    last: Option<Last>,
    raised: Option<Instant>,
    saved: Option<Instant>,
    kept_since: Option<Instant>,
}

/// What nothing is to come below any more, for either class of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Settled {
    ours: Option<i64>,
    theirs: Option<i64>,
}

impl Floor {
    pub(super) fn of(&self, partitions: &[i16]) -> Floors {
        let of = |class: &Class| partitions.iter().map(|partition| class.of(*partition)).collect::<Vec<_>>();
        let ours = of(&self.ours);
        let theirs = of(&self.theirs).into_iter().zip(&ours).map(|(theirs, ours)| theirs.min(*ours)).collect();
        Floors { ours, theirs }
    }

    /// Whether they should be raised by now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.raised.is_none_or(|at| now.duration_since(at) >= RAISE_EVERY)
    }

    /// Whether they should be told by now; then they are.
    pub(super) fn is_to_be_saved(&mut self, now: Instant) -> bool {
        let due = self.saved.is_none_or(|at| now.duration_since(at) >= SAVE_EVERY);
        if due {
            self.saved = Some(now);
        }
        due
    }

    /// Nothing is known any more.
    pub(super) fn forget(&mut self) {
        *self = Self { raised: self.raised, saved: self.saved, ..Self::default() };
    }

    /// Takes in the last number, and the transactions that held a lock for writing after it was read. Returns what is settled, if there
    /// is news.
    pub(super) fn seen(&mut self, now: Instant, last: Last, writing: Writing) -> Option<Settled> {
        self.raised = Some(now);
        let is_another = self.last.is_some_and(|before| last.server != before.server || last.seq < before.seq);
        if is_another || now.duration_since(*self.kept_since.get_or_insert(now)) >= FORGET_EVERY {
            self.forget();
            self.kept_since = Some(now);
        }
        self.last = Some(last);
        let (ours, theirs) = (self.ours.seen(last.seq, writing.ours), self.theirs.seen(last.seq, writing.all));
        let settled = Settled { ours, theirs };
        (settled.ours.is_some() || settled.theirs.is_some()).then_some(settled)
    }

    /// So much is settled, and these rows are the lowest above the floors.
    pub(super) fn raise(&mut self, settled: Settled, lowest: &[Lowest]) {
        for lowest in lowest {
            self.ours.raise(lowest.partition, settled.ours, lowest.ours);
            self.theirs.raise(lowest.partition, settled.theirs, lowest.theirs);
        }
    }
}

#[derive(Debug, Default)]
struct Class {
    floors: BTreeMap<i16, i64>,
    /// Up to this number nothing is to come once these transactions have ended.
    coming: Option<(i64, BTreeSet<String>)>,
}

impl Class {
    fn of(&self, partition: i16) -> i64 {
        self.floors.get(&partition).copied().unwrap_or(0)
    }

    fn seen(&mut self, last: i64, writing: BTreeSet<String>) -> Option<i64> {
        let (until, mut awaited) = self.coming.take().unwrap_or_else(|| (last, writing.clone()));
        awaited.retain(|transaction| writing.contains(transaction));
        if awaited.is_empty() {
            // Those that write now are awaited for what has come since.
            self.coming = (last > until).then_some((last, writing));
            return Some(until);
        }
        self.coming = Some((until, awaited));
        None
    }

    fn raise(&mut self, partition: i16, settled: Option<i64>, lowest: Option<i64>) {
        let Some(settled) = settled else { return };
        let floor = lowest.map_or(settled, |lowest| settled.min(lowest - 1));
        let of = self.floors.entry(partition).or_default();
        *of = floor.max(*of);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(transactions: &[&str]) -> BTreeSet<String> {
        transactions.iter().map(|&t| t.to_owned()).collect()
    }

    fn ours(transactions: &[&str]) -> Writing {
        Writing { all: set(transactions), ours: set(transactions) }
    }

    fn last(seq: i64) -> Last {
        Last { seq, server: 1.0 }
    }

    fn settled(ours: Option<i64>, theirs: Option<i64>) -> Option<Settled> {
        Some(Settled { ours, theirs })
    }

    fn no_rows(partition: i16) -> Lowest {
        Lowest { partition, ours: None, theirs: None }
    }

    #[test]
    fn they_wait_for_every_transaction_that_may_have_taken_a_number_and_for_no_later_one() {
        let (mut floor, now) = (Floor::default(), Instant::now());
        assert_eq!(floor.seen(now, last(100), ours(&["3/1", "4/1"])), None);
        assert_eq!(floor.seen(now, last(200), ours(&["4/1", "3/2"])), None, "4/1 may have one up to 100");
        assert_eq!(floor.seen(now, last(300), ours(&["3/2", "5/1"])), settled(Some(100), Some(100)));
        assert_eq!(floor.seen(now, last(400), ours(&["5/1"])), None, "5/1 may have one up to 300");
        assert_eq!(floor.seen(now, last(500), ours(&[])), settled(Some(300), Some(300)));
    }

    #[test]
    fn where_nobody_writes_it_is_known_at_once() {
        assert_eq!(Floor::default().seen(Instant::now(), last(100), ours(&[])), settled(Some(100), Some(100)));
    }

    #[test]
    fn the_floor_of_our_rows_does_not_wait_for_others() {
        let (mut floor, now) = (Floor::default(), Instant::now());
        let writing = || Writing { all: set(&["9/9", "3/1"]), ours: set(&[]) };
        let first = floor.seen(now, last(100), writing()).unwrap();
        assert_eq!(first, Settled { ours: Some(100), theirs: None });
        floor.raise(first, &[no_rows(1)]);
        assert_eq!(floor.of(&[1]), Floors { ours: vec![100], theirs: vec![0] });
    }

    #[test]
    fn a_floor_stays_below_the_lowest_row_that_is_left_and_never_falls() {
        let mut floor = Floor::default();
        let lowest = |partition, lowest| Lowest { ours: Some(lowest), ..no_rows(partition) };
        let until = |n| Settled { ours: Some(n), theirs: Some(n) };
        floor.raise(until(100), &[no_rows(1), lowest(2, 41), lowest(3, 101)]);
        assert_eq!(floor.of(&[1, 2, 3, 4]).ours, [100, 40, 100, 0]);
        assert_eq!(floor.of(&[1, 2, 3, 4]).theirs, [100, 40, 100, 0], "never above that of ours");
        floor.raise(until(90), &[no_rows(1), lowest(2, 41)]);
        assert_eq!(floor.of(&[1, 2]).ours, [100, 40]);
    }

    #[test]
    fn they_are_forgotten_on_demand_and_from_time_to_time() {
        let (mut floor, now) = (Floor::default(), Instant::now());
        let until = Settled { ours: Some(100), theirs: Some(100) };
        floor.raise(until, &[no_rows(1)]);
        floor.forget();
        assert_eq!(floor.of(&[1]), Floors::unknown(1));
        floor.seen(now, last(100), ours(&[]));
        floor.raise(until, &[no_rows(1)]);
        floor.seen(now + FORGET_EVERY / 2, last(100), ours(&[]));
        assert_eq!(floor.of(&[1]).ours, [100]);
        floor.seen(now + FORGET_EVERY, last(100), ours(&[]));
        assert_eq!(floor.of(&[1]), Floors::unknown(1));
    }

    #[test]
    fn of_another_server_and_of_numbers_that_were_set_back_nothing_is_known() {
        for another in [Last { seq: 200, server: 2.0 }, last(99)] {
            let (mut floor, now) = (Floor::default(), Instant::now());
            let until = floor.seen(now, last(100), ours(&[])).unwrap();
            floor.raise(until, &[no_rows(1)]);
            floor.seen(now, another, ours(&["3/1"]));
            assert_eq!(floor.of(&[1]), Floors::unknown(1), "{another:?}");
        }
    }
}

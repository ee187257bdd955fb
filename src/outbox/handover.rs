//! The way from a commit to the relay of the same process, without a look at the table.
//!
//! A committer takes a [`Ticket`] before its COMMIT is sent, while it still holds the locks that order the rows of a key. The
//! relay gets the rows in the order of the tickets, each only after all earlier ones are decided, so rows of one key arrive in
//! commit order whichever task wakes first. What does not fit in memory is not kept at all: it lies in the table, and the relay
//! goes back to reading that.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::floor::Floors;
use super::row::Pending;

/// Most rows that wait here for the relay.
const MOST_ROWS: usize = 8_192;
/// Most bytes of them.
const MOST_BYTES: usize = 4 * 1024 * 1024;
/// With so many rows, or bytes, waiting for the relay, whoever would add more waits a little.
const ENOUGH_ROWS: usize = 1_000;
const ENOUGH_BYTES: usize = MOST_BYTES / 4;
/// At most so long: a broker that takes nothing holds up no transaction, its rows stay in the table.
const WAIT_FOR_ROOM: Duration = Duration::from_millis(200);
/// How long the relay looks at the table too, after a COMMIT whose answer was lost: its rows may still appear.
const DOUBT: Duration = Duration::from_secs(60);

/// Hands committed rows to the relay; shared by all who write rows in this process.
#[derive(Debug, Clone)]
pub struct Handover {
    /// Names this process in its rows; never 0.
    writer: i64,
    /// Rung when a transaction is decided.
    decided: Arc<Notify>,
    /// Rung when the table has rows that nobody handed over.
    table: Arc<Notify>,
    /// Rung when the relay has taken rows, or wants none.
    room: Arc<Notify>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Number of the ticket at the front of `slots`.
    first: u64,
    slots: VecDeque<Slot>,
    rows: usize,
    bytes: usize,
    /// Whether the relay wants rows; if not, it reads the table.
    open: bool,
    /// Partitions that the relay of this process publishes.
    held: Arc<[i16]>,
    /// Their floors.
    floors: Arc<Floors>,
    look: bool,
    doubt_until: Option<Instant>,
}

#[derive(Debug)]
enum Slot {
    Undecided,
    Decided(Vec<Pending>),
}

/// What the relay gets.
#[derive(Debug)]
pub(super) struct Handed {
    /// In commit order.
    pub(super) rows: Vec<Pending>,
    /// Others may have written rows that come before these: look at the table first.
    pub(super) look: bool,
    /// False when rows were refused: only the table has everything.
    pub(super) complete: bool,
}

impl Default for Handover {
    fn default() -> Self {
        let writer = rand::random_range(1..i64::MAX);
        let (decided, table, room) = Default::default();
        Self { writer, decided, table, room, state: Arc::default() }
    }
}

impl Handover {
    /// The writer's number for the rows of this process.
    pub(super) fn writer(&self) -> i64 {
        self.writer
    }

    /// To be rung when somebody who hands nothing over has committed rows. Only shortens waiting.
    pub fn bell(&self) -> Arc<Notify> {
        self.table.clone()
    }

    /// Waits until there may be something to take.
    pub(super) async fn something(&self) {
        tokio::select! {
            () = self.decided.notified() => {}
            () = self.table.notified() => self.state().look = true,
        }
    }

    /// To be awaited before a transaction that will write rows: a relay that is behind gets time to catch up, since rows that
    /// don't fit in memory have to be read from the table again.
    pub async fn room(&self) {
        let room = async {
            loop {
                let taken = self.room.notified();
                if !self.state().is_crowded() {
                    return;
                }
                taken.await;
            }
        };
        // In the end the rows are written whether there is room or not.
        let _late = tokio::time::timeout(WAIT_FOR_ROOM, room).await;
    }

    /// Reserves a place in the order of commits. To be called with the transaction's locks held, before COMMIT is sent.
    pub fn ticket(&self) -> Ticket {
        let mut state = self.state();
        let number = state.first + state.slots.len() as u64;
        state.slots.push_back(Slot::Undecided);
        let (held, floors) = (state.held.clone(), state.floors.clone());
        Ticket { handover: self.clone(), number, held, floors, decided: false }
    }

    /// From now on the relay publishes these partitions, of which nothing more is known.
    pub(super) fn set_held(&self, held: Vec<i16>) {
        let mut state = self.state();
        state.floors = Arc::new(Floors::unknown(held.len()));
        state.held = held.into();
    }

    /// The floors of the partitions that are held, in their order.
    pub(super) fn set_floors(&self, floors: Floors) {
        self.state().floors = Arc::new(floors);
    }

    /// From now on rows are kept for the relay.
    pub(super) fn open(&self) {
        self.state().open = true;
    }

    /// Whether rows are still kept: they aren't once there were too many.
    pub(super) fn is_open(&self) -> bool {
        self.state().open
    }

    /// From now on rows are only in the table.
    pub(super) fn shut(&self) {
        self.state().shut();
        self.room.notify_waiters();
    }

    /// What was decided since the last time, at least one ticket's rows and then up to about `most`.
    pub(super) fn take(&self, most: usize) -> Handed {
        let mut state = self.state();
        let mut rows = Vec::new();
        while rows.len() < most && matches!(state.slots.front(), Some(Slot::Decided(_))) {
            match state.slots.pop_front() {
                Some(Slot::Decided(decided)) if rows.is_empty() => rows = decided,
                Some(Slot::Decided(decided)) => rows.extend(decided),
                Some(Slot::Undecided) | None => {}
            }
            state.first += 1;
        }
        self.room.notify_waiters();
        state.rows -= rows.len();
        state.bytes -= rows.iter().map(Pending::weight).sum::<usize>();
        // After a COMMIT whose answer was lost, some of our own rows may be only in the table.
        let doubt = state.doubt_until.is_some_and(|until| Instant::now() < until);
        let look = std::mem::take(&mut state.look) || doubt;
        Handed { rows, look, complete: state.open }
    }

    fn decide(&self, number: u64, rows: Vec<Pending>) {
        let mut state = self.state();
        let weight: usize = rows.iter().map(Pending::weight).sum();
        if state.open && (state.rows + rows.len() > MOST_ROWS || state.bytes + weight > MOST_BYTES) {
            state.shut();
        }
        let rows = if state.open { rows } else { Vec::new() };
        if !rows.is_empty() {
            state.rows += rows.len();
            state.bytes += weight;
        }
        let place = usize::try_from(number - state.first).unwrap_or(usize::MAX);
        if let Some(slot) = state.slots.get_mut(place) {
            *slot = Slot::Decided(rows);
        }
        state.leave_out_empty();
        drop(state);
        self.decided.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_crowded(&self) -> bool {
        self.open && (self.rows >= ENOUGH_ROWS || self.bytes >= ENOUGH_BYTES)
    }

    /// Where no relay takes anything, places must not pile up.
    fn leave_out_empty(&mut self) {
        while matches!(self.slots.front(), Some(Slot::Decided(rows)) if rows.is_empty()) {
            self.slots.pop_front();
            self.first += 1;
        }
    }

    fn shut(&mut self) {
        self.open = false;
        (self.rows, self.bytes) = (0, 0);
        for slot in &mut self.slots {
            if let Slot::Decided(rows) = slot {
                rows.clear();
            }
        }
    }
}

/// A place in the order of commits; given back empty when it is dropped.
#[derive(Debug)]
pub struct Ticket {
    handover: Handover,
    number: u64,
    held: Arc<[i16]>,
    floors: Arc<Floors>,
    decided: bool,
}

impl Ticket {
    /// The partitions that the relay of this process publishes, with their floors: where rows of others may come before those of this
    /// transaction.
    pub(super) fn held(&self) -> (&[i16], &Floors) {
        (&self.held, &self.floors)
    }

    /// The transaction is committed with these rows; `look` when others have rows in the partitions that were held.
    pub(super) fn committed(mut self, rows: Vec<Pending>, look: bool) {
        self.decided = true;
        let mut state = self.handover.state();
        // Nobody has asked for those that were taken meanwhile.
        state.look |= look || !Arc::ptr_eq(&state.held, &self.held);
        drop(state);
        self.handover.decide(self.number, rows);
    }

    /// Nobody knows whether the transaction was committed.
    pub fn unknown(self) {
        self.handover.state().doubt_until = Some(Instant::now() + DOUBT);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.decided {
            self.handover.decide(self.number, Vec::new());
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::poll_immediate;

    use super::*;
    use crate::outbox::row::tests::pending;

    fn seqs(handed: &Handed) -> Vec<i64> {
        handed.rows.iter().map(|row| row.seq).collect()
    }

    fn open() -> Handover {
        let handover = Handover::default();
        handover.open();
        handover
    }

    #[test]
    fn rows_arrive_in_the_order_of_the_tickets_whoever_wakes_first_i5() {
        let handover = open();
        let (first, second, third) = (handover.ticket(), handover.ticket(), handover.ticket());
        third.committed(vec![pending("a", 3)], false);
        second.committed(vec![pending("a", 2)], false);
        assert_eq!(seqs(&handover.take(100)), [] as [i64; 0]);
        first.committed(vec![pending("a", 1)], false);
        assert_eq!(seqs(&handover.take(100)), [1, 2, 3]);
    }

    #[test]
    fn a_transaction_that_was_rolled_back_holds_nobody_up() {
        let handover = open();
        let (first, second) = (handover.ticket(), handover.ticket());
        second.committed(vec![pending("a", 2)], false);
        drop(first);
        assert_eq!(seqs(&handover.take(100)), [2]);
    }

    #[test]
    fn after_a_commit_whose_answer_was_lost_the_table_is_looked_at() {
        let handover = open();
        handover.ticket().unknown();
        assert!(handover.take(100).look);
        handover.ticket().committed(vec![pending("a", 2)], false);
        assert!(handover.take(100).look, "its rows may still appear");
    }

    #[test]
    fn rows_of_others_are_told_once() {
        let handover = open();
        handover.ticket().committed(vec![pending("a", 2)], true);
        assert!(handover.take(100).look);
        assert!(!handover.take(100).look);
    }

    #[test]
    fn rows_of_others_in_partitions_that_were_taken_during_the_commit_are_looked_for_i5() {
        let handover = open();
        handover.set_held(vec![1, 2]);
        let before = handover.ticket();
        assert_eq!(before.held(), (&[1, 2][..], &Floors::unknown(2)));
        handover.set_held(vec![1, 2, 3]);
        before.committed(vec![pending("a", 1)], false);
        assert!(handover.take(100).look, "nobody has asked about 3");
        handover.ticket().committed(vec![pending("a", 2)], false);
        assert!(!handover.take(100).look);
    }

    #[test]
    fn what_does_not_fit_is_left_to_the_table_and_nothing_after_it_is_kept_i8() {
        let handover = open();
        for seq in 0..=MOST_ROWS as i64 {
            handover.ticket().committed(vec![pending("a", seq)], false);
        }
        handover.ticket().committed(vec![pending("a", 1_000_000)], false);
        let handed = handover.take(usize::MAX);
        assert!(!handed.complete);
        assert_eq!(seqs(&handed), [] as [i64; 0], "none of it: only the table has everything");
        handover.open();
        handover.ticket().committed(vec![pending("a", 1_000_001)], false);
        assert_eq!(seqs(&handover.take(usize::MAX)), [1_000_001]);
    }

    #[test]
    fn where_no_relay_takes_anything_nothing_piles_up_i8() {
        let handover = Handover::default();
        let first = handover.ticket();
        for seq in 0..100 {
            handover.ticket().committed(vec![pending("a", seq)], false);
        }
        assert_eq!(handover.state().slots.len(), 101, "they wait for the first");
        drop(first);
        assert_eq!(handover.state().slots.len(), 0);
        handover.open();
        handover.ticket().committed(vec![pending("a", 100)], false);
        assert_eq!(seqs(&handover.take(usize::MAX)), [100]);
    }

    #[tokio::test]
    async fn who_writes_more_waits_for_a_relay_that_is_behind_i8() {
        let handover = open();
        for seq in 0..ENOUGH_ROWS as i64 {
            handover.ticket().committed(vec![pending("a", seq)], false);
        }
        let mut room = std::pin::pin!(handover.room());
        assert!(poll_immediate(room.as_mut()).await.is_none());
        handover.take(1);
        room.await;
        handover.ticket().committed(vec![pending("a", 1_000_000)], false);
        let mut room = std::pin::pin!(handover.room());
        assert!(poll_immediate(room.as_mut()).await.is_none());
        handover.shut();
        assert!(poll_immediate(room.as_mut()).await.is_some(), "rows that only go to the table need no room here");
    }

    #[tokio::test]
    async fn a_relay_that_takes_nothing_holds_nobody_up_for_long() {
        let handover = open();
        handover.ticket().committed((0..ENOUGH_ROWS as i64).map(|seq| pending("a", seq)).collect(), false);
        assert!(tokio::time::timeout(20 * WAIT_FOR_ROOM, handover.room()).await.is_ok());
    }

    #[tokio::test]
    async fn whoever_rings_the_bell_makes_the_relay_look_at_the_table() {
        let handover = open();
        let mut something = std::pin::pin!(handover.something());
        assert!(poll_immediate(something.as_mut()).await.is_none());
        handover.bell().notify_one();
        something.await;
        assert!(handover.take(100).look);
    }

    #[test]
    fn as_much_is_taken_as_was_asked_for() {
        let handover = open();
        for seq in 0..10 {
            handover.ticket().committed(vec![pending("a", seq), pending("b", 100 + seq)], false);
        }
        assert_eq!(handover.take(3).rows.len(), 4);
        assert_eq!(handover.take(100).rows.len(), 16);
    }
}

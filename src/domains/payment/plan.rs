//! What a micro-batch does: its events applied in memory, in order, and what is to be written then.
//!
//! Each event finds the orders and payments as the events before it left them, so a batch leaves what its events would
//! leave one by one. Planning needs no database: where an assumption proves wrong, it is done again.

use foldhash::HashMap;

use futures_util::future::{try_join, try_join4};

use super::effect;
use super::event::{Event, Line};
use super::order::{Key, Order};
use super::payments::{Orphan, Payment, Payments, Recorded};
use super::store;
use super::stored::{Row, Stored, key};
use crate::db::{DbError, Tx};
use crate::event::Rejection;
use crate::runtime::{HandleError, Outcome, Received};

/// An order of the batch.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    /// As the events so far leave it.
    pub(super) order: Order,
    /// Whose it is.
    pub(super) tenant: &'a str,
    /// What stands in its row.
    row: &'a Order,
    /// How many callbacks wait for it.
    pub(super) orphans: i64,
    /// Those of them that placing it has to match.
    pub(super) waiting: Vec<Orphan<'a>>,
    /// Of an order that was placed, where they are needed.
    pub(super) lines: &'a [Line],
    /// Whether this batch places it.
    pub(super) is_placed_now: bool,
}

impl<'a> Entry<'a> {
    fn of(row: &'a Row) -> Self {
        Self {
            order: if row.is_new { Order::awaited(row.order.key()) } else { row.order.clone() },
            tenant: &row.order.tenant,
            row: &row.order,
            orphans: row.orphans,
            waiting: Vec::new(),
            lines: &[],
            is_placed_now: false,
        }
    }
}

/// The outcomes of a batch's events with all that is to be written for them.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    /// One for each event.
    pub(super) outcomes: Vec<Outcome>,
    entries: HashMap<Key<'a>, Entry<'a>>,
    payments: Payments<'a>,
}

impl<'a> Plan<'a> {
    /// Applies the events in memory, knowing that these payments were recorded before.
    pub(super) fn draw(
        events: &'a [Received<Event>],
        stored: &'a Stored,
        recorded: &'a [Recorded],
    ) -> Result<Self, HandleError> {
        let mut plan = Self {
            outcomes: Vec::with_capacity(events.len()),
            entries: stored.rows.iter().map(|row| (row.order.key(), Entry::of(row))).collect(),
            payments: Payments::of(recorded),
        };
        for orphan in &stored.orphans {
            plan.entry((&orphan.tenant, orphan.callback.order_no.as_str()))?.waiting.push(Orphan::Stored(orphan));
        }
        for ((tenant, order_no), lines) in &stored.lines {
            plan.entry((tenant, order_no))?.lines = lines;
        }
        for received in events {
            let outcome = plan.apply(received)?;
            plan.outcomes.push(outcome);
        }
        Ok(plan)
    }

    fn apply(&mut self, received: &'a Received<Event>) -> Result<Outcome, HandleError> {
        let entry = self.entries.get_mut(&key(received)).ok_or_else(not_locked)?;
        match &*received.event {
            Event::Placed(placed) => effect::placed(entry, &mut self.payments, placed),
            Event::Callback(callback) => effect::callback(entry, &mut self.payments, callback),
            Event::Cancel(cancel) => effect::cancel(&mut entry.order, cancel),
        }
    }

    fn entry(&mut self, key: Key<'a>) -> Result<&mut Entry<'a>, DbError> {
        self.entries.get_mut(&key).ok_or_else(not_locked)
    }

    /// The orders as the events leave them.
    pub(super) fn into_orders(self) -> Vec<Order> {
        self.entries.into_values().map(|entry| entry.order).collect()
    }

    /// Writes everything, at most one statement for each table, and returns the payments that could not be inserted.
    pub(super) async fn write(&self, tx: &Tx) -> Result<Vec<&Payment<'a>>, DbError> {
        let placed: Vec<_> = self.entries.values().filter(|e| e.is_placed_now).map(|e| (e.row, e.lines)).collect();
        let moved: Vec<_> = self.entries.values().filter(|e| e.order != *e.row).map(|e| &e.order).collect();
        // All under way before the first answer. In this order: the foreign keys' checks pass over rows that are only locked.
        let (refused, (), (), ()) = try_join4(
            store::insert_payments(tx, &self.payments.added),
            store::settle_payments(tx, self.payments.settled.iter().collect()),
            store::insert_lines(tx, &placed),
            store::save_orders(tx, &moved),
        )
        .await?;
        Ok(refused)
    }

    /// Corrects what `first` wrote before it was known that these payments of it could not be inserted.
    pub(super) async fn write_over(
        &self,
        tx: &Tx,
        first: &Plan<'_>,
        refused: &[&Payment<'_>],
    ) -> Result<(), HandleError> {
        let is = |one: &Payment<'_>, other: &Payment<'_>| std::ptr::eq(one.callback, other.callback);
        if self.payments.added.iter().any(|added| refused.iter().any(|refused| is(added, refused))) {
            return Err(contradicts_the_state_machine().into());
        }
        let inserted = first.payments.added.iter().filter(|added| !refused.iter().any(|refused| is(added, refused)));
        let inserted: Vec<_> = inserted.collect();
        let same = inserted.len() == self.payments.added.len();
        if !same || !inserted.iter().zip(&self.payments.added).all(|(one, other)| is(one, other)) {
            return Err(take_apart().into());
        }
        let before = inserted.into_iter().chain(&first.payments.settled);
        let after = self.payments.added.iter().chain(&self.payments.settled);
        let judged_anew = before.zip(after).filter(|(before, after)| before.verdict != after.verdict);
        let moved =
            self.entries.values().filter(|e| first.entries.get(&e.row.key()).is_none_or(|f| f.order != e.order));
        let moved: Vec<_> = moved.map(|e| &e.order).collect();
        let settling = store::settle_payments(tx, judged_anew.map(|(_, after)| after).collect());
        try_join(settling, store::save_orders(tx, &moved)).await?;
        Ok(())
    }
}

fn not_locked() -> DbError {
    DbError::shape("the row of an order was not found to lock")
}

/// The insert stopped at the third unique index: rows that contradict the state machine. Never call that a duplicate.
fn contradicts_the_state_machine() -> Rejection {
    let message = "the order has an accepted payment but isn't PAID (payment_paid_once); correct its row, then replay";
    Rejection::refused("inconsistent_order", message)
}

/// The only way out where a known payment frees an id for another callback of the same batch. One event alone never gets here.
fn take_apart() -> Rejection {
    let message =
        "callbacks of this batch share notification or transaction ids in a way that only one by one can tell apart";
    Rejection::refused("entangled_batch", message)
}

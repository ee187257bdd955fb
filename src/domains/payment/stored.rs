//! What the database holds of the orders of a batch, locked and read in as many statements for one event as for a hundred.

use foldhash::{HashMap, HashMapExt as _, HashSet, HashSetExt as _};

use futures_util::future::try_join;

use super::event::{Event, Line};
use super::model::OrderState;
use super::order::{Key, Order};
use super::payments::Recorded;
use super::store;
use crate::db::{DbError, Tx};
use crate::runtime::Received;

/// The row of an order.
#[derive(Debug)]
pub(super) struct Row {
    /// What stands in it.
    pub(super) order: Order,
    /// Whether this transaction inserted it: until then nothing was heard of the order.
    pub(super) is_new: bool,
    /// How many callbacks wait for the order.
    pub(super) orphans: i64,
}

/// All that the events of a batch can depend on, but for payments that were recorded before: the insert tells those.
#[derive(Debug)]
pub(super) struct Stored {
    /// One for each order of the batch, locked until the transaction ends.
    pub(super) rows: Vec<Row>,
    /// What waits for the orders that the batch places, in order of arrival.
    pub(super) orphans: Vec<Recorded>,
    /// The lines of orders that were placed before and are in this batch again.
    pub(super) lines: HashMap<(String, String), Vec<Line>>,
}

impl Stored {
    /// As if nothing had ever been heard of the orders of these events.
    pub(super) fn nothing(events: &[Received<Event>]) -> Self {
        let mut seen = HashSet::with_capacity(events.len());
        let keys = events.iter().map(key).filter(|key| seen.insert(*key));
        let rows = keys.map(|key| Row { order: Order::awaited(key), is_new: true, orphans: 0 }).collect();
        Self { rows, orphans: Vec::new(), lines: HashMap::new() }
    }

    /// Locks the orders of these events and reads what is needed of them. Rows of orders of which nothing was heard yet are
    /// inserted as given: as the batch will leave them, so that they need no second write.
    pub(super) async fn lock(tx: &Tx, events: &[Received<Event>], as_new: Vec<Order>) -> Result<Self, DbError> {
        let (new, old) = store::lock_orders(tx, as_new).await?;
        let old: Vec<Key<'_>> = old.iter().map(Order::key).collect();
        let placed = placed(events);
        let to_place: Vec<Key<'_>> = old.iter().copied().filter(|key| placed.contains(key)).collect();
        // They don't depend on each other: both are under way before the first answer.
        let (mut rows, orphans) = try_join(store::orders(tx, &old), store::orphans(tx, &to_place)).await?;
        let again = rows.iter().filter(|row| row.order.state != OrderState::Awaited).map(|row| row.order.key());
        let again: Vec<Key<'_>> = again.filter(|key| placed.contains(key)).collect();
        let lines = store::lines(tx, &again).await?;
        rows.extend(new.into_iter().map(|order| Row { order, is_new: true, orphans: 0 }));
        Ok(Self { rows, orphans, lines })
    }
}

/// Tenant and number of the order that an event is about.
pub(super) fn key(received: &Received<Event>) -> Key<'_> {
    (&received.envelope.tenant, received.event.order_no().as_str())
}

fn placed(events: &[Received<Event>]) -> HashSet<Key<'_>> {
    events.iter().filter(|received| matches!(*received.event, Event::Placed(_))).map(key).collect()
}

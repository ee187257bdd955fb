//! What each event does to its order, whose row the transaction has locked.

use super::downstream;
use super::event::{Callback, CancelRequest, PlacedOrder};
use super::model::{OrderState, Ruling, Signal, rule};
use super::store::{self, Order};
use super::verdict::{Disposition, Verdict, judge};
use crate::db::{DbError, Tx};
use crate::event::{Downstream, Rejection};
use crate::runtime::{HandleError, Outcome, Skip};

/// Most callbacks that wait for one order; bounds what placing it has to do.
const MAX_ORPHANS: i64 = 100;

/// Creates the order, then lets everything happen that waited for it.
///
/// Payments go before the cancel request: where both came early, the customer's money is matched, not sent back.
pub(super) async fn placed(tx: &Tx, order: &mut Order, placed: &PlacedOrder) -> Result<Outcome, HandleError> {
    if rule(order.state, Signal::Placed) != Ruling::Advance(OrderState::Created) {
        return placed_again(tx, order, placed).await;
    }
    let waiting_cancel = order.cancel_reason.take();
    store::place(tx, order, placed).await?;
    let mut downstream = Vec::new();
    for orphan in store::orphans(tx, order).await? {
        let verdict = judge(order.state, order.terms.as_ref(), &orphan);
        store::settle_orphan(tx, &order.tenant, &orphan, &verdict).await?;
        downstream.extend(post(tx, order, &orphan, &verdict).await?);
    }
    if let Some(reason) = waiting_cancel
        && rule(order.state, Signal::Cancel) == Ruling::Advance(OrderState::Closed)
    {
        downstream.push(close(tx, order, &reason).await?);
    }
    Ok(Outcome::Applied(downstream))
}

async fn placed_again(tx: &Tx, order: &Order, placed: &PlacedOrder) -> Result<Outcome, HandleError> {
    let same = order.terms.as_ref() == Some(&placed.terms)
        && store::lines(tx, order, placed.terms.total.currency()).await? == placed.lines;
    if same {
        return Ok(Outcome::Skipped(Skip::Because("already_placed")));
    }
    Ok(Outcome::Reject(Rejection::refused(
        "order_conflict",
        format!(
            "order {} was placed before with another merchant, total or lines; place the changed order under a new number",
            order.order_no
        ),
    )))
}

/// Records the callback once and moves its order.
pub(super) async fn callback(tx: &Tx, order: &mut Order, callback: &Callback) -> Result<Outcome, HandleError> {
    let verdict = judge(order.state, order.terms.as_ref(), callback);
    if !store::record(tx, &order.tenant, callback, &verdict).await? {
        return recorded_before(tx, &order.tenant, callback).await;
    }
    if verdict.disposition == Disposition::Orphan && store::count_orphans(tx, order).await? > MAX_ORPHANS {
        let message = format!(
            "{MAX_ORPHANS} callbacks wait for order {} already; replay this one after the order was placed",
            order.order_no
        );
        return Ok(Outcome::Reject(Rejection::refused("too_many_orphans", message)));
    }
    let downstream = post(tx, order, callback, &verdict).await?;
    Ok(match verdict.disposition {
        Disposition::NoEffect(reason) => Outcome::Skipped(Skip::Because(reason)),
        _ => Outcome::Applied(downstream),
    })
}

/// P-2: the same news under the same or another notification id changes nothing; other news under a known id is an error.
async fn recorded_before(tx: &Tx, tenant: &str, callback: &Callback) -> Result<Outcome, HandleError> {
    let recorded = store::recorded(tx, tenant, callback).await?;
    if recorded.is_empty() {
        // The insert stopped at the third unique index: rows that contradict the state machine. Never call that a duplicate.
        let message =
            "the order has an accepted payment but isn't PAID (payment_paid_once); correct its row, then replay";
        return Ok(Outcome::Reject(Rejection::refused("inconsistent_order", message)));
    }
    if recorded.iter().all(|known| tells_the_same(known, callback)) {
        return Ok(Outcome::Skipped(Skip::Because("already_recorded")));
    }
    Ok(Outcome::Reject(Rejection::refused(
        "callback_conflict",
        format!(
            "{} told something else under this notifyId or for this transaction and status before (order, merchant, amount, \
             currency, transaction or status differ); ask the provider which is true",
            callback.provider
        ),
    )))
}

/// Whether two callbacks carry the same facts. The notification id and the time may differ between repetitions.
fn tells_the_same(known: &Callback, callback: &Callback) -> bool {
    known.transaction_id == callback.transaction_id
        && known.status == callback.status
        && known.order_no == callback.order_no
        && known.said == callback.said
}

/// Lets a recorded callback have its effect on the order.
async fn post(
    tx: &Tx,
    order: &mut Order,
    callback: &Callback,
    verdict: &Verdict,
) -> Result<Vec<Downstream>, HandleError> {
    if verdict.state.rank() > order.state.rank() {
        store::move_order(tx, order, verdict.state).await?;
    }
    Ok(downstream::of_callback(order, callback, verdict)?)
}

/// Closes the order if it isn't paid; keeps the request where the order isn't placed yet.
pub(super) async fn cancel(tx: &Tx, order: &mut Order, cancel: &CancelRequest) -> Result<Outcome, HandleError> {
    match rule(order.state, Signal::Cancel) {
        Ruling::Wait if order.cancel_reason.is_some() => Ok(Outcome::Skipped(Skip::Because("already_requested"))),
        Ruling::Wait => {
            store::hold_cancel(tx, order, &cancel.reason).await?;
            Ok(Outcome::applied())
        }
        Ruling::NoEffect(reason) => Ok(Outcome::Skipped(Skip::Because(reason))),
        Ruling::Advance(_) => Ok(Outcome::Applied(vec![close(tx, order, &cancel.reason).await?])),
        Ruling::Keep | Ruling::Alarm(..) => Ok(Outcome::Skipped(Skip::Because("order_stays"))),
    }
}

async fn close(tx: &Tx, order: &mut Order, reason: &str) -> Result<Downstream, HandleError> {
    store::close_order(tx, order, reason).await?;
    let terms = order.terms.as_ref().ok_or_else(|| DbError::shape("an order that is placed but has no terms"))?;
    Ok(downstream::closed(order, terms, reason)?)
}

//! What each event does to its order and to the payments. Pure: the batch's plan is changed, and written later.

use super::downstream;
use super::event::{Callback, CancelRequest, PlacedOrder};
use super::model::{OrderState, Ruling, Signal, rule};
use super::order::Order;
use super::payments::Payments;
use super::plan::Entry;
use super::verdict::{Disposition, Verdict, judge};
use crate::db::DbError;
use crate::event::{Downstream, Rejection};
use crate::runtime::{HandleError, Outcome, Skip};

/// Most callbacks that wait for one order; bounds what placing it has to do.
const MAX_ORPHANS: i64 = 100;

/// Creates the order, then lets everything happen that waited for it.
///
/// Payments go before the cancel request: where both came early, the customer's money is matched, not sent back.
pub(super) fn placed<'a>(
    entry: &mut Entry<'a>,
    payments: &mut Payments<'a>,
    placed: &'a PlacedOrder,
) -> Result<Outcome, HandleError> {
    if rule(entry.order.state, Signal::Placed) != Ruling::Advance(OrderState::Created) {
        return Ok(placed_again(entry, placed));
    }
    entry.lines = &placed.lines;
    entry.is_placed_now = true;
    let order = &mut entry.order;
    let waiting_cancel = order.place(&placed.terms);
    let mut downstream = Vec::new();
    for orphan in entry.waiting.drain(..) {
        let callback = payments.callback(&orphan);
        let verdict = judge(order.state, order.terms.as_ref(), callback);
        downstream.extend(post(order, callback, &verdict)?);
        payments.settle(&orphan, verdict);
    }
    if let Some(reason) = waiting_cancel
        && rule(order.state, Signal::Cancel) == Ruling::Advance(OrderState::Closed)
    {
        downstream.push(close(order, &reason)?);
    }
    Ok(Outcome::Applied(downstream))
}

fn placed_again(entry: &Entry<'_>, placed: &PlacedOrder) -> Outcome {
    if entry.order.terms.as_ref() == Some(&placed.terms) && entry.lines == placed.lines {
        return Outcome::Skipped(Skip::Because("already_placed"));
    }
    Outcome::Reject(Rejection::refused(
        "order_conflict",
        format!(
            "order {} was placed before with another merchant, total or lines; place the changed order under a new number",
            entry.order.order_no
        ),
    ))
}

/// Records the callback once and moves its order.
pub(super) fn callback<'a>(
    entry: &mut Entry<'a>,
    payments: &mut Payments<'a>,
    callback: &'a Callback,
) -> Result<Outcome, HandleError> {
    let recorded = payments.recorded(entry.tenant, callback);
    if !recorded.is_empty() {
        return Ok(recorded_before(&recorded, callback));
    }
    let order = &mut entry.order;
    let verdict = judge(order.state, order.terms.as_ref(), callback);
    let disposition = verdict.disposition;
    let downstream = post(order, callback, &verdict)?;
    let added = payments.add(entry.tenant, callback, verdict);
    if disposition == Disposition::Orphan {
        entry.waiting.push(added);
        entry.orphans += 1;
        // Rejected and yet added: a copy of one that waits is found by its insert only, and must not be called one too many.
        if entry.orphans > MAX_ORPHANS {
            return Ok(one_too_many(callback));
        }
    }
    Ok(match disposition {
        Disposition::NoEffect(reason) => Outcome::Skipped(Skip::Because(reason)),
        _ => Outcome::Applied(downstream),
    })
}

fn one_too_many(callback: &Callback) -> Outcome {
    let message = format!(
        "{MAX_ORPHANS} callbacks wait for order {} already; replay this one after the order was placed",
        callback.order_no
    );
    Outcome::Reject(Rejection::refused("too_many_orphans", message))
}

/// P-2: the same news under the same or another notification id changes nothing; other news under a known id is an error.
fn recorded_before(recorded: &[&Callback], callback: &Callback) -> Outcome {
    if recorded.iter().all(|known| tells_the_same(known, callback)) {
        return Outcome::Skipped(Skip::Because("already_recorded"));
    }
    Outcome::Reject(Rejection::refused(
        "callback_conflict",
        format!(
            "{} told something else under this notifyId or for this transaction and status before (order, merchant, amount, \
             currency, transaction or status differ); ask the provider which is true",
            callback.provider
        ),
    ))
}

/// Whether two callbacks carry the same facts. The notification id and the time may differ between repetitions.
fn tells_the_same(known: &Callback, callback: &Callback) -> bool {
    known.transaction_id == callback.transaction_id
        && known.status == callback.status
        && known.order_no == callback.order_no
        && known.said == callback.said
}

/// Lets a recorded callback have its effect on the order.
fn post(order: &mut Order, callback: &Callback, verdict: &Verdict) -> Result<Vec<Downstream>, Rejection> {
    if verdict.state.rank() > order.state.rank() {
        order.advance(verdict.state);
    }
    downstream::of_callback(order, callback, verdict)
}

/// Closes the order if it isn't paid; keeps the request where the order isn't placed yet.
pub(super) fn cancel(order: &mut Order, cancel: &CancelRequest) -> Result<Outcome, HandleError> {
    match rule(order.state, Signal::Cancel) {
        Ruling::Wait if order.cancel_reason.is_some() => Ok(Outcome::Skipped(Skip::Because("already_requested"))),
        Ruling::Wait => {
            order.cancel_reason = Some(cancel.reason.clone());
            Ok(Outcome::applied())
        }
        Ruling::NoEffect(reason) => Ok(Outcome::Skipped(Skip::Because(reason))),
        Ruling::Advance(_) => Ok(Outcome::Applied(vec![close(order, &cancel.reason)?])),
        Ruling::Keep | Ruling::Alarm(..) => Ok(Outcome::Skipped(Skip::Because("order_stays"))),
    }
}

fn close(order: &mut Order, reason: &str) -> Result<Downstream, HandleError> {
    order.close(reason);
    let terms = order.terms.as_ref().ok_or_else(|| DbError::shape("an order that is placed but has no terms"))?;
    Ok(downstream::closed(order, terms, reason)?)
}

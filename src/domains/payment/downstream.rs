//! What sibling systems are told. Everything about one order carries its number as ordering key.

use super::catalog::{ORDER_CLOSED, ORDER_PAID, PAYMENT_RECORDED, PAYMENT_REVIEW_REQUIRED};
use super::event::{Callback, Status};
use super::model::Terms;
use super::order::Order;
use super::proto::order::{OrderClosed, OrderPaid};
use super::proto::payment::{PaymentRecorded, PaymentReviewRequired, PaymentStatus};
use super::verdict::{Disposition, Verdict};
use crate::event::{Downstream, Rejection};

/// The events that follow from a callback that was recorded and, where it moved the order, posted.
pub(super) fn of_callback(order: &Order, callback: &Callback, verdict: &Verdict) -> Result<Vec<Downstream>, Rejection> {
    match verdict.disposition {
        Disposition::Orphan | Disposition::NoEffect(_) => Ok(vec![]),
        Disposition::Accepted if callback.status == Status::Success => {
            Ok(vec![recorded(callback)?, paid(order, callback)?])
        }
        Disposition::Accepted | Disposition::Noted => Ok(vec![recorded(callback)?]),
        Disposition::Alarmed(_) => Ok(vec![review_required(callback, verdict)?]),
    }
}

/// The order was closed unpaid.
pub(super) fn closed(order: &Order, terms: &Terms, reason: &str) -> Result<Downstream, Rejection> {
    let message = OrderClosed {
        order_no: order.order_no.clone(),
        merchant_id: terms.merchant_id.to_string(),
        reason: reason.to_owned(),
        version: order.version,
    };
    Ok(Downstream::new(ORDER_CLOSED.name, "order", &order.order_no, &message)?.ordered_by(&order.order_no))
}

fn paid(order: &Order, callback: &Callback) -> Result<Downstream, Rejection> {
    // An accepted callback agrees with the order in all of these.
    let said = &callback.said;
    let message = OrderPaid {
        order_no: order.order_no.clone(),
        merchant_id: said.merchant_id.to_string(),
        total: said.total.minor(),
        currency: said.total.currency().to_string(),
        provider: callback.provider.to_string(),
        transaction_id: callback.transaction_id.to_string(),
        paid_at: paid_at(callback),
        version: order.version,
    };
    Ok(Downstream::new(ORDER_PAID.name, "order", &order.order_no, &message)?.ordered_by(&order.order_no))
}

fn recorded(callback: &Callback) -> Result<Downstream, Rejection> {
    let message = PaymentRecorded {
        provider: callback.provider.to_string(),
        transaction_id: callback.transaction_id.to_string(),
        order_no: callback.order_no.to_string(),
        merchant_id: callback.said.merchant_id.to_string(),
        amount: callback.said.total.minor(),
        currency: callback.said.total.currency().to_string(),
        status: status(callback.status).into(),
        paid_at: paid_at(callback),
    };
    about_payment(Downstream::new(PAYMENT_RECORDED.name, "payment", payment_id(callback), &message), callback)
}

fn review_required(callback: &Callback, verdict: &Verdict) -> Result<Downstream, Rejection> {
    let message = PaymentReviewRequired {
        provider: callback.provider.to_string(),
        transaction_id: callback.transaction_id.to_string(),
        order_no: callback.order_no.to_string(),
        merchant_id: callback.said.merchant_id.to_string(),
        amount: callback.said.total.minor(),
        currency: callback.said.total.currency().to_string(),
        status: status(callback.status).into(),
        paid_at: paid_at(callback),
        reasons: verdict.reasons.iter().map(ToString::to_string).collect(),
        order_state: verdict.state.as_str().to_owned(),
    };
    about_payment(Downstream::new(PAYMENT_REVIEW_REQUIRED.name, "payment", payment_id(callback), &message), callback)
}

fn about_payment(downstream: Result<Downstream, Rejection>, callback: &Callback) -> Result<Downstream, Rejection> {
    Ok(downstream?.ordered_by(callback.order_no.as_str()))
}

/// A payment is one transaction of one provider, whatever statuses it goes through.
fn payment_id(callback: &Callback) -> String {
    format!("{}/{}", callback.provider, callback.transaction_id)
}

fn status(status: Status) -> PaymentStatus {
    match status {
        Status::Processing => PaymentStatus::Processing,
        Status::Success => PaymentStatus::Success,
        Status::Failed => PaymentStatus::Failed,
        Status::Closed => PaymentStatus::Closed,
    }
}

fn paid_at(callback: &Callback) -> Option<pbjson_types::Timestamp> {
    callback.paid_at.map(|time| pbjson_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() })
}

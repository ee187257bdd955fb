//! From the wire to the domain: after this file every amount, identifier and status is valid.

use jiff::Timestamp;

use super::id::{Id, MerchantId, NotifyId, OrderNo, Provider, Sku, TransactionId};
use super::model::Terms;
use super::money::{Currency, Money};
use super::proto::order::{OrderCancelRequested, OrderLine, OrderPlaced};
use super::proto::payment::{PaymentCallbackReceived, PaymentStatus};
use crate::event::Rejection;

/// Most lines of one order; bounds the rows that one event writes.
const MAX_LINES: usize = 500;
/// Longest reason of a cancel request, in characters.
const MAX_CANCEL_REASON: usize = 256;

/// What this consumer reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// `order.placed.v1`
    Placed(PlacedOrder),
    /// `payment.callback.received.v1`
    Callback(Callback),
    /// `order.cancel.requested.v1`
    Cancel(CancelRequest),
}

impl Event {
    /// The order that the event is about.
    pub(crate) fn order_no(&self) -> &OrderNo {
        match self {
            Self::Placed(placed) => &placed.order_no,
            Self::Callback(callback) => &callback.order_no,
            Self::Cancel(cancel) => &cancel.order_no,
        }
    }
}

/// An order whose lines add up to its total.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlacedOrder {
    /// The shop's number.
    pub(crate) order_no: OrderNo,
    /// Who is to receive how much.
    pub(crate) terms: Terms,
    /// What is bought.
    pub(crate) lines: Vec<Line>,
}

/// One position of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// What is sold.
    pub(crate) sku: Sku,
    /// At least one.
    pub(crate) quantity: i64,
    /// For one piece.
    pub(crate) unit_price: Money,
}

/// What a provider told of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Callback {
    /// Who tells it.
    pub(crate) provider: Provider,
    /// The provider's id of the notification.
    pub(crate) notify_id: NotifyId,
    /// The provider's id of the transaction.
    pub(crate) transaction_id: TransactionId,
    /// The order that it claims to pay.
    pub(crate) order_no: OrderNo,
    /// Merchant and amount as the provider says them.
    pub(crate) said: Terms,
    /// How far the transaction is.
    pub(crate) status: Status,
    /// When the money was taken.
    pub(crate) paid_at: Option<Timestamp>,
}

/// How far a transaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Status {
    /// The customer is paying.
    Processing,
    /// The money has been taken.
    Success,
    /// This attempt failed.
    Failed,
    /// The provider closed the transaction unpaid.
    Closed,
}

impl Status {
    const ALL: [Self; 4] = [Self::Processing, Self::Success, Self::Failed, Self::Closed];

    /// The name as stored.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Processing => "PROCESSING",
            Self::Success => "SUCCESS",
            Self::Failed => "FAILED",
            Self::Closed => "CLOSED",
        }
    }

    /// Reads a stored name.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }
}

/// A wish to close an unpaid order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CancelRequest {
    /// Which order.
    pub(crate) order_no: OrderNo,
    /// Why; may be empty.
    pub(crate) reason: String,
}

impl TryFrom<OrderPlaced> for PlacedOrder {
    type Error = Rejection;

    fn try_from(wire: OrderPlaced) -> Result<Self, Rejection> {
        let order_no = Id::try_new(wire.order_no)?;
        let merchant_id: MerchantId = Id::try_new(wire.merchant_id)?;
        let currency = currency(&wire.currency)?;
        let total = amount("total", wire.total, currency)?;
        if wire.lines.is_empty() || wire.lines.len() > MAX_LINES {
            let message = format!("lines has {} entries; send 1 to {MAX_LINES}", wire.lines.len());
            return Err(Rejection::invalid("invalid_lines", message));
        }
        let lines =
            wire.lines.into_iter().enumerate().map(|(i, l)| line(i, l, currency)).collect::<Result<Vec<_>, _>>()?;
        match sum(&lines, currency) {
            Some(sum) if sum == total => Ok(Self { order_no, terms: Terms { merchant_id, total }, lines }),
            Some(sum) => Err(Rejection::invalid(
                "total_mismatch",
                format!(
                    "total is {} but the lines add up to {} minor units; send the sum of quantity x unitPrice",
                    total.minor(),
                    sum.minor()
                ),
            )),
            None => Err(Rejection::invalid(
                "amount_overflow",
                "the lines add up to more than 9223372036854775807 minor units; correct quantity or unitPrice",
            )),
        }
    }
}

fn line(index: usize, wire: OrderLine, currency: Currency) -> Result<Line, Rejection> {
    let at = |e: Rejection| Rejection { message: format!("lines[{index}].{}", e.message), ..e };
    let sku = Id::try_new(wire.sku).map_err(at)?;
    if wire.quantity <= 0 {
        let message = format!("lines[{index}].quantity is {}; send at least 1", wire.quantity);
        return Err(Rejection::invalid("invalid_quantity", message));
    }
    let unit_price = amount("unitPrice", wire.unit_price, currency).map_err(at)?;
    Ok(Line { sku, quantity: wire.quantity, unit_price })
}

fn sum(lines: &[Line], currency: Currency) -> Option<Money> {
    lines
        .iter()
        .try_fold(Money::zero(currency), |sum, line| sum.checked_add(line.unit_price.checked_times(line.quantity)?))
}

impl TryFrom<PaymentCallbackReceived> for Callback {
    type Error = Rejection;

    fn try_from(wire: PaymentCallbackReceived) -> Result<Self, Rejection> {
        let status = status(wire.status)?;
        let total = amount("amount", wire.amount, currency(&wire.currency)?)?;
        Ok(Self {
            provider: Id::try_new(wire.provider)?,
            notify_id: Id::try_new(wire.notify_id)?,
            transaction_id: Id::try_new(wire.transaction_id)?,
            order_no: Id::try_new(wire.order_no)?,
            said: Terms { merchant_id: Id::try_new(wire.merchant_id)?, total },
            status,
            paid_at: paid_at(status, wire.paid_at)?,
        })
    }
}

fn status(wire: i32) -> Result<Status, Rejection> {
    match PaymentStatus::try_from(wire) {
        Ok(PaymentStatus::Processing) => Ok(Status::Processing),
        Ok(PaymentStatus::Success) => Ok(Status::Success),
        Ok(PaymentStatus::Failed) => Ok(Status::Failed),
        Ok(PaymentStatus::Closed) => Ok(Status::Closed),
        Ok(PaymentStatus::Unspecified) | Err(_) => Err(Rejection::invalid(
            "invalid_status",
            format!(
                "status is {wire}, which says nothing about the transaction; send PAYMENT_STATUS_PROCESSING, _SUCCESS, \
                 _FAILED or _CLOSED"
            ),
        )),
    }
}

fn paid_at(status: Status, wire: Option<pbjson_types::Timestamp>) -> Result<Option<Timestamp>, Rejection> {
    let Some(wire) = wire else {
        if status == Status::Success {
            let message = "paidAt is missing; send when the provider took the money (RFC 3339)";
            return Err(Rejection::invalid("invalid_paid_at", message));
        }
        return Ok(None);
    };
    // Years 1 to 9999 are what both the JSON form and our downstream events can say; the epoch is a producer's unset clock.
    let last_second = 253_402_300_799;
    let valid = (1..=last_second).contains(&wire.seconds) && (0..1_000_000_000).contains(&wire.nanos);
    let time = if valid { Timestamp::new(wire.seconds, wire.nanos).ok() } else { None };
    time.map(Some).ok_or_else(|| {
        Rejection::invalid(
            "invalid_paid_at",
            "paidAt is not a time between 1970 and 9999; send when the provider took the money",
        )
    })
}

impl TryFrom<OrderCancelRequested> for CancelRequest {
    type Error = Rejection;

    fn try_from(wire: OrderCancelRequested) -> Result<Self, Rejection> {
        let order_no = Id::try_new(wire.order_no)?;
        if wire.reason.chars().count() > MAX_CANCEL_REASON || wire.reason.chars().any(char::is_control) {
            let message = format!(
                "reason is longer than {MAX_CANCEL_REASON} characters or holds a control character; send a short code or one line"
            );
            return Err(Rejection::invalid("invalid_reason", message));
        }
        Ok(Self { order_no, reason: wire.reason })
    }
}

fn currency(code: &str) -> Result<Currency, Rejection> {
    Currency::try_new(code).ok_or_else(|| {
        Rejection::invalid(
            "invalid_currency",
            "currency is not three capital letters; send the ISO 4217 code, e.g. CNY",
        )
    })
}

fn amount(field: &str, minor: i64, currency: Currency) -> Result<Money, Rejection> {
    Money::try_new(minor, currency).ok_or_else(|| {
        Rejection::invalid("invalid_amount", format!("{field} is {minor}; send minor units, at least 0"))
    })
}

#[cfg(test)]
#[path = "event_tests.rs"]
mod tests;

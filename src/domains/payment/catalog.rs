//! The event types that this domain reads and publishes.

use prost::Message;
use serde::de::DeserializeOwned;

use super::proto::order::{OrderCancelRequested, OrderPlaced};
use super::proto::payment::PaymentCallbackReceived;
use crate::runtime::EventType;

/// An order to be paid.
pub(super) const ORDER_PLACED: EventType = EventType {
    name: "order.placed.v1",
    summary: "A customer placed an order that is to be paid",
    message: "onceflow.order.v1.OrderPlaced",
    sample: include_str!("../../../samples/payment/order_placed.json"),
    to_protobuf: Some(to_protobuf::<OrderPlaced>),
};

/// A wish to close an unpaid order.
pub(super) const ORDER_CANCEL_REQUESTED: EventType = EventType {
    name: "order.cancel.requested.v1",
    summary: "Somebody wants an unpaid order closed",
    message: "onceflow.order.v1.OrderCancelRequested",
    sample: include_str!("../../../samples/payment/order_cancel_requested.json"),
    to_protobuf: Some(to_protobuf::<OrderCancelRequested>),
};

/// A provider's notification.
pub(super) const PAYMENT_CALLBACK_RECEIVED: EventType = EventType {
    name: "payment.callback.received.v1",
    summary: "A payment provider told how far a transaction is",
    message: "onceflow.payment.v1.PaymentCallbackReceived",
    sample: include_str!("../../../samples/payment/payment_callback_received.json"),
    to_protobuf: Some(to_protobuf::<PaymentCallbackReceived>),
};

/// An order is paid.
pub(super) const ORDER_PAID: EventType =
    published("order.paid.v1", "An order is paid in full; once per order", "onceflow.order.v1.OrderPaid");

/// An order is closed.
pub(super) const ORDER_CLOSED: EventType =
    published("order.closed.v1", "An order was closed unpaid", "onceflow.order.v1.OrderClosed");

/// A callback that agrees with its order.
pub(super) const PAYMENT_RECORDED: EventType = published(
    "payment.recorded.v1",
    "A callback that agrees with its order was recorded",
    "onceflow.payment.v1.PaymentRecorded",
);

/// A callback that people must look at.
pub(super) const PAYMENT_REVIEW_REQUIRED: EventType = published(
    "payment.review_required.v1",
    "A callback was recorded that must not be posted before somebody has looked at it",
    "onceflow.payment.v1.PaymentReviewRequired",
);

const fn published(name: &'static str, summary: &'static str, message: &'static str) -> EventType {
    EventType { name, summary, message, sample: "", to_protobuf: None }
}

fn to_protobuf<M: Message + DeserializeOwned>(json: &str) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::from_str::<M>(json).map(|message| message.encode_to_vec())
}

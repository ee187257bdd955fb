//! The consumer: decodes, locks the orders of a micro-batch in key order, and applies its events one by one.

use std::collections::HashMap;
use std::slice;

use async_trait::async_trait;

use super::catalog::{
    ORDER_CANCEL_REQUESTED, ORDER_CLOSED, ORDER_PAID, ORDER_PLACED, PAYMENT_CALLBACK_RECEIVED, PAYMENT_RECORDED,
    PAYMENT_REVIEW_REQUIRED,
};
use super::effect;
use super::event::Event;
use super::proto::order::{OrderCancelRequested, OrderPlaced};
use super::proto::payment::PaymentCallbackReceived;
use super::store::{self, Order};
use crate::db::{DbError, Tx};
use crate::event::{Envelope, Rejection};
use crate::runtime::{Consumer, EventType, HandleError, Outcome, Received};

/// Orders and what payment providers say of them.
pub(crate) struct Payment;

#[async_trait]
impl Consumer for Payment {
    type Event = Event;

    const NAME: &'static str = "payment";
    const BINDINGS: &'static [&'static str] = &["payment.#", "order.#"];
    const READS: &'static [EventType] = &[ORDER_PLACED, ORDER_CANCEL_REQUESTED, PAYMENT_CALLBACK_RECEIVED];
    const PUBLISHES: &'static [EventType] = &[ORDER_PAID, ORDER_CLOSED, PAYMENT_RECORDED, PAYMENT_REVIEW_REQUIRED];

    fn decode(&self, envelope: &Envelope) -> Result<Event, Rejection> {
        let name = envelope.event_type.as_str();
        if name == ORDER_PLACED.name {
            envelope.payload::<OrderPlaced>()?.try_into().map(Event::Placed)
        } else if name == ORDER_CANCEL_REQUESTED.name {
            envelope.payload::<OrderCancelRequested>()?.try_into().map(Event::Cancel)
        } else if name == PAYMENT_CALLBACK_RECEIVED.name {
            envelope.payload::<PaymentCallbackReceived>()?.try_into().map(Event::Callback)
        } else {
            Err(Rejection::decode("unknown_type", format!("payment reads no events of type {name:?}")))
        }
    }

    async fn handle_one(&self, tx: &Tx, event: &Received<Event>) -> Result<Outcome, HandleError> {
        Orders::lock(tx, slice::from_ref(event)).await?.apply(tx, event).await
    }

    async fn handle(&self, tx: &Tx, events: &[Received<Event>]) -> Result<Vec<Outcome>, HandleError> {
        // All rows at once and in key order (P-10): locking them event by event would deadlock with a batch in another order.
        let mut orders = Orders::lock(tx, events).await?;
        let mut outcomes = Vec::with_capacity(events.len());
        for event in events {
            outcomes.push(orders.apply(tx, event).await?);
        }
        Ok(outcomes)
    }
}

/// The orders of a micro-batch, locked until the transaction ends.
struct Orders(HashMap<(String, String), Order>);

impl Orders {
    async fn lock(tx: &Tx, events: &[Received<Event>]) -> Result<Self, DbError> {
        let tenants: Vec<&str> = events.iter().map(|e| e.envelope.tenant.as_str()).collect();
        let order_nos: Vec<&str> = events.iter().map(|e| e.event.order_no().as_str()).collect();
        let orders = store::lock_orders(tx, &tenants, &order_nos).await?;
        Ok(Self(orders.into_iter().map(|order| ((order.tenant.clone(), order.order_no.clone()), order)).collect()))
    }

    async fn apply(&mut self, tx: &Tx, received: &Received<Event>) -> Result<Outcome, HandleError> {
        let key = (received.envelope.tenant.clone(), received.event.order_no().to_string());
        let order = self.0.get_mut(&key).ok_or_else(|| DbError::shape("the row of an order was not found to lock"))?;
        match &*received.event {
            Event::Placed(placed) => effect::placed(tx, order, placed).await,
            Event::Callback(callback) => effect::callback(tx, order, callback).await,
            Event::Cancel(cancel) => effect::cancel(tx, order, cancel).await,
        }
    }
}

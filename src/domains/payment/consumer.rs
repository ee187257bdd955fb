//! The consumer: decodes, locks the orders of a micro-batch, applies its events in memory, and writes what came of them.

use std::slice;

use async_trait::async_trait;

use super::catalog::{
    ORDER_CANCEL_REQUESTED, ORDER_CLOSED, ORDER_PAID, ORDER_PLACED, PAYMENT_CALLBACK_RECEIVED, PAYMENT_RECORDED,
    PAYMENT_REVIEW_REQUIRED,
};
use super::event::Event;
use super::invariants_store::INVARIANTS;
use super::plan::Plan;
use super::proto::order::{OrderCancelRequested, OrderPlaced};
use super::proto::payment::PaymentCallbackReceived;
use super::store;
use super::stored::Stored;
use crate::db::Tx;
use crate::event::{Envelope, Rejection};
use crate::runtime::{Consumer, EventType, HandleError, Invariant, Outcome, Received};

/// Orders and what payment providers say of them.
pub(crate) struct Payment;

#[async_trait]
impl Consumer for Payment {
    type Event = Event;

    const NAME: &'static str = "payment";
    const BINDINGS: &'static [&'static str] = &["payment.#", "order.#"];
    const READS: &'static [EventType] = &[ORDER_PLACED, ORDER_CANCEL_REQUESTED, PAYMENT_CALLBACK_RECEIVED];
    const PUBLISHES: &'static [EventType] = &[ORDER_PAID, ORDER_CLOSED, PAYMENT_RECORDED, PAYMENT_REVIEW_REQUIRED];
    const INVARIANTS: &'static [Invariant] = INVARIANTS;

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
        let outcomes = self.handle(tx, slice::from_ref(event)).await?;
        outcomes.into_iter().next().ok_or_else(|| Rejection::refused("no_outcome", "the batch of one was empty").into())
    }

    async fn handle(&self, tx: &Tx, events: &[Received<Event>]) -> Result<Vec<Outcome>, HandleError> {
        let as_new = Plan::draw(events, &Stored::nothing(events), &[])?.into_orders();
        let stored = Stored::lock(tx, events, as_new).await?;
        let plan = Plan::draw(events, &stored, &[])?;
        let refused = plan.write(tx).await?;
        if refused.is_empty() {
            return Ok(plan.outcomes);
        }
        // Only the insert can tell what was recorded before: another transaction may have recorded it in this instant.
        let recorded = store::recorded(tx, &refused).await?;
        let corrected = Plan::draw(events, &stored, &recorded)?;
        corrected.write_over(tx, &plan, &refused).await?;
        Ok(corrected.outcomes)
    }
}

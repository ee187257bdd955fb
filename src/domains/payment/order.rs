//! An order in memory: as its row has it, and as the events of a batch change it.

use super::model::{OrderState, Terms};

/// Tenant and order number.
pub(super) type Key<'a> = (&'a str, &'a str);

/// An order whose row this transaction has locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Order {
    /// Whose it is.
    pub(super) tenant: String,
    /// Its number.
    pub(super) order_no: String,
    /// Where it stands.
    pub(super) state: OrderState,
    /// What it asks for; none while it is awaited.
    pub(super) terms: Option<Terms>,
    /// Reason of the cancel request that waits for it or closed it.
    pub(super) cancel_reason: Option<String>,
    /// Rises with every change of state.
    pub(super) version: i64,
}

impl Order {
    /// An order of which nothing is known but its number.
    pub(super) fn awaited((tenant, order_no): Key<'_>) -> Self {
        Self {
            tenant: tenant.to_owned(),
            order_no: order_no.to_owned(),
            state: OrderState::Awaited,
            terms: None,
            cancel_reason: None,
            version: 0,
        }
    }

    /// What it is known by.
    pub(super) fn key(&self) -> Key<'_> {
        (&self.tenant, &self.order_no)
    }

    /// Fills in what it asks for; gives back the reason of the cancel request that waited for it.
    pub(super) fn place(&mut self, terms: &Terms) -> Option<String> {
        self.terms = Some(terms.clone());
        self.advance(OrderState::Created);
        self.cancel_reason.take()
    }

    /// Moves it to another state, which observers see by its version.
    pub(super) fn advance(&mut self, to: OrderState) {
        self.state = to;
        self.version += 1;
    }

    /// Closes it and keeps why.
    pub(super) fn close(&mut self, reason: &str) {
        self.cancel_reason = Some(reason.to_owned());
        self.advance(OrderState::Closed);
    }
}

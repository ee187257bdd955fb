//! The pure rules of an order's life. Ranked and monotone: an order only ever moves to a higher rank, whatever order the
//! news comes in.
//!
//! ```text
//! AWAITED 0 ─► CREATED 10 ─► PAYING 20 ─► PAID 30 ─┐
//!                  └────────────┴─► CLOSED 40 ─────┴─► REVIEW 90
//! ```
//!
//! PAID never becomes CLOSED: it has the higher claim although the lower rank, because the customer's money is there.
//! REVIEW is the end of every automatic way; only a person leads out of it.

use super::id::MerchantId;
use super::money::Money;

/// Where an order stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum OrderState {
    /// A callback or a cancel request named it before it was placed.
    Awaited,
    /// Placed, nothing paid.
    Created,
    /// The customer is paying.
    Paying,
    /// Paid in full, once.
    Paid,
    /// Closed unpaid.
    Closed,
    /// A callback contradicted it: people decide.
    Review,
}

impl OrderState {
    /// Every state, lowest rank first.
    pub(crate) const ALL: [Self; 6] =
        [Self::Awaited, Self::Created, Self::Paying, Self::Paid, Self::Closed, Self::Review];

    /// Height in the order of states. The gaps are for states to come.
    pub(crate) fn rank(self) -> u8 {
        match self {
            Self::Awaited => 0,
            Self::Created => 10,
            Self::Paying => 20,
            Self::Paid => 30,
            Self::Closed => 40,
            Self::Review => 90,
        }
    }

    /// The name as stored and published.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Awaited => "AWAITED",
            Self::Created => "CREATED",
            Self::Paying => "PAYING",
            Self::Paid => "PAID",
            Self::Closed => "CLOSED",
            Self::Review => "REVIEW",
        }
    }

    /// Reads a stored name.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }
}

/// News about an order, after its amounts were checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Signal {
    /// The order was placed.
    Placed,
    /// A transaction is under way.
    Processing,
    /// A transaction succeeded that no earlier callback told of.
    Succeeded,
    /// A transaction ended without money, failed or closed.
    AttemptEnded,
    /// A callback whose merchant, amount or currency is not the order's.
    Mismatched,
    /// Somebody wants the order closed.
    Cancel,
}

/// What a signal means for an order in some state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Ruling {
    /// Keep the signal until the order is placed.
    Wait,
    /// The order moves.
    Advance(OrderState),
    /// Recorded and worth telling; the order stays.
    Keep,
    /// Recorded without effect, for this reason.
    NoEffect(&'static str),
    /// Recorded, not posted; people must look. The order moves to this state, or stays in it.
    Alarm(Alarm, OrderState),
}

/// Why people must look at a recorded callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Alarm {
    /// It contradicts its order.
    Mismatch,
    /// The money came after the order was closed.
    Late,
    /// The order was already paid by another transaction.
    Duplicate,
    /// The order is under review for another reason.
    UnderReview,
}

/// The whole state machine. Every pair is listed: a new state or signal does not compile before it has its rulings.
pub(crate) fn rule(state: OrderState, signal: Signal) -> Ruling {
    use OrderState as O;
    use Signal as S;
    match (state, signal) {
        (O::Awaited, S::Placed) => Ruling::Advance(O::Created),
        (_, S::Placed) => Ruling::NoEffect("already_placed"),
        (O::Awaited, _) => Ruling::Wait,

        (_, S::Mismatched) => Ruling::Alarm(Alarm::Mismatch, O::Review),

        (O::Created, S::Processing) => Ruling::Advance(O::Paying),
        (O::Created | O::Paying, S::Succeeded) => Ruling::Advance(O::Paid),
        (O::Created | O::Paying, S::AttemptEnded) => Ruling::Keep,
        (O::Created | O::Paying, S::Cancel) => Ruling::Advance(O::Closed),

        (O::Paying, S::Processing) => Ruling::NoEffect("already_paying"),

        (O::Paid, S::Processing | S::AttemptEnded) => Ruling::NoEffect("outranked"),
        (O::Paid, S::Succeeded) => Ruling::Alarm(Alarm::Duplicate, O::Paid),
        (O::Paid, S::Cancel) => Ruling::NoEffect("already_paid"),

        (O::Closed, S::Processing | S::AttemptEnded) => Ruling::NoEffect("order_closed"),
        (O::Closed, S::Succeeded) => Ruling::Alarm(Alarm::Late, O::Closed),
        (O::Closed, S::Cancel) => Ruling::NoEffect("already_closed"),

        (O::Review, S::Processing | S::AttemptEnded | S::Cancel) => Ruling::NoEffect("order_under_review"),
        (O::Review, S::Succeeded) => Ruling::Alarm(Alarm::UnderReview, O::Review),
    }
}

/// What the order asks for and a callback must agree with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Terms {
    /// Who is to receive the money.
    pub(crate) merchant_id: MerchantId,
    /// How much.
    pub(crate) total: Money,
}

impl Terms {
    /// Everything in which what a callback says differs from what the order asks for; empty where they agree (P-4).
    pub(crate) fn contradictions(&self, said: &Self) -> Vec<&'static str> {
        let (asked, got) = (self.total, said.total);
        [
            (self.merchant_id != said.merchant_id, "merchant_mismatch"),
            (asked.currency() != got.currency(), "currency_mismatch"),
            (asked.minor() != got.minor(), "amount_mismatch"),
        ]
        .into_iter()
        .filter_map(|(differs, reason)| differs.then_some(reason))
        .collect()
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;

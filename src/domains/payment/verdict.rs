//! What becomes of one callback: the state machine's ruling, put together with the comparison of the amounts. Pure.

use super::event::{Callback, Status};
use super::model::{Alarm, OrderState, Ruling, Signal, Terms, rule};

/// How a recorded callback is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disposition {
    /// Waits for its order.
    Orphan,
    /// Moved the order.
    Accepted,
    /// Agrees with the order, which stays where it is.
    Noted,
    /// Came too late to change anything.
    NoEffect(&'static str),
    /// Not posted; people must look.
    Alarmed(Alarm),
}

impl Disposition {
    /// The name as stored.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Orphan => "orphan",
            Self::Accepted => "accepted",
            Self::Noted => "noted",
            Self::NoEffect(_) => "no_effect",
            Self::Alarmed(Alarm::Mismatch) => "mismatch",
            Self::Alarmed(Alarm::Late) => "late",
            Self::Alarmed(Alarm::Duplicate) => "duplicate_payment",
            Self::Alarmed(Alarm::UnderReview) => "under_review",
        }
    }
}

/// The decision about one callback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// How it is kept.
    pub(crate) disposition: Disposition,
    /// Stable codes that explain it.
    pub(crate) reasons: Vec<&'static str>,
    /// Where the order stands afterwards.
    pub(crate) state: OrderState,
}

/// Decides on a callback for an order in `state` with these terms (none before it is placed).
pub(crate) fn judge(state: OrderState, terms: Option<&Terms>, callback: &Callback) -> Verdict {
    let contradictions = terms.map(|asked| asked.contradictions(&callback.said)).unwrap_or_default();
    let signal = if contradictions.is_empty() { signal(callback.status) } else { Signal::Mismatched };
    let (disposition, reasons, state) = match rule(state, signal) {
        Ruling::Wait => (Disposition::Orphan, vec![], state),
        Ruling::Advance(to) => (Disposition::Accepted, vec![], to),
        Ruling::Keep => (Disposition::Noted, vec![], state),
        Ruling::NoEffect(reason) => (Disposition::NoEffect(reason), vec![reason], state),
        Ruling::Alarm(alarm, to) => (Disposition::Alarmed(alarm), alarm_reasons(alarm, contradictions), to),
    };
    Verdict { disposition, reasons, state }
}

fn signal(status: Status) -> Signal {
    match status {
        Status::Processing => Signal::Processing,
        Status::Success => Signal::Succeeded,
        Status::Failed | Status::Closed => Signal::AttemptEnded,
    }
}

fn alarm_reasons(alarm: Alarm, contradictions: Vec<&'static str>) -> Vec<&'static str> {
    match alarm {
        Alarm::Mismatch => contradictions,
        Alarm::Late => vec!["paid_after_close"],
        Alarm::Duplicate => vec!["duplicate_payment"],
        Alarm::UnderReview => vec!["order_under_review"],
    }
}

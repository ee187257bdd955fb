//! Order through failure: with the policy `strict`, what follows a failed event of its key waits until that one is done with.
//!
//! # States
//! A key with a row in `blocked_key` is blocked by the event that the row names, its *head*. The head was tried and failed: it
//! waits in a retry queue or is a dead letter. Every other event of the key gets a place in the *line*, `held_event`, and is
//! acknowledged. When the head is applied, skipped, found to be a copy, discarded or archived, the first of the line leaves it, through the
//! outbox to the consumer's queue, and is the head from then on. A line without anybody ends, and its key is free.
//!
//! Invariant: of a blocked key only the head is handled. So one is in flight, the line is worked off in order, and a head that fails
//! again simply stays the head; a replay is the head itself and waits for nobody.
//!
//! # What each failure does
//! - *A crash after a key was blocked*: the head is unacknowledged, comes again, and is the head.
//! - *A crash after a place was committed, before the ack*: the copy finds its place taken and is acknowledged.
//! - *A crash while the line moves on*: effects, the end of the head and the outbox row of the next are one transaction.
//! - *A copy of the head*: handled, and recognised by the inbox. A copy of what was applied before is a duplicate and is not held.
//! - *Two replicas*: whoever adds to a line or moves it on holds the row of its key, and looks at the line only then.
//! - *No room*: the message keeps its place by identity alone and goes round through a retry queue, at no cost of attempts. The order
//!   is that of the places, whenever it comes back, and a head never waits behind messages that can't be taken.
//! - *An edited copy of the head*: takes its place as the head, in the transaction of the edit.
//! - *A head that vanishes* (dealt with by a process without the policy, discarded by hand in SQL) is found by [`sweep`]. So is what
//!   waits when a consumer is no longer strict.

mod line;
mod store;
mod sweep;

pub(crate) use line::{Identity, closed, dropped, replaced};
pub(super) use line::{Line, Looked, Place, Waiting};
pub(super) use sweep::sweep;

/// What becomes of the later events of a key when one of them fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OrderPolicy {
    /// They are applied; the versions that domains compare decide when the failed one comes later.
    #[default]
    Versioned,
    /// They wait for it.
    Strict,
}

impl std::str::FromStr for OrderPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "versioned" => Ok(Self::Versioned),
            "strict" => Ok(Self::Strict),
            other => Err(format!("{other:?} is neither \"versioned\" nor \"strict\"")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_one_of_two_words() {
        assert_eq!("strict".parse(), Ok(OrderPolicy::Strict));
        assert_eq!("versioned".parse(), Ok(OrderPolicy::default()));
        assert!("Strict".parse::<OrderPolicy>().unwrap_err().contains("neither"));
    }
}

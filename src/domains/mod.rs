//! What we do: the only list of domains. None imports another; they meet through events.

use crate::runtime::{AnyConsumer, erase};

pub(crate) mod org;
pub(crate) mod payment;
pub(crate) mod sms;

/// Every consumer of this build. A new one is two lines here.
pub fn consumers() -> Vec<Box<dyn AnyConsumer>> {
    vec![erase(org::Org), erase(payment::Payment), erase(sms::Sms)]
}

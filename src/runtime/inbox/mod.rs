//! The inbox: the claim that makes an effect happen once per consumer.
//!
//! A batch claims all its events with one insert, in the transaction of the effects. A row that was there before belongs to a
//! duplicate, unless it carries our own claim id: then a COMMIT of ours went through although its answer was lost.
//! An event whose place an edited copy took has a row too: whatever arrives of it is a duplicate.

mod store;

pub(super) use store::{Claim, Fact, claim, record};
pub(crate) use store::{Superseded, end_of, supersede};

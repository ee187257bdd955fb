//! What operators do by hand: look at dead letters, send them again, put them away, drop them; pause consumers; free parked outbox rows.
//!
//! A replay goes only to the consumer that failed, through the outbox like any downstream event, with the message as it was.
//! Its way: `open` → `replaying` (outbox row written in the same transaction) → `replayed` when the consumer's inbox has
//! dealt with it, or back to `open` when it failed again. Looking never changes anything (I-9); every change leaves an
//! audit row in its own transaction, and so does who has seen a payload unmasked.

mod change;
pub mod control;
pub mod edit;
mod filter;
mod group;
pub mod job;
mod letter;
mod mask;
pub mod person;
mod sending_store;
mod store;
pub mod trace;

pub use change::{Change, ChangeError, Done, Ineligible, MAX_CHANGES, Why, archive, discard, replay, restore, settled};
pub use filter::{Cursor, CursorError, Filter, MAX_PAGE, Selection, State};
pub use group::{Group, LastReplay, Note, Noted, groups, note};
pub use letter::{
    COUNTED, DeadLetter, MAX_RELATED, Page, PayloadKind, Relative, Relatives, Settled, Summary, Total, list, show,
    total, unmask,
};

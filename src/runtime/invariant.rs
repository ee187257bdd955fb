//! What must hold in the tables whenever one looks, as data: a question to the database and what its answer means.

/// A sentence about the tables that is true in every snapshot of a database that works, also while events are applied.
///
/// The question is one read-only statement about one page of a table. Parameters: `$1` (double precision) how many seconds back
/// rows are looked at, `$2` (text[]) the key that the page begins after, null for the first, `$3` (bigint) rows of a page,
/// `$4` (integer) most examples. It answers with one row: `looked`, rows of the page; `last` (text[]), the key of the last of them;
/// `broken`, how many break the sentence; `examples` (text[]), some of those in words, without personal data.
#[derive(Debug, Clone, Copy)]
pub struct Invariant {
    /// Stable name, e.g. `payment-paid-once`.
    pub name: &'static str,
    /// The sentence.
    pub says: &'static str,
    /// The question.
    pub sql: &'static str,
    /// What to do where it is broken.
    pub remedy: &'static str,
    /// What a broken one means.
    pub weight: Weight,
    /// How far back it can look.
    pub reach: Reach,
}

/// What it means when a sentence is not true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// Something was lost, doubled or changed by a hand: never by traffic, an outage or a crash.
    Violation,
    /// It can come about in a system that works, but somebody should know.
    Notice,
}

/// How far back a question can look without taking what was removed for its age as missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// As far as asked: its tables are never pruned.
    Any,
    /// No further than retention keeps what it compares with.
    Kept,
    /// It adds up whole tables, so it is asked on demand only.
    Whole,
}

//! What a consumer keeps of persons, as data: how it is found, erased, and forgotten for its age.

/// Rows of one table that tell of a person.
///
/// The person is given to every question as `$1` (text) the tenant, `$2` (text) the id of a user, or null, and `$3` (text[]) a phone number,
/// or null: first in E.164, then all ways to write its digits.
#[derive(Debug, Clone, Copy)]
pub struct PersonalData {
    /// Stable name of the rows, e.g. `sms_requests`.
    pub name: &'static str,
    /// Answers with one row: how many there are.
    pub find: &'static str,
    /// How they are erased.
    pub erasure: Erasure,
    /// Forgets what is older than `$1` (double precision) seconds, at most `$2` (bigint) rows, passing over locked ones. Absent where
    /// nothing grows old.
    pub forget_old: Option<&'static str>,
}

/// What becomes of them when the person is erased.
#[derive(Debug, Clone, Copy)]
pub enum Erasure {
    /// A statement for it; changes at most `$4` (bigint) rows.
    Now(&'static str),
    /// Not here, and why.
    Elsewhere(&'static str),
}

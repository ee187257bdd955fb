//! The objects of a directory and the pure rules about their changes.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Deepest place in a tree, roots being at 1.
pub(super) const MAX_DEPTH: i32 = 64;

/// What orders the events of one object: version first, then event time, then the event's identity. A total order, so that
/// two events with one version converge too.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stamp {
    pub(super) version: i64,
    /// The epoch for an event without a time.
    pub(super) time: Timestamp,
    /// Id and source of the event.
    pub(super) key: String,
}

/// What is known of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// No event has told of it yet; something waits for it, or nothing does.
    Unknown,
    /// It exists.
    Live,
    /// Memberships only: ended with its user, comes back with them.
    Detached,
    /// The tombstone.
    Deleted,
}

impl State {
    /// Reads the stored name.
    pub(super) fn parse(name: &str) -> Option<Self> {
        match name {
            "unknown" => Some(Self::Unknown),
            "live" => Some(Self::Live),
            "detached" => Some(Self::Detached),
            "deleted" => Some(Self::Deleted),
            _ => None,
        }
    }

    /// The stored name.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Live => "live",
            Self::Detached => "detached",
            Self::Deleted => "deleted",
        }
    }
}

/// The values of a department.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Department {
    pub(super) name: String,
    /// `None` for a root.
    pub(super) parent_id: Option<String>,
    pub(super) sort_order: i32,
}

/// The values of a user.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) email: String,
    pub(super) title: String,
    pub(super) employee_number: String,
    pub(super) suspended: bool,
}

/// Personal data stays out of every log, also by accident.
impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").field("suspended", &self.suspended).finish_non_exhaustive()
    }
}

/// The values of a membership.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Membership {
    pub(super) primary: bool,
    pub(super) title: String,
}

/// Values that can be compared field by field, under the names of the protobuf messages.
pub(super) trait Fields: Default + PartialEq {
    /// Each field's name, and whether it differs.
    fn differences(&self, other: &Self) -> Vec<(&'static str, bool)>;
}

impl Fields for Department {
    fn differences(&self, other: &Self) -> Vec<(&'static str, bool)> {
        vec![
            ("name", self.name != other.name),
            ("parent_id", self.parent_id != other.parent_id),
            ("sort_order", self.sort_order != other.sort_order),
        ]
    }
}

impl Fields for User {
    fn differences(&self, other: &Self) -> Vec<(&'static str, bool)> {
        vec![
            ("name", self.name != other.name),
            ("email", self.email != other.email),
            ("title", self.title != other.title),
            ("employee_number", self.employee_number != other.employee_number),
            ("suspended", self.suspended != other.suspended),
        ]
    }
}

impl Fields for Membership {
    fn differences(&self, other: &Self) -> Vec<(&'static str, bool)> {
        vec![("primary", self.primary != other.primary), ("title", self.title != other.title)]
    }
}

/// What happened to an object, for those downstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    /// The first event that made it live.
    Created,
    /// Its values changed.
    Updated,
    /// It ended.
    Deleted,
    /// It lives again after a deletion.
    Restored,
}

impl Op {
    /// The name on the wire.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Deleted => "deleted",
            Self::Restored => "restored",
        }
    }
}

/// A change worth telling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Difference {
    pub(super) op: Op,
    pub(super) fields: Vec<&'static str>,
}

/// An object as it was stored before an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Before<T> {
    pub(super) state: State,
    pub(super) version: i64,
    pub(super) values: T,
}

impl<T: Fields> Before<T> {
    /// An object that the database has never heard of.
    pub(super) fn unknown() -> Self {
        Self { state: State::Unknown, version: 0, values: T::default() }
    }

    /// What an applied event changed; `after` is `None` for a deletion. `None`: nothing that anyone could see.
    pub(super) fn difference(&self, after: Option<&T>) -> Option<Difference> {
        let op = match (self.state, after) {
            (State::Live, None) => return Some(Difference { op: Op::Deleted, fields: Vec::new() }),
            (_, None) => return None,
            (State::Live, Some(_)) => Op::Updated,
            (State::Unknown, Some(_)) => Op::Created,
            (State::Deleted | State::Detached, Some(_)) => Op::Restored,
        };
        let empty = T::default();
        let base = if op == Op::Updated { &self.values } else { &empty };
        let differences = after?.differences(base);
        let fields: Vec<_> = differences.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect();
        (op != Op::Updated || !fields.is_empty()).then_some(Difference { op, fields })
    }

    /// Whether an event of `version` only repeats what is stored.
    pub(super) fn repeats(&self, version: i64, after: Option<&T>) -> bool {
        self.version == version
            && match after {
                Some(values) => self.state == State::Live && self.values == *values,
                None => self.state == State::Deleted,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::{Before, Department, Op, Stamp, State};
    use jiff::Timestamp;

    fn department(name: &str) -> Department {
        Department { name: name.into(), parent_id: None, sort_order: 0 }
    }

    fn before(state: State, name: &str) -> Before<Department> {
        Before { state, version: 3, values: department(name) }
    }

    #[test]
    fn d2_a_stamp_orders_by_version_then_time_then_event() {
        let stamp = |version, second, key: &str| Stamp {
            version,
            time: Timestamp::from_second(second).unwrap(),
            key: key.into(),
        };
        assert!(stamp(2, 0, "a") > stamp(1, 9, "z"));
        assert!(stamp(2, 1, "a") > stamp(2, 0, "z"));
        assert!(stamp(2, 1, "b") > stamp(2, 1, "a"));
    }

    #[test]
    fn a_difference_names_only_the_fields_that_changed() {
        let after = Department { sort_order: 7, ..department("Sales") };
        let difference = before(State::Live, "Sales").difference(Some(&after)).unwrap();
        assert_eq!((difference.op, difference.fields), (Op::Updated, vec!["sort_order"]));
    }

    #[test]
    fn equal_values_are_no_difference() {
        assert_eq!(before(State::Live, "Sales").difference(Some(&department("Sales"))), None);
    }

    #[test]
    fn d4_a_tombstone_is_restored_and_an_unknown_object_created() {
        let after = department("Sales");
        assert_eq!(before(State::Deleted, "").difference(Some(&after)).unwrap().op, Op::Restored);
        assert_eq!(before(State::Unknown, "").difference(Some(&after)).unwrap().op, Op::Created);
    }

    #[test]
    fn only_the_end_of_a_live_object_is_told() {
        assert_eq!(before(State::Live, "Sales").difference(None).unwrap().op, Op::Deleted);
        assert_eq!(before(State::Deleted, "").difference(None), None);
        assert_eq!(before(State::Unknown, "").difference(None), None);
    }

    #[test]
    fn an_event_repeats_only_with_the_same_version_and_values() {
        let live = before(State::Live, "Sales");
        assert!(live.repeats(3, Some(&department("Sales"))));
        assert!(!live.repeats(3, Some(&department("Support"))));
        assert!(!live.repeats(4, Some(&department("Sales"))));
        assert!(before(State::Deleted, "").repeats(3, None));
    }
}

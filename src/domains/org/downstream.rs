//! What is told downstream: one message per changed object, and the ids under which they are ordered.

use std::borrow::Cow;

use super::event::MembershipKey;
use super::model::{Department, Difference, Membership, User};
use super::proto;
use crate::event::{Downstream, Rejection};

pub(super) const DEPARTMENT_CHANGED: &str = "org.department.changed.v1";
pub(super) const USER_CHANGED: &str = "org.user.changed.v1";
pub(super) const MEMBERSHIP_CHANGED: &str = "org.membership.changed.v1";

/// An object's id within one directory, with the version it now has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a, I: ?Sized> {
    pub(super) directory: &'a str,
    pub(super) id: &'a I,
    pub(super) version: i64,
}

/// A department changed.
pub(super) fn department(
    subject: Subject<'_, str>,
    difference: &Difference,
    values: Option<&Department>,
) -> Result<Downstream, Rejection> {
    let message = proto::DepartmentChanged {
        directory: subject.directory.into(),
        id: subject.id.into(),
        op: difference.op.as_str().into(),
        version: subject.version,
        changed_fields: names(difference),
        department: values.map(|v| proto::Department {
            name: v.name.clone(),
            parent_id: v.parent_id.clone().unwrap_or_default(),
            sort_order: v.sort_order,
        }),
    };
    Downstream::new(DEPARTMENT_CHANGED, "department", aggregate(&[subject.directory, subject.id]), &message)
}

/// A user changed.
pub(super) fn user(
    subject: Subject<'_, str>,
    difference: &Difference,
    values: Option<&User>,
) -> Result<Downstream, Rejection> {
    let message = proto::UserChanged {
        directory: subject.directory.into(),
        id: subject.id.into(),
        op: difference.op.as_str().into(),
        version: subject.version,
        changed_fields: names(difference),
        user: values.map(|v| proto::User {
            name: v.name.clone(),
            email: v.email.clone(),
            title: v.title.clone(),
            employee_number: v.employee_number.clone(),
            suspended: v.suspended,
        }),
    };
    Downstream::new(USER_CHANGED, "user", aggregate(&[subject.directory, subject.id]), &message)
}

/// A membership changed.
pub(super) fn membership(
    subject: Subject<'_, MembershipKey>,
    difference: &Difference,
    values: Option<&Membership>,
) -> Result<Downstream, Rejection> {
    let key = subject.id;
    let message = proto::MembershipChanged {
        directory: subject.directory.into(),
        user_id: key.user_id.clone(),
        department_id: key.department_id.clone(),
        op: difference.op.as_str().into(),
        version: subject.version,
        changed_fields: names(difference),
        membership: values.map(|v| proto::Membership { primary: v.primary, title: v.title.clone() }),
    };
    let id = aggregate(&[subject.directory, &key.user_id, &key.department_id]);
    Downstream::new(MEMBERSHIP_CHANGED, "membership", id, &message)
}

fn names(difference: &Difference) -> Vec<String> {
    difference.fields.iter().map(|&name| name.into()).collect()
}

/// Joins ids with '/'; one that holds a '/' itself is escaped, so that two objects never share an ordering key.
fn aggregate(parts: &[&str]) -> String {
    parts.iter().map(|part| escaped(part)).collect::<Vec<_>>().join("/")
}

fn escaped(part: &str) -> Cow<'_, str> {
    match part.contains(['%', '/']) {
        true => part.replace('%', "%25").replace('/', "%2F").into(),
        false => part.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::aggregate;

    #[test]
    fn ids_with_slashes_never_collide() {
        assert_eq!(aggregate(&["dingtalk", "42"]), "dingtalk/42");
        assert_ne!(aggregate(&["d", "a/b", "c"]), aggregate(&["d", "a", "b/c"]));
        assert_ne!(aggregate(&["d", "a%2Fb"]), aggregate(&["d", "a/b"]));
    }
}

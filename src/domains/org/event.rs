//! The edge: from the wire's messages to valid events of this domain.

use jiff::Timestamp;

use super::model::{Department, Membership, Stamp, User};
use super::{proto, validate};
use crate::event::{Envelope, Rejection};

pub(super) const DEPARTMENT_UPSERTED: &str = "org.department.upserted.v1";
pub(super) const DEPARTMENT_DELETED: &str = "org.department.deleted.v1";
pub(super) const USER_UPSERTED: &str = "org.user.upserted.v1";
pub(super) const USER_DELETED: &str = "org.user.deleted.v1";
pub(super) const MEMBERSHIP_ADDED: &str = "org.membership.added.v1";
pub(super) const MEMBERSHIP_REMOVED: &str = "org.membership.removed.v1";

/// A valid event: what became of one object of one directory.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct OrgEvent {
    pub(super) directory: String,
    pub(super) stamp: Stamp,
    pub(super) change: Change,
}

/// The object and its new values; `None` where it ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change {
    Department { id: String, values: Option<Department> },
    User { id: String, values: Option<User> },
    Membership { key: MembershipKey, values: Option<Membership> },
}

/// Who belongs where.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct MembershipKey {
    pub(super) user_id: String,
    pub(super) department_id: String,
}

impl OrgEvent {
    /// Decodes and validates the payload.
    pub(super) fn decode(envelope: &Envelope) -> Result<Self, Rejection> {
        match envelope.event_type.as_str() {
            DEPARTMENT_UPSERTED => department_upserted(envelope),
            DEPARTMENT_DELETED => department_deleted(envelope),
            USER_UPSERTED => user_upserted(envelope),
            USER_DELETED => user_deleted(envelope),
            MEMBERSHIP_ADDED => membership_added(envelope),
            MEMBERSHIP_REMOVED => membership_removed(envelope),
            other => Err(Rejection::decode("unknown_type", format!("org reads no events of type {other:?}"))),
        }
    }

    fn new(envelope: &Envelope, directory: String, version: i64, change: Change) -> Result<Self, Rejection> {
        let stamp = Stamp {
            version: validate::version(version)?,
            // As precise as the database keeps it, so that both compare alike.
            time: envelope.time.and_then(|t| Timestamp::from_microsecond(t.as_microsecond()).ok()).unwrap_or_default(),
            key: format!("{} {}", envelope.id, envelope.source),
        };
        Ok(Self { directory: validate::directory(directory)?, stamp, change })
    }
}

fn department_upserted(envelope: &Envelope) -> Result<OrgEvent, Rejection> {
    let message: proto::DepartmentUpserted = envelope.payload()?;
    let values = Department {
        name: validate::name(message.name)?,
        parent_id: validate::optional_id("parent_id", message.parent_id)?,
        sort_order: message.sort_order,
    };
    let change = Change::Department { id: validate::id("id", message.id)?, values: Some(values) };
    OrgEvent::new(envelope, message.directory, message.version, change)
}

fn department_deleted(envelope: &Envelope) -> Result<OrgEvent, Rejection> {
    let message: proto::DepartmentDeleted = envelope.payload()?;
    let change = Change::Department { id: validate::id("id", message.id)?, values: None };
    OrgEvent::new(envelope, message.directory, message.version, change)
}

fn user_upserted(envelope: &Envelope) -> Result<OrgEvent, Rejection> {
    let message: proto::UserUpserted = envelope.payload()?;
    let values = User {
        name: validate::name(message.name)?,
        email: validate::email(message.email)?,
        title: validate::text("title", message.title)?,
        employee_number: validate::text("employee_number", message.employee_number)?,
        suspended: message.suspended,
    };
    let change = Change::User { id: validate::id("id", message.id)?, values: Some(values) };
    OrgEvent::new(envelope, message.directory, message.version, change)
}

fn user_deleted(envelope: &Envelope) -> Result<OrgEvent, Rejection> {
    let message: proto::UserDeleted = envelope.payload()?;
    let change = Change::User { id: validate::id("id", message.id)?, values: None };
    OrgEvent::new(envelope, message.directory, message.version, change)
}

fn membership_added(envelope: &Envelope) -> Result<OrgEvent, Rejection> {
    let message: proto::MembershipAdded = envelope.payload()?;
    let values = Membership { primary: message.primary, title: validate::text("title", message.title)? };
    let key = membership_key(message.user_id, message.department_id)?;
    let change = Change::Membership { key, values: Some(values) };
    OrgEvent::new(envelope, message.directory, message.version, change)
}

fn membership_removed(envelope: &Envelope) -> Result<OrgEvent, Rejection> {
    let message: proto::MembershipRemoved = envelope.payload()?;
    let key = membership_key(message.user_id, message.department_id)?;
    OrgEvent::new(envelope, message.directory, message.version, Change::Membership { key, values: None })
}

fn membership_key(user_id: String, department_id: String) -> Result<MembershipKey, Rejection> {
    Ok(MembershipKey {
        user_id: validate::id("user_id", user_id)?,
        department_id: validate::id("department_id", department_id)?,
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde::Serialize;
    use serde::de::DeserializeOwned;
    use serde_json::Value;

    use super::{
        DEPARTMENT_DELETED, DEPARTMENT_UPSERTED, MEMBERSHIP_ADDED, MEMBERSHIP_REMOVED, OrgEvent, USER_DELETED,
        USER_UPSERTED,
    };
    use crate::domains::org::{Org, proto};
    use crate::event::{Envelope, Format, Stage, Trace};
    use crate::runtime::Consumer;

    fn envelope(event_type: &str, format: Format, data: impl Into<Bytes>) -> Envelope {
        Envelope {
            id: "e-1".into(),
            source: "/test".into(),
            event_type: event_type.into(),
            subject: None,
            partition_key: "e-1".into(),
            time: None,
            tenant: "default".into(),
            trace: Trace::default(),
            format,
            data: data.into(),
        }
    }

    #[test]
    fn every_sample_decodes_to_the_same_event_as_json_and_as_protobuf() {
        assert_eq!(Org::READS.len(), 6);
        for read in Org::READS {
            let json = envelope(read.name, Format::Json, read.sample);
            let protobuf = (read.to_protobuf.unwrap())(read.sample).unwrap();
            let binary = envelope(read.name, Format::Protobuf, protobuf);
            assert_eq!(OrgEvent::decode(&json).unwrap(), OrgEvent::decode(&binary).unwrap(), "{}", read.name);
        }
    }

    /// The sample as the message writes itself: equal unless the sample has a field that the message does not know.
    fn rewritten<M: DeserializeOwned + Serialize>(name: &str) -> (Value, Value) {
        let sample = Org::READS.iter().find(|t| t.name == name).unwrap().sample;
        let message: M = serde_json::from_str(sample).unwrap();
        (serde_json::from_str(sample).unwrap(), serde_json::to_value(message).unwrap())
    }

    #[test]
    fn a_sample_holds_no_field_that_its_message_does_not_know() {
        for (sample, rewritten) in [
            rewritten::<proto::DepartmentUpserted>(DEPARTMENT_UPSERTED),
            rewritten::<proto::DepartmentDeleted>(DEPARTMENT_DELETED),
            rewritten::<proto::UserUpserted>(USER_UPSERTED),
            rewritten::<proto::UserDeleted>(USER_DELETED),
            rewritten::<proto::MembershipAdded>(MEMBERSHIP_ADDED),
            rewritten::<proto::MembershipRemoved>(MEMBERSHIP_REMOVED),
        ] {
            assert_eq!(sample, rewritten);
        }
    }

    #[test]
    fn a_payload_without_a_version_is_invalid_and_one_that_is_no_json_is_undecodable() {
        let no_version = envelope("org.user.deleted.v1", Format::Json, r#"{"directory":"hr","id":"1"}"#);
        let rejection = OrgEvent::decode(&no_version).unwrap_err();
        assert_eq!((rejection.stage, rejection.code), (Stage::Validate, "invalid_version"));
        let broken = OrgEvent::decode(&envelope("org.user.deleted.v1", Format::Json, "{")).unwrap_err();
        assert_eq!((broken.stage, broken.code), (Stage::Decode, "invalid_json"));
    }

    #[test]
    fn a_users_debug_output_shows_no_personal_data() {
        let read = Org::READS.iter().find(|t| t.name == USER_UPSERTED).unwrap();
        let event = OrgEvent::decode(&envelope(read.name, Format::Json, read.sample)).unwrap();
        assert!(!format!("{event:?}").contains("Example Person"));
    }
}

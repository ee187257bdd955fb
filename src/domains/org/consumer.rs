//! The consumer: what it reads and publishes, and the one place where an event finds its rule.

use async_trait::async_trait;
use futures_util::future::try_join_all;
use prost::Message;
use serde::de::DeserializeOwned;

use super::batch::{self, Step};
use super::downstream::{DEPARTMENT_CHANGED, MEMBERSHIP_CHANGED, USER_CHANGED};
use super::event::{self, Change, OrgEvent};
use super::invariants_store::INVARIANTS;
use super::personal_store::PERSONAL;
use super::user::store::Newest;
use super::user::{self, Users};
use super::work::{Verdict, Work};
use super::{department, membership, proto, waiting};
use crate::db::{DbError, Tx};
use crate::event::{Envelope, Rejection};
use crate::runtime::{Consumer, EventType, HandleError, Invariant, Outcome, PersonalData, Received, Skip};

/// Keeps the directories' departments, users and memberships.
pub(crate) struct Org;

#[async_trait]
impl Consumer for Org {
    type Event = OrgEvent;

    const NAME: &'static str = "org";
    const BINDINGS: &'static [&'static str] = &["org.#"];
    const READS: &'static [EventType] = READS;
    const PUBLISHES: &'static [EventType] = PUBLISHES;
    const INVARIANTS: &'static [Invariant] = INVARIANTS;
    const PERSONAL: &'static [PersonalData] = PERSONAL;

    fn decode(&self, envelope: &Envelope) -> Result<OrgEvent, Rejection> {
        OrgEvent::decode(envelope)
    }

    async fn handle_one(&self, tx: &Tx, received: &Received<OrgEvent>) -> Result<Outcome, HandleError> {
        let outcomes = self.handle(tx, std::slice::from_ref(received)).await?;
        Ok(outcomes.into_iter().next().ok_or_else(|| DbError::shape("an event without an outcome"))?)
    }

    async fn handle(&self, tx: &Tx, events: &[Received<OrgEvent>]) -> Result<Vec<Outcome>, HandleError> {
        let mut outcomes: Vec<Option<Outcome>> = vec![None; events.len()];
        for step in batch::steps(events) {
            match step {
                Step::One(n) => {
                    let (work, verdict) = apply(tx, &events[n]).await?;
                    outcomes[n] = Some(ended(work, &events[n], verdict).await?);
                }
                Step::Memberships(places) => {
                    let applied = try_join_all(places.iter().map(|&n| apply(tx, &events[n]))).await?;
                    for (n, (work, verdict)) in places.into_iter().zip(applied) {
                        outcomes[n] = Some(ended(work, &events[n], verdict).await?);
                    }
                }
                Step::Users(places) => {
                    let mut written = user::write(tx, places.iter().filter_map(|&n| newest(&events[n]))).await?;
                    for n in places {
                        outcomes[n] = Some(told(tx, &mut written, &events[n]).await?);
                    }
                }
            }
        }
        Ok(outcomes.into_iter().flatten().collect())
    }
}

fn newest(received: &Received<OrgEvent>) -> Option<Newest<'_>> {
    let OrgEvent { directory, stamp, change } = &*received.event;
    let Change::User { id, values } = change else { return None };
    Some(Newest { tenant: &received.envelope.tenant, directory, id, stamp, values: values.as_ref() })
}

/// What an event about a user did that is written already.
async fn told<'a>(
    tx: &'a Tx,
    written: &mut Users<'a>,
    received: &'a Received<OrgEvent>,
) -> Result<Outcome, HandleError> {
    let OrgEvent { directory, stamp, change } = &*received.event;
    let mut work = Work::new(tx, &received.envelope.tenant, directory);
    let verdict = match change {
        Change::User { id, values } => written.tell(&mut work, id, stamp, values.as_ref()).await?,
        _ => Err(DbError::shape("an event among users that is about none"))?,
    };
    ended(work, received, verdict).await
}

async fn apply<'a>(tx: &'a Tx, received: &'a Received<OrgEvent>) -> Result<(Work<'a>, Verdict), HandleError> {
    let OrgEvent { directory, stamp, change } = &*received.event;
    let mut work = Work::new(tx, &received.envelope.tenant, directory);
    let verdict = match change {
        Change::Department { id, values: Some(values) } => department::upsert(&mut work, id, stamp, values).await?,
        Change::Department { id, values: None } => department::delete(&mut work, id, stamp).await?,
        Change::Membership { key, values: Some(values) } => membership::add(&mut work, key, stamp, values).await?,
        Change::Membership { key, values: None } => membership::remove(&mut work, key, stamp).await?,
        Change::User { .. } => Err(DbError::shape("users are written in sets"))?,
    };
    Ok((work, verdict))
}

/// The outcome of an event, after what it freed was applied too.
async fn ended(mut work: Work<'_>, received: &Received<OrgEvent>, verdict: Verdict) -> Result<Outcome, HandleError> {
    let OrgEvent { stamp, change, .. } = &*received.event;
    match verdict {
        Verdict::Applied => waiting::release(&mut work).await?,
        Verdict::Stale => return Ok(Outcome::Skipped(Skip::Stale)),
        Verdict::NoChange => return Ok(Outcome::Skipped(Skip::Because("no_change"))),
        Verdict::Blocked(block) if block.is_tree() => {
            return Ok(Outcome::Reject(Rejection::refused(block.reason, block.message)));
        }
        Verdict::Blocked(block) if !waiting::keep(&work, change, stamp, &block).await? => {
            return Ok(Outcome::Skipped(Skip::Stale));
        }
        Verdict::Blocked(_) => {}
    }
    Ok(Outcome::Applied(work.into_downstream()))
}

const READS: &[EventType] = &[
    EventType {
        name: event::DEPARTMENT_UPSERTED,
        summary: "A department was created, renamed or moved",
        message: "onceflow.org.v1.DepartmentUpserted",
        sample: include_str!("../../../samples/org/department.upserted.json"),
        to_protobuf: Some(to_protobuf::<proto::DepartmentUpserted>),
    },
    EventType {
        name: event::DEPARTMENT_DELETED,
        summary: "A department was deleted; waits until it is empty",
        message: "onceflow.org.v1.DepartmentDeleted",
        sample: include_str!("../../../samples/org/department.deleted.json"),
        to_protobuf: Some(to_protobuf::<proto::DepartmentDeleted>),
    },
    EventType {
        name: event::USER_UPSERTED,
        summary: "A user was created or changed",
        message: "onceflow.org.v1.UserUpserted",
        sample: include_str!("../../../samples/org/user.upserted.json"),
        to_protobuf: Some(to_protobuf::<proto::UserUpserted>),
    },
    EventType {
        name: event::USER_DELETED,
        summary: "A user was deleted; their memberships end too",
        message: "onceflow.org.v1.UserDeleted",
        sample: include_str!("../../../samples/org/user.deleted.json"),
        to_protobuf: Some(to_protobuf::<proto::UserDeleted>),
    },
    EventType {
        name: event::MEMBERSHIP_ADDED,
        summary: "A user joined a department, or the membership changed",
        message: "onceflow.org.v1.MembershipAdded",
        sample: include_str!("../../../samples/org/membership.added.json"),
        to_protobuf: Some(to_protobuf::<proto::MembershipAdded>),
    },
    EventType {
        name: event::MEMBERSHIP_REMOVED,
        summary: "A user left a department",
        message: "onceflow.org.v1.MembershipRemoved",
        sample: include_str!("../../../samples/org/membership.removed.json"),
        to_protobuf: Some(to_protobuf::<proto::MembershipRemoved>),
    },
];

const PUBLISHES: &[EventType] = &[
    EventType {
        name: DEPARTMENT_CHANGED,
        summary: "A department changed here, with its version and the changed fields",
        message: "onceflow.org.v1.DepartmentChanged",
        sample: "",
        to_protobuf: None,
    },
    EventType {
        name: USER_CHANGED,
        summary: "A user changed here, with their version and the changed fields",
        message: "onceflow.org.v1.UserChanged",
        sample: "",
        to_protobuf: None,
    },
    EventType {
        name: MEMBERSHIP_CHANGED,
        summary: "A membership changed here, with its version and the changed fields",
        message: "onceflow.org.v1.MembershipChanged",
        sample: "",
        to_protobuf: None,
    },
];

fn to_protobuf<M: Message + DeserializeOwned>(json: &str) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::from_str::<M>(json).map(|message| message.encode_to_vec())
}

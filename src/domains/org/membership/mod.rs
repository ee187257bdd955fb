//! Memberships: live only while both their user and their department are.

pub(super) mod store;

use super::downstream::{self, Subject};
use super::event::MembershipKey;
use super::model::{Before, Membership, Stamp, State};
use super::work::{Block, Verdict, Wake, Work};
use super::{department, user};
use crate::runtime::HandleError;

/// Adds, changes or restores a membership.
pub(super) async fn add(
    work: &mut Work<'_>,
    key: &MembershipKey,
    stamp: &Stamp,
    values: &Membership,
) -> Result<Verdict, HandleError> {
    let found = store::look(work, key, stamp).await?;
    if !found.newer {
        return Ok(Verdict::not_newer(found.before.repeats(stamp.version, Some(values))));
    }
    if !found.user_is_live && !user::store::hold(work, &key.user_id).await? {
        let wake = Wake::User(key.user_id.clone());
        return missing(work, (key, stamp), "user_missing", wake).await;
    }
    if !found.department_is_live && !department::store::hold(work, &key.department_id).await? {
        let wake = Wake::Department(key.department_id.clone());
        return missing(work, (key, stamp), "department_missing", wake).await;
    }
    write(work, key, stamp, Some(values)).await
}

/// Ends a membership, or leaves the tombstone of one that never came.
pub(super) async fn remove(work: &mut Work<'_>, key: &MembershipKey, stamp: &Stamp) -> Result<Verdict, HandleError> {
    lock_left(work, &[&key.department_id]).await?;
    write(work, key, stamp, None).await
}

/// Ends the live memberships of a user who was deleted. They wait for the user's return.
pub(super) async fn detach_all(work: &mut Work<'_>, user_id: &str) -> Result<(), HandleError> {
    let departments = store::departments_of(work, user_id).await?;
    if departments.is_empty() {
        return Ok(());
    }
    let ids: Vec<_> = departments.iter().map(String::as_str).collect();
    lock_left(work, &ids).await?;
    for (department_id, before) in store::detach(work, user_id).await? {
        let key = MembershipKey { user_id: user_id.into(), department_id };
        announce(work, &key, before.version, &before, None)?;
        work.wake(Wake::Emptied(key.department_id));
    }
    Ok(())
}

/// The verdict on a membership that has to wait. Its row is locked, so that a removal at the same time either is seen here or
/// sees what we keep.
async fn missing(
    work: &Work<'_>,
    (key, stamp): (&MembershipKey, &Stamp),
    reason: &'static str,
    wake: Wake,
) -> Result<Verdict, HandleError> {
    if !store::hold(work, key, stamp).await? {
        return Ok(Verdict::Stale);
    }
    let message = format!("the membership needs {} of {}, which is not known yet", wake.key(), work.directory);
    Ok(Verdict::Blocked(Block { reason, wake, message }))
}

/// Locks the departments that lose members, so that the last one to leave sees that it is the last. Where a deletion waits
/// for that, the tree comes first in the order of locks. A deletion that begins to wait between our look and our lock can
/// cost one of two removals a deadlock, which the runtime tries again in place.
async fn lock_left(work: &mut Work<'_>, departments: &[&str]) -> Result<(), HandleError> {
    if department::store::any_leaving(work, departments).await? {
        work.lock_tree().await?;
    }
    department::store::lock_for_removal(work, departments).await?;
    Ok(())
}

async fn write(
    work: &mut Work<'_>,
    key: &MembershipKey,
    stamp: &Stamp,
    values: Option<&Membership>,
) -> Result<Verdict, HandleError> {
    let (before, written) = store::write(work, key, stamp, values).await?;
    let repeats = before.repeats(stamp.version, values);
    if !written {
        return Ok(Verdict::not_newer(repeats));
    }
    announce(work, key, stamp.version, &before, values)?;
    if before.state == State::Live && values.is_none() {
        work.wake(Wake::Emptied(key.department_id.clone()));
    }
    Ok(Verdict::written(repeats))
}

fn announce(
    work: &mut Work<'_>,
    key: &MembershipKey,
    version: i64,
    before: &Before<Membership>,
    after: Option<&Membership>,
) -> Result<(), HandleError> {
    let Some(difference) = before.difference(after) else { return Ok(()) };
    let subject = Subject { directory: work.directory, id: key, version };
    work.tell(downstream::membership(subject, &difference, after))
}

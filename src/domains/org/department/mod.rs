//! Departments: their versions, their place in the tree, and deletions that wait until a department is empty.

pub(super) mod store;

use super::downstream::{self, Subject};
use super::model::{Before, Department, MAX_DEPTH, Stamp, State};
use super::waiting;
use super::work::{Block, Verdict, Wake, Work};
use crate::runtime::HandleError;

/// Longest chain of ids quoted in a message.
const MAX_QUOTED: usize = 400;

/// Creates, changes, moves or restores a department.
pub(super) async fn upsert(
    work: &mut Work<'_>,
    id: &str,
    stamp: &Stamp,
    values: &Department,
) -> Result<Verdict, HandleError> {
    // A change that leaves the tree as it is doesn't queue behind the moves of its directory.
    if !store::has_place(work, id, values.parent_id.as_deref()).await? {
        work.lock_tree().await?;
    }
    let (mut before, mut newer) = store::lock(work, id, stamp).await?;
    if moves(&before, values) && !work.has_tree() {
        // It moved between the look and the lock.
        work.lock_tree().await?;
        (before, newer) = store::lock(work, id, stamp).await?;
    }
    let repeats = before.repeats(stamp.version, Some(values));
    if !newer {
        return Ok(Verdict::not_newer(repeats));
    }
    if moves(&before, values)
        && let Some(block) = obstacle(work, id, values.parent_id.as_deref()).await?
    {
        return Ok(Verdict::Blocked(block));
    }
    store::write(work, id, stamp, values).await?;
    waiting::forget_department(work, id, stamp).await?;
    announce(work, id, stamp, &before, Some(values))?;
    if before.state != State::Live {
        work.wake(Wake::Department(id.into()));
    } else if moves(&before, values) {
        left(work, before.values.parent_id);
    }
    Ok(Verdict::written(repeats))
}

/// Ends a department, or leaves the tombstone of one that never came.
pub(super) async fn delete(work: &mut Work<'_>, id: &str, stamp: &Stamp) -> Result<Verdict, HandleError> {
    work.lock_tree().await?;
    let (before, newer) = store::lock(work, id, stamp).await?;
    let repeats = before.repeats(stamp.version, None);
    if !newer {
        return Ok(Verdict::not_newer(repeats));
    }
    if before.state == State::Live && !store::is_empty(work, id).await? {
        let message = format!("department {}/{id} still has children or members", work.directory);
        return Ok(Verdict::Blocked(Block { reason: "not_empty", wake: Wake::Emptied(id.into()), message }));
    }
    store::bury(work, id, stamp).await?;
    waiting::forget_department(work, id, stamp).await?;
    announce(work, id, stamp, &before, None)?;
    if before.state == State::Live {
        left(work, before.values.parent_id);
    }
    Ok(Verdict::written(repeats))
}

fn moves(before: &Before<Department>, values: &Department) -> bool {
    before.state != State::Live || before.values.parent_id != values.parent_id
}

fn left(work: &mut Work<'_>, parent_id: Option<String>) {
    if let Some(parent_id) = parent_id {
        work.wake(Wake::Emptied(parent_id));
    }
    work.wake(Wake::Tree);
}

fn announce(
    work: &mut Work<'_>,
    id: &str,
    stamp: &Stamp,
    before: &Before<Department>,
    after: Option<&Department>,
) -> Result<(), HandleError> {
    let Some(difference) = before.difference(after) else { return Ok(()) };
    let subject = Subject { directory: work.directory, id, version: stamp.version };
    work.tell(downstream::department(subject, &difference, after))
}

/// Why the department can't take its place, if it can't. Needs the tree's lock.
async fn obstacle(work: &Work<'_>, id: &str, parent_id: Option<&str>) -> Result<Option<Block>, HandleError> {
    let Some(parent_id) = parent_id else { return Ok(None) };
    let way = store::way_up(work, id, parent_id).await?;
    let directory = work.directory;
    if way.reaches_itself {
        let path: String = way.path.chars().take(MAX_QUOTED).collect();
        let message = format!(
            "department {directory}/{id} can't have the parent {parent_id}: that would close a cycle ({id} > {path}). \
             Correct the parent at the source, or replay this event once the move that opens the cycle has been applied"
        );
        return Ok(Some(Block { reason: "department_cycle", wake: Wake::Tree, message }));
    }
    if !way.parent_is_live {
        let message = format!("the parent {parent_id} of department {directory}/{id} is not known yet");
        return Ok(Some(Block { reason: "parent_missing", wake: Wake::Department(parent_id.into()), message }));
    }
    if way.depth + way.height > MAX_DEPTH {
        let message = format!(
            "department {directory}/{id} under {parent_id} would make the tree deeper than {MAX_DEPTH} levels. \
             Flatten it at the source and send it again"
        );
        return Ok(Some(Block { reason: "department_too_deep", wake: Wake::Tree, message }));
    }
    Ok(None)
}

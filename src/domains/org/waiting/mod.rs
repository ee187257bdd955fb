//! Changes that can't be applied yet are kept, the newest per object, and applied in the transaction that frees them.
//!
//! Each waits for one key ([`Wake`]). No wake-up is lost: whoever keeps a change for a user or department first locks that
//! object's row (creating it as unknown), and whoever makes the object live locks the same row before it looks for kept
//! changes; everything about the tree's shape happens under the tree's lock.

mod store;

use super::event::{Change, MembershipKey};
use super::model::Stamp;
use super::work::{Block, Verdict, Work};
use super::{department, membership};
use crate::db::DbError;
use crate::runtime::HandleError;

/// Keeps a change until `block` is gone. `false`: something newer about the object waits already.
pub(super) async fn keep(work: &Work<'_>, change: &Change, stamp: &Stamp, block: &Block) -> Result<bool, HandleError> {
    Ok(store::keep(work, change, stamp, block).await?)
}

/// Drops what is kept for a department and isn't newer.
pub(super) async fn forget_department(work: &Work<'_>, id: &str, stamp: &Stamp) -> Result<(), DbError> {
    store::forget(work, "department", (id, ""), stamp).await
}

/// Applies what the event has freed, and what that frees in turn. Every round applies or moves on what it reads, so it ends.
pub(super) async fn release(work: &mut Work<'_>) -> Result<(), HandleError> {
    loop {
        let wakes = work.take_wakes();
        if wakes.is_empty() {
            return Ok(());
        }
        let keys: Vec<_> = wakes.iter().map(super::work::Wake::key).collect();
        let mut after = store::Position::default();
        loop {
            let page = store::page(work, &keys, &after).await?;
            let Some(last) = page.last() else { break };
            after = last.position();
            for kept in &page {
                // Rare, and large: not part of every event's future.
                Box::pin(retry(work, &kept.change, &kept.stamp)).await?;
            }
        }
    }
}

/// Tries a kept change again: it is applied, has become stale, or waits for the next thing.
async fn retry(work: &mut Work<'_>, change: &Change, stamp: &Stamp) -> Result<(), HandleError> {
    let verdict = match change {
        Change::Department { id, values: Some(values) } => department::upsert(work, id, stamp, values).await?,
        Change::Department { id, values: None } => department::delete(work, id, stamp).await?,
        Change::Membership { key, values: Some(values) } => membership::add(work, key, stamp, values).await?,
        Change::Membership { key, values: None } => membership::remove(work, key, stamp).await?,
        Change::User { .. } => return Ok(()),
    };
    match (verdict, change) {
        (Verdict::Blocked(block), _) => keep(work, change, stamp, &block).await.map(drop),
        (_, Change::Department { id, .. }) => Ok(forget_department(work, id, stamp).await?),
        (_, Change::Membership { key: MembershipKey { user_id, department_id }, .. }) => {
            Ok(store::forget(work, "membership", (user_id, department_id), stamp).await?)
        }
        (_, Change::User { .. }) => Ok(()),
    }
}

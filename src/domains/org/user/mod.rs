//! Users: their versions, and what their deletion means for their memberships.

pub(super) mod store;

use super::downstream::{self, Subject};
use super::membership;
use super::model::{Before, Stamp, State, User};
use super::work::{Verdict, Wake, Work};
use crate::runtime::HandleError;

/// Creates, changes or restores a user; ends them, with their memberships, where `values` is `None`.
pub(super) async fn write(
    work: &mut Work<'_>,
    id: &str,
    stamp: &Stamp,
    values: Option<&User>,
) -> Result<Verdict, HandleError> {
    let (before, written) = store::write(work, id, stamp, values).await?;
    let known = before.is_some();
    let before = before.unwrap_or_else(Before::unknown);
    let repeats = before.repeats(stamp.version, values);
    if !written {
        return Ok(Verdict::not_newer(repeats));
    }
    if let Some(difference) = before.difference(values) {
        let subject = Subject { directory: work.directory, id, version: stamp.version };
        work.tell(downstream::user(subject, &difference, values))?;
    }
    match (before.state, values) {
        (State::Live, None) => membership::detach_all(work, id).await?,
        // Whoever waits for a user leaves a row for them, so a user without one has nobody to wake.
        (State::Unknown | State::Deleted, Some(_)) if known => work.wake(Wake::User(id.into())),
        _ => {}
    }
    Ok(Verdict::written(repeats))
}

//! Users: their versions, and what their deletion means for their memberships.

pub(super) mod store;

use foldhash::{HashMap, HashMapExt as _};

use self::store::{Newest, Stored};
use super::downstream::{self, Subject};
use super::membership;
use super::model::{Before, Stamp, State, User};
use super::work::{Verdict, Wake, Work};
use crate::db::{DbError, Tx};
use crate::runtime::HandleError;

/// What the database held of the users of a batch, before the batch was written. Rises event by event to what it holds now.
pub(super) struct Users<'a>(HashMap<(&'a str, &'a str, &'a str), Held>);

/// A user of the batch.
struct Held {
    stored: Option<Stored>,
    /// Events about the user that are not told yet.
    left: usize,
}

/// Writes the users of several events with one statement, each as its newest event has them.
///
/// What the single events did is told afterwards, in their order, by [`Users::tell`].
pub(super) async fn write<'a>(tx: &Tx, events: impl Iterator<Item = Newest<'a>>) -> Result<Users<'a>, DbError> {
    let mut newest: HashMap<_, (Newest<'a>, usize)> = HashMap::new();
    for event in events {
        let (kept, count) = newest.entry((event.tenant, event.directory, event.id)).or_insert((event, 0));
        *count += 1;
        if event.stamp > kept.stamp {
            *kept = event;
        }
    }
    let (keys, users): (Vec<_>, Vec<_>) = newest.into_iter().map(|(key, (event, left))| ((key, left), event)).unzip();
    let stored = store::write(tx, &users).await?;
    Ok(Users(keys.into_iter().zip(stored).map(|((key, left), stored)| (key, Held { stored, left })).collect()))
}

impl<'a> Users<'a> {
    /// What one event did: its verdict, what it tells downstream, and what it wakes.
    pub(super) async fn tell(
        &mut self,
        work: &mut Work<'a>,
        id: &'a str,
        stamp: &Stamp,
        values: Option<&User>,
    ) -> Result<Verdict, HandleError> {
        let Held { stored, left } = self
            .0
            .get_mut(&(work.tenant, work.directory, id))
            .ok_or_else(|| DbError::shape("org_user: an event that was not written"))?;
        *left = left.saturating_sub(1);
        let known = stored.is_some();
        let is_newer = stored.as_ref().is_none_or(|(_, newest)| stamp > newest);
        let before = stored.take().unwrap_or_else(|| (Before::unknown(), stamp.clone()));
        let repeats = before.0.repeats(stamp.version, values);
        if !is_newer {
            *stored = Some(before);
            return Ok(Verdict::not_newer(repeats));
        }
        let before = before.0;
        // Few users come twice in a batch.
        if *left > 0 {
            let state = if values.is_some() { State::Live } else { State::Deleted };
            let after = Before { state, version: stamp.version, values: values.cloned().unwrap_or_default() };
            *stored = Some((after, stamp.clone()));
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
}

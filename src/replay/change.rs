//! Replay, discard, archive and restore: all of a selection, or nothing where the count isn't what the operator expected.
//!
//! An archive can be undone until retention removes the dead letter, a discard can't. Neither touches the inbox: an event that its
//! producer sends again is tried again.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::filter::{Filter, Selection, State};
use super::letter::Settled;
use super::sending_store;
use super::store::{self, Candidate, Operation};
use crate::db::{DbError, Tx};

/// Most dead letters that one call changes; the rest is counted and left for the next call.
pub const MAX_CHANGES: usize = 10_000;

/// What an operator wants done, and with what care.
#[derive(Debug, Clone)]
pub struct Change {
    /// Which dead letters.
    pub selection: Selection,
    /// Why; needed for more than one, and for an archive or a restore of any.
    pub reason: Option<String>,
    /// Who.
    pub actor: String,
    /// Only tell what would be done.
    pub dry_run: bool,
    /// Do nothing unless exactly this many are eligible.
    pub expect_count: Option<usize>,
    /// At most this many, the oldest first; [`MAX_CHANGES`] at most.
    pub max: Option<usize>,
}

/// What was done, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ChangeDone")]
pub struct Done {
    /// The dead letters that were changed.
    pub ids: Vec<Uuid>,
    /// How many of each consumer.
    pub consumers: BTreeMap<String, usize>,
    /// Selected, but not changed.
    pub ineligible: Vec<Ineligible>,
    /// Match as well, but are more than one call changes.
    pub left: usize,
    /// Nothing was changed: a plan only.
    pub dry_run: bool,
    /// Until when archived ones can be restored at least; absent for other changes, and where they are kept for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restorable_until: Option<Timestamp>,
    /// Consumer of each id, until they are counted.
    #[serde(skip)]
    pub(crate) owners: Vec<String>,
}

/// A selected dead letter that was left alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Ineligible {
    /// Its id.
    pub id: Uuid,
    /// Why.
    pub why: Why,
}

/// Why a dead letter was left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "WhyIneligible")]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// No dead letter has this id.
    NotFound,
    /// It is open: there is nothing to restore.
    Open,
    /// It is on its way already.
    Replaying,
    /// It was replayed with success.
    Replayed,
    /// Somebody dropped it.
    Discarded,
    /// Somebody put it away.
    Archived,
    /// An edited copy took its place.
    Edited,
    /// Its event has failed again since: another dead letter of it is live.
    LiveAgain,
    /// This build has no consumer of that name, so nobody would receive it.
    UnknownConsumer,
}

impl Why {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not found",
            Self::Replaying => "already replaying",
            Self::Replayed => "already replayed",
            Self::Discarded => "discarded",
            Self::Open => "open already",
            Self::Archived => "archived: restore it first",
            Self::Edited => "edited: its copy took its place",
            Self::LiveAgain => "its event failed again since, another dead letter of it is open",
            Self::UnknownConsumer => "no such consumer in this build",
        }
    }
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The database said no, or was away.
    #[error(transparent)]
    Database(#[from] DbError),
    /// More than one, and nobody said why.
    #[error("{0} dead letters are meant: a reason is needed for more than one")]
    ReasonNeeded(usize),
    /// The selection isn't what the operator saw.
    #[error("expected {expected} dead letters, found {found}: nothing was changed")]
    Count {
        /// What the operator said.
        expected: usize,
        /// What is eligible now.
        found: usize,
    },
    /// Only open dead letters can be changed.
    #[error("only open dead letters can be changed, not {0} ones")]
    NotOpen(&'static str),
    /// Only archived dead letters can be restored.
    #[error("only archived dead letters can be restored, not {0} ones")]
    NotArchived(&'static str),
    /// Nobody said why.
    #[error("a reason is needed: it is kept in the audit")]
    NoReason,
}

/// What is to be done with those that are eligible.
#[derive(Debug, Clone, Copy)]
enum Verb<'a> {
    /// To these queues.
    Replay(&'a BTreeMap<String, String>),
    Discard,
    Archive,
    Restore,
}

impl Verb<'_> {
    /// The state that a dead letter must be in.
    fn from(self) -> State {
        match self {
            Self::Restore => State::Archived,
            Self::Replay(_) | Self::Discard | Self::Archive => State::Open,
        }
    }
}

/// Sends the selected open dead letters to the consumers that failed, through the outbox. `queues` names the queue of each
/// consumer of this build.
///
/// # Errors
/// When the count differs, a reason is missing or the database fails; then the transaction is to be rolled back.
pub async fn replay(tx: &Tx, change: &Change, queues: &BTreeMap<String, String>) -> Result<Done, ChangeError> {
    let plan = plan(tx, change, Verb::Replay(queues)).await?;
    if change.dry_run || plan.ids.is_empty() {
        return Ok(plan);
    }
    let replays: Vec<Uuid> = plan.ids.iter().map(|_| Uuid::now_v7()).collect();
    sending_store::send(tx, &plan.ids, &replays, queues).await?;
    store::mark_replaying(tx, &plan.ids, &replays, None).await?;
    store::audit(tx, "dlq.replay", change, &plan.ids).await?;
    Ok(plan)
}

/// Closes the selected open dead letters for good; they stay readable.
///
/// # Errors
/// As [`replay`].
pub async fn discard(tx: &Tx, change: &Change) -> Result<Done, ChangeError> {
    let plan = plan(tx, change, Verb::Discard).await?;
    if change.dry_run || plan.ids.is_empty() {
        return Ok(plan);
    }
    store::close(tx, &plan.ids, "discarded", (&change.actor, change.reason.as_deref())).await?;
    store::audit(tx, "dlq.discard", change, &plan.ids).await?;
    Ok(plan)
}

/// Puts the selected open dead letters away; [`restore`] undoes it. The answer's time is that of the archive: until when they can be
/// restored is for the caller to add, who knows how long they are kept.
///
/// # Errors
/// As [`replay`], and without a reason.
pub async fn archive(tx: &Tx, change: &Change) -> Result<(Done, Option<Timestamp>), ChangeError> {
    needs_reason(change)?;
    let plan = plan(tx, change, Verb::Archive).await?;
    if change.dry_run || plan.ids.is_empty() {
        return Ok((plan, None));
    }
    let at = store::close(tx, &plan.ids, "archived", (&change.actor, change.reason.as_deref())).await?;
    audit_each(tx, (change, "archive"), &plan.ids, ("open", "archived")).await?;
    Ok((plan, at))
}

/// Opens the selected archived dead letters again. Nothing is sent.
///
/// # Errors
/// As [`archive`].
pub async fn restore(tx: &Tx, change: &Change) -> Result<Done, ChangeError> {
    needs_reason(change)?;
    let plan = plan(tx, change, Verb::Restore).await?;
    if change.dry_run || plan.ids.is_empty() {
        return Ok(plan);
    }
    store::restore(tx, &plan.ids).await?;
    audit_each(tx, (change, "restore"), &plan.ids, ("archived", "open")).await?;
    Ok(plan)
}

fn needs_reason(change: &Change) -> Result<(), ChangeError> {
    let silent = change.reason.as_deref().is_none_or(|reason| reason.trim().is_empty());
    if silent && !change.dry_run { Err(ChangeError::NoReason) } else { Ok(()) }
}

async fn audit_each(
    tx: &Tx,
    (change, verb): (&Change, &str),
    ids: &[Uuid],
    states: (&str, &str),
) -> Result<(), DbError> {
    let (subject, filter) = match &change.selection {
        Selection::Ids(_) => ("ids".to_owned(), None),
        Selection::Filter(filter) => {
            (filter.group.as_ref().map_or_else(|| "filter".to_owned(), |group| format!("group {group}")), Some(filter))
        }
    };
    let operation =
        Operation { verb, subject: &subject, actor: &change.actor, reason: change.reason.as_deref(), states };
    let detail = serde_json::json!({ "count": ids.len(), "filter": filter });
    store::audit_each(tx, &operation, ids, &detail).await
}

/// How far these replayed dead letters are.
///
/// # Errors
/// When the database is away.
pub async fn settled(tx: &Tx, ids: &[Uuid]) -> Result<Settled, DbError> {
    let mut settled = Settled::default();
    let states = store::states(tx, ids).await?;
    settled.other = ids.len().saturating_sub(states.len());
    for state in states {
        match state.as_str() {
            "replayed" => settled.replayed += 1,
            "open" => settled.failed_again += 1,
            "replaying" => settled.waiting += 1,
            _ => settled.other += 1,
        }
    }
    Ok(settled)
}

/// Resolves the selection and locks what is eligible, in one order for everybody.
async fn plan(tx: &Tx, change: &Change, verb: Verb<'_>) -> Result<Done, ChangeError> {
    let max = change.max.unwrap_or(MAX_CHANGES).min(MAX_CHANGES);
    let (eligible, mut done) = match &change.selection {
        Selection::Ids(ids) => {
            let found = store::lock_by_id(tx, ids).await?;
            let missing = missing(ids, &found);
            let done = judged(tx, found, verb, missing).await?;
            (done.ids.len(), done)
        }
        Selection::Filter(filter) => {
            let filter = in_its_state(filter, verb)?;
            let matching = store::count(tx, &filter).await?;
            let done = judged(tx, store::lock_by_filter(tx, &filter, max).await?, verb, Vec::new()).await?;
            // Fewer rows than the bound are all there are, whatever the count a moment ago.
            let seen = done.ids.len() + done.ineligible.len();
            (if seen < max { done.ids.len() } else { matching.saturating_sub(done.ineligible.len()) }, done)
        }
    };
    if let Some(expected) = change.expect_count.filter(|expected| *expected != eligible) {
        return Err(ChangeError::Count { expected, found: eligible });
    }
    if eligible > 1 && !change.dry_run && change.reason.as_deref().is_none_or(|r| r.trim().is_empty()) {
        return Err(ChangeError::ReasonNeeded(eligible));
    }
    done.keep(max);
    done.left = eligible.saturating_sub(done.ids.len());
    done.dry_run = change.dry_run;
    Ok(done)
}

/// The filter restricted to what the verb can change.
fn in_its_state(filter: &Filter, verb: Verb<'_>) -> Result<Filter, ChangeError> {
    let from = verb.from();
    match filter.state.filter(|state| *state != from) {
        Some(state) if from == State::Archived => Err(ChangeError::NotArchived(state.as_str())),
        Some(state) => Err(ChangeError::NotOpen(state.as_str())),
        None => Ok(Filter { state: Some(from), ..filter.clone() }),
    }
}

async fn judged(tx: &Tx, found: Vec<Candidate>, verb: Verb<'_>, missing: Vec<Ineligible>) -> Result<Done, DbError> {
    let live = match verb {
        Verb::Restore => {
            let ids: Vec<Uuid> = found.iter().map(|candidate| candidate.id).collect();
            store::live_again(tx, &ids).await?.into_iter().collect()
        }
        Verb::Replay(_) | Verb::Discard | Verb::Archive => HashSet::new(),
    };
    Ok(judge(found, verb, missing, &live))
}

fn missing(asked: &[Uuid], found: &[Candidate]) -> Vec<Ineligible> {
    let known: HashSet<Uuid> = found.iter().map(|c| c.id).collect();
    let unknown = asked.iter().filter(|id| !known.contains(id));
    unknown.map(|id| Ineligible { id: *id, why: Why::NotFound }).collect()
}

/// Splits what was found by whether it can be changed. The consumer matters only where something is sent to it. `live` are those
/// whose event has another live dead letter.
fn judge(found: Vec<Candidate>, verb: Verb<'_>, missing: Vec<Ineligible>, live: &HashSet<Uuid>) -> Done {
    let mut done = Done { ineligible: missing, ..Done::default() };
    for candidate in found {
        match why_not(&candidate, verb, live) {
            Some(why) => done.ineligible.push(Ineligible { id: candidate.id, why }),
            None => done.choose(candidate),
        }
    }
    done
}

fn why_not(candidate: &Candidate, verb: Verb<'_>, live: &HashSet<Uuid>) -> Option<Why> {
    if candidate.state == verb.from().as_str() {
        return match verb {
            Verb::Replay(queues) if !queues.contains_key(&candidate.consumer) => Some(Why::UnknownConsumer),
            Verb::Restore if live.contains(&candidate.id) => Some(Why::LiveAgain),
            Verb::Replay(_) | Verb::Discard | Verb::Archive | Verb::Restore => None,
        };
    }
    Some(match candidate.state.as_str() {
        "open" => Why::Open,
        "replaying" => Why::Replaying,
        "replayed" => Why::Replayed,
        "archived" => Why::Archived,
        "edited" => Why::Edited,
        _ => Why::Discarded,
    })
}

impl Done {
    fn choose(&mut self, candidate: Candidate) {
        self.ids.push(candidate.id);
        self.owners.push(candidate.consumer);
    }

    /// Keeps the first `max` and counts them by consumer.
    fn keep(&mut self, max: usize) {
        self.ids.truncate(max);
        for consumer in std::mem::take(&mut self.owners).into_iter().take(max) {
            *self.consumers.entry(consumer).or_default() += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(n: u128, consumer: &str, state: &str) -> Candidate {
        Candidate { id: Uuid::from_u128(n), consumer: consumer.into(), state: state.into() }
    }

    #[test]
    fn only_open_letters_of_known_consumers_are_replayed() {
        let queues = BTreeMap::from([("org".to_owned(), "onceflow.org".to_owned())]);
        let found = vec![candidate(1, "org", "open"), candidate(2, "gone", "open"), candidate(3, "org", "replaying")];
        let mut done = judge(found, Verb::Replay(&queues), Vec::new(), &HashSet::new());
        done.keep(10);
        assert_eq!(done.ids, [Uuid::from_u128(1)]);
        assert_eq!(done.consumers, BTreeMap::from([("org".to_owned(), 1)]));
        let whys: Vec<Why> = done.ineligible.iter().map(|i| i.why).collect();
        assert_eq!(whys, [Why::UnknownConsumer, Why::Replaying]);
    }

    #[test]
    fn only_archived_letters_whose_event_is_not_live_again_are_restored() {
        let states = ["archived", "archived", "open", "discarded", "edited"];
        let found = states.iter().zip(1..).map(|(state, n)| candidate(n, "org", state)).collect();
        let live = HashSet::from([Uuid::from_u128(2)]);
        let done = judge(found, Verb::Restore, Vec::new(), &live);
        assert_eq!(done.ids, [Uuid::from_u128(1)]);
        let whys: Vec<Why> = done.ineligible.iter().map(|i| i.why).collect();
        assert_eq!(whys, [Why::LiveAgain, Why::Open, Why::Discarded, Why::Edited]);
    }

    #[test]
    fn an_id_that_nobody_knows_is_named() {
        let found = vec![candidate(1, "org", "open")];
        let missing = missing(&[Uuid::from_u128(1), Uuid::from_u128(9)], &found);
        assert_eq!(missing, [Ineligible { id: Uuid::from_u128(9), why: Why::NotFound }]);
    }

    #[test]
    fn a_bounded_change_keeps_the_oldest_and_counts_only_those() {
        let found = (1..=5).map(|n| candidate(n, "org", "open")).collect();
        let mut done = judge(found, Verb::Discard, Vec::new(), &HashSet::new());
        done.keep(2);
        assert_eq!(done.ids.len(), 2);
        assert_eq!(done.consumers["org"], 2);
    }
}

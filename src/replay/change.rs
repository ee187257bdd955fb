//! Replay and discard: all of a selection, or nothing where the count isn't what the operator expected.

use std::collections::{BTreeMap, HashSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::filter::{Selection, State};
use super::letter::Settled;
use super::store::{self, Candidate};
use crate::db::{DbError, Tx};

/// Most dead letters that one call changes; the rest is counted and left for the next call.
pub const MAX_CHANGES: usize = 10_000;

/// What an operator wants done, and with what care.
#[derive(Debug, Clone)]
pub struct Change {
    /// Which dead letters.
    pub selection: Selection,
    /// Why; needed for more than one.
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
    /// It is on its way already.
    Replaying,
    /// It was replayed with success.
    Replayed,
    /// Somebody dropped it.
    Discarded,
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
}

/// Sends the selected open dead letters to the consumers that failed, through the outbox. `queues` names the queue of each
/// consumer of this build.
///
/// # Errors
/// When the count differs, a reason is missing or the database fails; then the transaction is to be rolled back.
pub async fn replay(tx: &Tx, change: &Change, queues: &BTreeMap<String, String>) -> Result<Done, ChangeError> {
    let plan = plan(tx, change, Some(queues)).await?;
    if change.dry_run || plan.ids.is_empty() {
        return Ok(plan);
    }
    let replays: Vec<Uuid> = plan.ids.iter().map(|_| Uuid::now_v7()).collect();
    store::send(tx, &plan.ids, &replays, queues).await?;
    store::mark_replaying(tx, &plan.ids, &replays, None).await?;
    store::audit(tx, "dlq.replay", change, &plan.ids).await?;
    Ok(plan)
}

/// Closes the selected open dead letters for good; they stay readable.
///
/// # Errors
/// As [`replay`].
pub async fn discard(tx: &Tx, change: &Change) -> Result<Done, ChangeError> {
    let plan = plan(tx, change, None).await?;
    if change.dry_run || plan.ids.is_empty() {
        return Ok(plan);
    }
    store::mark_discarded(tx, &plan.ids, &change.actor, change.reason.as_deref()).await?;
    store::audit(tx, "dlq.discard", change, &plan.ids).await?;
    Ok(plan)
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
async fn plan(tx: &Tx, change: &Change, queues: Option<&BTreeMap<String, String>>) -> Result<Done, ChangeError> {
    let max = change.max.unwrap_or(MAX_CHANGES).min(MAX_CHANGES);
    let (eligible, mut done) = match &change.selection {
        Selection::Ids(ids) => {
            let found = store::lock_by_id(tx, ids).await?;
            let missing = missing(ids, &found);
            let done = judge(found, queues, missing);
            (done.ids.len(), done)
        }
        Selection::Filter(filter) => {
            if let Some(state) = filter.state.filter(|state| *state != State::Open) {
                return Err(ChangeError::NotOpen(state.as_str()));
            }
            let matching = store::count(tx, filter).await?;
            let done = judge(store::lock_by_filter(tx, filter, max).await?, queues, Vec::new());
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

fn missing(asked: &[Uuid], found: &[Candidate]) -> Vec<Ineligible> {
    let known: HashSet<Uuid> = found.iter().map(|c| c.id).collect();
    let unknown = asked.iter().filter(|id| !known.contains(id));
    unknown.map(|id| Ineligible { id: *id, why: Why::NotFound }).collect()
}

/// Splits what was found by whether it can be changed. Without queues (a discard) the consumer doesn't matter.
fn judge(found: Vec<Candidate>, queues: Option<&BTreeMap<String, String>>, missing: Vec<Ineligible>) -> Done {
    let mut done = Done { ineligible: missing, ..Done::default() };
    for candidate in found {
        let unknown_consumer = queues.is_some_and(|queues| !queues.contains_key(&candidate.consumer));
        let why = match candidate.state.as_str() {
            "open" if unknown_consumer => Some(Why::UnknownConsumer),
            "open" => None,
            "replaying" => Some(Why::Replaying),
            "replayed" => Some(Why::Replayed),
            _ => Some(Why::Discarded),
        };
        match why {
            Some(why) => done.ineligible.push(Ineligible { id: candidate.id, why }),
            None => done.choose(candidate),
        }
    }
    done
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
        let mut done = judge(found, Some(&queues), Vec::new());
        done.keep(10);
        assert_eq!(done.ids, [Uuid::from_u128(1)]);
        assert_eq!(done.consumers, BTreeMap::from([("org".to_owned(), 1)]));
        let whys: Vec<Why> = done.ineligible.iter().map(|i| i.why).collect();
        assert_eq!(whys, [Why::UnknownConsumer, Why::Replaying]);
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
        let mut done = judge(found, None, Vec::new());
        done.keep(2);
        assert_eq!(done.ids.len(), 2);
        assert_eq!(done.consumers["org"], 2);
    }
}

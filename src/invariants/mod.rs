//! Asks a running installation whether what must always hold does, and changes nothing.
//!
//! Every question is a read-only statement about one page of a table, in a transaction of its own with a statement timeout: nothing
//! waits for it, no old snapshot is kept, and what it costs is bounded, whatever the size of the tables. What could not be looked at in
//! time is told as such, never as fine.

mod store;

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::db::{Class, DbError, Pool};
use crate::retention::Policy;
use crate::runtime::{AnyConsumer, Invariant, Reach, Weight};

/// Rows of one question.
const PAGE: i64 = 2_000;
/// Enough for "everything there is".
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// How far and how long it is looked.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Rows that changed within this time; everything where absent.
    pub since: Option<Duration>,
    /// Longest time for one invariant.
    pub within: Duration,
    /// Longest time for one statement.
    pub statement: Duration,
    /// Most examples of one invariant.
    pub examples: i32,
    /// What the service removes for its age.
    pub retention: Policy,
}

/// What was found of one invariant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It holds.
    Ok,
    /// It does not.
    Violated,
    /// It does not, which may be in order.
    Notice,
    /// Nothing was found so far, but not everything could be looked at.
    Unfinished,
    /// It was not asked.
    Skipped,
}

/// One line of the report.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// Its name.
    pub invariant: &'static str,
    /// What was found.
    pub state: State,
    /// What should hold.
    pub says: &'static str,
    /// How many rows were looked at.
    pub looked: i64,
    /// How many break it.
    pub broken: i64,
    /// Some of them.
    pub examples: Vec<String>,
    /// Why it is unfinished or skipped.
    pub why: Option<String>,
    /// What to do.
    #[serde(rename = "try")]
    pub remedy: Option<&'static str>,
}

/// Every invariant of this build: those of the runtime, then those of each consumer.
pub fn all(consumers: &[Box<dyn AnyConsumer>]) -> Vec<Invariant> {
    let of_domains = consumers.iter().flat_map(|consumer| consumer.invariants());
    store::RUNTIME.iter().chain(of_domains).copied().collect()
}

/// Asks for one invariant, page by page.
///
/// # Errors
/// The database is away, or the role may not read its tables.
pub async fn check(pool: &Pool, invariant: &Invariant, bounds: &Bounds) -> Result<Finding, DbError> {
    let mut finding = Finding::of(invariant);
    if let Some(why) = not_asked(invariant, bounds) {
        finding.state = State::Skipped;
        finding.why = Some(why);
        return Ok(finding);
    }
    let deadline = Instant::now() + bounds.within;
    let since = reach(invariant.reach, bounds).as_secs_f64();
    let mut after: Option<Vec<String>> = None;
    let finished = loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break false;
        }
        match page(pool, invariant, since, after.as_deref(), (left.min(bounds.statement), bounds.examples)).await {
            Ok(answer) => {
                let is_last = answer.looked < PAGE;
                after = finding.take_in(answer, bounds.examples);
                if is_last || after.is_none() {
                    break true;
                }
            }
            Err(error) if error.class() == Class::Timeout => break false,
            Err(error) => return Err(error),
        }
    };
    finding.conclude(invariant, finished);
    Ok(finding)
}

async fn page(
    pool: &Pool,
    invariant: &Invariant,
    since: f64,
    after: Option<&[String]>,
    (within, examples): (Duration, i32),
) -> Result<store::Answer, DbError> {
    let tx = pool.begin().await?;
    let answer = async {
        store::bounded(&tx, within).await?;
        store::ask(&tx, invariant.sql, since, after, (PAGE, examples)).await
    };
    let answer = answer.await;
    tx.rollback().await;
    answer
}

/// Half of what retention keeps is never mistaken for missing, however the pruning is timed.
fn reach(reach: Reach, bounds: &Bounds) -> Duration {
    let asked = bounds.since.unwrap_or(FOR_EVER);
    let Policy { inbox, dead_letters, jobs, .. } = bounds.retention;
    let kept = [inbox, dead_letters, jobs].into_iter().flatten().min();
    match reach {
        Reach::Kept => kept.map_or(asked, |kept| asked.min(kept / 2)),
        Reach::Any | Reach::Whole => asked,
    }
}

fn not_asked(invariant: &Invariant, bounds: &Bounds) -> Option<String> {
    if invariant.reach != Reach::Whole {
        return None;
    }
    if bounds.since.is_some() {
        return Some("it adds up whole tables: ask for it with --full".to_owned());
    }
    // A discard that the audit has forgotten would be taken for a loss.
    let Policy { inbox, audit, .. } = bounds.retention;
    let forgets = audit.is_some_and(|audit| inbox.is_none_or(|inbox| inbox > audit));
    forgets.then(|| "retention.audit is shorter than retention.inbox, so discarded rows can't be added up".to_owned())
}

impl Finding {
    fn of(invariant: &Invariant) -> Self {
        Self {
            invariant: invariant.name,
            state: State::Ok,
            says: invariant.says,
            looked: 0,
            broken: 0,
            examples: Vec::new(),
            why: None,
            remedy: None,
        }
    }

    /// Adds a page; returns where the next one begins.
    fn take_in(&mut self, answer: store::Answer, most: i32) -> Option<Vec<String>> {
        self.looked += answer.looked;
        self.broken += answer.broken;
        self.examples.extend(answer.examples);
        self.examples.truncate(usize::try_from(most).unwrap_or(0));
        answer.last
    }

    fn conclude(&mut self, invariant: &Invariant, finished: bool) {
        self.state = match (self.broken, invariant.weight, finished) {
            (0, _, true) => State::Ok,
            (0, _, false) => State::Unfinished,
            (_, Weight::Violation, _) => State::Violated,
            (_, Weight::Notice, _) => State::Notice,
        };
        if !finished {
            let why = format!("the time was not enough: {} rows were looked at", self.looked);
            self.why = Some(why);
        }
        self.remedy = (self.broken > 0).then_some(invariant.remedy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn bounds(since: Option<Duration>, inbox: Option<Duration>, audit: Option<Duration>) -> Bounds {
        let retention = Policy { inbox, audit, dead_letters: None, attempts: None, jobs: None, personal_data: None };
        Bounds { since, within: DAY, statement: DAY, examples: 3, retention }
    }

    fn summed_up() -> Invariant {
        *store::RUNTIME.iter().find(|invariant| invariant.reach == Reach::Whole).unwrap()
    }

    #[test]
    fn what_retention_may_have_removed_is_not_looked_for() {
        let asked = bounds(Some(DAY * 60), Some(DAY * 90), None);
        assert_eq!(reach(Reach::Kept, &asked), DAY * 45);
        assert_eq!(reach(Reach::Any, &asked), DAY * 60);
        assert_eq!(reach(Reach::Kept, &bounds(None, None, None)), FOR_EVER);
    }

    #[test]
    fn whole_tables_are_added_up_on_demand_and_only_where_discards_are_remembered() {
        let books = summed_up();
        assert!(not_asked(&books, &bounds(Some(DAY), Some(DAY), None)).is_some());
        assert!(not_asked(&books, &bounds(None, Some(DAY * 90), Some(DAY * 30))).is_some());
        assert!(not_asked(&books, &bounds(None, None, Some(DAY * 30))).is_some());
        assert!(not_asked(&books, &bounds(None, Some(DAY * 90), Some(DAY * 400))).is_none());
        assert!(not_asked(&books, &bounds(None, None, None)).is_none());
    }

    #[test]
    fn what_was_not_looked_at_to_its_end_is_never_fine() {
        let books = summed_up();
        let mut finding = Finding::of(&books);
        finding.conclude(&books, false);
        assert_eq!(finding.state, State::Unfinished);
        finding.broken = 1;
        finding.conclude(&books, false);
        assert_eq!(finding.state, State::Violated);
    }
}

//! What is kept of a person, found and erased: dead letters with their edits and attempts, and what each consumer's tables keep.
//!
//! Payloads have no form that one could ask a database about: they are read and compared one by one (`marks`), page by page,
//! until the time of a call is used up. `next` says where the following call goes on; each is a transaction of its own.
//!
//! What is on its way is left alone and told: an erasure in the middle of a replay would be followed by its result. The audit keeps that
//! somebody was erased, by whom and why, and which dead letters went, with the number masked.

mod marks;
mod store;

use std::sync::Arc;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use self::marks::{Person, PersonError};
use super::change::{self, Change, ChangeError};
use super::filter::Selection;
use super::store::audit_row;
use crate::db::{DbError, Tx};
use crate::runtime::{AnyConsumer, Erasure, PersonalData};

/// After so long a call ends, and says where the next goes on.
const WORK_FOR: Duration = Duration::from_secs(3);
/// Rows of a consumer's table that one call changes.
const MOST_ROWS: i64 = 10_000;
const LETTERS: &str = "dead_letters";
const ON_THEIR_WAY: &str = "dead_letters_on_their_way";
const HELD: &str = "held_events";
const PARKED: &str = "parked_outbox_rows";

/// Rows of one kind that tell of the person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "PersonKept")]
pub struct Kept {
    /// What they are, such as `dead_letters`.
    pub what: String,
    /// How many were found.
    pub found: u64,
    /// How many were erased.
    pub erased: u64,
    /// Why the rest was left.
    pub why: Option<String>,
}

/// What one call found or erased.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "PersonFound")]
pub struct Found {
    /// By kind of row; none of which there is nothing.
    pub items: Vec<Kept>,
    /// The dead letters that were found, or erased.
    pub dead_letters: Vec<Uuid>,
    /// How many dead letters were looked at.
    pub looked: u64,
    /// Not all were looked at: go on after this one. What is no dead letter was answered by the first call.
    pub next: Option<Uuid>,
}

/// Why nothing was found or erased.
#[derive(Debug, thiserror::Error)]
pub enum ErasureError {
    /// The database is away or says no.
    #[error(transparent)]
    Database(#[from] DbError),
    /// A dead letter could not be closed.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

/// Who erases, and why.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    /// Who.
    pub actor: &'a str,
    /// Why.
    pub reason: &'a str,
}

/// Looks for a person, and erases it where there is an `order`; the dead letters after `after`, everything where absent.
///
/// # Errors
/// The database is away or says no; then the transaction is to be rolled back.
pub async fn search(
    tx: &Tx,
    consumers: &[Arc<dyn AnyConsumer>],
    person: &Person,
    after: Option<Uuid>,
    order: Option<Order<'_>>,
) -> Result<Found, ErasureError> {
    let begun = Instant::now();
    let mut found = Found::default();
    if after.is_none() {
        for consumer in consumers {
            for data in consumer.personal() {
                found.add(of_consumer(tx, data, person, order).await?);
            }
        }
        let why = "they wait for an event of their key: look again later";
        found.add(others(tx, (HELD, store::Others::Held), why, (person, begun)).await?);
        let why = "they hold what is to be published: `onceflow outbox retry` or `discard` them, then look again";
        found.add(others(tx, (PARKED, store::Others::Parked), why, (person, begun)).await?);
    }
    let mut place = after.unwrap_or(Uuid::nil());
    loop {
        let page = store::page(tx, place).await?;
        let Some(last) = page.last() else { return Ok(found) };
        place = last.id;
        found.looked += size(page.len());
        let own: Vec<Uuid> = page.iter().filter(|letter| person.is_in(&letter.text)).map(|letter| letter.id).collect();
        letters(tx, person, &own, order, &mut found).await?;
        if begun.elapsed() > WORK_FOR {
            found.next = Some(place);
            return Ok(found);
        }
    }
}

async fn of_consumer(
    tx: &Tx,
    data: &PersonalData,
    person: &Person,
    order: Option<Order<'_>>,
) -> Result<Kept, ErasureError> {
    let (tenant, user, forms) = (person.tenant(), person.user(), person.number_forms());
    let found: i64 = tx.query_one(data.find, &[&tenant, &user, &forms]).await?.get(0);
    let mut kept = Kept { what: data.name.to_owned(), found: found.unsigned_abs(), erased: 0, why: None };
    match (data.erasure, order) {
        (Erasure::Elsewhere(why), _) => kept.why = Some(why.to_owned()),
        (Erasure::Now(sql), Some(order)) if found > 0 => {
            kept.erased = tx.execute(sql, &[&tenant, &user, &forms, &MOST_ROWS]).await?;
            let why = "more than one call erases: erase again";
            kept.why = (kept.erased < kept.found).then(|| why.to_owned());
            let detail = serde_json::json!({ "what": data.name, "count": kept.erased });
            audit_row(tx, (order.actor, "person.erase", &person.masked()), Some(order.reason), &detail).await?;
        }
        (Erasure::Now(_), _) => {}
    }
    Ok(kept)
}

/// What is found and never erased.
async fn others(
    tx: &Tx,
    (what, kind): (&str, store::Others),
    why: &str,
    (person, begun): (&Person, Instant),
) -> Result<Kept, DbError> {
    let (mut found, mut after) = (0, 0);
    loop {
        let page = store::others(tx, kind, after).await?;
        let Some((last, _)) = page.last() else { return Ok(left(what, found, why)) };
        after = *last;
        found += size(page.iter().filter(|(_, text)| person.is_in(text)).count());
        if begun.elapsed() > WORK_FOR {
            return Ok(left(what, found, &format!("{why}; there are too many to look at them all")));
        }
    }
}

/// Open ones are discarded first, as anybody would, so that what waits behind them moves on.
async fn letters(
    tx: &Tx,
    person: &Person,
    own: &[Uuid],
    order: Option<Order<'_>>,
    found: &mut Found,
) -> Result<(), ErasureError> {
    if own.is_empty() {
        return Ok(());
    }
    let going = store::on_their_way(tx, own).await?;
    let own: Vec<Uuid> = own.iter().copied().filter(|id| !going.contains(id)).collect();
    let mut erased = 0;
    if let Some(order) = order.filter(|_| !own.is_empty()) {
        discard(tx, &own, order).await?;
        let gone = store::erase(tx, &own).await?;
        erased = size(gone.len());
        let detail = serde_json::json!({ "what": LETTERS, "count": erased, "ids": gone });
        audit_row(tx, (order.actor, "person.erase", &person.masked()), Some(order.reason), &detail).await?;
    }
    found.add(Kept { what: LETTERS.to_owned(), found: size(own.len()), erased, why: None });
    found.add(left(ON_THEIR_WAY, size(going.len()), "they are being replayed: look again when that has ended"));
    found.dead_letters.extend(own);
    Ok(())
}

async fn discard(tx: &Tx, own: &[Uuid], order: Order<'_>) -> Result<(), ChangeError> {
    let change = Change {
        selection: Selection::Ids(own.to_vec()),
        reason: Some(order.reason.to_owned()),
        actor: order.actor.to_owned(),
        dry_run: false,
        expect_count: None,
        max: None,
    };
    change::discard(tx, &change).await.map(drop)
}

impl Found {
    /// Takes in the answer of the following call.
    pub fn join(&mut self, later: Self) {
        later.items.into_iter().for_each(|kept| self.add(kept));
        self.dead_letters.extend(later.dead_letters);
        self.looked += later.looked;
        self.next = later.next;
    }

    /// Counts of one kind are added up.
    fn add(&mut self, kept: Kept) {
        if kept.found == 0 {
            return;
        }
        match self.items.iter_mut().find(|item| item.what == kept.what) {
            Some(item) => {
                item.found += kept.found;
                item.erased += kept.erased;
            }
            None => self.items.push(kept),
        }
    }
}

/// What is found and not erased.
fn left(what: &str, found: u64, why: &str) -> Kept {
    Kept { what: what.to_owned(), found, erased: 0, why: Some(why.to_owned()) }
}

fn size(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

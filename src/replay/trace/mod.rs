//! The life of an event, told from what is stored: attempts, the end in the inbox, dead letters, operators, what it published.
//!
//! Reading only, and bounded: an index leads to every row, but for the outbox, of which [`MAX_SEARCHED`] rows are looked through. The
//! inbox is keyed by tenant, consumer, source and id, and must not pay for another index with every event. So its sources are
//! found first, one step of the key's index each, at most [`MAX_SOURCES`] of them; then the event is looked for in each.
//!
//! What is not stored is not told: the time of a confirm, the times of further copies, and the ordering key of an event that never failed.

mod step;
mod store;
mod story;

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::store::{Found, Places};
use crate::db::{DbError, Tx};
use crate::event::DEFAULT_TENANT;

pub use step::{DeadLetterState, Edit, End, FailedTry, Hand, Hold, OutboxRow, Step, What};

/// Most steps that are told; the newest.
pub const MAX_STEPS: usize = 500;
/// Most sources of the inbox in which an event is looked for.
pub const MAX_SOURCES: usize = 1_000;
/// Most rows of the outbox that are looked through.
pub const MAX_SEARCHED: usize = 100_000;

/// Which event, or which ordering key. One of the two is needed; the rest narrows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "TraceQuestion")]
#[serde(default, deny_unknown_fields)]
pub struct Question {
    /// Id of the event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Ordering key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Whose data; any where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Source of the event; any where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The consumer; any where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumer: Option<String>,
}

/// The life of an event, or of the events of a key, oldest step first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Trace {
    /// The steps.
    pub items: Vec<Step>,
    /// There are older steps, which are not told.
    pub cut: bool,
    /// What could not be looked up, and what to do about it.
    pub notes: Vec<String>,
}

/// What a consumer's tables know an event by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Identity {
    tenant: String,
    consumer: String,
    source: String,
    event_id: String,
}

/// Everything that is known. `consumers` are those of this build: where the source is given, they are asked without a search.
///
/// # Errors
/// When the database is away.
pub async fn trace(tx: &Tx, question: &Question, consumers: &[&str]) -> Result<Trace, DbError> {
    let mut found = Found {
        attempts: store::attempts(tx, question).await?,
        letters: store::letters(tx, question).await?,
        held: store::held(tx, question).await?,
        ..Found::default()
    };
    let mut notes = Vec::new();
    let (mut events, searched) = events(tx, question, (consumers, &found)).await?;
    if let Some(consumer) = &question.consumer {
        events.retain(|event| event.consumer == *consumer);
    }
    notes.extend(searched);
    found.edits = store::edits(tx, question, &events).await?;
    found.ends = store::ends(tx, &events).await?;
    let waiting = store::outbox_rows(tx).await?;
    found.outbox_known = waiting <= MAX_SEARCHED;
    if !found.outbox_known {
        notes.push(format!(
            "more than {MAX_SEARCHED} rows wait in the outbox: only so many were looked through, what was confirmed is not told"
        ));
    }
    let outbox = store::outbox(tx, question, &found).await?;
    found.outbox = outbox;
    let hands = store::hands(tx, &found.named()).await?;
    found.hands = hands;
    let (items, cut) = story::tell(&found, question);
    Ok(Trace { items, cut, notes })
}

/// The identities under which the inbox may know the event, and what could not be searched.
async fn events(
    tx: &Tx,
    question: &Question,
    (consumers, found): (&[&str], &Found),
) -> Result<(BTreeSet<Identity>, Option<String>), DbError> {
    let mut events = found.events();
    let Some(id) = &question.id else {
        let note = "the inbox keeps no ordering keys: an event of this key that never failed is found by its id only";
        return Ok((events, Some(note.to_owned())));
    };
    let (places, note) = match &question.source {
        Some(source) => (named_places(question, source, consumers), None),
        None => searched_places(tx, question).await?,
    };
    events.extend(places.into_iter().map(|(tenant, consumer, source)| Identity {
        tenant,
        consumer,
        source,
        event_id: id.clone(),
    }));
    Ok((events, note))
}

/// A source alone belongs to the default tenant.
fn named_places(question: &Question, source: &str, consumers: &[&str]) -> Places {
    let tenant = question.tenant.as_deref().unwrap_or(DEFAULT_TENANT);
    let asked = question.consumer.as_deref();
    let names = consumers.iter().copied().filter(|name| asked.is_none_or(|asked| asked == *name));
    // An operator may ask for a consumer that an earlier build had.
    let gone = asked.filter(|asked| !consumers.contains(asked));
    names.chain(gone).map(|consumer| (tenant.to_owned(), consumer.to_owned(), source.to_owned())).collect()
}

async fn searched_places(tx: &Tx, question: &Question) -> Result<(Places, Option<String>), DbError> {
    let mut places = store::places(tx, question.tenant.as_deref()).await?;
    if places.len() <= MAX_SOURCES {
        return Ok((places, None));
    }
    places.truncate(MAX_SOURCES);
    let note =
        format!("the inbox has more than {MAX_SOURCES} sources and was not searched whole: add --source and --tenant");
    Ok((places, Some(note)))
}

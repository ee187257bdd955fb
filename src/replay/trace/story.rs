//! Puts what was found in order: one line for each step, the oldest first.

use std::collections::BTreeMap;

use jiff::Timestamp;
use uuid::Uuid;

use super::super::store::UNMASK;
use super::step::{Step, What};
use super::store::{EditStep, Ended, Found, Waiting};
use super::{Identity, MAX_STEPS, Question};

/// A step with its place: steps of one moment stand in the order of their causes.
type Placed = ((Timestamp, u8), Step);

/// How the audit names the edit of a dead letter.
const EDIT: &str = "letter.edit";

/// The newest steps in order of time, and whether there are more.
pub(super) fn tell(found: &Found, question: &Question) -> (Vec<Step>, bool) {
    let mut placed: Vec<Placed> = Vec::new();
    placed.extend(found.attempts.iter().map(|(event, at, failed)| {
        let what = if failed.retry_ms.is_some() { What::Failed } else { What::GaveUp };
        step(event, *at, what(failed.clone()))
    }));
    for letter in &found.letters {
        placed.push(step(&letter.event, letter.last_failed_at, What::Dead(letter.state.clone())));
        placed.extend(letter.closed_at.map(|at| step(&letter.event, at, What::Closed(letter.state.clone()))));
    }
    placed.extend(found.held.iter().map(|(event, at, hold)| step(event, *at, What::Held(hold.clone()))));
    for step_of in &found.edits {
        let told = || What::Edited(step_of.edit.clone());
        placed.extend(step_of.tells_original.then(|| step(&step_of.event, step_of.at, told())));
        placed.extend(step_of.tells_copy.then(|| step(&step_of.copy(), step_of.at, told())));
    }
    for ended in &found.ends {
        placed.extend(end(ended, found));
    }
    placed.extend(found.outbox.iter().map(|waiting| row(waiting, found, question)));
    placed.extend(hands(found, question));
    placed.retain(|(_, step)| question.consumer.as_ref().is_none_or(|asked| *asked == step.consumer));
    placed.sort_by_key(|(place, _)| *place);
    let beyond = placed.len().saturating_sub(MAX_STEPS);
    (placed.split_off(beyond).into_iter().map(|(_, step)| step).collect(), beyond > 0)
}

fn end(ended: &Ended, found: &Found) -> Vec<Placed> {
    let what = match ended.outcome.as_str() {
        "stale" => What::Stale,
        "skipped" => What::Skipped,
        _ => What::Applied,
    };
    let mut steps = vec![step(&ended.event, ended.at, what(ended.end.clone()))];
    if ended.end.downstream > 0 && found.outbox_known {
        let of = i64::from(ended.end.downstream);
        let here = found.outbox.iter().filter(|waiting| waiting.is_caused_by(&ended.event)).count();
        let left = (of - i64::try_from(here).unwrap_or(of)).max(0);
        let (place, mut confirmed) = step(&ended.event, ended.at, What::Confirmed { left, of });
        // Nobody keeps the time of a confirm.
        confirmed.at = None;
        steps.push((place, confirmed));
    }
    steps
}

fn row(waiting: &Waiting, found: &Found, question: &Question) -> Placed {
    let event = event_of(waiting, found, question);
    match waiting.parked_at {
        Some(at) => step(&event, at, What::Parked(waiting.row.clone())),
        None => step(&event, waiting.created_at, What::Waits(waiting.row.clone())),
    }
}

/// The event that a row belongs to: the dead letter that it replays, else its cause as far as that is known.
fn event_of(waiting: &Waiting, found: &Found, question: &Question) -> Identity {
    let replayed = found.letters.iter().find(|letter| letter.replay_id == Some(waiting.row.row)).map(|l| &l.event);
    let cause = || found.ends.iter().map(|ended| &ended.event).find(|event| waiting.is_caused_by(event));
    let edited = found.edits.iter().find(|edit| edit.row() == Some(waiting.row.row)).map(EditStep::copy);
    replayed.or_else(cause).cloned().or(edited).unwrap_or_else(|| Identity {
        tenant: waiting.tenant.clone(),
        consumer: waiting.consumer().unwrap_or("-").to_owned(),
        source: question.source.clone().unwrap_or_default(),
        event_id: waiting.cause.clone().unwrap_or_default(),
    })
}

fn hands<'a>(found: &'a Found, question: &'a Question) -> impl Iterator<Item = Placed> + 'a {
    let named = found.named();
    let rows: BTreeMap<Uuid, &Waiting> = found.outbox.iter().map(|waiting| (waiting.row.row, waiting)).collect();
    // An edit has a step of its own, which says more.
    found.hands.iter().filter(|(_, _, hand)| hand.action != EDIT).filter_map(move |(id, at, hand)| {
        let known = named.get(id).copied().flatten().cloned();
        let event = known.or_else(|| rows.get(id).map(|waiting| event_of(waiting, found, question)))?;
        let what = match hand.action.as_str() {
            "dlq.replay" | "job.replay" => What::Replayed,
            UNMASK => What::Seen,
            _ => What::Changed,
        };
        Some(step(&event, *at, what(hand.clone())))
    })
}

fn step(event: &Identity, at: Timestamp, what: What) -> Placed {
    let rank = match &what {
        What::Failed(_) => 0,
        What::GaveUp(_) => 1,
        What::Dead(_) => 2,
        What::Replayed(_) | What::Seen(_) | What::Changed(_) | What::Held(_) | What::Edited(_) => 3,
        What::Applied(_) | What::Stale(_) | What::Skipped(_) => 4,
        What::Waits(_) | What::Parked(_) => 5,
        What::Confirmed { .. } => 6,
        What::Closed(_) => 7,
    };
    let Identity { tenant, consumer, source, event_id } = event.clone();
    ((at, rank), Step { at: Some(at), tenant, consumer, source, event_id, what })
}

impl Waiting {
    /// The consumer that wrote it.
    fn consumer(&self) -> Option<&str> {
        self.source.as_deref()?.strip_prefix("onceflow/")
    }

    /// Rows name their cause by its id alone.
    fn is_caused_by(&self, event: &Identity) -> bool {
        !self.row.replay
            && self.cause.as_deref() == Some(event.event_id.as_str())
            && self.tenant == event.tenant
            && self.consumer() == Some(event.consumer.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::super::step::{DeadLetterState, End, FailedTry, OutboxRow};
    use super::super::store::Letter;
    use super::*;

    fn event() -> Identity {
        let text = |text: &str| text.to_owned();
        Identity { tenant: text("t"), consumer: text("org"), source: text("hr"), event_id: text("e") }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn failed(second: i64, retry_ms: Option<i64>) -> (Identity, Timestamp, FailedTry) {
        let text = |text: &str| text.to_owned();
        let failed = FailedTry {
            event_type: text("x"),
            attempt: 1,
            instance: text("host:1"),
            consumer_version: text("1"),
            stage: text("handle"),
            code: text("why"),
            error_chain: vec![],
            duration_us: None,
            retry_ms,
            replay_id: None,
        };
        (event(), at(second), failed)
    }

    fn ended(downstream: i32) -> Ended {
        let end = End { event_type: "x".into(), reason: None, downstream, duplicates: 0, conflicts: 0 };
        Ended { event: event(), at: at(9), outcome: "applied".into(), end }
    }

    fn waiting(tenant: &str) -> Waiting {
        let row = OutboxRow {
            row: Uuid::from_u128(7),
            downstream_type: "y".into(),
            aggregate_id: "a".into(),
            replay: false,
            parked_reason: None,
        };
        Waiting {
            tenant: tenant.into(),
            cause: Some("e".into()),
            source: Some("onceflow/org".into()),
            created_at: at(9),
            parked_at: None,
            row,
        }
    }

    #[test]
    fn steps_of_one_moment_stand_in_the_order_of_their_causes() {
        let state = DeadLetterState {
            dead_letter: Uuid::nil(),
            state: "open".into(),
            stage: "handle".into(),
            code: "why".into(),
            error: String::new(),
            attempts: 2,
            occurrences: 1,
            replays: 0,
            closed_by: None,
            closed_reason: None,
        };
        let letter = Letter { event: event(), last_failed_at: at(2), closed_at: None, replay_id: None, state };
        let attempts = vec![failed(2, None), failed(1, Some(100))];
        let found = Found { attempts, letters: vec![letter], ends: vec![ended(0)], ..Found::default() };
        let (steps, cut) = tell(&found, &Question::default());
        let kinds: Vec<bool> = vec![
            matches!(steps[0].what, What::Failed(_)),
            matches!(steps[1].what, What::GaveUp(_)),
            matches!(steps[2].what, What::Dead(_)),
            matches!(steps[3].what, What::Applied(_)),
        ];
        assert_eq!((kinds, steps.len(), cut), (vec![true; 4], 4, false), "{steps:?}");
    }

    #[test]
    fn what_was_confirmed_is_what_is_left_of_the_books_and_only_told_when_they_are_whole() {
        let mut found = Found { ends: vec![ended(3)], outbox_known: true, ..Found::default() };
        found.outbox = vec![waiting("t"), waiting("another tenant")];
        let confirmed = |found: &Found| {
            tell(found, &Question::default()).0.into_iter().find_map(|step| match step.what {
                What::Confirmed { left, of } => Some((step.at, left, of)),
                _ => None,
            })
        };
        assert_eq!(confirmed(&found), Some((None, 2, 3)));
        found.outbox_known = false;
        assert_eq!(confirmed(&found), None);
    }

    #[test]
    fn the_newest_steps_are_told_and_the_cut_shows() {
        let attempts = (0..600).map(|second| failed(second, Some(1))).collect();
        let (steps, cut) = tell(&Found { attempts, ..Found::default() }, &Question::default());
        assert_eq!((steps.len(), cut), (MAX_STEPS, true));
        assert_eq!((steps[0].at, steps[499].at), (Some(at(100)), Some(at(599))));
    }

    #[test]
    fn a_step_survives_its_way_through_json() {
        let found =
            Found { attempts: vec![failed(1, Some(5))], ends: vec![ended(1)], outbox_known: true, ..Found::default() };
        let (steps, _) = tell(&found, &Question::default());
        let json = serde_json::to_value(&steps).unwrap();
        assert_eq!((&json[0]["what"], &json[0]["retry_ms"]), (&"failed".into(), &5.into()));
        assert_eq!(serde_json::from_value::<Vec<Step>>(json).unwrap(), steps);
    }
}

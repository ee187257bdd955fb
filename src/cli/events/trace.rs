//! `onceflow events trace`

use std::time::Duration;

use jiff::Timestamp;

use super::super::context::Context;
use super::super::exit::{Ending, Exit, Failure};
use super::super::output::Rows;
use crate::replay::trace::{
    DeadLetterState, Edit, End, FailedTry, Hand, MAX_STEPS, OutboxRow, Question, Step, Trace, What,
};

pub(super) const EXAMPLES: &str = "\
Examples:
  onceflow events trace hr-4711
  onceflow events trace hr-4711 --source dingtalk --consumer org
  onceflow events trace --key user/42 --tenant acme
  onceflow events trace hr-4711 -o jsonl | jq -r 'select(.what == \"failed\") | .error_chain[0]'

Times are UTC. Of an event that never failed the end and what waits in the outbox are known; of one that failed also its last
20 attempts. Exit 3 when nothing is known of it: it was never read, or the id is another one.";

/// Most characters of an error in a line; JSON has all that is kept.
const MAX_ERROR: usize = 160;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Id of the event
    #[arg(value_name = "ID", required_unless_present = "key", conflicts_with = "key")]
    id: Option<String>,
    /// Ordering key: the events of it that failed, and what of it waits in the outbox
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Only of this tenant; with --source alone the tenant is `default`
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// Only from this source; '' for plain messages that name none
    #[arg(long, value_name = "SOURCE")]
    source: Option<String>,
    /// Only of this consumer
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,
}

pub(super) async fn run(context: &Context, args: &Args) -> Ending {
    let question = Question {
        id: args.id.clone(),
        key: args.key.clone(),
        tenant: args.tenant.clone(),
        source: args.source.clone(),
        consumer: args.consumer.clone(),
    };
    let trace: Trace = context.client()?.get("events/trace", &question).await?;
    if trace.items.is_empty() {
        return Err(nothing(&question, &trace));
    }
    context.out.data("onceflow.events.trace/1", &trace, || table(&trace, question.key.is_some()))?;
    if trace.cut {
        context.out.say(&format!("only the newest {MAX_STEPS} steps are told"));
    }
    for note in &trace.notes {
        context.out.say(&format!("note: {note}"));
    }
    Ok(Exit::Ok)
}

fn nothing(question: &Question, trace: &Trace) -> Failure {
    let what = match (&question.id, &question.key) {
        (Some(id), _) => format!("nothing is known of event {id:?}"),
        (None, key) => format!("nothing is known of key {:?}", key.as_deref().unwrap_or_default()),
    };
    let failure = Failure::new(Exit::NotFound, what).with_details(trace.notes.clone());
    failure.or_try("the id that the producer sent, without --source and --tenant; `onceflow status` shows what waits")
}

/// The event is named where more than one may be meant.
fn table(trace: &Trace, by_key: bool) -> Rows {
    let one = |step: &Step| (step.tenant.clone(), step.source.clone());
    let several = by_key || trace.items.iter().any(|step| one(step) != one(&trace.items[0]));
    let mut rows = if several {
        Rows::new(&["TIME", "WHAT", "CONSUMER", "EVENT", "DETAIL"])
    } else {
        Rows::new(&["TIME", "WHAT", "CONSUMER", "DETAIL"])
    };
    for step in &trace.items {
        let (what, detail) = told(&step.what);
        let mut row = vec![step.at.map_or_else(|| "-".to_owned(), time), what.to_owned(), step.consumer.clone()];
        if several {
            row.push(format!("{} from {:?} of {}", step.event_id, step.source, step.tenant));
        }
        row.push(detail);
        rows.push_whole(row);
    }
    rows
}

/// UTC, to the millisecond: attempts can be close together.
fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S%.3fZ").to_string()
}

/// The name of a step and what there is to say of it.
fn told(what: &What) -> (&'static str, String) {
    match what {
        What::Failed(failed) => ("failed", attempt(failed)),
        What::GaveUp(failed) => ("gave up", attempt(failed)),
        What::Dead(letter) => ("dead", dead(letter)),
        What::Replayed(hand) => ("replayed", by(hand)),
        What::Edited(edit) => ("edited", edited(edit)),
        What::Seen(hand) => ("seen", by(hand)),
        What::Changed(hand) => ("changed", format!("{} {}", hand.action, by(hand))),
        What::Held(hold) => ("held", format!("behind event {} of its key, which failed", hold.blocked_by)),
        What::Applied(end) => ("applied", ended(end)),
        What::Stale(end) => ("stale", ended(end)),
        What::Skipped(end) => ("skipped", ended(end)),
        What::Waits(row) => ("waits", outbox(row)),
        What::Parked(row) => ("parked", outbox(row)),
        What::Confirmed { left, of } => {
            ("confirmed", format!("{left} of {of} downstream events, or dropped by an operator; the time is not kept"))
        }
        What::Closed(letter) => ("closed", closed(letter)),
    }
}

fn attempt(failed: &FailedTry) -> String {
    let took = failed.duration_us.map_or_else(String::new, |us| format!(" after {}", span_us(us)));
    let next = failed.retry_ms.map_or_else(String::new, |ms| format!(", again in about {}", span_us(ms * 1000)));
    let replay = if failed.replay_id.is_some() { " of a replay" } else { "" };
    format!(
        "attempt {}{replay} at {} with {}{took} on {} ({}){next}: {}",
        failed.attempt,
        failed.stage,
        failed.code,
        failed.instance,
        failed.consumer_version,
        short(&failed.error_chain.join(" | because "))
    )
}

fn dead(letter: &DeadLetterState) -> String {
    format!(
        "dead letter {}, now {}: {} with {}, {} attempts, arrived {} times, replayed {} times",
        letter.dead_letter,
        letter.state,
        letter.stage,
        letter.code,
        letter.attempts,
        letter.occurrences,
        letter.replays
    )
}

fn closed(letter: &DeadLetterState) -> String {
    let by = letter.closed_by.as_deref().unwrap_or("-");
    format!("{} by {by}: {}", letter.state, short(letter.closed_reason.as_deref().unwrap_or("-")))
}

fn by(hand: &Hand) -> String {
    match &hand.reason {
        Some(reason) => format!("by {}: {}", hand.actor, short(reason)),
        None => format!("by {}", hand.actor),
    }
}

fn edited(edit: &Edit) -> String {
    let Edit { edited_dead_letter, original_event_id, copy_event_id, actor, reason } = edit;
    let reason = short(reason);
    format!(
        "event {copy_event_id} took the place of {original_event_id} (dead letter {edited_dead_letter}) by {actor}: {reason}"
    )
}

fn ended(end: &End) -> String {
    let mut detail = end.event_type.clone();
    if let Some(reason) = end.reason.as_ref().filter(|reason| *reason != "stale") {
        detail.push_str(&format!(", {reason}"));
    }
    detail.push_str(&format!(", {} downstream", end.downstream));
    if end.duplicates > 0 {
        detail.push_str(&format!(", {} further copies without effect", end.duplicates));
    }
    if end.conflicts > 0 {
        detail.push_str(&format!(", {} of them with another body", end.conflicts));
    }
    detail
}

fn outbox(row: &OutboxRow) -> String {
    let what = if row.replay { "its replay" } else { "downstream" };
    let why = row.parked_reason.as_ref().map_or_else(String::new, |why| format!(": {}", short(why)));
    format!("{what} {} of {}, row {}{why}", row.downstream_type, row.aggregate_id, row.row)
}

fn span_us(us: i64) -> String {
    let span = Duration::from_micros(u64::try_from(us).unwrap_or(0));
    match span.as_secs_f64() {
        seconds if seconds < 0.01 => format!("{:.1} ms", seconds * 1e3),
        seconds if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        seconds if seconds < 120.0 => format!("{seconds:.1} s"),
        seconds => format!("{:.0} min", seconds / 60.0),
    }
}

fn short(text: &str) -> String {
    if text.chars().count() <= MAX_ERROR {
        return text.to_owned();
    }
    text.chars().take(MAX_ERROR - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_one_line_however_long_its_error_is() {
        let failed = FailedTry {
            event_type: "x".into(),
            attempt: 2,
            instance: "host:1".into(),
            consumer_version: "1".into(),
            stage: "handle".into(),
            code: "contention".into(),
            error_chain: vec!["e".repeat(2_000)],
            duration_us: Some(1_500),
            retry_ms: Some(5_000),
            replay_id: None,
        };
        let line = attempt(&failed);
        assert!(
            line.starts_with(
                "attempt 2 at handle with contention after 1.5 ms on host:1 (1), again in about 5.0 s: ee"
            )
        );
        assert!(line.chars().count() < 300, "{line}");
    }

    #[test]
    fn times_are_told_to_the_millisecond_in_utc() {
        assert_eq!(time("2026-01-02T03:04:05.678901Z".parse().unwrap()), "2026-01-02 03:04:05.678Z");
    }

    #[test]
    fn copies_and_conflicts_are_told_with_the_end() {
        let end = End { event_type: "x".into(), reason: None, downstream: 1, duplicates: 3, conflicts: 1 };
        assert_eq!(ended(&end), "x, 1 downstream, 3 further copies without effect, 1 of them with another body");
    }
}

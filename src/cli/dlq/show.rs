//! `onceflow dlq show`

use std::fmt::Write as _;

use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::super::client::Client;
use super::super::context::Context;
use super::super::exit::{Ending, Exit, Failure};
use super::super::output::{Format, printable, time};
use super::payload;
use crate::admin::wire::UnmaskRequest;
use crate::replay::DeadLetter;

pub(super) const EXAMPLES: &str = "\
Examples:
  onceflow dlq show 0197a1b2-…
  onceflow dlq show 0197a1b2-… --unmask --reason 'which number is it?'
  onceflow dlq show 0197a1b2-… --unmask -o json | jq -r .payload_text

What looks like a secret or a phone number is masked, in JSON; other payloads are not shown. With --unmask everything is shown, and the
audit tells who has seen it. It needs the role operator; a viewer is shown no payload at all.";

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The dead letter
    #[arg(value_name = "ID")]
    id: Uuid,
    #[command(flatten)]
    sight: Sight,
}

/// How much is shown.
#[derive(Debug, clap::Args)]
pub(super) struct Sight {
    /// Show everything as it is; the audit tells who has seen it
    #[arg(long)]
    unmask: bool,
    /// Why; kept in the audit
    #[arg(long, value_name = "TEXT", requires = "unmask")]
    reason: Option<String>,
}

impl Sight {
    /// Asks `masked`, or `whole`.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        client: &Client,
        masked: &str,
        whole: &str,
    ) -> Result<T, Failure> {
        if self.unmask {
            client.post(whole, &UnmaskRequest { reason: self.reason.clone() }).await
        } else {
            client.get(masked, &()).await
        }
    }
}

pub(super) async fn run(context: &Context, args: &Args) -> Ending {
    let path = format!("dlq/{}", args.id);
    let letter: DeadLetter = args.sight.ask(&context.client()?, &path, &format!("{path}/unmask")).await?;
    if context.out.format == Format::Table {
        context.out.text(&page(&letter))?;
    } else {
        context.out.data("onceflow.dlq.show/1", &letter, super::super::output::Rows::default)?;
    }
    if letter.summary.state == "open" {
        context.out.say(&format!("  -> onceflow dlq replay {}", letter.summary.id));
    }
    if letter.summary.state == "archived" {
        let until = letter.restorable_until.map_or_else(|| "for ever".to_owned(), |at| format!("until {}", time(at)));
        context.out.say(&format!("  -> onceflow dlq restore {} --reason ...   # possible {until}", letter.summary.id));
    }
    Ok(Exit::Ok)
}

fn page(letter: &DeadLetter) -> String {
    let s = &letter.summary;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a string can't fail.
        let _written = writeln!(text, "{name:<14} {}", printable(value));
    };
    line("id", &s.id.to_string());
    line("event", &format!("{} from {:?} ({})", s.event_id, s.source, s.event_type));
    line("subject", s.subject.as_deref().unwrap_or("-"));
    line("ordering key", letter.partition_key.as_deref().unwrap_or("-"));
    line("tenant", &s.tenant);
    line("consumer", &format!("{} {}", s.consumer, letter.consumer_version));
    line("state", &state(letter));
    if s.waiting_behind > 0 {
        line("waiting behind", &format!("{} events of its key", s.waiting_behind));
    }
    if let Some(edit) = &letter.edited_into {
        let copy = edit.copy_dead_letter.map_or_else(String::new, |id| format!(", dead letter {id}"));
        let (by, at, event) = (&edit.edited_by, time(edit.edited_at), &edit.copy_event_id);
        line("edited into", &format!("event {event} ({}{copy}) {at} by {by}: {}", edit.copy_state, edit.reason));
    }
    if let Some(edit) = &letter.edited_from {
        let (by, at, event) = (&edit.edited_by, time(edit.edited_at), &edit.event_id);
        line("edited from", &format!("event {event}, dead letter {} {at} by {by}: {}", edit.dead_letter, edit.reason));
    }
    line("failed", &format!("at {} with {} (group {})", s.stage, s.reason_code, s.group));
    if let Some(text) = &letter.group_text {
        line("group's error", text);
    }
    if let Some(id) = &letter.correlation_id {
        line("correlation", id);
    }
    line("attempts", &format!("{}, replayed {} times, arrived {} times", s.attempts, s.replays, s.occurrences));
    line("first failed", &time(s.first_failed_at));
    line("last failed", &time(s.last_failed_at));
    if let (Some(at), Some(group)) = (letter.replayed_at, &letter.replayed_group) {
        let moved = if *group == s.group { "" } else { ", which it has left" };
        line("last replayed", &format!("{} out of group {group}{moved}", time(at)));
    }
    line("route", &format!("exchange {:?}, routing key {:?}", letter.original_exchange, letter.original_routing_key));
    for (depth, error) in letter.error_chain.iter().enumerate() {
        line(if depth == 0 { "error" } else { "  because" }, error);
    }
    if let Some(headers) = letter.headers.as_object() {
        for (name, value) in headers {
            line("header", &format!("{name}: {value}"));
        }
    }
    for (name, relatives) in [("same key", &letter.related.same_key), ("same case", &letter.related.same_correlation)] {
        for r in relatives {
            let failed = time(r.last_failed_at);
            line(name, &format!("{} {failed} {} {} ({})", r.id, r.event_type, r.reason_code, r.state));
        }
    }
    line("payload", &format!("{} bytes, {}", letter.payload_bytes, payload::description(letter)));
    text.push_str(&payload::lines(letter));
    text
}

fn state(letter: &DeadLetter) -> String {
    match (&letter.closed_at, &letter.closed_by, &letter.closed_reason) {
        (Some(at), Some(by), why) => {
            format!("{} {} by {by}: {}", letter.summary.state, time(*at), why.as_deref().unwrap_or("-"))
        }
        _ => letter.summary.state.clone(),
    }
}

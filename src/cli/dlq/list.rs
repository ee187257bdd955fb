//! `onceflow dlq list`

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::context::Context;
use super::super::exit::{Ending, Exit, Failure};
use super::super::output::{Format, Rows, time};
use super::select::{FilterArgs, StateArg};
use crate::replay::{Filter, MAX_PAGE, Page};

pub(super) const EXAMPLES: &str = "\
Examples:
  onceflow dlq list
  onceflow dlq list --consumer org --since 2h
  onceflow dlq list --text 'order/4711' --state any
  onceflow dlq list --key user/42 --replays 1
  onceflow dlq list --limit 1000 -o jsonl | jq -r .id";

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    filter: FilterArgs,
    /// Which state
    #[arg(long, value_enum, default_value = "open")]
    state: StateArg,
    /// Most rows
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Go on after a page: the cursor that the last one ended with
    #[arg(long, value_name = "CURSOR")]
    after: Option<String>,
    /// Exit 3 when nothing matches
    #[arg(long)]
    fail_empty: bool,
}

pub(super) async fn run(context: &Context, args: &Args) -> Ending {
    let page = fetch(context, args).await?;
    context.out.data("onceflow.dlq.list/1", &page, || table(&page))?;
    if let Some(total) = page.total.filter(|_| !page.items.is_empty()) {
        context.out.say(&matches(total, page.total_is_exact == Some(true)));
    }
    if page.items.is_empty() {
        context.out.say("no dead letter matches");
        if args.fail_empty {
            return Err(Failure::new(Exit::NotFound, "no dead letter matches"));
        }
    }
    if let (Some(next), Format::Table | Format::Jsonl) = (&page.next, context.out.format) {
        context.out.say(&format!("there are more: --after {next}, or a higher --limit"));
    }
    Ok(Exit::Ok)
}

/// Pages until the limit is met: the server gives out a bounded number at once.
async fn fetch(context: &Context, args: &Args) -> Result<Page, Failure> {
    let client = context.client()?;
    let filter = args.filter.filter(Some(args.state));
    let mut all = Page { items: Vec::new(), next: args.after.clone(), total: None, total_is_exact: None };
    let mut left = args.limit;
    while left > 0 {
        let mut query = params(&filter)?;
        query.insert("limit".to_owned(), left.min(MAX_PAGE).to_string());
        if let Some(after) = all.next.take() {
            query.insert("after".to_owned(), after);
        }
        // Counted once, however many pages there are.
        query.insert("count".to_owned(), all.total.is_none().to_string());
        let page: Page = client.get("dlq", &query).await?;
        left = left.saturating_sub(u32::try_from(page.items.len()).unwrap_or(u32::MAX));
        all.items.extend(page.items);
        all.total = all.total.or(page.total);
        all.total_is_exact = all.total_is_exact.or(page.total_is_exact);
        all.next = page.next;
        if all.next.is_none() {
            break;
        }
    }
    Ok(all)
}

/// The filter as parameters of a query.
pub(super) fn params(filter: &Filter) -> Result<BTreeMap<String, String>, Failure> {
    let value = serde_json::to_value(filter).map_err(|e| Failure::new(Exit::Usage, "the filter").because(e))?;
    let Value::Object(fields) = value else { return Ok(BTreeMap::new()) };
    let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Ok(fields.into_iter().map(|(name, value)| (name, text(value))).collect())
}

fn matches(total: i64, is_exact: bool) -> String {
    match (total, is_exact) {
        (1, true) => "1 matches".to_owned(),
        (total, true) => format!("{total} match"),
        (total, false) => format!("at least {total} match"),
    }
}

fn table(page: &Page) -> Rows {
    let mut rows = Rows::new(&[
        "ID",
        "CONSUMER",
        "TYPE",
        "SUBJECT",
        "REASON",
        "STATE",
        "TRIES",
        "WAITING BEHIND",
        "LAST FAILED",
        "ERROR",
    ]);
    for d in &page.items {
        rows.push(vec![
            d.id.to_string(),
            d.consumer.clone(),
            d.event_type.clone(),
            d.subject.clone().unwrap_or_else(|| d.event_id.clone()),
            d.reason_code.clone(),
            d.state.clone(),
            d.attempts.to_string(),
            d.waiting_behind.to_string(),
            time(d.last_failed_at),
            d.error.clone(),
        ]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::State;

    #[test]
    fn a_number_that_is_not_exact_is_said_to_be_a_lower_bound() {
        assert_eq!(matches(1, true), "1 matches");
        assert_eq!(matches(10_000, true), "10000 match");
        assert_eq!(matches(10_000, false), "at least 10000 match");
    }

    #[test]
    fn a_filter_survives_the_way_through_a_query() {
        let filter = Filter {
            consumer: Some("org".into()),
            state: Some(State::Any),
            since: Some("2026-01-31T08:00:00Z".parse().unwrap()),
            // A key of digits stays text; numbers are numbers.
            key: Some("42".into()),
            attempts: Some(3),
            ..Filter::default()
        };
        let params = params(&filter).unwrap();
        assert_eq!(params["attempts"], "3");
        assert_eq!(Filter::from_query(params).unwrap(), filter);
    }
}

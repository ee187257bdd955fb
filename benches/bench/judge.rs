//! From the rounds' figures to the rows of the table, each with the bound that it has to keep.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::figures::{Measured, Percentiles, median};
use crate::triage::Looks;

/// All rounds of one scenario, by variant.
pub(crate) type Rounds = BTreeMap<&'static str, Vec<Measured>>;
/// Makes the rows of one scenario.
pub(crate) type Judge = fn(&Rounds) -> Vec<Row>;

/// Most resident memory while a backlog is drained, and at 1,000 events a second.
const MIB_DRAINING: f64 = 128.0;
const MIB_STEADY: f64 = 64.0;
/// Most milliseconds at 1,000 events a second, at the 99th percentile.
const MS_STEADY: f64 = 25.0;
/// A machine counts as quiet if the limit needs no more than this.
const QUIET_MS: f64 = MS_STEADY / 2.0;
/// Most milliseconds for all groups, a page and the plan of a job, and most memory that a replay may take.
const MS_GROUPS: f64 = 1_000.0;
const MS_PAGE: f64 = 200.0;
const MS_PLAN: f64 = 5_000.0;
const MIB_REPLAYING: f64 = 64.0;
/// "Unchanged" means this much here: the same load differs so much from one ten seconds to the next.
const UNCHANGED: f64 = 1.25;

/// One line of the table.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Row {
    /// What the figures are, with their unit.
    pub(crate) measure: String,
    pub(crate) limit: Option<f64>,
    pub(crate) onceflow: Option<f64>,
    pub(crate) naive: Option<f64>,
    pub(crate) ratio: Option<f64>,
    /// What the ratio compares.
    pub(crate) of: String,
    pub(crate) bound: Option<Bound>,
}

/// What the issue asks for.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    /// Of the ratio.
    RatioAtLeast(f64),
    /// Of the ratio.
    RatioAtMost(f64),
    /// Of onceflow's own figure.
    AtMost(f64),
}

impl Row {
    /// Whether the bound is kept; `None` where there is none, or no figure to judge.
    pub(crate) fn is_kept(&self) -> Option<bool> {
        match self.bound? {
            Bound::RatioAtLeast(bound) => Some(self.ratio? >= bound),
            Bound::RatioAtMost(bound) => Some(self.ratio? <= bound),
            Bound::AtMost(bound) => Some(self.onceflow? <= bound),
        }
    }
}

pub(crate) fn throughput_org(rounds: &Rounds) -> Vec<Row> {
    drained(rounds, Some(0.85))
}

pub(crate) fn throughput_payment(rounds: &Rounds) -> Vec<Row> {
    drained(rounds, Some(0.6))
}

pub(crate) fn throughput(rounds: &Rounds) -> Vec<Row> {
    drained(rounds, None)
}

fn drained(rounds: &Rounds, at_least: Option<f64>) -> Vec<Row> {
    let rate = compared(rounds, "events/s", |m| Some(m.rate));
    let mut rows = vec![Row { bound: at_least.map(Bound::RatioAtLeast), ..rate.clone() }];
    if rate.naive.is_some() {
        rows.push(Row {
            measure: "events/s".to_owned(),
            ratio: quotient(rate.onceflow, rate.naive),
            of: "onceflow / naive".to_owned(),
            bound: Some(Bound::RatioAtLeast(8.0)),
            limit: None,
            ..rate
        });
    }
    let cpu = compared(rounds, "CPU µs/event", |m| Some(m.cpu_us));
    rows.push(Row { bound: Some(Bound::RatioAtMost(1.5)), ..cpu });
    rows.push(memory(rounds, MIB_DRAINING));
    rows
}

pub(crate) fn latency(rounds: &Rounds) -> Vec<Row> {
    let row = |measure, figure: fn(Percentiles) -> f64| compared(rounds, measure, |m| m.latency.map(figure));
    vec![
        row("p50 ms", |p| p.p50),
        row("p90 ms", |p| p.p90),
        row("p99 ms", |p| p.p99),
        row("max ms", |p| p.max),
        compared(rounds, "CPU µs/event", |m| Some(m.cpu_us)),
        compared(rounds, "peak MiB", |m| Some(m.peak_mib)),
    ]
}

pub(crate) fn latency_1000(rounds: &Rounds) -> Vec<Row> {
    let mut rows = latency(rounds);
    for row in &mut rows {
        match row.measure.as_str() {
            "p50 ms" | "p99 ms" => row.bound = Some(Bound::RatioAtMost(2.0)),
            "peak MiB" => row.bound = Some(Bound::AtMost(MIB_STEADY)),
            _ => {}
        }
    }
    let p99 = rows.iter().find(|row| row.measure == "p99 ms").cloned().unwrap_or_default();
    rows.insert(3, alone(&p99));
    rows
}

/// The bound in milliseconds counts only on a quiet machine, and whether it was quiet is told by the limit of the same run.
fn alone(p99: &Row) -> Row {
    let quiet = p99.limit.is_some_and(|limit| limit <= QUIET_MS);
    let (of, bound) = match quiet {
        true => (String::new(), Some(Bound::AtMost(MS_STEADY))),
        false => (format!("≤ {MS_STEADY} not judged: the limit's is over {QUIET_MS}"), None),
    };
    Row { measure: "p99 ms".to_owned(), onceflow: p99.onceflow, of, bound, ..Row::default() }
}

pub(crate) fn poison(rounds: &Rounds) -> Vec<Row> {
    vec![against(rounds, "events/s", ("poison", "clean"), |m| Some(m.rate))]
}

pub(crate) fn hot_key(rounds: &Rounds) -> Vec<Row> {
    let row = |measure, figure: fn(Percentiles) -> f64| {
        against(rounds, measure, ("hot", "even"), |m: &Measured| m.latency.map(figure))
    };
    let p99 = row("other keys' p99 ms", |p| p.p99);
    vec![row("other keys' p50 ms", |p| p.p50), Row { bound: Some(Bound::RatioAtMost(2.0)), ..p99 }]
}

pub(crate) fn replicas(rounds: &Rounds) -> Vec<Row> {
    let one = |name: &str| median(rounds.get(name)?, |m| Some(m.rate));
    let alone = Row { measure: "events/s, 1 replica".to_owned(), onceflow: one("1 replica"), ..Row::default() };
    let mut rows = vec![alone];
    for name in ["2 replicas", "3 replicas", "4 replicas"] {
        let row = against(rounds, &format!("events/s, {name}"), (name, "1 replica"), |m| Some(m.rate));
        let bound = (name == "2 replicas").then_some(Bound::RatioAtLeast(1.0));
        rows.push(Row { bound, ..row });
    }
    rows
}

pub(crate) fn backlog(rounds: &Rounds) -> Vec<Row> {
    let growth = |m: &Measured| {
        // The start fills caches and pools: the second half is compared with the second quarter.
        let (quarter, half) = (m.memory.len() / 4, m.memory.len() / 2);
        let mean = |part: &[(f64, f64)]| part.iter().map(|(_, mib)| mib).sum::<f64>() / part.len() as f64;
        Some(mean(&m.memory[half..]) / mean(&m.memory[quarter..half]))
    };
    let all = rounds.get("onceflow").map_or(&[][..], Vec::as_slice);
    vec![
        compared(rounds, "events/s", |m| Some(m.rate)),
        memory(rounds, MIB_DRAINING),
        Row {
            measure: "memory over time".to_owned(),
            ratio: median(all, growth),
            of: "2nd half / 2nd quarter".to_owned(),
            bound: Some(Bound::RatioAtMost(1.1)),
            ..Row::default()
        },
    ]
}

pub(crate) fn inbox(rounds: &Rounds) -> Vec<Row> {
    let row = against(rounds, "events/s", ("full", "empty"), |m| Some(m.rate));
    vec![Row { bound: Some(Bound::RatioAtLeast(0.9)), ..row }]
}

pub(crate) fn open_transaction(rounds: &Rounds) -> Vec<Row> {
    let all = rounds.get("onceflow").map_or(&[][..], Vec::as_slice);
    let row = |measure: &str, figure: fn(Percentiles) -> f64, bound| {
        let held = median(all, |m| m.latency_held.map(figure));
        let before = median(all, |m| m.latency.map(figure));
        Row {
            measure: format!("{measure}, while open"),
            onceflow: held,
            ratio: quotient(held, before),
            of: "while open / before".to_owned(),
            bound,
            ..Row::default()
        }
    };
    vec![
        row("p50 ms", |p| p.p50, Some(Bound::RatioAtMost(UNCHANGED))),
        row("p99 ms", |p| p.p99, Some(Bound::RatioAtMost(2.0))),
    ]
}

pub(crate) fn dead_letters(rounds: &Rounds) -> Vec<Row> {
    let all = rounds.get("onceflow").map_or(&[][..], Vec::as_slice);
    let looks = || all.iter().filter_map(|m| m.looks.as_ref());
    let row = |measure: &str, onceflow: Option<f64>, bound: Option<f64>| Row {
        measure: measure.to_owned(),
        onceflow,
        bound: bound.map(Bound::AtMost),
        ..Row::default()
    };
    let pages = looks().flat_map(|looks| looks.pages_ms.iter()).copied();
    let slowest = pages.max_by(|a, b| a.1.total_cmp(&b.1));
    let page = row("slowest page ms", slowest.map(|(_, ms)| ms), Some(MS_PAGE));
    let of = |figure: fn(&Looks) -> f64| median(all, |m| m.looks.as_ref().map(figure));
    let p99 = |held: bool| median(all, |m| if held { m.latency_held } else { m.latency }.map(|p| p.p99));
    let live = Row {
        ratio: quotient(p99(true), p99(false)),
        of: "while replaying / before".to_owned(),
        bound: Some(Bound::RatioAtMost(2.0)),
        ..row("live p99 ms, while replaying", p99(true), None)
    };
    vec![
        row("groups ms", of(|looks| looks.groups_ms), Some(MS_GROUPS)),
        Row { of: slowest.map(|(name, _)| name.to_owned()).unwrap_or_default(), ..page },
        row("plan ms", of(|looks| looks.plan_ms), Some(MS_PLAN)),
        row("replayed/s", of(|looks| looks.replay_rate), None),
        live,
        row("MiB added by replaying", of(|looks| looks.added_mib), Some(MIB_REPLAYING)),
    ]
}

pub(crate) fn idle(rounds: &Rounds) -> Vec<Row> {
    let share = compared(rounds, "CPU, % of a core", |m| m.idle_percent);
    vec![Row { bound: Some(Bound::AtMost(1.0)), ..share }, compared(rounds, "resident MiB", |m| Some(m.peak_mib))]
}

fn memory(rounds: &Rounds, at_most: f64) -> Row {
    Row { bound: Some(Bound::AtMost(at_most)), ..compared(rounds, "peak MiB", |m| Some(m.peak_mib)) }
}

/// The three contenders side by side.
fn compared(rounds: &Rounds, measure: &str, figure: impl Fn(&Measured) -> Option<f64>) -> Row {
    let of = |name: &str| median(rounds.get(name)?, &figure);
    let (limit, onceflow, naive) = (of("limit"), of("onceflow"), of("naive"));
    let ratio = quotient(onceflow, limit);
    let of = if ratio.is_some() { "onceflow / limit" } else { "" };
    Row { measure: measure.to_owned(), limit, onceflow, naive, ratio, of: of.to_owned(), bound: None }
}

/// One variant of onceflow against another.
fn against(
    rounds: &Rounds,
    measure: &str,
    (name, reference): (&str, &str),
    figure: impl Fn(&Measured) -> Option<f64>,
) -> Row {
    let of = |name: &str| median(rounds.get(name)?, &figure);
    let onceflow = of(name);
    Row {
        measure: measure.to_owned(),
        onceflow,
        ratio: quotient(onceflow, of(reference)),
        of: format!("{name} / {reference}"),
        ..Row::default()
    }
}

fn quotient(of: Option<f64>, by: Option<f64>) -> Option<f64> {
    Some(of? / by?).filter(|ratio| ratio.is_finite())
}

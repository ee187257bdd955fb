//! The figures of a run, as text, as JSON and in the document.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

use crate::catalogue::{By, CATALOGUE};
use crate::outcome::Outcome;

/// A run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) mode: String,
    pub(crate) seed: u64,
    pub(crate) commit: String,
    pub(crate) date: String,
    pub(crate) build: &'static str,
    pub(crate) cores: usize,
    pub(crate) postgresql: String,
    pub(crate) rabbitmq: String,
    pub(crate) seconds: u64,
    pub(crate) outcomes: Vec<Outcome>,
}

impl Report {
    pub(crate) fn failed(&self) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.failed()).count()
    }

    fn sum(&self, of: impl Fn(&Outcome) -> u64) -> u64 {
        self.outcomes.iter().map(of).sum()
    }

    /// The figures, name beside value.
    fn figures(&self) -> Vec<(String, String)> {
        let outcomes = &self.outcomes;
        let recoveries = sorted(outcomes.iter().flat_map(|o| o.recoveries.iter().copied()));
        let drains = sorted(outcomes.iter().flat_map(|o| o.drains.iter().copied()));
        let (lost, twice, partial) =
            (self.sum(|o| o.findings.lost), self.sum(|o| o.findings.twice), self.sum(|o| o.findings.partial));
        let skipped: Vec<&str> = outcomes.iter().filter(|o| o.skipped.is_some()).map(|o| o.name).collect();
        let (injected, passed) = (outcomes.len() - skipped.len(), outcomes.iter().filter(|o| o.passed()).count());
        let peak = outcomes.iter().map(|o| o.findings.peak).max().unwrap_or(0) >> 20;
        let mut rows = vec![
            ("worlds: faults injected / passed".to_owned(), format!("{injected} / {passed}")),
            ("faults injected in all".to_owned(), self.sum(|o| o.injections).to_string()),
            ("kill -9 and deaths at kill points".to_owned(), self.sum(|o| o.tally.kills).to_string()),
            (
                "broker restarts; connection cuts".to_owned(),
                format!("{}; {}", self.sum(|o| o.tally.broker_restarts), self.sum(|o| o.tally.cuts)),
            ),
            (
                "database crashes; sessions terminated".to_owned(),
                format!("{}; {}", self.sum(|o| o.tally.database_restarts), self.sum(|o| o.tally.backend_kills)),
            ),
            ("events confirmed by the broker".to_owned(), self.sum(|o| o.findings.confirmed).to_string()),
            ("**events lost**".to_owned(), format!("**{lost}**")),
            ("**effects applied twice**".to_owned(), format!("**{twice}**")),
            ("redeliveries of events dealt with before".to_owned(), self.sum(|o| o.findings.redelivered).to_string()),
            ("partial transactions".to_owned(), partial.to_string()),
            ("order violations per key".to_owned(), self.sum(|o| o.findings.unordered).to_string()),
            (
                "downstream messages; sent again under the same id".to_owned(),
                format!("{}; {}", self.sum(|o| o.findings.published), self.sum(|o| o.findings.sent_again)),
            ),
            ("attempts burnt in outages".to_owned(), self.sum(|o| o.findings.burnt).to_string()),
            ("peak memory of a replica".to_owned(), format!("{peak} MiB")),
            (
                "drain on SIGTERM under load, p50 / max".to_owned(),
                format!("{} / {}", at(&drains, 50), at(&drains, 100)),
            ),
            ("recovery, p50 / p99 / max".to_owned(), spread(&recoveries)),
        ];
        if !skipped.is_empty() {
            rows.push(("**not injected on this machine**".to_owned(), skipped.join(", ")));
        }
        let classes: BTreeSet<&str> = outcomes.iter().map(|o| o.class).collect();
        for class in classes.into_iter().filter(|class| *class != "c") {
            let own = sorted(outcomes.iter().filter(|o| o.class == class).flat_map(|o| o.recoveries.iter().copied()));
            rows.push((format!("recovery, class {class}"), spread(&own)));
        }
        rows
    }

    /// For people at a terminal.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for outcome in &self.outcomes {
            let verdict = outcome.verdict();
            let slowest =
                outcome.recoveries.iter().max().map_or_else(String::new, |ms| format!(", recovered in {ms} ms"));
            let _ =
                writeln!(text, "{verdict:7} {:16} {:5.1} s{slowest}  {}", outcome.name, outcome.seconds, outcome.title);
            for problem in outcome.findings.problems.iter().chain(&outcome.skipped) {
                let _ = writeln!(text, "       {problem}");
            }
        }
        let _ = writeln!(text);
        for (name, value) in self.figures() {
            let _ = writeln!(text, "{:52} {}", name.replace("**", ""), value.replace("**", ""));
        }
        let _ = writeln!(text, "{}", self.signature());
        text
    }

    fn signature(&self) -> String {
        format!(
            "{}: {}, seed {}, {} build of {}, {} s on {} cores, PostgreSQL {}, RabbitMQ {}.",
            self.date,
            self.mode,
            self.seed,
            self.build,
            self.commit,
            self.seconds,
            self.cores,
            self.postgresql,
            self.rabbitmq
        )
    }

    /// For the document.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::from("| figure | value |\n|---|---|\n");
        for (name, value) in self.figures() {
            let _ = writeln!(text, "| {name} | {value} |");
        }
        let _ = writeln!(text, "\n{}", self.signature());
        let failed: Vec<&Outcome> = self.outcomes.iter().filter(|outcome| outcome.failed()).collect();
        for outcome in failed {
            let _ = writeln!(
                text,
                "\nFAILED: {} ({}): {}",
                outcome.name,
                outcome.title,
                outcome.findings.problems.join("; ")
            );
        }
        for outcome in &self.outcomes {
            if let Some(why) = &outcome.skipped {
                let _ = writeln!(text, "\nSKIPPED: {} ({}): {why}", outcome.name, outcome.title);
            }
        }
        text
    }
}

/// The catalogue with who injects what.
pub(crate) fn catalogue() -> String {
    let mut text = String::from("| id | fault | injected by |\n|---|---|---|\n");
    for entry in CATALOGUE {
        let by = match entry.by {
            By::Suite => "`make faults`".to_owned(),
            By::Test(name) => format!("`make test`: `{name}`"),
            By::Nobody(why) => format!("nobody: {why}"),
        };
        let _ = writeln!(text, "| {} | {} | {by} |", entry.id, entry.title);
    }
    let count = |which: fn(&By) -> bool| CATALOGUE.iter().filter(|entry| which(&entry.by)).count();
    let (ours, tests) = (count(|by| matches!(by, By::Suite)), count(|by| matches!(by, By::Test(_))));
    let _ = writeln!(
        text,
        "\nOf {}: {ours} by this suite, {tests} by tests, {} by nobody.",
        CATALOGUE.len(),
        CATALOGUE.len() - ours - tests
    );
    text
}

/// Replaces what stands in the document between the marks of that name.
pub(crate) fn replace(path: &Path, name: &str, content: &str) -> anyhow::Result<()> {
    let document = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let (begin, end) = (format!("<!-- generated: {name} -->"), format!("<!-- end: {name} -->"));
    let parts = document.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
    let (before, after) = parts.with_context(|| format!("{} has no place for {name}", path.display()))?;
    std::fs::write(path, [before, &begin, "\n\n", content, "\n", &end, after].concat()).context("write the document")
}

fn sorted(values: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values
}

/// A percentile, in milliseconds.
fn at(sorted: &[u64], percent: usize) -> String {
    let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(place).map_or_else(|| "none".to_owned(), |ms| format!("{ms} ms"))
}

fn spread(sorted: &[u64]) -> String {
    format!("{} / {} / {} (of {})", at(sorted, 50), at(sorted, 99), at(sorted, 100), sorted.len())
}

//! The table on standard output.

use comfy_table::presets::{ASCII_MARKDOWN, UTF8_FULL_CONDENSED};
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::judge::{Bound, Rounds, Row};

/// Everything a run found out.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) commit: String,
    pub(crate) date: String,
    pub(crate) seed: u64,
    pub(crate) rounds: u32,
    pub(crate) scale: f64,
    pub(crate) full: bool,
    pub(crate) build: &'static str,
    pub(crate) cores: usize,
    pub(crate) postgresql: String,
    pub(crate) rabbitmq: String,
    pub(crate) scenarios: Vec<Outcome>,
}

/// One scenario, as judged and as measured.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) size: String,
    pub(crate) rows: Vec<Row>,
    /// Why there are no figures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) skipped: Option<String>,
    pub(crate) measured: Rounds,
}

impl Report {
    /// How many bounds were missed.
    pub(crate) fn missed(&self) -> usize {
        self.scenarios.iter().flat_map(|s| &s.rows).filter(|row| row.is_kept() == Some(false)).count()
    }

    /// What the table was made on.
    pub(crate) fn ground(&self) -> String {
        format!(
            "{} build of {}, {} cores, PostgreSQL {}, RabbitMQ {}, fsync on; median of {} rounds, seed {}, scale {}{}",
            self.build,
            self.commit,
            self.cores,
            self.postgresql,
            self.rabbitmq,
            self.rounds,
            self.seed,
            self.scale,
            if self.full { ", full" } else { "" }
        )
    }

    /// The table as text.
    pub(crate) fn table(&self) -> String {
        format!("{}\n{}\n{} of the bounds missed", self.rows(UTF8_FULL_CONDENSED), self.ground(), self.missed())
    }

    /// The table as the documents hold it.
    pub(crate) fn markdown(&self) -> String {
        let (rows, ground) = (self.rows(ASCII_MARKDOWN), self.ground());
        format!("{rows}\n\n{}: {ground}. {} of the bounds missed.\n", self.date, self.missed())
    }

    fn rows(&self, preset: &str) -> Table {
        let mut table = Table::new();
        table.load_preset(preset);
        table.set_header(["scenario", "size", "measure", "limit", "onceflow", "naive", "ratio", "of", "bound", ""]);
        for outcome in &self.scenarios {
            if let Some(why) = &outcome.skipped {
                table.add_row([outcome.name, &outcome.size, "skipped", "", "", "", "", why, "", ""]);
            }
            for (n, row) in outcome.rows.iter().enumerate() {
                let (name, size) = if n == 0 { (outcome.name, outcome.size.as_str()) } else { ("", "") };
                table.add_row(line(name, size, row));
            }
        }
        for column in 3..=6 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }
}

fn line(name: &str, size: &str, row: &Row) -> [String; 10] {
    let verdict = match row.is_kept() {
        Some(true) => "ok",
        Some(false) => "MISSED",
        None => "",
    };
    [
        name.to_owned(),
        size.to_owned(),
        row.measure.clone(),
        figure(row.limit),
        figure(row.onceflow),
        figure(row.naive),
        row.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
        row.of.clone(),
        row.bound.map(bound).unwrap_or_default(),
        verdict.to_owned(),
    ]
}

/// As many digits as mean something.
pub(crate) fn figure(value: Option<f64>) -> String {
    match value {
        None => String::new(),
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

/// The bound as people write it.
pub(crate) fn bound(bound: Bound) -> String {
    match bound {
        Bound::RatioAtLeast(bound) => format!("ratio ≥ {bound}"),
        Bound::RatioAtMost(bound) => format!("ratio ≤ {bound}"),
        Bound::AtMost(bound) => format!("≤ {bound}"),
    }
}

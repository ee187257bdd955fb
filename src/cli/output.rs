//! Data on stdout, talk on stderr. A reader that hangs up (`| head`) ends the command quietly.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;
use serde_json::{Map, Value};

use super::exit::{Exit, Failure};

/// Longest text of one table cell.
const MAX_CELL: usize = 100;

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people; may change.
    Table,
    /// One object with a versioned `schema`.
    Json,
    /// One object per line.
    Jsonl,
}

/// When stderr is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Color {
    /// On a terminal, unless `NO_COLOR` or `TERM=dumb` say otherwise.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Where a command's words go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    /// How data is printed.
    pub(super) format: Format,
    /// No talk but errors.
    pub(super) quiet: bool,
    /// Colour on stderr.
    pub(super) color: bool,
}

impl Output {
    /// Rows for people; the same as an object with a `schema`, or its `items` one per line, for programs.
    ///
    /// # Errors
    /// When stdout can't be written.
    pub(super) fn data(
        &self,
        schema: &str,
        data: &impl Serialize,
        table: impl FnOnce() -> Rows,
    ) -> Result<(), Failure> {
        match self.format {
            Format::Table => self.text(&table().render()),
            Format::Json => self.text(&format!("{:#}\n", with_schema(schema, &to_value(data)?))),
            Format::Jsonl => {
                let value = to_value(data)?;
                let lines = match value.get("items").and_then(Value::as_array) {
                    Some(items) => items.iter().map(|item| format!("{item}\n")).collect(),
                    None => format!("{}\n", with_schema(schema, &value)),
                };
                self.text(&lines)
            }
        }
    }

    /// Text to stdout.
    ///
    /// # Errors
    /// When stdout can't be written for another reason than that nobody reads it any more.
    pub(super) fn text(&self, text: &str) -> Result<(), Failure> {
        self.bytes(text.as_bytes())
    }

    /// Bytes to stdout, as [`text`](Self::text).
    ///
    /// # Errors
    /// As [`text`](Self::text).
    pub(super) fn bytes(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::new(Exit::Failed, "can't write to stdout").because(error))
            }
            _ => Ok(()),
        }
    }

    /// A sentence for people, to stderr.
    pub(super) fn say(&self, sentence: &str) {
        if !self.quiet {
            // Nobody is left to tell when stderr is gone.
            let _told = writeln!(io::stderr().lock(), "{sentence}");
        }
    }

    /// The failure of a command, to stderr.
    pub(super) fn fail(&self, failure: &Failure) {
        let text = printable(&failure.to_string());
        let text = match text.strip_prefix("error:") {
            Some(rest) if self.color => format!("\u{1b}[1;31merror:\u{1b}[0m{rest}"),
            _ => text,
        };
        let mut stderr = io::stderr().lock();
        let _told = writeln!(stderr, "{text}");
        for detail in &failure.details {
            let _told = writeln!(stderr, "  {}", printable(detail));
        }
    }
}

impl Color {
    /// Whether to colour, given what `NO_COLOR` and `TERM` say.
    pub(super) fn decide(self, no_color: bool, dumb: bool) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => !no_color && !dumb && io::stderr().is_terminal(),
        }
    }
}

/// A table for people: headings and rows of equal length.
#[derive(Debug, Clone, Default)]
pub(super) struct Rows {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Rows {
    /// An empty table.
    pub(super) fn new(header: &[&'static str]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    pub(super) fn push(&mut self, row: Vec<String>) {
        self.rows.push(row.iter().map(|cell| cut(&printable(cell))).collect());
    }

    /// Adds a row whose cells are not cut: advice is read to its end.
    pub(super) fn push_whole(&mut self, row: Vec<String>) {
        self.rows.push(row.iter().map(|cell| printable(cell)).collect());
    }

    /// The text; empty where there are no rows.
    pub(super) fn render(&self) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let mut table = Table::new();
        table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(&self.header).add_rows(&self.rows);
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
        lines.join("\n") + "\n"
    }
}

/// Text of strangers must not steer a terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// An age for people.
pub(super) fn age(seconds: Option<f64>) -> String {
    let Some(seconds) = seconds else { return "-".to_owned() };
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} d", s / 86_400.0),
    }
}

/// A time for people: UTC, to the second.
pub(super) fn time(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

fn cut(text: &str) -> String {
    if text.chars().count() <= MAX_CELL {
        return text.to_owned();
    }
    text.chars().take(MAX_CELL - 1).chain(['…']).collect()
}

fn to_value(data: &impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(data).map_err(|e| Failure::new(Exit::Failed, "can't write JSON").because(e))
}

/// The fields of the data beside a versioned `schema`, so that a reader can tell what it has before it.
fn with_schema(schema: &str, value: &Value) -> Value {
    let mut object = Map::from_iter([("schema".to_owned(), Value::from(schema))]);
    match value {
        Value::Object(fields) => object.extend(fields.clone()),
        other => {
            object.insert("value".to_owned(), other.clone());
        }
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_can_not_steer_a_terminal() {
        let mut rows = Rows::new(&["ERROR"]);
        rows.push(vec!["\u{1b}[2Jgone\r\n".to_owned()]);
        let text = rows.render();
        assert!(text.starts_with("ERROR\n"), "{text:?}");
        assert!(!text.contains('\u{1b}') && !text.contains('\r'));
    }

    #[test]
    fn a_long_cell_is_cut_between_characters() {
        assert_eq!(cut(&"ü".repeat(200)).chars().count(), MAX_CELL);
    }

    #[test]
    fn json_names_its_schema() {
        let value = with_schema("onceflow.dlq.list/1", &serde_json::json!({ "items": [] }));
        assert_eq!(value.to_string(), r#"{"items":[],"schema":"onceflow.dlq.list/1"}"#);
    }
}

//! What the demo shows: text on stdout, drawn over in place on a terminal.

use std::io::{IsTerminal, Write};

use super::books::{Books, Look};
use crate::replay::Group;

/// Writes to stdout. A closed pipe ends the showing, not the demo.
#[derive(Debug, Default)]
pub(super) struct Screen {
    drawn: usize,
    terminal: bool,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self { drawn: 0, terminal: std::io::stdout().is_terminal() }
    }

    pub(super) fn say(&mut self, text: &str) {
        self.drawn = 0;
        write_out(&format!("{text}\n"));
    }

    /// The live table; on a terminal it replaces the last one.
    pub(super) fn live(&mut self, published: usize, look: &Look, books: &Books) {
        if !self.terminal {
            write_out(&format!(
                "  published {published:>5}  applied {:>5}  duplicates {:>4}  stale {:>3}  skipped {:>3}  retrying {:>2}  dead {:>3}  outbox {:>4}  confirmed {:>5}\n",
                books.applied,
                books.duplicates,
                books.stale,
                books.skipped,
                books.retrying,
                books.dead,
                look.counts.pending,
                books.confirmed
            ));
            return;
        }
        let rows = [
            ("published", published as i64),
            ("waiting in queues", look.waiting),
            ("applied", books.applied),
            ("duplicates", books.duplicates),
            ("stale", books.stale),
            ("skipped", books.skipped),
            ("retrying", books.retrying),
            ("dead", books.dead),
            ("outbox, unpublished", look.counts.pending),
            ("confirmed downstream", books.confirmed),
        ];
        let up = if self.drawn > 0 { format!("\x1b[{}A", self.drawn) } else { String::new() };
        let lines: String = rows.iter().map(|(name, n)| format!("\x1b[2K  {name:<22}{n:>7}\n")).collect();
        write_out(&format!("{up}{lines}"));
        self.drawn = rows.len();
    }

    pub(super) fn summary(&mut self, books: &Books) {
        let verdict = |holds: bool| if holds { "adds up" } else { "DOES NOT ADD UP" };
        self.say(&format!(
            "\nSummary\n  received {} = applied {} + duplicates {} + stale {} + skipped {} + retrying {} + dead {} = {}   {}",
            books.received, books.applied, books.duplicates, books.stale, books.skipped, books.retrying, books.dead,
            books.accounted(), verdict(books.received == books.accounted())
        ));
        self.say(&format!(
            "  outbox rows {} = confirmed downstream {} = received by the sibling {}   {}",
            books.outbox_rows,
            books.confirmed,
            books.sibling,
            verdict(books.outbox_rows == books.confirmed && books.confirmed == books.sibling)
        ));
    }

    pub(super) fn groups(&mut self, groups: &[Group]) {
        self.say("\nWhat failed for good (onceflow dlq groups)");
        for group in groups {
            self.say(&format!(
                "  {:>3} × {:<8} {:<28} {:<9} {}",
                group.count, group.consumer, group.event_type, group.stage, group.reason_code
            ));
            self.say(&format!("        {}", shortened(&group.example)));
        }
    }
}

const LINE: usize = 150;

fn shortened(text: &str) -> String {
    let one_line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if one_line.chars().count() <= LINE {
        return one_line;
    }
    let cut: String = one_line.chars().take(LINE).collect();
    format!("{cut}…")
}

fn write_out(text: &str) {
    let mut out = std::io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        tracing::debug!("nobody reads our output any more");
    }
}

//! Which failures are alike. Pure.
//!
//! Two failures are alike when consumer, event type, stage and reason code are the same, and the error texts too, once everything is
//! taken out of them that differs from one event to the next: ids, numbers, times, quoted values, addresses. A word counts as such
//! when it holds a digit, is long hex, stands after `=`, or is too long to be a word; what follows it without a space goes with it.

use std::fmt::Write as _;

use aws_lc_rs::digest::{Context, SHA256};

/// Longest text that is kept, in bytes. What differs only behind it is alike.
const MAX_TEXT: usize = 240;
/// Longer ones are tokens, not words.
const LONGEST_WORD: usize = 24;
/// Hex from this length on is an id also where it has no digit.
const SHORTEST_HEX: usize = 8;
/// Most of a run of spaces and punctuation that is kept.
const MAX_GAP: usize = 12;
/// Bytes of the hash that name a group.
const ID_BYTES: usize = 8;
/// Stands for whatever was taken out.
const VALUE: char = '…';
/// Join parts of one token: `user/42`, `2026-01-31T08:00:00`, `li@example.org`.
const JOINERS: &str = "_-.:/@+=%~\\&?";
/// Between two values they make a list, a time or an address, which is one value.
const SOFT: &str = " -.:,;/_+";
/// Before a value they belong to it.
const SIGNS: &str = "+-#$~";
/// Words with a digit that are words all the same.
const WORDS: [&str; 12] =
    ["base64", "int32", "int64", "uint32", "uint64", "sha256", "utf8", "utf16", "ipv4", "ipv6", "e164", "rfc3339"];
/// The quoted name behind these is a part of the schema, not of an event: PostgreSQL quotes so.
const NAMING: [&str; 6] = ["constraint", "column", "relation", "table", "index", "function"];
/// Quotes and what closes them. A plain apostrophe is told apart by where it stands.
const QUOTES: [(char, char); 4] = [('"', '"'), ('“', '”'), ('«', '»'), ('「', '」')];

/// What alike failures share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    /// Sixteen hex digits.
    pub(crate) group_id: String,
    /// The error text without what differs.
    pub(crate) text: String,
}

/// Where a failure happened, in the terms that groups are shown by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) consumer: &'a str,
    pub(crate) event_type: &'a str,
    pub(crate) stage: &'a str,
    pub(crate) code: &'a str,
}

impl Fingerprint {
    /// Of a failure with its errors, outermost first.
    pub(crate) fn of(place: Place<'_>, errors: &[String]) -> Self {
        let mut text = Pattern::default();
        for error in errors {
            text.read(error);
            text.gap(':');
            text.gap(' ');
        }
        let text = text.kept;
        let mut hash = Context::new(&SHA256);
        for part in [place.consumer, place.event_type, place.stage, place.code, &text] {
            // With its length, so that no two failures share their bytes.
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        let group_id = hash.finish().as_ref().iter().take(ID_BYTES).fold(String::new(), |mut id, byte| {
            // Writing to a string can't fail.
            let _written = write!(id, "{byte:02x}");
            id
        });
        Self { group_id, text }
    }
}

/// The text as far as it was read.
#[derive(Debug, Default)]
struct Pattern {
    kept: String,
    /// Spaces and punctuation since the last word or value; kept only when something follows.
    gap: String,
    is_full: bool,
}

impl Pattern {
    /// Each byte is looked at a bounded number of times.
    fn read(&mut self, text: &str) {
        let mut rest = text;
        let mut before = ' ';
        let mut apostrophes = true;
        while let Some(first) = rest.chars().next().filter(|_| !self.is_full) {
            let taken = match first {
                '\'' | '‘' if apostrophes && !before.is_alphanumeric() => {
                    let quoted = in_apostrophes(rest);
                    // None from here on means none later: nobody looks for one again.
                    apostrophes = quoted.is_some();
                    quoted.map(|quoted| self.quoted(quoted))
                }
                _ => QUOTES
                    .iter()
                    .find(|(open, _)| *open == first)
                    .map(|(_, close)| self.quoted(in_quotes(rest, *close))),
            };
            let taken = taken.unwrap_or_else(|| self.unquoted(first, rest));
            before = rest[..taken].chars().next_back().unwrap_or(' ');
            rest = &rest[taken..];
        }
    }

    fn unquoted(&mut self, first: char, rest: &str) -> usize {
        if first.is_ascii_alphanumeric() {
            let token = token(rest);
            self.token(token);
            return token.len();
        }
        match first {
            VALUE => self.value(),
            c if c.is_numeric() => self.value(),
            // Letters of other scripts are not always separated by spaces: each stands for itself.
            c if c.is_alphabetic() => self.word(&rest[..c.len_utf8()]),
            c => self.gap(c),
        }
        first.len_utf8()
    }

    /// Takes a quoted text with its quotes; returns its length.
    fn quoted(&mut self, quoted: &str) -> usize {
        let name = quoted.trim_matches('"');
        let names = self.gap == " " && NAMING.iter().any(|word| self.kept.ends_with(word));
        if names && !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
            self.word(name);
        } else {
            self.value();
        }
        quoted.len()
    }

    fn token(&mut self, token: &str) {
        if token.contains('@') {
            return self.value();
        }
        let mut rest = token;
        while let Some(first) = rest.chars().next() {
            let end = rest.find(|c: char| JOINERS.contains(c)).unwrap_or(rest.len());
            let (part, behind) = rest.split_at(end);
            if part.is_empty() {
                self.gap(first);
                rest = &rest[first.len_utf8()..];
                if first == '=' && !rest.is_empty() {
                    return self.value();
                }
            } else if differs(part) {
                return self.value();
            } else {
                self.word(part);
                rest = behind;
            }
        }
    }

    fn gap(&mut self, c: char) {
        let c = if c.is_whitespace() || c.is_control() { ' ' } else { c };
        if self.gap.len() < MAX_GAP && !(c == ' ' && self.gap.ends_with(' ')) {
            self.gap.push(c);
        }
    }

    fn word(&mut self, word: &str) {
        let gap = if self.kept.is_empty() { self.gap.trim_start() } else { &self.gap };
        if self.kept.len() + gap.len() + word.len() > MAX_TEXT {
            self.is_full = true;
            return;
        }
        let addition = format!("{gap}{word}");
        self.kept.push_str(&addition);
        self.gap.clear();
    }

    fn value(&mut self) {
        if self.kept.ends_with(VALUE) && self.gap.chars().all(|c| SOFT.contains(c)) {
            self.gap.clear();
            return;
        }
        // Between a word and a value it is a joiner: `order-4711`.
        while self.gap.len() > 1 || self.kept.is_empty() {
            match self.gap.pop() {
                Some(c) if SIGNS.contains(c) => {}
                Some(c) => {
                    self.gap.push(c);
                    break;
                }
                None => break,
            }
        }
        let mut bytes = [0; 4];
        self.word(VALUE.encode_utf8(&mut bytes));
    }
}

/// The token that a text begins with, without the punctuation of the sentence at its end.
fn token(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && !JOINERS.contains(c)).unwrap_or(text.len());
    text[..end].trim_end_matches(|c| JOINERS.contains(c))
}

fn differs(part: &str) -> bool {
    let has_digit = part.bytes().any(|b| b.is_ascii_digit());
    let is_word = has_digit && WORDS.iter().any(|word| word.eq_ignore_ascii_case(part));
    let is_hex = part.len() >= SHORTEST_HEX && part.bytes().all(|b| b.is_ascii_hexdigit());
    has_digit && !is_word || is_hex || part.len() > LONGEST_WORD
}

/// A text in quotes, with them. Where nothing closes it, it was cut off, and all the rest is its.
fn in_quotes(text: &str, close: char) -> &str {
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        if c == close {
            return &text[..at + c.len_utf8()];
        }
        if c == '\\' {
            chars.next();
        }
    }
    text
}

/// A text in apostrophes, with them: the closing one stands at the end of a word.
fn in_apostrophes(text: &str) -> Option<&str> {
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        let ends = chars.peek().is_none_or(|(_, next)| !next.is_alphanumeric());
        if matches!(c, '\'' | '’') && ends {
            return Some(&text[..at + c.len_utf8()]);
        }
    }
    None
}

#[cfg(test)]
#[path = "fingerprint_tests.rs"]
mod tests;

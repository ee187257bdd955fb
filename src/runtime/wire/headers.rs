//! Headers as data: how large they are, and what of them may be stored or published again.

use serde_json::Value;

use crate::message::{HeaderMap, Headers, Seen};

/// Tables in tables: the broker's own `x-death` needs three levels.
const MAX_DEPTH: usize = 8;
/// All of it together with the properties stays far below the smallest usual frame of 128 KiB.
const MAX_KEPT_BYTES: usize = 16 * 1024;
const MAX_KEPT: usize = 64;
const MAX_NAME_BYTES: usize = 128;
const MAX_TEXT_BYTES: usize = 1024;

/// Keeps what may be stored and published again.
///
/// The broker's `x-` headers go: a copied `x-death` makes it see a dead-letter cycle and discard the message without a
/// word. Long texts are cut, nested values too large to keep are left out, and our own and the CloudEvents headers
/// are kept first, so that the rest always fits one frame.
pub fn sanitize_headers(headers: &Headers) -> Headers {
    let ours = |name: &str| name.starts_with("onceflow-") || super::attributes::known_name(name).is_some();
    let (first, then): (Vec<_>, Vec<_>) = headers.iter().partition(|(name, _)| ours(name));
    let mut kept = HeaderMap::new();
    let mut room = MAX_KEPT_BYTES;
    for (name, value) in first.into_iter().chain(then) {
        if is_brokers(name) || name.len() > MAX_NAME_BYTES || kept.len() == MAX_KEPT {
            continue;
        }
        let Some(value) = bounded(value) else { continue };
        let Some(size) = size_of(&value, MAX_DEPTH).map(|s| s + name.len()).filter(|s| *s <= room) else { continue };
        room -= size;
        kept.insert(text_without_nul(name), value);
    }
    kept.into()
}

/// A text that PostgreSQL can store as `text` and in `jsonb`: NUL becomes the replacement character.
pub fn text_without_nul(text: &str) -> String {
    text.replace('\0', "\u{FFFD}")
}

/// Whether headers need more than `most` bytes, or are nested so deeply that counting them is not worth it.
pub(super) fn exceed(headers: &Headers, most: usize) -> bool {
    let mut total = 0usize;
    headers.look().any(|(name, value)| {
        let size = match value {
            Seen::Text(text) => Some(size_of_text(text)),
            Seen::Other(value) => size_of(&value, MAX_DEPTH),
        };
        let Some(size) = size else { return true };
        total = total.saturating_add(name.len()).saturating_add(size);
        total > most
    })
}

/// At most `most` bytes of a text, cut between characters.
pub(super) fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

fn is_brokers(name: &str) -> bool {
    name.get(..2).is_some_and(|start| start.eq_ignore_ascii_case("x-"))
}

fn bounded(value: &Value) -> Option<Value> {
    match value {
        Value::String(text) => Some(Value::String(cut(&text_without_nul(text), MAX_TEXT_BYTES).to_owned())),
        Value::Array(_) | Value::Object(_) => {
            size_of(value, MAX_DEPTH).filter(|size| *size <= MAX_TEXT_BYTES)?;
            Some(without_nul(value))
        }
        scalar => Some(scalar.clone()),
    }
}

/// Only called on values whose depth was checked.
fn without_nul(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(text_without_nul(text)),
        Value::Array(items) => Value::Array(items.iter().map(without_nul).collect()),
        Value::Object(fields) => {
            Value::Object(fields.iter().map(|(k, v)| (text_without_nul(k), without_nul(v))).collect())
        }
        scalar => scalar.clone(),
    }
}

/// An AMQP value's type octet and length.
const OVERHEAD: usize = 5;

fn size_of_text(text: &str) -> usize {
    text.len() + OVERHEAD
}

/// Bytes of a value, roughly as on the wire; `None` when it is nested too deeply.
fn size_of(value: &Value, depth_left: usize) -> Option<usize> {
    let deeper = depth_left.checked_sub(1);
    let inner = match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(|v| size_of(v, deeper?)).sum::<Option<usize>>()?,
        Value::Object(fields) => {
            fields.iter().map(|(k, v)| Some(k.len() + size_of(v, deeper?)?)).sum::<Option<usize>>()?
        }
    };
    Some(inner + OVERHEAD)
}

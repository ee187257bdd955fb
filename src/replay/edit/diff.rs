//! What differs between a message and its edited copy, field by field, as far as people can read it.

use aws_lc_rs::digest::{SHA256, digest};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Most fields that are listed.
pub const MAX_FIELDS: usize = 200;
/// Longest value that is shown, in bytes of JSON; longer ones are cut and shown as text.
const MAX_VALUE: usize = 500;

/// What differs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Diff {
    /// The fields that differ, `payload.a.b` or `headers.name`; at most [`MAX_FIELDS`].
    pub fields: Vec<FieldChange>,
    /// There are more.
    pub cut: bool,
    /// Where the bytes differ and no field does: spaces, the order of fields, the digits of a number.
    pub only_in_form: bool,
    /// Size of the payload before.
    pub bytes_before: usize,
    /// Size of the payload after.
    pub bytes_after: usize,
    /// SHA-256 of the payload before.
    pub sha256_before: String,
    /// SHA-256 of the payload after.
    pub sha256_after: String,
}

/// A field that differs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FieldChange {
    /// `payload.lines.0.qty`, `headers.region`; `payload` alone where it is no JSON on one of the sides.
    pub path: String,
    /// What stood there; absent where nothing did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    /// What stands there; absent where nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
}

impl Diff {
    /// Headers and payload before and after.
    pub(super) fn between(before: (&Value, &[u8]), after: (&Value, &[u8])) -> Self {
        let mut found = Vec::new();
        compare("headers", Some(before.0), Some(after.0), &mut found);
        let headers = found.len();
        if before.1 != after.1 {
            let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok();
            match (json(before.1), json(after.1)) {
                (Some(old), Some(new)) => compare("payload", Some(&old), Some(&new), &mut found),
                _ => note("payload", Some(&text(before.1)), Some(&text(after.1)), &mut found),
            }
        }
        let only_in_form = before.1 != after.1 && found.len() == headers;
        let cut = found.len() > MAX_FIELDS;
        found.truncate(MAX_FIELDS);
        Self {
            fields: found,
            cut,
            only_in_form,
            bytes_before: before.1.len(),
            bytes_after: after.1.len(),
            sha256_before: hash(before.1),
            sha256_after: hash(after.1),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.fields.is_empty() && !self.only_in_form
    }
}

fn compare(path: &str, before: Option<&Value>, after: Option<&Value>, found: &mut Vec<FieldChange>) {
    if before == after || found.len() > MAX_FIELDS {
        return;
    }
    match (before, after) {
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            let added = new.keys().filter(|name| !old.contains_key(*name));
            for name in old.keys().chain(added) {
                compare(&format!("{path}.{name}"), old.get(name), new.get(name), found);
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) => {
            for place in 0..old.len().max(new.len()) {
                compare(&format!("{path}.{place}"), old.get(place), new.get(place), found);
            }
        }
        _ => note(path, before, after, found),
    }
}

fn note(path: &str, before: Option<&Value>, after: Option<&Value>, found: &mut Vec<FieldChange>) {
    let path = cut(path, MAX_VALUE);
    found.push(FieldChange { path, before: before.map(shown), after: after.map(shown) });
}

fn shown(value: &Value) -> Value {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if text.len() <= MAX_VALUE { value.clone() } else { Value::from(cut(&text, MAX_VALUE)) }
}

/// PostgreSQL keeps no NUL in `jsonb`.
fn text(bytes: &[u8]) -> Value {
    let text = String::from_utf8_lossy(bytes.get(..MAX_VALUE * 2).unwrap_or(bytes));
    Value::from(text.replace('\0', "\u{FFFD}"))
}

fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(most)])
}

fn hash(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn paths(before: &Value, after: &Value) -> Vec<String> {
        let none = json!({});
        let diff = Diff::between((&none, before.to_string().as_bytes()), (&none, after.to_string().as_bytes()));
        diff.fields.into_iter().map(|field| field.path).collect()
    }

    #[test]
    fn a_diff_names_the_fields_that_changed_came_and_went() {
        let before = json!({ "a": { "b": 1, "c": 2 }, "lines": [1, 2], "same": true });
        let after = json!({ "a": { "b": 1, "d": 3 }, "lines": [1, 5, 6], "same": true });
        let expected = ["payload.a.c", "payload.a.d", "payload.lines.1", "payload.lines.2"];
        assert_eq!(paths(&before, &after), expected);
        assert_eq!(paths(&before, &json!([])), ["payload"], "another kind altogether");
    }

    #[test]
    fn a_difference_that_no_field_shows_is_said_to_be_one_of_form() {
        let none = json!({});
        let diff = Diff::between((&none, b"{\"a\":1}"), (&none, b"{ \"a\": 1 }"));
        assert!(diff.only_in_form && diff.fields.is_empty() && !diff.is_empty());
        assert_ne!(diff.sha256_before, diff.sha256_after);
        assert!(Diff::between((&none, b"{}"), (&none, b"{}")).is_empty());
    }

    #[test]
    fn what_is_no_json_is_compared_whole_and_every_value_is_bounded() {
        let (none, long) = (json!({}), vec![b'x'; 10_000]);
        let diff = Diff::between((&none, &long), (&none, b"{\"a\": 1}"));
        assert_eq!((diff.fields.len(), diff.fields[0].path.as_str(), diff.bytes_before), (1, "payload", 10_000));
        assert!(diff.fields[0].before.as_ref().unwrap().as_str().unwrap().len() < 600);
        let many: Vec<u32> = (0..1_000).collect();
        let diff = Diff::between((&none, b"[]"), (&none, json!(many).to_string().as_bytes()));
        assert!(diff.cut && diff.fields.len() == MAX_FIELDS);
    }

    #[test]
    fn headers_are_compared_too() {
        let (before, after) =
            (json!({ "amqp:content_type": "text/plain", "k": 1 }), json!({ "amqp:content_type": "application/json" }));
        let diff = Diff::between((&before, b"{}"), (&after, b"{}"));
        let paths: Vec<_> = diff.fields.iter().map(|field| field.path.as_str()).collect();
        assert_eq!(paths, ["headers.amqp:content_type", "headers.k"]);
    }
}

//! A dead letter's payload for people. It comes from strangers: nothing of it may steer the terminal.

use super::super::output::printable;
use crate::domains;
use crate::replay::{DeadLetter, PayloadKind};

/// What the payload is, and what it isn't shown as.
pub(super) fn description(letter: &DeadLetter) -> String {
    let content_type = letter.content_type.as_deref().unwrap_or("untyped");
    match letter.payload_kind {
        PayloadKind::Json => format!("{content_type}, JSON"),
        PayloadKind::Text => format!("{content_type}, text that is not valid JSON"),
        PayloadKind::Binary => format!("{content_type}, not text; in base64, not decoded"),
        PayloadKind::Protobuf => match message(&letter.summary.event_type) {
            Some(name) => format!("{content_type}, message {name}; in base64, not decoded"),
            None => format!("{content_type}, of a type that this build does not know; in base64, not decoded"),
        },
    }
}

/// The payload itself, line by line.
pub(super) fn lines(letter: &DeadLetter) -> String {
    if let Some(masked) = &letter.payload_masked {
        return shown(&indented(masked)) + "(masked; --unmask shows it as it is, and the audit tells that)\n";
    }
    match (&letter.payload_text, &letter.payload_base64) {
        (Some(text), _) if letter.payload_kind == PayloadKind::Json => shown(&indented(text)),
        (Some(text), _) if letter.payload_kind == PayloadKind::Protobuf => base64_of(text),
        (Some(text), _) => shown(text),
        (None, Some(base64)) => format!("{base64}\n"),
        (None, None) if letter.is_masked => {
            "(not shown: --unmask shows it, which needs the role operator; the audit tells that)\n".to_owned()
        }
        (None, None) => String::new(),
    }
}

fn shown(text: &str) -> String {
    text.lines().map(|line| printable(line) + "\n").collect()
}

/// Protobuf that happens to be text is no text.
fn base64_of(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text) + "\n"
}

/// The protobuf message of an event type that this build reads.
fn message(event_type: &str) -> Option<&'static str> {
    let consumers = domains::consumers();
    consumers.iter().flat_map(|c| c.reads()).find(|t| t.name == event_type).map(|t| t.message)
}

/// Valid JSON with other white space and nothing else changed: numbers, order and doubled keys stay as they were sent.
fn indented(json: &str) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    let mut depth = 0_usize;
    let (mut in_text, mut escaped) = (false, false);
    let mut chars = json.chars().filter(|c| !c.is_control()).peekable();
    while let Some(c) = chars.next() {
        if in_text {
            out.push(c);
            in_text = escaped || c != '"';
            escaped = !escaped && c == '\\';
            continue;
        }
        match c {
            ' ' => {}
            '{' | '[' => {
                out.push(c);
                while chars.next_if_eq(&' ').is_some() {}
                // An empty one stays on its line.
                if let Some(close) = chars.next_if(|next| matches!(next, '}' | ']')) {
                    out.push(close);
                } else {
                    depth += 1;
                    new_line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                new_line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                new_line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c => {
                in_text = c == '"';
                out.push(c);
            }
        }
    }
    out
}

fn new_line(out: &mut String, depth: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n("  ", depth.min(DEEPEST)));
}

/// Deeper lines are indented no further: a body of brackets would fill the screen with spaces.
const DEEPEST: usize = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn json_is_indented_and_otherwise_left_alone() {
        let json = r#"{"b":12345678901234567890123, "a" : [1.0,{ } ,[]],"t\"{":"x, y: [\\"}"#;
        let expected = "{\n  \"b\": 12345678901234567890123,\n  \"a\": [\n    1.0,\n    {},\n    []\n  ],\n  \"t\\\"{\": \"x, y: [\\\\\"\n}";
        assert_eq!(indented(json), expected);
    }

    #[test]
    fn the_message_of_a_known_type_is_named() {
        assert_eq!(message("org.user.upserted.v1"), Some("onceflow.org.v1.UserUpserted"));
        assert_eq!(message("org.unheard.of.v1"), None);
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..5)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_shown_says_the_same(value in json()) {
            let shown: Value = serde_json::from_str(&indented(&value.to_string())).unwrap();
            // Control characters of the upper half, which JSON does not escape, are not shown.
            prop_assert_eq!(without_controls(&shown), without_controls(&value));
        }
    }

    fn without_controls(value: &Value) -> String {
        value.to_string().chars().filter(|c| !c.is_control()).collect()
    }
}

//! Payloads for people, without what looks like a secret or a phone number: a short line for plans, which are shown to many and pasted into
//! tickets, and a whole payload for who looks at one dead letter. What can't be read can't be masked, and is not shown. It is a net, not a
//! promise: a name is nothing that can be told from other words. `onceflow dlq show --unmask` shows everything, and the audit tells that.

use serde_json::Value;

/// Longest line, in characters.
const LONGEST: usize = 300;
/// Larger payloads are not read for this.
pub(super) const MOST_BYTES: i32 = 64 * 1024;
/// Fields are secret whose names contain one of these, in lower case without `_` and `-`. Parameters of a text message may be one-time
/// passwords.
const SECRET: [&str; 14] = [
    "password",
    "passwd",
    "pwd",
    "secret",
    "token",
    "apikey",
    "authorization",
    "credential",
    "signature",
    "privatekey",
    "cvv",
    "iban",
    "cardnumber",
    "params",
];
/// Fields with numbers of people.
const PHONES: [&str; 4] = ["phone", "mobile", "msisdn", "telephone"];
/// Digits of a number that is certainly somebody's when it begins with `+`, and of one of a mobile phone in China.
const INTERNATIONAL: std::ops::RangeInclusive<usize> = 8..=15;
const MOBILE_DIGITS: usize = 11;
const MASK: &str = "****";

/// A payload in one short line; `None` where it is no JSON.
pub(super) fn line(payload: &[u8]) -> Option<String> {
    let line = whole(payload)?;
    let end = line.char_indices().nth(LONGEST).map(|(at, _)| at);
    Some(match end {
        Some(end) => format!("{}…", &line[..end]),
        None => line,
    })
}

/// A payload in one line; `None` where it is no JSON, or too large. Its fields are in the order of their names, and of two with one
/// name only the last is left.
pub(super) fn whole(payload: &[u8]) -> Option<String> {
    if !i32::try_from(payload.len()).is_ok_and(|bytes| bytes <= MOST_BYTES) {
        return None;
    }
    let mut value: Value = serde_json::from_slice(payload).ok()?;
    mask(&mut value, false);
    Some(value.to_string())
}

/// A field by itself, which stands at this path (`lines.0.phone`).
pub(super) fn field(path: &str, value: &mut Value) {
    let secret = path.split('.').any(|name| is_one_of(&SECRET, name));
    if !secret && last_name(path).is_some_and(|name| is_one_of(&PHONES, name)) {
        number(value);
    } else {
        mask(value, secret);
    }
}

/// Places in a list aside.
fn last_name(path: &str) -> Option<&str> {
    path.rsplit('.').find(|name| !name.bytes().all(|b| b.is_ascii_digit()))
}

/// Masks in place. Below a `secret` field nothing but the structure is left.
fn mask(value: &mut Value, secret: bool) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                if !secret && is_one_of(&PHONES, name) {
                    number(field);
                } else {
                    mask(field, secret || is_one_of(&SECRET, name));
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| mask(item, secret)),
        Value::Null | Value::Bool(_) => {}
        other if secret => *other = Value::from(MASK),
        Value::String(text) => *text = masked_text(text),
        Value::Number(number) => {
            let text = number.to_string();
            if is_somebodys("", &text) {
                *value = Value::from(masked_number(&text));
            }
        }
    }
}

/// Masks a number of a person, however it is written.
fn number(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(number),
        Value::Object(_) => mask(value, false),
        Value::Null => {}
        other => *other = Value::from(masked_number(&text_of(other))),
    }
}

fn is_one_of(words: &[&str], name: &str) -> bool {
    let name = name.chars().filter(|c| !matches!(c, '_' | '-')).collect::<String>().to_lowercase();
    words.iter().any(|word| name.contains(word))
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)
}

/// JSON within a text is masked like any other; what only begins like JSON can't be read.
fn masked_text(text: &str) -> String {
    if !text.trim_start().starts_with(['{', '[']) {
        return without_numbers(text);
    }
    let Ok(mut value) = serde_json::from_str::<Value>(text) else { return MASK.to_owned() };
    mask(&mut value, false);
    value.to_string()
}

/// Masks every run of digits in a text that is somebody's number.
fn without_numbers(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, from) = rest.split_at(start);
        let end = from.find(|c: char| !c.is_ascii_digit()).unwrap_or(from.len());
        let (run, after) = from.split_at(end);
        out.push_str(before);
        out.push_str(&if is_somebodys(before, run) { masked_number(run) } else { run.to_owned() });
        rest = after;
    }
    out + rest
}

fn is_somebodys(before: &str, run: &str) -> bool {
    let international = before.ends_with('+') && INTERNATIONAL.contains(&run.len());
    let mobile =
        run.len() == MOBILE_DIGITS && run.starts_with('1') && run[1..].starts_with(['3', '4', '5', '6', '7', '8', '9']);
    international || mobile
}

/// The last two digits are left, so that two numbers can be told apart.
fn masked_number(number: &str) -> String {
    let digits: Vec<char> = number.chars().filter(char::is_ascii_digit).collect();
    let last: String = digits.iter().skip(digits.len().saturating_sub(2)).collect();
    if digits.len() > MASK.len() { format!("{MASK}{last}") } else { MASK.to_owned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn shown(json: &str) -> String {
        line(json.as_bytes()).unwrap()
    }

    #[test]
    fn phone_numbers_and_secrets_are_masked_wherever_they_stand() {
        for (json, expected) in [
            (r#"{"phone":"+8613812345678"}"#, r#"{"phone":"****78"}"#),
            (r#"{"user_mobile":13812345678}"#, r#"{"user_mobile":"****78"}"#),
            (r#"{"note":"call 13812345678 now"}"#, r#"{"note":"call ****78 now"}"#),
            (r#"{"note":"or +49301234567"}"#, r#"{"note":"or +****67"}"#),
            (r#"{"n":13812345678}"#, r#"{"n":"****78"}"#),
            (r#"{"params":{"code":"4711","deep":[7,null]}}"#, r#"{"params":{"code":"****","deep":["****",null]}}"#),
            (r#"{"Access-Token":"abc","api_key":1}"#, r#"{"Access-Token":"****","api_key":"****"}"#),
            (r#"[{"password":"p"}]"#, r#"[{"password":"****"}]"#),
            (r#"{"inner":"{\"pwd\":\"p\",\"n\":1}"}"#, r#"{"inner":"{\"n\":1,\"pwd\":\"****\"}"}"#),
            (r#"{"inner":"{\"pwd\":"}"#, r#"{"inner":"****"}"#),
        ] {
            assert_eq!(shown(json), expected);
        }
    }

    #[test]
    fn ids_amounts_and_times_are_left() {
        for json in
            [r#"{"id":"u42"}"#, r#"{"amount":1999,"order":"20260102030405"}"#, r#"{"at":"2026-01-02T03:04:05Z"}"#]
        {
            assert_eq!(
                serde_json::from_str::<Value>(&shown(json)).unwrap(),
                serde_json::from_str::<Value>(json).unwrap()
            );
        }
    }

    #[test]
    fn it_is_short_and_what_is_no_json_is_not_shown() {
        assert_eq!(shown(&format!(r#"{{"a":"{}"}}"#, "ü".repeat(1_000))).chars().count(), LONGEST + 1);
        assert_eq!(line(br#"{"password": "x"#), None);
        assert_eq!(line(b"\xff"), None);
        assert_eq!(whole(&vec![b' '; 64 * 1024 + 1]), None);
    }

    #[test]
    fn a_field_by_itself_is_masked_by_where_it_stands() {
        for (path, given, expected) in [
            ("payload.user_phone", json!("13812345678"), json!("****78")),
            ("payload.phones.0", json!("0301234"), json!("****34")),
            ("payload.phones", json!(["0301234", null]), json!(["****34", null])),
            ("payload.params.code", json!(4711), json!("****")),
            ("payload.note", json!("call 13812345678"), json!("call ****78")),
            ("payload", json!("{\"password\":\"p…"), json!("****")),
            ("headers.api-key", json!("k"), json!("****")),
            ("payload.amount", json!(1999), json!(1999)),
        ] {
            let mut value = given;
            field(path, &mut value);
            assert_eq!(value, expected, "{path}");
        }
    }

    proptest! {
        #[test]
        fn no_mobile_number_comes_through_a_text(before in "[a-z +:]{0,9}", rest in "[0-9]{9}", after in "[a-z :]{0,9}") {
            let number = format!("13{rest}");
            let json = json!({ "text": format!("{before}{number}{after}"), "phone": number });
            prop_assert!(!shown(&json.to_string()).contains(&number));
        }
    }
}

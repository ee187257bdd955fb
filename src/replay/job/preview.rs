//! A payload in one short line, for plans. Plans are shown to many and pasted into tickets, so what looks like a secret or a phone number
//! is masked; `onceflow dlq show` shows everything to who asks for one dead letter.

use serde_json::Value;

/// Longest line, in characters.
const LONGEST: usize = 300;
/// Larger payloads are not read for a plan.
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

/// The line; `None` where the payload is no JSON: what can't be read can't be masked.
pub(super) fn preview(payload: &[u8]) -> Option<String> {
    let mut value: Value = serde_json::from_slice(payload).ok()?;
    mask(&mut value, false);
    let line = value.to_string();
    let end = line.char_indices().nth(LONGEST).map(|(at, _)| at);
    Some(match end {
        Some(end) => format!("{}…", &line[..end]),
        None => line,
    })
}

/// Masks in place. Below a `secret` field nothing but the structure is left.
fn mask(value: &mut Value, secret: bool) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                let name: String = name.chars().filter(|c| !matches!(c, '_' | '-')).collect::<String>().to_lowercase();
                if PHONES.iter().any(|phone| name.contains(phone)) && !secret && !field.is_object() && !field.is_array()
                {
                    *field = Value::from(masked_number(&text_of(field)));
                    continue;
                }
                mask(field, secret || SECRET.iter().any(|word| name.contains(word)));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| mask(item, secret)),
        Value::Null | Value::Bool(_) => {}
        other if secret => *other = Value::from(MASK),
        Value::String(text) => *text = without_numbers(text),
        Value::Number(number) => {
            let text = number.to_string();
            if is_somebodys("", &text) {
                *value = Value::from(masked_number(&text));
            }
        }
    }
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)
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

    use super::*;

    fn shown(json: &str) -> String {
        preview(json.as_bytes()).unwrap()
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
        assert_eq!(preview(br#"{"password": "x"#), None);
        assert_eq!(preview(b"\xff"), None);
    }

    proptest! {
        #[test]
        fn no_mobile_number_comes_through_a_text(before in "[a-z +:]{0,9}", rest in "[0-9]{9}", after in "[a-z :]{0,9}") {
            let number = format!("13{rest}");
            let json = serde_json::json!({ "text": format!("{before}{number}{after}"), "phone": number });
            prop_assert!(!shown(&json.to_string()).contains(&number));
        }
    }
}

//! By what a person is known, and whether a message names them. Too much is worse than too little here, as what is found is erased: a
//! number counts only whole, an id only where an id of a user is meant.

use memchr::memmem;

/// Digits of a number in E.164.
const DIGITS: std::ops::RangeInclusive<usize> = 8..=15;
/// Numbers of this country are also written without its code.
const HOME: &str = "86";
/// Digits of a mobile number there.
const HOME_DIGITS: usize = 11;
/// Most signs between two digits of one number.
const MOST_BETWEEN: usize = 3;
/// Shortest text that is looked for, in bytes: shorter ones are found in everything. Two Chinese characters are a name.
const SHORTEST_TEXT: usize = 5;
/// Names of fields that hold the id of a user, in lower case without `_` and `-`.
const USER_FIELDS: [&str; 6] = ["userid", "managerid", "managerids", "ownerid", "openid", "unionid"];

/// Whom one looks for: everything that matches any of the marks.
#[derive(Clone)]
pub struct Person {
    tenant: String,
    user: Option<String>,
    number: Option<Number>,
    text: Option<Vec<Vec<u8>>>,
}

/// Why nobody can be looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PersonError {
    /// Nothing is known of the person.
    #[error("say who: a user's id, a phone number or a text such as a mail address")]
    Nobody,
    /// The number can't be compared with others.
    #[error("the phone number: give it with its country, such as +8613800138000")]
    Number,
    /// The text is in too many messages.
    #[error(
        "the text: at least {SHORTEST_TEXT} letters, or two Chinese ones: a shorter one is found in what has nothing to do with the person"
    )]
    Text,
    /// An id is empty, or no printable text.
    #[error("the user's id: printable text of at most 200 bytes")]
    User,
}

/// A message or a row, as far as it may name a person.
pub(super) struct Text {
    pub(super) tenant: String,
    pub(super) event_type: String,
    /// Subject and ordering key.
    pub(super) names: Vec<String>,
    /// Payloads, headers and what else there is.
    pub(super) parts: Vec<Vec<u8>>,
}

/// A number, as the digits by which it is written.
#[derive(Clone)]
struct Number {
    /// With the country, with `00` before it, and at home without it.
    forms: Vec<String>,
}

/// Without the marks: they are personal data.
impl std::fmt::Debug for Person {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Person").finish_non_exhaustive()
    }
}

impl Person {
    /// A person of a tenant, by the id of a user, a phone number in international form, or any text.
    ///
    /// # Errors
    /// A mark is missing or can't be looked for.
    pub fn new(tenant: &str, user: Option<&str>, phone: Option<&str>, text: Option<&str>) -> Result<Self, PersonError> {
        if user.is_none() && phone.is_none() && text.is_none() {
            return Err(PersonError::Nobody);
        }
        if user.is_some_and(|id| id.is_empty() || id.len() > 200 || id.chars().any(char::is_control)) {
            return Err(PersonError::User);
        }
        let number = phone.map(|phone| Number::read(phone).ok_or(PersonError::Number)).transpose()?;
        let text = text.map(|text| ways_to_write(text).ok_or(PersonError::Text)).transpose()?;
        Ok(Self { tenant: tenant.to_owned(), user: user.map(str::to_owned), number, text })
    }

    pub(super) fn tenant(&self) -> &str {
        &self.tenant
    }

    pub(super) fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// In E.164 first, then the digits by which it is written.
    pub(super) fn number_forms(&self) -> Option<Vec<String>> {
        let number = self.number.as_ref()?;
        let e164 = format!("+{}", number.forms.first()?);
        Some(std::iter::once(e164).chain(number.forms.iter().cloned()).collect())
    }

    /// For the audit, which must not keep what was erased.
    pub(super) fn masked(&self) -> String {
        let number = self.number.as_ref().and_then(|number| number.forms.first());
        let number = number.map(|digits| format!("number ****{}", &digits[digits.len() - 2..]));
        let user = self.user.as_ref().map(|id| format!("user {id}"));
        let text = self.text.as_ref().map(|_| "a text".to_owned());
        [user, number, text].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    /// Whether it names the person.
    pub(super) fn is_in(&self, text: &Text) -> bool {
        text.tenant == self.tenant
            && (self.user.as_ref().is_some_and(|id| names_user(text, id))
                || self.number.as_ref().is_some_and(|number| text.all().any(|part| number.is_in(part)))
                || self.text.as_ref().is_some_and(|ways| text.all().any(|part| says(part, ways))))
    }
}

impl Text {
    fn all(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().map(Vec::as_slice).chain(self.names.iter().map(String::as_bytes))
    }
}

impl Number {
    fn read(text: &str) -> Option<Self> {
        let compact: String = text.chars().filter(|c| !matches!(c, ' ' | '-' | '(' | ')' | '.')).collect();
        let digits = compact.strip_prefix('+').or_else(|| compact.strip_prefix("00"))?;
        let shaped =
            DIGITS.contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
        if !shaped {
            return None;
        }
        let home = digits.strip_prefix(HOME).filter(|national| national.len() == HOME_DIGITS);
        let forms = [Some(digits.to_owned()), Some(format!("00{digits}")), home.map(str::to_owned)];
        Some(Self { forms: forms.into_iter().flatten().collect() })
    }

    /// Whether it stands there, whole.
    fn is_in(&self, bytes: &[u8]) -> bool {
        let begins = |at: usize| bytes[at].is_ascii_digit() && (at == 0 || !bytes[at - 1].is_ascii_digit());
        (0..bytes.len()).filter(|at| begins(*at)).any(|at| self.forms.iter().any(|form| stands_at(bytes, at, form)))
    }
}

/// Whether these digits stand there, with at most a few signs between two of them.
fn stands_at(bytes: &[u8], start: usize, digits: &str) -> bool {
    let mut at = start;
    for (n, digit) in digits.bytes().enumerate() {
        let between =
            bytes[at.min(bytes.len())..].iter().take_while(|b| matches!(b, b' ' | b'-' | b'(' | b')' | b'.')).count();
        if n > 0 && between <= MOST_BETWEEN {
            at += between;
        }
        if bytes.get(at) != Some(&digit) {
            return false;
        }
        at += 1;
    }
    !bytes.get(at).is_some_and(u8::is_ascii_digit) || has_length_before(bytes, start, at - start)
}

/// In protobuf a text follows its length, and anything may follow it.
fn has_length_before(bytes: &[u8], start: usize, length: usize) -> bool {
    start.checked_sub(1).is_some_and(|before| usize::from(bytes[before]) == length)
}

fn names_user(text: &Text, id: &str) -> bool {
    let of_users = text.event_type.split('.').any(|word| word == "user" || word == "membership");
    let mut names = text.names.iter().map(|name| name.split('/').collect::<Vec<_>>());
    let named = |segments: Vec<&str>| match segments[..] {
        [only] => of_users && only == id,
        _ => segments.windows(2).any(|pair| pair[1] == id && (of_users || pair[0] == "user" || pair[0] == "users")),
    };
    names.any(named) || text.parts.iter().any(|part| has_user(part, id, of_users))
}

/// As the value of a field for a user's id, or in protobuf as a text of its own.
fn has_user(bytes: &[u8], id: &str, of_users: bool) -> bool {
    let quoted = serde_json::Value::from(id).to_string();
    let in_json = memmem::find_iter(bytes, &quoted).any(|at| {
        field_before(&bytes[..at])
            .is_some_and(|field| USER_FIELDS.contains(&field.as_str()) || of_users && field == "id")
    });
    in_json || of_users && memmem::find_iter(bytes, id).any(|at| has_length_before(bytes, at, id.len()))
}

/// The name of the JSON field whose value begins after these bytes, in lower case without `_` and `-`.
fn field_before(bytes: &[u8]) -> Option<String> {
    let before = bytes.trim_ascii_end();
    // The first of a list of values.
    let before = before.strip_suffix(b"[").unwrap_or(before).trim_ascii_end();
    let before = before.strip_suffix(b":")?.trim_ascii_end().strip_suffix(b"\"")?;
    let begins = memchr::memrchr(b'"', before)? + 1;
    let name = std::str::from_utf8(&before[begins..]).ok()?;
    Some(name.chars().filter(|c| !matches!(c, '_' | '-')).map(|c| c.to_ascii_lowercase()).collect())
}

/// As it is, and as JSON may write it; in lower case.
fn ways_to_write(text: &str) -> Option<Vec<Vec<u8>>> {
    let text = text.trim();
    if text.len() < SHORTEST_TEXT || text.chars().any(char::is_control) {
        return None;
    }
    let quoted = serde_json::Value::from(text).to_string();
    let quoted = quoted[1..quoted.len() - 1].to_owned();
    let escaped = quoted.chars().map(|c| if c.is_ascii() { c.to_string() } else { escape(c) }).collect();
    let mut ways: Vec<Vec<u8>> =
        [text.to_owned(), quoted, escaped].iter().map(|way: &String| way.to_ascii_lowercase().into_bytes()).collect();
    ways.dedup();
    Some(ways)
}

fn escape(c: char) -> String {
    c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect()
}

fn says(bytes: &[u8], ways: &[Vec<u8>]) -> bool {
    let lower = bytes.to_ascii_lowercase();
    ways.iter().any(|way| memmem::find(&lower, way).is_some())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(event_type: &str, payload: &str) -> Text {
        Text { tenant: "t".into(), event_type: event_type.into(), names: Vec::new(), parts: vec![payload.into()] }
    }

    fn by_phone(phone: &str) -> Person {
        Person::new("t", None, Some(phone), None).unwrap()
    }

    fn by_user(id: &str) -> Person {
        Person::new("t", Some(id), None, None).unwrap()
    }

    #[test]
    fn a_number_is_found_in_every_way_to_write_it_s7_17() {
        let person = by_phone("+86 138-0013-8000");
        for written in [
            "+8613800138000",
            "13800138000",
            "008613800138000",
            "138 0013 8000",
            "+86 (138) 0013-8000",
            "call 5 13800138000, please",
        ] {
            assert!(person.is_in(&message("sms.requested.v1", &format!(r#"{{"phone":"{written}"}}"#))), "{written}");
        }
        assert!(person.is_in(&message("x", r#"{"phone":13800138000}"#)), "as a number");
        assert!(person.is_in(&message("x", "\u{12}\u{b}138001380001")), "in protobuf, before a tag that is a digit");
    }

    #[test]
    fn another_number_is_not_taken_for_it_s7_17() {
        let person = by_phone("+8613800138000");
        for other in ["13800138001", "113800138000", "138001380001", "1380013800", "1-3-8", ""] {
            assert!(!person.is_in(&message("sms.requested.v1", &format!(r#"{{"phone":"{other}"}}"#))), "{other}");
        }
        assert!(!by_phone("+442079460958").is_in(&message("x", r#"{"order":"2079460958"}"#)));
        let elsewhere = Text { tenant: "other".into(), ..message("x", "13800138000") };
        assert!(!person.is_in(&elsewhere), "of another tenant");
    }

    #[test]
    fn an_id_counts_only_where_a_user_is_meant_s7_17() {
        let person = by_user("7");
        for payload in [r#"{"directory":"d","id":"7"}"#, r#"{"id" : "7"}"#] {
            assert!(person.is_in(&message("org.user.upserted.v1", payload)), "{payload}");
            assert!(!person.is_in(&message("org.department.upserted.v1", payload)), "{payload}");
        }
        for payload in [r#"{"userId":"7"}"#, r#"{"user_id":"7","departmentId":"9"}"#, r#"{"manager-ids":["7"]}"#] {
            assert!(person.is_in(&message("whatever.v1", payload)), "{payload}");
        }
        for payload in [r#"{"id":"71"}"#, r#"{"id":"9","version":"7"}"#, r#"{"departmentId":"7"}"#, r#"{"id":"a7"}"#] {
            assert!(!person.is_in(&message("org.user.upserted.v1", payload)), "{payload}");
        }
        let broken = message("org.user.upserted.v1", r#"{"id":"7","name":"#);
        assert!(person.is_in(&broken), "in a payload that is no JSON");
        assert!(by_user("emp-7").is_in(&message("org.user.upserted.v1", "\n\u{1}d\u{12}\u{5}emp-7")), "in protobuf");
        assert!(!by_user("emp-7").is_in(&message("org.user.upserted.v1", "\n\u{1}d\u{12}\u{6}emp-71")));
    }

    #[test]
    fn subject_and_key_name_a_user_s7_17() {
        let named = |event_type: &str, name: &str| Text { names: vec![name.into()], ..message(event_type, "broken") };
        assert!(by_user("7").is_in(&named("org.user.upserted.v1", "7")));
        assert!(by_user("7").is_in(&named("org.user.upserted.v1", "dingtalk/7")));
        assert!(by_user("7").is_in(&named("whatever.v1", "user/7")));
        assert!(!by_user("7").is_in(&named("org.department.upserted.v1", "7")));
        assert!(!by_user("7").is_in(&named("order.placed.v1", "order/7")));
    }

    #[test]
    fn a_text_is_found_in_any_case_and_escaped_s7_17() {
        let by_text = |text: &str| Person::new("t", None, None, Some(text)).unwrap();
        assert!(by_text("Li@Example.com").is_in(&message("x", r#"{"mail":"li@example.COM"}"#)));
        assert!(by_text("王小明").is_in(&message("x", r#"{"name":"王小明"}"#)));
        assert!(by_text("王小明").is_in(&message("x", r#"{"name":"\u738B\u5c0f\u660e"}"#)));
        assert!(!by_text("王小明").is_in(&message("x", r#"{"name":"王小红"}"#)));
    }

    #[test]
    fn what_can_not_be_looked_for_is_refused() {
        let refused = |user, phone, text| Person::new("t", user, phone, text).unwrap_err();
        assert_eq!(refused(None, None, None), PersonError::Nobody);
        for phone in ["13800138000", "+12", "+86138x0138000", "+0123456789", ""] {
            assert_eq!(refused(None, Some(phone), None), PersonError::Number, "{phone}");
        }
        assert_eq!(refused(None, None, Some("li")), PersonError::Text);
        assert_eq!(refused(Some(""), None, None), PersonError::User);
        assert!(Person::new("t", None, None, Some("王明")).is_ok());
    }

    #[test]
    fn the_audit_gets_no_number_and_no_text_s7_17() {
        let person = Person::new("t", Some("emp-7"), Some("+8613800138000"), Some("li@example.com")).unwrap();
        assert_eq!(person.masked(), "user emp-7, number ****00, a text");
        assert!(!format!("{person:?}").contains("138"));
    }

    proptest! {
        #[test]
        fn signs_between_its_digits_hide_no_number(signs in proptest::collection::vec("[ .()-]{0,2}", 13)) {
            let written: String = "8613800138000".chars().zip(&signs).map(|(digit, sign)| format!("{digit}{sign}")).collect();
            prop_assert!(by_phone("+8613800138000").is_in(&message("x", &written)));
        }

        #[test]
        fn no_bytes_make_it_fail(bytes in proptest::collection::vec(any::<u8>(), 0..200), id in "[a-z0-9-]{1,9}") {
            let text = Text { parts: vec![bytes], ..message("org.user.upserted.v1", "") };
            let person = Person::new("t", Some(&id), Some("+8613800138000"), Some("王小明")).unwrap();
            let _ = person.is_in(&text);
        }
    }
}

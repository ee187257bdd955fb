//! The rules a payload must keep by itself. Messages name field, rule and remedy, never the value: it may be personal.

use crate::event::Rejection;

const MAX_ID: usize = 128;
const MAX_DIRECTORY: usize = 64;
const MAX_TEXT: usize = 256;
/// RFC 5321: the longest address that can be used.
const MAX_EMAIL: usize = 254;

/// The name of a directory, as operators write it: `dingtalk`, `hr-system`.
pub(super) fn directory(value: String) -> Result<String, Rejection> {
    let fits = (1..=MAX_DIRECTORY).contains(&value.len())
        && value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b));
    if fits {
        return Ok(value);
    }
    let message = format!(
        "directory: must be 1 to {MAX_DIRECTORY} of a-z, 0-9, '-', '_', '.'; send the short name of the source, e.g. \"dingtalk\""
    );
    Err(Rejection::invalid("invalid_directory", message))
}

/// An id that the directory gave.
pub(super) fn id(field: &'static str, value: String) -> Result<String, Rejection> {
    let length = value.chars().count();
    if length == 0 || length > MAX_ID || value.chars().any(char::is_control) {
        let message = format!(
            "{field}: must be 1 to {MAX_ID} characters without control characters; send the directory's own id"
        );
        return Err(Rejection::invalid("invalid_id", message));
    }
    Ok(value)
}

/// An id that may be absent.
pub(super) fn optional_id(field: &'static str, value: String) -> Result<Option<String>, Rejection> {
    if value.is_empty() { Ok(None) } else { id(field, value).map(Some) }
}

/// The source's version of an object.
pub(super) fn version(value: i64) -> Result<i64, Rejection> {
    if value > 0 {
        return Ok(value);
    }
    let message = "version: must be above 0; send a number that rises with every change of the object";
    Err(Rejection::invalid("invalid_version", message))
}

/// A name that people read.
pub(super) fn name(value: String) -> Result<String, Rejection> {
    if value.trim().is_empty() {
        return Err(Rejection::invalid("invalid_name", "name: must not be empty; send the name that people see"));
    }
    bounded("name", "invalid_name", value)
}

/// A text that may be empty.
pub(super) fn text(field: &'static str, value: String) -> Result<String, Rejection> {
    bounded(field, "invalid_text", value)
}

/// The shape of an address, or nothing. Whether it exists only a mail can tell.
pub(super) fn email(value: String) -> Result<String, Rejection> {
    if value.is_empty() || is_email(&value) {
        return Ok(value);
    }
    let message = format!(
        "email: must look like name@host.tld, at most {MAX_EMAIL} characters without spaces; correct it or leave it out"
    );
    Err(Rejection::invalid("invalid_email", message))
}

fn bounded(field: &'static str, code: &'static str, value: String) -> Result<String, Rejection> {
    // Most texts are ASCII, whose bytes are looked at many at a time.
    let (is_too_long, has_control) = if value.is_ascii() {
        (value.len() > MAX_TEXT, value.bytes().any(|byte| byte.is_ascii_control()))
    } else {
        (value.chars().count() > MAX_TEXT, value.chars().any(char::is_control))
    };
    if is_too_long || has_control {
        let message =
            format!("{field}: must be at most {MAX_TEXT} characters without control characters; shorten or clean it");
        return Err(Rejection::invalid(code, message));
    }
    Ok(value)
}

fn is_email(value: &str) -> bool {
    let Some((local, host)) = value.rsplit_once('@') else { return false };
    let labels_fit = host.split('.').all(|l| !l.is_empty() && !l.starts_with('-') && !l.ends_with('-'));
    value.len() <= MAX_EMAIL
        && (1..=64).contains(&local.len())
        && !local.contains('@')
        && host.contains('.')
        && labels_fit
        && host.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '.')
        && !value.chars().any(|c| c.is_control() || c.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::{directory, email, id, is_email, name, optional_id, text, version};

    #[test]
    fn ids_are_present_bounded_and_clean() {
        assert!(id("id", "42".into()).is_ok());
        assert!(id("id", "é".repeat(128)).is_ok());
        for bad in [String::new(), "x".repeat(129), "a\0b".into(), "a\nb".into()] {
            assert_eq!(id("id", bad).unwrap_err().code, "invalid_id");
        }
        assert_eq!(optional_id("parent_id", String::new()).unwrap(), None);
        assert!(optional_id("parent_id", "a\u{7f}".into()).is_err());
    }

    #[test]
    fn a_directory_is_a_short_plain_name() {
        assert!(directory("hr-system.2".into()).is_ok());
        for bad in ["", "DingTalk", "ding talk", "ding/talk"] {
            assert_eq!(directory(bad.into()).unwrap_err().code, "invalid_directory");
        }
    }

    #[test]
    fn a_version_is_above_zero() {
        assert!(version(1).is_ok());
        assert_eq!(version(0).unwrap_err().code, "invalid_version");
        assert!(version(-1).is_err());
    }

    #[test]
    fn names_are_present_and_texts_may_be_empty() {
        assert!(name("Sales".into()).is_ok());
        assert_eq!(name("  ".into()).unwrap_err().code, "invalid_name");
        assert_eq!(name("x".repeat(257)).unwrap_err().code, "invalid_name");
        assert!(text("title", String::new()).is_ok());
        assert_eq!(text("title", "a\u{0}".into()).unwrap_err().code, "invalid_text");
    }

    #[test]
    fn an_email_has_the_shape_of_one_or_is_absent() {
        assert!(email(String::new()).is_ok());
        for good in ["a@b.co", "first.last+tag@mail.example.com"] {
            assert!(is_email(good), "{good}");
        }
        for bad in ["a", "a@b", "@b.co", "a@", "a@.co", "a b@c.de", "a@b@c.de", "a@b..de", "a@-b.de"] {
            assert!(!is_email(bad), "{bad}");
        }
    }

    #[test]
    fn a_rejection_never_repeats_the_value() {
        let message = email("someone private@example.com".into()).unwrap_err().message;
        assert!(!message.contains("private"));
    }
}

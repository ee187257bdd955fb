//! The rules of a request. Pure: the template, and the database's clock, come in as arguments.

use std::fmt;

use jiff::{SignedDuration, Timestamp};

use super::event::{Class, SmsRequest};
use super::template::{Segments, render, segments};

/// Carriers charge every part and drop very long messages.
const MAX_SEGMENTS: u32 = 10;
/// What the big providers let a variable hold, with room to spare.
const MAX_VALUE_CHARS: usize = 64;
/// Nobody types a longer one-time password.
const MAX_OTP_VALUE_CHARS: usize = 16;

/// One approved version of a template.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Template {
    pub(crate) version: i32,
    pub(crate) signature: String,
    pub(crate) class: Class,
    pub(crate) params: Vec<String>,
    pub(crate) body: String,
}

/// What an accepted request will be sent as.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Accepted {
    pub(crate) template_version: i32,
    pub(crate) signature: String,
    pub(crate) class: Class,
    pub(crate) segments: Segments,
    pub(crate) expires_at: Timestamp,
}

/// Why a request isn't sent. The detail is for people and repeats nothing that was sent to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: &'static str,
    pub(crate) detail: String,
}

impl Refusal {
    fn new(reason: &'static str, detail: impl fmt::Display) -> Self {
        Self { reason, detail: detail.to_string() }
    }

    /// The same text went to the same number a moment ago, asked for under another id.
    pub(crate) fn duplicate_content(window: SignedDuration) -> Self {
        let seconds = window.as_secs();
        Self::new("duplicate_content", format!("the same text was accepted for this number less than {seconds} s ago"))
    }
}

/// Judges a request by its template, the newest approved one of its name.
pub(crate) fn judge(request: &SmsRequest, template: Option<&Template>, now: Timestamp) -> Result<Accepted, Refusal> {
    if request.phone.number().is_none() {
        let detail = "the phone number is neither E.164 (+8613…) nor a mobile number of the region CN";
        return Err(Refusal::new("invalid_phone", detail));
    }
    let Some(template) = template else {
        return Err(Refusal::new("unknown_template", "the tenant has no approved template of this id"));
    };
    check_identity(request, template)?;
    check_params(request, template)?;
    let segments = segments(&render(&template.signature, &template.body, request.params.expose()));
    if segments.count > MAX_SEGMENTS {
        let detail = format!("the text needs {} messages, {MAX_SEGMENTS} are allowed", segments.count);
        return Err(Refusal::new("text_too_long", detail));
    }
    let expires_at = request.expires_at.unwrap_or_else(|| now + validity(template.class));
    if expires_at <= now {
        return Err(Refusal::new("expired", "expires_at had passed when the request was read"));
    }
    Ok(Accepted {
        template_version: template.version,
        signature: template.signature.clone(),
        class: template.class,
        segments,
        expires_at,
    })
}

/// How long a message is worth sending when the request doesn't say.
fn validity(class: Class) -> SignedDuration {
    match class {
        Class::Otp => SignedDuration::from_mins(5),
        Class::Transactional | Class::Marketing => SignedDuration::from_hours(24),
    }
}

fn check_identity(request: &SmsRequest, template: &Template) -> Result<(), Refusal> {
    if request.class.is_some_and(|class| class != template.class) {
        let detail = format!("the template is approved for {} only", template.class.as_str());
        return Err(Refusal::new("class_mismatch", detail));
    }
    if request.signature.as_ref().is_some_and(|signature| *signature != template.signature) {
        let detail = format!("the template is approved with the signature {:?} only", template.signature);
        return Err(Refusal::new("signature_mismatch", detail));
    }
    Ok(())
}

fn check_params(request: &SmsRequest, template: &Template) -> Result<(), Refusal> {
    let given = request.params.expose();
    if let Some(name) = template.params.iter().find(|name| !given.contains_key(*name)) {
        return Err(Refusal::new("missing_param", format!("the template needs the parameter {name:?}")));
    }
    if given.len() > template.params.len() {
        let detail = format!("the template knows only the parameters {}", template.params.join(", "));
        return Err(Refusal::new("unknown_param", detail));
    }
    match given.iter().find(|(_, value)| !is_value(value, template.class)) {
        Some((name, _)) => Err(Refusal::new("invalid_param", invalid_param(name, template.class))),
        None => Ok(()),
    }
}

/// A one-time password is letters and digits: there is no free text in a message that people trust.
fn is_value(value: &str, class: Class) -> bool {
    match class {
        Class::Otp => {
            (1..=MAX_OTP_VALUE_CHARS).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_alphanumeric())
        }
        Class::Transactional | Class::Marketing => {
            (1..=MAX_VALUE_CHARS).contains(&value.chars().count()) && !value.chars().any(char::is_control)
        }
    }
}

fn invalid_param(name: &str, class: Class) -> String {
    match class {
        Class::Otp => format!("parameter {name:?} of an OTP is 1 to {MAX_OTP_VALUE_CHARS} letters or digits"),
        _ => format!("parameter {name:?} has 1 to {MAX_VALUE_CHARS} printable characters"),
    }
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};

    use super::{Template, judge};
    use crate::domains::sms::event::{Class, Params, SmsRequest};
    use crate::domains::sms::fingerprint;
    use crate::domains::sms::phone::GivenPhone;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn template() -> Template {
        Template {
            version: 3,
            signature: "Onceflow".into(),
            class: Class::Otp,
            params: vec!["code".into(), "minutes".into()],
            body: "${code} for ${minutes}".into(),
        }
    }

    fn request() -> SmsRequest {
        SmsRequest {
            id: "r-1".into(),
            phone: GivenPhone::read("13812345678", "CN"),
            template_id: Some("login_code".into()),
            params: Params::new([("code", "482913"), ("minutes", "5")]),
            class: None,
            expires_at: None,
            signature: None,
        }
    }

    fn reason(change: impl FnOnce(&mut SmsRequest)) -> &'static str {
        let mut request = request();
        change(&mut request);
        judge(&request, Some(&template()), NOW).unwrap_err().reason
    }

    #[test]
    fn m10_a_whole_request_is_accepted_with_its_cost_and_expiry() {
        let accepted = judge(&request(), Some(&template()), NOW).unwrap();
        assert_eq!((accepted.template_version, accepted.segments.count), (3, 1));
        assert_eq!(accepted.expires_at, NOW + SignedDuration::from_mins(5));
    }

    #[test]
    fn m10_every_broken_rule_has_its_reason() {
        assert_eq!(reason(|r| r.phone = GivenPhone::read("123", "CN")), "invalid_phone");
        assert_eq!(judge(&request(), None, NOW).unwrap_err().reason, "unknown_template");
        assert_eq!(reason(|r| r.class = Some(Class::Marketing)), "class_mismatch");
        assert_eq!(reason(|r| r.signature = Some("Bank".into())), "signature_mismatch");
        assert_eq!(reason(|r| r.params = Params::new([("code", "1")])), "missing_param");
        assert_eq!(reason(|r| r.params = Params::new([("code", "1"), ("minutes", "5"), ("x", "1")])), "unknown_param");
        assert_eq!(reason(|r| r.params = Params::new([("code", ""), ("minutes", "5")])), "invalid_param");
        assert_eq!(reason(|r| r.params = Params::new([("code", "1\u{0}"), ("minutes", "5")])), "invalid_param");
        assert_eq!(reason(|r| r.expires_at = Some(NOW)), "expired");
    }

    #[test]
    fn m10_a_one_time_password_leaves_no_room_for_free_text() {
        assert_eq!(reason(|r| r.params = Params::new([("code", "call 110"), ("minutes", "5")])), "invalid_param");
        assert_eq!(reason(|r| r.params = Params::new([("code", "http://a"), ("minutes", "5")])), "invalid_param");
        let long = "1".repeat(17);
        assert_eq!(reason(|r| r.params = Params::new([("code", long.as_str()), ("minutes", "5")])), "invalid_param");
    }

    #[test]
    fn m10_a_text_of_too_many_parts_is_refused() {
        let long = Template { body: "码".repeat(671), ..template() };
        assert_eq!(judge(&request(), Some(&long), NOW).unwrap_err().reason, "text_too_long");
    }

    #[test]
    fn no_refusal_repeats_what_was_sent() {
        let mut odd = request();
        odd.params = Params::new([("code", "1"), ("minutes", "5"), ("13812345678", "13812345678")]);
        let refusal = judge(&odd, Some(&template()), NOW).unwrap_err();
        assert!(!format!("{refusal:?}").contains("13812345678"));
    }

    #[test]
    fn m01_the_fingerprint_covers_every_part_and_no_way_of_writing_the_number() {
        let base = fingerprint::of_request(&request());
        let mut same = request();
        same.phone = GivenPhone::read("+86 138-1234-5678", "CN");
        assert_eq!(fingerprint::of_request(&same), base);
        let changes: [fn(&mut SmsRequest); 7] = [
            |r| r.phone = GivenPhone::read("13812345679", "CN"),
            |r| r.phone = GivenPhone::read("not a number", "CN"),
            |r| r.template_id = None,
            |r| r.params = Params::new([("code", "4829135"), ("minutes", "")]),
            |r| r.class = Some(Class::Otp),
            |r| r.expires_at = Some(NOW),
            |r| r.signature = Some("Onceflow".into()),
        ];
        for change in changes {
            let mut other = request();
            change(&mut other);
            assert_ne!(fingerprint::of_request(&other), base);
        }
    }

    #[test]
    fn m01_the_content_hash_sees_only_what_the_recipient_reads() {
        let mut other = request();
        other.id = "r-2".into();
        other.expires_at = Some(NOW);
        assert_eq!(fingerprint::of_content(&other), fingerprint::of_content(&request()));
        other.params = Params::new([("code", "482914"), ("minutes", "5")]);
        assert_ne!(fingerprint::of_content(&other), fingerprint::of_content(&request()));
    }
}

//! Phone numbers: read in E.164 or national form, kept in E.164, printed masked.

use std::fmt;

/// Longest text that is looked at and kept; the longest real number with all its separators is far shorter.
const MAX_GIVEN_CHARS: usize = 40;
const HIDDEN: &str = "****";

/// A number in E.164. `Debug` and `Display` mask it; only the store may ask for all of it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Phone(String);

/// A number as the producer wrote it, and what it was understood as.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct GivenPhone {
    raw: String,
    number: Option<Phone>,
}

impl Phone {
    /// Reads `+8613800138000`, `0086 138-0013-8000` or, for region `CN`, `13800138000`.
    pub(crate) fn parse(text: &str, region: &str) -> Option<Self> {
        let compact: String = text.chars().filter(|c| !matches!(c, ' ' | '-' | '(' | ')' | '.')).collect();
        let compact = compact.strip_prefix("00").map_or_else(|| compact.clone(), |rest| format!("+{rest}"));
        match compact.strip_prefix('+') {
            Some(digits) => Self::international(digits),
            None if region == "CN" && is_cn_mobile(&compact) => Some(Self(format!("+86{compact}"))),
            None => None,
        }
    }

    fn international(digits: &str) -> Option<Self> {
        let shaped =
            (8..=15).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
        // Chinese landlines receive no text messages.
        let reachable = digits.strip_prefix("86").is_none_or(is_cn_mobile);
        (shaped && reachable).then(|| Self(format!("+{digits}")))
    }

    /// The whole number, for storing and for the fingerprint.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl GivenPhone {
    pub(crate) fn read(text: &str, region: &str) -> Self {
        let raw: String = text.chars().filter(|c| *c != '\0').take(MAX_GIVEN_CHARS).collect();
        let number = if raw == text { Phone::parse(text, region) } else { None };
        Self { raw, number }
    }

    pub(crate) fn number(&self) -> Option<&Phone> {
        self.number.as_ref()
    }

    /// The text as it was given, cut to what is kept.
    pub(super) fn expose(&self) -> &str {
        &self.raw
    }
}

/// `138****8000` for Chinese numbers, otherwise the first two digits and the last two.
impl fmt::Display for Phone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.strip_prefix("+86") {
            Some(national) => write!(f, "{}{HIDDEN}{}", &national[..3], &national[7..]),
            None => write!(f, "{}{HIDDEN}{}", &self.0[..3], &self.0[self.0.len() - 2..]),
        }
    }
}

impl fmt::Debug for Phone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Nothing of a text that is no number: where its private part is can't be known.
impl fmt::Display for GivenPhone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.number {
            Some(number) => fmt::Display::fmt(number, f),
            None => f.write_str(HIDDEN),
        }
    }
}

impl fmt::Debug for GivenPhone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Eleven digits, the first two from 13 to 19.
fn is_cn_mobile(digits: &str) -> bool {
    let bytes = digits.as_bytes();
    bytes.len() == 11 && bytes[0] == b'1' && matches!(bytes[1], b'3'..=b'9') && bytes.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, proptest};

    use super::{GivenPhone, Phone};

    fn e164(text: &str, region: &str) -> Option<String> {
        Phone::parse(text, region).map(|p| p.expose().to_owned())
    }

    #[test]
    fn m09_numbers_are_normalised_to_e164() {
        for text in ["+8613800138000", "13800138000", "+86 138-0013-8000", "0086 (138) 0013.8000", "138 0013 8000"] {
            assert_eq!(e164(text, "CN").as_deref(), Some("+8613800138000"), "{text}");
        }
        assert_eq!(e164("+14155550123", "CN").as_deref(), Some("+14155550123"));
        assert_eq!(e164("+49 30 1234567", "").as_deref(), Some("+49301234567"));
    }

    #[test]
    fn m09_what_is_no_reachable_number_is_refused() {
        let refused = [
            "",
            "+",
            "00",
            "13",
            "12800138000",
            "1380013800",
            "138001380001",
            "+0123456789",
            "+1234567",
            "+1234567890123456",
            "+8601012345678",
            "+861380013800x",
            "１３８００１３８０００",
            "tel:+8613800138000",
            "+86+13800138000",
        ];
        for text in refused {
            assert_eq!(e164(text, "CN"), None, "{text}");
        }
        // A national number says nothing without its region's rules.
        assert_eq!(e164("13800138000", "US"), None);
    }

    #[test]
    fn m09_printing_masks_the_number() {
        let phone = Phone::parse("13812345678", "CN").unwrap();
        assert_eq!(format!("{phone} {phone:?}"), "138****5678 138****5678");
        assert_eq!(Phone::parse("+12345678", "CN").unwrap().to_string(), "+12****78");
        let bad = GivenPhone::read("13812345678 or 13987654321", "CN");
        assert_eq!(format!("{bad} {bad:?}"), "**** ****");
        assert_eq!(GivenPhone::read("138\u{0}1234567800", "CN").number(), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic_and_printed_without_its_middle(text in "\\PC{0,60}", number in "\\+?[0-9 -]{0,20}") {
            for given in [GivenPhone::read(&text, "CN"), GivenPhone::read(&number, "CN")] {
                let shown = format!("{given:?}");
                prop_assert!(shown.contains("****"));
                if let Some(phone) = given.number() {
                    prop_assert!(!shown.contains(&phone.expose()[1..]));
                }
            }
        }
    }
}

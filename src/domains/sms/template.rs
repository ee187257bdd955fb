//! Texts: filling a template, and how many messages a text needs. Pure.

use std::collections::BTreeMap;

/// Coding of a text on the air.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// Seven bits a character, of a small alphabet.
    Gsm7,
    /// UTF-16 code units.
    Ucs2,
}

/// What sending a text costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segments {
    pub(crate) encoding: Encoding,
    pub(crate) count: u32,
}

impl Encoding {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Gsm7 => "GSM-7",
            Self::Ucs2 => "UCS-2",
        }
    }

    /// Units of a text that fits one message, and of each part of a longer one (the rest is its header).
    fn capacity(self) -> (u32, u32) {
        match self {
            Self::Gsm7 => (160, 153),
            Self::Ucs2 => (70, 67),
        }
    }
}

/// The text that is sent: the signature in brackets, then the body with every `${name}` filled in.
///
/// Values are inserted once and not looked at again, so a value can't bring in another parameter.
pub(crate) fn render(signature: &str, body: &str, params: &BTreeMap<String, String>) -> String {
    let mut text = if signature.is_ascii() { format!("[{signature}] ") } else { format!("【{signature}】") };
    let mut rest = body;
    while let Some((before, after)) = rest.split_once("${") {
        text.push_str(before);
        match after.split_once('}') {
            Some((name, tail)) => {
                text.push_str(params.get(name).map_or("", String::as_str));
                rest = tail;
            }
            None => {
                text.push_str("${");
                rest = after;
            }
        }
    }
    text.push_str(rest);
    text
}

/// Counts the messages that a text needs. A character that takes two units is never split.
pub(crate) fn segments(text: &str) -> Segments {
    match text.chars().map(gsm7_units).collect::<Option<Vec<u32>>>() {
        Some(units) => Segments { encoding: Encoding::Gsm7, count: parts(Encoding::Gsm7, &units) },
        None => {
            let units: Vec<u32> = text.chars().map(|c| if c.len_utf16() == 2 { 2 } else { 1 }).collect();
            Segments { encoding: Encoding::Ucs2, count: parts(Encoding::Ucs2, &units) }
        }
    }
}

fn parts(encoding: Encoding, units: &[u32]) -> u32 {
    let (single, part) = encoding.capacity();
    if units.iter().sum::<u32>() <= single {
        return 1;
    }
    let (mut count, mut used) = (1, 0);
    for unit in units {
        if used + unit > part {
            count += 1;
            used = 0;
        }
        used += unit;
    }
    count
}

/// The basic alphabet of GSM 03.38 without the letters and digits of ASCII.
const GSM7_BASIC: &str = "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./:;<=>?¡ÄÖÑÜ§¿äöñüà";
/// Sent as an escape and a second character.
const GSM7_EXTENDED: &str = "\u{c}^{}\\[~]|€";

fn gsm7_units(c: char) -> Option<u32> {
    if c.is_ascii_alphanumeric() || GSM7_BASIC.contains(c) {
        Some(1)
    } else if GSM7_EXTENDED.contains(c) {
        Some(2)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Encoding, render, segments};

    fn count(text: &str) -> (Encoding, u32) {
        let s = segments(text);
        (s.encoding, s.count)
    }

    #[test]
    fn m10_gsm7_texts_take_160_characters_or_parts_of_153() {
        assert_eq!(count(""), (Encoding::Gsm7, 1));
        assert_eq!(count(&"a".repeat(160)), (Encoding::Gsm7, 1));
        assert_eq!(count(&"a".repeat(161)), (Encoding::Gsm7, 2));
        assert_eq!(count(&"a".repeat(306)), (Encoding::Gsm7, 2));
        assert_eq!(count(&"a".repeat(307)), (Encoding::Gsm7, 3));
    }

    #[test]
    fn m10_ucs2_texts_take_70_units_or_parts_of_67() {
        assert_eq!(count(&"码".repeat(70)), (Encoding::Ucs2, 1));
        assert_eq!(count(&"码".repeat(71)), (Encoding::Ucs2, 2));
        assert_eq!(count(&"码".repeat(134)), (Encoding::Ucs2, 2));
        assert_eq!(count(&"码".repeat(135)), (Encoding::Ucs2, 3));
        // One foreign character makes all of it UCS-2.
        assert_eq!(count(&format!("{}码", "a".repeat(70))), (Encoding::Ucs2, 2));
    }

    #[test]
    fn m10_characters_of_two_units_are_counted_twice_and_never_split() {
        assert_eq!(count(&"€".repeat(80)), (Encoding::Gsm7, 1));
        // 153 is odd: 76 escapes a part, so 153 of them need three parts although 306 units would fit two.
        assert_eq!(count(&"€".repeat(153)), (Encoding::Gsm7, 3));
        assert_eq!(count(&"😀".repeat(35)), (Encoding::Ucs2, 1));
        assert_eq!(count(&"😀".repeat(66)), (Encoding::Ucs2, 2));
        assert_eq!(count(&"😀".repeat(67)), (Encoding::Ucs2, 3));
    }

    #[test]
    fn m10_a_value_is_inserted_as_text_and_brings_in_no_other_parameter() {
        let params = BTreeMap::from([("a".to_owned(), "${b}".to_owned()), ("b".to_owned(), "secret".to_owned())]);
        assert_eq!(render("Onceflow", "x ${a} y", &params), "[Onceflow] x ${b} y");
        assert_eq!(render("万事通", "${a", &params), "【万事通】${a");
    }
}

//! Depth and size of a JSON text, in one pass over its bytes and without building anything.
//!
//! `serde_json` limits neither what it skips nor a raw value, and PostgreSQL gives up on deep `jsonb` only with an error
//! of its own. The scan judges no grammar: a text that is not JSON passes here and fails in the decoder.

use crate::event::Rejection;

/// Refuses a text that is nested deeper than `max_depth` or holds more than `max_nodes` values and keys.
pub(super) fn check(json: &[u8], max_depth: usize, max_nodes: usize) -> Result<(), Rejection> {
    let mut depth = 0usize;
    let mut nodes = 1usize;
    let mut rest = json;
    while let [byte, after @ ..] = rest {
        rest = after;
        match byte {
            b'"' => rest = behind_string(rest),
            b'{' | b'[' => {
                depth += 1;
                nodes += 1;
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' | b':' => nodes += 1,
            _ => {}
        }
        if depth > max_depth {
            let text = format!("the JSON is nested deeper than {max_depth} levels");
            return Err(Rejection::decode("json_too_deep", text));
        }
        if nodes > max_nodes {
            let text = format!("the JSON holds more than {max_nodes} values");
            return Err(Rejection::decode("json_too_many_values", text));
        }
    }
    Ok(())
}

/// What follows a string whose opening quote stands before `rest`; nothing where the string does not end.
fn behind_string(mut rest: &[u8]) -> &[u8] {
    while let Some(place) = memchr::memchr2(b'"', b'\\', rest) {
        if rest[place] == b'"' {
            return &rest[place + 1..];
        }
        // The character behind a backslash is skipped, too.
        rest = rest.get(place + 2..).unwrap_or_default();
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn brackets_inside_strings_are_text() {
        assert!(check(br#"["[[[[\"[[[[", {"a[[": "]]\\"}]"#, 2, 100).is_ok());
        assert_eq!(check(br#"["\\", [[1]]]"#, 2, 100).unwrap_err().code, "json_too_deep");
    }

    #[test]
    fn depth_is_counted_from_the_outermost_bracket() {
        let nested = |n: usize| [vec![b'['; n], vec![b']'; n]].concat();
        assert!(check(&nested(64), 64, 1000).is_ok());
        assert!(check(&nested(65), 64, 1000).is_err());
        // Siblings add no depth.
        assert!(check(b"[[],[],[],{}]", 2, 100).is_ok());
    }

    #[test]
    fn values_are_counted_whatever_their_kind() {
        assert!(check(b"[1,2,3]", 4, 4).is_ok());
        assert_eq!(check(b"[1,2,3,4]", 4, 4).unwrap_err().code, "json_too_many_values");
        assert_eq!(check(b"[[],[],[]]", 4, 4).unwrap_err().code, "json_too_many_values");
    }

    #[test]
    fn a_text_that_ends_half_way_is_no_trouble() {
        for text in [&b"\"abc"[..], b"\"abc\\", b"[[[", b"]]]]]", b""] {
            assert!(check(text, 3, 10).is_ok());
        }
    }
}

//! `[retention]`: how long rows are kept that are of no use to the service any more.

use std::time::Duration;

use super::reader::Reader;
use crate::retention::Policy;

const DAY: Duration = Duration::from_secs(86_400);

pub(super) fn read(reader: &mut Reader) -> Policy {
    Policy {
        inbox: kept(reader, "retention.inbox", 90),
        dead_letters: kept(reader, "retention.dead_letters", 180),
        attempts: kept(reader, "retention.attempts", 90),
        jobs: kept(reader, "retention.jobs", 180),
        audit: kept(reader, "retention.audit", 400),
    }
}

/// Whole days: whoever keeps less than one is about to apply events twice.
fn kept(reader: &mut Reader, key: &str, default: u32) -> Option<Duration> {
    let text: String = reader.get(key, format!("{default}d"));
    match parse(&text) {
        Some(kept) => kept,
        None => {
            reader.problem(key, format!("{text:?}: give whole days such as \"90d\", at least \"1d\", or \"never\""));
            None
        }
    }
}

/// `Some(None)` for ever.
fn parse(text: &str) -> Option<Option<Duration>> {
    const MOST_DAYS: u32 = 36_500;
    if text == "never" {
        return Some(None);
    }
    let days: u32 = text.strip_suffix('d')?.parse().ok()?;
    (1..=MOST_DAYS).contains(&days).then(|| Some(DAY * days))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_or_never_and_nothing_else() {
        assert_eq!(parse("90d"), Some(Some(DAY * 90)));
        assert_eq!(parse("never"), Some(None));
        for text in ["", "0d", "d", "90", "1h", "-1d", "1.5d", "999999d"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}

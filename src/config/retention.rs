//! `[retention]`: how long rows are kept that are of no use to the service any more.

use std::time::Duration;

use super::reader::Reader;
use crate::retention::Policy;

const DAY: Duration = Duration::from_secs(86_400);
/// The function that removes audit rows spares younger ones (migration 0015).
const LEAST_AUDIT: u32 = 30;

pub(super) fn read(reader: &mut Reader) -> Policy {
    Policy {
        inbox: kept(reader, "retention.inbox", (90, 1)),
        dead_letters: kept(reader, "retention.dead_letters", (180, 1)),
        attempts: kept(reader, "retention.attempts", (90, 1)),
        jobs: kept(reader, "retention.jobs", (180, 1)),
        audit: kept(reader, "retention.audit", (400, LEAST_AUDIT)),
        personal_data: kept(reader, "retention.personal_data", (180, 1)),
    }
}

/// Whole days, so many by default and at least: whoever keeps an inbox row for less than one is about to apply events twice.
fn kept(reader: &mut Reader, key: &str, (default, least): (u32, u32)) -> Option<Duration> {
    let text: String = reader.get(key, format!("{default}d"));
    match parse(&text).filter(|kept| kept.is_none_or(|kept| kept >= DAY * least)) {
        Some(kept) => kept,
        None => {
            let what = format!("{text:?}: give whole days such as \"{default}d\", at least \"{least}d\", or \"never\"");
            reader.problem(key, what);
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

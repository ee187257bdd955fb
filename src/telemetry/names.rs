//! Names of the metrics and the closed sets of their labels. Everything a label may say is listed or counted as `other`.

use std::collections::HashSet;
use std::sync::{PoisonError, RwLock};

/// Label value for what no list knows.
pub(super) const OTHER: &str = "other";
/// The one relay of this build; further ones come with foreign outbox tables.
pub(super) const RELAY: &str = "default";

pub(super) const OUTCOMES: [&str; 7] = ["applied", "duplicate", "stale", "ignored", "retry", "dead", "held"];
pub(super) const DEAD_REASONS: [&str; 10] =
    ["decode", "validate", "handler", "database", "timeout", "exhausted", "delivery_limit", "expired", "broker", OTHER];
/// `consumer`: the consumer itself asked for another attempt; its own code is in the log. `held`: no room behind a failed event.
pub(super) const RETRY_REASONS: [&str; 5] = ["contention", "timeout", "panic", "consumer", "held"];
pub(super) const PUBLISH_OUTCOMES: [&str; 5] = ["confirmed", "nacked", "returned", "timeout", "error"];
pub(super) const PURPOSES: [&str; 2] = ["consume", "publish"];
pub(super) const OPERATIONS: [&str; 4] = ["apply", "relay", "dead_letter", "admin"];
pub(super) const DB_CLASSES: [&str; 6] = ["contention", "timeout", "outage", "permanent", "schema", "bug"];
pub(super) const DEAD_STATES: [&str; 3] = ["open", "replaying", "archived"];
/// `skipped`: somebody else dealt with it meanwhile; `cancelled`: its job ended before.
pub(super) const REPLAY_OUTCOMES: [&str; 4] = ["succeeded", "failed_again", "skipped", "cancelled"];
/// States of jobs that have not ended.
pub(super) const JOB_STATES: [&str; 5] = ["planned", "held", "canary", "running", "paused"];
pub(super) const HTTP_CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];
/// As the retention names them.
pub(super) const KEPT_TABLES: [&str; 5] = ["inbox", "dead_letters", "attempts", "jobs", "audit"];
pub(super) const POOL_STATES: [&str; 2] = ["in_use", "idle"];
/// Reply codes with which a broker closes a channel.
const CHANNEL_CODES: [(u16, &str); 8] =
    [(311, "311"), (403, "403"), (404, "404"), (405, "405"), (406, "406"), (504, "504"), (540, "540"), (541, "541")];

static KNOWN: RwLock<Option<HashSet<&'static str>>> = RwLock::new(None);

/// Adds names that consumers and event types may have as labels.
pub(super) fn learn(names: impl IntoIterator<Item = &'static str>) {
    let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    known.get_or_insert_default().extend(names);
}

/// The name as a label: itself where it was learned, else `other`.
pub(super) fn known(name: &str) -> &'static str {
    let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
    known.as_ref().and_then(|names| names.get(name).copied()).unwrap_or(OTHER)
}

/// The member of a closed set, or `fallback`.
pub(super) fn one_of(set: &[&'static str], name: &str, fallback: &'static str) -> &'static str {
    set.iter().find(|known| **known == name).copied().unwrap_or(fallback)
}

/// The stage or code of a dead letter as the metric's reason.
pub(super) fn dead_reason(reason: &str) -> &'static str {
    match reason {
        "handle" => "handler",
        other => one_of(&DEAD_REASONS, other, OTHER),
    }
}

/// A channel's reply code as a label.
pub(super) fn channel_code(code: u16) -> &'static str {
    CHANNEL_CODES.iter().find(|(known, _)| *known == code).map_or(OTHER, |(_, label)| label)
}

/// Every label that [`channel_code`] can give.
pub(super) fn channel_codes() -> impl Iterator<Item = &'static str> {
    CHANNEL_CODES.iter().map(|(_, label)| *label).chain([OTHER])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_outside_the_registry_is_counted_as_other() {
        learn(["org.user.upserted.v1"]);
        assert_eq!(known("org.user.upserted.v1"), "org.user.upserted.v1");
        assert_eq!(known("org.user.4711"), OTHER);
    }

    #[test]
    fn labels_of_closed_sets_never_grow() {
        assert_eq!(dead_reason("handle"), "handler");
        assert_eq!(dead_reason("duplicate key value 4711"), OTHER);
        assert_eq!(channel_code(406), "406");
        assert_eq!(channel_code(999), OTHER);
    }
}

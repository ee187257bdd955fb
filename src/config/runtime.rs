//! `[runtime]`, `[retry]`, `[limits]`, `[topology]`, `[relay]` and `[consumers.<name>]`.

use std::time::Duration;

use serde::Deserialize;

use super::reader::Reader;
use crate::broker::QueueKind;
use crate::outbox::Unroutable;
use crate::runtime::wire::Limits;
use crate::runtime::{ConsumerSettings, ForeignBinding, Names, OrderPolicy, Producers, RetryPolicy, Settings};

const DEFAULT_DELAYS: [&str; 5] = ["1s", "5s", "30s", "2m", "10m"];

const MIB: usize = 1024 * 1024;

pub(super) fn read(reader: &mut Reader) -> Settings {
    Settings {
        names: read_names(reader),
        queue_kind: read_queue_kind(reader),
        retry: read_retry(reader),
        limits: read_limits(reader),
        prefetch: reader.within("runtime.prefetch", 1_000, 1..=10_000),
        prefetch_bytes: reader.within("runtime.prefetch_bytes", 32 * MIB, MIB..=4_096 * MIB),
        lanes: reader.within("runtime.lanes", 2, 1..=64),
        batch: reader.within("runtime.batch", 200, 1..=1_000),
        kill_switch_failures: reader.within("runtime.kill_switch_failures", 100, 0..=100_000),
        held_events: reader.within("runtime.held_events", 10_000, 1..=1_000_000),
        held_events_per_key: reader.within("runtime.held_events_per_key", 1_000, 1..=100_000),
        handler_timeout: reader.duration("runtime.handler_timeout", "30s"),
        drain_within: reader.duration("runtime.drain_within", "25s"),
        look_for_pauses: reader.duration("runtime.look_for_pauses", "2s"),
    }
}

fn read_names(reader: &mut Reader) -> Names {
    let prefix: String = reader.get("topology.prefix", "onceflow".to_owned());
    let fits = !prefix.is_empty()
        && prefix.len() <= 64
        && prefix.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if !fits {
        reader.problem("topology.prefix", format!("{prefix:?} must be 1 to 64 letters, digits, '-', '_' or '.'"));
    }
    Names::new(prefix)
}

fn read_queue_kind(reader: &mut Reader) -> QueueKind {
    let text: String = reader.get("topology.queue_type", "quorum".to_owned());
    text.parse().unwrap_or_else(|what| {
        reader.problem("topology.queue_type", what);
        QueueKind::Quorum
    })
}

fn read_retry(reader: &mut Reader) -> RetryPolicy {
    let texts = reader.list("retry.delays", &DEFAULT_DELAYS);
    let mut rungs: Vec<Duration> = Vec::with_capacity(texts.len());
    for text in &texts {
        let parsed = text.parse::<jiff::SignedDuration>().ok().and_then(|d| Duration::try_from(d).ok());
        match parsed.filter(|d| d.as_millis() > 0) {
            Some(delay) => rungs.push(delay),
            None => reader.problem("retry.delays", format!("{text:?} is no positive duration such as \"5s\"")),
        }
    }
    if rungs.is_empty() || rungs.len() > 10 || !rungs.is_sorted() {
        reader.problem("retry.delays", "give 1 to 10 delays in rising order: each is a queue".to_owned());
    }
    RetryPolicy { rungs, max_attempts: reader.within("retry.max_attempts", 6, 1..=100) }
}

fn read_limits(reader: &mut Reader) -> Limits {
    let default = Limits::default();
    Limits {
        max_body_bytes: reader.within("limits.max_body_bytes", default.max_body_bytes, 1024..=64 * 1024 * 1024),
        max_json_depth: reader.within("limits.max_json_depth", default.max_json_depth, 4..=120),
        max_json_nodes: reader.within("limits.max_json_nodes", default.max_json_nodes, 100..=10_000_000),
        max_headers: reader.within("limits.max_headers", default.max_headers, 16..=1_000),
        max_header_bytes: reader.within("limits.max_header_bytes", default.max_header_bytes, 4_096..=100_000),
    }
}

pub(super) fn read_unroutable(reader: &mut Reader) -> Unroutable {
    Unroutable { discard: reader.list("relay.discard_unroutable", &[]).into_iter().collect() }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BindingEntry {
    exchange: String,
    pattern: String,
}

/// `user` is the one that we log in to the broker as, where that is known.
pub(super) fn read_consumer(reader: &mut Reader, name: &str, user: Option<&str>) -> ConsumerSettings {
    let bindings: Vec<BindingEntry> = reader.structured(&format!("consumers.{name}.bindings")).unwrap_or_default();
    let foreign = |b: BindingEntry| ForeignBinding { exchange: b.exchange, pattern: b.pattern };
    let partitions = reader.within(&format!("consumers.{name}.partitions"), 1, 1..=64);
    let ordering = read_ordering(reader, &format!("consumers.{name}.ordering"));
    let bindings = bindings.into_iter().map(foreign).collect();
    let producers = read_producers(reader, name, user);
    ConsumerSettings { name: name.to_owned(), bindings, partitions, ordering, producers }
}

/// Our own copies are recognised by our own user's name, so it must be known.
fn read_producers(reader: &mut Reader, name: &str, user: Option<&str>) -> Option<Producers> {
    let key = format!("consumers.{name}.producers");
    let listed = reader.list(&key, &[]);
    if listed.is_empty() {
        return None;
    }
    if user.is_none() {
        let what =
            "needs to know our own user: with a login by certificate name it in broker.url, amqps://USER@host/vhost";
        reader.problem(&key, what.to_owned());
    }
    user.map(|user| Producers::new(name, listed, user.to_owned()))
}

fn read_ordering(reader: &mut Reader, key: &str) -> OrderPolicy {
    let text: String = reader.get(key, "versioned".to_owned());
    text.parse().unwrap_or_else(|what| {
        reader.problem(key, what);
        OrderPolicy::default()
    })
}

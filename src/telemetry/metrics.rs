//! One small function per thing that is counted. Names, units and labels: `docs/OPERATIONS.md`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::{counter, gauge, histogram};

use super::names::{
    self, DEAD_STATES, JOB_STATES, OPERATIONS, OTHER, POOL_STATES, RELAY, RETRY_REASONS, channel_code, dead_reason,
    known,
};
use crate::clock;

/// Deliveries that the broker may have outstanding.
pub fn prefetch(consumer: &str, n: u16) {
    gauge!("onceflow_consumer_prefetch", "consumer" => known(consumer)).set(f64::from(n));
}

/// Partitions of the consumer that this process is subscribed to.
pub fn partitions_held(consumer: &str, n: usize) {
    gauge!("onceflow_consumer_partitions_held", "consumer" => known(consumer)).set(n as f64);
}

/// Whether the consumer stopped reading because most of what arrived failed alike.
pub fn kill_switch(consumer: &str, open: bool) {
    gauge!("onceflow_consumer_kill_switch", "consumer" => known(consumer)).set(flag(open));
}

/// Whether the consumer is paused, by an operator or by its kill switch.
pub fn paused(consumer: &str, yes: bool) {
    gauge!("onceflow_consumer_paused", "consumer" => known(consumer)).set(flag(yes));
}

/// Whether the consumer is subscribed to its queue.
pub fn connected(consumer: &str, yes: bool) {
    gauge!("onceflow_consumer_connected", "consumer" => known(consumer)).set(flag(yes));
}

/// When the consumer last settled a delivery well.
pub fn last_success(consumer: &str, unix_seconds: f64) {
    gauge!("onceflow_consumer_last_success_timestamp_seconds", "consumer" => known(consumer)).set(unix_seconds);
}

/// A delivery was put aside for a later attempt. A reason of the consumer's own counts as `consumer`.
pub fn retry_scheduled(consumer: &str, rung_ms: u64, reason: &'static str) {
    let reason = names::one_of(&RETRY_REASONS, reason, "consumer");
    counter!("onceflow_retries_scheduled_total",
        "consumer" => known(consumer), "rung" => rung_ms.to_string(), "reason" => reason)
    .increment(1);
}

/// A message failed for good; the reason is a stage, or the broker's own word.
pub fn dead_letter(consumer: &str, reason: &str) {
    counter!("onceflow_dead_letters_total", "consumer" => known(consumer), "reason" => dead_reason(reason))
        .increment(1);
}

/// Replays of dead letters of a consumer ended: succeeded, `failed_again`, skipped or cancelled.
pub fn replays(consumer: &str, outcome: &'static str, n: u64) {
    counter!("onceflow_replays_total", "consumer" => known(consumer), "outcome" => outcome).increment(n);
}

/// A delivery had the identity of an earlier one but another body.
pub fn conflict(consumer: &str) {
    counter!("onceflow_inbox_conflicts_total", "consumer" => known(consumer)).increment(1);
}

/// Outbox rows were published: confirmed, nacked, returned, timeout or error.
pub fn outbox_published(outcome: &'static str, n: u64) {
    counter!("onceflow_outbox_published_total", "relay" => RELAY, "outcome" => outcome).increment(n);
}

/// Time from the first publish of a batch to its last confirm.
pub fn outbox_publish_duration(took: Duration) {
    histogram!("onceflow_outbox_publish_duration_seconds", "relay" => RELAY).record(took);
}

/// Times from the rows' insertion to their confirm.
pub fn outbox_lags(lags: impl Iterator<Item = Duration>) {
    let histogram = histogram!("onceflow_outbox_lag_seconds", "relay" => RELAY);
    lags.for_each(|lag| histogram.record(lag));
}

/// Rows of one publishing batch.
pub fn outbox_batch(rows: usize) {
    histogram!("onceflow_outbox_batch_size", "relay" => RELAY).record(precise(rows));
}

/// This process holds the lease of a relay partition, or no longer does.
pub fn outbox_lease_held(partition: i16, held: bool) {
    static HELD: AtomicU64 = AtomicU64::new(0);
    let bit = u32::try_from(partition).ok().and_then(|p| 1u64.checked_shl(p)).unwrap_or(0);
    let before = if held { HELD.fetch_or(bit, Ordering::Relaxed) } else { HELD.fetch_and(!bit, Ordering::Relaxed) };
    let now = if held { before | bit } else { before & !bit };
    gauge!("onceflow_outbox_lease_held", "relay" => RELAY).set(f64::from(now.count_ones()));
}

/// A transaction ended, however it ended.
pub fn db_transaction(operation: &'static str, took: Duration) {
    let operation = names::one_of(&OPERATIONS, operation, OTHER);
    histogram!("onceflow_db_transaction_duration_seconds", "operation" => operation).record(took);
}

/// A statement failed; the class is that of `db::Class` in lower case.
pub fn db_error(class: &'static str) {
    counter!("onceflow_db_errors_total", "sqlstate_class" => class).increment(1);
}

/// A transaction was tried again at once after a serialization failure or a deadlock.
pub fn serialization_retry() {
    counter!("onceflow_db_serialization_retries_total").increment(1);
}

/// Whether the connection for `consume` or `publish` is up.
pub fn broker_connected(purpose: &'static str, yes: bool) {
    gauge!("onceflow_broker_connected", "purpose" => purpose).set(flag(yes));
}

/// Whether the broker blocks the connection (memory or disk alarm).
pub fn broker_blocked(purpose: &'static str, yes: bool) {
    gauge!("onceflow_broker_blocked", "purpose" => purpose).set(flag(yes));
}

/// A connection was made again.
pub fn broker_reconnect(purpose: &'static str) {
    counter!("onceflow_broker_reconnects_total", "purpose" => purpose).increment(1);
}

/// The broker closed a channel.
pub fn channel_closed(purpose: &'static str, code: u16) {
    counter!("onceflow_broker_channel_closures_total", "purpose" => purpose, "code" => channel_code(code)).increment(1);
}

/// Published messages whose confirm is awaited.
pub fn unconfirmed(n: usize) {
    gauge!("onceflow_broker_unconfirmed_messages", "purpose" => "publish").set(precise(n));
}

/// Dead letters of one consumer, as sampled.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct DeadLetters {
    /// Waiting for someone.
    pub open: i64,
    /// On their way back to the consumer.
    pub replaying: i64,
    /// Put away by an operator.
    pub archived: i64,
    /// Groups of the open ones.
    pub groups: i64,
    /// Age of the oldest open one; 0 where there is none.
    pub oldest_age_seconds: f64,
}

/// Sets the sampled gauges of one consumer's dead letters.
pub fn dead_letters(consumer: &str, sample: DeadLetters) {
    let consumer = known(consumer);
    for (state, count) in DEAD_STATES.into_iter().zip([sample.open, sample.replaying, sample.archived]) {
        gauge!("onceflow_dead_letters", "consumer" => consumer, "state" => state).set(whole(count));
    }
    gauge!("onceflow_dead_letter_groups", "consumer" => consumer).set(whole(sample.groups));
    gauge!("onceflow_dead_letter_oldest_age_seconds", "consumer" => consumer).set(sample.oldest_age_seconds);
}

/// Events that wait behind failed ones of their keys, as sampled.
pub fn held_events(consumer: &str, events: i64) {
    gauge!("onceflow_held_events", "consumer" => known(consumer)).set(whole(events));
}

/// Sets the sampled gauges of the jobs that have not ended: how many in each state, and what they have still to deal with.
pub fn replay_jobs(by_state: &[(&str, i64)], remaining: i64) {
    for state in JOB_STATES {
        let count = by_state.iter().find(|(name, _)| *name == state).map_or(0, |(_, count)| *count);
        gauge!("onceflow_replay_jobs", "state" => state).set(whole(count));
    }
    gauge!("onceflow_replay_remaining").set(whole(remaining));
}

/// The outbox, as sampled.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct OutboxTotals {
    /// Rows that wait for the relay.
    pub pending: i64,
    /// Age of the oldest of them; 0 where there is none.
    pub oldest_age_seconds: f64,
    /// Rows that wait for an operator.
    pub parked: i64,
}

/// Sets the sampled gauges of the outbox.
pub fn outbox(sample: OutboxTotals) {
    gauge!("onceflow_outbox_pending", "relay" => RELAY).set(whole(sample.pending));
    gauge!("onceflow_outbox_oldest_pending_age_seconds", "relay" => RELAY).set(sample.oldest_age_seconds);
    gauge!("onceflow_outbox_parked", "relay" => RELAY).set(whole(sample.parked));
}

/// The database pool, as sampled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolTotals {
    /// Connections handed out.
    pub in_use: usize,
    /// Connections open and free.
    pub idle: usize,
    /// The bound.
    pub max: usize,
}

/// Sets the sampled gauges of the database pool.
pub fn pool(sample: PoolTotals) {
    for (state, count) in POOL_STATES.into_iter().zip([sample.in_use, sample.idle]) {
        gauge!("onceflow_db_pool_connections", "state" => state).set(precise(count));
    }
    gauge!("onceflow_db_pool_max_connections").set(precise(sample.max));
}

/// Rows of the inbox by the planner's estimate: counting them would cost as much as the table is large.
pub fn inbox_rows(estimate: f64) {
    gauge!("onceflow_inbox_rows").set(estimate);
}

/// Old rows of a table were removed.
pub fn pruned(table: &'static str, rows: u64) {
    counter!("onceflow_retention_pruned_total", "table" => table).increment(rows);
}

/// Age of the oldest row that will be removed some day, in seconds; 0 without one.
pub fn oldest_row(table: &'static str, seconds: f64) {
    gauge!("onceflow_retention_oldest_row_age_seconds", "table" => table).set(seconds);
}

/// The configuration was read, at the start or again; whether what runs is what it says.
pub fn config_reload(taken_over: bool) {
    gauge!("onceflow_config_last_reload_successful").set(flag(taken_over));
    if taken_over {
        gauge!("onceflow_config_last_reload_success_timestamp_seconds").set(clock::unix_seconds());
    }
}

/// Whether a named readiness check is met. Names come from the code, so they are few.
pub fn ready(check: &str, yes: bool) {
    gauge!("onceflow_ready", "check" => check.to_owned()).set(flag(yes));
}

/// The admin API answered a request. `route` is the template, never the path; codes are counted by their class.
pub fn admin_request(route: &'static str, code: u16, took: Duration) {
    let class = names::HTTP_CLASSES.get(usize::from(code / 100).saturating_sub(2)).copied().unwrap_or(OTHER);
    counter!("onceflow_admin_requests_total", "route" => route, "code" => class).increment(1);
    histogram!("onceflow_admin_request_duration_seconds", "route" => route).record(took);
}

/// Shows the admin API's series at 0.
pub fn admin_routes(routes: &[&'static str]) {
    for route in routes {
        for class in names::HTTP_CLASSES {
            counter!("onceflow_admin_requests_total", "route" => *route, "code" => class).absolute(0);
        }
        let _registered = histogram!("onceflow_admin_request_duration_seconds", "route" => *route);
    }
}

fn flag(yes: bool) -> f64 {
    if yes { 1.0 } else { 0.0 }
}

/// Counts fit: a float is exact up to 2^53.
fn precise(n: usize) -> f64 {
    n as f64
}

fn whole(n: i64) -> f64 {
    n as f64
}

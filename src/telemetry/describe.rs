//! The metrics with their kind, unit and meaning, and the buckets of the histograms.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Processing, publishing, database: the advice of OpenTelemetry and two finer ones. 0.1 is a boundary, so the 100 ms goal is exact.
const PROCESS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// End to end and lag: up to an hour.
const END_TO_END: &[f64] = &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0];
/// Sizes: powers of 4 from 256 B to 4 MiB.
const SIZES: &[f64] = &[256.0, 1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0];
const BATCHES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0];

/// Every histogram with its buckets.
pub(super) const HISTOGRAMS: &[(&str, &[f64])] = &[
    ("onceflow_message_process_duration_seconds", PROCESS),
    ("onceflow_message_end_to_end_duration_seconds", END_TO_END),
    ("onceflow_message_size_bytes", SIZES),
    ("onceflow_outbox_publish_duration_seconds", PROCESS),
    ("onceflow_outbox_lag_seconds", END_TO_END),
    ("onceflow_outbox_batch_size", BATCHES),
    ("onceflow_db_transaction_duration_seconds", PROCESS),
    ("onceflow_admin_request_duration_seconds", PROCESS),
];

const COUNTERS: &[(&str, &str)] = &[
    ("onceflow_messages_received_total", "Deliveries that reached a consumer."),
    ("onceflow_messages_processed_total", "Deliveries settled, by what became of them."),
    ("onceflow_retries_scheduled_total", "Deliveries put aside for a later attempt, by delay in milliseconds (rung)."),
    ("onceflow_dead_letters_total", "Messages that failed for good."),
    ("onceflow_replays_total", "Replays of dead letters, by what became of them."),
    ("onceflow_inbox_conflicts_total", "Deliveries with the identity of an earlier event but another body."),
    ("onceflow_outbox_published_total", "Outbox rows published, by the broker's answer."),
    ("onceflow_db_errors_total", "Failed database statements by class."),
    ("onceflow_db_serialization_retries_total", "Transactions tried again after contention."),
    ("onceflow_broker_reconnects_total", "Broker connections made again."),
    ("onceflow_broker_channel_closures_total", "Channels closed by the broker, by reply code."),
    ("onceflow_retention_pruned_total", "Old rows that were removed, by table."),
    ("onceflow_admin_requests_total", "Requests to the admin API."),
];

const GAUGES: &[(&str, Unit, &str)] = &[
    ("onceflow_build_info", Unit::Count, "Always 1; the labels name the build."),
    ("onceflow_config_last_reload_successful", Unit::Count, "0 after a reload that was refused: the old one runs."),
    (
        "onceflow_config_last_reload_success_timestamp_seconds",
        Unit::Seconds,
        "When the configuration was last read well.",
    ),
    ("onceflow_ready", Unit::Count, "1 where a readiness check is met."),
    ("onceflow_messages_in_flight", Unit::Count, "Deliveries being worked on."),
    ("onceflow_consumer_prefetch", Unit::Count, "Most deliveries that may be outstanding."),
    ("onceflow_consumer_paused", Unit::Count, "1 while the consumer is paused, by an operator or by its kill switch."),
    (
        "onceflow_consumer_kill_switch",
        Unit::Count,
        "1 while most of what arrives fails alike and is left at the broker.",
    ),
    ("onceflow_consumer_connected", Unit::Count, "1 while the consumer is subscribed."),
    (
        "onceflow_consumer_partitions_held",
        Unit::Count,
        "Partitions that this process is subscribed to; 0 for one queue.",
    ),
    ("onceflow_consumer_last_success_timestamp_seconds", Unit::Seconds, "When a delivery was last settled well."),
    ("onceflow_dead_letters", Unit::Count, "Dead letters by state."),
    ("onceflow_held_events", Unit::Count, "Events that wait behind a failed one of their key; strict consumers only."),
    ("onceflow_dead_letter_groups", Unit::Count, "Groups of open dead letters."),
    ("onceflow_dead_letter_oldest_age_seconds", Unit::Seconds, "Age of the oldest open dead letter."),
    ("onceflow_replay_jobs", Unit::Count, "Jobs that have not ended, by state; those that discard count too."),
    ("onceflow_replay_remaining", Unit::Count, "Dead letters that these jobs have still to deal with."),
    ("onceflow_outbox_pending", Unit::Count, "Outbox rows that wait for the relay."),
    ("onceflow_outbox_oldest_pending_age_seconds", Unit::Seconds, "Age of the oldest waiting outbox row."),
    ("onceflow_outbox_parked", Unit::Count, "Outbox rows that wait for an operator."),
    (
        "onceflow_outbox_lease_held",
        Unit::Count,
        "Relay partitions whose lease this process holds; 8 over all replicas together.",
    ),
    ("onceflow_db_pool_connections", Unit::Count, "Connections of the database pool by state."),
    ("onceflow_db_pool_max_connections", Unit::Count, "Bound of the database pool."),
    (
        "onceflow_retention_oldest_row_age_seconds",
        Unit::Seconds,
        "Age of the oldest row that retention will remove, by table.",
    ),
    ("onceflow_inbox_rows", Unit::Count, "Rows of the inbox, estimated."),
    ("onceflow_broker_connected", Unit::Count, "1 while the connection is up."),
    ("onceflow_broker_blocked", Unit::Count, "1 while the broker blocks the connection."),
    ("onceflow_broker_unconfirmed_messages", Unit::Count, "Published messages whose confirm is awaited."),
];

const HISTOGRAM_TEXTS: &[(&str, Unit, &str)] = &[
    ("onceflow_message_process_duration_seconds", Unit::Seconds, "Time from delivery to settling."),
    ("onceflow_message_end_to_end_duration_seconds", Unit::Seconds, "Time from the event's own time to its commit."),
    ("onceflow_message_size_bytes", Unit::Bytes, "Size of a delivery's body."),
    (
        "onceflow_outbox_publish_duration_seconds",
        Unit::Seconds,
        "Time from the first publish of a batch to its last confirm.",
    ),
    ("onceflow_outbox_lag_seconds", Unit::Seconds, "Time from the row's insertion to its confirm."),
    ("onceflow_outbox_batch_size", Unit::Count, "Rows of one publishing batch."),
    ("onceflow_db_transaction_duration_seconds", Unit::Seconds, "Length of a transaction."),
    ("onceflow_admin_request_duration_seconds", Unit::Seconds, "Time to answer a request to the admin API."),
];

/// Gives every metric its unit and help text.
pub(super) fn describe() {
    for (name, text) in COUNTERS {
        describe_counter!(*name, Unit::Count, *text);
    }
    for (name, unit, text) in GAUGES {
        describe_gauge!(*name, *unit, *text);
    }
    for (name, unit, text) in HISTOGRAM_TEXTS {
        describe_histogram!(*name, *unit, *text);
    }
}

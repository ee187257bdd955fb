//! What the process tells about itself: metrics for Prometheus and logs. The only user of the exporters.

mod describe;
mod hot;
mod install;
pub mod logs;
mod metrics;
mod names;
mod recent;

pub use hot::{
    durations_since_start, end_to_end, in_flight, live_delivery, processed, received, replayed_delivery,
    replays_since_start, settled_since_start,
};
pub use install::{InstallError, MetricsHandle, install};
pub use metrics::{
    DeadLetters, OutboxTotals, PoolTotals, admin_request, admin_routes, config_reload, dead_letters, held_events,
    inbox_rows, oldest_row, outbox, pool, pruned, ready, replay_jobs, replays,
};
pub use metrics::{
    broker_blocked, broker_connected, broker_reconnect, channel_closed, conflict, connected, db_error, db_transaction,
    dead_letter, kill_switch, last_success, outbox_batch, outbox_lags, outbox_lease_held, outbox_publish_duration,
    outbox_published, partitions_held, paused, prefetch, retry_scheduled, serialization_retry, unconfirmed,
};
pub use recent::{Durations, Recent};

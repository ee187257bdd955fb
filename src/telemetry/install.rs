//! Sets up the Prometheus recorder: buckets, descriptions, and every series at 0 from the start.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use metrics::{Unit, counter, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;
use tokio_util::sync::CancellationToken;

use super::describe::{HISTOGRAMS, describe};
use super::names::{
    self, DB_CLASSES, DEAD_REASONS, OPERATIONS, PUBLISH_OUTCOMES, PURPOSES, RELAY, REPLAY_OUTCOMES, RETRY_REASONS,
};
use super::{DeadLetters, OutboxTotals, PoolTotals, hot, metrics as record};

/// How often the recorder folds what was recorded into its histograms, so that memory stays bounded without a scrape.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Why the recorder could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The buckets or the recorder were refused.
    #[error("metrics: {0}")]
    Build(#[from] BuildError),
    /// Another recorder is in place.
    #[error("metrics: another recorder is already installed")]
    Taken,
}

/// Renders what was recorded.
#[derive(Clone)]
pub struct MetricsHandle {
    recorder: PrometheusHandle,
    process: Collector,
}

impl std::fmt::Debug for MetricsHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MetricsHandle").finish_non_exhaustive()
    }
}

impl MetricsHandle {
    /// Everything in the Prometheus text format. Costs nothing at the database.
    pub fn render(&self) -> String {
        self.process.collect();
        self.recorder.render()
    }

    /// Keeps the recorder's memory bounded until `stop`.
    pub async fn keep_up(&self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(UPKEEP_EVERY);
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            self.recorder.run_upkeep();
        }
    }
}

/// Installs the recorder for the whole process and shows every series at 0. A second call adds its names and returns the
/// same recorder.
///
/// # Errors
/// When the recorder can't be built or another one is in place.
pub fn install(
    consumers: &[(&'static str, Vec<&'static str>)],
    rungs_ms: &[u64],
) -> Result<MetricsHandle, InstallError> {
    static INSTALLED: Mutex<Option<MetricsHandle>> = Mutex::new(None);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    let handle = match installed.as_ref() {
        Some(handle) => handle.clone(),
        None => build()?,
    };
    *installed = Some(handle.clone());
    drop(installed);
    register(consumers, rungs_ms);
    Ok(handle)
}

fn build() -> Result<MetricsHandle, InstallError> {
    let mut builder = PrometheusBuilder::new();
    for (name, buckets) in HISTOGRAMS {
        builder = builder.set_buckets_for_metric(Matcher::Full((*name).to_owned()), buckets)?;
    }
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|_| InstallError::Taken)?;
    describe();
    let process = Collector::default();
    process.describe();
    metrics::describe_gauge!("process_threads", Unit::Count, "Number of OS threads in the process.");
    Ok(MetricsHandle { recorder: handle, process })
}

/// A series that appears only with its first event has no rate for that event, and an alert on it stays silent.
fn register(consumers: &[(&'static str, Vec<&'static str>)], rungs_ms: &[u64]) {
    for (consumer, types) in consumers {
        names::learn([*consumer]);
        register_consumer(consumer, types, rungs_ms);
    }
    register_shared();
}

fn register_consumer(consumer: &'static str, types: &[&'static str], rungs_ms: &[u64]) {
    hot::register(consumer, types);
    for rung in rungs_ms {
        for reason in RETRY_REASONS {
            counter!("onceflow_retries_scheduled_total",
                "consumer" => consumer, "rung" => rung.to_string(), "reason" => reason)
            .absolute(0);
        }
    }
    for reason in DEAD_REASONS {
        counter!("onceflow_dead_letters_total", "consumer" => consumer, "reason" => reason).absolute(0);
    }
    for outcome in REPLAY_OUTCOMES {
        counter!("onceflow_replays_total", "consumer" => consumer, "outcome" => outcome).absolute(0);
    }
    counter!("onceflow_inbox_conflicts_total", "consumer" => consumer).absolute(0);
    // Adding nothing registers a gauge without undoing what is set already.
    for name in [
        "onceflow_consumer_prefetch",
        "onceflow_consumer_paused",
        "onceflow_consumer_kill_switch",
        "onceflow_consumer_connected",
        "onceflow_consumer_partitions_held",
        "onceflow_consumer_last_success_timestamp_seconds",
    ] {
        gauge!(name, "consumer" => consumer).increment(0.0);
    }
    record::dead_letters(consumer, DeadLetters::default());
    record::held_events(consumer, 0);
}

fn register_shared() {
    for outcome in PUBLISH_OUTCOMES {
        counter!("onceflow_outbox_published_total", "relay" => RELAY, "outcome" => outcome).absolute(0);
    }
    for name in
        ["onceflow_outbox_publish_duration_seconds", "onceflow_outbox_lag_seconds", "onceflow_outbox_batch_size"]
    {
        let _registered = histogram!(name, "relay" => RELAY);
    }
    gauge!("onceflow_outbox_lease_held", "relay" => RELAY).increment(0.0);
    for operation in OPERATIONS {
        let _registered = histogram!("onceflow_db_transaction_duration_seconds", "operation" => operation);
    }
    for class in DB_CLASSES {
        counter!("onceflow_db_errors_total", "sqlstate_class" => class).absolute(0);
    }
    counter!("onceflow_db_serialization_retries_total").absolute(0);
    for purpose in PURPOSES {
        gauge!("onceflow_broker_connected", "purpose" => purpose).increment(0.0);
        gauge!("onceflow_broker_blocked", "purpose" => purpose).increment(0.0);
        counter!("onceflow_broker_reconnects_total", "purpose" => purpose).absolute(0);
        for code in names::channel_codes() {
            counter!("onceflow_broker_channel_closures_total", "purpose" => purpose, "code" => code).absolute(0);
        }
    }
    gauge!("onceflow_broker_unconfirmed_messages", "purpose" => "publish").increment(0.0);
    gauge!("onceflow_config_last_reload_successful").increment(0.0);
    gauge!("onceflow_config_last_reload_success_timestamp_seconds").increment(0.0);
    record::outbox(OutboxTotals::default());
    record::pool(PoolTotals::default());
    record::inbox_rows(0.0);
    record::replay_jobs(&[], 0);
    for table in names::KEPT_TABLES {
        record::pruned(table, 0);
        record::oldest_row(table, 0.0);
    }
    gauge!("onceflow_build_info",
        "version" => env!("CARGO_PKG_VERSION"),
        "revision" => option_env!("ONCEFLOW_REVISION").unwrap_or("unknown"),
        "rustc" => env!("CARGO_PKG_RUST_VERSION"))
    .set(1.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_is_there_at_zero_and_a_second_install_changes_nothing() {
        let consumers = [("metrics_test", vec!["metrics.test.v1"])];
        let handle = install(&consumers, &[1000]).unwrap();
        hot::received("metrics_test", "metrics.test.v1", 300);
        hot::processed("metrics_test", "nobody.knows.v1", "applied", Duration::from_millis(100));
        install(&consumers, &[1000]).unwrap();
        let text = handle.render();
        for line in [
            r#"onceflow_messages_received_total{consumer="metrics_test",event_type="metrics.test.v1"} 1"#,
            r#"onceflow_messages_processed_total{consumer="metrics_test",event_type="other",outcome="applied"} 1"#,
            r#"onceflow_message_process_duration_seconds_bucket{consumer="metrics_test",outcome="applied",le="0.1"} 1"#,
            r#"onceflow_message_process_duration_seconds_bucket{consumer="metrics_test",outcome="dead",le="0.1"} 0"#,
            r#"onceflow_retries_scheduled_total{consumer="metrics_test",rung="1000",reason="timeout"} 0"#,
            r#"onceflow_outbox_published_total{relay="default",outcome="returned"} 0"#,
            r#"onceflow_replays_total{consumer="metrics_test",outcome="failed_again"} 0"#,
            r#"onceflow_replay_jobs{state="paused"} 0"#,
            "onceflow_replay_remaining 0",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        assert!(text.contains("process_resident_memory_bytes"));
    }

    #[test]
    fn every_metric_has_a_help_text() {
        let handle = install(&[("metrics_test", vec!["metrics.test.v1"])], &[1000]).unwrap();
        let text = handle.render();
        for line in text.lines().filter(|l| l.starts_with("# TYPE ")) {
            let name = line.split(' ').nth(2).unwrap();
            assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help text");
        }
    }
}

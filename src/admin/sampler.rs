//! Gauges that come from the database: asked every 15 seconds, so that a scrape costs nothing there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::state::AdminState;
use crate::db::{DbError, Tx};
use crate::health::Check;
use crate::replay::{control, job};
use crate::telemetry::{self, DeadLetters, OutboxTotals, PoolTotals};

const SAMPLE_EVERY: Duration = Duration::from_secs(15);
/// A sample must not outlive its interval.
const SAMPLE_WITHIN: Duration = Duration::from_secs(8);

/// Samples until `stop`. The readiness gauges follow every change at once.
pub async fn sample(state: Arc<AdminState>, stop: CancellationToken) {
    tokio::join!(sample_database(&state, &stop), follow_readiness(&state, &stop));
}

async fn sample_database(state: &AdminState, stop: &CancellationToken) {
    let mut tick = tokio::time::interval(SAMPLE_EVERY);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let usage = state.pool.usage();
        telemetry::pool(PoolTotals { in_use: usage.in_use, idle: usage.idle, max: usage.max });
        // The gauges keep their last values while the database is away; its own check says so.
        if let Some(Err(_)) | None = stop.run_until_cancelled(tokio::time::timeout(SAMPLE_WITHIN, once(state))).await {
            tracing::debug!("the gauges were not sampled in time");
        }
    }
}

async fn once(state: &AdminState) {
    let Ok(tx) = state.begin_read().await else { return };
    let result = ask(&tx).await;
    tx.rollback().await;
    match result {
        Ok(sample) => record(state, &sample),
        Err(error) => tracing::debug!(%error, "the gauges could not be sampled"),
    }
}

struct Sample {
    dead: Vec<control::DeadLetterTotals>,
    held: Vec<control::HeldTotals>,
    outbox: control::OutboxTotals,
    inbox_rows: f64,
    jobs: (Vec<(String, i64)>, i64),
}

async fn ask(tx: &Tx) -> Result<Sample, DbError> {
    control::limit_statements(tx).await?;
    Ok(Sample {
        dead: control::dead_letter_totals(tx).await?,
        held: control::held_totals(tx).await?,
        outbox: control::outbox_totals(tx).await?,
        inbox_rows: control::inbox_estimate(tx).await?,
        jobs: job::totals(tx).await?,
    })
}

fn record(state: &AdminState, sample: &Sample) {
    let dead: BTreeMap<&str, &control::DeadLetterTotals> =
        sample.dead.iter().map(|d| (d.consumer.as_str(), d)).collect();
    // A consumer without dead letters has no row, and its gauges must go back to 0.
    for consumer in &state.consumers {
        let totals = dead.get(consumer.name).map_or_else(DeadLetters::default, |d| DeadLetters {
            open: d.open,
            replaying: d.replaying,
            archived: d.archived,
            groups: d.groups,
            oldest_age_seconds: d.oldest_age_seconds.unwrap_or(0.0),
        });
        telemetry::dead_letters(consumer.name, totals);
        let held = sample.held.iter().find(|held| held.consumer == consumer.name).map_or(0, |held| held.events);
        telemetry::held_events(consumer.name, held);
    }
    telemetry::outbox(OutboxTotals {
        pending: sample.outbox.pending,
        oldest_age_seconds: sample.outbox.oldest_pending_age_seconds.unwrap_or(0.0),
        parked: sample.outbox.parked,
    });
    telemetry::inbox_rows(sample.inbox_rows);
    let by_state: Vec<(&str, i64)> = sample.jobs.0.iter().map(|(state, count)| (state.as_str(), *count)).collect();
    telemetry::replay_jobs(&by_state, sample.jobs.1);
}

async fn follow_readiness(state: &AdminState, stop: &CancellationToken) {
    let mut changed = state.health.subscribe();
    loop {
        for (name, check) in state.health.snapshot() {
            telemetry::ready(&name, !matches!(check, Check::Waiting(_)));
        }
        match stop.run_until_cancelled(changed.changed()).await {
            Some(Ok(())) => {}
            Some(Err(_)) | None => return,
        }
    }
}

//! Status: what runs, what waits and for what. Without the database it says so and tells the rest from memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::super::health::reports;
use super::super::problem::Problem;
use super::super::state::{AdminState, end_read};
use super::super::wire::{CheckReport, ConsumerReport, StatusReport};
use crate::db::{DbError, Tx};
use crate::replay::control::{self, ConsumerSwitch, DeadLetterTotals, HeldTotals, OutboxTotals};
use crate::runtime::layout::{self, Layout};
use crate::telemetry;

pub(super) async fn status(State(state): State<Arc<AdminState>>) -> Json<StatusReport> {
    Json(report(&state).await)
}

struct Stored {
    switches: Vec<ConsumerSwitch>,
    layouts: BTreeMap<String, Layout>,
    dead: Vec<DeadLetterTotals>,
    held: Vec<HeldTotals>,
    outbox: OutboxTotals,
}

/// The whole status; the database's part is missing while it is away.
pub(super) async fn report(state: &AdminState) -> StatusReport {
    let checks = reports(&state.health.snapshot());
    let (stored, database_problem) = match stored(state).await {
        Ok(stored) => (Some(stored), None),
        Err(problem) => (None, Some(problem.detail().to_owned())),
    };
    let consumers = state.consumers.iter().map(|c| consumer(c.name, &checks, stored.as_ref())).collect();
    StatusReport {
        version: state.version.to_owned(),
        ready: state.health.is_ready(),
        checks,
        database_problem,
        consumers,
        outbox: stored.map(|s| s.outbox),
    }
}

async fn stored(state: &AdminState) -> Result<Stored, Problem> {
    let tx = state.begin_read().await?;
    let stored = ask(&tx).await;
    end_read(tx, stored).await
}

async fn ask(tx: &Tx) -> Result<Stored, DbError> {
    control::limit_statements(tx).await?;
    Ok(Stored {
        switches: control::switches(tx).await?,
        layouts: layout::all(tx).await?,
        dead: control::dead_letter_totals(tx).await?,
        held: control::held_totals(tx).await?,
        outbox: control::outbox_totals(tx).await?,
    })
}

fn consumer(name: &str, checks: &BTreeMap<String, CheckReport>, stored: Option<&Stored>) -> ConsumerReport {
    let switch = stored.and_then(|s| s.switches.iter().find(|s| s.consumer == name)).cloned();
    let dead = stored.map(|s| s.dead.iter().find(|d| d.consumer == name).cloned().unwrap_or_default());
    let held = stored.map(|s| s.held.iter().find(|h| h.consumer == name).cloned().unwrap_or_default());
    let (run, why) = condition(name, checks, switch.as_ref());
    ConsumerReport {
        consumer: name.to_owned(),
        state: run,
        why,
        partitions: stored.and_then(|s| s.layouts.get(name)).map(|layout| layout.partitions),
        since_start: telemetry::settled_since_start(name),
        dead_open: dead.as_ref().map(|d| d.open),
        dead_groups: dead.as_ref().map(|d| d.groups),
        dead_replaying: dead.as_ref().map(|d| d.replaying),
        dead_archived: dead.as_ref().map(|d| d.archived),
        dead_oldest_age_seconds: dead.and_then(|d| d.oldest_age_seconds),
        held_events: held.as_ref().map(|h| h.events),
        blocked_keys: held.map(|h| h.keys),
        switch,
    }
}

/// The operators' word first; then the consumer's own check, or that of something it needs.
fn condition(
    name: &str,
    checks: &BTreeMap<String, CheckReport>,
    switch: Option<&ConsumerSwitch>,
) -> (String, Option<String>) {
    if let Some(switch) = switch.filter(|s| s.paused) {
        return ("paused".to_owned(), Some(format!("{} ({})", switch.reason, switch.changed_by)));
    }
    let own = checks.iter().find(|(check, _)| check.rsplit(['.', ':', ' ']).next() == Some(name));
    let shared = || checks.iter().find(|(check, c)| !check.starts_with("consumer") && c.state == "waiting");
    match own.filter(|(_, c)| c.state != "ok").or_else(shared) {
        Some((check, report)) => {
            let why = report.why.as_ref().map_or_else(|| check.clone(), |why| format!("{check}: {why}"));
            (report.state.clone(), Some(why))
        }
        None => ("running".to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks(list: &[(&str, &str)]) -> BTreeMap<String, CheckReport> {
        let report = |state: &str| CheckReport { state: state.into(), why: Some("because".into()) };
        list.iter().map(|(name, state)| ((*name).to_owned(), report(state))).collect()
    }

    #[test]
    fn a_consumer_says_what_it_waits_for() {
        let state = |list: &[(&str, &str)]| condition("org", &checks(list), None).0;
        assert_eq!(state(&[("database", "ok"), ("consumer.org", "ok")]), "running");
        assert_eq!(state(&[("database", "waiting"), ("consumer.org", "ok")]), "waiting");
        assert_eq!(state(&[("consumer.org", "waiting"), ("consumer.sms", "ok")]), "waiting");
        assert_eq!(state(&[("consumer.sms", "waiting"), ("consumer.org", "ok")]), "running");
    }
}

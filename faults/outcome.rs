//! How one fault ended.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::checker::Findings;
use crate::rig::Rig;
use crate::suite::Fault;

/// A fault with everything that was found.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outcome {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) class: &'static str,
    /// Faults that were injected; more than one in chaos.
    pub(crate) injections: u64,
    pub(crate) seconds: f64,
    /// Milliseconds until an event that was published after the fault was applied.
    pub(crate) recoveries: Vec<u64>,
    /// Milliseconds from SIGTERM to the end, under load.
    pub(crate) drains: Vec<u64>,
    pub(crate) kills: u64,
    pub(crate) cuts: u64,
    pub(crate) backend_kills: u64,
    pub(crate) database_restarts: u64,
    pub(crate) broker_restarts: u64,
    pub(crate) confirmed: u64,
    pub(crate) redelivered: u64,
    pub(crate) lost: u64,
    pub(crate) twice: u64,
    pub(crate) partial: u64,
    pub(crate) unordered: u64,
    pub(crate) published: u64,
    pub(crate) sent_again: u64,
    pub(crate) burnt: u64,
    pub(crate) dead: u64,
    pub(crate) peak: u64,
    pub(crate) problems: Vec<String>,
}

impl Outcome {
    pub(crate) fn passed(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Lets the world come to rest, compares, clears the site.
pub(crate) async fn settle(fault: &Fault, ended: anyhow::Result<()>, rig: Rig, begun: Instant) -> Outcome {
    let (found, rig) = rig.finish().await;
    let mut findings = found.unwrap_or_else(|error| {
        let problems = vec![format!("the comparison could not be made: {error:#}")];
        Findings { problems, ..Findings::default() }
    });
    findings.problems.extend(ended.err().map(|error| format!("{error:#}")));
    if let Err(error) = rig.ground.clear(&rig.site).await {
        crate::say(&format!("{}: not cleared: {error:#}", fault.name));
    }
    put_together(fault, findings, &rig, begun.elapsed())
}

/// A world that could not even be made.
pub(crate) fn stillborn(fault: &Fault, error: &anyhow::Error) -> Outcome {
    let findings = Findings { problems: vec![format!("the world was not made: {error:#}")], ..Findings::default() };
    assemble(fault, findings, Duration::ZERO)
}

fn put_together(fault: &Fault, findings: Findings, rig: &Rig, took: Duration) -> Outcome {
    let tally = rig.tally;
    let milliseconds =
        |times: &[Duration]| times.iter().map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX)).collect();
    Outcome {
        recoveries: milliseconds(&rig.recoveries),
        drains: milliseconds(&rig.drains),
        kills: tally.kills,
        cuts: tally.cuts,
        backend_kills: tally.backend_kills,
        database_restarts: tally.database_restarts,
        broker_restarts: tally.broker_restarts,
        ..assemble(fault, findings, took)
    }
}

fn assemble(fault: &Fault, findings: Findings, took: Duration) -> Outcome {
    Outcome {
        name: fault.name,
        title: fault.title,
        class: fault.class(),
        injections: 1,
        seconds: took.as_secs_f64(),
        recoveries: Vec::new(),
        drains: Vec::new(),
        kills: 0,
        cuts: 0,
        backend_kills: 0,
        database_restarts: 0,
        broker_restarts: 0,
        confirmed: findings.confirmed,
        redelivered: findings.redelivered,
        lost: findings.lost,
        twice: findings.twice,
        partial: findings.partial,
        unordered: findings.unordered,
        published: findings.published,
        sent_again: findings.sent_again,
        burnt: findings.burnt,
        dead: findings.dead,
        peak: findings.peak,
        problems: findings.problems,
    }
}

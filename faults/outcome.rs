//! How one fault ended.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::checker::Findings;
use crate::rig::{Rig, Tally};
use crate::suite::Fault;

/// A fault that can't be injected on this machine, and why: neither passed nor failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Skipped(pub(crate) String);

/// A fault with everything that was found.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outcome {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) class: &'static str,
    /// Why it was not injected, where it was not.
    pub(crate) skipped: Option<String>,
    /// Faults that were injected; more than one in chaos.
    pub(crate) injections: u64,
    pub(crate) seconds: f64,
    /// Milliseconds until an event that was published after the fault was applied.
    pub(crate) recoveries: Vec<u64>,
    /// Milliseconds from SIGTERM to the end, under load.
    pub(crate) drains: Vec<u64>,
    #[serde(flatten)]
    pub(crate) tally: Tally,
    #[serde(flatten)]
    pub(crate) findings: Findings,
}

impl Outcome {
    pub(crate) fn passed(&self) -> bool {
        self.skipped.is_none() && !self.failed()
    }

    pub(crate) fn failed(&self) -> bool {
        !self.findings.problems.is_empty()
    }

    pub(crate) fn verdict(&self) -> &'static str {
        match (self.failed(), &self.skipped) {
            (true, _) => "FAILED",
            (false, Some(_)) => "SKIPPED",
            (false, None) => "ok",
        }
    }
}

/// Lets the world come to rest, compares, clears the site.
pub(crate) async fn settle(fault: &Fault, ended: anyhow::Result<()>, rig: Rig, begun: Instant) -> Outcome {
    let (found, rig) = rig.finish().await;
    let mut findings = found.unwrap_or_else(|error| {
        let problems = vec![format!("the comparison could not be made: {error:#}")];
        Findings { problems, ..Findings::default() }
    });
    let mut skipped = None;
    match ended.map_err(anyhow::Error::downcast::<Skipped>) {
        Ok(()) => {}
        Err(Ok(why)) => skipped = Some(why.0),
        Err(Err(error)) => findings.problems.push(format!("{error:#}")),
    }
    if let Err(error) = rig.ground.clear(&rig.site).await {
        crate::say(&format!("{}: not cleared: {error:#}", fault.name));
    }
    let injections = u64::from(skipped.is_none());
    Outcome { skipped, injections, ..put_together(fault, findings, &rig, begun.elapsed()) }
}

/// A world that could not even be made.
pub(crate) fn stillborn(fault: &Fault, error: &anyhow::Error) -> Outcome {
    let findings = Findings { problems: vec![format!("the world was not made: {error:#}")], ..Findings::default() };
    assemble(fault, findings, Duration::ZERO)
}

fn put_together(fault: &Fault, findings: Findings, rig: &Rig, took: Duration) -> Outcome {
    let milliseconds =
        |times: &[Duration]| times.iter().map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX)).collect();
    Outcome {
        recoveries: milliseconds(&rig.recoveries),
        drains: milliseconds(&rig.drains),
        tally: rig.tally,
        ..assemble(fault, findings, took)
    }
}

fn assemble(fault: &Fault, findings: Findings, took: Duration) -> Outcome {
    Outcome {
        name: fault.name,
        title: fault.title,
        class: fault.class(),
        skipped: None,
        injections: 1,
        seconds: took.as_secs_f64(),
        recoveries: Vec::new(),
        drains: Vec::new(),
        tally: Tally::default(),
        findings,
    }
}

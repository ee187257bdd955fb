//! A lane: takes batches and has each of their events end.
//!
//! A batch that fails is taken apart until the culprit stands alone, so that a bad event never harms its mates (I-6). While the database is away the lane holds its batch and
//! spends no attempt (I-7).

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng as _;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::attempt::{Attempt, Attempter, Entry, Failure, Settled};
use super::backlog::Backlog;
use super::job::{Content, Job};
use super::retry::RetryClass;
use super::settle::Settler;
use crate::db::{Class, DbError};
use crate::event::{Rejection, Stage};
use crate::health::{Check, Health};
use crate::pacing::Pacing;
use crate::telemetry;

/// Attempts at once, before a contended event goes to the retry queue. They cost no attempt of the event.
const CONTENTION_TRIES: u32 = 5;
/// Longest pause between two of them.
const CONTENTION_PAUSE: Duration = Duration::from_millis(50);

/// How the attempts at some events ended.
enum AtLast {
    Settled(Vec<Settled>),
    /// Others block the keys of these.
    Blocked(Vec<usize>),
}

/// An attempt that failed for a reason of its own.
struct Failed {
    why: Failure,
    took: Duration,
}

pub(super) struct Lane {
    pub(super) attempter: Attempter,
    pub(super) settler: Settler,
    pub(super) health: Arc<Health>,
    pub(super) backlog: Backlog,
    /// Ends everything at once; what is not acknowledged comes again.
    pub(super) abort: CancellationToken,
}

impl Lane {
    /// Runs until no further jobs come.
    pub(super) async fn run(self) {
        while let Some(mut batch) = self.backlog.next().await {
            let jobs = std::mem::take(&mut batch.jobs);
            tokio::select! {
                biased;
                () = self.abort.cancelled() => return,
                () = self.work_off(jobs) => {}
            }
        }
    }

    async fn work_off(&self, jobs: Vec<Job>) {
        let mut good = Vec::with_capacity(jobs.len());
        for job in jobs {
            // The broker delivers it again on the next channel.
            if !job.delivery.is_current() {
                continue;
            }
            match refused(&job) {
                Some(rejection) => {
                    if self.settler.keeps_order() {
                        // What came before it must not wait behind it.
                        Box::pin(self.work_through(std::mem::take(&mut good))).await;
                    }
                    self.settler.refused(job, &rejection).await;
                }
                None => good.push(job),
            }
        }
        self.work_through(good).await;
    }

    async fn work_through(&self, good: Vec<Job>) {
        if good.is_empty() {
            return;
        }
        // In order: what comes next is at the end.
        let mut groups = vec![good];
        while let Some(group) = groups.pop() {
            if let Err((mut jobs, failed)) = self.together(group).await {
                if jobs.len() > 1 {
                    groups.extend(apart(jobs, &failed.why).into_iter().rev());
                } else if let Some(alone) = jobs.pop() {
                    self.settler.failed(alone, failed.why, failed.took).await;
                }
            }
        }
    }

    /// Applies the jobs in one transaction, or gives them back with the reason why not.
    async fn together(&self, jobs: Vec<Job>) -> Result<(), (Vec<Job>, Failed)> {
        let mut jobs = self.settler.hold_known(jobs).await;
        while !jobs.is_empty() {
            let entries: Vec<Entry> = jobs.iter().filter_map(entry).collect();
            match self.attempt_at_last(&entries).await {
                Err(failed) => return Err((jobs, failed)),
                // Those that need not wait after all are attempted with the others.
                Ok(AtLast::Blocked(which)) => jobs = self.settler.hold(jobs, &which).await,
                Ok(AtLast::Settled(settled)) => {
                    self.settler.settled(&jobs, &settled).await;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Attempts until it is committed or fails for a reason of its own; outages and contention are waited out.
    async fn attempt_at_last(&self, entries: &[Entry]) -> Result<AtLast, Failed> {
        let claim_id = Uuid::now_v7();
        let mut pacing = Pacing::reconnect();
        let mut contended = 0;
        let mut away = false;
        loop {
            let begun = Instant::now();
            let attempt = self.attempter.attempt(claim_id, entries).await;
            // Nobody else takes back what we have said, so any other end does.
            if away && !matches!(attempt, Attempt::Away(_)) {
                away = false;
                self.report_back();
            }
            match attempt {
                Attempt::Done(settled) => return Ok(AtLast::Settled(settled)),
                Attempt::Blocked(which) => return Ok(AtLast::Blocked(which)),
                Attempt::Away(error) => {
                    away = true;
                    self.report_away(&error);
                    tokio::time::sleep(pacing.next_wait()).await;
                }
                Attempt::Failed(Failure::Passing { class: RetryClass::Contention, .. })
                    if contended < CONTENTION_TRIES =>
                {
                    contended += 1;
                    telemetry::serialization_retry();
                    let pause = CONTENTION_PAUSE.mul_f64(rand::rng().random_range(0.0..1.0));
                    tokio::time::sleep(pause).await;
                }
                Attempt::Failed(why) => return Err(Failed { why, took: begun.elapsed() }),
            }
        }
    }

    fn report_away(&self, error: &DbError) {
        let (check, advice) = match error.class() {
            Class::Schema => ("schema", "tables and program don't fit: run `onceflow migrate` or the matching version"),
            _ => ("database", "consuming pauses, no attempt is spent, nothing is lost"),
        };
        if self.health.set(check, Check::Waiting(format!("{error}; {advice}"))) {
            warn!(%error, "waiting for the database: {error}; {advice}");
        }
    }

    fn report_back(&self) {
        let schema = self.health.set("schema", Check::Ok);
        if self.health.set("database", Check::Ok) || schema {
            info!("the database is back");
        }
    }
}

/// Smaller groups in the same order. One bad event among many is found by halving; one that takes until the timeout would be
/// waited for at each halving, so then all go alone.
fn apart(mut jobs: Vec<Job>, failure: &Failure) -> Vec<Vec<Job>> {
    if failure.is_timeout() {
        return jobs.into_iter().map(|job| vec![job]).collect();
    }
    let second = jobs.split_off(jobs.len() / 2);
    vec![jobs, second]
}

fn refused(job: &Job) -> Option<Rejection> {
    match &job.content {
        Content::Event(..) => None,
        Content::Refused(_, rejection) | Content::Unreadable(rejection) => Some(rejection.clone()),
    }
}

fn entry(job: &Job) -> Option<Entry> {
    match &job.content {
        Content::Event(envelope, event) => Some(Entry {
            envelope: envelope.clone(),
            event: event.clone(),
            replay_id: job.history.replay_id,
            redelivered: job.delivery.redelivered,
        }),
        Content::Refused(..) | Content::Unreadable(_) => None,
    }
}

/// Keeps the stage names in one place for what the broker itself gave up on.
pub(super) fn broker_rejection(code: &'static str, message: String) -> Rejection {
    Rejection { stage: Stage::Broker, code, message }
}

//! A lane: what has one ordering key is handled here, in order.
//!
//! What is waiting goes together, up to a bound; nothing waits for company. A batch that fails is taken apart and its events are
//! tried one by one, so that a bad event never harms its mates (I-6). While the database is away the lane holds its batch and
//! spends no attempt (I-7).

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::attempt::{Attempt, Attempter, Entry, Failure};
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
/// Most bytes of a batch, one event aside: each is in memory several times over while it is applied.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// Longest pause between two of them.
const CONTENTION_PAUSE: Duration = Duration::from_millis(50);

pub(super) struct Lane {
    pub(super) attempter: Attempter,
    pub(super) settler: Settler,
    pub(super) health: Arc<Health>,
    pub(super) batch: usize,
    /// Ends everything at once; what is not acknowledged comes again.
    pub(super) abort: CancellationToken,
}

impl Lane {
    /// Runs until the sender is gone.
    pub(super) async fn run(self, mut jobs: mpsc::Receiver<Job>) {
        let mut copies = Vec::new();
        loop {
            if copies.is_empty() {
                let Some(first) = jobs.recv().await else { return };
                copies.push(first);
            }
            let batch;
            (batch, copies) = gather(copies, &mut jobs, self.batch);
            tokio::select! {
                biased;
                () = self.abort.cancelled() => return,
                () = self.work_off(batch) => {}
            }
        }
    }

    async fn work_off(&self, batch: Vec<Job>) {
        let mut good = Vec::with_capacity(batch.len());
        for job in batch {
            // The broker delivers it again on the next channel.
            if !job.delivery.is_current() {
                continue;
            }
            match refused(&job) {
                Some(rejection) => self.settler.dead(job, &rejection).await,
                None => good.push(job),
            }
        }
        if good.len() > 1 {
            match self.together(good).await {
                Ok(()) => return,
                Err((apart, _)) => good = apart,
            }
        }
        for job in good {
            self.alone(job).await;
        }
    }

    /// Applies the jobs in one transaction, or gives them back with the reason why not.
    async fn together(&self, jobs: Vec<Job>) -> Result<(), (Vec<Job>, Failure)> {
        let entries: Vec<Entry> = jobs.iter().filter_map(entry).collect();
        match self.attempt_at_last(&entries).await {
            Err(failure) => Err((jobs, failure)),
            Ok(settled) => {
                self.settler.settled(&jobs, &settled).await;
                Ok(())
            }
        }
    }

    async fn alone(&self, job: Job) {
        if let Err((jobs, failure)) = self.together(vec![job]).await {
            let mut failure = Some(failure);
            for job in jobs {
                if let Some(failure) = failure.take() {
                    self.settler.failed(job, failure).await;
                }
            }
        }
    }

    /// Attempts until it is committed or fails for a reason of its own; outages and contention are waited out.
    async fn attempt_at_last(&self, entries: &[Entry]) -> Result<Vec<super::attempt::Settled>, Failure> {
        let claim_id = Uuid::now_v7();
        let mut pacing = Pacing::reconnect();
        let mut contended = 0;
        let mut away = false;
        loop {
            match self.attempter.attempt(claim_id, entries).await {
                Attempt::Done(settled) => {
                    if away {
                        self.report_back();
                    }
                    return Ok(settled);
                }
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
                Attempt::Failed(failure) => return Err(failure),
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

/// Takes what is waiting, after the jobs of `first`. A second delivery of an event that is in the batch is left for the next
/// one: whether it is a duplicate depends on how the first ends.
fn gather(first: Vec<Job>, jobs: &mut mpsc::Receiver<Job>, most: usize) -> (Vec<Job>, Vec<Job>) {
    let room = most.min(first.len() + jobs.len());
    let (mut batch, mut copies) = (Vec::with_capacity(room), Vec::new());
    // Two events whose hashes agree by chance don't go together either, which harms nobody.
    let mut identities = HashSet::with_capacity(room);
    let mut waiting = first.into_iter();
    let mut bytes = 0;
    while batch.len() + copies.len() + waiting.len() < most && bytes < BATCH_BYTES || waiting.len() > 0 {
        let Some(job) = waiting.next().or_else(|| jobs.try_recv().ok()) else { break };
        bytes += job.delivery.message.body.len();
        if identity_hash(&job).is_none_or(|hash| identities.insert(hash)) {
            batch.push(job);
        } else {
            copies.push(job);
        }
    }
    (batch, copies)
}

fn identity_hash(job: &Job) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    job.identity()?.hash(&mut hasher);
    Some(hasher.finish())
}

fn refused(job: &Job) -> Option<Rejection> {
    match &job.content {
        Content::Event(..) => None,
        Content::Refused(_, rejection) | Content::Unreadable(rejection) => Some(rejection.clone()),
    }
}

fn entry(job: &Job) -> Option<Entry> {
    match &job.content {
        Content::Event(envelope, event) => {
            Some(Entry { envelope: envelope.clone(), event: event.clone(), replay_id: job.history.replay_id })
        }
        Content::Refused(..) | Content::Unreadable(_) => None,
    }
}

/// Keeps the stage names in one place for what the broker itself gave up on.
pub(super) fn broker_rejection(code: &'static str, message: String) -> Rejection {
    Rejection { stage: Stage::Broker, code, message }
}

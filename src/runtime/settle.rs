//! How every delivery ends: one function for each end, and an ack only after what it stands for is safe (I-1).
//!
//! | end | before the ack |
//! |---|---|
//! | applied, duplicate, skipped | the transaction is committed |
//! | retry | the copy in the retry queue is confirmed |
//! | dead | the dead letter is committed |
//!
//! Where a consumer is strict, what fails first takes its place in the order of its key (`waiting`).
//!
//! What failed also leaves a row in the history of its event (`attempts`).

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::attempt::{Failure, Settled};
use super::attempts::{Attempts, FailedAttempt, Timing};
use super::contract::Skip;
use super::dead_letter::{DeadLetter, Identity, bury};
use super::headers::mark_failed;
use super::job::Job;
use super::kill_switch::{Failed, KillSwitch};
use super::order::Line;
use super::retry::{RetryClass, jittered};
use super::settings::Settings;
use super::wire::sanitize_headers;
use crate::broker::{Delivery, Fate, Outgoing, Publisher, acknowledge};
use crate::clock;
use crate::db::{Class, DbError, Pool};
use crate::event::{Rejection, Stage};
use crate::failpoint;
use crate::message::Route;
use crate::pacing::Pacing;
use crate::telemetry;

/// Ends deliveries of one consumer.
#[derive(Clone)]
pub(super) struct Settler {
    pub(super) consumer: &'static str,
    pub(super) settings: Arc<Settings>,
    pub(super) pool: Pool,
    pub(super) retries: Arc<Publisher>,
    pub(super) switch: KillSwitch,
    pub(super) attempts: Attempts,
    /// Where events wait for each other.
    pub(super) line: Option<Line>,
    /// Work that can't end otherwise is given up, unacknowledged, when this fires.
    pub(super) abort: CancellationToken,
}

impl Settler {
    /// The transaction of these jobs is committed; one end each.
    pub(super) async fn settled(&self, jobs: &[Job], ends: &[Settled]) {
        failpoint::hit("before_ack");
        self.ack(jobs).await;
        self.switch.passed(jobs.len());
        for (job, end) in jobs.iter().zip(ends) {
            let outcome = match end {
                Settled::Applied => {
                    note_lag(self.consumer, job);
                    "applied"
                }
                Settled::Duplicate { conflict } => {
                    self.note_duplicate(job, *conflict);
                    "duplicate"
                }
                Settled::Skipped(Skip::Stale) => "stale",
                Settled::Skipped(Skip::Because(reason)) => {
                    debug!(consumer = self.consumer, reason, "skipped: {reason}");
                    "ignored"
                }
            };
            job.count(self.consumer, outcome);
            // A copy of a replay that was dealt with before comes again only because its ack was lost.
            if job.history.replay_id.is_some() && !(outcome == "duplicate" && job.delivery.redelivered) {
                telemetry::replays(self.consumer, "succeeded", 1);
            }
        }
        if ends.contains(&Settled::Applied) {
            telemetry::last_success(self.consumer, clock::unix_seconds());
        }
    }

    /// The event was refused before anything was attempted.
    pub(super) async fn refused(&self, job: Job, rejection: &Rejection) {
        let Some(job) = self.at_its_place(job).await else { return };
        if !self.switch.holds_back(&job, failed_by(rejection)) {
            self.dead(job, rejection, None).await;
        }
    }

    /// An attempt at this one event was rolled back, after so long.
    pub(super) async fn failed(&self, job: Job, failure: Failure, took: Duration) {
        let Some(job) = self.at_its_place(job).await else { return };
        if failed_as(&failure).is_some_and(|failed| self.switch.holds_back(&job, failed)) {
            return;
        }
        match failure {
            Failure::Rejected(rejection) => self.dead(job, &rejection, Some(took)).await,
            Failure::Passing { class, code, message } => {
                match self.settings.retry.rung(class, job.history.attempts.saturating_add(1)) {
                    Some(rung) => self.retry(job, (rung, took), code, &message).await,
                    None => self.dead(job, &exhausted(class, code, &message), Some(took)).await,
                }
            }
        }
    }

    /// Puts a copy into the retry queue of `rung`, then acknowledges the original.
    async fn retry(&self, job: Job, (rung, took): (Duration, Duration), code: &'static str, error: &str) {
        let now = clock::now();
        self.note(&job, now, (code, error), Timing { took: Some(took), retry_in: Some(rung) }).await;
        let mut message = job.delivery.message.clone();
        message.headers = sanitize_headers(&message.headers);
        mark_failed(&mut message, &job.history, error, now);
        message.expiration = Some(jittered(rung).as_millis().to_string());
        let route = Route { exchange: String::new(), routing_key: self.settings.names.retry(self.consumer, rung) };
        if !self.publish_at_last(&job.delivery, Outgoing { route, message }).await {
            return;
        }
        failpoint::hit("after_retry_publish");
        self.ack(std::slice::from_ref(&job)).await;
        let rung_ms = u64::try_from(rung.as_millis()).unwrap_or(u64::MAX);
        telemetry::retry_scheduled(self.consumer, rung_ms, code);
        job.count(self.consumer, "retry");
        let attempt = job.history.attempts.saturating_add(1);
        let event = job.envelope().map_or("", |e| &e.id);
        info!(
            consumer = self.consumer,
            event.id = event,
            attempt,
            code,
            error,
            "event {event} failed at attempt {attempt}, tried again in about {rung_ms} ms"
        );
    }

    /// Writes an attempt into the event's history, unless the database keeps us waiting.
    async fn note(&self, job: &Job, now: Timestamp, why: (&str, &str), timing: Timing) {
        let Some(envelope) = job.envelope() else { return };
        let identity = Identity::of_event(envelope);
        let number = job.history.attempts.saturating_add(1);
        let failed = FailedAttempt::passing((self.consumer, &identity), (number, now), why, timing);
        self.attempts.note(&self.pool, &failed.of_replay(job.history.replay_id)).await;
    }

    /// Returns false when the delivery went stale or the process ends: the broker still has the original.
    pub(super) async fn publish_at_last(&self, delivery: &Delivery, outgoing: Outgoing) -> bool {
        let mut pacing = Pacing::reconnect();
        while delivery.is_current() && !self.abort.is_cancelled() {
            match self.retries.publish(vec![outgoing.clone()], &self.abort).await {
                Ok(fates) if fates == [Fate::Confirmed] => return true,
                Ok(fates) => {
                    warn!(consumer = self.consumer, ?fates, "the retry queue did not take a message; trying again");
                    self.retries.start_over().await;
                }
                Err(error) => {
                    warn!(consumer = self.consumer, %error, "publishing to the retry queue: {error}; trying again")
                }
            }
            self.pause(&mut pacing).await;
        }
        false
    }

    /// Stores a dead letter, then acknowledges the original. `took` is how long the attempt was, where there was one.
    async fn dead(&self, job: Job, rejection: &Rejection, took: Option<Duration>) {
        let now = clock::now();
        let message = &job.delivery.message;
        let identity = job.envelope().map_or_else(|| Identity::of_unreadable(message), |e| Identity::of_event(e));
        let event_id = identity.event_id.clone();
        let dead = DeadLetter {
            consumer: self.consumer,
            identity,
            message,
            origin: job.history.origin.clone(),
            stage: rejection.stage.as_str(),
            reason: rejection.code.to_owned(),
            error_chain: vec![super::wire::text_without_nul(&rejection.message)],
            attempts: job.history.attempts.saturating_add(1),
            first_failed_at: job.history.first_failed_at.unwrap_or(now),
            last_failed_at: now,
            replay_id: job.history.replay_id,
        };
        if !self.bury_at_last(&dead, took).await {
            return;
        }
        failpoint::hit("after_dead_letter");
        self.ack(std::slice::from_ref(&job)).await;
        let (stage, reason) = (rejection.stage.as_str(), rejection.code);
        telemetry::dead_letter(self.consumer, metric_reason(rejection));
        job.count(self.consumer, "dead");
        warn!(consumer = self.consumer, event.id = event_id, stage, reason, "event {event_id} is dead: {rejection}");
    }

    /// Commits a dead letter, however long the database is away. Returns false when the process ends first.
    pub(super) async fn bury_at_last(&self, dead: &DeadLetter<'_>, took: Option<Duration>) -> bool {
        let last = FailedAttempt::last(dead, took);
        let mut pacing = Pacing::reconnect();
        while !self.abort.is_cancelled() {
            match self.bury(dead, &last).await {
                Ok(()) => {
                    if dead.replay_id.is_some() {
                        telemetry::replays(self.consumer, "failed_again", 1);
                    }
                    return true;
                }
                Err(error) => {
                    if !matches!(error.class(), Class::Outage | Class::Contention) {
                        warn!(consumer = self.consumer, %error, "storing a dead letter: {error}; trying again");
                    }
                    self.pause(&mut pacing).await;
                }
            }
        }
        false
    }

    async fn bury(&self, dead: &DeadLetter<'_>, last: &FailedAttempt<'_>) -> Result<(), DbError> {
        let tx = self.pool.begin().await?;
        bury(&tx, dead).await?;
        self.attempts.record(&tx, last).await?;
        // Stored twice, it would only be counted twice: the row is one per live event.
        tx.commit_repeatable().await
    }

    pub(super) async fn pause(&self, pacing: &mut Pacing) {
        tokio::select! {
            () = self.abort.cancelled() => {}
            () = tokio::time::sleep(pacing.next_wait()) => {}
        }
    }

    /// A lost ack is no loss: the messages come again and the inbox knows them.
    pub(super) async fn ack(&self, jobs: &[Job]) {
        let deliveries: Vec<&Delivery> = jobs.iter().map(|job| &job.delivery).collect();
        match acknowledge(&deliveries).await {
            Ok(true) => {}
            Ok(false) => debug!(consumer = self.consumer, "stale ack: the broker delivers the messages again"),
            Err(error) => debug!(consumer = self.consumer, %error, "acks lost: the broker delivers the messages again"),
        }
    }

    fn note_duplicate(&self, job: &Job, conflict: bool) {
        let Some(envelope) = job.envelope().filter(|_| conflict) else { return };
        telemetry::conflict(self.consumer);
        warn!(
            consumer = self.consumer,
            event.id = envelope.id,
            event.source = envelope.source,
            "event {} came again with another body: the first one stands; its producer must not reuse ids",
            envelope.id
        );
    }
}

fn note_lag(consumer: &'static str, job: &Job) {
    let Some(time) = job.envelope().and_then(|e| e.time) else { return };
    if let Ok(took) = Duration::try_from(clock::now().duration_since(time)) {
        telemetry::end_to_end(consumer, took);
    }
}

fn failed_by(rejection: &Rejection) -> Failed<'_> {
    Failed { stage: rejection.stage.as_str(), code: rejection.code, message: &rejection.message }
}

/// What counts for the kill switch: neither locks in the way nor a consumer that asks for time.
fn failed_as(failure: &Failure) -> Option<Failed<'_>> {
    match failure {
        Failure::Rejected(rejection) => Some(failed_by(rejection)),
        Failure::Passing { class: RetryClass::Growing, code, message } => {
            Some(Failed { stage: "attempt", code, message })
        }
        Failure::Passing { .. } => None,
    }
}

fn exhausted(class: RetryClass, code: &'static str, message: &str) -> Rejection {
    let hint = match class {
        RetryClass::Contention => "locks were in the way each time",
        RetryClass::Growing => "each attempt failed",
        RetryClass::AtLeast(_) => "the consumer kept asking for another attempt",
    };
    Rejection { stage: Stage::Exhausted, code, message: format!("attempts used up, {hint}; the last one: {message}") }
}

/// The closed set of reasons that the metric knows.
fn metric_reason(rejection: &Rejection) -> &'static str {
    match (rejection.stage, rejection.code) {
        (Stage::Decode, _) => "decode",
        (Stage::Validate, _) => "validate",
        (Stage::Exhausted, "timeout") => "timeout",
        (Stage::Exhausted, _) => "exhausted",
        (Stage::Broker, "expired") => "expired",
        (Stage::Broker, _) => "delivery_limit",
        (Stage::Handle | Stage::Database, _) => "handler",
    }
}

//! The part of settling that keeps order through failure; what the lines are and why they hold is told in `order`.
//!
//! | end | before the ack |
//! |---|---|
//! | held | its place and its message are committed |
//! | goes round, because there is no room | its place is committed, and the copy in the retry queue is confirmed |

use std::time::Duration;

use tracing::{debug, warn};

use super::headers::mark_waiting;
use super::job::Job;
use super::order::{Line, Place, Waiting};
use super::settle::Settler;
use super::wire::sanitize_headers;
use crate::broker::{Delivery, Outgoing};
use crate::db::{Class, DbError, Pool};
use crate::failpoint;
use crate::message::Route;
use crate::pacing::Pacing;
use crate::telemetry;

/// About how long a message goes round for which there is no room: the longest delay up to this one. A shorter one would keep
/// the broker busy with a long line, a longer one would leave room unused.
const ROUND: Duration = Duration::from_secs(30);

impl Settler {
    /// Whether what follows a failed event waits for it.
    pub(super) fn keeps_order(&self) -> bool {
        self.line.is_some()
    }

    /// Of an event that has failed: blocks its key. `None` when it had to wait itself and is settled, or the process ends.
    pub(super) async fn at_its_place(&self, job: Job) -> Option<Job> {
        let (Some(line), Some(failed)) = (&self.line, waiting(&job)) else { return Some(job) };
        let place = self.placed(line, &[failed], true).await?.pop();
        failpoint::hit("after_block");
        match place.unwrap_or(Place::First) {
            Place::First => return Some(job),
            Place::Waits => self.held(&[job]).await,
            Place::Circles => self.go_round(job).await,
        }
        None
    }

    /// Whether a message that the broker gave up on may become a dead letter now. If not, it waits and is acknowledged, or stays.
    pub(super) async fn may_die(&self, delivery: &Delivery, failed: Waiting<'_>) -> bool {
        let Some(line) = &self.line else { return true };
        let place = self.placed(line, &[failed], true).await.and_then(|mut places| places.pop());
        let settled = match place {
            Some(Place::First) => return true,
            Some(Place::Waits) => true,
            Some(Place::Circles) => self.publish_at_last(delivery, self.round(failed)).await,
            None => false,
        };
        if settled && let Err(error) = delivery.ack().await {
            debug!(consumer = self.consumer, %error, "ack lost: the message comes again and has its place");
        }
        false
    }

    /// Settles those whose keys are known to be blocked: an attempt with them would be in vain, and made again for the others.
    /// What was sent here, and not published to all, is likely to be what blocks.
    pub(super) async fn hold_known(&self, jobs: Vec<Job>) -> Vec<Job> {
        let Some(line) = &self.line else { return jobs };
        let is_known = |job: &Job| {
            !job.delivery.route.exchange.is_empty() && job.envelope().is_some_and(|event| line.was_blocked(event))
        };
        let known: Vec<usize> = jobs.iter().enumerate().filter(|(_, job)| is_known(job)).map(|(n, _)| n).collect();
        if known.is_empty() { jobs } else { self.hold(jobs, &known).await }
    }

    /// Settles those of a batch that have to wait, and gives back the others in their order.
    pub(super) async fn hold(&self, jobs: Vec<Job>, which: &[usize]) -> Vec<Job> {
        let Some(line) = &self.line else { return jobs };
        let blocked: Vec<Waiting<'_>> = which.iter().filter_map(|n| jobs.get(*n).and_then(waiting)).collect();
        // Without an answer the process ends: what is not acknowledged comes again.
        let Some(places) = self.placed(line, &blocked, false).await else { return Vec::new() };
        failpoint::hit("after_hold");
        let (mut others, mut held, mut round) = (Vec::new(), Vec::new(), Vec::new());
        let mut places = which.iter().zip(places).peekable();
        for (n, job) in jobs.into_iter().enumerate() {
            match places.next_if(|(place, _)| **place == n).map(|(_, place)| place) {
                None | Some(Place::First) => others.push(job),
                Some(Place::Waits) => held.push(job),
                Some(Place::Circles) => round.push(job),
            }
        }
        self.held(&held).await;
        for job in round {
            self.go_round(job).await;
        }
        others
    }

    async fn held(&self, jobs: &[Job]) {
        self.ack(jobs).await;
        for job in jobs {
            job.count(self.consumer, "held");
            let event = job.envelope().map_or("", |e| &e.id);
            debug!(consumer = self.consumer, event.id = event, "event {event} waits behind one of its key that failed");
        }
    }

    /// Nothing of the message is kept here, so its copy is safe before the original is acknowledged.
    async fn go_round(&self, job: Job) {
        let Some(waiting) = waiting(&job) else { return };
        if !self.publish_at_last(&job.delivery, self.round(waiting)).await {
            return;
        }
        self.ack(std::slice::from_ref(&job)).await;
        let rung_ms = u64::try_from(self.rung().as_millis()).unwrap_or(u64::MAX);
        telemetry::retry_scheduled(self.consumer, rung_ms, "held");
        job.count(self.consumer, "retry");
    }

    fn round(&self, waiting: Waiting<'_>) -> Outgoing {
        let mut message = waiting.message.clone();
        message.headers = sanitize_headers(&message.headers);
        mark_waiting(&mut message, waiting.history);
        message.expiration = None;
        let routing_key = self.settings.names.retry(self.consumer, self.rung());
        Outgoing { route: Route { exchange: String::new(), routing_key }, message }
    }

    fn rung(&self) -> Duration {
        let rungs = &self.settings.retry.rungs;
        let longest = rungs.iter().rev().find(|rung| **rung <= ROUND).or(rungs.first());
        longest.copied().unwrap_or(ROUND)
    }

    /// Commits the places of events, however long the database is away. `None` when the process ends first.
    async fn placed(&self, line: &Line, events: &[Waiting<'_>], failed: bool) -> Option<Vec<Place>> {
        let mut pacing = Pacing::reconnect();
        while !self.abort.is_cancelled() {
            match place(&self.pool, line, events, failed).await {
                Ok(places) => return Some(places),
                Err(error) => {
                    if !matches!(error.class(), Class::Outage | Class::Contention) {
                        warn!(consumer = self.consumer, %error, "keeping the order of a key: {error}; trying again");
                    }
                    self.pause(&mut pacing).await;
                }
            }
        }
        None
    }
}

/// One transaction; done twice it has the same end.
async fn place(pool: &Pool, line: &Line, events: &[Waiting<'_>], failed: bool) -> Result<Vec<Place>, DbError> {
    let tx = pool.begin().await?;
    let places = match events {
        [alone] if failed => vec![line.block(&tx, *alone).await?],
        events => line.hold(&tx, events).await?,
    };
    tx.commit_repeatable().await?;
    Ok(places)
}

/// `None` where the envelope can't be read: nobody knows its key.
fn waiting(job: &Job) -> Option<Waiting<'_>> {
    let envelope = job.envelope()?;
    Some(Waiting { envelope, message: &job.delivery.message, history: &job.history })
}

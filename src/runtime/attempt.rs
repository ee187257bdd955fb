//! One attempt at a batch: claim, handle, append, commit, all in one transaction.
//!
//! ```text
//! begin and claim in the inbox → consumer.handle → record what differs → append to the outbox and commit
//! ```
//! As long as copies are rare, the first two go together: the consumer handles all events before the claim is answered, which
//! saves a round trip, and should one of them not be new after all, everything is rolled back and done in turn.
//!
//! Where the consumer is strict, a look at its blocked keys goes with the claim. What is blocked ends the attempt; a head that is dealt
//! with lets the next of its line go, in the same transaction.
//!
//! An attempt has no effect outside its transaction, so every end but `Done` can be followed by another attempt. The claim id
//! stays the same over the attempts of a batch: should a COMMIT of ours have gone through unseen, its rows are recognised.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{join, join3};
use uuid::Uuid;

use super::contract::{HandleError, Outcome, Skip};
use super::copies::Copies;
use super::dead_letter;
use super::erased::{AnyConsumer, Decoded};
use super::inbox::{self, Claim, Fact};
use super::job::fingerprint;
use super::order::{Line, Looked};
use super::retry::RetryClass;
use crate::db::{Class, Commit, DbError, Pool, Tx};
use crate::event::{Downstream, Envelope, Rejection, Stage};
use crate::failpoint;
use crate::outbox::{self, OutboxRow};
use crate::telemetry;

/// An event as an attempt needs it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) envelope: Arc<Envelope>,
    pub(super) event: Decoded,
    pub(super) replay_id: Option<Uuid>,
    /// The broker has delivered it before.
    pub(super) redelivered: bool,
}

/// How an attempt ended.
#[derive(Debug)]
pub(super) enum Attempt {
    /// Committed; one end per event.
    Done(Vec<Settled>),
    /// Rolled back because of this; when the batch had several events, any of them may be the cause.
    Failed(Failure),
    /// Rolled back because other events block the keys of these, by their place in the batch.
    Blocked(Vec<usize>),
    /// The database is away, or the answer to COMMIT was lost: wait, then try again with the same claim.
    Away(DbError),
}

/// How one event ended in a committed transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settled {
    Applied,
    Duplicate { conflict: bool },
    Skipped(Skip),
}

/// Why an attempt was rolled back.
#[derive(Debug)]
pub(super) enum Failure {
    /// It can never work.
    Rejected(Rejection),
    /// It may work later.
    Passing { class: RetryClass, code: &'static str, message: String },
}

impl Failure {
    /// Whether each further attempt may take as long again.
    pub(super) fn is_timeout(&self) -> bool {
        matches!(self, Self::Passing { code: TIMEOUT, .. })
    }
}

/// Code of a handler or statement that took too long.
const TIMEOUT: &str = "timeout";

/// Runs attempts for one consumer.
#[derive(Clone)]
pub(super) struct Attempter {
    pub(super) consumer: Arc<dyn AnyConsumer>,
    pub(super) pool: Pool,
    pub(super) handler_timeout: Duration,
    pub(super) outbox: outbox::Handover,
    pub(super) copies: Arc<Copies>,
    /// Where events wait for each other.
    pub(super) line: Option<Line>,
}

/// What is ready to be committed.
type Done = (Vec<Settled>, Vec<OutboxRow>);

/// What became of events that were handled before their claim was answered.
enum Hoped {
    Done(Done),
    Blocked(Vec<usize>),
    /// One was not new, or anything failed.
    InVain,
}

impl Attempter {
    /// One attempt at `entries`, whose identities differ.
    pub(super) async fn attempt(&self, claim_id: Uuid, entries: &[Entry]) -> Attempt {
        self.outbox.room().await;
        let started = Instant::now();
        let (tx, (settled, downstream)) = match self.work(claim_id, entries).await {
            Ok(worked) => worked,
            Err(ended) => return ended,
        };
        failpoint::hit("before_commit");
        let committed = outbox::append_and_commit(tx, downstream, &self.outbox).await;
        telemetry::db_transaction("apply", started.elapsed());
        match committed {
            Commit::Committed => {
                failpoint::hit("after_commit");
                Attempt::Done(settled)
            }
            Commit::RolledBack(error) => ended_by(error),
            Commit::Unknown(error) => Attempt::Away(error),
        }
    }

    /// All that comes before the commit.
    async fn work(&self, claim_id: Uuid, entries: &[Entry]) -> Result<(Tx, Done), Attempt> {
        if self.copies.are_unlikely(entries) {
            let tx = self.begin().await?;
            match self.guarded(self.together(&tx, claim_id, entries)).await? {
                Hoped::Done(done) => return Ok((tx, done)),
                Hoped::Blocked(which) => {
                    tx.rollback().await;
                    return Err(Attempt::Blocked(which));
                }
                Hoped::InVain => tx.rollback().await,
            }
            self.copies.be_careful();
        }
        let tx = self.begin().await?;
        match self.guarded(self.in_turn(&tx, claim_id, entries)).await? {
            Ok(done) => Ok((tx, done)),
            Err(stop) => {
                tx.rollback().await;
                Err(stop)
            }
        }
    }

    async fn begin(&self) -> Result<Tx, Attempt> {
        failpoint::hit("before_begin");
        self.pool.begin_with_first_statement().await.map_err(ended_by)
    }

    /// Nobody waits for a handler that hangs, and none takes its lane down. After an error the transaction is dropped, which
    /// closes its connection.
    async fn guarded<T>(&self, work: impl Future<Output = T>) -> Result<T, Attempt> {
        // On the heap, once for a batch: a handler's future is large, and each layer around it would copy it to the stack.
        let work = Box::pin(work);
        match tokio::time::timeout(self.handler_timeout, AssertUnwindSafe(work).catch_unwind()).await {
            Ok(Ok(worked)) => Ok(worked),
            Ok(Err(panic)) => Err(Attempt::Failed(panicked(&*panic))),
            Err(_) => Err(Attempt::Failed(timed_out(self.handler_timeout))),
        }
    }

    /// Handles all events before the claim is answered.
    async fn together(&self, tx: &Tx, claim_id: Uuid, entries: &[Entry]) -> Hoped {
        let all: Vec<&Entry> = entries.iter().collect();
        // In this order: the claim is sent first.
        let work = join3(self.claim(tx, claim_id, entries), self.look(tx, entries), self.handle(tx, &all));
        let (Ok(claims), Ok(looked), outcomes) = work.await else { return Hoped::InVain };
        if claims.iter().any(|claim| *claim != Claim::New) {
            return Hoped::InVain;
        }
        let blocked = blocked(&claims, &looked);
        if !blocked.is_empty() {
            return Hoped::Blocked(blocked);
        }
        let Ok(outcomes) = outcomes else { return Hoped::InVain };
        let settled = settle(&claims, &outcomes);
        let Ok(downstream) = self.write_down(tx, &all, outcomes).await else { return Hoped::InVain };
        match self.let_follow(tx, entries, &looked).await {
            Ok(()) => Hoped::Done((settled, downstream)),
            Err(_) => Hoped::InVain,
        }
    }

    /// Handles the events that the claim has found to be new.
    async fn in_turn(&self, tx: &Tx, claim_id: Uuid, entries: &[Entry]) -> Result<Done, Attempt> {
        let (claims, looked) = join(self.claim(tx, claim_id, entries), self.look(tx, entries)).await;
        let (claims, looked) = (claims.map_err(ended_by)?, looked.map_err(ended_by)?);
        let blocked = blocked(&claims, &looked);
        if !blocked.is_empty() {
            return Err(Attempt::Blocked(blocked));
        }
        let new: Vec<&Entry> = entries.iter().zip(&claims).filter(|(_, c)| **c == Claim::New).map(|(e, _)| e).collect();
        let outcomes = self.handle(tx, &new).await?;
        let settled = settle(&claims, &outcomes);
        let downstream = self.write_down(tx, &new, outcomes).await.map_err(ended_by)?;
        let replays: Vec<Uuid> = entries.iter().filter_map(|e| e.replay_id).collect();
        dead_letter::close_replayed(tx, &replays).await.map_err(ended_by)?;
        self.let_follow(tx, entries, &looked).await.map_err(ended_by)?;
        Ok((settled, downstream))
    }

    /// How the events stand to their keys; nothing is asked where they wait for nobody.
    async fn look(&self, tx: &Tx, entries: &[Entry]) -> Result<Vec<Looked>, DbError> {
        let Some(line) = &self.line else { return Ok(Vec::new()) };
        let envelopes: Vec<&Envelope> = entries.iter().map(|e| &*e.envelope).collect();
        line.look(tx, &envelopes).await
    }

    /// Heads that are dealt with let the next of their lines go.
    async fn let_follow(&self, tx: &Tx, entries: &[Entry], looked: &[Looked]) -> Result<(), DbError> {
        let Some(line) = &self.line else { return Ok(()) };
        let heads = entries.iter().zip(looked).filter(|(_, looked)| **looked == Looked::Head);
        let heads: Vec<&Envelope> = heads.map(|(entry, _)| &*entry.envelope).collect();
        line.advance(tx, &heads).await
    }

    async fn claim(&self, tx: &Tx, claim_id: Uuid, entries: &[Entry]) -> Result<Vec<Claim>, DbError> {
        let keys: Vec<_> = entries.iter().map(|e| (&*e.envelope, fingerprint(&e.envelope))).collect();
        let claims = inbox::claim(tx, self.consumer.name(), claim_id, &keys).await?;
        failpoint::hit("after_claim");
        if claims.iter().any(|claim| *claim != Claim::New) {
            self.copies.be_careful();
        }
        Ok(claims)
    }

    async fn handle(&self, tx: &Tx, new: &[&Entry]) -> Result<Vec<Handled>, Attempt> {
        if new.is_empty() {
            return Ok(Vec::new());
        }
        let events = new.iter().map(|e| (e.envelope.clone(), e.event.clone())).collect();
        let outcomes = self.consumer.handle(tx, events).await.map_err(handler_failed)?;
        if outcomes.len() != new.len() {
            let message = format!("{} events, {} outcomes", new.len(), outcomes.len());
            return Err(Attempt::Failed(Failure::Passing { class: RetryClass::Growing, code: "bug", message }));
        }
        outcomes.into_iter().map(clean).collect()
    }

    /// Writes inbox outcomes; returns the outbox rows, which go with the commit.
    async fn write_down(&self, tx: &Tx, new: &[&Entry], outcomes: Vec<Handled>) -> Result<Vec<OutboxRow>, DbError> {
        let mut facts = Vec::new();
        let mut rows = Vec::new();
        for (entry, handled) in new.iter().zip(outcomes) {
            facts.extend(fact(&entry.envelope, &handled));
            if let Handled::Applied(downstream) = handled {
                rows.extend(
                    downstream.into_iter().map(|d| OutboxRow::caused_by(&entry.envelope, self.consumer.name(), d)),
                );
            }
        }
        inbox::record(tx, self.consumer.name(), &facts).await?;
        Ok(rows)
    }
}

/// Events whose keys others block. A copy of what was dealt with waits for nobody.
fn blocked(claims: &[Claim], looked: &[Looked]) -> Vec<usize> {
    let is_blocked = |(claim, looked): (&Claim, &Looked)| *claim == Claim::New && *looked == Looked::Blocked;
    claims.iter().zip(looked).enumerate().filter(|(_, both)| is_blocked(*both)).map(|(n, _)| n).collect()
}

/// An outcome that may be committed.
enum Handled {
    Applied(Vec<Downstream>),
    Skipped(Skip),
}

/// Retry and reject end the attempt: whatever the consumer wrote for such an event must not stay.
fn clean(outcome: Outcome) -> Result<Handled, Attempt> {
    match outcome {
        Outcome::Applied(downstream) => Ok(Handled::Applied(downstream)),
        Outcome::Skipped(skip) => Ok(Handled::Skipped(skip)),
        Outcome::Reject(rejection) => Err(Attempt::Failed(Failure::Rejected(rejection))),
        Outcome::Retry { after, code } => Err(Attempt::Failed(Failure::Passing {
            class: RetryClass::AtLeast(after),
            code,
            message: format!("the consumer asked for another attempt: {code}"),
        })),
    }
}

/// The claim wrote the usual end, applied with one downstream event, so only others are recorded.
fn fact<'a>(envelope: &'a Envelope, handled: &Handled) -> Option<Fact<'a>> {
    let (outcome, reason, downstream) = match handled {
        Handled::Applied(rows) if rows.len() == 1 => return None,
        Handled::Applied(rows) => ("applied", None, rows.len()),
        Handled::Skipped(Skip::Stale) => ("stale", Some("stale"), 0),
        Handled::Skipped(Skip::Because(reason)) => ("skipped", Some(*reason), 0),
    };
    Some(Fact { envelope, outcome, reason, downstream: i32::try_from(downstream).unwrap_or(i32::MAX) })
}

fn settle(claims: &[Claim], outcomes: &[Handled]) -> Vec<Settled> {
    let mut outcomes = outcomes.iter();
    let settled = |claim: &Claim| match claim {
        Claim::Ours => Settled::Applied,
        Claim::Duplicate { conflict } => Settled::Duplicate { conflict: *conflict },
        Claim::New => match outcomes.next() {
            Some(Handled::Skipped(skip)) => Settled::Skipped(*skip),
            Some(Handled::Applied(_)) | None => Settled::Applied,
        },
    };
    claims.iter().map(settled).collect()
}

fn handler_failed(error: HandleError) -> Attempt {
    match error {
        HandleError::Database(error) => ended_by(error),
        HandleError::Rejected(rejection) => Attempt::Failed(Failure::Rejected(rejection)),
    }
}

/// What a database error means for the attempt, by its class.
fn ended_by(error: DbError) -> Attempt {
    let message = error.to_string();
    let passing = |class, code| Attempt::Failed(Failure::Passing { class, code, message: message.clone() });
    match error.class() {
        Class::Outage => {
            telemetry::db_error("outage");
            Attempt::Away(error)
        }
        // Tables and code don't fit: the whole queue would fail, so everybody waits.
        Class::Schema => {
            telemetry::db_error("schema");
            Attempt::Away(error)
        }
        Class::Contention => {
            telemetry::db_error("contention");
            passing(RetryClass::Contention, "contention")
        }
        Class::Timeout => {
            telemetry::db_error("timeout");
            passing(RetryClass::Growing, TIMEOUT)
        }
        Class::Bug => {
            telemetry::db_error("bug");
            passing(RetryClass::Growing, "bug")
        }
        Class::Permanent => {
            telemetry::db_error("permanent");
            let code = "database_refused";
            Attempt::Failed(Failure::Rejected(Rejection { stage: Stage::Database, code, message }))
        }
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Failure {
    let said =
        panic.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    let message = format!("the handler panicked: {}", said.unwrap_or_else(|| "no message".to_owned()));
    Failure::Passing { class: RetryClass::Growing, code: "panic", message }
}

fn timed_out(after: Duration) -> Failure {
    let message = format!("the handler took longer than {} ms", after.as_millis());
    Failure::Passing { class: RetryClass::Growing, code: TIMEOUT, message }
}

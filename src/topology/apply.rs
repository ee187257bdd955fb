//! Carries out a plan, step by step. The design is at the top of [`super`].

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::{Move, Subject, moves};
use crate::broker::{BrokerError, delete_exchange, delete_queues, unbind};
use crate::db::{DbError, Tx};
use crate::replay::control;
use crate::runtime::layout::{self, Mover};
use crate::runtime::{Layout, Unavailable, consumer_topology, counted, entrance, hash_exchange_topology};

/// How long nobody else may move a consumer after the last word of an apply: what a killed one makes the next one wait.
const TTL: Duration = Duration::from_secs(10);
/// Why a consumer is paused meanwhile; a pause with another reason is an operator's.
pub(super) const REASON: &str = "topology apply";

/// Why a consumer was not moved. The same command again goes on where this one ended.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Somebody else decides at the moment: another apply, or an operator who has paused the consumer.
    #[error("{0}")]
    Conflict(String),
    /// It took too long.
    #[error("{0}")]
    TimedOut(String),
    /// The database is away.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The broker is away or says no.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

impl From<Unavailable> for ApplyError {
    fn from(error: Unavailable) -> Self {
        match error {
            Unavailable::Database(error) => Self::Database(error),
            Unavailable::Broker(error) => Self::Broker(error),
        }
    }
}

/// Moves one consumer to what the configuration wants.
pub struct Apply<'a> {
    pub(super) subject: Subject<'a>,
    actor: &'a str,
    pub(super) deadline: Instant,
    tell: &'a (dyn Fn(&str) + Sync),
    mover: Mover,
}

impl<'a> Apply<'a> {
    /// For `actor`, who is told each step.
    pub fn new(subject: Subject<'a>, actor: &'a str, within: Duration, tell: &'a (dyn Fn(&str) + Sync)) -> Self {
        let mover = Mover { consumer: subject.name().to_owned(), id: Uuid::now_v7(), ttl: TTL };
        Self { subject, actor, deadline: Instant::now() + within, tell, mover }
    }

    /// Carries out what is to be done, and returns it.
    ///
    /// # Errors
    /// It did not come to its end; it may be repeated.
    pub async fn run(&self) -> Result<Vec<Move>, ApplyError> {
        if !self.subject.link.declares() {
            // What is to be bound would only be looked for, and then the old side unbound.
            let why = "topology.declare = false: run it as the deploy user with ONCEFLOW_TOPOLOGY__DECLARE=true";
            return Err(ApplyError::Conflict(why.to_owned()));
        }
        let Some(moves) = self.taken().await? else { return Ok(Vec::new()) };
        let done = self.carry_out(&moves).await;
        // What failed is told, not that cleaning up failed too: the right to move ends by itself.
        let left = self.leave().await;
        done.and(left.map_err(ApplyError::from)).map(|()| moves)
    }

    /// Ends our pause and lets others move the consumer at once.
    ///
    /// # Errors
    /// The database is away.
    pub async fn leave(&self) -> Result<(), DbError> {
        let tx = self.subject.pool.begin().await?;
        // Otherwise the pause is that of an apply which has taken over.
        if self.mover.give_back(&tx).await? {
            control::release(&tx, self.subject.name(), (self.actor, REASON)).await?;
        }
        tx.commit_repeatable().await
    }

    /// Takes the right to move. `None` when there is nothing to do.
    async fn taken(&self) -> Result<Option<Vec<Move>>, ApplyError> {
        let (subject, wanted) = (self.subject, self.subject.place.own.partitions);
        let stored = layout::stored(subject.pool, subject.name()).await?;
        if stored.is_none() && layout::is_new(subject.link, &subject.place.settings.names, subject.name()).await? {
            return Ok(None);
        }
        if moves(stored.unwrap_or(Layout::of(1)), wanted).is_empty() {
            return Ok(None);
        }
        let tx = subject.pool.begin().await?;
        let layout = self.renewed(&tx).await?;
        self.refuse_if_paused(&tx).await?;
        control::release(&tx, subject.name(), (self.actor, REASON)).await?;
        let (from, begun) = (layout.partitions, layout.moving_to);
        let detail = serde_json::json!({ "from": from, "begun": begun, "to": wanted });
        control::audit_layout(&tx, self.actor, subject.name(), &detail).await?;
        tx.commit_repeatable().await?;
        Ok(Some(moves(layout, wanted)))
    }

    async fn carry_out(&self, moves: &[Move]) -> Result<(), ApplyError> {
        for (n, step) in moves.iter().enumerate() {
            let next = moves.get(n + 1).map(|next| next.to);
            self.begin(*step).await?;
            self.wait_until_unread(step.to).await?;
            self.bind_new(step.to).await?;
            self.unbind_old(step.from).await?;
            self.drain(&self.subject.queues(step.from), step.from).await?;
            self.delete_old(step.from).await?;
            self.end(*step, next).await?;
        }
        Ok(())
    }

    async fn begin(&self, Move { from, to }: Move) -> Result<(), ApplyError> {
        self.say(&format!("from {} to {}", counted(from), counted(to)));
        if self.renew().await?.moving_to.is_none() && to > 1 {
            self.make_exchange().await?;
        }
        let tx = self.subject.pool.begin().await?;
        if !self.mover.begin(&tx, from, to).await? {
            return Err(taken_over());
        }
        Ok(tx.commit_repeatable().await?)
    }

    /// Before anything else: a broker without its plugin leaves everything as it was. One that an earlier installation left
    /// may have other queues, into which events would vanish.
    async fn make_exchange(&self) -> Result<(), ApplyError> {
        let Subject { link, place, .. } = self.subject;
        delete_exchange(link, &place.settings.names.hash_exchange(self.subject.name())).await?;
        Ok(hash_exchange_topology(place).declare_now(link).await?)
    }

    async fn bind_new(&self, to: u16) -> Result<(), ApplyError> {
        self.say(&format!("bind {}", counted(to)));
        self.renew().await?;
        Ok(consumer_topology(self.subject.place, Layout::of(to)).declare_now(self.subject.link).await?)
    }

    async fn unbind_old(&self, from: u16) -> Result<(), ApplyError> {
        self.say(&format!("unbind {}", counted(from)));
        self.unbind(from).await
    }

    pub(super) async fn unbind(&self, from: u16) -> Result<(), ApplyError> {
        self.renew().await?;
        Ok(unbind(self.subject.link, &entrance(self.subject.place, from)).await?)
    }

    /// The plain queue stays: retries and replays come back through it.
    async fn delete_old(&self, from: u16) -> Result<(), ApplyError> {
        if from == 1 {
            return Ok(());
        }
        self.say(&format!("delete the {}", counted(from)));
        self.renew().await?;
        let Subject { link, place, .. } = self.subject;
        delete_exchange(link, &place.settings.names.hash_exchange(self.subject.name())).await?;
        Ok(delete_queues(link, &self.subject.queues(from)).await?)
    }

    /// A step that follows begins in the same moment: on the way between two numbers of partitions one replica alone reads.
    async fn end(&self, Move { from, to }: Move, next: Option<u16>) -> Result<(), ApplyError> {
        let tx = self.subject.pool.begin().await?;
        if !self.mover.end(&tx, (from, to), next).await? {
            return Err(taken_over());
        }
        if !control::release(&tx, self.subject.name(), (self.actor, REASON)).await? {
            return Err(ApplyError::Conflict("somebody resumed the consumer while it was looked at".to_owned()));
        }
        tx.commit_repeatable().await?;
        self.say(&format!("{} now", counted(to)));
        Ok(())
    }

    /// Pauses the consumer in every replica.
    pub(super) async fn pause(&self) -> Result<(), ApplyError> {
        let tx = self.subject.pool.begin().await?;
        self.renewed(&tx).await?;
        self.refuse_if_paused(&tx).await?;
        control::hold(&tx, self.subject.name(), (self.actor, REASON)).await?;
        Ok(tx.commit_repeatable().await?)
    }

    pub(super) async fn resume(&self) -> Result<(), ApplyError> {
        let tx = self.subject.pool.begin().await?;
        self.renewed(&tx).await?;
        control::release(&tx, self.subject.name(), (self.actor, REASON)).await?;
        Ok(tx.commit_repeatable().await?)
    }

    pub(super) async fn renew(&self) -> Result<Layout, ApplyError> {
        let tx = self.subject.pool.begin().await?;
        let layout = self.renewed(&tx).await?;
        tx.commit_repeatable().await?;
        Ok(layout)
    }

    pub(super) fn say(&self, what: &str) {
        (self.tell)(&format!("{}: {what}", self.subject.name()));
    }

    async fn renewed(&self, tx: &Tx) -> Result<Layout, ApplyError> {
        let taken = self.mover.take(tx).await?;
        taken.ok_or_else(|| {
            let what = "another apply moves this consumer, or ended less than 10 s ago without saying so";
            ApplyError::Conflict(what.to_owned())
        })
    }

    async fn refuse_if_paused(&self, tx: &Tx) -> Result<(), ApplyError> {
        let switches = control::switches(tx).await?;
        match switches.iter().find(|s| s.consumer == self.subject.name() && s.paused && s.reason != REASON) {
            Some(switch) => Err(ApplyError::Conflict(format!(
                "consumer {} is paused: {} (by {}); resume it first",
                switch.consumer, switch.reason, switch.changed_by
            ))),
            None => Ok(()),
        }
    }
}

fn taken_over() -> ApplyError {
    ApplyError::Conflict("another apply has taken over".to_owned())
}

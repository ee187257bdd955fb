//! Waits until the old side is empty and nothing of it is in flight.
//!
//! A queue tells how many messages are ready, not how many are delivered and unacknowledged. So the consumer is paused: it drains
//! and closes its channels, and once a queue has no consumer, whatever was not acknowledged is ready again and is counted.
//!
//! One gap is known: a plain queue whose reader changes its window (`broker/intake.rs`) has no consumer for a moment while work is in
//! flight. Should that moment be the one of the look, events that are applied meanwhile may meet later ones of their key; versions decide
//! then, and nothing is lost.

use std::time::Duration;

use tokio::time::Instant;

use super::apply::{Apply, ApplyError};
use crate::broker::{QueueState, queue_states};
use crate::runtime::counted;

/// How often the queues are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often it is told how far it is.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// What the old queues hold together.
#[derive(Debug, Clone, Copy, Default)]
struct Left {
    ready: u64,
    /// Of all queues, and how many queues with messages nobody reads.
    consumers: u64,
    unread: usize,
}

impl Apply<'_> {
    /// Returns with the consumer paused.
    pub(super) async fn drain(&self, old: &[String], from: u16) -> Result<(), ApplyError> {
        self.say(&format!("wait until {} is empty", counted(from)));
        loop {
            self.until(old, |left| left.ready == 0).await?;
            self.say("pause for a moment");
            self.pause().await?;
            self.until(old, |left| left.consumers == 0).await?;
            self.unbind(from).await?;
            if self.left(old).await?.ready == 0 {
                return Ok(());
            }
            self.say("something was in flight: resume");
            self.resume().await?;
        }
    }

    /// The plain queue is read for retries and replays until the service sees that it is being moved.
    pub(super) async fn wait_until_unread(&self, new: u16) -> Result<(), ApplyError> {
        self.until(&self.subject.queues(new), |left| left.consumers == 0).await
    }

    async fn until(&self, old: &[String], reached: impl Fn(Left) -> bool) -> Result<(), ApplyError> {
        let mut told = Instant::now();
        loop {
            self.renew().await?;
            let left = self.left(old).await?;
            if reached(left) {
                return Ok(());
            }
            if Instant::now() >= self.deadline {
                return Err(ApplyError::TimedOut(left.explained()));
            }
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                self.say(&left.explained());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn left(&self, old: &[String]) -> Result<Left, ApplyError> {
        let states = queue_states(self.subject.link, old).await?;
        // A queue that isn't there any more was deleted by an apply that was interrupted.
        Ok(states.into_iter().flatten().fold(Left::default(), Left::and))
    }
}

impl Left {
    fn and(self, state: QueueState) -> Self {
        Self {
            ready: self.ready + u64::from(state.ready),
            consumers: self.consumers + u64::from(state.consumers),
            unread: self.unread + usize::from(state.ready > 0 && state.consumers == 0),
        }
    }

    fn explained(self) -> String {
        let Self { ready, consumers, unread } = self;
        match (ready, unread) {
            (0, _) => format!("{consumers} subscriptions have not ended yet"),
            (_, 0) => format!("{ready} messages are left"),
            (_, unread) => {
                format!("{ready} messages are left and nobody reads {unread} of the queues: is `onceflow run` up?")
            }
        }
    }
}

//! Moves a consumer from one set of queues to another while it runs and producers publish: 1 → n partitions and n → 1; n → m goes by
//! way of 1.
//!
//! ```text
//! 1 take the row            one mover at a time; the right ends by itself unless it is renewed
//! 2 moving_to is set        from here on nobody else declares bindings; the service reads the old side only, which is waited for
//! 3 bind the new side       both sides get each event; nobody reads the new one
//! 4 unbind the old side     it only gets emptier
//! 5 wait, pause, look       until the old side is empty and nobody reads it, so that nothing is in flight
//! 6 the new layout counts   in one transaction with the end of the pause; the partitions of an old layout are deleted before
//! ```
//!
//! Nothing is lost: the new side is bound before the old one is unbound, so every event is in one of them; what is in both is
//! applied once (inbox). The order per key holds: the new side is read only after the old one has been applied to its end, and
//! begins with events that the old one had too. Retries and replays come back through the plain queue in every layout. With one queue
//! several replicas keep no order per key, moved or not; on the way from n to m one replica alone reads it (see `runtime/share`).
//!
//! - Killed anywhere: the row says `moving_to`, so the service goes on with the old side. The same command again repeats every
//!   step, each of which may be repeated, and ends a pause that a killed one left behind.
//! - Frozen while another mover takes over: every change of the row compares the mover, and the right is renewed before every
//!   step at the broker.
//! - An operator pauses the consumer: the move refuses to begin, or ends, and leaves the pause alone.
//! - A replica declares an old binding late (its database connection died in between): unbound once more in step 5.
//! - A service of an older version declares its bindings again whenever it reconnects: all replicas are upgraded first.

mod apply;
mod drained;
mod plan;

pub use apply::{Apply, ApplyError};
pub use plan::{Plan, Waiting, plan};

use crate::broker::Link;
use crate::db::Pool;
use crate::runtime::{Layout, Place};

/// A consumer, and where its queues and its layout are.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The database.
    pub pool: &'a Pool,
    /// The broker.
    pub link: &'a Link,
    /// The consumer.
    pub place: Place<'a>,
}

impl Subject<'_> {
    fn name(&self) -> &str {
        &self.place.own.name
    }

    /// The queues that a layout spreads its events over.
    fn queues(&self, partitions: u16) -> Vec<String> {
        let names = &self.place.settings.names;
        match partitions {
            1 => vec![names.queue(self.name())],
            many => (0..many).map(|number| names.partition(self.name(), number)).collect(),
        }
    }
}

/// From one number of partitions to another; one of the two is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// What it is.
    pub from: u16,
    /// What it becomes.
    pub to: u16,
}

/// What has to be done, one after the other; a move that has begun comes first.
fn moves(layout: Layout, wanted: u16) -> Vec<Move> {
    let mut at = layout.partitions;
    let begun = layout.moving_to.into_iter();
    let mut moves = Vec::new();
    for to in begun {
        moves.push(Move { from: at, to });
        at = to;
    }
    while at != wanted {
        let to = if at == 1 { wanted } else { 1 };
        moves.push(Move { from: at, to });
        at = to;
    }
    moves
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_two_numbers_of_partitions_it_goes_by_way_of_one_queue() {
        let steps = |partitions, moving_to, wanted| -> Vec<(u16, u16)> {
            moves(Layout { partitions, moving_to }, wanted).iter().map(|step| (step.from, step.to)).collect()
        };
        assert_eq!(steps(1, None, 1), []);
        assert_eq!(steps(1, None, 4), [(1, 4)]);
        assert_eq!(steps(4, None, 2), [(4, 1), (1, 2)]);
        assert_eq!(steps(4, Some(1), 4), [(4, 1), (1, 4)], "what has begun ends first");
        assert_eq!(steps(1, Some(4), 1), [(1, 4), (4, 1)]);
    }
}

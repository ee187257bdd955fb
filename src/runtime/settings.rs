//! What can be set about handling events. Filled by the configuration, checked there.

use std::time::Duration;

use super::layout::Layout;
use super::names::Names;
use super::order::OrderPolicy;
use super::producers::Producers;
use super::retry::RetryPolicy;
use super::wire::Limits;
use crate::broker::QueueKind;

/// Settings that all consumers share.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Names on the broker.
    pub names: Names,
    /// How our queues store.
    pub queue_kind: QueueKind,
    /// When to try again, and how often.
    pub retry: RetryPolicy,
    /// Bounds of what is decoded.
    pub limits: Limits,
    /// Most unacknowledged deliveries per consumer.
    pub prefetch: u16,
    /// About how many bytes of them may be in memory.
    pub prefetch_bytes: usize,
    /// Most batches of a consumer at once; never two with one key.
    pub lanes: usize,
    /// Most events of one transaction.
    pub batch: usize,
    /// Failures of one kind that stop a consumer when most of what arrives fails so; 0 for never.
    pub kill_switch_failures: usize,
    /// Most messages that wait behind failed events, per consumer; where one is strict.
    pub held_events: usize,
    /// Most of them of one key.
    pub held_events_per_key: usize,
    /// A handler that takes longer is stopped and rolled back.
    pub handler_timeout: Duration,
    /// How long in-flight work may take after SIGTERM.
    pub drain_within: Duration,
    /// How often pauses made by another replica are looked up.
    pub look_for_pauses: Duration,
}

/// Settings of one consumer.
#[derive(Debug, Clone)]
pub struct ConsumerSettings {
    /// Its name.
    pub name: String,
    /// Bindings to exchanges that aren't ours.
    pub bindings: Vec<ForeignBinding>,
    /// How many queues its events are to be spread over; what counts is the stored [`Layout`].
    pub partitions: u16,
    /// What becomes of the later events of a key when one fails.
    pub ordering: OrderPolicy,
    /// Whose messages are taken; everybody's where absent.
    pub producers: Option<Producers>,
}

impl ConsumerSettings {
    /// What to tell an operator when the stored layout isn't the one that is wished for.
    pub fn differs_from(&self, layout: Layout) -> Option<String> {
        let (name, wanted) = (&self.name, self.partitions);
        if let Some(to) = layout.moving_to {
            return Some(format!(
                "consumer {name} is being moved to {}: `onceflow topology apply` ends it",
                counted(to)
            ));
        }
        let has = counted(layout.partitions);
        (layout.partitions != wanted).then(|| {
            format!("consumer {name} has {has}, the configuration wants {}: `onceflow topology plan`", counted(wanted))
        })
    }
}

/// A number of partitions in words.
pub(crate) fn counted(partitions: u16) -> String {
    if partitions == 1 { "1 queue".to_owned() } else { format!("{partitions} partitions") }
}

/// A binding of a consumer's queue to an exchange that somebody else declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignBinding {
    /// The exchange; it must exist.
    pub exchange: String,
    /// The topic pattern.
    pub pattern: String,
}

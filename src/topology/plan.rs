//! What an apply would do. Changes nothing.

use serde::Serialize;

use super::{Move, Subject, moves};
use crate::broker::queue_states;
use crate::runtime::{Layout, Unavailable, counted, layout};

/// What is, what is wanted and how to get there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The consumer.
    pub consumer: String,
    /// Partitions now; absent on a broker that has nothing of it yet.
    pub partitions: Option<u16>,
    /// What an apply that has not ended moves it to.
    pub moving_to: Option<u16>,
    /// What the configuration wants.
    pub wanted: u16,
    /// What an apply would do; empty where nothing is to be done.
    pub steps: Vec<String>,
    /// The queues that there are, with what waits in them.
    pub queues: Vec<Waiting>,
}

/// A queue with what waits in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Waiting {
    /// Its name.
    pub queue: String,
    /// Messages that wait.
    pub ready: u32,
    /// Consumers, active or waiting in line.
    pub consumers: u32,
}

/// Compares the wish with what is stored.
///
/// # Errors
/// Database or broker are away.
pub async fn plan(subject: Subject<'_>) -> Result<Plan, Unavailable> {
    let stored = layout::stored(subject.pool, subject.name()).await?;
    let is_new =
        stored.is_none() && layout::is_new(subject.link, &subject.place.settings.names, subject.name()).await?;
    let layout = stored.unwrap_or(Layout::of(1));
    let wanted = subject.place.own.partitions;
    let steps = if is_new {
        vec![format!("nothing: the first `onceflow run` or `onceflow check` makes {}", counted(wanted))]
    } else {
        moves(layout, wanted).into_iter().flat_map(|step| steps(subject.name(), step)).collect()
    };
    Ok(Plan {
        consumer: subject.name().to_owned(),
        partitions: (!is_new).then_some(layout.partitions),
        moving_to: layout.moving_to,
        wanted,
        steps,
        queues: waiting(subject, layout).await?,
    })
}

async fn waiting(subject: Subject<'_>, layout: Layout) -> Result<Vec<Waiting>, Unavailable> {
    let mut queues = subject.queues(1);
    let most = layout.moving_to.unwrap_or(1).max(layout.partitions);
    if most > 1 {
        queues.extend(subject.queues(most));
    }
    let states = queue_states(subject.link, &queues).await?;
    let there = |(queue, state): (String, Option<_>)| {
        state.map(|state: crate::broker::QueueState| Waiting { queue, ready: state.ready, consumers: state.consumers })
    };
    Ok(queues.into_iter().zip(states).filter_map(there).collect())
}

fn steps(consumer: &str, Move { from, to }: Move) -> Vec<String> {
    let (old, new) = (counted(from), counted(to));
    let mut steps = vec![
        format!("bind {new} beside {old}: both get every event, and its copy has no effect"),
        format!("unbind {old}"),
        format!("wait until the running service has emptied {old}"),
        format!("pause consumer {consumer} for a moment, to be certain that nothing is in flight"),
    ];
    if from > 1 {
        steps.push(format!("delete the {old}"));
    }
    steps.push(format!("let {new} count, and resume"));
    steps
}

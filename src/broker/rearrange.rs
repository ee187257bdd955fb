//! Looking at queues, unbinding and deleting: for moving a consumer from one set of queues to another. Everything may be repeated.

use lapin::Channel;
use lapin::options::{ExchangeDeleteOptions, ExchangeUnbindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;

use super::consume::close;
use super::declare::Topology;
use super::error::{BrokerError, bounded};
use super::link::{ANSWER_WITHIN, Link};

/// What a queue holds, and for how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueState {
    /// Messages that wait; those that are delivered and unacknowledged don't count.
    pub ready: u32,
    /// Its consumers, active or waiting in line.
    pub consumers: u32,
}

/// Looks at queues without changing them; `None` for one that doesn't exist.
///
/// # Errors
/// The broker is away or says no.
pub async fn queue_states(link: &Link, queues: &[String]) -> Result<Vec<Option<QueueState>>, BrokerError> {
    let mut states = Vec::with_capacity(queues.len());
    let mut channel = link.channel_now().await?;
    for queue in queues {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let looking = channel.queue_declare(queue.as_str().into(), options, FieldTable::default());
        match bounded("look at a queue", ANSWER_WITHIN, looking).await {
            Ok(found) => {
                states.push(Some(QueueState { ready: found.message_count(), consumers: found.consumer_count() }));
            }
            // The broker closes the channel over it.
            Err(error) if error.is_not_found() => {
                states.push(None);
                channel = link.channel_now().await?;
            }
            Err(error) => return Err(error),
        }
    }
    close(&channel).await;
    Ok(states)
}

/// Removes the bindings of a part; what isn't there counts as removed.
///
/// # Errors
/// The broker is away or says no.
pub async fn unbind(link: &Link, part: &Topology) -> Result<(), BrokerError> {
    for binding in &part.exchange_bindings {
        let channel = link.channel_now().await?;
        let (to, from) = (binding.to.as_str().into(), binding.from.as_str().into());
        let pattern = binding.pattern.as_str().into();
        let work = channel.exchange_unbind(to, from, pattern, ExchangeUnbindOptions::default(), FieldTable::default());
        gone(&channel, bounded("unbind an exchange", ANSWER_WITHIN, work).await).await?;
    }
    for binding in &part.bindings {
        let channel = link.channel_now().await?;
        let (queue, exchange) = (binding.queue.as_str().into(), binding.exchange.as_str().into());
        let work = channel.queue_unbind(queue, exchange, binding.pattern.as_str().into(), FieldTable::default());
        gone(&channel, bounded("unbind a queue", ANSWER_WITHIN, work).await).await?;
    }
    Ok(())
}

/// Deletes queues whatever they hold: quorum queues know no condition, so the caller has looked before.
///
/// # Errors
/// The broker is away or says no.
pub async fn delete_queues(link: &Link, queues: &[String]) -> Result<(), BrokerError> {
    for queue in queues {
        let channel = link.channel_now().await?;
        let work = channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default());
        gone(&channel, bounded("delete a queue", ANSWER_WITHIN, work).await.map(|_| ())).await?;
    }
    Ok(())
}

/// Deletes an exchange with its bindings.
///
/// # Errors
/// The broker is away or says no.
pub async fn delete_exchange(link: &Link, exchange: &str) -> Result<(), BrokerError> {
    let channel = link.channel_now().await?;
    let work = channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default());
    gone(&channel, bounded("delete an exchange", ANSWER_WITHIN, work).await).await
}

async fn gone(channel: &Channel, removed: Result<(), BrokerError>) -> Result<(), BrokerError> {
    match removed {
        // The broker has closed the channel over it.
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => {
            close(channel).await;
            Ok(())
        }
    }
}

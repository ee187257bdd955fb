//! Waiting for the end of replays.

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::super::client::Client;
use super::super::context::Context;
use super::super::exit::{Exit, Failure};
use crate::admin::wire::Ids;
use crate::replay::Settled;

/// How often the service is asked.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// Asks until none of them is on its way, or the time is over.
pub(super) async fn until_settled(context: &Context, client: &Client, ids: &[Uuid]) -> Result<Settled, Failure> {
    let deadline = Instant::now() + context.timeout;
    let body = Ids { ids: ids.to_vec() };
    let mut tick = tokio::time::interval(ASK_EVERY);
    loop {
        tick.tick().await;
        let settled: Settled = client.post("dlq/settled", &body).await?;
        if settled.waiting == 0 || Instant::now() >= deadline {
            return Ok(settled);
        }
    }
}

/// The failure where the time was over first.
pub(super) fn timed_out(context: &Context, settled: Settled) -> Failure {
    let what = format!("{} replays have not arrived within {:?}", settled.waiting, context.timeout);
    Failure::new(Exit::TimedOut, what)
        .because("the relay or the consumer is slow, paused or away; the replays go on")
        .or_try("onceflow status, then onceflow dlq list --state replaying")
}

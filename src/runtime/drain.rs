//! Moves what the broker gave up on (`onceflow.<consumer>.dlq`) into the table of dead letters, so that there is one place to look.

use serde_json::Value;
use tracing::{info, warn};

use super::attempts::Attempts;
use super::dead_letter::{DeadLetter, Identity};
use super::delivery::Shared;
use super::headers::History;
use super::kill_switch::KillSwitch;
use super::lane::broker_rejection;
use super::names::dlq_topology;
use super::order::{Line, Waiting};
use super::settings::ConsumerSettings;
use super::settle::Settler;
use super::wire;
use crate::broker::{BrokerError, Delivery, Intake, Resize, Subscription};
use crate::clock;
use crate::message::{Message, Route};
use crate::pacing::Pacing;
use crate::telemetry;

/// Dead letters are rare; a few at a time are enough.
const PREFETCH: u16 = 20;

/// Drains one consumer's broker dead letters until `stop`. The queue is declared each time: without it the broker would drop
/// what it gives up on.
pub async fn run_drain(consumer: &'static str, own: ConsumerSettings, shared: Shared) {
    let settler = Settler {
        consumer,
        settings: shared.settings.clone(),
        pool: shared.pool.clone(),
        retries: shared.retries.clone(),
        // The broker has given up on these: nothing holds them back.
        switch: KillSwitch::new(consumer, 0),
        attempts: Attempts::of(shared.share.instance()),
        line: Line::of(consumer, &own, &shared.settings),
        abort: shared.abort.clone(),
    };
    let intake = Intake::new(PREFETCH, shared.settings.prefetch_bytes, Resize::Allowed);
    let mut pacing = Pacing::reconnect();
    while !shared.stop.is_cancelled() {
        if let Err(error) = drain_once(&shared, &settler, &intake, &mut pacing).await {
            tracing::debug!(consumer, %error, "draining the broker's dead letters: {error}; trying again");
            if shared.stop.run_until_cancelled(tokio::time::sleep(pacing.next_wait())).await.is_none() {
                return;
            }
        }
    }
}

async fn drain_once(
    shared: &Shared,
    settler: &Settler,
    intake: &Intake,
    pacing: &mut Pacing,
) -> Result<(), BrokerError> {
    let queue = shared.settings.names.dlq(settler.consumer);
    let topology = dlq_topology(&shared.settings, settler.consumer);
    let opened = Subscription::open(&shared.link, &topology, &queue, intake, &shared.stop).await?;
    let Some(mut subscription) = opened else { return Ok(()) };
    pacing.reset();
    loop {
        let delivery = tokio::select! {
            biased;
            () = shared.stop.cancelled() => {
                subscription.close().await;
                return Ok(());
            }
            next = subscription.next() => next?,
        };
        bury(shared, settler, &delivery).await;
    }
}

async fn bury(shared: &Shared, settler: &Settler, delivery: &Delivery) {
    let consumer = settler.consumer;
    let message = &delivery.message;
    let death = Death::of(message, &delivery.route);
    // It comes through the default exchange; where it was published to before tells whether a producer wrote the history.
    let history = History::of(message, if death.origin.exchange.is_empty() { &delivery.route } else { &death.origin });
    let decoded = wire::decode(message, &shared.settings.limits);
    let identity = match &decoded {
        Ok(envelope) => Identity::of_event(envelope),
        Err(_) => Identity::of_unreadable(message),
    };
    let rejection = broker_rejection(death.reason, death.explanation());
    if let Ok(envelope) = &decoded
        && !settler.may_die(delivery, Waiting { envelope, message, history: &history }).await
    {
        return;
    }
    let now = clock::now();
    let event_id = identity.event_id.clone();
    let dead = DeadLetter {
        consumer,
        identity,
        message,
        origin: if history.origin.exchange.is_empty() { death.origin } else { history.origin },
        stage: rejection.stage.as_str(),
        reason: rejection.code.to_owned(),
        error_chain: vec![rejection.message.clone()],
        attempts: history.attempts.saturating_add(1),
        first_failed_at: history.first_failed_at.unwrap_or(now),
        last_failed_at: now,
        replay_id: history.replay_id,
    };
    if !settler.bury_at_last(&dead, None).await {
        return;
    }
    telemetry::dead_letter(consumer, if rejection.code == "expired" { "expired" } else { "delivery_limit" });
    warn!(
        consumer,
        event.id = event_id,
        reason = rejection.code,
        "the broker gave up on event {event_id}: {rejection}"
    );
    if let Err(error) = delivery.ack().await {
        info!(consumer, %error, "ack lost: the dead letter comes again and is counted as a copy");
    }
}

/// What the broker says in `x-death` about why it gave up, the newest first. Its form changes between versions: what is
/// missing is left empty.
struct Death {
    reason: &'static str,
    queue: String,
    origin: Route,
}

impl Death {
    fn of(message: &Message, route: &Route) -> Self {
        let last = message.headers.get("x-death").and_then(Value::as_array).and_then(|deaths| deaths.first());
        let text = |key: &str| last.and_then(|d| d.get(key)).and_then(Value::as_str).unwrap_or_default();
        let first_key = last.and_then(|d| d.get("routing-keys")).and_then(|keys| keys.get(0)).and_then(Value::as_str);
        let reason = match text("reason") {
            "expired" => "expired",
            "rejected" => "rejected",
            "maxlen" => "maxlen",
            _ => "delivery_limit",
        };
        let origin = Route {
            exchange: text("exchange").to_owned(),
            routing_key: first_key.unwrap_or(&route.routing_key).to_owned(),
        };
        Self { reason, queue: text("queue").to_owned(), origin }
    }

    fn explanation(&self) -> String {
        let what = match self.reason {
            "expired" => "it expired",
            "rejected" => "it was rejected",
            "maxlen" => "the queue was full",
            _ => "it was delivered too often without an ack: a handler may end the process or the connection",
        };
        format!("the broker moved it from queue {:?}: {what}", self.queue)
    }
}

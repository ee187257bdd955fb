//! B: what the broker does.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use futures_util::StreamExt as _;
use lapin::options::{BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use reqwest::Method;
use serde_json::json;

use super::process::{hold, until_blocked};
use super::{Fault, TWO, Work, fault};
use crate::events::{Event, user_event};
use crate::rig::{PLAIN, Rig, SOON, Setup};
use crate::sink;

const QUORUM: Setup = Setup { quorum: true, ..PLAIN };
const STUBBORN: Setup = Setup {
    rate: 20,
    settings: "database.statement_timeout = \"250ms\"\nretry.delays = [\"100ms\"]\nretry.max_attempts = 100\nruntime.kill_switch_failures = 0",
    ..PLAIN
};
const PARTITIONED: Setup = Setup { settings: "consumers.org.partitions = 4", ..TWO };
const QUEUE: &str = "onceflow.org";

pub(super) const FAULTS: &[Fault] = &[
    fault("B1", "all connections closed by an operator, twice", closes).set(TWO),
    fault("B2", "stopped and started", restarts).set(TWO).alone(),
    fault("B3", "killed and started", killed).set(QUORUM).alone(),
    fault("B5", "memory alarm", memory_alarm).alone(),
    fault("B6", "disk alarm", disk_alarm).alone(),
    fault("B7", "queue deleted under its consumer", queue_deleted),
    fault("B8", "egress exchange deleted", exchange_deleted),
    fault("B9", "binding removed: downstream events are unroutable", unbound),
    fault("B10", "queue exists with other arguments", other_arguments),
    fault("B11", "a bound queue is full and refuses", full),
    fault("B12", "queue of the broker's dead letters deleted", dlq_deleted),
    fault("B13", "downstream event over the broker's largest message", over_the_largest).alone(),
    fault("B14", "consumer timeout", consumer_timeout).alone(),
    fault("B15", "delivery limit reached", delivery_limit).set(QUORUM),
    fault("B16", "permissions revoked and given back", no_permission),
    fault("B17", "no connection allowed for the account", no_connection),
    fault("B18", "one event retried fifty times", fifty_retries).set(STUBBORN),
    fault("B20", "ten times the rate for some seconds", flood),
    fault("B21", "active consumer of partitions killed, order kept", active_killed).set(PARTITIONED),
];

/// Everybody of this virtual host is thrown out.
pub(crate) async fn close_connections(rig: &mut Rig) -> anyhow::Result<()> {
    rig.tally.cuts += 1;
    let vhost = rig.site.name.clone();
    rig.ground.ctl(&["close_all_connections", "--vhost", &vhost, "fault"]).await.map(drop)
}

fn closes(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.expect.no_attempts = true;
        for _ in 0..2 {
            rig.progress(50).await?;
            close_connections(rig).await?;
            rig.healed().await?;
        }
        rig.shows(0, "onceflow_broker_reconnects_total", "").await
    })
}

pub(crate) fn restarts(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.expect.no_attempts = true;
        rig.progress(50).await?;
        rig.ground.ctl(&["stop_app"]).await?;
        rig.lasts(1_500).await;
        rig.ground.ctl(&["start_app"]).await?;
        rig.tally.broker_restarts += 1;
        rig.healed().await.map(drop)
    })
}

pub(crate) fn killed(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.expect.no_attempts = true;
        rig.progress(50).await?;
        let mut servers = rig.ground.servers.write().await;
        let broker = servers.rabbitmq.as_mut().context("no broker")?;
        broker.kill().await?;
        broker.start().await?;
        drop(servers);
        rig.tally.broker_restarts += 1;
        rig.healed().await.map(drop)
    })
}

/// Nothing can be published, and what is there is still consumed and acknowledged.
async fn alarmed(rig: &mut Rig, (raise, lower): (&[&str], &[&str])) -> anyhow::Result<()> {
    rig.expect.no_attempts = true;
    rig.progress(50).await?;
    rig.ground.ctl(raise).await?;
    let shown = rig.shows(0, "onceflow_broker_blocked", "publish").await;
    let confirmed = i64::try_from(rig.producer.confirmed())?;
    // What is sent broken on purpose ends as a dead letter instead.
    let dealt_with = "SELECT (SELECT count(*) FROM onceflow.inbox) + (SELECT count(*) FROM onceflow.dead_letter)";
    let consumed = rig.until_count(dealt_with, confirmed).await;
    // Whatever was found, the alarm must end.
    rig.ground.ctl(lower).await?;
    shown.and(consumed)?;
    rig.healed().await.map(drop)
}

pub(crate) fn memory_alarm(rig: &mut Rig) -> Work<'_> {
    let orders: (&[&str], &[&str]) =
        (&["set_vm_memory_high_watermark", "0.00001"], &["set_vm_memory_high_watermark", "absolute", "2GB"]);
    Box::pin(alarmed(rig, orders))
}

fn disk_alarm(rig: &mut Rig) -> Work<'_> {
    Box::pin(alarmed(rig, (&["set_disk_free_limit", "10000GB"], &["set_disk_free_limit", "500MB"])))
}

async fn ask(rig: &Rig, method: Method, path: &str, body: serde_json::Value) -> anyhow::Result<String> {
    rig.ground.manage(method, &path.replace("{vhost}", &rig.site.name), body).await
}

/// The messages of a deleted queue are gone with it, so it is empty when it goes.
fn queue_deleted(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.progress(50).await?;
        rig.calm().await?;
        ask(rig, Method::DELETE, &format!("queues/{{vhost}}/{QUEUE}"), json!({})).await?;
        rig.producer.resume();
        rig.healed().await.map(drop)
    })
}

/// Lets an operator hand parked rows back until none is left.
async fn retry_parked(rig: &mut Rig) -> anyhow::Result<()> {
    rig.expect.parked = true;
    let begun = Instant::now();
    while rig.count("SELECT count(*) FROM onceflow.outbox WHERE parked_at IS NOT NULL", &[]).await? > 0 {
        ensure!(begun.elapsed() < SOON, "rows are parked again and again");
        rig.replica(0)?.command(&rig.config(0), &["outbox", "retry", "--all", "--reason", "it is bound again"]).await?;
        rig.lasts(100).await;
    }
    Ok(())
}

fn exchange_deleted(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.progress(50).await?;
        rig.calm().await?;
        ask(rig, Method::DELETE, "exchanges/{vhost}/onceflow.out", json!({})).await?;
        rig.producer.resume();
        rig.progress(100).await?;
        rig.lasts(1_000).await;
        rig.sink.bind_again().await?;
        rig.lasts(500).await;
        retry_parked(rig).await?;
        rig.healed().await.map(drop)
    })
}

fn unbound(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.progress(50).await?;
        rig.calm().await?;
        let binding = format!("bindings/{{vhost}}/e/onceflow.out/q/{}/%23", sink::QUEUE);
        ask(rig, Method::DELETE, &binding, json!({})).await?;
        rig.producer.resume();
        rig.until_count("SELECT count(*) FROM onceflow.outbox WHERE parked_reason IS NOT NULL", 50).await?;
        rig.sink.bind_again().await?;
        rig.lasts(500).await;
        retry_parked(rig).await?;
        rig.healed().await.map(drop)
    })
}

fn other_arguments(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.progress(50).await?;
        rig.calm().await?;
        rig.take_replica(0)?.stop(SOON).await?;
        let path = format!("queues/{{vhost}}/{QUEUE}");
        ask(rig, Method::DELETE, &path, json!({})).await?;
        ask(rig, Method::PUT, &path, json!({"durable": true, "arguments": {"x-max-length": 5}})).await?;
        rig.start_replica(0, "")?;
        let begun = Instant::now();
        let told = loop {
            let body = rig.replica(0)?.readiness().await.map(|(_, body)| body).unwrap_or_default();
            if body.contains(QUEUE) && body.contains("inequivalent arg") {
                break true;
            }
            if begun.elapsed() > Duration::from_secs(15) {
                break false;
            }
            rig.lasts(100).await;
        };
        let lives = rig.replicas[0].as_mut().is_some_and(crate::replica::Replica::is_alive);
        ask(rig, Method::DELETE, &path, json!({})).await?;
        rig.until_ready(0).await?;
        rig.producer.resume();
        rig.healed().await?;
        ensure!(told && lives, "readiness names queue and argument: {told}; the process lives: {lives}");
        Ok(())
    })
}

fn full(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.progress(50).await?;
        let arguments = json!({"durable": true, "arguments": {"x-max-length": 1, "x-overflow": "reject-publish"}});
        ask(rig, Method::PUT, "queues/{vhost}/full", arguments).await?;
        ask(rig, Method::POST, "bindings/{vhost}/e/onceflow.out/q/full", json!({"routing_key": "#"})).await?;
        rig.until_count("SELECT count(*) FROM onceflow.outbox", 50).await?;
        rig.lasts(1_000).await;
        ask(rig, Method::DELETE, "queues/{vhost}/full", json!({})).await?;
        rig.healed().await?;
        retry_parked(rig).await
    })
}

fn dlq_deleted(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.progress(50).await?;
        ask(rig, Method::DELETE, &format!("queues/{{vhost}}/{QUEUE}.dlq"), json!({})).await?;
        let begun = Instant::now();
        while ask(rig, Method::GET, &format!("queues/{{vhost}}/{QUEUE}.dlq"), json!({})).await.is_err() {
            ensure!(begun.elapsed() < Duration::from_secs(15), "it was not declared again");
            rig.lasts(200).await;
        }
        rig.healed().await.map(drop)
    })
}

/// The broker closes the channel; the row is parked for a person, and the others go on.
fn over_the_largest(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        let set = |bytes: &str| format!("application:set_env(rabbit, max_message_size, {bytes}).");
        rig.progress(50).await?;
        rig.ground.ctl(&["eval", &set("20000")]).await?;
        // Channels read it when they are opened.
        close_connections(rig).await?;
        let row = "INSERT INTO onceflow.outbox (aggregatetype, aggregateid, type, payload)
            VALUES ('shop', 'large', 'shop.opened.v1', to_json(repeat('x', 50000)))";
        rig.execute(row).await?;
        let parked = rig.until_count("SELECT count(*) FROM onceflow.outbox WHERE parked_reason IS NOT NULL", 1).await;
        let went_on = rig.healed().await;
        rig.ground.ctl(&["eval", &set("134217728")]).await?;
        close_connections(rig).await?;
        parked?;
        went_on?;
        let id: uuid::Uuid = rig
            .client()
            .await?
            .query_one("SELECT id FROM onceflow.outbox WHERE parked_at IS NOT NULL", &[])
            .await?
            .get(0);
        rig.replica(0)?
            .command(&rig.config(0), &["outbox", "discard", &id.to_string(), "--reason", "too large"])
            .await?;
        rig.healed().await.map(drop)
    })
}

fn consumer_timeout(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        let set = |timeout: &str, tick: &str| {
            format!(
                "application:set_env(rabbit, consumer_timeout, {timeout}), application:set_env(rabbit, channel_tick_interval, {tick})."
            )
        };
        rig.progress(50).await?;
        rig.ground.ctl(&["eval", &set("2000", "500")]).await?;
        // Channels read it when they are opened.
        close_connections(rig).await?;
        rig.healed().await?;
        let held = hold(rig, "LOCK TABLE onceflow.org_user IN ACCESS EXCLUSIVE MODE").await?;
        until_blocked(rig).await?;
        let shown = rig.shows(0, "onceflow_broker_channel_closures_total", "").await;
        rig.ground.ctl(&["eval", &set("1800000", "60000")]).await?;
        drop(held);
        close_connections(rig).await?;
        shown?;
        rig.healed().await.map(drop)
    })
}

/// A consumer that takes everything and dies, again and again, until the broker gives the messages up.
fn delivery_limit(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.progress(20).await?;
        rig.calm().await?;
        rig.take_replica(0)?.stop(SOON).await?;
        let events: Vec<Event> = (0..5).map(|n| user_event(&format!("limit-{n}"), 800 + n, 1)).collect();
        rig.expect.doomed.extend(events.iter().map(|event| event.id.clone()));
        rig.publish(&events).await?;
        crash_until_given_up(&rig.site.amqp_url, events.len()).await?;
        rig.start_replica(0, "")?;
        rig.until_ready(0).await?;
        rig.until_count("SELECT count(*) FROM onceflow.dead_letter WHERE reason = 'delivery_limit'", 5).await?;
        rig.producer.resume();
        rig.healed().await.map(drop)
    })
}

async fn crash_until_given_up(amqp_url: &str, count: usize) -> anyhow::Result<()> {
    let connection = lapin::Connection::connect(amqp_url, lapin::ConnectionProperties::default()).await?;
    for _ in 0..80 {
        let channel = connection.create_channel().await?;
        channel.basic_qos(50, BasicQosOptions::default()).await?;
        let consume = BasicConsumeOptions::default();
        let mut consumer = channel.basic_consume(QUEUE.into(), "".into(), consume, FieldTable::default()).await?;
        for _ in 0..count {
            if tokio::time::timeout(Duration::from_millis(500), consumer.next()).await.is_err() {
                break;
            }
        }
        channel.close(200, "crash".into()).await?;
        let look = connection.create_channel().await?;
        let passive = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
        let left = look.queue_declare(format!("{QUEUE}.dlq").into(), passive, FieldTable::default()).await?;
        look.close(200, "bye".into()).await?;
        if usize::try_from(left.message_count())? >= count {
            return Ok(connection.close(200, "bye".into()).await?);
        }
    }
    bail!("the broker did not give the messages up after 80 deliveries")
}

fn no_permission(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.expect.no_attempts = true;
        rig.progress(50).await?;
        let name = rig.site.name.clone();
        rig.ground.permit(&name, &name, "^$").await?;
        close_connections(rig).await?;
        let before = rig.doors[0].broker.connections();
        rig.until_not_ready(0).await?;
        rig.lasts(3_000).await;
        let tries = rig.doors[0].broker.connections() - before;
        rig.ground.permit(&name, &name, ".*").await?;
        ensure!(tries < 60, "a hot loop: {tries} connections in three seconds");
        rig.healed().await.map(drop)
    })
}

fn no_connection(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.expect.no_attempts = true;
        rig.progress(50).await?;
        let limit = format!("user-limits/{}/max-connections", rig.site.name);
        ask(rig, Method::PUT, &limit, json!({"value": 0})).await?;
        close_connections(rig).await?;
        rig.until_not_ready(0).await?;
        rig.lasts(2_000).await;
        ask(rig, Method::DELETE, &limit, json!({})).await?;
        rig.healed().await.map(drop)
    })
}

/// Another session holds the row of one user; all the others go on.
fn fifty_retries(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.publish(&[user_event("stubborn-1", 900, 1)]).await?;
        rig.until_count("SELECT count(*) FROM onceflow.org_user WHERE id = 'u0900'", 1).await?;
        let held = hold(rig, "SELECT FROM onceflow.org_user WHERE id = 'u0900' FOR UPDATE").await?;
        rig.publish(&[user_event("stubborn-2", 900, 2)]).await?;
        let attempts = "SELECT coalesce(max(attempt), 0)::bigint FROM onceflow.attempt WHERE event_id = 'stubborn-2'";
        for least in [15, 35, 50] {
            rig.until_count(attempts, least).await?;
        }
        drop(held);
        rig.until_count("SELECT count(*) FROM onceflow.inbox WHERE event_id = 'stubborn-2'", 1).await?;
        rig.healed().await.map(drop)
    })
}

fn flood(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.progress(50).await?;
        rig.producer.set_rate(2_000);
        rig.lasts(4_000).await;
        rig.producer.set_rate(200);
        rig.healed().await.map(drop)
    })
}

fn active_killed(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.expect.strict_order = true;
        rig.progress(100).await?;
        for n in [1, 0] {
            rig.kill(n).await?;
            rig.healed().await?;
            rig.start_replica(n, "")?;
            rig.until_ready(n).await?;
            rig.progress(100).await?;
        }
        rig.healed().await.map(drop)
    })
}

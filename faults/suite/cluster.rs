//! B4: the broker is a cluster of three nodes, and loses some of them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use onceflow::dev::servers::RabbitMq;
use reqwest::Method;
use serde_json::{Value, json};

use super::{Fault, TWO, Work, fault};
use crate::rig::{Rig, SOON, Setup, until};

/// Three nodes boot beside the service, which leaves less for events.
const CLUSTER: Setup = Setup { quorum: true, cluster: true, rate: 100, ..TWO };
const QUEUE: &str = "onceflow.org";
/// The broker's own figures are up to five seconds old.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Rows for the relays of both replicas.
const ROWS: i64 = 80;

pub(super) const FAULTS: &[Fault] =
    &[fault("B4", "cluster of three: leader killed, then two of three, then all restarted in turn", loses_nodes)
        .set(CLUSTER)
        .alone()];

fn loses_nodes(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.expect.no_attempts = true;
        rig.expect.sink_lost = true;
        rig.progress(50).await?;
        let leader = leader_of_three(rig).await?;
        killed(rig, leader).await?;
        majority_lost(rig, (leader + 2) % 3).await?;
        restarted_in_turn(rig).await
    })
}

fn nodes(rig: &mut Rig) -> anyhow::Result<&mut [RabbitMq]> {
    Ok(&mut rig.cluster.as_mut().context("no cluster")?.nodes)
}

/// Waits until the broker names three members of the consumer's queue, and says whose node leads it.
async fn leader_of_three(rig: &Rig) -> anyhow::Result<usize> {
    let nodes = &rig.cluster.as_ref().context("no cluster")?.nodes;
    let path = format!("queues/{}/{QUEUE}", rig.site.name);
    let begun = Instant::now();
    loop {
        let text = rig.ground.ask(&nodes[0].management_url(), Method::GET, &path, json!({})).await?;
        let queue: Value = serde_json::from_str(&text)?;
        let leader = nodes.iter().position(|node| Some(node.node()) == queue["leader"].as_str());
        let members = queue["members"].as_array().map_or(0, Vec::len);
        match leader {
            Some(leader) if members == nodes.len() => return Ok(leader),
            _ => ensure!(begun.elapsed() < SOON, "{QUEUE} has {members} members, led by {}", queue["leader"]),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Waits until no queue would lose its majority with node `n`.
async fn until_dispensable(rig: &Rig, n: usize) -> anyhow::Result<()> {
    let api = rig.cluster.as_ref().context("no cluster")?.nodes[n].management_url();
    let asked = || rig.ground.ask(&api, Method::GET, "health/checks/node-is-quorum-critical", json!({}));
    until("every queue has all its members", SOON, || async { asked().await.is_ok() }).await
}

/// The other two choose another leader and go on.
async fn killed(rig: &mut Rig, leader: usize) -> anyhow::Result<()> {
    nodes(rig)?[leader].kill().await?;
    rig.tally.broker_restarts += 1;
    rig.healed().await?;
    rig.progress(50).await?;
    nodes(rig)?[leader].start().await?;
    rig.healed().await.map(drop)
}

/// One of three takes nothing and gives nothing, until the others are back.
async fn majority_lost(rig: &mut Rig, survivor: usize) -> anyhow::Result<()> {
    until_dispensable(rig, survivor).await?;
    let killing = others(nodes(rig)?, survivor).map(RabbitMq::kill);
    try_join_all(killing).await?;
    rig.tally.broker_restarts += 2;
    let told = told_without_majority(rig).await;
    // Whatever was found, they must come back.
    let starting = others(nodes(rig)?, survivor).map(RabbitMq::start);
    try_join_all(starting).await?;
    told?;
    rig.healed().await?;
    // A consumer that was asked for meanwhile, and that nobody reads, would keep some events for itself.
    rig.calm().await?;
    rig.producer.resume();
    Ok(())
}

fn others(nodes: &mut [RabbitMq], but: usize) -> impl Iterator<Item = &mut RabbitMq> {
    nodes.iter_mut().enumerate().filter(move |(n, _)| *n != but).map(|(_, node)| node)
}

async fn told_without_majority(rig: &mut Rig) -> anyhow::Result<()> {
    // What was confirmed before has been heard of by then.
    rig.lasts(1_000).await;
    let confirmed = rig.producer.confirmed();
    // Nobody misses a queue that gives nothing; with something to publish the relays do.
    let rows = format!(
        "INSERT INTO onceflow.outbox (aggregatetype, aggregateid, type, payload)
        SELECT 'shop', (n % 40)::text, 'shop.opened.v1', json_build_object('version', n::text) FROM generate_series(1, {ROWS}) n"
    );
    rig.execute(&rows).await?;
    rig.expect.by_hand = ROWS;
    for n in 0..rig.replicas.len() {
        rig.until_not_ready(n).await?;
    }
    rig.lasts(2_000).await;
    let since = rig.producer.confirmed() - confirmed;
    ensure!(since == 0, "one node of three confirmed {since} events");
    ensure!(rig.count("SELECT count(*) FROM onceflow.outbox", &[]).await? >= ROWS, "rows left with one node of three");
    Ok(())
}

/// As for an upgrade: each is stopped once the others can do without it, and started again.
async fn restarted_in_turn(rig: &mut Rig) -> anyhow::Result<()> {
    for n in 0..nodes(rig)?.len() {
        until_dispensable(rig, n).await?;
        nodes(rig)?[n].stop().await?;
        rig.tally.broker_restarts += 1;
        rig.healed().await?;
        rig.progress(50).await?;
        nodes(rig)?[n].start().await?;
        rig.healed().await?;
    }
    Ok(())
}

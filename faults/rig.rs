//! The world of one fault: a site, replicas behind proxies, a producer, a sink, and somebody who watches.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use onceflow::dev::servers::Cluster;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use crate::checker::{self, Evidence, Findings};
use crate::events::{Event, Feed, id_of};
use crate::ground::{Ground, Site, connect, port_of, with_port};
use crate::producer::Producer;
use crate::proxy::{Proxy, Strike, Weather};
use crate::replica::{Replica, Start};
use crate::sink::Sink;

const LOOK_EVERY: Duration = Duration::from_millis(25);
/// Longest wait for anything that is expected to happen, on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(45);
/// How soon a fault shows (I8).
const VISIBLE_WITHIN: Duration = Duration::from_secs(10);
/// Longest wait until everything has come to rest.
const REST_WITHIN: Duration = Duration::from_secs(90);
const STOP_WITHIN: Duration = Duration::from_secs(40);
/// Connections that one replica may have open: its three pools and the listener.
const CONNECTIONS: i64 = 16 + 3 + 4 + 1;

/// How the world of a fault is set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) replicas: usize,
    pub(crate) quorum: bool,
    /// A cluster of its own instead of the one broker; everybody's proxy goes to a node that lives.
    pub(crate) cluster: bool,
    /// Events a second.
    pub(crate) rate: u64,
    pub(crate) poison_every: u64,
    pub(crate) again_every: u64,
    /// Where the first replica dies, as in `FAILPOINTS`.
    pub(crate) dies: &'static str,
    /// More lines of `onceflow.toml`.
    pub(crate) settings: &'static str,
}

/// The usual world.
pub(crate) const PLAIN: Setup = Setup {
    replicas: 1,
    quorum: false,
    cluster: false,
    rate: 200,
    poison_every: 0,
    again_every: 0,
    dies: "",
    settings: "",
};

/// What the fault did, for the table.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub(crate) struct Tally {
    pub(crate) kills: u64,
    pub(crate) cuts: u64,
    pub(crate) backend_kills: u64,
    pub(crate) database_restarts: u64,
    pub(crate) broker_restarts: u64,
}

/// What must hold at the end beyond what always must.
#[derive(Debug, Clone, Default)]
pub(crate) struct Expect {
    /// The fault was an outage: it may cost no attempt.
    pub(crate) no_attempts: bool,
    /// Every key's events are applied in their order: none comes too late.
    pub(crate) strict_order: bool,
    /// Rows were parked, and a person handed them back: they come later than their successors.
    pub(crate) parked: bool,
    /// The sink lost its connections with the nodes that they went to: what the broker had given it may come again behind what is newer.
    pub(crate) sink_lost: bool,
    /// Events that must end as dead letters.
    pub(crate) doomed: BTreeSet<String>,
    /// Dead letters whose ids the product made, because the events had none.
    pub(crate) nameless: u64,
    /// Outbox rows that the fault wrote itself.
    pub(crate) by_hand: i64,
}

/// The proxies of one replica.
pub(crate) struct Door {
    pub(crate) broker: Proxy,
    pub(crate) database: Proxy,
}

/// See the module.
pub(crate) struct Rig {
    pub(crate) ground: Arc<Ground>,
    pub(crate) site: Site,
    pub(crate) cluster: Option<Cluster>,
    pub(crate) doors: Vec<Door>,
    pub(crate) replicas: Vec<Option<Replica>>,
    pub(crate) producer: Producer,
    pub(crate) sink: Sink,
    pub(crate) expect: Expect,
    pub(crate) tally: Tally,
    /// How long it took each time until an event that was published after the fault was applied.
    pub(crate) recoveries: Vec<Duration>,
    /// How long a SIGTERM took under load.
    pub(crate) drains: Vec<Duration>,
    client: Client,
    pub(crate) setup: Setup,
    peak: u64,
    most_connections: i64,
    /// Server processes that served the last look at the connections.
    connected: Vec<i32>,
}

impl Rig {
    pub(crate) async fn start(ground: Arc<Ground>, label: &str, setup: Setup, seed: u64) -> anyhow::Result<Self> {
        let mut site = ground.site(label).await?;
        let mut cluster = None;
        if setup.cluster {
            cluster = Some(ground.cluster(&mut site).await?);
            // Producer and sink go to the last node, the replicas to the others.
            let from_the_last: Vec<u16> = site.nodes.iter().rev().copied().collect();
            site.amqp_url = with_port(&site.amqp_url, Proxy::before(&from_the_last).await?.port)?;
        }
        let client = connect(&site.database_url).await?;
        let sink = Sink::start(&site.amqp_url, setup.cluster).await?;
        let doors = doors(&site, setup.replicas).await?;
        let feed = Feed { seed, poison_every: setup.poison_every, again_every: setup.again_every };
        let producer = Producer::start(&site.amqp_url, feed, setup.rate);
        let replicas = (0..setup.replicas).map(|_| None).collect();
        let mut rig = Self {
            ground,
            site,
            cluster,
            doors,
            replicas,
            producer,
            sink,
            expect: Expect::default(),
            tally: Tally::default(),
            recoveries: Vec::new(),
            drains: Vec::new(),
            client,
            setup,
            peak: 0,
            most_connections: 0,
            connected: Vec::new(),
        };
        for n in 0..setup.replicas {
            rig.write_config(n)?;
            rig.start_replica(n, if n == 0 { setup.dies } else { "" })?;
        }
        Ok(rig)
    }

    /// Waits until every replica is ready, and lets the producer begin.
    pub(crate) async fn begin(&mut self) -> anyhow::Result<()> {
        for n in 0..self.replicas.len() {
            self.until_ready(n).await?;
        }
        self.producer.resume();
        Ok(())
    }

    fn write_config(&self, n: usize) -> anyhow::Result<()> {
        let amqp = with_port(&self.site.service_amqp_url, self.doors[n].broker.port)?;
        let database = with_port(&self.site.service_database_url, self.doors[n].database.port)?;
        let kind = if self.setup.quorum { "quorum" } else { "classic" };
        let mut text = String::new();
        let sections: [(&str, String); 5] = [
            ("broker", format!("url = {amqp:?}\n")),
            ("database", format!("url = {database:?}\n")),
            ("topology", format!("queue_type = {kind:?}\n")),
            ("retry", String::new()),
            ("runtime", String::new()),
        ];
        for (name, own) in sections {
            let more: Vec<&str> =
                self.setup.settings.lines().filter_map(|l| l.trim().strip_prefix(name)?.strip_prefix('.')).collect();
            text.push_str(&format!("[{name}]\n{own}{}\n", more.join("\n")));
        }
        if !self.setup.settings.contains("retry.delays") {
            text = text.replace("[retry]\n", "[retry]\ndelays = [\"200ms\", \"500ms\", \"1s\", \"2s\"]\n");
        }
        for line in self.setup.settings.lines().filter_map(|l| l.trim().strip_prefix("consumers.org.")) {
            text.push_str(&format!("[consumers.org]\n{line}\n"));
        }
        Ok(std::fs::write(self.config(n), text)?)
    }

    pub(crate) fn config(&self, n: usize) -> std::path::PathBuf {
        self.site.folder.join(format!("replica-{n}.toml"))
    }

    /// How replica `n` is started.
    pub(crate) fn how(&self, n: usize, failpoints: &str) -> Start {
        let log = self.site.folder.join(format!("replica-{n}.log"));
        Start { config: self.config(n), log, failpoints: failpoints.to_owned(), ..Start::default() }
    }

    pub(crate) fn start_replica(&mut self, n: usize, failpoints: &str) -> anyhow::Result<()> {
        self.replicas[n] = Some(Replica::start(&self.how(n, failpoints))?);
        Ok(())
    }

    pub(crate) fn replica(&self, n: usize) -> anyhow::Result<&Replica> {
        self.replicas[n].as_ref().context("the replica is not running")
    }

    /// Takes a replica out of our hands, to end it.
    pub(crate) fn take_replica(&mut self, n: usize) -> anyhow::Result<Replica> {
        let replica = self.replicas[n].take().context("the replica is not running")?;
        self.peak = self.peak.max(replica.peak_memory());
        Ok(replica)
    }

    /// `kill -9`.
    pub(crate) async fn kill(&mut self, n: usize) -> anyhow::Result<()> {
        self.tally.kills += 1;
        self.take_replica(n)?.kill().await
    }

    /// Waits until a replica has died at its kill point.
    pub(crate) async fn dies(&mut self, n: usize) -> anyhow::Result<()> {
        let mut replica = self.take_replica(n)?;
        let status = replica.ended(SOON).await.context("the kill point was never reached")?;
        ensure!(!status.success(), "it ended in an orderly way instead of dying");
        self.tally.kills += 1;
        Ok(())
    }

    pub(crate) async fn until_ready(&self, n: usize) -> anyhow::Result<()> {
        let replica = self.replica(n)?;
        until("a replica is ready", SOON, || async { matches!(replica.readiness().await, Some((200, _))) }).await
    }

    /// Waits until readiness tells of the fault (I8).
    pub(crate) async fn until_not_ready(&self, n: usize) -> anyhow::Result<()> {
        let replica = self.replica(n)?;
        until("readiness tells of the fault", VISIBLE_WITHIN, || async {
            !matches!(replica.readiness().await, Some((200, _)) | None)
        })
        .await
    }

    /// Waits until a metric shows the fault (I8).
    pub(crate) async fn shows(&self, n: usize, name: &str, label: &str) -> anyhow::Result<()> {
        let replica = self.replica(n)?;
        let what = format!("the metric {name}{{{label}}} shows the fault");
        until(&what, VISIBLE_WITHIN, || async { replica.metric(name, label).await.is_some_and(|value| value > 0.0) })
            .await
    }

    /// A connection that works, after restarts too.
    pub(crate) async fn client(&mut self) -> anyhow::Result<&Client> {
        if self.client.is_closed() {
            self.client = connect(&self.site.database_url).await?;
        }
        Ok(&self.client)
    }

    /// One number from the database.
    pub(crate) async fn count(&mut self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> anyhow::Result<i64> {
        Ok(self.client().await?.query_one(sql, values).await?.get(0))
    }

    pub(crate) async fn execute(&mut self, sql: &str) -> anyhow::Result<()> {
        Ok(self.client().await?.batch_execute(sql).await?)
    }

    /// Waits until a query that counts says at least `least`.
    pub(crate) async fn until_count(&mut self, sql: &str, least: i64) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            // While the server is away there is nothing to count.
            let found = self.count(sql, &[]).await.unwrap_or(-1);
            if found >= least {
                return Ok(());
            }
            ensure!(begun.elapsed() < SOON, "{sql}: {found} instead of {least}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until so many more events are applied.
    pub(crate) async fn progress(&mut self, more: i64) -> anyhow::Result<()> {
        let now = self.count("SELECT count(*) FROM onceflow.inbox", &[]).await?;
        self.until_count("SELECT count(*) FROM onceflow.inbox", now + more).await
    }

    /// The fault is over: waits until an event that is published from now on is applied, and notes how long that took.
    pub(crate) async fn healed(&mut self) -> anyhow::Result<Duration> {
        let (begun, first) = (Instant::now(), id_of(self.producer.next()));
        let sql = "SELECT count(*) FROM (SELECT 1 FROM onceflow.inbox WHERE event_id >= $1 AND event_id < '1' LIMIT 1) AS later";
        loop {
            self.watch().await;
            if self.count(sql, &[&first]).await.unwrap_or(0) > 0 {
                break;
            }
            ensure!(begun.elapsed() < SOON, "nothing was applied within {} s after the fault (I7)", SOON.as_secs());
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let took = begun.elapsed();
        self.recoveries.push(took);
        Ok(took)
    }

    /// Waits while the fault lasts. Real time: the length of a fault is part of it.
    pub(crate) async fn lasts(&mut self, milliseconds: u64) {
        self.watch().await;
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }

    /// Stops the producer and waits until everything that it sent has been dealt with.
    pub(crate) async fn calm(&mut self) -> anyhow::Result<()> {
        self.producer.pause().await;
        self.rest().await
    }

    pub(crate) fn weather(&self, broker: Option<Weather>, database: Option<Weather>) {
        for door in &self.doors {
            if let Some(weather) = broker {
                door.broker.set(weather);
            }
            if let Some(weather) = database {
                door.database.set(weather);
            }
        }
    }

    pub(crate) fn strike(&mut self, strike: Strike, broker: bool, database: bool) {
        for door in &self.doors {
            if broker {
                door.broker.strike(strike);
            }
            if database {
                door.database.strike(strike);
            }
            self.tally.cuts += u64::from(broker) + u64::from(database);
        }
    }

    /// Publishes events of the fault's own.
    pub(crate) async fn publish(&self, events: &[Event]) -> anyhow::Result<()> {
        self.producer.publish(events).await
    }

    async fn watch(&mut self) {
        let peak = self.replicas.iter().flatten().map(Replica::peak_memory).max().unwrap_or(0);
        self.peak = self.peak.max(peak);
        let role = self.site.name.clone();
        // While the server is away nobody is connected.
        let connected = self.connected(&role).await.unwrap_or_default();
        // One that was closed is seen until its process has ended: those that outlast two looks are held.
        let held = connected.iter().filter(|pid| self.connected.contains(pid)).count();
        self.most_connections = self.most_connections.max(i64::try_from(held).unwrap_or(i64::MAX));
        self.connected = connected;
    }

    async fn connected(&mut self, role: &str) -> anyhow::Result<Vec<i32>> {
        let sql = "SELECT pid FROM pg_stat_activity WHERE usename = $1";
        let rows = self.client().await?.query(sql, &[&role]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Waits until inbox and dead letters hold all that was confirmed, the outbox is empty, and the sink has everything.
    async fn rest(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            self.watch().await;
            let (journal, arrivals) = (self.producer.journal(), self.sink.arrivals());
            let expect = self.expect.clone();
            let evidence = Evidence { journal: &journal, arrivals: &arrivals, expect: &expect };
            let waiting = match self.client().await {
                Ok(client) => checker::waiting(client, &evidence).await.unwrap_or_else(|e| Some(format!("{e:#}"))),
                Err(error) => Some(format!("{error:#}")),
            };
            let Some(waiting) = waiting else { return Ok(()) };
            if begun.elapsed() > REST_WITHIN {
                bail!("not at rest after {} s: {waiting}", REST_WITHIN.as_secs());
            }
            tokio::time::sleep(LOOK_EVERY * 4).await;
        }
    }

    /// Everything comes to rest, the replicas stop, and the journals are compared with the database.
    pub(crate) async fn finish(mut self) -> (anyhow::Result<Findings>, Self) {
        let found = self.close_the_books().await;
        if let Some(cluster) = self.cluster.take()
            && let Err(error) = cluster.end().await
        {
            crate::say(&format!("the cluster stops by itself: {error}"));
        }
        (found, self)
    }

    async fn close_the_books(&mut self) -> anyhow::Result<Findings> {
        self.producer.pause().await;
        // What does not come to rest shows in the comparison, which says more.
        let at_rest = self.rest().await;
        if at_rest.is_err() {
            let held = self.ground.holds(&self.site).await;
            std::fs::write(self.site.folder.join("broker.txt"), held).context("write what the broker holds")?;
        }
        let mut problems = Vec::new();
        let mut outputs = String::new();
        for n in 0..self.replicas.len() {
            let Some(replica) = &self.replicas[n] else { continue };
            outputs += &replica.metrics().await.unwrap_or_default();
            outputs += &replica.status().await.unwrap_or_default().1;
            let (status, took) = self.take_replica(n)?.stop(STOP_WITHIN).await?;
            if !status.success() {
                problems.push(format!("I10: replica {n} ended with {status} after {} ms", took.as_millis()));
            }
        }
        let journal = self.producer.end(&self.site.folder.join("producer.jsonl")).await?;
        let arrivals = self.sink.end(&self.site.folder.join("sink.jsonl"))?;
        let expect = self.expect.clone();
        let evidence = Evidence { journal: &journal, arrivals: &arrivals, expect: &expect };
        let inbox = self.site.folder.join("inbox.jsonl");
        checker::write_inbox(self.client().await?, &inbox).await?;
        let mut findings = checker::compare(self.client().await?, &evidence).await?;
        findings.problems.extend(problems);
        findings.problems.extend(at_rest.err().map(|error| format!("I7: {error:#}")));
        findings.problems.extend(checker::leaks(&self.site.folder, &outputs)?);
        findings.peak = self.peak;
        findings.bounds(self.most_connections, CONNECTIONS * i64::try_from(self.setup.replicas)?);
        Ok(findings)
    }
}

/// Each replica goes to another node first, where there are several.
async fn doors(site: &Site, replicas: usize) -> anyhow::Result<Vec<Door>> {
    let mut doors = Vec::new();
    let (mut nodes, database) = (site.nodes.clone(), [port_of(&site.database_url)?]);
    for _ in 0..replicas {
        doors.push(Door { broker: Proxy::before(&nodes).await?, database: Proxy::before(&database).await? });
        nodes.rotate_left(1);
    }
    Ok(doors)
}

/// Looks again and again until `look` says yes.
pub(crate) async fn until<F>(what: &str, within: Duration, mut look: impl FnMut() -> F) -> anyhow::Result<()>
where
    F: Future<Output = bool>,
{
    let begun = Instant::now();
    while !look().await {
        ensure!(begun.elapsed() < within, "did not happen within {} s: {what}", within.as_secs());
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

//! One measurement: a fresh database and virtual host, one contender, one way of loading it, and a check of what came out.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::contender::{Contender, Process, Setup, Usage, declare};
use crate::events::{Feed, Mix};
use crate::figures::{Measured, Percentiles};
use crate::ground::{Ground, Site, connect};
use crate::hold::Held;
use crate::producer::Producer;
use crate::sibling::{Book, Sibling};

/// Longest time without any arrival at the sibling.
const STALLED_AFTER: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often memory is looked at where its course is of interest.
const SAMPLE_EVERY: Duration = Duration::from_millis(500);
/// A service that has just started has still this to do.
const SETTLED_AFTER: Duration = Duration::from_secs(5);

/// How the events come.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Load {
    /// They wait in the queue when the contender starts.
    Drain,
    /// They are published as fast as possible while the contender works; the first ones only warm it up.
    Flood { warm_up: u64 },
    /// They come at a rate; the first ones only warm it up.
    Steady { rate: u64, warm_up: u64 },
}

/// What is measured.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) setup: Setup,
    pub(crate) feed: Feed,
    pub(crate) load: Load,
    /// Processes of the contender.
    pub(crate) replicas: u32,
    /// Share of a drain that doesn't count: replicas come and share the queues meanwhile.
    pub(crate) settling: f64,
    /// Rows in the inbox before the first event.
    pub(crate) inbox_rows: u64,
    /// Another session opens a transaction after this many events, and holds it to the end.
    pub(crate) hold_after: Option<u64>,
}

/// Runs a plan. `None` when this build does not know one of its settings.
pub(crate) async fn measure(
    ground: &mut Ground,
    plan: &Plan,
    contender: Contender,
) -> anyhow::Result<Option<Measured>> {
    let site = ground.site().await?;
    let measured = match declare(&plan.setup, &site).await? {
        Some(()) => Some(at(ground, &site, plan, contender).await?),
        None => None,
    };
    ground.clear(&site).await?;
    Ok(measured)
}

async fn at(ground: &Ground, site: &Site, plan: &Plan, contender: Contender) -> anyhow::Result<Measured> {
    if plan.inbox_rows > 0 {
        fill_inbox(site, plan.inbox_rows).await?;
    }
    let sibling = Sibling::start(&site.amqp_url, plan.feed.count + 1).await?;
    let producer = Producer::connect(&site.amqp_url).await?;
    if matches!(plan.load, Load::Drain) {
        producer.flood(&plan.feed, 0..plan.feed.count).await?;
    }
    ground.settle().await?;
    let mut fleet = Fleet::start(plan, contender, site)?;
    let observed = match plan.load {
        Load::Drain => drain(&sibling, &mut fleet, plan).await?,
        Load::Flood { warm_up } => flood(&sibling, &mut fleet, plan, (&producer, warm_up)).await?,
        Load::Steady { rate, warm_up } => {
            steady(&sibling, &mut fleet, plan, Pace { producer: &producer, rate, warm_up, site }).await?
        }
    };
    let used = fleet.usage()?.since(observed.before);
    let memory = std::mem::take(&mut fleet.memory);
    producer.close().await?;
    let book = sibling.close().await?;
    check(site, plan, &book).await?;
    fleet.kill().await?;
    Ok(result(plan, &observed, &book, Spent { used, memory }))
}

/// What was seen from outside while the contender worked.
struct Observed {
    /// Usage when the clock was started.
    before: Usage,
    /// When that was; the first arrival where `None`.
    begun: Option<Instant>,
    /// When each event was due.
    schedule: Vec<Instant>,
    /// Events that don't count.
    skipped: u64,
}

struct Spent {
    used: Usage,
    memory: Vec<(f64, f64)>,
}

async fn drain(sibling: &Sibling, fleet: &mut Fleet, plan: &Plan) -> anyhow::Result<Observed> {
    fleet.wait(sibling, 1).await?;
    let before = fleet.usage()?;
    fleet.wait(sibling, expected(&plan.feed)).await?;
    let skipped = (0..plan.feed.count).take_while(|n| plan.feed.downstream(*n) == 0).count();
    Ok(Observed { before, begun: None, schedule: Vec::new(), skipped: skipped as u64 })
}

async fn flood(
    sibling: &Sibling,
    fleet: &mut Fleet,
    plan: &Plan,
    (producer, warm_up): (&Producer, u64),
) -> anyhow::Result<Observed> {
    producer.wait_for_consumers(&[plan.setup.domain.queue()], 1).await?;
    producer.flood(&plan.feed, 0..warm_up).await?;
    fleet.wait(sibling, (0..warm_up).map(|n| u64::from(plan.feed.downstream(n))).sum()).await?;
    let (before, begun) = (fleet.usage()?, Some(Instant::now()));
    producer.flood(&plan.feed, warm_up..plan.feed.count).await?;
    fleet.wait(sibling, expected(&plan.feed)).await?;
    Ok(Observed { before, begun, schedule: Vec::new(), skipped: warm_up })
}

struct Pace<'a> {
    producer: &'a Producer,
    rate: u64,
    warm_up: u64,
    site: &'a Site,
}

async fn steady(sibling: &Sibling, fleet: &mut Fleet, plan: &Plan, pace: Pace<'_>) -> anyhow::Result<Observed> {
    let Pace { producer, rate, warm_up, site } = pace;
    producer.wait_for_consumers(&[plan.setup.domain.queue()], 1).await?;
    let before = fleet.usage()?;
    let hold = async {
        let Some(events) = plan.hold_after else { return anyhow::Ok(None) };
        tokio::time::sleep(Duration::from_secs_f64(events as f64 / rate as f64)).await;
        Ok(Some(Held::open(&site.database_url, plan.feed.count).await?))
    };
    let (schedule, held) = tokio::try_join!(producer.steady(&plan.feed, 0..plan.feed.count, rate), hold)?;
    fleet.wait(sibling, expected(&plan.feed)).await?;
    if let Some(held) = held {
        // What it wrote must still leave, although its number is far behind.
        held.commit().await?;
        fleet.wait(sibling, expected(&plan.feed) + 1).await?;
    }
    Ok(Observed { before, begun: None, schedule, skipped: warm_up })
}

/// How many downstream messages the events must cause.
fn expected(feed: &Feed) -> u64 {
    (0..feed.count).map(|n| u64::from(feed.downstream(n))).sum()
}

fn result(plan: &Plan, observed: &Observed, book: &Book, spent: Spent) -> Measured {
    let mut events = plan.feed.count - observed.skipped;
    let mut begun = observed.begun.or(book.first);
    let counted = if matches!(plan.load, Load::Steady { .. }) { plan.feed.count } else { events };
    if plan.settling > 0.0 {
        let settled = (events as f64 * plan.settling) as usize;
        let mut arrivals: Vec<Instant> = book.arrived.iter().flatten().copied().collect();
        arrivals.sort_unstable();
        (events, begun) = (events - settled as u64, arrivals.get(settled).copied().or(begun));
    }
    let seconds = match (begun, book.last) {
        (Some(begun), Some(last)) => last.duration_since(begun).as_secs_f64(),
        _ => f64::NAN,
    };
    let used = spent.used;
    let mut measured = Measured {
        events,
        seconds,
        rate: events as f64 / seconds,
        cpu_us: used.cpu.as_secs_f64() * 1e6 / counted as f64,
        peak_mib: used.peak as f64 / f64::from(1 << 20),
        repeated: book.repeated,
        memory: spent.memory,
        ..Measured::default()
    };
    let waited = |n| book.waited(n, &observed.schedule);
    let latency = |events: &mut dyn Iterator<Item = u64>| Percentiles::of(events.filter_map(waited).collect());
    if !observed.schedule.is_empty() {
        let cold = |n: &u64| !plan.feed.is_hot(*n);
        let end = plan.hold_after.unwrap_or(plan.feed.count);
        measured.latency = latency(&mut (observed.skipped..end).filter(cold));
        // Half a second for the other session to open its transaction.
        measured.latency_held = plan.hold_after.and_then(|held| latency(&mut (held + 500..plan.feed.count)));
    }
    measured
}

/// Exactly what was expected came to the sibling and lies in the tables; anything else is a wrong result, however fast.
async fn check(site: &Site, plan: &Plan, book: &Book) -> anyhow::Result<()> {
    for (place, n) in (0..plan.feed.count).enumerate() {
        let (came, expected) = (book.messages(place), plan.feed.downstream(n));
        ensure!(came == expected, "event {n} caused {came} downstream messages instead of {expected}");
    }
    let client = connect(&site.database_url).await?;
    let count = async |sql: &str| anyhow::Ok(client.query_one(sql, &[]).await?.get::<_, i64>(0));
    let (sql, rows) = plan.feed.rows();
    let found = count(sql).await?;
    ensure!(u64::try_from(found)? == rows, "{found} rows of the domain instead of {rows}");
    let poison = if plan.feed.mix == Mix::Poison { plan.feed.count / 100 } else { 0 };
    // The last ones may still be on their way: no downstream message tells of them.
    let begun = Instant::now();
    loop {
        let dead = count("SELECT count(*) FROM onceflow.dead_letter").await?;
        if u64::try_from(dead)? == poison {
            return Ok(());
        }
        ensure!(begun.elapsed() < STALLED_AFTER, "{dead} dead letters instead of {poison}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Processed events of the past, as a busy installation has them.
async fn fill_inbox(site: &Site, rows: u64) -> anyhow::Result<()> {
    let client = connect(&site.database_url).await?;
    let fill = "
        INSERT INTO onceflow.inbox (tenant, consumer, source, event_id, event_type, fingerprint, claim_id, downstream, processed_at)
        SELECT 'default', 'org', 'bench/producer', md5(n::text), 'org.user.upserted.v1', decode(md5(n::text) || md5(n::text), 'hex'),
               md5(n::text)::uuid, 1, clock_timestamp() - interval '1 day'
        FROM generate_series(1, $1::bigint) AS n";
    client.execute(fill, &[&i64::try_from(rows)?]).await.context("fill the inbox")?;
    client.batch_execute("VACUUM ANALYZE onceflow.inbox").await?;
    Ok(())
}

/// Processor time of a service that has nothing to do. `None` when this build does not know a setting.
pub(crate) async fn idle(ground: &mut Ground, setup: &Setup, seconds: f64) -> anyhow::Result<Option<Measured>> {
    let site = ground.site().await?;
    if declare(setup, &site).await?.is_none() {
        return Ok(None);
    }
    let process = Process::start(Contender::Onceflow, setup, &site)?;
    let producer = Producer::connect(&site.amqp_url).await?;
    producer.wait_for_consumers(&[setup.domain.queue()], 1).await?;
    producer.close().await?;
    tokio::time::sleep(SETTLED_AFTER).await;
    let (before, begun) = (process.usage()?, Instant::now());
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    let (used, elapsed) = (process.usage()?.since(before), begun.elapsed().as_secs_f64());
    process.kill().await?;
    ground.clear(&site).await?;
    Ok(Some(Measured {
        seconds: elapsed,
        rate: f64::NAN,
        cpu_us: f64::NAN,
        peak_mib: used.peak as f64 / f64::from(1 << 20),
        idle_percent: Some(100.0 * used.cpu.as_secs_f64() / elapsed),
        ..Measured::default()
    }))
}

/// The processes of one contender.
pub(crate) struct Fleet {
    processes: Vec<Process>,
    begun: Instant,
    /// Seconds since the start, resident MiB of the largest process.
    memory: Vec<(f64, f64)>,
}

impl Fleet {
    pub(crate) fn start(plan: &Plan, contender: Contender, site: &Site) -> anyhow::Result<Self> {
        let start = |_| Process::start(contender, &plan.setup, site);
        let processes = (0..plan.replicas).map(start).collect::<anyhow::Result<_>>()?;
        Ok(Self { processes, begun: Instant::now(), memory: Vec::new() })
    }

    /// Processor time of all, memory of the largest.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        let mut sum = Usage::default();
        for process in &self.processes {
            sum = sum.and(process.usage()?);
        }
        Ok(sum)
    }

    /// Waits for arrivals at the sibling; notices a contender that has ended, or that makes no progress.
    pub(crate) async fn wait(&mut self, sibling: &Sibling, messages: u64) -> anyhow::Result<()> {
        let (mut seen, mut moved, mut sampled) = (sibling.count(), Instant::now(), Instant::now());
        loop {
            match tokio::time::timeout(LOOK_EVERY, sibling.wait_for(messages)).await {
                Ok(waited) => return waited,
                Err(_) => self.processes.iter_mut().try_for_each(Process::check)?,
            }
            if sibling.count() > seen {
                (seen, moved) = (sibling.count(), Instant::now());
            }
            if moved.elapsed() > STALLED_AFTER {
                bail!("nothing came for {} s, {seen} of {messages} messages had come", STALLED_AFTER.as_secs());
            }
            if sampled.elapsed() >= SAMPLE_EVERY {
                sampled = Instant::now();
                let resident = self.usage()?.resident as f64 / f64::from(1 << 20);
                self.memory.push((self.begun.elapsed().as_secs_f64(), resident));
            }
        }
    }

    pub(crate) async fn kill(self) -> anyhow::Result<()> {
        for process in self.processes {
            process.kill().await?;
        }
        Ok(())
    }
}

//! Random schedules: one world, two replicas, one to three faults a minute.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::ground::Ground;
use crate::outcome::{Outcome, settle};
use crate::proxy::{Strike, Weather};
use crate::rig::{PLAIN, Rig, Setup};
use crate::suite::{Fault, Inject, Work, broker};

/// Between the end of one fault and the beginning of the next, in seconds.
const PAUSE: std::ops::Range<u64> = 15..45;

const ACTS: [(&str, Inject); 13] = [
    ("kill -9", kill),
    ("SIGTERM", terminate),
    ("SIGSTOP", freeze_process),
    ("links cut", cut),
    ("links reset", reset),
    ("garbage", garbage),
    ("broker frozen", freeze_broker),
    ("database frozen", freeze_database),
    ("latency", slow),
    ("sessions terminated", terminate_sessions),
    ("database crash", crash_database),
    ("broker stopped and started", broker::restarts),
    ("memory alarm", broker::memory_alarm),
];

fn setup(rate: u64) -> Setup {
    let settings = "broker.heartbeat = \"5s\"\ndatabase.statement_timeout = \"5s\"";
    Setup { replicas: 2, quorum: true, rate, poison_every: 97, again_every: 30, settings, ..PLAIN }
}

/// Runs one schedule.
pub(crate) async fn run(ground: Arc<Ground>, seed: u64, minutes: u64, rate: u64) -> anyhow::Result<Outcome> {
    let begun = Instant::now();
    let mut random = StdRng::seed_from_u64(seed);
    let mut rig = Rig::start(ground, &format!("chaos-{seed}"), setup(rate), seed).await?;
    rig.begin().await?;
    let mut drawn = 0;
    let mut ended = Ok(());
    while begun.elapsed() < Duration::from_secs(minutes * 60) {
        tokio::time::sleep(Duration::from_secs(random.random_range(PAUSE))).await;
        let Some((name, act)) = ACTS.choose(&mut random) else { break };
        drawn += 1;
        crate::say(&format!("chaos {seed}, {} s: {name}", begun.elapsed().as_secs()));
        ended = act(&mut rig).await;
        if ended.is_err() {
            break;
        }
    }
    let title = "random faults on two replicas";
    let fault = Fault { name: "chaos", title, setup: setup(rate), alone: true, inject: cut };
    let outcome = Outcome { injections: drawn, ..settle(&fault, ended, rig, begun).await };
    for problem in &outcome.findings.problems {
        crate::say(&format!("  chaos {seed}: {problem}"));
    }
    let (confirmed, redelivered) = (outcome.findings.confirmed, outcome.findings.redelivered);
    crate::say(&format!("chaos {seed}: {drawn} faults, {confirmed} events confirmed, {redelivered} redeliveries"));
    Ok(outcome)
}

fn kill(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        let n = usize::try_from(rig.tally.kills % 2)?;
        rig.kill(n).await?;
        rig.healed().await?;
        rig.start_replica(n, "")?;
        rig.until_ready(n).await
    })
}

fn terminate(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        let n = rig.drains.len() % 2;
        let (_, took) = rig.take_replica(n)?.stop(Duration::from_secs(40)).await?;
        rig.drains.push(took);
        rig.start_replica(n, "")?;
        rig.until_ready(n).await?;
        rig.healed().await.map(drop)
    })
}

fn freeze_process(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.replica(0)?.signal("STOP").await?;
        rig.lasts(9_000).await;
        rig.replica(0)?.signal("CONT").await?;
        rig.healed().await.map(drop)
    })
}

async fn struck(rig: &mut Rig, strike: Strike) -> anyhow::Result<()> {
    rig.strike(strike, true, true);
    rig.healed().await.map(drop)
}

fn cut(rig: &mut Rig) -> Work<'_> {
    Box::pin(struck(rig, Strike::Cut))
}

fn reset(rig: &mut Rig) -> Work<'_> {
    Box::pin(struck(rig, Strike::Reset))
}

fn garbage(rig: &mut Rig) -> Work<'_> {
    Box::pin(struck(rig, Strike::Garbage))
}

async fn under(rig: &mut Rig, broker: Option<Weather>, database: Option<Weather>) -> anyhow::Result<()> {
    rig.weather(broker, database);
    rig.lasts(8_000).await;
    rig.weather(Some(Weather::Clear), Some(Weather::Clear));
    rig.healed().await.map(drop)
}

fn freeze_broker(rig: &mut Rig) -> Work<'_> {
    Box::pin(under(rig, Some(Weather::Frozen), None))
}

fn freeze_database(rig: &mut Rig) -> Work<'_> {
    Box::pin(under(rig, None, Some(Weather::Frozen)))
}

fn slow(rig: &mut Rig) -> Work<'_> {
    Box::pin(under(rig, Some(Weather::Slow), Some(Weather::Slow)))
}

fn terminate_sessions(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        let role = rig.site.name.clone();
        for _ in 0..10 {
            let kick = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = $1";
            rig.tally.backend_kills += rig.count(kick, &[&role]).await?.unsigned_abs();
            rig.lasts(200).await;
        }
        rig.healed().await.map(drop)
    })
}

fn crash_database(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        let mut servers = rig.ground.servers.write().await;
        if let Some(postgres) = servers.postgres.as_mut() {
            postgres.restart_immediate().await?;
        }
        drop(servers);
        rig.tally.database_restarts += 1;
        rig.healed().await.map(drop)
    })
}

//! P: the process dies, freezes, is told to stop.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::process::Command;

use super::{Fault, TWO, Work, fault};
use crate::ground::connect;
use crate::proxy::Weather;
use crate::replica::Replica;
use crate::rig::{PLAIN, Rig, SOON, Setup, until};

/// Deaths at the same point, one after the other.
const DEATHS: usize = 3;
/// Of the relay's leases and of the replicas' shares.
const LEASE_MS: u64 = 4_000;
/// Longest drain of the configuration, with what the service adds to it.
const DRAIN: Duration = Duration::from_secs(30);

/// Dies at the point, the first time after some passes.
const fn dying(dies: &'static str) -> Setup {
    Setup { dies, ..PLAIN }
}

const RETRYING: Setup = Setup {
    dies: "after_retry_publish=2*off->return",
    settings: "database.statement_timeout = \"400ms\"\nretry.max_attempts = 100\nruntime.kill_switch_failures = 0",
    ..PLAIN
};
const SHORT_DRAIN: Setup = Setup { settings: "runtime.drain_within = \"1s\"", ..PLAIN };
const CRASH_LOOP: Setup = Setup { dies: "before_ack=return", quorum: true, ..PLAIN };

pub(super) const FAULTS: &[Fault] = &[
    fault("P1", "dies after delivery, before BEGIN", dies).set(dying("before_begin=12*off->return")),
    fault("P2.after_claim", "dies in the transaction, the events claimed", dies)
        .set(dying("after_claim=12*off->return")),
    fault("P2.before_commit", "dies in the transaction, all written", dies).set(dying("before_commit=12*off->return")),
    fault("P3", "dies with COMMIT sent and its answer unread", dies_in_commit),
    fault("P4", "dies after COMMIT, before the ack", dies).set(dying("after_commit=12*off->return")),
    fault("P5", "dies with the ack not on the wire", dies).set(dying("before_ack=12*off->return")),
    fault("P6", "relay dies with confirmed rows not removed", dies).set(dying("relay_before_delete=3*off->return")),
    fault("P7", "relay dies after publishing, before the confirm", dies).set(dying("after_publish=12*off->return")),
    fault("P8", "relay dies after the confirm", dies).set(dying("relay_after_confirm=12*off->return")),
    fault("P9", "dies between publish-to-retry and ack", dies_retrying).set(RETRYING),
    fault("P10", "dies between dead letter and ack", dies).set(Setup {
        dies: "after_dead_letter=3*off->return",
        poison_every: 10,
        ..PLAIN
    }),
    fault("P12", "killed in a migration; four migrate at once", migrates),
    fault("P13", "holder of leases killed", holder_killed).set(TWO),
    fault("P14", "holder of leases frozen for twice their time", holder_frozen).set(TWO),
    fault("P15", "SIGTERM under load, three times", terminated),
    fault("P16.late", "drain limit exceeded", drain_exceeded).set(SHORT_DRAIN),
    fault("P16.second", "second SIGTERM", terminated_twice),
    fault("P20", "nobody reads the log: the pipe is closed", deaf),
    fault("P21", "dies twelve times with the same messages unacknowledged", dies_in_a_loop).set(CRASH_LOOP),
];

fn dies(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        for death in 1..=DEATHS {
            rig.dies(0).await?;
            rig.start_replica(0, if death < DEATHS { rig.setup.dies } else { "" })?;
        }
        rig.until_ready(0).await?;
        rig.healed().await.map(drop)
    })
}

fn dies_in_commit(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        for _ in 0..DEATHS {
            rig.progress(20).await?;
            let door = &rig.doors[0].database;
            door.hold_next_commit();
            until("a COMMIT was forwarded", SOON, || async { door.weather() == Weather::FrozenDown }).await?;
            rig.kill(0).await?;
            rig.weather(None, Some(Weather::Clear));
            rig.start_replica(0, "")?;
            rig.until_ready(0).await?;
        }
        rig.healed().await.map(drop)
    })
}

/// Handlers wait for a lock longer than a statement may take, so events go to the retry queues.
fn dies_retrying(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        for death in 1..=2 {
            let held = hold(rig, "LOCK TABLE onceflow.org_user IN ACCESS EXCLUSIVE MODE").await?;
            rig.dies(0).await?;
            drop(held);
            rig.start_replica(0, if death < 2 { rig.setup.dies } else { "" })?;
            rig.until_ready(0).await?;
        }
        rig.healed().await.map(drop)
    })
}

/// A transaction that is open until the value is dropped.
pub(super) async fn hold(rig: &Rig, sql: &str) -> anyhow::Result<tokio_postgres::Client> {
    let client = connect(&rig.site.database_url).await?;
    client.batch_execute(&format!("BEGIN; {sql}")).await?;
    Ok(client)
}

/// Waits until somebody waits for a lock.
pub(super) async fn until_blocked(rig: &mut Rig) -> anyhow::Result<()> {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    rig.until_count(sql, 1).await
}

fn migrates(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        let database = format!("{}_m", rig.site.name);
        rig.execute(&format!("CREATE DATABASE {database}")).await?;
        let mut url = url::Url::parse(&rig.site.database_url)?;
        url.set_path(&database);
        let program = std::env::current_exe()?.with_file_name("onceflow");
        let migrate = || {
            let mut command = Command::new(&program);
            command.env_clear().env("ONCEFLOW_DATABASE_URL", url.as_str()).env("ONCEFLOW_AMQP_URL", &rig.site.amqp_url);
            command.arg("migrate").current_dir(&rig.site.folder).kill_on_drop(true);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
            command
        };
        for after in [30, 60, 90, 120] {
            let mut killed = migrate().spawn()?;
            tokio::time::sleep(Duration::from_millis(after)).await;
            killed.kill().await?;
            rig.tally.kills += 1;
        }
        let all = futures_util::future::join_all((0..4).map(|_| migrate().output())).await;
        for output in all {
            let output = output?;
            ensure!(output.status.success(), "a migration failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        rig.execute(&format!("DROP DATABASE {database} WITH (FORCE)")).await?;
        rig.progress(20).await
    })
}

fn holder_killed(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.progress(100).await?;
        rig.kill(0).await?;
        rig.healed().await?;
        // All partitions are the other one's once the leases of the dead are over.
        let free =
            "SELECT 8 - count(DISTINCT partition) FROM onceflow.outbox_partition WHERE expires_at > clock_timestamp()";
        let begun = std::time::Instant::now();
        while rig.count(free, &[]).await? > 0 {
            ensure!(begun.elapsed() < SOON, "partitions without a holder");
            rig.lasts(50).await;
        }
        rig.start_replica(0, "")?;
        rig.until_ready(0).await?;
        rig.healed().await.map(drop)
    })
}

fn holder_frozen(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.progress(100).await?;
        rig.replica(0)?.signal("STOP").await?;
        rig.lasts(2 * LEASE_MS).await;
        rig.replica(0)?.signal("CONT").await?;
        rig.healed().await.map(drop)
    })
}

fn terminated(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        for _ in 0..3 {
            rig.progress(60).await?;
            let (status, took) = rig.take_replica(0)?.stop(DRAIN).await?;
            ensure!(status.success(), "it ended with {status}");
            rig.drains.push(took);
            rig.start_replica(0, "")?;
            rig.until_ready(0).await?;
        }
        rig.healed().await?;
        let again = rig.count("SELECT coalesce(sum(duplicates), 0)::bigint FROM onceflow.inbox", &[]).await?;
        ensure!(again == 0, "{again} events had been applied and came again after an orderly stop");
        Ok(())
    })
}

fn drain_exceeded(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.progress(60).await?;
        let held = hold(rig, "LOCK TABLE onceflow.org_user IN ACCESS EXCLUSIVE MODE").await?;
        until_blocked(rig).await?;
        let (status, took) = rig.take_replica(0)?.stop(DRAIN).await?;
        ensure!(status.code() == Some(1), "it ended with {status} after {} ms", took.as_millis());
        drop(held);
        rig.start_replica(0, "")?;
        rig.until_ready(0).await?;
        rig.healed().await.map(drop)
    })
}

fn terminated_twice(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.progress(60).await?;
        let held = hold(rig, "LOCK TABLE onceflow.org_user IN ACCESS EXCLUSIVE MODE").await?;
        until_blocked(rig).await?;
        let mut replica = rig.take_replica(0)?;
        replica.signal("TERM").await?;
        rig.lasts(300).await;
        ensure!(replica.is_alive(), "it did not wait for what is in flight");
        replica.signal("TERM").await?;
        let status = replica.ended(Duration::from_secs(3)).await.context("after a second SIGTERM")?;
        ensure!(status.code() == Some(1), "it ended with {status}");
        drop(held);
        rig.start_replica(0, "")?;
        rig.until_ready(0).await?;
        rig.healed().await.map(drop)
    })
}

fn deaf(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.progress(20).await?;
        rig.kill(0).await?;
        let start = crate::replica::Start { deaf: true, ..rig.how(0, "") };
        rig.replicas[0] = Some(Replica::start(&start)?);
        rig.until_ready(0).await?;
        rig.healed().await.map(drop)
    })
}

fn dies_in_a_loop(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        for death in 1..=12 {
            rig.dies(0).await?;
            rig.start_replica(0, if death < 12 { rig.setup.dies } else { "" })?;
        }
        rig.until_ready(0).await?;
        rig.healed().await.map(drop)
    })
}

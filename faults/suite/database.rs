//! D: what PostgreSQL does.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::process::{hold, until_blocked};
use super::{Fault, TWO, Work, fault};
use crate::disk::Disk;
use crate::ground::connect;
use crate::rig::{PLAIN, Rig, SOON, Setup, until};

const IMPATIENT: Setup = Setup {
    settings: "database.statement_timeout = \"500ms\"\nretry.max_attempts = 100\nruntime.kill_switch_failures = 0",
    ..PLAIN
};
const NARROW: Setup = Setup { replicas: 2, settings: "database.max_connections = 9", ..PLAIN };

pub(super) const FAULTS: &[Fault] = &[
    fault("D1", "server crashes five times under load", crashes).set(TWO).alone(),
    fault("D2", "sessions terminated at random every 200 ms", terminates).set(TWO),
    fault("D4", "deadlocks with another program", deadlocks),
    fault("D5.lock", "table locked for longer than a statement may take", locked).set(IMPATIENT),
    fault("D5.idle", "another session sits idle in a transaction with row locks", idle_in_transaction).set(IMPATIENT),
    fault("D6", "pools with no connection to spare, two replicas", pool_exhausted).set(NARROW),
    fault("D7", "too many connections", no_connections),
    fault("D7.login", "the service's account may not log in", no_login),
    fault("D8", "the server comes back as a read-only standby and is promoted later", standby).set(TWO).alone(),
    fault("D9", "disk full", disk_full),
    fault("D10.added", "column added under cached statements", column_added),
    fault("D10.dropped", "column renamed away and back", column_gone),
    fault("D14", "outbox rows become visible out of order", late_commit),
    fault("D15", "a long transaction holds back the horizon", long_transaction),
];

fn crashes(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.expect.no_attempts = true;
        for _ in 0..5 {
            rig.progress(40).await?;
            let mut servers = rig.ground.servers.write().await;
            servers.postgres.as_mut().context("no database")?.restart_immediate().await?;
            drop(servers);
            rig.tally.database_restarts += 1;
            rig.healed().await?;
        }
        Ok(())
    })
}

fn standby(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.expect.no_attempts = true;
        rig.progress(100).await?;
        let mut servers = rig.ground.servers.write().await;
        servers.postgres.as_mut().context("no database")?.restart_as_standby().await?;
        drop(servers);
        rig.tally.database_restarts += 1;
        rig.until_not_ready(0).await?;
        rig.lasts(3_000).await;
        let applied = rig.count("SELECT count(*) FROM onceflow.inbox", &[]).await?;
        rig.lasts(1_000).await;
        ensure!(rig.count("SELECT count(*) FROM onceflow.inbox", &[]).await? == applied, "a standby was written to");
        rig.execute("SELECT pg_promote()").await?;
        rig.healed().await.map(drop)
    })
}

fn terminates(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.expect.no_attempts = true;
        rig.progress(50).await?;
        let role = rig.site.name.clone();
        let sql = "SELECT count(pg_terminate_backend(pid)) FROM
            (SELECT pid FROM pg_stat_activity WHERE usename = $1 ORDER BY random() LIMIT 4) AS unlucky";
        for _ in 0..30 {
            rig.tally.backend_kills += rig.count(sql, &[&role]).await?.unsigned_abs();
            rig.lasts(200).await;
        }
        rig.healed().await.map(drop)
    })
}

/// Locks all users from the last to the first, against the order of the service, again and again.
fn deadlocks(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.progress(100).await?;
        let other = connect(&rig.site.database_url).await?;
        let begun = Instant::now();
        let mut lost = 0;
        while begun.elapsed() < Duration::from_secs(6) {
            let lock = "BEGIN; SET LOCAL deadlock_timeout = '20ms';
                SELECT id FROM (SELECT id FROM onceflow.org_user WHERE state = 'live' ORDER BY id DESC FOR UPDATE) AS l; COMMIT";
            if other.batch_execute(lock).await.is_err() {
                lost += 1;
                other.batch_execute("ROLLBACK").await?;
            }
        }
        crate::say(&format!("{}: the other program lost {lost} deadlocks", rig.site.name));
        rig.healed().await.map(drop)
    })
}

fn locked(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.progress(50).await?;
        let held = hold(rig, "LOCK TABLE onceflow.org_user IN ACCESS EXCLUSIVE MODE").await?;
        until_blocked(rig).await?;
        rig.lasts(2_500).await;
        drop(held);
        rig.healed().await?;
        rig.shows(0, "onceflow_retries_scheduled_total", "").await
    })
}

fn idle_in_transaction(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.progress(100).await?;
        let held = hold(rig, "UPDATE onceflow.org_user SET title = title").await?;
        until_blocked(rig).await?;
        rig.lasts(2_000).await;
        // Its connection breaks: the server rolls it back.
        drop(held);
        rig.healed().await.map(drop)
    })
}

fn pool_exhausted(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.producer.set_rate(600);
        for _ in 0..6 {
            rig.progress(200).await?;
            // A pool of its own: the lanes can't keep it from answering. A busy machine may make it late.
            let replica = rig.replica(0)?;
            let answers = || async { matches!(replica.status().await, Some((200, _))) };
            until("the API answers while all lanes work", Duration::from_secs(5), answers).await?;
        }
        rig.producer.set_rate(200);
        rig.healed().await.map(drop)
    })
}

/// Nobody of the service gets in; whoever is in is thrown out.
async fn locked_out(rig: &mut Rig, forbid: &str, allow: &str) -> anyhow::Result<()> {
    rig.expect.no_attempts = true;
    rig.progress(50).await?;
    let role = rig.site.name.clone();
    rig.execute(&forbid.replace("{role}", &role)).await?;
    let kick = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = $1";
    rig.tally.backend_kills += rig.count(kick, &[&role]).await?.unsigned_abs();
    let before = rig.doors[0].database.connections();
    rig.until_not_ready(0).await?;
    rig.lasts(3_000).await;
    let tries = rig.doors[0].database.connections() - before;
    ensure!(tries < 400, "a hot loop: {tries} connections in a few seconds");
    rig.execute(&allow.replace("{role}", &role)).await?;
    rig.healed().await.map(drop)
}

fn no_connections(rig: &mut Rig) -> Work<'_> {
    Box::pin(locked_out(rig, "ALTER ROLE {role} CONNECTION LIMIT 0", "ALTER ROLE {role} CONNECTION LIMIT -1"))
}

fn no_login(rig: &mut Rig) -> Work<'_> {
    Box::pin(locked_out(rig, "ALTER ROLE {role} NOLOGIN", "ALTER ROLE {role} LOGIN"))
}

fn disk_full(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.expect.no_attempts = true;
        rig.progress(50).await?;
        rig.calm().await?;
        let disk = moved_to_a_small_disk(rig).await?;
        rig.producer.resume();
        rig.progress(100).await?;
        disk.fill()?;
        let told = told_while_full(rig).await;
        // Whatever was found, there must be room again.
        disk.make_room()?;
        told?;
        rig.healed().await.map(drop)
    })
}

/// All tables and indexes; the server's own files stay where they are.
async fn moved_to_a_small_disk(rig: &mut Rig) -> anyhow::Result<Disk> {
    let data: String = rig.client().await?.query_one("SHOW data_directory", &[]).await?.get(0);
    let name = rig.site.name.clone();
    let disk = Disk::of(rig.ground.servers.read().await.directory(), &name);
    disk.mount(Path::new(&data)).await?;
    rig.execute(&format!("CREATE TABLESPACE {name} LOCATION '{}'", disk.folder().display())).await?;
    for kind in ["TABLE", "INDEX"] {
        let begun = Instant::now();
        // All locks or none, as the service also works while nothing arrives.
        let moving = format!("ALTER {kind} ALL IN TABLESPACE pg_default SET TABLESPACE {name} NOWAIT");
        while let Err(error) = rig.execute(&moving).await {
            ensure!(begun.elapsed() < SOON, "the tables can't be moved: {error:#}");
            rig.lasts(50).await;
        }
    }
    Ok(disk)
}

/// The server answers all that only reads, and readiness is not taken in by that.
async fn told_while_full(rig: &mut Rig) -> anyhow::Result<()> {
    rig.shows(0, "onceflow_db_errors_total", "outage").await?;
    rig.until_not_ready(0).await?;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(6) {
        let told = rig.replica(0)?.readiness().await;
        let names_it = told.as_ref().is_some_and(|(status, body)| *status == 503 && body.contains("53100"));
        ensure!(names_it, "while the disk is full, readiness says {told:?}");
        rig.lasts(100).await;
    }
    Ok(())
}

fn column_added(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        for table in ["org_user", "payment_order", "sms_request", "inbox", "outbox"] {
            rig.progress(30).await?;
            rig.execute(&format!(
                "ALTER TABLE onceflow.{table} ADD COLUMN later text, ALTER COLUMN later SET DEFAULT 'x'"
            ))
            .await?;
        }
        rig.healed().await.map(drop)
    })
}

fn column_gone(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.expect.no_attempts = true;
        rig.progress(50).await?;
        rig.execute("ALTER TABLE onceflow.org_user RENAME COLUMN employee_number TO elsewhere").await?;
        rig.until_not_ready(0).await?;
        rig.lasts(2_000).await;
        rig.execute("ALTER TABLE onceflow.org_user RENAME COLUMN elsewhere TO employee_number").await?;
        rig.healed().await.map(drop)
    })
}

/// Low numbers are committed long after higher ones have left.
fn late_commit(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        let row = "INSERT INTO onceflow.outbox (aggregatetype, aggregateid, type, payload) VALUES ('shop', 'late', 'shop.opened.v1', '{}')";
        for _ in 0..10 {
            let late = hold(rig, row).await?;
            rig.progress(30).await?;
            late.batch_execute("COMMIT").await?;
            rig.expect.by_hand += 1;
        }
        rig.healed().await.map(drop)
    })
}

fn long_transaction(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        let held =
            hold(rig, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM onceflow.inbox").await?;
        rig.progress(1_500).await?;
        rig.healed().await?;
        drop(held);
        Ok(())
    })
}

//! T, C, O: time, concurrency, operations.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::process::{hold, until_blocked};
use super::{Fault, TWO, Work, fault};
use crate::events::{Event, user_event};
use crate::replica::Replica;
use crate::rig::{PLAIN, Rig, Setup};

const PARTITIONED: Setup = Setup { settings: "consumers.org.partitions = 4", ..TWO };
const MORE_LANES: Setup = Setup { settings: "runtime.lanes = 4", ..PLAIN };
/// Where Debian puts libfaketime.
const FAKE_TIME: [&str; 2] =
    ["/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1", "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1"];

pub(super) const FAULTS: &[Fault] = &[
    fault("T1", "wall clock one hour ahead, then one behind", wrong_clock),
    fault("C1", "two replicas on one key, two relays", same_key).set(TWO),
    fault("C5", "nine of ten events on one key, partitioned", hot_key).set(PARTITIONED),
    fault("C5.held", "a lane is held up while more of its keys comes and other lanes are free", held_up)
        .set(MORE_LANES),
    fault("O2", "two hundred slow connections and 2,000 requests at the API", slow_clients).set(PLAIN),
];

/// Needs `libfaketime`; without it the fault fails with what to install.
fn wrong_clock(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        let library = FAKE_TIME.into_iter().find(|path| Path::new(path).exists());
        let library = library.context("libfaketime is missing: scripts/setup.sh --faults installs it")?;
        let file = rig.site.folder.join("clock");
        for offset in ["+3600", "-3600"] {
            std::fs::write(&file, "+0")?;
            rig.kill(0).await?;
            let variables = [
                ("LD_PRELOAD", library.to_owned()),
                ("FAKETIME_TIMESTAMP_FILE", file.display().to_string()),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
                ("FAKETIME_NO_CACHE", "1".to_owned()),
            ];
            let environment = variables.map(|(name, value)| (name.to_owned(), value)).to_vec();
            let start = crate::replica::Start { environment, ..rig.how(0, "") };
            rig.replicas[0] = Some(Replica::start(&start)?);
            rig.until_ready(0).await?;
            rig.healed().await?;
            std::fs::write(&file, offset)?;
            rig.progress(200).await?;
            rig.healed().await?;
        }
        Ok(())
    })
}

fn same_key(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        let events: Vec<Event> = (1..=400).map(|v| user_event(&format!("same-{v}"), 600, v)).collect();
        rig.publish(&events).await?;
        rig.until_count("SELECT version FROM onceflow.org_user WHERE id = 'u0600'", 400).await?;
        rig.healed().await.map(drop)
    })
}

fn hot_key(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.expect.strict_order = true;
        rig.progress(50).await?;
        let events: Vec<Event> = (1..=1_500).map(|v| user_event(&format!("hot-{v}"), 700, v)).collect();
        rig.publish(&events).await?;
        // Others do not wait until the hot one is through.
        let took = rig.healed().await?;
        ensure!(took < Duration::from_secs(10), "another key waited {} ms", took.as_millis());
        rig.until_count("SELECT version FROM onceflow.org_user WHERE id = 'u0700'", 1_500).await
    })
}

/// A row of another user, whose events are mixed with the hot ones, is locked by another program.
fn held_up(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        // Rows are locked by name: whoever waits for the first has not locked the second.
        const LOCKED: u64 = 710;
        const HOT: u64 = 711;
        rig.expect.strict_order = true;
        let event = |user: u64, version: i64| user_event(&format!("held-{user}-{version}"), user, version);
        rig.publish(&[event(HOT, 1), event(LOCKED, 1)]).await?;
        rig.until_count("SELECT count(*) FROM onceflow.org_user WHERE id IN ('u0710', 'u0711')", 2).await?;
        for round in 0..5 {
            let first = 2 + round * 100;
            let held = hold(rig, "UPDATE onceflow.org_user SET title = title WHERE id = 'u0710'").await?;
            let mixed: Vec<Event> = (first..first + 20).flat_map(|v| [event(LOCKED, v), event(HOT, v)]).collect();
            rig.publish(&mixed).await?;
            until_blocked(rig).await?;
            // Another lane joins and takes what it may.
            rig.lasts(250).await;
            let hot: Vec<Event> = (first + 20..first + 100).map(|v| event(HOT, v)).collect();
            rig.publish(&hot).await?;
            rig.lasts(500).await;
            drop(held);
            rig.healed().await?;
        }
        rig.until_count("SELECT version FROM onceflow.org_user WHERE id = 'u0711'", 501).await
    })
}

fn slow_clients(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        let port = rig.replica(0)?.admin_port();
        let mut slow = Vec::new();
        for _ in 0..200 {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
            stream.write_all(b"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").await?;
            slow.push(stream);
        }
        let http = reqwest::Client::builder().timeout(Duration::from_secs(5)).build()?;
        let url = format!("http://127.0.0.1:{port}/api/v1/status");
        for _ in 0..40 {
            let asked = (0..50).map(|_| http.get(&url).send());
            futures_util::future::join_all(asked).await;
        }
        let took = rig.healed().await?;
        ensure!(took < Duration::from_secs(5), "an event waited {} ms", took.as_millis());
        drop(slow);
        Ok(())
    })
}

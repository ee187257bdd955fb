//! Private servers for a test process: they live as long as its end of our standard input.

use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::servers::{Options, Servers, ServersError};

/// One directory per test run that is going on at the same time.
const DIRECTORIES: [&str; 4] = ["test", "test-2", "test-3", "test-4"];
/// The servers of a test run that has just ended take this long at most to stop; waiting spares a new cluster.
const PREVIOUS_RUN_ENDS_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Starts both servers, prints one JSON line with their addresses, and stops them when standard input ends or a
/// termination signal comes.
///
/// # Errors
/// When the servers can't be started or stopped, or the line can't be written.
pub async fn servers_only(project: &Path) -> anyhow::Result<()> {
    let ended = end_of_input();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let servers = start(project).await?;
    let addresses = serde_json::json!({
        "amqp_url": servers.amqp_url(),
        "database_url": servers.database_url(),
        "management_url": servers.management_url(),
    });
    {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{addresses}")?;
        out.flush()?;
    }
    tokio::select! {
        _ = ended => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    servers.stop().await?;
    Ok(())
}

async fn start(project: &Path) -> Result<Servers, ServersError> {
    let begun = Instant::now();
    let mut result = Servers::start(project, Options::both(DIRECTORIES[0]), &say).await;
    while matches!(result, Err(ServersError::Busy(_))) && begun.elapsed() < PREVIOUS_RUN_ENDS_WITHIN {
        tokio::time::sleep(LOOK_EVERY).await;
        result = Servers::start(project, Options::both(DIRECTORIES[0]), &say).await;
    }
    for name in &DIRECTORIES[1..] {
        if !matches!(result, Err(ServersError::Busy(_))) {
            break;
        }
        result = Servers::start(project, Options::both(name), &say).await;
    }
    result
}

fn say(line: &str) {
    // Nobody may be listening any more, which is no reason to stop.
    let _ = writeln!(std::io::stderr().lock(), "onceflow: {line}");
}

/// A thread of its own: the runtime waits for its own blocking reads at its end, and this one may never return.
fn end_of_input() -> oneshot::Receiver<()> {
    let (ended, receiver) = oneshot::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while matches!(std::io::stdin().lock().read(&mut buffer), Ok(read) if read > 0) {}
        // The receiver is gone when a signal came first.
        let _ = ended.send(());
    });
    receiver
}

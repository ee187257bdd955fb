//! `make faults` and `make chaos`: faults into the real service on private servers. See docs/RELIABILITY.md.

mod args;
mod catalogue;
mod chaos;
mod checker;
mod disk;
mod events;
mod ground;
mod outcome;
mod producer;
mod proxy;
mod replica;
mod report;
mod rig;
mod sink;
mod suite;

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::Parser as _;
use futures_util::StreamExt as _;
use tokio::signal::unix::{SignalKind, signal};

use args::{Args, Mode};
use ground::{Ground, output, project};
use outcome::{Outcome, settle, stillborn};
use report::Report;
use rig::Rig;
use suite::Fault;

/// The product's allocator.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ended = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(dispatch(&args)));
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Returns whether every fault was survived.
async fn dispatch(args: &Args) -> anyhow::Result<bool> {
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        bail!("another TLS provider is already installed");
    }
    if args.list {
        show(&report::catalogue());
        return Ok(true);
    }
    let faults = chosen(args)?;
    std::fs::create_dir_all(output())?;
    let begun = Instant::now();
    say("starting private servers");
    let ground = Arc::new(Ground::start().await?);
    let outcomes = tokio::select! {
        outcomes = run(args, &ground, &faults) => outcomes,
        signal = interrupted() => signal.and_then(|()| bail!("interrupted")),
    };
    let report = match outcomes {
        Ok(outcomes) => put_together(args, &ground, outcomes, begun).await,
        Err(error) => Err(error),
    };
    match Arc::into_inner(ground) {
        Some(ground) => ground.stop().await?,
        // Interrupted in the middle of a fault: the servers stop with this process.
        None => say("the servers stop by themselves"),
    }
    let report = report?;
    show(&report.text());
    write(args, &report)?;
    Ok(report.failed() == 0)
}

async fn run(args: &Args, ground: &Arc<Ground>, faults: &[Fault]) -> anyhow::Result<Vec<Outcome>> {
    if let Some(Mode::Chaos { minutes, rate }) = args.mode {
        let mut outcomes = Vec::new();
        for seed in (args.seed..).take(usize::try_from(args.rounds)?) {
            outcomes.push(chaos::run(ground.clone(), seed, minutes, rate).await?);
        }
        return Ok(outcomes);
    }
    let all: Vec<Fault> = (0..args.rounds).flat_map(|_| faults.iter().copied()).collect();
    let (alone, beside): (Vec<Fault>, Vec<Fault>) = all.into_iter().partition(|fault| fault.alone);
    let running = beside.into_iter().map(|fault| inject(ground.clone(), fault, args.seed));
    let mut outcomes: Vec<Outcome> =
        futures_util::stream::iter(running).buffer_unordered(args.beside.into()).collect().await;
    for fault in alone {
        outcomes.push(inject(ground.clone(), fault, args.seed).await);
    }
    Ok(outcomes)
}

async fn inject(ground: Arc<Ground>, fault: Fault, seed: u64) -> Outcome {
    let begun = Instant::now();
    let outcome = match Rig::start(ground, fault.name, fault.setup, seed).await {
        Ok(mut rig) => {
            let ended = match rig.begin().await {
                Ok(()) => (fault.inject)(&mut rig).await,
                Err(error) => Err(error),
            };
            settle(&fault, ended, rig, begun).await
        }
        Err(error) => stillborn(&fault, &error),
    };
    say(&format!("{}: {} ({}), {:.1} s", outcome.verdict(), fault.name, fault.title, outcome.seconds));
    for problem in outcome.findings.problems.iter().chain(&outcome.skipped) {
        say(&format!("  {problem}"));
    }
    outcome
}

fn chosen(args: &Args) -> anyhow::Result<Vec<Fault>> {
    let all = suite::all();
    let named = |fault: &Fault, name: &String| fault.name == *name || fault.id() == *name;
    for name in &args.only {
        if !all.iter().any(|fault| named(fault, name)) {
            bail!("there is no fault {name:?} in this suite; --list tells which there are");
        }
    }
    Ok(all
        .into_iter()
        .filter(|fault| args.only.is_empty() || args.only.iter().any(|name| named(fault, name)))
        .collect())
}

/// Ctrl-C or a termination: replicas and servers must end with us.
async fn interrupted() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    tokio::select! {
        pressed = tokio::signal::ctrl_c() => pressed.context("listen for Ctrl-C"),
        _ = terminate.recv() => Ok(()),
    }
}

async fn put_together(args: &Args, ground: &Ground, outcomes: Vec<Outcome>, begun: Instant) -> anyhow::Result<Report> {
    let (postgresql, rabbitmq) = ground.versions().await?;
    let mode = match args.mode {
        Some(Mode::Chaos { minutes, rate }) => format!("make chaos MINUTES={minutes} at {rate} events/s"),
        None => "make faults".to_owned(),
    };
    Ok(Report {
        mode,
        seed: args.seed,
        commit: commit().await,
        date: jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
        build: if cfg!(debug_assertions) { "debug" } else { "release" },
        cores: std::thread::available_parallelism()?.get(),
        postgresql,
        rabbitmq,
        seconds: begun.elapsed().as_secs(),
        outcomes,
    })
}

/// The commit that was tried; with a mark where files differ from it.
async fn commit() -> String {
    let git = tokio::process::Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"])
        .current_dir(project())
        .output()
        .await;
    let text = git.ok().filter(|git| git.status.success()).map(|git| git.stdout);
    text.map_or_else(|| "unknown".to_owned(), |text| String::from_utf8_lossy(&text).trim().to_owned())
}

fn write(args: &Args, report: &Report) -> anyhow::Result<()> {
    let name = if args.mode.is_some() { "chaos" } else { "faults" };
    let folder = if args.write_docs { project().join("docs/reliability") } else { output() };
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{name}.json"));
    let json = serde_json::to_string_pretty(report)? + "\n";
    std::fs::write(&path, json).with_context(|| format!("write {}", path.display()))?;
    say(&format!("wrote {}", path.display()));
    if args.write_docs {
        let document = project().join("docs/RELIABILITY.md");
        report::replace(&document, name, &report.markdown())?;
        report::replace(&document, "catalogue", &report::catalogue())?;
        say(&format!("wrote the tables into {}", document.display()));
    }
    Ok(())
}

/// Talk, on standard error.
pub(crate) fn say(line: &str) {
    // Nobody may be listening any more, which is no reason to stop.
    let _ = writeln!(std::io::stderr().lock(), "faults: {line}");
}

/// Data, on standard output.
fn show(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

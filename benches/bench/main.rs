//! `make bench`: the limit, onceflow and the naive way, measured in one run on private servers. See docs/PERFORMANCE.md.

mod args;
mod contender;
mod events;
mod figures;
mod ground;
mod hold;
mod judge;
mod limit;
mod measure;
mod naive;
mod picture;
mod producer;
mod report;
mod scenario;
mod sibling;
mod triage;
mod wire;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};

use args::{Args, Role};
use figures::Measured;
use ground::{Ground, output, project};
use judge::Rounds;
use report::{Outcome, Report};
use scenario::{Scenario, Variant, Work};

/// The product's allocator, for all contenders alike.
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

/// Returns whether all is as it should be.
async fn dispatch(args: &Args) -> anyhow::Result<bool> {
    install_tls()?;
    match &args.role {
        Some(Role::Limit(duty)) => limit::run(duty).await.map(|()| true),
        Some(Role::Naive(duty)) => naive::run(duty).await.map(|()| true),
        None if args.list => {
            for scenario in scenario::all(args) {
                show(&format!("{:22} {} ({})", scenario.name, scenario.about, size(&scenario)));
            }
            Ok(true)
        }
        None => bench(args).await,
    }
}

/// Both users of TLS would otherwise choose for themselves, or fail.
fn install_tls() -> anyhow::Result<()> {
    let installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    if installed.is_err() {
        bail!("another TLS provider is already installed");
    }
    Ok(())
}

async fn bench(args: &Args) -> anyhow::Result<bool> {
    let scenarios = chosen(args)?;
    let begun = Instant::now();
    contender::forget_logs()?;
    say(&format!("{} scenarios, {} rounds; starting private servers", scenarios.len(), args.rounds));
    let mut ground = Ground::start().await?;
    let measured = tokio::select! {
        outcomes = run_all(&mut ground, args, &scenarios) => outcomes,
        signal = interrupted() => signal.and_then(|()| bail!("interrupted")),
    };
    let report = match measured {
        Ok(outcomes) => report(&ground, args, outcomes).await,
        Err(error) => Err(error),
    };
    ground.stop().await?;
    let report = report?;
    show(&report.table());
    write(args, &report)?;
    say(&format!("took {:.0} s", begun.elapsed().as_secs_f64()));
    Ok(!args.strict || report.missed() == 0)
}

/// Ctrl-C or a termination: contenders and servers must end with us.
async fn interrupted() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    tokio::select! {
        pressed = tokio::signal::ctrl_c() => pressed.context("listen for Ctrl-C"),
        _ = terminate.recv() => Ok(()),
    }
}

fn chosen(args: &Args) -> anyhow::Result<Vec<Scenario>> {
    let all = scenario::all(args);
    for name in &args.only {
        if !all.iter().any(|scenario| scenario.name == name) {
            bail!("there is no scenario {name:?}; --list names them");
        }
    }
    Ok(all.into_iter().filter(|s| args.only.is_empty() || args.only.iter().any(|name| name == s.name)).collect())
}

async fn run_all(ground: &mut Ground, args: &Args, scenarios: &[Scenario]) -> anyhow::Result<Vec<Outcome>> {
    let mut outcomes = Vec::with_capacity(scenarios.len());
    for scenario in scenarios {
        outcomes.push(run_one(ground, args, scenario).await.with_context(|| scenario.name)?);
    }
    Ok(outcomes)
}

/// Every round runs each variant once; whoever came first comes last in the next round.
async fn run_one(ground: &mut Ground, args: &Args, scenario: &Scenario) -> anyhow::Result<Outcome> {
    let mut measured = Rounds::new();
    let rounds = if scenario.once { 1 } else { args.rounds };
    let mut skipped = None;
    for round in 0..rounds as usize {
        let mut variants: Vec<&Variant> = scenario.variants.iter().collect();
        let first = round % variants.len();
        variants.rotate_left(first);
        for variant in variants {
            match run_variant(ground, variant).await.with_context(|| variant.name)? {
                Some(figures) => {
                    say(&format!("{} {}, round {}: {}", scenario.name, variant.name, round + 1, short(&figures)));
                    measured.entry(variant.name).or_default().push(figures);
                }
                None => skipped = Some("this build does not know the setting `partitions`".to_owned()),
            }
        }
        if skipped.is_some() {
            break;
        }
    }
    let rows = if skipped.is_some() { Vec::new() } else { (scenario.judge)(&measured) };
    let (name, about) = (scenario.name, scenario.about);
    Ok(Outcome { name, about, size: size(scenario), rows, skipped, measured })
}

async fn run_variant(ground: &mut Ground, variant: &Variant) -> anyhow::Result<Option<Measured>> {
    match &variant.work {
        Work::Measure(plan) => measure::measure(ground, plan, variant.contender).await,
        Work::Idle(setup, seconds) => measure::idle(ground, setup, *seconds).await,
        Work::Triage(triage) => triage::measure(ground, triage).await,
    }
}

/// How much is sent; a variant that gets fewer events is named.
fn size(scenario: &Scenario) -> String {
    let plans: Vec<_> =
        scenario.variants.iter().filter_map(|variant| variant.plan().map(|p| (variant.name, p))).collect();
    let most = plans.iter().map(|(_, plan)| plan.feed.count).max();
    let mut parts: Vec<String> = most.map(|most| format!("{most} events")).into_iter().collect();
    let fewer = plans.iter().filter(|(_, plan)| Some(plan.feed.count) < most);
    parts.extend(fewer.map(|(name, plan)| format!("{name} {}", plan.feed.count)));
    let rows = plans.iter().map(|(_, plan)| plan.inbox_rows).max().filter(|rows| *rows > 0);
    parts.extend(rows.map(|rows| format!("{rows} rows")));
    parts.extend(scenario.variants.iter().filter_map(|variant| match &variant.work {
        Work::Idle(_, seconds) => Some(format!("{seconds:.0} s")),
        Work::Triage(triage) => Some(format!("{} dead letters, {} replayed", triage.letters, triage.replayed)),
        Work::Measure(_) => None,
    }));
    parts.join(", ")
}

fn short(figures: &Measured) -> String {
    let mut text = match (figures.idle_percent, figures.latency) {
        (Some(percent), _) => format!("{percent:.2} % of a core"),
        (None, Some(p)) => {
            format!("p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, max {:.1} ms", p.p50, p.p90, p.p99, p.max)
        }
        (None, None) => format!("{:.0} events/s", figures.rate),
    };
    if let Some(looks) = &figures.looks {
        let pages: Vec<String> = looks.pages_ms.iter().map(|(name, ms)| format!("{name} {ms:.0}")).collect();
        let (groups, plan, pages) = (looks.groups_ms, looks.plan_ms, pages.join(", "));
        text.push_str(&format!(
            "; groups {groups:.0} ms, plan {plan:.0} ms, pages in ms: {pages}; replay {:.0}/s",
            looks.replay_rate
        ));
    }
    if let Some(p) = figures.latency_held {
        text.push_str(&format!("; beside it p50 {:.2} ms, p99 {:.2} ms", p.p50, p.p99));
    }
    if figures.cpu_us.is_finite() {
        text.push_str(&format!(", {:.0} µs/event", figures.cpu_us));
    }
    text.push_str(&format!(", {:.1} MiB", figures.peak_mib));
    if figures.repeated > 0 {
        text.push_str(&format!(", {} messages came twice", figures.repeated));
    }
    text
}

async fn report(ground: &Ground, args: &Args, scenarios: Vec<Outcome>) -> anyhow::Result<Report> {
    let (postgresql, rabbitmq) = ground.versions().await?;
    Ok(Report {
        commit: commit().await,
        date: onceflow_date(),
        seed: args.seed,
        rounds: args.rounds,
        scale: args.scale,
        full: args.full,
        build: if cfg!(debug_assertions) { "DEBUG" } else { "release" },
        cores: std::thread::available_parallelism()?.get(),
        postgresql,
        rabbitmq,
        scenarios,
    })
}

fn onceflow_date() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%d").to_string()
}

/// The commit that was measured; with a mark where files differ from it.
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
    let folder = if args.write_docs { project().join("docs/performance") } else { output()? };
    std::fs::create_dir_all(&folder)?;
    let json = serde_json::to_string_pretty(report)? + "\n";
    for (name, text) in [("bench.json", json), ("bench.svg", picture::svg(report))] {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        say(&format!("wrote {}", path.display()));
    }
    if args.write_docs { write_table(report) } else { Ok(()) }
}

/// Replaces the table in the document, which stands between two marks.
fn write_table(report: &Report) -> anyhow::Result<()> {
    let path = project().join("docs/PERFORMANCE.md");
    let document = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let whole = document.split_once(TABLE).and_then(|(before, rest)| Some((before, rest.split_once(TABLE_END)?.1)));
    let (before, after) = whole.with_context(|| format!("{} has no place for the table", path.display()))?;
    let text = [before, TABLE, "\n\n", &report.markdown(), "\n", TABLE_END, after].concat();
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    say(&format!("wrote the table into {}", path.display()));
    Ok(())
}

const TABLE: &str = "<!-- generated: make bench ARGS=--write-docs -->";
const TABLE_END: &str = "<!-- end of the table -->";

/// Talk, on standard error.
pub(crate) fn say(line: &str) {
    // Nobody may be listening any more, which is no reason to stop.
    let _ = writeln!(std::io::stderr().lock(), "bench: {line}");
}

/// Data, on standard output.
fn show(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

//! The rules of the house (`docs/ARCHITECTURE.md`): arrows point down, doors are few, files stay readable.

use std::fs;
use std::path::{Path, PathBuf};

/// Layers from the top; a module may import from its own layer's list only what is named, and from any layer below.
const LAYERS: [(&str, u8); 25] = [
    ("main", 5),
    ("cli", 5),
    ("dev", 4),
    ("app", 4),
    ("admin", 4),
    ("config", 4),
    ("domains", 3),
    ("topology", 2),
    ("replay", 2),
    ("retention", 2),
    ("invariants", 2),
    ("runtime", 2),
    ("outbox", 2),
    ("broker", 1),
    ("db", 1),
    ("telemetry", 1),
    ("event", 0),
    ("message", 0),
    ("health", 0),
    ("breaker", 0),
    ("clock", 0),
    ("pacing", 0),
    ("failpoint", 0),
    ("tls", 0),
    ("lib", 6),
];

/// Arrows within one layer that are part of the plan.
const SIDEWAYS: [(&str, &str); 15] = [
    ("cli", "main"),
    ("dev", "app"),
    ("dev", "config"),
    ("app", "admin"),
    ("app", "config"),
    ("runtime", "outbox"),
    ("broker", "telemetry"),
    ("db", "telemetry"),
    ("main", "cli"),
    // Replays go through the outbox; operators' queries stand beside the runtime.
    ("replay", "outbox"),
    ("replay", "runtime"),
    // Moving a consumer to other queues: its layout belongs to the runtime, its pause to the operators.
    ("topology", "runtime"),
    ("topology", "replay"),
    // The runtime says what an invariant is, retention what may be missing for its age.
    ("invariants", "runtime"),
    ("invariants", "retention"),
];

struct Source {
    path: PathBuf,
    module: String,
    text: String,
}

fn sources(below: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders = vec![root.join(below)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let inside = path.strip_prefix(root.join(below)).unwrap();
                let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
                let module = first.trim_end_matches(".rs").to_owned();
                let text = fs::read_to_string(&path).unwrap();
                found.push(Source { path: path.strip_prefix(root).unwrap().to_path_buf(), module, text });
            }
        }
    }
    assert!(found.len() > 5, "the sources were not found");
    found
}

/// The code of every file below a folder, without its tests, for rules that stand elsewhere.
pub(crate) fn each_source(below: &str, look: &mut dyn FnMut(&str, &str)) {
    for source in sources(below) {
        look(&source.path.display().to_string(), code(&source.text));
    }
}

/// The whole text of every file below a folder.
pub(crate) fn texts(below: &str) -> Vec<String> {
    sources(below).into_iter().map(|source| source.text).collect()
}

/// The code of a file without its tests.
fn code(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or(text)
}

fn layer(module: &str) -> u8 {
    LAYERS
        .iter()
        .find(|(name, _)| *name == module)
        .unwrap_or_else(|| panic!("{module} has no layer: add it to DESIGN and here"))
        .1
}

/// `crate::x` in a line, as the module x.
fn imported(line: &str) -> Vec<String> {
    let names = line.split("crate::").skip(1);
    names
        .map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>())
        .filter(|name| LAYERS.iter().any(|(known, _)| known == name))
        .collect()
}

fn offences(rule: impl Fn(&Source, &str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources("src") {
        for (n, line) in code(&source.text).lines().enumerate() {
            let is_comment = line.trim_start().starts_with("//");
            if !is_comment && rule(&source, line) {
                found.push(format!("{}:{}: {}", source.path.display(), n + 1, line.trim()));
            }
        }
    }
    found
}

#[track_caller]
fn none(rule: &str, offences: &[String]) {
    assert!(offences.is_empty(), "{rule}:\n{}", offences.join("\n"));
}

#[test]
fn arrows_point_down() {
    let upward = |source: &Source, line: &str| {
        imported(line).iter().any(|target| {
            let (from, to) = (source.module.as_str(), target.as_str());
            let planned = SIDEWAYS.contains(&(from, to));
            from != to && !planned && layer(to) >= layer(from) && layer(from) > 0 || layer(from) == 0 && layer(to) > 0
        })
    };
    none("an arrow may only point down (DESIGN §5)", &offences(upward));
}

#[test]
fn no_domain_imports_another() {
    let domains = ["org", "payment", "sms"];
    let crossing = |source: &Source, line: &str| {
        let path = source.path.to_string_lossy().replace('\\', "/");
        domains.iter().any(|own| {
            path.starts_with(&format!("src/domains/{own}/"))
                && domains.iter().any(|other| other != own && line.contains(&format!("domains::{other}")))
        })
    };
    none("domains meet through events, never through imports", &offences(crossing));
}

#[test]
fn domains_know_no_transport() {
    let knows = |source: &Source, line: &str| {
        source.module == "domains" && ["crate::broker", "crate::outbox", "lapin"].iter().any(|w| line.contains(w))
    };
    none("a domain returns outcomes; it knows no queue and no ack", &offences(knows));
}

#[test]
fn each_client_library_has_one_door() {
    let doors = [
        ("lapin::", "broker"),
        ("deadpool_postgres::", "db"),
        ("metrics::counter!", "telemetry"),
        ("metrics_exporter_prometheus::", "telemetry"),
    ];
    let elsewhere =
        |source: &Source, line: &str| doors.iter().any(|(name, home)| line.contains(name) && source.module != *home);
    none("a client library is used behind its one door", &offences(elsewhere));
}

/// A delivery's own `acker` may pend for ever once the connection is lost: `src/broker/acks.rs`.
#[test]
fn acknowledgements_go_through_the_channel() {
    let through_the_delivery = |line: &&str| line.contains(".acker") && !line.trim_start().starts_with("//");
    let mut found = Vec::new();
    for below in ["src", "faults"] {
        each_source(below, &mut |path, code| {
            found.extend(code.lines().filter(through_the_delivery).map(|line| format!("{path}: {}", line.trim())));
        });
    }
    none("a delivery is acknowledged through its channel", &found);
}

#[test]
fn sql_stands_only_in_store_files() {
    let exempt = ["src/db/", "src/runtime/pause.rs"];
    let has_sql = |source: &Source, line: &str| {
        let path = source.path.to_string_lossy();
        let name = source.path.file_name().unwrap().to_string_lossy();
        let trimmed = line.trim_start();
        let sql = ["INSERT INTO onceflow.", "UPDATE onceflow.", "DELETE FROM onceflow.", "FROM onceflow."]
            .iter()
            .any(|s| trimmed.contains(s));
        sql && !name.contains("store") && !path.contains("/store/") && !exempt.iter().any(|e| path.starts_with(e))
    };
    none("SQL lives in store.rs (or beside the protocol it belongs to)", &offences(has_sql));
}

#[test]
fn no_file_outgrows_five_hundred_lines() {
    let long: Vec<_> = sources("src")
        .into_iter()
        .chain(sources("tests"))
        .chain(sources("faults"))
        .filter(|s| s.text.lines().count() > 500)
        .map(|s| format!("{}: {} lines", s.path.display(), s.text.lines().count()))
        .collect();
    none("a file is one idea: find the one that is missing", &long);
}

#[test]
fn tests_wait_for_signals_and_never_sleep_as_a_guess() {
    let exempt = ["eventually.rs", "tidy.rs"];
    let mut found = Vec::new();
    for source in sources("tests") {
        let name = source.path.file_name().unwrap().to_string_lossy().into_owned();
        for (n, line) in source.text.lines().enumerate() {
            if line.contains("sleep(") && !line.contains("// real time:") && !exempt.contains(&name.as_str()) {
                found.push(format!("{}:{}: {}", source.path.display(), n + 1, line.trim()));
            }
        }
    }
    none("wait for a signal or with `eventually`", &found);
}

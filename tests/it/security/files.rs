//! What shows in files: secrets in a configuration that is wrong, the one TLS provider, the form of every query.

use std::fs;
use std::path::Path;

use onceflow::config::{self, Config, ConfigErrors};

const SECRET: &str = "hunter2-canary";

fn load(text: &str) -> Result<Config, ConfigErrors> {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("onceflow.toml");
    fs::write(&file, text).unwrap();
    config::load(Some(&file), &["org"])
}

fn source(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn a_configuration_never_shows_its_secrets_however_wrong_it_is_s7_4() {
    let wrong = [
        // The parser quotes the line that it can't read.
        format!("[broker]\nurl = \"amqp://u:{SECRET}@host/\n"),
        format!("[admin]\ntoken = {SECRET}\n"),
        format!("[admin]\ntoken = [\"{SECRET}\"]\n"),
        format!("[broker]\nurl = \"amqp:u:{SECRET}@host\"\n"),
        format!("[broker]\nurl = {{ password = \"{SECRET}\" }}\n"),
        format!("[database]\nurl = \"postgres://u:{SECRET}@host:port/x\"\n"),
        format!("[admin]\ntoken = \"{}\"\n", &SECRET[..10]),
        "[admin]\ntoken = 1234567890123456\n".to_owned(),
    ];
    for text in wrong {
        let errors = load(&text).unwrap_err();
        let told = format!("{errors} {errors:?}");
        assert!(!told.contains(&SECRET[..10]) && !told.contains("1234567890123456"), "{text}\n{told}");
    }
}

#[test]
fn a_configuration_that_is_printed_shows_where_and_never_with_what_s7_4() {
    let text = format!(
        "[broker]\nurl = \"amqps://u:{SECRET}@broker/\"\n[database]\nurl = \"postgres://u:{SECRET}@127.0.0.1/x\"\n\
         [admin]\ntoken = \"{SECRET}-and-more\"\n"
    );
    let config = load(&text).unwrap();
    let shown = format!("{config:?} {} {}", config.broker.address(), config.database.address());
    assert!(!shown.contains(SECRET), "{shown}");
    assert!(shown.contains("broker:5671") && shown.contains("127.0.0.1:5432/x"), "{shown}");
}

#[test]
fn files_for_tls_are_checked_with_the_configuration_s7_1() {
    let place = tempfile::tempdir().unwrap();
    let not_pem = place.path().join("ca.pem");
    fs::write(&not_pem, SECRET).unwrap();
    let text = format!(
        "[broker]\nurl = \"amqps://broker/\"\nca_file = {not_pem:?}\n[database]\nurl = \"postgres://u@db/x\"\n\
         ca_file = \"/nowhere/ca.pem\"\ncertificate_file = {not_pem:?}\n"
    );
    let told = load(&text).unwrap_err().to_string();
    for words in [
        "broker.ca_file: holds no certificate in PEM",
        "database.ca_file: /nowhere/ca.pem:",
        "database.certificate_file: goes together with database.key_file",
    ] {
        assert!(told.contains(words), "{words} is missing in\n{told}");
    }
    assert!(!told.contains(SECRET), "{told}");
}

#[test]
fn the_tls_provider_is_installed_before_anything_else_and_is_the_only_one_s7_3() {
    let main = source("src/main.rs");
    let body = main.split("fn main()").nth(1).unwrap();
    let first = body.lines().skip(1).map(str::trim).find(|line| !line.starts_with("//")).unwrap();
    assert!(first.contains("aws_lc_rs::default_provider().install_default()"), "{first}");
    let others = ["ring", "openssl", "native-tls", "openssl-sys"];
    let deny = source("deny.toml");
    for other in others {
        assert!(deny.contains(&format!("crate = \"{other}\"")), "deny.toml must keep {other} out");
    }
}

/// The arguments of a call that begins behind `start`, up to its closing bracket.
fn arguments(text: &str) -> &str {
    let mut depth = 0usize;
    for (n, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' if depth == 0 => return &text[..n],
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
    }
    text
}

/// What a query may not be made of.
fn is_built(query: &str) -> bool {
    ["format!", "concat!", "push_str", "+ &", ".join(", ".replace(", "to_owned()"]
        .iter()
        .any(|sign| query.contains(sign))
}

#[test]
fn no_query_is_put_together_from_pieces_s7_12() {
    let calls = [
        "query",
        "query_one",
        "query_opt",
        "execute",
        "batch_execute",
        "simple_query",
        "prepare",
        "query_raw",
        "copy_in",
    ];
    let mut found = Vec::new();
    let mut seen = 0;
    crate::tidy::each_source("src", &mut |path, text| {
        for call in calls {
            let start = format!(".{call}(");
            for (n, rest) in text.split(&start).enumerate().skip(1) {
                // The query is the first argument.
                let first = arguments(rest).split(',').next().unwrap_or_default();
                seen += 1;
                if is_built(first) {
                    found.push(format!("{path}: {call} number {n}: {}", first.trim()));
                }
            }
        }
    });
    assert!(seen > 100, "the calls were not found: {seen}");
    assert!(found.is_empty(), "a query is one named constant and all values are bound:\n{}", found.join("\n"));
}

#[test]
fn the_lint_for_queries_sees_what_it_is_for_s7_12() {
    let bad = r#"format!("SELECT {name}"), &[])"#;
    assert!(is_built(arguments(bad).split(',').next().unwrap()));
    assert!(!is_built(arguments("SELECT_ALL, &[&name])").split(',').next().unwrap()));
}

#[test]
fn the_list_of_what_a_release_is_made_of_is_complete_and_pinned_s7_19() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = std::process::Command::new(root.join("scripts/sbom.sh")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let components = list["components"].as_array().unwrap();
    for name in ["lapin", "tokio-postgres", "rustls", "aws-lc-sys"] {
        assert!(components.iter().any(|component| component["name"] == name), "{name} is missing");
    }
    for component in components {
        let pinned = component["hashes"][0]["content"].as_str().is_some_and(|sum| sum.len() == 64);
        assert!(pinned && component["licenses"].is_array(), "{component}");
        assert_ne!(component["name"], "ring", "a second provider for TLS");
    }
}

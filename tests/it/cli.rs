//! The command line as scripts see it: exit codes, streams, words.

use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::process::Command;

/// Runs the binary without anything of this machine's environment and without a terminal.
async fn onceflow(args: &[&str]) -> Output {
    command(args).output().await.unwrap()
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onceflow"));
    command.args(args).env_clear().current_dir(std::env::temp_dir()).stdin(Stdio::null()).kill_on_drop(true);
    command
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[tokio::test]
async fn help_is_data_and_a_wrong_command_line_is_exit_2() {
    let help = onceflow(&["--help"]).await;
    assert_eq!(code(&help), 0);
    assert!(stdout(&help).contains("Examples:"));
    let wrong = onceflow(&["dlq", "replay", "--nonsense"]).await;
    assert_eq!(code(&wrong), 2);
    assert_eq!(stdout(&wrong), "");
}

#[tokio::test]
async fn every_exit_code_is_in_the_help() {
    let help = stdout(&onceflow(&["help", "exit-codes"]).await);
    for code in 0..=9 {
        assert!(help.contains(&format!("\n  {code}  ")), "{code} is missing in {help}");
    }
}

#[tokio::test]
async fn an_unreachable_service_is_exit_7_with_what_to_do() {
    for args in [&["status"][..], &["dlq", "list"], &["consumers", "list"], &["outbox", "status"]] {
        // Nothing listens on the discard port.
        let output = onceflow(&[args, &["--server", "http://127.0.0.1:9"]].concat()).await;
        assert_eq!(code(&output), 7, "{args:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "");
        assert!(stderr(&output).contains("| try: start it with `onceflow run`"), "{}", stderr(&output));
    }
}

#[tokio::test]
async fn a_wrong_configuration_is_exit_6_with_every_error_at_once() {
    let output = command(&["run"])
        .env("ONCEFLOW_AMQP_URL", "http://nowhere")
        .env("ONCEFLOW_ADMIN_LISTEN", "0.0.0.0:9463")
        // Handlers that hang could take every connection.
        .env("ONCEFLOW_RUNTIME__LANES", "5")
        .output()
        .await
        .unwrap();
    assert_eq!(code(&output), 6);
    let text = stderr(&output);
    for place in ["broker.url", "database.url", "admin.listen", "runtime.lanes", "need 18 connections"] {
        assert!(text.contains(place), "{place} is missing in {text}");
    }
}

#[tokio::test]
async fn a_misspelt_event_type_is_exit_3_with_a_guess() {
    let output = onceflow(&["events", "sample", "org.user.upsertd.v1"]).await;
    assert_eq!(code(&output), 3);
    assert!(stderr(&output).contains("org.user.upserted.v1"), "{}", stderr(&output));
}

#[tokio::test]
async fn every_type_that_is_read_has_a_sample_that_is_json() {
    let types = onceflow(&["events", "types", "-o", "json"]).await;
    let types: Value = serde_json::from_str(&stdout(&types)).unwrap();
    assert_eq!(types["schema"], "onceflow.events.types/1");
    let items = types["items"].as_array().unwrap();
    assert!(!items.is_empty());
    for item in items.iter().filter(|t| t["direction"] == "in") {
        let name = item["type"].as_str().unwrap();
        let sample = onceflow(&["events", "sample", name]).await;
        assert_eq!(code(&sample), 0, "{name}");
        serde_json::from_str::<Value>(&stdout(&sample)).unwrap();
    }
}

#[tokio::test]
async fn an_invalid_event_is_refused_before_it_is_published() {
    let output = command(&["events", "publish", "org.user.upserted.v1", "--set", "id=", "--set", "displayName="])
        .env("ONCEFLOW_AMQP_URL", "amqp://guest:guest@127.0.0.1:9/%2f")
        .env("ONCEFLOW_DATABASE_URL", "postgres://x@127.0.0.1:9/x")
        .output()
        .await
        .unwrap();
    let text = stderr(&output);
    assert_eq!(code(&output), 2, "{text}");
    assert!(text.contains("--no-validate"), "{text}");
}

#[tokio::test]
async fn topology_tells_by_its_exit_code_what_is_wrong_with_the_command_or_its_surroundings() {
    for verb in ["plan", "apply"] {
        let help = onceflow(&["topology", verb, "--help"]).await;
        assert_eq!(code(&help), 0);
        assert!(stdout(&help).contains("Examples:"), "{verb}");
    }
    assert_eq!(code(&onceflow(&["topology", "apply", "--within", "soon"]).await), 2);
    assert_eq!(code(&onceflow(&["topology", "plan"]).await), 6, "it needs a configuration");
    let unreachable = command(&["topology", "plan"])
        .env("ONCEFLOW_AMQP_URL", "amqp://guest:guest@127.0.0.1:9/%2f")
        .env("ONCEFLOW_DATABASE_URL", "postgres://x@127.0.0.1:9/x")
        .output()
        .await
        .unwrap();
    assert_eq!((code(&unreachable), stdout(&unreachable).as_str()), (7, ""), "{}", stderr(&unreachable));
    let wrong = command(&["topology", "plan"])
        .env("ONCEFLOW_AMQP_URL", "amqp://guest:guest@127.0.0.1:9/%2f")
        .env("ONCEFLOW_DATABASE_URL", "postgres://x@127.0.0.1:9/x")
        .env("ONCEFLOW_CONSUMERS__ORG__PARTITIONS", "65")
        .output()
        .await
        .unwrap();
    assert_eq!(code(&wrong), 6, "{}", stderr(&wrong));
    assert!(stderr(&wrong).contains("consumers.org.partitions: 65 is out of bounds"), "{}", stderr(&wrong));
}

#[tokio::test]
async fn bulk_changes_need_a_selection() {
    let output = onceflow(&["dlq", "replay", "--server", "http://127.0.0.1:9"]).await;
    assert_eq!(code(&output), 2, "{}", stderr(&output));
    assert!(stderr(&output).contains("--all"));
}

#[tokio::test]
async fn a_note_needs_a_group_and_something_to_say() {
    for args in [&["1a2b"][..], &["no-group", "--note", "x"], &["--owner", "li"]] {
        let output = onceflow(&[&["dlq", "note", "--server", "http://127.0.0.1:9"], args].concat()).await;
        assert_eq!((code(&output), stdout(&output).as_str()), (2, ""), "{args:?}: {}", stderr(&output));
    }
    let said = onceflow(&["dlq", "note", "1a2b", "--note", "", "--server", "http://127.0.0.1:9"]).await;
    assert_eq!(code(&said), 7, "nothing is a thing to say: {}", stderr(&said));
    for verb in ["groups", "list", "show", "note"] {
        assert!(stdout(&onceflow(&["dlq", verb, "--help"]).await).contains("Examples:"), "{verb}");
    }
}

#[tokio::test]
async fn a_reader_that_hangs_up_ends_the_command_quietly() {
    let mut child = command(&["completion", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().await.unwrap();
    assert_eq!((code(&output), stderr(&output).as_str()), (0, ""));
}

#[tokio::test]
async fn version_is_data_in_every_format() {
    let output = onceflow(&["version", "-o", "json"]).await;
    let version: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(version["schema"], "onceflow.version/1");
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
}

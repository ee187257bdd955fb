//! What the documents say of the events is what the program knows of them.

use std::fmt::Write as _;
use std::path::Path;

use onceflow::domains;
use onceflow::runtime::{AnyConsumer, EventType};

const BEGIN: &str = "<!-- generated: ONCEFLOW_UPDATE_DOCS=1 cargo test --test it events_document -->\n";

/// Every event type with its sample, as `docs/EVENTS.md` shows it.
fn catalogue(consumers: &[Box<dyn AnyConsumer>]) -> String {
    let mut text = String::from(BEGIN);
    for consumer in consumers {
        let _ = write!(text, "\n## Consumer `{}`\n\nReads `{}`.\n", consumer.name(), consumer.bindings().join("`, `"));
        for read in consumer.reads() {
            let EventType { name, summary, message, sample, .. } = read;
            let _ = write!(
                text,
                "\n### `{name}`\n\n{summary}. Message `{message}`.\n\n```json\n{}\n```\n",
                sample.trim_end()
            );
        }
        let _ = write!(text, "\n### Published by `{}`\n\n| type | message | when |\n|---|---|---|\n", consumer.name());
        for published in consumer.publishes() {
            let _ = writeln!(text, "| `{}` | `{}` | {} |", published.name, published.message, published.summary);
        }
    }
    text
}

#[test]
fn events_document_lists_every_type_with_its_sample() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/EVENTS.md");
    let document = std::fs::read_to_string(&path).unwrap();
    let by_hand = document.split(BEGIN).next().unwrap();
    let wanted = format!("{by_hand}{}", catalogue(&domains::consumers()));
    if std::env::var_os("ONCEFLOW_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
        return;
    }
    assert!(document == wanted, "docs/EVENTS.md is out of date: run the command that stands in it");
}

#[test]
fn every_relative_link_of_the_documents_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut documents: Vec<_> =
        ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"].map(|name| root.join(name)).to_vec();
    documents.extend(std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    for document in documents.iter().filter(|p| p.extension().is_some_and(|e| e == "md")) {
        let text = std::fs::read_to_string(document).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            if !file.is_empty() && !file.contains("://") {
                let found = document.parent().unwrap().join(file);
                assert!(found.exists(), "{}: {target} leads nowhere", document.display());
            }
        }
    }
}

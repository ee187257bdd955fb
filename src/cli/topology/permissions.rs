//! `onceflow topology permissions`: the broker's users, each with no more than its work needs. Asks nobody and changes nothing.

use std::fmt::Write as _;

use serde::Serialize;

use super::super::context::Context;
use super::super::exit::{Ending, Exit, Failure};
use super::super::output::{Format, Rows};
use crate::config::Config;
use crate::domains;

pub(super) const EXAMPLES: &str = "\
Examples:
  onceflow topology permissions                              for rabbitmqctl
  onceflow topology permissions --producer hr=org.# --producer shop=order.*.v1
  onceflow topology permissions -o json | jq '.items[]'

Prints what makes the users; run it where rabbitmqctl is, which asks for each password. `deploy` declares exchanges, queues and
bindings (`onceflow check`, `onceflow topology apply`). `run` is the service's user and may declare nothing: set
topology.declare = false for it. Producers publish their own event types and nothing else. `monitor` only looks.";

/// Matches no name.
const NOTHING: &str = "^$";
/// What the broker calls the default exchange, through which a message goes to the queue that it names.
const DEFAULT_EXCHANGE: &str = r"amq\.default";

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// A producer and the event types it sends, as a pattern; one for each consumer's patterns if none is given
    #[arg(long, value_name = "NAME=PATTERN", value_parser = producer)]
    producer: Vec<(String, String)>,
}

/// Name and pattern.
fn producer(text: &str) -> Result<(String, String), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.*#".contains(c);
    match text.split_once('=') {
        Some((name, pattern))
            if !name.is_empty() && !pattern.is_empty() && text.replace('=', "").chars().all(plain) =>
        {
            Ok((name.to_owned(), pattern.to_owned()))
        }
        _ => Err("a name and a pattern such as hr=org.# are needed".to_owned()),
    }
}

#[derive(Debug, Serialize)]
struct Users {
    vhost: String,
    items: Vec<User>,
}

/// A user of the broker. The three permissions are regular expressions over names of queues and exchanges.
#[derive(Debug, Serialize)]
struct User {
    user: String,
    purpose: &'static str,
    tags: &'static str,
    configure: String,
    write: String,
    read: String,
    /// Which routing keys it may publish with.
    topic: Option<Topic>,
}

#[derive(Debug, Serialize)]
struct Topic {
    exchange: String,
    write: String,
    read: String,
}

pub(super) fn run(context: &Context, args: &Args) -> Ending {
    let config = context.load_config()?;
    let users = users(&config, &args.producer);
    match context.out.format {
        Format::Table => context.out.text(&commands(&users)?)?,
        _ => context.out.data("onceflow.topology.permissions/1", &users, Rows::default)?,
    }
    Ok(Exit::Ok)
}

fn users(config: &Config, producers: &[(String, String)]) -> Users {
    let names = &config.runtime.names;
    let prefix = escaped(names.prefix());
    let consumers: Vec<String> = config.consumers.iter().map(|consumer| escaped(&consumer.name)).collect();
    let consumers = consumers.join("|");
    let foreign = config.consumers.iter().flat_map(|consumer| &consumer.bindings);
    let foreign: String = foreign.map(|binding| format!("|{}", escaped(&binding.exchange))).collect();
    let user = |kind: &str| format!("{}-{kind}", names.prefix());
    let deploy = User {
        user: user("deploy"),
        purpose: "declares: onceflow check, onceflow topology apply",
        tags: "",
        configure: format!(r"^{prefix}\.(in|out|({consumers})(\..+)?)$"),
        // A binding writes to what is bound and reads what it is bound to; a queue that dead-letters writes to where it does.
        write: format!(r"^({DEFAULT_EXCHANGE}|{prefix}\.({consumers})(\..+)?)$"),
        read: format!(r"^({prefix}\.(in|({consumers})(\..+)?){foreign})$"),
        topic: None,
    };
    let run = User {
        user: user("run"),
        purpose: "the service: onceflow run with topology.declare = false",
        tags: "",
        configure: NOTHING.to_owned(),
        // Retries and replays go to queues by name, through the default exchange.
        write: format!(r"^({DEFAULT_EXCHANGE}|{prefix}\.out)$"),
        read: format!(r"^{prefix}\.({consumers})(\.([0-9]+|dlq))?$"),
        topic: None,
    };
    let monitor = User {
        user: user("monitor"),
        purpose: "looks at the broker's management API",
        tags: "monitoring",
        configure: NOTHING.to_owned(),
        write: NOTHING.to_owned(),
        read: NOTHING.to_owned(),
        topic: None,
    };
    let mut items = vec![deploy, run, monitor];
    items.extend(asked_or_usual(producers).into_iter().map(|(name, patterns)| User {
        user: user(&format!("producer-{name}")),
        purpose: "publishes its own event types",
        tags: "",
        configure: NOTHING.to_owned(),
        write: format!(r"^{prefix}\.in$"),
        read: NOTHING.to_owned(),
        topic: Some(Topic { exchange: names.ingress(), write: of_patterns(&patterns), read: NOTHING.to_owned() }),
    }));
    Users { vhost: config.broker.vhost(), items }
}

/// Each producer with its patterns.
fn asked_or_usual(producers: &[(String, String)]) -> Vec<(String, Vec<String>)> {
    if producers.is_empty() {
        let patterns = |of: &[&str]| of.iter().map(|pattern| (*pattern).to_owned()).collect();
        return domains::consumers().iter().map(|c| (c.name().to_owned(), patterns(c.bindings()))).collect();
    }
    let mut by_name: Vec<(String, Vec<String>)> = Vec::new();
    for (name, pattern) in producers {
        match by_name.iter_mut().find(|(known, _)| known == name) {
            Some((_, patterns)) => patterns.push(pattern.clone()),
            None => by_name.push((name.clone(), vec![pattern.clone()])),
        }
    }
    by_name
}

/// A regular expression for the routing keys that topic patterns match: `*` is one word, `#` any number of them.
fn of_patterns(patterns: &[String]) -> String {
    let one = |pattern: &String| {
        let words: Vec<String> = pattern.split('.').map(word).collect();
        words.join(r"\.")
    };
    format!("^({})$", patterns.iter().map(one).collect::<Vec<_>>().join("|"))
}

fn word(word: &str) -> String {
    match word {
        "#" => ".*".to_owned(),
        "*" => r"[^.]+".to_owned(),
        word => escaped(word),
    }
}

/// The text itself, as a regular expression.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        if !(c.is_alphanumeric() || c == '_' || c == '-') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// For a POSIX shell.
fn commands(users: &Users) -> Result<String, Failure> {
    let vhost = quoted(&users.vhost);
    let mut text = String::new();
    for User { user, purpose, tags, configure, write, read, topic } in &users.items {
        let user = quoted(user);
        let mut lines = vec![format!("# {purpose}"), format!("rabbitmqctl add_user {user}")];
        if !tags.is_empty() {
            lines.push(format!("rabbitmqctl set_user_tags {user} {tags}"));
        }
        let permissions = [configure, write, read].map(|permission| quoted(permission)).join(" ");
        lines.push(format!("rabbitmqctl set_permissions -p {vhost} {user} {permissions}"));
        if let Some(Topic { exchange, write, read }) = topic {
            let (exchange, write, read) = (quoted(exchange), quoted(write), quoted(read));
            lines.push(format!("rabbitmqctl set_topic_permissions -p {vhost} {user} {exchange} {write} {read}"));
        }
        writeln!(text, "{}", lines.join("\n"))
            .map_err(|e| Failure::new(Exit::Failed, "the commands can't be written").because(e))?;
    }
    Ok(text)
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_patterns_become_regular_expressions() {
        let of = |pattern: &str| of_patterns(&[pattern.to_owned()]);
        assert_eq!(of("org.#"), r"^(org\..*)$");
        assert_eq!(of("order.*.v1"), r"^(order\.[^.]+\.v1)$");
        assert_eq!(of_patterns(&["payment.#".into(), "order.#".into()]), r"^(payment\..*|order\..*)$");
    }

    #[test]
    fn a_name_is_never_a_pattern_and_never_ends_the_shells_quotes() {
        assert_eq!(escaped("hr.events+x"), r"hr\.events\+x");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }

    #[test]
    fn a_producer_is_a_name_and_a_pattern() {
        assert_eq!(producer("hr=org.#"), Ok(("hr".to_owned(), "org.#".to_owned())));
        for wrong in ["", "hr", "hr=", "=org.#", "hr=a b", "hr=$(x)"] {
            assert!(producer(wrong).is_err(), "{wrong}");
        }
    }
}

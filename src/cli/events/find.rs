//! Finds an event type by name, and guesses what was meant.

use super::super::exit::{Exit, Failure};
use crate::domains;
use crate::runtime::{AnyConsumer, EventType};

/// How alike two names must be for a guess.
const ALIKE: f64 = 0.75;

/// The consumer that reads the type, with the type.
pub(super) fn read_type(name: &str) -> Result<(Box<dyn AnyConsumer>, EventType), Failure> {
    let consumers = domains::consumers();
    let names: Vec<&str> = consumers.iter().flat_map(|c| c.reads()).map(|t| t.name).collect();
    let unknown = unknown(name, &names);
    for consumer in consumers {
        if let Some(found) = consumer.reads().iter().find(|t| t.name == name).copied() {
            return Ok((consumer, found));
        }
    }
    Err(unknown)
}

fn unknown(name: &str, names: &[&str]) -> Failure {
    let failure = Failure::new(Exit::NotFound, format!("no consumer reads events of type {name:?}"));
    match guess(name, names) {
        Some(guess) => failure.or_try(format!("{guess} (did you mean that?)")),
        None => failure.or_try("onceflow events types"),
    }
}

/// The name that is most alike: by letters, or because it goes on from what was typed.
fn guess<'a>(name: &str, names: &[&'a str]) -> Option<&'a str> {
    let alike = |known: &str| {
        if !name.is_empty() && (known.starts_with(name) || known.contains(&format!(".{name}"))) {
            return 1.0;
        }
        strsim::jaro_winkler(name, known)
    };
    let best = names.iter().copied().map(|known| (alike(known), known));
    best.filter(|(score, _)| *score >= ALIKE).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 3] = ["org.user.upserted.v1", "org.department.upserted.v1", "order.placed.v1"];

    #[test]
    fn a_misspelt_type_is_guessed() {
        assert_eq!(guess("org.user.upsertd.v1", &NAMES), Some("org.user.upserted.v1"));
        assert_eq!(guess("order.placed", &NAMES), Some("order.placed.v1"));
        assert_eq!(guess("department", &NAMES), Some("org.department.upserted.v1"));
    }

    #[test]
    fn nothing_is_guessed_for_nonsense() {
        assert_eq!(guess("zzz", &NAMES), None);
    }
}

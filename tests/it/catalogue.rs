//! The catalogue of faults says who injects each of them; here it is held against the suite and the tests.

#[path = "../../faults/catalogue.rs"]
#[expect(dead_code, reason = "titles and reasons are for the document")]
mod list;

use std::collections::BTreeSet;

use list::{By, CATALOGUE};

use crate::tidy::texts;

/// `fault("P2.after_claim", …` in the suite, as `P2`.
fn injected() -> BTreeSet<String> {
    let texts = texts("faults/suite");
    let names = texts.iter().flat_map(|text| text.split("fault(\"").skip(1));
    names.map(|rest| rest.split(['"', '.']).next().unwrap().to_owned()).collect()
}

#[test]
fn every_fault_of_the_catalogue_is_injected_by_the_suite_or_by_a_test_or_said_to_be_by_nobody() {
    let injected = injected();
    let tests = [texts("tests/it"), texts("src")].concat();
    for entry in CATALOGUE {
        let (id, by) = (entry.id, entry.by);
        assert_eq!(injected.contains(id), by == By::Suite, "{id}: {by:?}");
        if let By::Test(name) = by {
            let function = format!("fn {name}(");
            assert!(tests.iter().any(|text| text.contains(&function)), "{id}: there is no test {name}");
        }
    }
    let ids: BTreeSet<&str> = CATALOGUE.iter().map(|entry| entry.id).collect();
    assert_eq!(ids.len(), CATALOGUE.len(), "each id once");
    let strange: Vec<&String> = injected.iter().filter(|id| !ids.contains(id.as_str())).collect();
    assert!(strange.is_empty(), "not in the catalogue: {strange:?}");
}

//! What is alike and what isn't, by example and by chance.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{Fingerprint, MAX_TEXT, Place};

const PLACE: Place<'_> =
    Place { consumer: "org", event_type: "org.user.upserted.v1", stage: "handle", code: "refused" };

fn of(text: &str) -> Fingerprint {
    Fingerprint::of(PLACE, &[text.to_owned()])
}

fn pattern(text: &str) -> String {
    of(text).text
}

#[test]
fn what_differs_from_event_to_event_is_taken_out() {
    for (text, expected) in [
        ("no department 7", "no department …"),
        ("no department 7.", "no department …"),
        ("no department -12.5e-7, send it first", "no department …, send it first"),
        ("user/42 has no parent", "user/… has no parent"),
        ("user 550e8400-e29b-41d4-a716-446655440000 is gone", "user … is gone"),
        ("user deadbeef-cafe-babe-fade-abcdefabcdef is gone", "user … is gone"),
        ("at 2026-01-31T08:00:00.123Z it was closed", "at … it was closed"),
        ("at 2026-01-31 08:00:00+00 it was closed", "at … it was closed"),
        ("key 0xDEADBEEF of 10.0.0.1:5432", "key … of …"),
        ("mail to li.lei+x@mail.example.org failed", "mail to … failed"),
        ("unknown class \"a \\\"b\\\" c\"; see docs", "unknown class …; see docs"),
        ("unknown class 'a b'; can't be read", "unknown class …; can't be read"),
        ("one of [1, 2, 3] and (\"a\", \"b\")", "one of […] and (…"),
        ("account=mary, balance 12,345", "account=…, balance …"),
        ("lines[3].price is missing", "lines[…].price is missing"),
        ("cut off in \"the middle", "cut off in …"),
        ("not UTF8 but base64 at byte 17", "not UTF8 but base64 at byte …"),
        ("部门7不存在", "部门…不存在"),
        ("token abcdefghijklmnopqrstuvwxyzabcdef refused", "token … refused"),
        ("  two\n\tlines\0 ", "two lines"),
        ("", ""),
    ] {
        assert_eq!(pattern(text), expected, "{text}");
    }
}

#[test]
fn a_name_of_the_schema_is_not_taken_out() {
    let (email, phone) =
        ("unique constraint \"users_email_key\" is broken", "unique constraint \"users_phone_key\" is broken");
    assert_eq!(pattern(email), "unique constraint users_email_key is broken");
    assert_ne!(of(email).group_id, of(phone).group_id);
    assert_eq!(pattern("attribute `id` is missing"), "attribute `id` is missing");
}

#[test]
fn the_id_of_a_group_is_the_same_in_every_process_and_version() {
    let id = of("no department 7").group_id;
    assert_eq!(id, "437fd4b4954801b4");
    assert_eq!(of("no department 8").group_id, id);
}

#[test]
fn each_part_of_the_place_counts() {
    let errors = ["no department 7".to_owned()];
    let places = [
        PLACE,
        Place { consumer: "sms", ..PLACE },
        Place { event_type: "org.user.deleted.v1", ..PLACE },
        Place { stage: "validate", ..PLACE },
        Place { code: "gone", ..PLACE },
        // The parts together are the same text as before.
        Place { consumer: "or", event_type: "gorg.user.upserted.v1", ..PLACE },
    ];
    let mut ids: Vec<String> = places.iter().map(|place| Fingerprint::of(*place, &errors).group_id).collect();
    ids.push(of("no user 7").group_id);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), places.len() + 1);
}

#[test]
fn causes_count_and_not_only_the_outermost_error() {
    let chain = |cause: &str| Fingerprint::of(PLACE, &["can't store 7".to_owned(), cause.to_owned()]);
    assert_eq!(chain("disk full").text, "can't store …: disk full");
    assert_ne!(chain("disk full").group_id, chain("no rights").group_id);
}

#[test]
fn the_time_it_takes_grows_with_the_length_of_the_text_and_not_faster() {
    // A text looked at again from each of its places would take 10^12 steps.
    for piece in ["'", "\"", "'a ", "\\\"", "a'", "@", "1-", "‘", "“", "((", "…", " \u{0} "] {
        let text = piece.repeat(1_000_000 / piece.len());
        let started = Instant::now();
        assert!(pattern(&text).len() <= MAX_TEXT);
        assert!(started.elapsed() < Duration::from_secs(10), "{piece:?} took {:?}", started.elapsed());
    }
}

/// Something that differs from event to event, as errors write it.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<u128>().prop_map(|n| uuid::Uuid::from_u128(n).to_string()),
        any::<u128>().prop_map(|n| uuid::Uuid::from_u128(n).simple().to_string()),
        any::<i64>().prop_map(|n| n.to_string()),
        prop::num::f64::NORMAL.prop_map(|n| n.to_string()),
        (0_i64..4_000_000_000).prop_map(|s| jiff::Timestamp::from_second(s).unwrap().to_string()),
        any::<u64>().prop_map(|n| format!("{n:#x}")),
        "[0-9a-f]{8,40}",
        any::<String>().prop_map(|text| format!("{text:?}")),
        "[a-z][a-z.+_]{0,10}@[a-z]{1,10}\\.[a-z]{2,3}",
        "x[0-9]{1,6}[a-z]{0,3}",
    ]
}

/// A sentence around three values.
fn sentence(at: usize, values: &[String; 3]) -> String {
    let [a, b, c] = values;
    match at {
        0 => format!("no department {a}; send it before {b}, or leave {c} out."),
        1 => format!("{a} is not above {b}: (was {c})"),
        2 => format!("database: query: row [{a}] of the table can't refer to {b} since {c}"),
        _ => format!("the users' parent, {a}, isn't there; {b} asked `{c}`"),
    }
}

proptest! {
    #[test]
    fn the_same_failure_of_other_events_is_alike(at in 0_usize..4, some in prop::array::uniform3(value()), other in prop::array::uniform3(value())) {
        let (some, other) = (sentence(at, &some), sentence(at, &other));
        prop_assert_eq!(of(&some), of(&other), "{} and {}", some, other);
    }

    #[test]
    fn another_code_is_never_alike(text in any::<String>(), one in "[a-z_]{1,20}", other in "[a-z_]{1,20}") {
        prop_assume!(one != other);
        let with = |code: &str| Fingerprint::of(Place { code, ..PLACE }, std::slice::from_ref(&text)).group_id;
        prop_assert_ne!(with(&one), with(&other));
    }

    #[test]
    fn any_text_has_a_bounded_pattern_that_can_be_stored(text in any::<String>(), rough in "[\"'‘’“”«»「」\\\\…@=a-f0-9 \u{0}-]{0,60}") {
        for text in [&text, &rough] {
            let found = of(text);
            prop_assert!(found.text.len() <= MAX_TEXT);
            prop_assert!(!found.text.chars().any(char::is_control), "{:?}", found.text);
            prop_assert!(found.group_id.len() == 16 && found.group_id.bytes().all(|b| b.is_ascii_hexdigit()));
        }
    }

    #[test]
    fn no_digit_of_an_event_is_kept(text in "[ -~]{0,200}") {
        let kept = pattern(&text);
        let known = super::WORDS.iter().fold(kept.to_lowercase(), |kept, word| kept.replace(word, ""));
        prop_assert!(!known.bytes().any(|b| b.is_ascii_digit()), "{}", kept);
    }
}

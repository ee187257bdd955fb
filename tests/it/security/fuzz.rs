//! Input of strangers, mutated without end: no decoder panics, hangs or answers at length (§7.11).
//!
//! Each target begins with the files of `tests/corpus/<target>` and the samples, and keeps every input that it answers in a new way.
//! That needs no nightly compiler and no instrumented build; it finds less than a run that is guided by coverage.
//! `make fuzz SECONDS=60` runs longer, `ONCEFLOW_FUZZ_SEED` repeats a run. What makes a decoder panic is kept in a file that belongs
//! into the corpus with the mend.

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use onceflow::config;
use onceflow::domains;
use onceflow::event::{Envelope, Format, Rejection};
use onceflow::message::Message;
use onceflow::replay::{Cursor, Filter};
use onceflow::runtime::wire::{Limits, decode, identity_of_unreadable, sanitize_headers};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Map, Value};

use crate::harness::{direct::envelope, size};

/// A decoder, which says in a word how it answered.
type Target = (&'static str, fn(&[u8]) -> String);

const TARGETS: [Target; 6] = [
    ("message", message),
    ("headers", headers),
    ("json", |input| payload(input, Format::Json)),
    ("protobuf", |input| payload(input, Format::Protobuf)),
    ("cursor", cursor),
    ("configuration", configuration),
];
/// Longest input; the body's own limit is 1 MiB.
const MAX_INPUT: usize = 1_200_000;
/// Most inputs that are kept.
const MAX_KEPT: usize = 5_000;
/// Longest time for one input; a machine that does other things takes its part of it.
const ANSWERED_WITHIN: Duration = Duration::from_secs(20);
/// Longest explanation that a rejection gives.
const MAX_WORDS: usize = 4_096;
const TOKENS: [&str; 28] = [
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\",
    "\\u0000",
    "\\ud800",
    ":",
    ",",
    "null",
    "true",
    "1e400",
    "-0",
    "18446744073709551616",
    "\0",
    "\u{1b}[2J",
    "cloudEvents:id",
    "specversion",
    "data_base64",
    "\"data\":",
    "partitionkey",
    "\r\n",
    "\u{feff}",
    "x-death",
    "=",
    "[broker]\nurl = ",
    "1d",
];

fn of_rejection(rejection: &Rejection) -> String {
    assert!(!rejection.code.is_empty() && rejection.message.len() < MAX_WORDS, "{rejection:?}");
    assert!(!rejection.message.chars().any(char::is_control), "it could steer a terminal: {:?}", rejection.message);
    rejection.code.to_owned()
}

/// The first byte chooses among the forms.
fn message(input: &[u8]) -> String {
    let (form, body) = input.split_first().map_or((0, input), |(form, body)| (*form, body));
    let types =
        ["application/cloudevents+json", "application/json", "application/protobuf", "text/plain; charset=utf-8", ""];
    let message = Message {
        message_id: (form & 1 == 0).then(|| "1".to_owned()),
        message_type: (form & 2 == 0).then(|| "sms.requested.v1".to_owned()),
        content_type: types.get(usize::from(form >> 2) % 6).map(|&text| text.to_owned()),
        body: Bytes::copy_from_slice(body),
        ..Message::default()
    };
    let _identity = identity_of_unreadable(&message);
    match decode(&message, &Limits::default()) {
        Ok(envelope) => {
            assert!(envelope.data.len() <= Limits::default().max_body_bytes && !envelope.id.is_empty());
            format!("{:?}", envelope.format)
        }
        Err(rejection) => of_rejection(&rejection),
    }
}

fn headers(input: &[u8]) -> String {
    let headers = serde_json::from_slice::<Map<String, Value>>(input).map_or_else(
        |_| [("cloudEvents:id".to_owned(), Value::from(String::from_utf8_lossy(input)))].into(),
        |fields| fields.into_iter().collect(),
    );
    let kept = sanitize_headers(&headers);
    assert!(serde_json::to_string(&*kept).unwrap().len() < 128 * 1024, "they fit no frame");
    let message = Message { headers, body: Bytes::from_static(b"{}"), ..Message::default() };
    decode(&message, &Limits::default()).map_or_else(|r| of_rejection(&r), |envelope| format!("{:?}", envelope.format))
}

/// As each type that is read, by its consumer.
fn payload(input: &[u8], format: Format) -> String {
    let mut answers = BTreeSet::new();
    for consumer in domains::consumers() {
        for read in consumer.reads() {
            let event =
                Envelope { format, data: Bytes::copy_from_slice(input), ..envelope(read.name, "1", &Value::Null) };
            let answer = consumer.decode(&event).map_or_else(|r| of_rejection(&r), |_| "read".to_owned());
            answers.insert(format!("{} {answer}", read.name));
        }
    }
    answers.into_iter().collect::<Vec<_>>().join("|")
}

fn cursor(input: &[u8]) -> String {
    let text = String::from_utf8_lossy(input);
    let filter = [("text", &text), ("since", &text), ("group", &text)].map(|(k, v)| (k.to_owned(), v.to_string()));
    let filtered = Filter::from_query(filter.into()).is_ok();
    let Ok(cursor) = text.parse::<Cursor>() else { return format!("no cursor, {filtered}") };
    assert_eq!(cursor.to_string().parse::<Cursor>().unwrap(), cursor);
    format!("a cursor, {filtered}")
}

fn configuration(input: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), input).unwrap();
    match config::load(Some(file.path()), &["org", "payment", "sms"]) {
        Ok(_) => "loaded".to_owned(),
        Err(errors) => {
            let keys: BTreeSet<String> = errors.0.into_iter().map(|problem| problem.key).collect();
            keys.into_iter().take(3).collect::<Vec<_>>().join(" ")
        }
    }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join("tests/corpus").join(target)];
    if target == "json" {
        folders.extend(["org", "payment", "sms"].map(|domain| root.join("samples").join(domain)));
    }
    let files = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap());
    let mut found: Vec<Vec<u8>> = files.map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
    if target == "protobuf" {
        let protobuf = |read: &onceflow::runtime::EventType| read.to_protobuf.and_then(|write| write(read.sample).ok());
        found.extend(
            domains::consumers()
                .iter()
                .flat_map(|consumer| consumer.reads().iter().filter_map(protobuf).collect::<Vec<_>>()),
        );
    }
    assert!(!found.is_empty(), "tests/corpus/{target} is empty");
    found
}

fn mutate(random: &mut StdRng, kept: &[Vec<u8>]) -> Vec<u8> {
    let mut input = kept[random.random_range(0..kept.len())].clone();
    for _ in 0..random.random_range(1..=6) {
        let at = random.random_range(0..=input.len());
        let end = (at + random.random_range(0..=16)).min(input.len());
        match random.random_range(0..8) {
            0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
            1 if at < input.len() => input[at] = random.random(),
            2 => drop(input.drain(at..end)),
            3 => input.truncate(at),
            4 => drop(input.splice(at..at, TOKENS[random.random_range(0..TOKENS.len())].bytes())),
            5 => {
                let other = &kept[random.random_range(0..kept.len())];
                let from = random.random_range(0..=other.len());
                drop(input.splice(at..end, other[from..].iter().copied()));
            }
            // Nesting and length: seldom much, for that is slow.
            6 => {
                let times = if random.random_ratio(1, 50) { 20_000 } else { random.random_range(1..100) };
                let again = input[at..end].repeat(times);
                drop(input.splice(at..at, again));
            }
            _ => input.insert(at, random.random()),
        }
        input.truncate(MAX_INPUT);
    }
    input
}

/// Feeds one target until the time is over, and prints how often.
fn feed((name, decode): Target, seconds: u64, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut kept = corpus(name);
    let mut answers: BTreeSet<String> = BTreeSet::new();
    let (begun, mut executions, mut slowest) = (Instant::now(), 0_u64, Duration::ZERO);
    let firsts = kept.len() as u64;
    while executions < firsts || begun.elapsed() < Duration::from_secs(seconds) {
        let first = usize::try_from(executions).ok().filter(|_| executions < firsts);
        let input = first.map_or_else(|| mutate(&mut random, &kept), |n| kept[n].clone());
        let asked = Instant::now();
        let answered = catch_unwind(AssertUnwindSafe(|| decode(&input)));
        let took = asked.elapsed();
        if answered.is_err() || took > ANSWERED_WITHIN {
            let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}-{seed}-{executions}"));
            fs::write(&file, &input).unwrap();
            panic!(
                "{name}: panicked, or took {took:?}, at {} (seed {seed}); put it into tests/corpus/{name}",
                file.display()
            );
        }
        executions += 1;
        slowest = slowest.max(took);
        if answers.insert(answered.unwrap_or_default()) && first.is_none() && kept.len() < MAX_KEPT {
            kept.push(input);
        }
    }
    let (ways, millis) = (answers.len(), slowest.as_millis());
    eprintln!("fuzz {name}: {executions} executions, {ways} kinds of answers, the slowest in {millis} ms, seed {seed}");
}

#[test]
fn no_input_of_a_stranger_makes_a_decoder_panic_or_hang_s7_11() {
    let seconds = size("ONCEFLOW_FUZZ_SECONDS", 1);
    let seed = size("ONCEFLOW_FUZZ_SEED", rand::random());
    for target in TARGETS {
        feed(target, seconds, seed);
    }
}

//! Compares what was sent, what is stored and what came out. It knows tables, and nothing of the code that fills them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;
use tokio_postgres::Client;

use crate::events::{About, CANARY, PHONE, order_no, user_key};
use crate::producer::Journal;
use crate::rig::Expect;
use crate::sink::Arrival;

/// Memory of one replica.
const MEMORY: u64 = 512 * 1024 * 1024;
/// Examples of a problem that are named.
const EXAMPLES: usize = 3;

const INBOX: &str = "SELECT event_id, outcome, downstream, duplicates FROM onceflow.inbox";
const DEAD: &str = "SELECT event_id, source, reason FROM onceflow.dead_letter WHERE state = 'open'";
const USERS: &str = "SELECT id, version FROM onceflow.org_user WHERE state = 'live'";
const ORDERS: &str = "SELECT order_no, state, version FROM onceflow.payment_order";
const PAYMENTS: &str = "SELECT order_no, disposition FROM onceflow.payment";
const TEXTS_WITHOUT_INBOX: &str = "SELECT count(*) FROM onceflow.sms_request r WHERE NOT EXISTS
    (SELECT FROM onceflow.inbox i WHERE i.event_id = r.event_id AND i.consumer = 'sms')";
const INBOX_WITHOUT_TEXT: &str =
    "SELECT count(*) FROM onceflow.inbox i WHERE i.consumer = 'sms' AND i.outcome = 'applied'
    AND NOT EXISTS (SELECT FROM onceflow.sms_request r WHERE i.event_id = r.event_id)";
/// Rows still there, rows removed after their confirm, rows that events made.
const BOOKS: &str =
    "SELECT (SELECT count(*) FROM onceflow.outbox), (SELECT sum(confirmed)::bigint FROM onceflow.outbox_books),
    (SELECT coalesce(sum(downstream), 0)::bigint FROM onceflow.inbox)";
const WHOLE_INBOX: &str = "SELECT (to_jsonb(i) - 'fingerprint')::text FROM onceflow.inbox i ORDER BY processed_at";
const ATTEMPTS: &str = "SELECT count(*) FROM onceflow.attempt WHERE stage <> 'decode'";

/// The journals, and what must hold beside what always must.
pub(crate) struct Evidence<'a> {
    pub(crate) journal: &'a Journal,
    pub(crate) arrivals: &'a [Arrival],
    pub(crate) expect: &'a Expect,
}

/// What the comparison has found.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Findings {
    /// Events that the broker had confirmed to the producer.
    pub(crate) confirmed: u64,
    /// Deliveries of events that had been dealt with before.
    pub(crate) redelivered: u64,
    pub(crate) lost: u64,
    pub(crate) twice: u64,
    pub(crate) partial: u64,
    pub(crate) unordered: u64,
    /// Downstream messages, each counted once.
    pub(crate) published: u64,
    /// Downstream messages that came again, under the same id.
    pub(crate) sent_again: u64,
    /// Attempts that failed, of events that can be read.
    pub(crate) attempts: u64,
    /// The same, in faults that were outages.
    pub(crate) burnt: u64,
    pub(crate) dead: u64,
    pub(crate) peak: u64,
    /// Everything that is not as it should be, each with its invariant.
    pub(crate) problems: Vec<String>,
}

impl Findings {
    /// Notes a problem with some examples; returns how many there were.
    fn note(&mut self, what: &str, examples: &[String]) -> u64 {
        if !examples.is_empty() {
            let some: Vec<&str> = examples.iter().take(EXAMPLES).map(String::as_str).collect();
            self.problems.push(format!("{what}: {} ({})", examples.len(), some.join("; ")));
        }
        examples.len() as u64
    }

    /// I6: memory and connections.
    pub(crate) fn bounds(&mut self, connections: i64, most: i64) {
        if self.peak > MEMORY {
            self.problems.push(format!("I6: {} MiB of memory", self.peak >> 20));
        }
        if connections > most {
            self.problems.push(format!("I6: {connections} connections to the database, {most} are allowed"));
        }
    }
}

struct Row {
    outcome: String,
    downstream: i64,
    duplicates: i64,
}

struct Stored {
    inbox: BTreeMap<String, Row>,
    dead: BTreeSet<String>,
}

async fn stored(client: &Client) -> anyhow::Result<Stored> {
    let mut inbox = BTreeMap::new();
    for row in client.query(INBOX, &[]).await? {
        let found = Row {
            outcome: row.get(1),
            downstream: row.get::<_, i32>(2).into(),
            duplicates: row.get::<_, i32>(3).into(),
        };
        inbox.insert(row.get(0), found);
    }
    let dead = client.query(DEAD, &[]).await?.iter().map(|row| row.get(0)).collect();
    Ok(Stored { inbox, dead })
}

/// Downstream messages by the event that caused them, each once.
fn by_cause(arrivals: &[Arrival]) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for arrival in arrivals {
        found.entry(&arrival.cause).or_default().insert(&arrival.message_id);
    }
    found
}

/// What has not come to its end yet; `None` once everything has.
pub(crate) async fn waiting(client: &Client, evidence: &Evidence<'_>) -> anyhow::Result<Option<String>> {
    let stored = stored(client).await?;
    let missing = missing(&stored, evidence);
    if let Some(first) = missing.first() {
        return Ok(Some(format!("{} confirmed events, e.g. {first}", missing.len())));
    }
    let (rows, confirmed, made) = books(client).await?;
    if rows > 0 {
        return Ok(Some(format!("{rows} rows in the outbox")));
    }
    let distinct: BTreeSet<_> = evidence.arrivals.iter().map(|a| &a.message_id).collect();
    let expected = usize::try_from(made + evidence.expect.by_hand)?;
    if distinct.len() < expected {
        return Ok(Some(format!("{} of {expected} downstream messages; {confirmed} were confirmed", distinct.len())));
    }
    Ok(None)
}

async fn books(client: &Client) -> anyhow::Result<(i64, i64, i64)> {
    let row = client.query_one(BOOKS, &[]).await?;
    Ok((row.get(0), row.get(1), row.get(2)))
}

/// Confirmed events without an end (I1).
fn missing(stored: &Stored, evidence: &Evidence<'_>) -> Vec<String> {
    let confirmed = evidence.journal.iter().filter(|(_, sent)| sent.confirmed);
    let ended = |id: &str, about: About| {
        let must_die = about == About::Poison || evidence.expect.doomed.contains(id);
        if must_die { stored.dead.contains(id) } else { stored.inbox.contains_key(id) }
    };
    confirmed.filter(|(id, sent)| !ended(id, sent.about)).map(|(id, sent)| format!("{id} {:?}", sent.about)).collect()
}

/// Compares everything.
pub(crate) async fn compare(client: &Client, evidence: &Evidence<'_>) -> anyhow::Result<Findings> {
    let stored = stored(client).await?;
    let mut findings = Findings {
        confirmed: evidence.journal.values().filter(|sent| sent.confirmed).count() as u64,
        redelivered: stored.inbox.values().map(|row| row.duplicates).sum::<i64>().unsigned_abs(),
        attempts: client.query_one(ATTEMPTS, &[]).await?.get::<_, i64>(0).unsigned_abs(),
        dead: stored.dead.len() as u64,
        ..Findings::default()
    };
    findings.lost = findings.note("I1: confirmed and lost", &missing(&stored, evidence));
    downstream(&mut findings, &stored, evidence);
    order(&mut findings, &stored, evidence);
    dead_letters(&mut findings, client, evidence).await?;
    let mut partial = users(client, &stored, evidence).await?;
    partial.extend(orders(client, &stored, evidence).await?);
    for (what, sql) in
        [("texts without an inbox row", TEXTS_WITHOUT_INBOX), ("inbox rows without a text", INBOX_WITHOUT_TEXT)]
    {
        let found: i64 = client.query_one(sql, &[]).await?.get(0);
        partial.extend((found > 0).then(|| format!("{found} {what}")));
    }
    let (rows, confirmed, made) = books(client).await?;
    if rows + confirmed != made + evidence.expect.by_hand {
        partial.push(format!("{made} outbox rows were made, {confirmed} removed, {rows} are there"));
    }
    findings.partial = findings.note("I3: half a transaction", &partial);
    if evidence.expect.no_attempts {
        findings.burnt = findings.attempts;
        if findings.burnt > 0 {
            findings.problems.push(format!("I7: an outage cost {} attempts", findings.burnt));
        }
    }
    Ok(findings)
}

/// I2 and I4: as many downstream messages for each event as its row says, under as many ids.
fn downstream(findings: &mut Findings, stored: &Stored, evidence: &Evidence<'_>) {
    let causes = by_cause(evidence.arrivals);
    let (mut fewer, mut more) = (Vec::new(), Vec::new());
    for (id, row) in &stored.inbox {
        let came = causes.get(id.as_str()).map_or(0, BTreeSet::len);
        let expected = usize::try_from(row.downstream).unwrap_or(0);
        if came < expected {
            fewer.push(format!("{id} made {expected}, {came} came"));
        }
        if came > expected {
            more.push(format!("{id} made {expected}, {came} came"));
        }
    }
    let without = causes.iter().filter(|(id, _)| !id.is_empty() && !stored.inbox.contains_key(**id));
    more.extend(without.map(|(id, _)| format!("{id} has an effect and no inbox row")));
    let distinct: BTreeSet<_> = evidence.arrivals.iter().map(|a| &a.message_id).collect();
    findings.published = distinct.len() as u64;
    findings.sent_again = (evidence.arrivals.len() - distinct.len()) as u64;
    findings.lost += findings.note("I4: downstream events lost", &fewer);
    findings.twice += findings.note("I2: effects that happened twice", &more);
}

/// I5: what came for the first time never has an older version than what came before it.
fn order(findings: &mut Findings, stored: &Stored, evidence: &Evidence<'_>) {
    let (mut seen, mut newest, mut back) = (BTreeSet::new(), BTreeMap::new(), Vec::new());
    for arrival in evidence.arrivals {
        let Some(version) = arrival.version else { continue };
        if !seen.insert(&arrival.message_id) || (arrival.again && evidence.expect.sink_lost) {
            continue;
        }
        let before = newest.entry(&arrival.subject).or_insert(version);
        if version < *before && !evidence.expect.parked {
            back.push(format!("{} {}: {version} after {before}", arrival.event_type, arrival.subject));
        }
        *before = version.max(*before);
    }
    if evidence.expect.strict_order {
        let late =
            stored.inbox.iter().filter(|(_, row)| row.outcome == "stale").map(|(id, _)| format!("{id} came late"));
        back.extend(late);
    }
    findings.unordered = findings.note("I5: out of order", &back);
}

/// Exactly those that must: no more, no fewer.
async fn dead_letters(findings: &mut Findings, client: &Client, evidence: &Evidence<'_>) -> anyhow::Result<()> {
    let (mut unexpected, mut nameless) = (Vec::new(), 0);
    for row in client.query(DEAD, &[]).await? {
        let (id, reason): (String, String) = (row.get(0), row.get(2));
        match evidence.journal.get(&id) {
            Some(sent) if sent.about == About::Poison || evidence.expect.doomed.contains(&id) => {}
            None => nameless += 1,
            Some(_) => unexpected.push(format!("{id}: {reason}")),
        }
    }
    findings.lost += findings.note("I1: dead letters that should live", &unexpected);
    if nameless != evidence.expect.nameless {
        findings
            .problems
            .push(format!("I1: {nameless} dead letters of events without an id, not {}", evidence.expect.nameless));
    }
    Ok(())
}

/// I3 and I5: each user is as the newest of its events that is in the inbox has it.
async fn users(client: &Client, stored: &Stored, evidence: &Evidence<'_>) -> anyhow::Result<Vec<String>> {
    let mut newest: BTreeMap<String, i64> = BTreeMap::new();
    for id in stored.inbox.keys() {
        if let Some(About::User { user, version }) = evidence.journal.get(id).map(|sent| sent.about) {
            let known = newest.entry(user_key(user)).or_insert(version);
            *known = version.max(*known);
        }
    }
    let found: BTreeMap<String, i64> =
        client.query(USERS, &[]).await?.iter().map(|row| (row.get(0), row.get(1))).collect();
    let keys: BTreeSet<&String> = newest.keys().chain(found.keys()).collect();
    let differ = keys.into_iter().filter(|key| newest.get(*key) != found.get(*key));
    Ok(differ.map(|key| format!("user {key} is {:?}, its events say {:?}", found.get(key), newest.get(key))).collect())
}

/// I2 and I3: an order is there with its event, paid once with its payment, and changed no more often than that.
async fn orders(client: &Client, stored: &Stored, evidence: &Evidence<'_>) -> anyhow::Result<Vec<String>> {
    let (mut placed, mut paid) = (BTreeSet::new(), BTreeSet::new());
    for id in stored.inbox.keys() {
        match evidence.journal.get(id).map(|sent| sent.about) {
            Some(About::Order(n)) => drop(placed.insert(order_no(n))),
            Some(About::Payment(n)) => drop(paid.insert(order_no(n))),
            _ => {}
        }
    }
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for row in client.query(ORDERS, &[]).await? {
        let (number, state, version): (String, String, i64) = (row.get(0), row.get(1), row.get(2));
        let expected = match (placed.contains(&number), paid.contains(&number)) {
            (true, true) => "PAID",
            (true, false) => "CREATED",
            (false, true) => "AWAITED",
            (false, false) => "none",
        };
        if state != expected || version > 2 {
            wrong.push(format!("order {number} is {state} (version {version}), its events say {expected}"));
        }
        seen.insert(number);
    }
    wrong.extend(placed.difference(&seen).map(|number| format!("order {number} is not there")));
    let mut payments = BTreeSet::new();
    for row in client.query(PAYMENTS, &[]).await? {
        let (number, disposition): (String, String) = (row.get(0), row.get(1));
        let waits = disposition == "orphan" && !placed.contains(&number);
        if disposition != "accepted" && !waits {
            wrong.push(format!("the payment of {number} is {disposition}"));
        }
        if !payments.insert(number.clone()) {
            wrong.push(format!("order {number} has two payments"));
        }
    }
    wrong.extend(
        payments
            .symmetric_difference(&paid)
            .map(|number| format!("payment of {number} without its inbox row, or the reverse")),
    );
    Ok(wrong)
}

/// Writes the inbox down beside the journals: what a failure is explained with once the database is gone.
pub(crate) async fn write_inbox(client: &Client, file: &Path) -> anyhow::Result<()> {
    let mut text = String::new();
    for row in client.query(WHOLE_INBOX, &[]).await? {
        text.push_str(&row.get::<_, String>(0));
        text.push('\n');
    }
    Ok(std::fs::write(file, text)?)
}

/// I9: nothing personal and no password in logs, metrics and answers.
pub(crate) fn leaks(folder: &Path, outputs: &str) -> anyhow::Result<Vec<String>> {
    let mut texts = vec![("metrics or status".to_owned(), outputs.to_owned())];
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            texts.push((path.display().to_string(), String::from_utf8_lossy(&std::fs::read(&path)?).into_owned()));
        }
    }
    let mut found = Vec::new();
    for (place, text) in texts {
        let secrets = crate::ground::secrets().into_iter().chain([CANARY, PHONE]);
        found.extend(
            secrets.filter(|secret| text.contains(*secret)).map(|secret| format!("I9: {secret:?} is in {place}")),
        );
    }
    Ok(found)
}

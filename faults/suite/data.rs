//! E: what producers send.

use anyhow::ensure;
use serde_json::json;

use super::{Fault, TWO, Work, fault};
use crate::events::{About, Event, user_event};
use crate::rig::{PLAIN, Rig, Setup};

const POISONED: Setup = Setup { poison_every: 5, ..PLAIN };
/// A body that is larger than the limit.
const TOO_LARGE: usize = 1_200_000;

pub(super) const FAULTS: &[Fault] = &[
    fault("E1", "a hundred copies of each of 20 events, two replicas", copies).set(TWO),
    fault("E2", "sixty versions of one user, shuffled, two replicas", shuffled).set(TWO),
    fault("E4", "no id at all", nameless),
    fault("E5", "bodies that can't be read", unreadable),
    fault("E5.flood", "every fifth event can't be read", poisoned).set(POISONED),
    fault("E6", "JSON nested 10,000 deep", deep),
    fault("E8", "numbers and texts at the edge", odd),
    fault("E9", "bodies over the limit", oversized),
    fault("E10", "forged attempts and a table full of headers", forged),
    fault("E13", "markup, SQL and terminal sequences in every field", hostile),
];

fn copies(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        let events: Vec<Event> = (0..20).map(|n| user_event(&format!("copy-{n}"), 100 + n, 1)).collect();
        let all: Vec<Event> = (0..100).flat_map(|_| events.clone()).collect();
        let (first, second) = all.split_at(all.len() / 2);
        let (one, other) = tokio::join!(rig.publish(first), rig.publish(second));
        one.and(other)?;
        rig.healed().await?;
        rig.until_count(
            "SELECT coalesce(sum(duplicates), 0)::bigint FROM onceflow.inbox WHERE starts_with(event_id, 'copy-')",
            20 * 99,
        )
        .await
    })
}

fn shuffled(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        // 37 and 61 share no factor: every version from 1 to 60 comes once, in no order.
        let versions = (1..=60).map(|n| (n * 37) % 61);
        let events: Vec<Event> = versions.map(|v| user_event(&format!("version-{v}"), 200, v)).collect();
        rig.publish(&events).await?;
        rig.healed().await?;
        rig.until_count("SELECT version FROM onceflow.org_user WHERE id = 'u0200'", 60).await
    })
}

/// An event that must end as a dead letter.
fn doomed(rig: &mut Rig, id: &str, body: Vec<u8>) -> Event {
    rig.expect.doomed.insert(id.to_owned());
    Event { body, ..user_event(id, 300, 1) }.about(About::Poison)
}

fn nameless(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.expect.nameless = 5;
        // The body is the only identity left, so five bodies are five dead letters, each with a hash for an id.
        let channel = raw(rig).await?;
        for n in 0..5 {
            let body = json!({"directory": "d", "id": format!("x{n}"), "version": "1", "name": "Example"}).to_string();
            let properties = lapin::BasicProperties::default().with_content_type("application/json".into());
            let options = lapin::options::BasicPublishOptions::default();
            channel
                .1
                .basic_publish(
                    "onceflow.in".into(),
                    "org.user.upserted.v1".into(),
                    options,
                    body.as_bytes(),
                    properties,
                )
                .await?
                .await?;
        }
        rig.until_count("SELECT count(*) FROM onceflow.dead_letter", 5).await?;
        rig.healed().await.map(drop)
    })
}

async fn raw(rig: &Rig) -> anyhow::Result<(lapin::Connection, lapin::Channel)> {
    let connection = lapin::Connection::connect(&rig.site.amqp_url, lapin::ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(lapin::options::ConfirmSelectOptions::default()).await?;
    Ok((connection, channel))
}

fn unreadable(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        let bodies: [(&str, &[u8]); 9] = [
            ("empty", b""),
            ("no json", b"\x00\x01\x02"),
            ("half", b"{\"directory\": \"d\""),
            ("no object", b"[1, 2]"),
            ("no utf8", b"{\"directory\": \"\xff\xfe\"}"),
            ("missing", b"{\"directory\": \"d\"}"),
            ("wrong type", b"{\"directory\": \"d\", \"id\": 7, \"version\": \"1\", \"name\": \"n\"}"),
            ("bad version", b"{\"directory\": \"d\", \"id\": \"u\", \"version\": \"x\", \"name\": \"n\"}"),
            ("surrogate", b"{\"directory\": \"d\", \"id\": \"\\ud800\", \"version\": \"1\", \"name\": \"n\"}"),
        ];
        let mut events = Vec::new();
        for (name, body) in bodies {
            events.push(doomed(rig, &format!("bad {name}"), body.to_vec()));
        }
        let mut unknown = doomed(rig, "bad type", b"{}".to_vec());
        unknown.event_type = "org.user.married.v9";
        events.push(unknown);
        let count = i64::try_from(events.len())?;
        rig.publish(&events).await?;
        rig.until_count("SELECT count(*) FROM onceflow.dead_letter", count).await?;
        rig.healed().await?;
        let without =
            rig.count("SELECT count(*) FROM onceflow.dead_letter WHERE reason = '' OR attempts > 1", &[]).await?;
        ensure!(without == 0, "{without} of them without a reason or tried again");
        Ok(())
    })
}

fn poisoned(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.progress(600).await?;
        rig.healed().await.map(drop)
    })
}

fn deep(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        let body = [b"{\"directory\": ".to_vec(), b"[".repeat(10_000), b"]".repeat(10_000), b"}".to_vec()].concat();
        let event = doomed(rig, "deep", body);
        rig.publish(&[event]).await?;
        rig.until_count("SELECT count(*) FROM onceflow.dead_letter", 1).await?;
        rig.healed().await.map(drop)
    })
}

fn odd(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        let body = |id: &str, version: &str, name: &str| {
            format!("{{\"directory\": \"d\", \"id\": \"{id}\", \"version\": {version}, \"name\": \"{name}\"}}")
                .into_bytes()
        };
        let events = [
            doomed(rig, "nul", body("u", "\"1\"", "\\u0000")),
            doomed(rig, "huge", body("u", "1e400", "n")),
            doomed(rig, "digits", body("u", "\"99999999999999999999\"", "n")),
            doomed(rig, "negative", body("u", "\"-1\"", "n")),
        ];
        rig.publish(&events).await?;
        rig.until_count("SELECT count(*) FROM onceflow.dead_letter", 4).await?;
        rig.healed().await.map(drop)
    })
}

fn oversized(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        let mut events = Vec::new();
        for n in 0..10 {
            events.push(doomed(rig, &format!("large-{n}"), vec![b'x'; TOO_LARGE]));
        }
        rig.publish(&events).await?;
        rig.until_count("SELECT count(*) FROM onceflow.dead_letter", 10).await?;
        rig.healed().await.map(drop)
    })
}

/// What looks like a history of failures comes from outside, so it counts for nothing: the event is applied at its first attempt.
fn forged(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        let (connection, channel) = raw(rig).await?;
        let event = user_event("forged", 400, 1);
        let mut properties = event.properties();
        let mut headers = properties.headers().clone().unwrap_or_default();
        headers.insert("onceflow-attempt".into(), lapin::types::AMQPValue::LongLongInt(99));
        for n in 0..40 {
            headers.insert(
                format!("x-filler-{n}").into(),
                lapin::types::AMQPValue::LongString("y".repeat(50).into_bytes().into()),
            );
        }
        properties = properties.with_headers(headers);
        let options = lapin::options::BasicPublishOptions::default();
        channel
            .basic_publish("onceflow.in".into(), event.event_type.into(), options, &event.body, properties)
            .await?
            .await?;
        connection.close(200, "bye".into()).await?;
        rig.until_count("SELECT count(*) FROM onceflow.inbox WHERE event_id = 'forged' AND outcome = 'applied'", 1)
            .await?;
        // It is not in the producer's journal, so the books of users leave it out.
        rig.execute("DELETE FROM onceflow.org_user WHERE id = 'u0400'").await?;
        rig.healed().await.map(drop)
    })
}

fn hostile(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        let texts = [
            "<script>alert(1)</script>",
            "'; DROP TABLE onceflow.org_user; --",
            "line\r\nforged: line",
            "\u{1b}[2Jgone",
            "{{7*7}} %s ${x}",
        ];
        let mut events = Vec::new();
        for (n, text) in (500u64..).zip(texts) {
            let (event_id, id) = (format!("hostile-{n}"), user_event("", n, 1).key);
            let fields = json!({"directory": "d", "id": id, "version": "1", "name": text, "title": text});
            let body = fields.to_string().into_bytes();
            // Control characters have no place in a name; the others are names like any.
            events.push(if text.chars().any(char::is_control) {
                doomed(rig, &event_id, body)
            } else {
                Event { body, ..user_event(&event_id, n, 1) }
            });
            let refused =
                json!({"directory": text, "id": text, "version": text, "name": text}).to_string().into_bytes();
            events.push(doomed(rig, &format!("refused-{n}"), refused));
        }
        rig.publish(&events).await?;
        rig.until_count("SELECT count(*) FROM onceflow.dead_letter", 7).await?;
        rig.healed().await?;
        let log = std::fs::read_to_string(rig.site.folder.join("replica-0.log"))?;
        let broken = log.lines().find(|line| !line.starts_with('{') || line.contains('\u{1b}'));
        ensure!(broken.is_none(), "a log line was broken up: {broken:?}");
        Ok(())
    })
}

impl Event {
    fn about(self, about: About) -> Self {
        Self { about, ..self }
    }
}

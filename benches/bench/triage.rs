//! Dead letters by the hundred thousand: how long an operator waits for groups, pages and a plan, and what a replay of many costs the
//! live traffic beside it.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use reqwest::Client as Http;
use serde_json::{Value, json};

use crate::contender::{Contender, Setup, declare};
use crate::figures::{Measured, Percentiles};
use crate::ground::{Ground, Site, connect};
use crate::measure::{Fleet, Load, Plan};
use crate::producer::Producer;
use crate::sibling::{Book, Sibling};

/// Groups among which the dead letters are spread.
const GROUPS: i64 = 300;
/// Dead letters of one user, that must be applied in their order.
const OF_ONE_USER: u64 = 4;
/// A look is made so often; its figure is the median, the first ones warm up.
const LOOKS: usize = 7;
/// The most that a job takes a second.
const REPLAY_RATE: u64 = 500;
/// Reason code of those that are replayed.
const MENDED: &str = "bench_mended";

/// Conditions of the pages that are looked at, as in the API's query: common ones, rare ones, and some that nothing meets.
const PAGES: [(&str, &str); 13] = [
    ("all", ""),
    ("consumer", "consumer=payment"),
    ("type", "type=sms.requested.v1"),
    ("reason", "reason_code=reason_7"),
    ("tenant", "tenant=t3"),
    ("last week", "since=2026-01-25T00:00:00Z"),
    ("key", "key=k-777"),
    ("frequent text", "text=ledger"),
    ("rare text", "text=order+4321+was"),
    ("text of none", "text=nowhere+to+be+found"),
    ("consumer of none", "consumer=org&type=sms.requested.v1"),
    ("tenant of none", "tenant=nobody"),
    ("attempts of none", "attempts=99"),
];

/// What nobody replays here: of all consumers, over a month.
const FILL: &str = "
    INSERT INTO onceflow.dead_letter (id, tenant, consumer, source, event_id, event_type, subject, partition_key,
        stage, reason, error_chain, content_type, payload, headers, original_exchange, original_routing_key,
        attempts, first_failed_at, last_failed_at, consumer_version, group_id, group_text)
    SELECT gen_random_uuid(), 't' || n % 20, k.consumer, 'bench/past', 'e-' || n, k.type, NULL, 'k-' || n % 100000,
           'handle', 'reason_' || g % 10,
           ARRAY['order ' || n || ' was refused in line ' || g, 'ledger: no entry for ' || md5(n::text)],
           'application/json', convert_to(json_build_object('n', n, 'text', repeat(md5(n::text), 8))::text, 'UTF8'),
           jsonb_build_object('amqp:message_id', 'e-' || n, 'amqp:type', k.type),
           'onceflow.in', k.type, 8, '2026-02-01T00:00:00Z'::timestamptz - n * interval '2 seconds',
           '2026-02-01T00:00:00Z'::timestamptz - n * interval '2 seconds', '1',
           left(encode(sha256(convert_to('group ' || g, 'UTF8')), 'hex'), 16), 'order # was refused in line #'
      FROM (SELECT n, (n * 7919) % $2::bigint AS g FROM generate_series(1, $1::bigint) AS n) AS s
      JOIN (VALUES (0, 'org', 'org.user.upserted.v1'), (1, 'payment', 'payment.callback.received.v1'),
                   (2, 'sms', 'sms.requested.v1')) AS k (nth, consumer, type) ON k.nth = s.g % 3";

/// What is replayed: users of their own, several versions of each.
const MENDED_LETTERS: &str = "
    INSERT INTO onceflow.dead_letter (id, tenant, consumer, source, event_id, event_type, subject, partition_key,
        stage, reason, error_chain, content_type, payload, headers, original_exchange, original_routing_key,
        attempts, first_failed_at, last_failed_at, consumer_version, group_id, group_text)
    SELECT gen_random_uuid(), 'default', 'org', 'bench/producer', e.id, 'org.user.upserted.v1', e.key, e.key,
           'database', $4::text, ARRAY['the sender had it wrong'], 'application/json',
           convert_to(json_build_object('directory', 'bench', 'id', e.name, 'version', e.version::text,
               'name', 'Example Person', 'email', e.name || '@bench.example', 'title', 'Engineer ' || e.version)::text, 'UTF8'),
           jsonb_build_object('amqp:message_id', e.id, 'amqp:type', 'org.user.upserted.v1', 'amqp:content_type', 'application/json',
               'cloudEvents:id', e.id, 'cloudEvents:source', 'bench/producer', 'cloudEvents:type', 'org.user.upserted.v1',
               'cloudEvents:subject', e.key, 'cloudEvents:partitionkey', e.key, 'cloudEvents:specversion', '1.0'),
           'onceflow.in', 'org.user.upserted.v1', 8, '2026-02-01T00:00:00Z'::timestamptz + n * interval '1 millisecond',
           '2026-02-01T00:00:00Z'::timestamptz + n * interval '1 millisecond', '1',
           left(encode(sha256(convert_to($4::text, 'UTF8')), 'hex'), 16), 'the sender had it wrong'
      FROM generate_series(0, $1::bigint - 1) AS n,
           LATERAL (SELECT '00000000-0000-7000-8000-' || lpad(to_hex($2::bigint + n), 12, '0') AS id, n / $3::bigint + 1 AS version,
                           'r-' || n % $3::bigint AS name, 'bench/r-' || n % $3::bigint AS key) AS e";

/// What is measured.
#[derive(Debug, Clone)]
pub(crate) struct Triage {
    /// The live traffic: a steady load of users.
    pub(crate) live: Plan,
    /// Live events before the replay begins.
    pub(crate) before: u64,
    /// Dead letters in all.
    pub(crate) letters: u64,
    /// Those that are replayed.
    pub(crate) replayed: u64,
}

/// What looking at the dead letters and replaying some of them took.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub(crate) struct Looks {
    pub(crate) groups_ms: f64,
    /// By what they were filtered.
    pub(crate) pages_ms: Vec<(&'static str, f64)>,
    pub(crate) plan_ms: f64,
    /// Replayed events a second that came to the sibling.
    pub(crate) replay_rate: f64,
    /// Resident memory above that before the replay, at its highest.
    pub(crate) added_mib: f64,
}

impl Triage {
    /// A replay of `replayed` of so many dead letters, beside `live`; that lasts as long as the replay may.
    pub(crate) fn new(live: impl FnOnce(f64) -> Plan, seconds_before: f64, letters: u64, replayed: u64) -> Self {
        let live = live(seconds_before + replayed as f64 / REPLAY_RATE as f64);
        let Load::Steady { rate, warm_up } = live.load else { unreachable!("the live traffic is a steady load") };
        Self { before: warm_up + (seconds_before * rate as f64) as u64, live, letters, replayed }
    }

    pub(crate) fn setup(&self) -> Setup {
        self.live.setup
    }

    fn users(&self) -> u64 {
        (self.replayed / OF_ONE_USER).max(1)
    }
}

/// Runs it. `None` when this build does not know one of the settings.
pub(crate) async fn measure(ground: &mut Ground, triage: &Triage) -> anyhow::Result<Option<Measured>> {
    let site = ground.site().await?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let setup = Setup { admin_port: port, ..triage.setup() };
    if declare(&setup, &site).await?.is_none() {
        return Ok(None);
    }
    let measured = at(ground, &site, triage, setup).await?;
    ground.clear(&site).await?;
    Ok(Some(measured))
}

async fn at(ground: &Ground, site: &Site, triage: &Triage, setup: Setup) -> anyhow::Result<Measured> {
    fill(site, triage).await?;
    let (live, all) = (triage.live.feed.count, triage.live.feed.count + triage.replayed);
    let sibling = Sibling::start(&site.amqp_url, all).await?;
    let producer = Producer::connect(&site.amqp_url).await?;
    ground.settle().await?;
    let mut fleet = Fleet::start(&Plan { setup, ..triage.live.clone() }, Contender::Onceflow, site)?;
    producer.wait_for_consumers(&[setup.domain.queue()], 1).await?;
    let desk = Desk { http: Http::new(), base: format!("http://127.0.0.1:{}/api/v1", setup.admin_port) };
    let mut looks = desk.look(triage).await?;
    let Load::Steady { rate, warm_up } = triage.live.load else { unreachable!("the live traffic is a steady load") };
    let replay = async {
        tokio::time::sleep(Duration::from_secs_f64(triage.before as f64 / rate as f64)).await;
        let resident = fleet.usage()?.resident;
        desk.replay(triage).await?;
        anyhow::Ok((resident, Instant::now()))
    };
    let (schedule, (resident, begun)) = tokio::try_join!(producer.steady(&triage.live.feed, 0..live, rate), replay)?;
    fleet.wait(&sibling, all).await?;
    let peak = fleet.usage()?.peak;
    producer.close().await?;
    let book = sibling.close().await?;
    check(site, triage, &book).await?;
    fleet.kill().await?;
    let replayed = book.arrived[usize::try_from(live)?..].iter().flatten().max();
    let seconds = replayed.map_or(f64::NAN, |last| last.duration_since(begun).as_secs_f64());
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    looks.replay_rate = triage.replayed as f64 / seconds;
    looks.added_mib = mib(peak) - mib(resident);
    let latency =
        |events: std::ops::Range<u64>| Percentiles::of(events.filter_map(|n| book.waited(n, &schedule)).collect());
    Ok(Measured {
        events: all,
        seconds,
        rate: f64::NAN,
        cpu_us: f64::NAN,
        peak_mib: mib(peak),
        repeated: book.repeated,
        latency: latency(warm_up..triage.before),
        latency_held: latency(triage.before..live),
        looks: Some(looks),
        ..Measured::default()
    })
}

async fn fill(site: &Site, triage: &Triage) -> anyhow::Result<()> {
    let client = connect(&site.database_url).await?;
    let whole = |n: u64| i64::try_from(n);
    let past = whole(triage.letters.saturating_sub(triage.replayed))?;
    client.execute(FILL, &[&past, &GROUPS]).await.context("fill the dead letters")?;
    let (replayed, first, users) = (whole(triage.replayed)?, whole(triage.live.feed.count)?, whole(triage.users())?);
    client.execute(MENDED_LETTERS, &[&replayed, &first, &users, &MENDED]).await.context("fill in what is replayed")?;
    Ok(client.batch_execute("VACUUM ANALYZE onceflow.dead_letter").await?)
}

/// Every live event and every replayed one caused one message, the replayed ones of a user in their order, and all lies in the tables.
async fn check(site: &Site, triage: &Triage, book: &Book) -> anyhow::Result<()> {
    let (live, users) = (usize::try_from(triage.live.feed.count)?, usize::try_from(triage.users())?);
    for n in 0..book.arrived.len() {
        ensure!(book.messages(n) == 1, "event {n} caused {} downstream messages instead of 1", book.messages(n));
    }
    let replayed = &book.arrived[live..];
    for (n, (before, after)) in replayed.iter().zip(replayed.iter().skip(users)).enumerate() {
        ensure!(before <= after, "dead letter {} came before number {n} of the same key", n + users);
    }
    let client = connect(&site.database_url).await?;
    let (sql, rows) = triage.live.feed.rows();
    let found: i64 = client.query_one(sql, &[]).await?.get(0);
    ensure!(
        u64::try_from(found)? == rows + triage.users(),
        "{found} rows of the domain instead of {rows} and those replayed"
    );
    Ok(())
}

/// An operator's client of the API.
struct Desk {
    http: Http,
    base: String,
}

impl Desk {
    async fn look(&self, triage: &Triage) -> anyhow::Result<Looks> {
        let groups_ms = self.took("/dlq/groups").await?;
        let mut pages_ms = Vec::with_capacity(PAGES.len());
        for (name, query) in PAGES {
            pages_ms.push((name, self.took(&format!("/dlq?{query}")).await.with_context(|| format!("page: {name}"))?));
        }
        let begun = Instant::now();
        let plan = self.job(&json!({"dry_run": true})).await?;
        let plan_ms = begun.elapsed().as_secs_f64() * 1e3;
        ensure!(plan["plan"]["count"] == json!(triage.replayed), "the plan takes {}", plan["plan"]["count"]);
        Ok(Looks { groups_ms, pages_ms, plan_ms, ..Looks::default() })
    }

    /// Begins the replay, as fast as a job may go.
    async fn replay(&self, triage: &Triage) -> anyhow::Result<()> {
        let settings = json!({"rate": REPLAY_RATE, "hold_seconds": 0});
        let job = json!({"reason": "the sender is mended", "settings": settings, "expect_count": triage.replayed});
        self.job(&job).await.map(drop)
    }

    async fn job(&self, more: &Value) -> anyhow::Result<Value> {
        let mut job = json!({"action": "replay", "selection": {"filter": {"consumer": "org", "reason_code": MENDED}}});
        if let (Some(job), Some(more)) = (job.as_object_mut(), more.as_object()) {
            job.extend(more.clone());
        }
        let answer = self.http.post(format!("{}/jobs", self.base)).json(&job).send().await?;
        answered(answer).await
    }

    /// Milliseconds of a look, the median of some.
    async fn took(&self, path: &str) -> anyhow::Result<f64> {
        let mut took = Vec::with_capacity(LOOKS);
        for _ in 0..LOOKS {
            let begun = Instant::now();
            answered(self.http.get(format!("{}{path}", self.base)).send().await?).await?;
            took.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        Percentiles::of(took).map(|took| took.p50).context("no look was made")
    }
}

async fn answered(answer: reqwest::Response) -> anyhow::Result<Value> {
    let status = answer.status();
    let text = answer.text().await?;
    ensure!(status.is_success(), "the API answers {status}: {text}");
    serde_json::from_str(&text).context("the API's answer is no JSON")
}

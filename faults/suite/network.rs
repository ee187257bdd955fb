//! N: what the network does between a replica and its servers.

use anyhow::ensure;

use super::{Fault, TWO, Work, fault};
use crate::proxy::{Strike, Weather};
use crate::rig::{PLAIN, Rig, Setup};

/// A dead peer is noticed after four seconds.
const HEARTBEAT: Setup = Setup { settings: "broker.heartbeat = \"2s\"", ..PLAIN };
/// The database is given up six seconds after a statement was sent: the timeout and the service's margin.
const IMPATIENT: Setup = Setup { settings: "database.statement_timeout = \"1s\"", ..PLAIN };
/// How often a broker that flaps may be tried in 12 seconds: each of the six seconds without it costs each of the two links a
/// few tries (after 100, 200, 400 ms), and every channel of theirs one.
const TRIES: u64 = 120;

pub(super) const FAULTS: &[Fault] = &[
    fault("N1.broker", "links to the broker cut ten times", cut_broker),
    fault("N1.database", "links to the database cut ten times", cut_database),
    fault("N1.both", "all links cut ten times, two replicas", cut_both).set(TWO),
    fault("N1.idle", "all links cut with nothing to do", cut_idle),
    fault("N2.broker", "broker frozen both ways for longer than two heartbeats", freeze_broker).set(HEARTBEAT),
    fault("N2.database", "database frozen both ways", freeze_database).set(IMPATIENT),
    fault("N3.acks", "acks and publishes vanish", lose_acks).set(HEARTBEAT),
    fault("N3.deliveries", "deliveries and confirms vanish", lose_deliveries).set(HEARTBEAT),
    fault("N3.answers", "answers of the database vanish", lose_answers).set(IMPATIENT),
    fault("N4", "200 ms more each way, ± 100 ms", slow),
    fault("N5", "database drips 1 KiB a second", drip).set(IMPATIENT),
    fault("N6.reset", "connections reset in mid-frame", reset),
    fault("N6.garbage", "garbage in mid-frame", garbage),
    fault("N7", "broker and database accept and stay silent", silent),
    fault("N8", "broker flaps, 1 s up and 1 s down", flap),
    fault("N9", "broker there, database away", database_away),
    fault("N10", "database there, broker away", broker_away),
    fault("N11", "one of two replicas loses the database with its leases", one_without_database).set(TWO),
];

async fn cuts(rig: &mut Rig, strike: Strike, (broker, database): (bool, bool), times: u32) -> anyhow::Result<()> {
    rig.expect.no_attempts = true;
    for _ in 0..times {
        rig.progress(10).await?;
        rig.strike(strike, broker, database);
        rig.lasts(150).await;
    }
    rig.healed().await.map(drop)
}

fn cut_broker(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        cuts(rig, Strike::Cut, (true, false), 10).await?;
        rig.shows(0, "onceflow_broker_reconnects_total", "").await
    })
}

fn cut_database(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        cuts(rig, Strike::Cut, (false, true), 10).await?;
        rig.shows(0, "onceflow_db_errors_total", "").await
    })
}

fn cut_both(rig: &mut Rig) -> Work<'_> {
    Box::pin(cuts(rig, Strike::Cut, (true, true), 10))
}

fn cut_idle(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.progress(50).await?;
        rig.calm().await?;
        rig.strike(Strike::Cut, true, true);
        rig.lasts(1_000).await;
        rig.producer.resume();
        rig.healed().await.map(drop)
    })
}

/// Weather for a while.
async fn under(
    rig: &mut Rig,
    broker: Option<Weather>,
    database: Option<Weather>,
    milliseconds: u64,
) -> anyhow::Result<()> {
    rig.expect.no_attempts = true;
    rig.progress(50).await?;
    rig.weather(broker, database);
    rig.lasts(milliseconds).await;
    rig.weather(broker.map(|_| Weather::Clear), database.map(|_| Weather::Clear));
    rig.healed().await.map(drop)
}

fn freeze_broker(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.progress(50).await?;
        rig.weather(Some(Weather::Frozen), None);
        rig.until_not_ready(0).await?;
        rig.weather(Some(Weather::Clear), None);
        rig.healed().await?;
        rig.expect.no_attempts = true;
        rig.shows(0, "onceflow_broker_reconnects_total", "").await
    })
}

fn freeze_database(rig: &mut Rig) -> Work<'_> {
    Box::pin(under(rig, None, Some(Weather::Frozen), 8_000))
}

fn lose_acks(rig: &mut Rig) -> Work<'_> {
    Box::pin(under(rig, Some(Weather::FrozenUp), None, 6_000))
}

fn lose_deliveries(rig: &mut Rig) -> Work<'_> {
    Box::pin(under(rig, Some(Weather::FrozenDown), None, 6_000))
}

fn lose_answers(rig: &mut Rig) -> Work<'_> {
    Box::pin(under(rig, None, Some(Weather::FrozenDown), 8_000))
}

fn slow(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        under(rig, Some(Weather::Slow), Some(Weather::Slow), 6_000).await?;
        let reconnects = rig.replica(0)?.metric("onceflow_broker_reconnects_total", "").await.unwrap_or(0.0);
        ensure!(reconnects == 0.0, "latency alone cost {reconnects} connections");
        Ok(())
    })
}

fn drip(rig: &mut Rig) -> Work<'_> {
    Box::pin(under(rig, None, Some(Weather::Drip(1024)), 8_000))
}

fn reset(rig: &mut Rig) -> Work<'_> {
    Box::pin(cuts(rig, Strike::Reset, (true, true), 6))
}

fn garbage(rig: &mut Rig) -> Work<'_> {
    Box::pin(cuts(rig, Strike::Garbage, (true, true), 6))
}

fn silent(rig: &mut Rig) -> Work<'_> {
    Box::pin(under(rig, Some(Weather::Silent), Some(Weather::Silent), 7_000))
}

fn flap(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.expect.no_attempts = true;
        let before = rig.doors[0].broker.connections();
        for _ in 0..6 {
            rig.weather(Some(Weather::Closed), None);
            rig.lasts(1_000).await;
            rig.weather(Some(Weather::Clear), None);
            rig.lasts(1_000).await;
        }
        let tries = rig.doors[0].broker.connections() - before;
        ensure!(tries <= TRIES, "{tries} connections in 12 s");
        rig.healed().await.map(drop)
    })
}

fn database_away(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.expect.no_attempts = true;
        rig.progress(50).await?;
        rig.weather(None, Some(Weather::Closed));
        rig.until_not_ready(0).await?;
        rig.lasts(4_000).await;
        rig.weather(None, Some(Weather::Clear));
        rig.healed().await?;
        rig.shows(0, "onceflow_db_errors_total", "").await
    })
}

fn broker_away(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.expect.no_attempts = true;
        rig.progress(50).await?;
        rig.weather(Some(Weather::Closed), None);
        rig.until_not_ready(0).await?;
        // Others go on writing outbox rows, several for each key.
        let rows = "INSERT INTO onceflow.outbox (aggregatetype, aggregateid, type, payload)
            SELECT 'shop', (n % 10)::text, 'shop.opened.v1', json_build_object('version', n::text) FROM generate_series(1, 200) n";
        rig.execute(rows).await?;
        rig.expect.by_hand = 200;
        rig.lasts(3_000).await;
        ensure!(rig.count("SELECT count(*) FROM onceflow.outbox", &[]).await? >= 200, "rows left without a broker");
        rig.weather(Some(Weather::Clear), None);
        rig.healed().await.map(drop)
    })
}

fn one_without_database(rig: &mut Rig) -> Work<'_> {
    Box::pin(async move {
        rig.expect.no_attempts = true;
        rig.progress(50).await?;
        rig.doors[0].database.set(Weather::Closed);
        rig.lasts(7_000).await;
        // The other one works meanwhile; what the first has in hand waits with it.
        rig.progress(50).await?;
        rig.doors[0].database.set(Weather::Clear);
        rig.healed().await.map(drop)
    })
}

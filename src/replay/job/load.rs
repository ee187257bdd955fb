//! What this process knows of how busy its consumers are: what waits for them at the broker, and how long their deliveries take.
//!
//! Looking changes nothing (I-9): queues are only asked for their length, durations are counts that are read. What can't be known is
//! absent: the broker may be away, and a consumer whose deliveries go to another replica takes no time here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::usual::{Tail, Usual};
use crate::broker::{Link, queue_depths};
use crate::db::Pool;
use crate::runtime::Names;
use crate::runtime::layout::{self, Unavailable};
use crate::telemetry::{self, Durations, Recent};

/// How often durations are read.
const OBSERVE_EVERY: Duration = Duration::from_secs(1);
/// Beside the replays of this time something may have been delivered that [`Recent`] remembers.
const QUIET_AFTER: Duration = Recent::WINDOW.saturating_add(OBSERVE_EVERY);
/// How long what was seen at the broker is as good as new.
const SEEN_FOR: Duration = Duration::from_secs(1);
/// How long nobody looks again after a look that failed.
const AWAY_FOR: Duration = Duration::from_secs(5);
/// Longest look: a job must not stand still for it.
const LOOK_WITHIN: Duration = Duration::from_secs(1);

/// How busy a consumer is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Messages that wait in its queues, without those that are being worked on.
    pub backlog: Option<u64>,
    /// Within this time 95 of 100 of its last deliveries that are no replays were settled here.
    pub p95: Option<Duration>,
}

/// How long the deliveries of a consumer take here that are no replays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Live {
    pub(super) consumer: &'static str,
    /// Those of the last seconds.
    pub(super) now: Tail,
    /// Within this time 95 of 100 of as few of the last were settled as tell it.
    pub(super) lately: Duration,
    /// What is usual where nothing is replayed.
    pub(super) usual: Tail,
}

/// Where to look.
#[derive(Debug, Clone)]
pub struct Outlook {
    /// The database, which knows how many queues a consumer has.
    pub pool: Pool,
    /// The broker.
    pub link: Arc<Link>,
    /// Names of the queues.
    pub names: Names,
    /// The consumers of this build.
    pub consumers: Vec<&'static str>,
}

/// The loads of all consumers, as last seen. Without an outlook nothing is known.
#[derive(Debug, Default)]
pub struct Loads {
    outlook: Option<Outlook>,
    seen: Mutex<Seen>,
    /// One look at a time; who waits for it finds its result.
    looking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Seen {
    backlogs: BTreeMap<String, u64>,
    /// Until when nobody need look again.
    good_until: Option<Instant>,
    watched: BTreeMap<&'static str, Watched>,
    quiet: Quiet,
}

/// The deliveries of a consumer.
#[derive(Debug, Default)]
struct Watched {
    recent: Recent,
    usual: Usual,
}

/// Since when nothing was replayed here.
#[derive(Debug, Default)]
struct Quiet {
    replays: u64,
    since: Duration,
}

impl Quiet {
    /// Whether nothing of what is remembered of deliveries was beside a replay.
    fn observe(&mut self, now: Duration, replays: u64) -> bool {
        if self.replays != replays {
            *self = Self { replays, since: now };
        }
        self.replays == 0 || now.saturating_sub(self.since) > QUIET_AFTER
    }
}

impl Watched {
    fn observe(&mut self, (now, quiet): (Duration, bool), counts: Durations) {
        self.recent.observe(now, counts);
        if let Some(look) = tail(&self.recent) {
            self.usual.learn(look, quiet);
        }
    }

    fn live(&self, consumer: &'static str) -> Option<Live> {
        let (now, lately) = (tail(&self.recent)?, self.recent.p95_lately()?);
        Some(Live { consumer, now, lately, usual: self.usual.tail()? })
    }
}

fn tail(recent: &Recent) -> Option<Tail> {
    Some(Tail { p95: recent.p95()?, p99: recent.p99()? })
}

impl Loads {
    /// Loads that are looked up there.
    pub fn new(outlook: Outlook) -> Self {
        Self { outlook: Some(outlook), ..Self::default() }
    }

    /// Reads durations until `stop`.
    pub async fn follow(&self, stop: &CancellationToken) {
        let Some(outlook) = &self.outlook else { return };
        let (started, mut tick) = (Instant::now(), tokio::time::interval(OBSERVE_EVERY));
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            let mut seen = self.lock();
            let now = started.elapsed();
            let quiet = seen.quiet.observe(now, telemetry::replays_since_start());
            for consumer in &outlook.consumers {
                if let Some(counts) = telemetry::durations_since_start(consumer) {
                    seen.watched.entry(consumer).or_default().observe((now, quiet), counts);
                }
            }
        }
    }

    /// Asks the broker how much waits, unless somebody has just done so. Never takes long; a failure means that it isn't known.
    pub async fn look(&self) {
        let Some(outlook) = &self.outlook else { return };
        let _alone = self.looking.lock().await;
        if self.lock().good_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        let found = match tokio::time::timeout(LOOK_WITHIN, backlogs(outlook)).await {
            Ok(Ok(found)) => Some(found),
            Ok(Err(error)) => {
                debug!(%error, "how much waits at the broker is not known: {error}");
                None
            }
            Err(_) => None,
        };
        let mut seen = self.lock();
        seen.good_until = Some(Instant::now() + if found.is_some() { SEEN_FOR } else { AWAY_FOR });
        seen.backlogs = found.unwrap_or_default();
    }

    /// The load of one consumer, as last seen.
    pub fn of(&self, consumer: &str) -> Load {
        let seen = self.lock();
        Load {
            backlog: seen.backlogs.get(consumer).copied(),
            p95: seen.watched.get(consumer).and_then(|watched| watched.recent.p95()),
        }
    }

    /// Of these consumers, the backlog of the one that most waits for.
    pub(super) fn longest_backlog<'a>(&self, consumers: impl Iterator<Item = &'a str>) -> Option<u64> {
        let seen = self.lock();
        consumers.filter_map(|consumer| seen.backlogs.get(consumer).copied()).max()
    }

    /// How long live deliveries take of each consumer that has enough of them to tell.
    pub(super) fn live(&self) -> Vec<Live> {
        self.lock().watched.iter().filter_map(|(consumer, watched)| watched.live(consumer)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        // Every change of it is one assignment: a panic leaves nothing half done.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Messages that wait for each consumer: in its plain queue, where replays go too, and in its partitions.
async fn backlogs(outlook: &Outlook) -> Result<BTreeMap<String, u64>, Unavailable> {
    let tx = outlook.pool.begin().await?;
    let layouts = layout::all(&tx).await;
    tx.rollback().await;
    let layouts = layouts?;
    let (mut owners, mut queues) = (Vec::new(), Vec::new());
    for consumer in &outlook.consumers {
        let partitions = layouts.get(*consumer).map_or(0..0, |layout| layout.partition_numbers());
        let partitions = partitions.map(|number| outlook.names.partition(consumer, number));
        for queue in std::iter::once(outlook.names.queue(consumer)).chain(partitions) {
            owners.push(*consumer);
            queues.push(queue);
        }
    }
    let mut backlogs = BTreeMap::new();
    for (owner, depth) in owners.into_iter().zip(queue_depths(&outlook.link, &queues).await?) {
        *backlogs.entry(owner.to_owned()).or_default() += u64::from(depth);
    }
    Ok(backlogs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_quiet_again_when_nothing_beside_the_last_replay_is_remembered() {
        let (mut quiet, at) = (Quiet::default(), Duration::from_secs);
        assert!(quiet.observe(at(1), 0), "nothing was ever replayed");
        assert!(!quiet.observe(at(2), 7));
        assert!(!quiet.observe(at(18), 7));
        assert!(quiet.observe(at(19), 7));
        assert!(!quiet.observe(at(20), 8));
    }

    #[test]
    fn of_several_consumers_the_longest_backlog_counts_and_what_is_unknown_does_not() {
        let loads = Loads::default();
        assert_eq!(loads.longest_backlog(["a", "b"].into_iter()), None);
        loads.lock().backlogs = BTreeMap::from([("a".to_owned(), 7), ("b".to_owned(), 3)]);
        assert_eq!(loads.longest_backlog(["a", "b", "c"].into_iter()), Some(7));
    }
}

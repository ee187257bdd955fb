//! The rows at hand, and where the next ones come from: from memory as long as that has everything, else from the table.

use foldhash::{HashMap, HashMapExt as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::floor::Floor;
use super::handover::Handover;
use super::lease::Grant;
use super::lineup::{AtHand, Lineup};
use super::row::Pending;
use super::store::{self, Found, Look, Place};
use super::sweep::Sweep;
use crate::db::{DbError, Pool};

/// Most rows at hand; those that are handed over wait while there are more.
const LINEUP_ROWS: usize = 2_048;
/// Most bytes at hand, what one look or one batch brings aside; with more of them nothing is fetched.
const LINEUP_BYTES: usize = 2 * 1024 * 1024;
/// Rows per partition of one look at the table.
const LOOK_ROWS: usize = 128;
/// Bytes of them, one row aside: rows may be large.
const LOOK_BYTES: usize = 512 * 1024;
/// With no more numbers to go, what is committed from then on is kept in memory.
const NEAR: i64 = 4_096;
/// With so many keys at hand the table isn't looked at for more.
const ENOUGH_KEYS: usize = 256;
/// A key with so much at hand, by either count, is set aside: its further rows stay in the table, so that they hide nobody
/// else's. Never between a take and the look it asks for, which may show rows that come before those taken.
const CROWD: AtHand = AtHand { rows: LOOK_ROWS, bytes: LOOK_BYTES };
/// With so little left at hand, by both counts, more of its rows are fetched.
const CROWD_IS_GONE: AtHand = AtHand { rows: LOOK_ROWS / 4, bytes: LOOK_BYTES / 4 };
/// How soon the table is looked at again after rows were found there, and at the latest.
const LOOK_SOON: Duration = Duration::from_millis(5);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long the rows of a key wait after the broker refused one of them.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// Most keys that may wait at once; past it the relay waits as a whole.
const MAX_BLOCKED_KEYS: usize = 10_000;

/// Brings the rows of the granted partitions, each key's in order.
pub(super) struct Supply {
    pool: Pool,
    handover: Handover,
    sweep: Sweep,
    grant: Grant,
    lineup: Lineup,
    source: Source,
    look: LookTimer,
    floor: Floor,
    /// Keys of which a row was refused, until they are tried again: their rows are only in the table.
    blocked: HashMap<Arc<str>, Instant>,
    /// Hot keys with their partition: rows beyond those at hand are only in the table.
    aside: HashMap<Arc<str>, i16>,
    /// Keys with their partition that are to be set aside once all that may come before their rows is at hand.
    crowds: HashMap<Arc<str>, i16>,
}

/// Where the next rows come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// Only the table has everything.
    Table,
    /// What was committed since a moment waits in memory; what was committed before is read from the table, and has numbers up
    /// to this one.
    Closing { until: i64 },
    /// Everything else that is in the table is at hand: rows come from memory, and the table is looked at now and then.
    Memory,
}

/// When the table is looked at while rows come from memory.
#[derive(Debug)]
struct LookTimer {
    at: Instant,
    pause: Duration,
}

impl Supply {
    pub(super) fn new(pool: Pool, handover: Handover, sweep: Sweep, grant: Grant) -> Self {
        Self {
            pool,
            handover,
            sweep,
            grant,
            lineup: Lineup::default(),
            source: Source::Table,
            look: LookTimer::now(),
            floor: Floor::default(),
            blocked: HashMap::new(),
            aside: HashMap::new(),
            crowds: HashMap::new(),
        }
    }

    pub(super) fn grant(&self) -> &Grant {
        &self.grant
    }

    /// From now on this grant counts. Returns whether its partitions or epochs are others than before.
    pub(super) fn adopt(&mut self, grant: Grant) -> bool {
        let changed = grant.number != self.grant.number;
        self.grant = grant;
        if changed {
            self.start_over();
            self.floor.forget();
            self.handover.set_held(self.grant.partitions());
        }
        changed
    }

    /// Waits until there may be more.
    pub(super) async fn more(&self) {
        tokio::select! {
            () = self.handover.something() => {}
            () = tokio::time::sleep_until(self.look.at.into()) => {}
        }
    }

    /// Nothing may be published for now.
    pub(super) fn look_later(&mut self) {
        self.look.later();
    }

    /// The next rows to publish, one of each key; none when there is nothing to do. Waits while too many confirmed rows wait to
    /// be removed.
    ///
    /// # Errors
    /// The table can't be read.
    pub(super) async fn next_wave(&mut self, most_rows: usize, most_bytes: usize) -> Result<Vec<Pending>, DbError> {
        let now = Instant::now();
        self.blocked.retain(|_, until| *until > now);
        if self.blocked.len() >= MAX_BLOCKED_KEYS {
            self.look.later();
            return Ok(Vec::new());
        }
        match self.source {
            Source::Memory => self.fill_from_memory().await?,
            Source::Table | Source::Closing { .. } => self.fill_from_table().await?,
        }
        self.fetch_more_of_hot_keys().await?;
        Ok(self.lineup.wave(most_rows, most_bytes))
    }

    /// The rows of these keys wait in the table.
    pub(super) fn block(&mut self, keys: Vec<Arc<str>>) {
        if keys.is_empty() {
            return;
        }
        let until = Instant::now() + REFUSED_PAUSE;
        self.blocked.extend(keys.into_iter().map(|key| (key, until)));
        self.start_over();
    }

    /// After trouble with the database: it may be another one by now.
    pub(super) fn trust_nothing(&mut self) {
        self.start_over();
        self.floor.forget();
        self.tell_floors();
    }

    /// Forgets the rows at hand: all of them are in the table.
    pub(super) fn start_over(&mut self) {
        self.handover.shut();
        self.lineup.clear();
        self.aside.clear();
        self.crowds.clear();
        self.source = Source::Table;
        self.look = LookTimer::now();
    }

    async fn fill_from_table(&mut self) -> Result<(), DbError> {
        if self.lineup.keys() >= ENOUGH_KEYS || self.lineup.bytes() >= LINEUP_BYTES {
            return Ok(());
        }
        let until = match self.source {
            Source::Closing { until } => until,
            Source::Table | Source::Memory => {
                let seen = self.look_at_table(None).await?;
                if !self.blocked.is_empty() || !seen.is_near(self.last_seq().await?) {
                    return Ok(());
                }
                // What is committed from now on is handed over; what was committed before has its numbers already.
                self.handover.open();
                self.last_seq().await?
            }
        };
        self.source = Source::Closing { until };
        let seen = self.look_at_table(Some(until)).await?;
        if !self.handover.is_open() {
            self.source = Source::Table;
        } else if seen.everything {
            self.source = Source::Memory;
        }
        Ok(())
    }

    async fn fill_from_memory(&mut self) -> Result<(), DbError> {
        let room = LINEUP_ROWS.saturating_sub(self.lineup.len());
        if room == 0 || self.lineup.bytes() >= LINEUP_BYTES {
            return Ok(());
        }
        self.sweep.room().await;
        let handed = self.handover.take(room);
        if !handed.complete {
            self.start_over();
            return self.fill_from_table().await;
        }
        self.take_handed(handed.rows);
        let look = handed.look || self.look.is_due() && self.others_have_rows().await?;
        // Ours too, although they come from memory: one whose COMMIT is not answered yet may stand before one of others that
        // this look shows, whose transaction began when ours had freed the locks. What is handed over later is known then.
        if look && !self.look_at_table(None).await?.everything {
            self.start_over();
        }
        self.set_crowds_aside();
        Ok(())
    }

    async fn others_have_rows(&mut self) -> Result<bool, DbError> {
        self.raise_floor().await?;
        let partitions = self.grant.partitions();
        let floors = self.floor.of(&partitions);
        let tx = self.pool.begin().await?;
        let others = store::others_have_rows(&tx, (&partitions, &floors), self.handover.writer()).await?;
        tx.commit_repeatable().await?;
        self.look.found(usize::from(others));
        Ok(others)
    }

    async fn last_seq(&self) -> Result<i64, DbError> {
        let tx = self.pool.begin().await?;
        let last = store::last_seq(&tx).await?;
        tx.commit_repeatable().await?;
        Ok(last.seq)
    }

    async fn raise_floor(&mut self) -> Result<(), DbError> {
        if !self.floor.is_due(Instant::now()) {
            return Ok(());
        }
        let partitions = self.grant.partitions();
        let tx = self.pool.begin().await?;
        // In this order: who holds no lock by then has ended, or takes a higher number.
        let last = store::last_seq(&tx).await?;
        let writing = store::writing(&tx).await?;
        if let Some(settled) = self.floor.seen(Instant::now(), last, writing) {
            let lowest = store::lowest(&tx, (&partitions, &self.floor.of(&partitions))).await?;
            self.floor.raise(settled, &lowest);
        }
        if self.floor.is_to_be_saved(Instant::now()) {
            store::save_floors(&tx, (&partitions, &self.floor.of(&partitions)), &self.grant.holder).await?;
        }
        tx.commit_repeatable().await?;
        self.tell_floors();
        Ok(())
    }

    fn tell_floors(&self) {
        self.handover.set_floors(self.floor.of(&self.grant.partitions()));
    }

    fn take_handed(&mut self, rows: Vec<Pending>) {
        for row in rows {
            if self.grant.holds(row.partition) && !self.sweep.published(row.seq) {
                self.line_up(row);
            }
        }
    }

    fn line_up(&mut self, row: Pending) {
        if self.aside.contains_key(&row.key) {
            return;
        }
        let (key, partition) = (row.key.clone(), row.partition);
        let at_hand = self.lineup.add(row);
        if at_hand.rows >= CROWD.rows || at_hand.bytes >= CROWD.bytes {
            self.crowds.insert(key, partition);
        }
    }

    fn set_crowds_aside(&mut self) {
        for (key, partition) in self.crowds.drain() {
            self.lineup.cut(&key, CROWD);
            self.aside.insert(key, partition);
        }
    }

    /// Brings what is not at hand yet, of the rows with numbers up to `until`.
    async fn look_at_table(&mut self, until: Option<i64>) -> Result<Seen, DbError> {
        let places: Vec<_> = self.grant.partitions().into_iter().map(|partition| (partition, None)).collect();
        let without: Vec<Arc<str>> = self.blocked.keys().chain(self.aside.keys()).cloned().collect();
        let Found { rows, everything } = self.read(&places, until, &without).await?;
        self.look.found(rows.len());
        let lowest = rows.iter().map(|row| row.seq).min();
        for row in rows {
            self.line_up(row);
        }
        self.set_crowds_aside();
        Ok(Seen { everything, lowest })
    }

    async fn fetch_more_of_hot_keys(&mut self) -> Result<(), DbError> {
        let few = |(key, _): &(&Arc<str>, &i16)| {
            let at_hand = self.lineup.at_hand(key);
            at_hand.rows < CROWD_IS_GONE.rows && at_hand.bytes < CROWD_IS_GONE.bytes
        };
        let places: Vec<_> =
            self.aside.iter().filter(few).map(|(key, partition)| (*partition, Some(key.clone()))).collect();
        for place in places {
            if self.lineup.bytes() >= LINEUP_BYTES {
                // In turn: the keys that are left get their rows once these have gone.
                return Ok(());
            }
            let Found { rows, everything } = self.read(std::slice::from_ref(&place), None, &[]).await?;
            if let Some(key) = place.1.filter(|_| everything) {
                // What is committed after this look is handed over again.
                self.aside.remove(&key);
            }
            for row in rows {
                self.lineup.add(row);
            }
        }
        Ok(())
    }

    async fn read(&mut self, places: &[Place], until: Option<i64>, without: &[Arc<str>]) -> Result<Found, DbError> {
        self.raise_floor().await?;
        self.sweep.room().await;
        let partitions: Vec<i16> = places.iter().map(|(partition, _)| *partition).collect();
        let floors = self.floor.of(&partitions);
        let known: Vec<i64> = self.lineup.seqs().chain(self.sweep.known()).collect();
        let without_keys: Vec<&str> = without.iter().map(|key| &**key).collect();
        let tx = self.pool.begin().await?;
        let (limit, bytes) = (LOOK_ROWS, LOOK_BYTES);
        let look = Look { places, floors: &floors, until, limit, bytes, without_keys: &without_keys, known: &known };
        let found = store::ready(&tx, look).await?;
        tx.commit_repeatable().await?;
        Ok(found)
    }
}

/// What a look at the table has shown.
struct Seen {
    /// Nothing is left that is not at hand, keys aside aside.
    everything: bool,
    /// The lowest number of the rows found.
    lowest: Option<i64>,
}

impl Seen {
    /// Whether what is left fits in memory, so that it is worth closing the gap to what is being committed.
    fn is_near(&self, last: i64) -> bool {
        self.everything || self.lowest.is_none_or(|lowest| last - lowest <= NEAR)
    }
}

impl LookTimer {
    fn now() -> Self {
        Self { at: Instant::now(), pause: LOOK_SOON }
    }

    fn is_due(&self) -> bool {
        Instant::now() >= self.at
    }

    /// More may come where some came; otherwise ever more rarely.
    fn found(&mut self, rows: usize) {
        self.pause = if rows > 0 { LOOK_SOON } else { (self.pause * 2).min(LOOK_EVERY) };
        self.at = Instant::now() + self.pause;
    }

    fn later(&mut self) {
        self.at = Instant::now() + LOOK_EVERY;
    }
}

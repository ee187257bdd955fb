//! What waits for a consumer's lanes, and which lane takes what.
//!
//! A lane takes everything that may go together: no key that another lane works on, no event twice, at most one batch. So the
//! events of one key are handled one after the other, in the order the queue gave them (I-5), by whichever lane is free.
//!
//! A second lane halves the batches of the first, which costs more than it gains, so it joins only when it is needed: when a
//! full batch waits, or when no batch has ended for [`PATIENCE`], because the database is slow or an event holds its lane up. Or when
//! an event that is no replay would wait for nothing but replays: then it takes those that are none, for live traffic goes first.
//! Replicas that share a consumer's queues share its lanes for full batches too: the database would only do more at once, not more.
//!
//! The backlog outlives subscriptions: what was delivered on a channel that died waits in front of its second delivery on the
//! next one, and is dropped unhandled, so the order per key holds over reconnects too.

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, Hash};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use foldhash::fast::FixedState;
use foldhash::{HashSet, HashSetExt as _};
use tokio::sync::Notify;

use super::job::Job;

/// Without the end of any batch for so long, another lane joins.
const PATIENCE: Duration = Duration::from_millis(100);

/// Jobs on their way to the lanes of one consumer. What waits here is unacknowledged: the prefetch bounds it.
#[derive(Debug, Clone)]
pub(super) struct Backlog {
    state: Arc<Mutex<State<Job>>>,
    /// Rung when a lane may have something to do.
    changed: Arc<Notify>,
}

/// Jobs that are handled together; their keys are free again when this is dropped.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) jobs: Vec<Job>,
    keys: HashSet<u64>,
    live: bool,
    backlog: Backlog,
}

impl Backlog {
    /// For batches of at most `most` jobs.
    pub(super) fn new(most: usize) -> Self {
        Self { state: Arc::new(Mutex::new(State::new(most))), changed: Arc::default() }
    }

    /// So many lanes may be at work because full batches wait; 1 at least.
    pub(super) fn share(&self, lanes: usize) {
        self.state().eager = lanes.max(1);
    }

    /// Adds a job behind all others. Those of a subscription that has ended come again, and are dropped here if many wait.
    pub(super) fn add(&self, job: Job) {
        let (key, identity) = (hash(job.ordering_key()), job.identity().map(hash));
        let (bytes, live) = (job.delivery.message.body.len(), !job.is_replay());
        let mut state = self.state();
        if state.waiting.len() >= state.crowd {
            state.waiting.retain(|waiting| waiting.job.delivery.is_current());
            state.crowd = (state.waiting.len() * 2).max(CROWD);
        }
        if state.add(Waiting { job, key, identity, bytes, live }) {
            self.changed.notify_one();
        }
    }

    /// No further jobs come: lanes end when nothing waits.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_waiters();
    }

    /// The next batch for a lane; `None` when there will be none.
    pub(super) async fn next(&self) -> Option<Batch> {
        loop {
            let changed = self.changed.notified();
            let next = self.state().next(Instant::now());
            match next {
                Next::Batch { jobs, keys, live, more } => {
                    if more {
                        self.changed.notify_one();
                    }
                    return Some(Batch { jobs, keys, live, backlog: self.clone() });
                }
                Next::End => return None,
                Next::Wait => changed.await,
                Next::WaitUntil(time) => {
                    // Whichever comes first, there is something to look at.
                    let _either = tokio::time::timeout_at(time.into(), changed).await;
                    self.state().watched = false;
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State<Job>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let mut state = self.backlog.state();
        state.ended((&self.keys, self.live), Instant::now());
        if state.closed {
            self.backlog.changed.notify_waiters();
        }
    }
}

/// Most bytes of a batch, one event aside: each is in memory several times over while it is applied.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// With so many waiting, those of ended subscriptions are looked for.
const CROWD: usize = 4_096;

#[derive(Debug)]
struct Waiting<J> {
    job: J,
    key: u64,
    identity: Option<u64>,
    bytes: usize,
    /// It is no replay.
    live: bool,
}

#[derive(Debug)]
struct State<J> {
    waiting: VecDeque<Waiting<J>>,
    /// Keys that lanes work on.
    busy: HashSet<u64>,
    /// Lanes at work.
    working: usize,
    /// Those of them with something else than replays.
    live: usize,
    /// When a batch ended, or the first lane began.
    progress: Instant,
    /// A free lane looks again when its patience ends.
    watched: bool,
    closed: bool,
    most: usize,
    /// Lanes that full batches may keep at work.
    eager: usize,
    crowd: usize,
}

#[derive(Debug)]
enum Next<J> {
    Batch {
        jobs: Vec<J>,
        keys: HashSet<u64>,
        /// Not all of them are replays.
        live: bool,
        /// Others wait.
        more: bool,
    },
    Wait,
    WaitUntil(Instant),
    End,
}

/// What goes together.
#[derive(Debug)]
struct Gathered<J> {
    jobs: Vec<J>,
    keys: HashSet<u64>,
    live: bool,
}

impl<J> State<J> {
    fn new(most: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            busy: HashSet::new(),
            working: 0,
            live: 0,
            progress: Instant::now(),
            watched: false,
            closed: false,
            most,
            eager: usize::MAX,
            crowd: CROWD,
        }
    }

    /// Returns whether a free lane should look.
    fn add(&mut self, waiting: Waiting<J>) -> bool {
        let (could_go, live) = (!self.busy.contains(&waiting.key), waiting.live);
        self.waiting.push_back(waiting);
        could_go && (self.working == 0 || !self.watched || self.is_full() || (live && self.only_replays()))
    }

    fn next(&mut self, now: Instant) -> Next<J> {
        if self.waiting.is_empty() {
            return if self.closed { Next::End } else { Next::Wait };
        }
        let patient_until = self.progress + PATIENCE;
        let is_needed = self.working == 0 || self.is_full() || now >= patient_until;
        let passes = !is_needed && self.only_replays();
        let gathered = (is_needed || passes).then(|| self.gather(passes));
        let Some(Gathered { jobs, keys, live }) = gathered.filter(|gathered| !gathered.jobs.is_empty()) else {
            if is_needed {
                return Next::Wait;
            }
            self.watched = true;
            return Next::WaitUntil(patient_until);
        };
        if self.working == 0 {
            self.progress = now;
        }
        self.working += 1;
        self.live += usize::from(live);
        self.busy.extend(&keys);
        Next::Batch { jobs, keys, live, more: !self.waiting.is_empty() }
    }

    /// Whether lanes are at work, and all of them with replays.
    fn only_replays(&self) -> bool {
        self.working > 0 && self.live == 0
    }

    /// Whether a full batch waits that another lane may take.
    fn is_full(&self) -> bool {
        self.waiting.len() >= self.most && self.working < self.eager
    }

    /// What may go together, in order. A second delivery of an event that is in the batch waits, and its key with it: whether
    /// it is a duplicate depends on how the first ends. `passes` leaves replays where they are, and what is behind them of their keys.
    fn gather(&mut self, passes: bool) -> Gathered<J> {
        let room = self.most.min(self.waiting.len());
        let (mut jobs, mut keys, mut live) = (Vec::with_capacity(room), HashSet::with_capacity(room), false);
        let (mut identities, mut held_up) = (HashSet::with_capacity(room), HashSet::new());
        let (mut bytes, mut left) = (0, Vec::new());
        while jobs.len() < self.most && bytes < BATCH_BYTES {
            let Some(next) = self.waiting.pop_front() else { break };
            // Two events whose hashes agree by chance don't go together either, which harms nobody.
            let can_go = (next.live || !passes)
                && !self.busy.contains(&next.key)
                && !held_up.contains(&next.key)
                && next.identity.is_none_or(|identity| identities.insert(identity));
            if can_go {
                keys.insert(next.key);
                bytes += next.bytes;
                live |= next.live;
                jobs.push(next.job);
            } else {
                held_up.insert(next.key);
                left.push(next);
            }
        }
        for waiting in left.into_iter().rev() {
            self.waiting.push_front(waiting);
        }
        Gathered { jobs, keys, live }
    }

    fn ended(&mut self, (keys, live): (&HashSet<u64>, bool), now: Instant) {
        for key in keys {
            self.busy.remove(key);
        }
        self.working -= 1;
        self.live -= usize::from(live);
        self.progress = now;
    }
}

fn hash(value: impl Hash) -> u64 {
    FixedState::default().hash_one(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Job number, key and identity.
    fn state(most: usize, jobs: &[(u64, u64)]) -> State<u64> {
        let mut state = State::new(most);
        for (number, (key, identity)) in (0..).zip(jobs) {
            state.add(Waiting { job: number, key: *key, identity: Some(*identity), bytes: 300, live: true });
        }
        state
    }

    fn batch(next: Next<u64>) -> (Vec<u64>, HashSet<u64>) {
        match next {
            Next::Batch { jobs, keys, .. } => (jobs, keys),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_waiting_goes_together_up_to_a_batch() {
        let mut state = state(3, &[(1, 1), (2, 2), (1, 3), (4, 4)]);
        assert_eq!(batch(state.next(Instant::now())).0, [0, 1, 2]);
    }

    #[test]
    fn a_key_that_is_in_work_waits_and_holds_nobody_else_up_i5_i6() {
        let mut state = state(1, &[(1, 1), (1, 2), (2, 3)]);
        let (first, keys) = batch(state.next(Instant::now()));
        assert_eq!(first, [0]);
        assert_eq!(batch(state.next(Instant::now())).0, [2]);
        assert!(matches!(state.next(Instant::now()), Next::Wait));
        state.ended((&keys, true), Instant::now());
        assert_eq!(batch(state.next(Instant::now())).0, [1]);
    }

    #[test]
    fn a_second_delivery_waits_for_the_first_and_its_key_with_it_i2() {
        let mut state = state(9, &[(1, 7), (2, 8), (1, 7), (1, 9), (2, 10)]);
        let (first, keys) = batch(state.next(Instant::now()));
        assert_eq!(first, [0, 1, 4]);
        state.ended((&keys, true), Instant::now());
        assert_eq!(batch(state.next(Instant::now())).0, [2, 3]);
    }

    #[test]
    fn a_second_lane_joins_when_a_full_batch_waits_or_nothing_has_ended_for_a_while() {
        let mut state = state(2, &[(1, 1), (2, 2), (3, 3)]);
        let now = Instant::now();
        assert_eq!(batch(state.next(now)).0, [0, 1]);
        let until = match state.next(now) {
            Next::WaitUntil(until) => until,
            other => panic!("{other:?}"),
        };
        state.add(Waiting { job: 3, key: 4, identity: None, bytes: 300, live: true });
        assert_eq!(batch(state.next(now)).0, [2, 3], "a full batch");
        state.add(Waiting { job: 4, key: 5, identity: None, bytes: 300, live: true });
        assert!(matches!(state.next(now), Next::WaitUntil(_)));
        assert_eq!(batch(state.next(until)).0, [4], "out of patience");
    }

    #[test]
    fn where_replicas_share_the_lanes_full_batches_keep_no_more_than_their_part_at_work() {
        let mut state = state(1, &[(1, 1), (2, 2), (3, 3)]);
        state.eager = 1;
        let now = Instant::now();
        assert_eq!(batch(state.next(now)).0, [0]);
        assert!(matches!(state.next(now), Next::WaitUntil(_)));
        assert_eq!(batch(state.next(now + PATIENCE * 2)).0, [1], "one that is stuck holds up nobody else");
    }

    #[test]
    fn large_events_make_smaller_batches_and_one_always_goes_i8() {
        let mut state = State::new(100);
        for job in 0..3 {
            state.add(Waiting { job, key: job, identity: None, bytes: 3 * BATCH_BYTES / 4, live: true });
        }
        assert_eq!(batch(state.next(Instant::now())).0, [0, 1]);
        let mut state = State::new(100);
        state.add(Waiting { job: 0, key: 0, identity: None, bytes: 3 * BATCH_BYTES, live: true });
        assert_eq!(batch(state.next(Instant::now())).0, [0]);
    }

    #[test]
    fn a_job_wakes_a_free_lane_although_another_watches_one_that_has_ended() {
        let mut state = state(100, &[(1, 1)]);
        let now = Instant::now();
        let (_, keys) = batch(state.next(now));
        assert!(state.add(Waiting { job: 1, key: 2, identity: None, bytes: 300, live: true }), "somebody has to watch");
        assert!(matches!(state.next(now), Next::WaitUntil(_)));
        assert!(!state.add(Waiting { job: 2, key: 3, identity: None, bytes: 300, live: true }), "somebody does");
        state.ended((&keys, true), now);
        let (_, keys) = batch(state.next(now));
        state.ended((&keys, true), now);
        assert!(state.add(Waiting { job: 3, key: 4, identity: None, bytes: 300, live: true }), "nobody works");
    }

    #[test]
    fn a_live_event_passes_replays_at_work_and_waiting_but_not_those_of_its_key_i5() {
        let mut state = State::new(100);
        let waiting = |job, key, live| Waiting { job, key, identity: None, bytes: 300, live };
        let now = Instant::now();
        state.add(waiting(0, 1, false));
        let (first, replayed) = batch(state.next(now));
        assert_eq!(first, [0]);
        state.add(waiting(1, 2, false));
        state.add(waiting(2, 2, true));
        assert!(
            matches!(state.next(now), Next::WaitUntil(_)),
            "a replay waits for its lane, and what is behind it too"
        );
        assert!(state.add(waiting(3, 3, true)), "a free lane has to look");
        let (passed, keys) = batch(state.next(now));
        assert_eq!(passed, [3]);
        state.add(waiting(4, 4, true));
        assert!(matches!(state.next(now), Next::WaitUntil(_)), "what is live waits for what is live, as ever");
        state.ended((&keys, true), now);
        let (passed, keys) = batch(state.next(now));
        assert_eq!(passed, [4]);
        state.ended((&replayed, false), now);
        state.ended((&keys, true), now);
        assert_eq!(batch(state.next(now)).0, [1, 2]);
    }

    #[test]
    fn a_lone_job_never_waits() {
        let mut state = state(100, &[(1, 1)]);
        assert_eq!(batch(state.next(Instant::now())).0, [0]);
    }

    proptest! {
        #[test]
        fn every_job_goes_once_and_each_key_in_order_one_batch_at_a_time_i5(
            jobs in prop::collection::vec((0u64..6, 0u64..20), 0..80),
            most in 1usize..9,
            live in prop::collection::vec(any::<bool>(), 80),
            ends in prop::collection::vec(any::<bool>(), 400),
            patient in prop::collection::vec(any::<bool>(), 400),
        ) {
            let mut state = state(most, &jobs);
            state.waiting.iter_mut().zip(live).for_each(|(waiting, live)| waiting.live = live);
            let (mut ends, mut patient) = (ends.into_iter(), patient.into_iter());
            let mut running: Vec<(Vec<u64>, HashSet<u64>, bool)> = Vec::new();
            let mut begun: Vec<u64> = Vec::new();
            let late = Instant::now() + PATIENCE * 2;
            loop {
                let now = if patient.next() == Some(true) { late - PATIENCE * 2 } else { late };
                match state.next(now) {
                    Next::Batch { jobs: batch, keys, live, .. } => {
                        prop_assert!(batch.len() <= most && !batch.is_empty());
                        prop_assert!(running.iter().all(|(_, others, _)| others.is_disjoint(&keys)));
                        let identities: HashSet<u64> = batch.iter().map(|n| jobs[*n as usize].1).collect();
                        prop_assert_eq!(identities.len(), batch.len());
                        begun.extend(&batch);
                        running.push((batch, keys, live));
                        if ends.next() == Some(true) {
                            let (_, keys, live) = running.remove(0);
                            state.ended((&keys, live), late - PATIENCE * 2);
                        }
                    }
                    _ if running.is_empty() => break,
                    _ => {
                        let (_, keys, live) = running.remove(0);
                        state.ended((&keys, live), late - PATIENCE * 2);
                    }
                }
            }
            let of_key = |key: u64, order: &[u64]| -> Vec<u64> {
                order.iter().copied().filter(|n| jobs[*n as usize].0 == key).collect()
            };
            let as_given: Vec<u64> = (0..jobs.len() as u64).collect();
            prop_assert_eq!(begun.len(), jobs.len());
            for key in 0..6 {
                prop_assert_eq!(of_key(key, &begun), of_key(key, &as_given));
            }
        }
    }
}

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const TICK: Duration = Duration::from_millis(200);

/// A job with its consumer, on a clock of its own.
struct World {
    state: State,
    rate: u32,
    cap: u32,
    canary: u32,
    waiting: u32,
    flying: VecDeque<(Duration, bool)>,
    succeeded: u32,
    failed: u32,
    recent: Recent,
    now: Duration,
    pace: Pace,
    sends: Vec<(Duration, u32)>,
    load: Load,
}

impl World {
    fn new(planned: u32, rate: u32, canary: u32) -> Self {
        Self {
            state: State::Held,
            rate,
            cap: 500,
            canary,
            waiting: planned,
            flying: VecDeque::new(),
            succeeded: 0,
            failed: 0,
            recent: Recent::default(),
            now: Duration::ZERO,
            pace: Pace::new(Duration::ZERO),
            sends: Vec::new(),
            load: Load::default(),
        }
    }

    fn next(&mut self) -> Next {
        let in_flight = u32::try_from(self.flying.len()).unwrap();
        let view = View {
            action: Action::Replay,
            state: self.state,
            rate: self.rate,
            max_in_flight: self.cap,
            canary: self.canary,
            waiting: self.waiting,
            in_flight,
            succeeded: self.succeeded,
            failed_again: self.failed,
            skipped: 0,
            recent: &self.recent,
            hold_over: true,
            oldest: self.flying.front().map_or(Duration::ZERO, |(at, _)| self.now - *at),
            load: self.load,
            obstacle: None,
        };
        next(&view, &mut self.pace, self.now)
    }

    /// One step; the results of what was sent `takes` ago come in. `fails` says which send fails.
    fn step(&mut self, takes: Duration, fails: &mut impl FnMut() -> bool) -> Next {
        while self.flying.front().is_some_and(|(at, _)| self.now - *at >= takes) {
            let (_, fails) = self.flying.pop_front().unwrap();
            self.recent.push(!fails);
            if fails { self.failed += 1 } else { self.succeeded += 1 }
        }
        let next = self.next();
        match &next {
            Next::Begin(state) => self.state = *state,
            Next::Open => self.state = State::Running,
            Next::Pause(_) => self.state = State::Paused,
            Next::Stop(_) => self.state = State::Stopped,
            Next::Done => self.state = State::Done,
            Next::Send(count) => {
                self.pace.spend(*count);
                self.waiting -= count;
                self.sends.push((self.now, *count));
                for _ in 0..*count {
                    self.flying.push_back((self.now, fails()));
                }
            }
            Next::Wait | Next::Rest => {}
        }
        self.now += TICK;
        next
    }

    fn run(&mut self, takes: Duration, mut fails: impl FnMut() -> bool) {
        for _ in 0..100_000 {
            if self.state.is_final() || self.state == State::Paused {
                return;
            }
            self.step(takes, &mut fails);
        }
        panic!("it never ended: {} waiting, {} flying", self.waiting, self.flying.len());
    }

    fn sent(&self) -> u32 {
        self.sends.iter().map(|(_, n)| n).sum()
    }
}

#[test]
fn a_canary_waits_for_its_results_and_not_for_its_sends() {
    let mut world = World::new(100, 50, 5);
    for _ in 0..50 {
        world.step(Duration::MAX, &mut || false);
    }
    assert_eq!((world.state, world.sent()), (State::Canary, 5), "without results nothing more is sent");
    world.run(Duration::ZERO, || false);
    assert_eq!((world.state, world.succeeded), (State::Done, 100));
}

#[test]
fn one_failure_of_the_canary_pauses_and_asks() {
    let mut world = World::new(100, 50, 5);
    let mut nth = 0;
    world.run(TICK, || {
        nth += 1;
        nth == 3
    });
    assert_eq!(world.state, State::Paused);
    assert!(world.sent() <= 5, "{}", world.sent());
}

#[test]
fn without_a_canary_it_runs_at_once() {
    let mut world = World::new(3, 50, 0);
    world.step(TICK, &mut || false);
    assert_eq!(world.state, State::Running);
}

#[test]
fn the_faster_it_goes_the_more_often_it_steps_so_that_live_events_wait_behind_few() {
    let mut world = World::new(100_000, 500, 0);
    let mut pause = TICK;
    for _ in 0..1_000 {
        world.step(Duration::ZERO, &mut || false);
        pause = world.pace.step_after().min(TICK);
        world.now = world.now - TICK + pause;
    }
    assert_eq!(pause, Duration::from_millis(40), "it goes at its full rate");
    let most = world.sends.iter().map(|(_, count)| *count).max().unwrap();
    assert!(most <= 41, "a step that finds the rate doubled comes after a pause of the rate before: {most}");
    let late = world.sends.iter().rev().take(100).map(|(_, count)| *count).max().unwrap();
    assert!(late <= 21, "{late}");
}

#[test]
fn ten_failures_in_a_row_stop_it() {
    let mut world = World::new(1_000, 50, 0);
    world.run(Duration::ZERO, || true);
    assert_eq!(world.state, State::Stopped);
    assert!(world.sent() < 50, "{} were sent", world.sent());
}

#[test]
fn more_than_half_of_the_last_fifty_stop_it_and_half_do_not() {
    let mut recent = Recent::default();
    (0..50).for_each(|n| recent.push(n % 2 == 0));
    assert_eq!(recent.verdict(), None);
    recent.push(false);
    recent.push(false);
    assert!(recent.verdict().is_some_and(|why| why.contains("26 of the last 50")), "{:?}", recent.verdict());
}

#[test]
fn few_results_stop_it_only_when_ten_in_a_row_failed() {
    let mut recent = Recent::default();
    (0..9).for_each(|_| recent.push(false));
    assert_eq!(recent.verdict(), None);
    recent.push(true);
    (0..9).for_each(|_| recent.push(false));
    assert_eq!(recent.verdict(), None);
    recent.push(false);
    assert!(recent.verdict().is_some());
}

#[test]
fn the_rate_begins_at_a_quarter_and_doubles_twice() {
    let mut world = World::new(100_000, 100, 0);
    for _ in 0..(20 * 5) {
        world.step(Duration::ZERO, &mut || false);
    }
    let between = |from: u64, to: u64| {
        let within = |at: &Duration| *at >= Duration::from_secs(from) && *at < Duration::from_secs(to);
        world.sends.iter().filter(|(at, _)| within(at)).map(|(_, n)| n).sum::<u32>()
    };
    assert!((100..=150).contains(&between(0, 5)), "{}", between(0, 5));
    assert!((225..=275).contains(&between(5, 10)), "{}", between(5, 10));
    assert!((450..=525).contains(&between(15, 20)), "{}", between(15, 20));
}

#[test]
fn a_consumer_that_does_not_keep_up_is_given_less() {
    let mut world = World::new(100_000, 500, 0);
    // One result every 200 ms: 5 a second, whatever is sent.
    for _ in 0..(120 * 5) {
        if let Some((_, _)) = world.flying.pop_front() {
            world.recent.push(true);
            world.succeeded += 1;
        }
        world.step(Duration::MAX, &mut || false);
    }
    let late: u32 = world.sends.iter().filter(|(at, _)| *at > Duration::from_secs(60)).map(|(_, n)| n).sum();
    assert!(late <= 60 * 10, "{late} sent in the second minute to a consumer that manages 300");
    assert!(world.flying.len() <= 500, "{}", world.flying.len());
}

/// Sends of the last so many seconds.
fn lately(world: &World, seconds: u64) -> u32 {
    let since = world.now.saturating_sub(Duration::from_secs(seconds));
    world.sends.iter().filter(|(at, _)| *at >= since).map(|(_, n)| n).sum()
}

/// Seconds with a load that is what `load` says of the second.
fn seconds(world: &mut World, count: u64, load: impl Fn(u64) -> Load) {
    for second in 0..count {
        world.load = load(second);
        for _ in 0..5 {
            world.step(Duration::ZERO, &mut || false);
        }
    }
}

fn waiting(backlog: u64) -> Load {
    Load { backlog: Some(backlog), p95: None }
}

fn taking(millis: u64) -> Load {
    Load { backlog: None, p95: Some(Duration::from_millis(millis)) }
}

#[test]
fn a_queue_of_others_that_grows_makes_it_slower_and_one_that_is_worked_off_lets_it_go_again() {
    let mut world = World::new(1_000_000, 100, 0);
    seconds(&mut world, 20, |_| waiting(0));
    assert!(lately(&world, 5) >= 450, "at the full rate: {}", lately(&world, 5));
    assert_eq!(world.pace.slowed(100), None);

    seconds(&mut world, 40, |second| waiting(2_000 + second * 100));
    assert!(lately(&world, 5) <= 20, "in the last of 40 s: {}", lately(&world, 5));
    let why = world.pace.slowed(100).unwrap();
    assert!(why.contains("a second because") && why.contains("other messages wait for the consumer"), "{why}");

    // As long as it is long but gets shorter, nothing changes.
    let level = world.pace.level;
    seconds(&mut world, 20, |second| waiting(5_000 - second * 100));
    assert_eq!(world.pace.level, level);
    seconds(&mut world, 60, |_| waiting(10));
    assert!(lately(&world, 5) >= 450, "at the full rate again: {}", lately(&world, 5));
    assert_eq!(world.pace.slowed(100), None);
}

#[test]
fn deliveries_that_take_much_longer_than_they_did_make_it_slower() {
    let mut world = World::new(1_000_000, 100, 0);
    seconds(&mut world, 20, |_| taking(50));
    assert!(lately(&world, 5) >= 450, "{}", lately(&world, 5));
    seconds(&mut world, 40, |_| taking(1_000));
    assert!(lately(&world, 5) <= 20, "{}", lately(&world, 5));
    assert!(world.pace.slowed(100).unwrap().contains("take up to 1000 ms"), "{:?}", world.pace.slowed(100));
    seconds(&mut world, 60, |_| taking(75));
    assert!(lately(&world, 5) >= 450, "{}", lately(&world, 5));
}

#[test]
fn a_consumer_that_is_slow_by_nature_or_still_quick_is_not_held_against_it() {
    for (usual, now) in [(2_500, 5_000), (1, 100), (10, 25)] {
        let mut world = World::new(1_000_000, 100, 0);
        seconds(&mut world, 10, |_| taking(usual));
        seconds(&mut world, 20, |_| taking(now));
        assert!(lately(&world, 5) >= 450, "{usual} then {now}: {}", lately(&world, 5));
    }
}

#[test]
fn its_own_messages_in_the_queue_are_not_those_of_others() {
    let mut pace = Pace::new(Duration::ZERO);
    let recent = Recent::default();
    let view = |backlog, in_flight| View {
        action: Action::Replay,
        state: State::Running,
        rate: 500,
        max_in_flight: 5_000,
        canary: 0,
        waiting: 1_000,
        in_flight,
        succeeded: 0,
        failed_again: 0,
        skipped: 0,
        recent: &recent,
        hold_over: true,
        oldest: Duration::ZERO,
        load: waiting(backlog),
        obstacle: None,
    };
    pace.adapt(&view(1_400, 450), STEP);
    assert_eq!(pace.strain, None);
    pace.adapt(&view(1_400, 300), STEP * 2);
    assert_eq!(pace.strain, Some(Strain::Backlog(1_100)));
}

#[test]
fn a_canary_that_has_passed_leaves_what_was_learnt_of_the_consumer() {
    let mut pace = Pace::new(Duration::ZERO);
    pace.quickest = Some(Duration::from_millis(10));
    pace.strain = Some(Strain::Results);
    let again = pace.again(STEP);
    assert_eq!((again.level, again.quickest, again.strain), (FIRST_LEVEL, pace.quickest, None));
}

#[test]
fn an_obstacle_sends_nothing_and_saves_no_tokens_for_later() {
    let recent = Recent::default();
    let mut pace = Pace::new(Duration::ZERO);
    let view = View {
        action: Action::Replay,
        state: State::Running,
        rate: 100,
        max_in_flight: 500,
        canary: 0,
        waiting: 1_000,
        in_flight: 0,
        succeeded: 0,
        failed_again: 0,
        skipped: 0,
        recent: &recent,
        hold_over: true,
        oldest: Duration::ZERO,
        load: Load::default(),
        obstacle: Some("the broker is away"),
    };
    assert_eq!(next(&view, &mut pace, Duration::from_secs(1)), Next::Wait);
    let after = View { obstacle: None, ..view };
    let Next::Send(count) = next(&after, &mut pace, Duration::from_secs(600)) else { panic!("nothing was sent") };
    assert!(count <= 25, "{count} at once after ten minutes");
}

#[test]
fn what_is_over_only_waits_for_results() {
    for state in [State::Paused, State::Stopped, State::Cancelled, State::Done] {
        let mut world = World::new(10, 50, 0);
        world.state = state;
        assert_eq!(world.next(), Next::Rest);
        world.flying.push_back((Duration::ZERO, false));
        assert_eq!(world.next(), Next::Wait);
    }
}

proptest! {
    #[test]
    fn the_rate_and_the_bound_in_flight_are_never_exceeded(
        planned in 1_u32..3_000, rate in 1_u32..=500, cap in 1_u32..1_000, canary in 0_u32..20,
        takes in 0_u64..3_000, seed in any::<u64>(),
    ) {
        let mut world = World::new(planned, rate, canary);
        world.cap = cap;
        let mut bits = seed;
        let mut fails = || { bits = bits.rotate_left(7).wrapping_mul(0x9E37_79B9_7F4A_7C15); bits % 11 == 0 };
        for _ in 0..600 {
            world.step(Duration::from_millis(takes), &mut fails);
            prop_assert!(u32::try_from(world.flying.len()).unwrap() <= cap);
            if world.state == State::Canary { prop_assert!(world.sent() <= canary); }
        }
        // In any window of a second no more than the rate and one burst.
        let burst = (f64::from(rate) * BURST).max(1.0);
        for (n, (from, _)) in world.sends.iter().enumerate() {
            let within = world.sends[n..].iter().take_while(|(at, _)| *at - *from < Duration::from_secs(1));
            let sent: u32 = within.map(|(_, count)| count).sum();
            prop_assert!(f64::from(sent) <= f64::from(rate) + burst, "{sent} in a second at {rate}");
        }
    }

    #[test]
    fn whatever_the_load_it_goes_on_and_never_faster_than_its_rate(
        rate in 1_u32..=500, loads in prop::collection::vec((0_u64..5_000, 0_u64..10_000, any::<bool>()), 1..60),
    ) {
        let mut world = World::new(1_000_000, rate, 0);
        let load = |second: u64| {
            let (backlog, p95, known) = loads[usize::try_from(second).unwrap() % loads.len()];
            if known { Load { backlog: Some(backlog), p95: Some(Duration::from_millis(p95)) } } else { Load::default() }
        };
        seconds(&mut world, 120, load);
        prop_assert!(world.sent() >= 1, "it stood still");
        prop_assert!(u64::from(world.sent()) <= u64::from(rate) * 120 + u64::from(rate), "{}", world.sent());
        prop_assert!((1..=LAST_LEVEL).contains(&world.pace.level));
    }

    #[test]
    fn without_failures_every_job_ends_with_all_of_them(
        planned in 0_u32..500, rate in 1_u32..=500, canary in 0_u32..20, takes in 0_u64..2_000,
    ) {
        let mut world = World::new(planned, rate, canary.min(planned));
        world.run(Duration::from_millis(takes), || false);
        prop_assert_eq!((world.state, world.succeeded), (State::Done, planned));
    }
}

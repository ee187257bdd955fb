use proptest::prelude::*;

use super::super::machine::Recent;
use super::super::model::State;
use super::super::world::{TICK, World, at_work};
use super::*;

#[test]
fn the_faster_it_goes_the_more_often_it_steps_so_that_live_events_wait_behind_few() {
    let mut world = World::new(100_000, 500, 0);
    let mut pause = TICK;
    for _ in 0..3_000 {
        world.step(Duration::ZERO, &mut || false);
        pause = world.pace.step_after().min(TICK);
        world.now = world.now - TICK + pause;
    }
    assert_eq!(pause, Duration::from_millis(10), "it goes at its full rate");
    let after_the_first = world.sends.iter().filter(|(at, _)| *at >= Duration::from_secs(1));
    let most = after_the_first.map(|(_, count)| *count).max().unwrap();
    assert!(most <= 11, "a step that finds the rate doubled comes after a pause of the rate before: {most}");
    let late = world.sends.iter().rev().take(100).map(|(_, count)| *count).max().unwrap();
    assert!(late <= 6, "{late}");
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

/// What is known in some second, of others' messages and of live deliveries.
type Load = (Option<u64>, Vec<Live>);

/// Seconds with a load that is what `load` says of the second and of what was sent in the one before.
fn seconds(world: &mut World, count: u64, load: impl Fn(u64, u32) -> Load) {
    for second in 0..count {
        (world.backlog, world.live) = load(second, lately(world, 1));
        for _ in 0..5 {
            world.step(Duration::ZERO, &mut || false);
        }
    }
}

fn waiting(backlog: u64) -> Load {
    (Some(backlog), Vec::new())
}

/// Deliveries of which 95 of 100 usually take so many milliseconds, and now others.
fn live(consumer: &'static str, (usual, now): (u64, u64)) -> Live {
    let [usual, now] = [usual, now].map(Duration::from_millis);
    let tail = |p95: Duration| Tail { p95, p99: p95 * 3 / 2 };
    Live { consumer, now: tail(now), lately: now, usual: tail(usual) }
}

/// Those of one consumer, whose usual time is 10 ms.
fn taking(millis: u64) -> Load {
    (None, vec![live("org", (10, millis))])
}

#[test]
fn a_queue_of_others_that_grows_makes_it_slower_and_one_that_is_worked_off_lets_it_go_again() {
    let mut world = World::new(1_000_000, 100, 0);
    seconds(&mut world, 20, |_, _| waiting(0));
    assert!(lately(&world, 5) >= 450, "at the full rate: {}", lately(&world, 5));
    assert_eq!(world.pace.slowed(100), None);

    seconds(&mut world, 40, |second, _| waiting(2_000 + second * 100));
    assert!(lately(&world, 5) <= 20, "in the last of 40 s: {}", lately(&world, 5));
    let why = world.pace.slowed(100).unwrap();
    assert!(why.contains("a second because") && why.contains("other messages wait for the consumer"), "{why}");

    // As long as it is long but gets shorter, nothing changes.
    let share = world.pace.share;
    seconds(&mut world, 20, |second, _| waiting(5_000 - second * 100));
    assert!((world.pace.share - share).abs() < f64::EPSILON, "{} after {share}", world.pace.share);
    seconds(&mut world, 60, |_, _| waiting(10));
    assert!(lately(&world, 5) >= 450, "at the full rate again: {}", lately(&world, 5));
    assert_eq!(world.pace.slowed(100), None);
}

#[test]
fn live_deliveries_that_take_longer_than_usual_make_it_slower_at_once() {
    let mut world = World::new(1_000_000, 100, 0);
    seconds(&mut world, 20, |_, _| taking(10));
    assert!(lately(&world, 5) >= 450, "{}", lately(&world, 5));
    seconds(&mut world, 5, |_, _| taking(40));
    assert!(lately(&world, 1) <= 51, "half of it within seconds: {}", lately(&world, 1));
    seconds(&mut world, 15, |_, _| taking(40));
    assert!(lately(&world, 5) <= 30, "{}", lately(&world, 5));
    seconds(&mut world, 60, |_, _| taking(19));
    assert!(lately(&world, 5) >= 450, "{}", lately(&world, 5));
}

#[test]
fn for_a_little_more_than_the_limit_it_gets_a_little_slower() {
    let mut world = World::new(1_000_000, 100, 0);
    seconds(&mut world, 20, |_, _| taking(10));
    seconds(&mut world, 2, |_, _| taking(21));
    assert!((85..=95).contains(&lately(&world, 1)), "{}", lately(&world, 1));
    let why = world.pace.slowed(100).unwrap();
    assert_eq!(why, "it goes at 90 a second because 95 of 100 live deliveries of org take up to 21 ms, more than 20");
    seconds(&mut world, 5, |_, _| taking(30));
    assert!((35..=65).contains(&lately(&world, 1)), "{}", lately(&world, 1));
    // Where it stays slow it gets ever slower.
    seconds(&mut world, 60, |_, _| taking(21));
    assert!(lately(&world, 5) <= 75, "{}", lately(&world, 5));
}

#[test]
fn what_other_consumers_suffer_counts_too_each_by_what_is_usual_for_it() {
    let mut world = World::new(1_000_000, 100, 0);
    seconds(&mut world, 20, |_, _| (None, vec![live("org", (200, 200)), live("payment", (10, 10))]));
    assert!(lately(&world, 5) >= 450, "{}", lately(&world, 5));
    seconds(&mut world, 20, |_, _| (None, vec![live("org", (200, 200)), live("payment", (10, 40))]));
    assert!(lately(&world, 5) <= 30, "{}", lately(&world, 5));
    assert!(world.pace.slowed(100).unwrap().contains("of payment"), "{:?}", world.pace.slowed(100));
}

#[test]
fn a_job_that_is_too_much_at_its_full_rate_spends_few_seconds_there() {
    // More than 300 a second are too much here.
    let mut world = World::new(1_000_000, 500, 0);
    let load = |_, sent| taking(if sent > 300 { 40 } else { 10 });
    seconds(&mut world, 60, load);
    let (mut over, mut sent) = (0, 0);
    for _ in 0..300 {
        seconds(&mut world, 1, load);
        let second = lately(&world, 1);
        (over, sent) = (over + u32::from(second > 300), sent + second);
    }
    assert!(over <= 60, "{over} of 300 seconds were too much");
    assert!(sent >= 300 * 200, "{sent} of the 90,000 that are possible");
}

#[test]
fn a_consumer_that_is_slow_by_nature_or_still_quick_is_not_held_against_it() {
    for (usual, now) in [(2_500, 5_000), (1, 10), (10, 20)] {
        let mut world = World::new(1_000_000, 100, 0);
        seconds(&mut world, 30, |_, _| (None, vec![live("org", (usual, now))]));
        assert!(lately(&world, 5) >= 450, "{usual} then {now}: {}", lately(&world, 5));
    }
}

#[test]
fn what_deliveries_still_take_after_a_while_of_the_slowest_rate_is_not_held_against_it() {
    let mut world = World::new(1_000_000, 100, 0);
    seconds(&mut world, 20, |_, _| taking(10));
    // The day has begun: it is not the job.
    seconds(&mut world, 30, |_, _| taking(60));
    assert!(lately(&world, 5) <= 20, "{}", lately(&world, 5));
    seconds(&mut world, 60, |_, _| taking(60));
    assert!(lately(&world, 5) >= 450, "{}", lately(&world, 5));

    // Night again; and this time it is the job.
    seconds(&mut world, 20, |_, _| taking(10));
    seconds(&mut world, 40, |_, sent| taking(if sent > 10 { 60 } else { 10 }));
    assert!(lately(&world, 5) <= 100, "what was accepted ends with what it was for: {}", lately(&world, 5));
}

#[test]
fn where_few_are_always_slow_that_as_many_more_are_is_no_harm_up_to_four_times() {
    let taking = |p99, now| {
        let mut live = live("org", (10, now));
        live.usual.p99 = Duration::from_millis(p99);
        (None, vec![live])
    };
    for (p99, now, suffers) in [(35, 34, false), (35, 36, true), (2_000, 39, false), (2_000, 41, true)] {
        let mut world = World::new(1_000_000, 100, 0);
        seconds(&mut world, 30, |_, _| taking(p99, now));
        assert_eq!(world.pace.slowed(100).is_some(), suffers, "99 of 100 usually within {p99}, 95 now within {now}");
    }
}

#[test]
fn its_own_messages_in_the_queue_are_not_those_of_others() {
    let mut pace = Pace::new(Duration::ZERO);
    let recent = Recent::default();
    let view = |backlog, in_flight| View { in_flight, backlog: Some(backlog), ..at_work(&recent) };
    pace.adapt(&view(1_400, 450), STEP);
    assert_eq!(pace.strain, None);
    pace.adapt(&view(1_400, 300), STEP * 2);
    assert_eq!(pace.strain, Some(Strain::Backlog(1_100)));
}

#[test]
fn a_canary_that_has_passed_leaves_what_was_learnt_of_the_consumers() {
    let mut pace = Pace::new(Duration::ZERO);
    let slow = Tail { p95: Duration::from_millis(60), p99: Duration::from_millis(90) };
    pace.accepted.insert("org", slow);
    (pace.strain, pace.share) = (Some(Strain::Results), LEAST_SHARE);
    let again = pace.again(STEP);
    assert_eq!((again.accepted, again.strain), (pace.accepted, None));
    assert!((again.share - FIRST_SHARE).abs() < f64::EPSILON);
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
        rate in 1_u32..=500, loads in prop::collection::vec((0_u64..5_000, 1_u64..10_000, any::<bool>()), 1..60),
    ) {
        let mut world = World::new(1_000_000, rate, 0);
        let load = |second: u64, _| {
            let (backlog, p95, known) = loads[usize::try_from(second).unwrap() % loads.len()];
            if known { (Some(backlog), vec![live("org", (10, p95))]) } else { Load::default() }
        };
        seconds(&mut world, 120, load);
        prop_assert!(world.sent() >= 1, "it stood still");
        prop_assert!(u64::from(world.sent()) <= u64::from(rate) * 120 + u64::from(rate), "{}", world.sent());
        prop_assert!((LEAST_SHARE..=1.0).contains(&world.pace.share));
    }
}

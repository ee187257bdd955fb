use proptest::prelude::*;

use super::super::world::{TICK, World, at_work};
use super::*;

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
fn an_obstacle_sends_nothing_and_saves_no_tokens_for_later() {
    let recent = Recent::default();
    let mut pace = Pace::new(Duration::ZERO);
    let view = View { rate: 100, obstacle: Some("the broker is away"), ..at_work(&recent) };
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
    fn without_failures_every_job_ends_with_all_of_them(
        planned in 0_u32..500, rate in 1_u32..=500, canary in 0_u32..20, takes in 0_u64..2_000,
    ) {
        let mut world = World::new(planned, rate, canary.min(planned));
        world.run(Duration::from_millis(takes), || false);
        prop_assert_eq!((world.state, world.succeeded), (State::Done, planned));
    }
}

//! A micro-batch of users is one statement, and leaves nothing else than its events one by one.

use onceflow::event::Envelope;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::world::{Said, World, department, event, member, no_member, no_user, shuffled, user};

const CASES: u64 = 30;
const EVENTS: usize = 24;

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_users_takes_one_statement_however_many_they_are() {
    let world = World::new().await;
    for size in [1, 10, 100] {
        let batch = |version: i64| (0..size).map(|n| user(&format!("{size}-{n}"), version, "a")).collect::<Vec<_>>();
        assert_eq!(world.statements("t", &batch(1)).await, 1, "{size} new users");
        assert_eq!(world.statements("t", &batch(2)).await, 1, "{size} known users");
        assert_eq!(world.statements("t", &batch(1)).await, 1, "{size} stale events");
        let hot: Vec<Said> = (1..=size).map(|version| user(&format!("hot-{size}"), version, "a")).collect();
        assert_eq!(world.statements("t", &hot).await, 1, "{size} events of one user");
    }
}

/// Each membership still is two statements of its own, but they are sent together. On one thread: with several, an answer may
/// come before the next statement is sent, without anybody having waited for it.
#[tokio::test]
async fn a_batch_of_memberships_waits_for_the_database_a_few_times_however_many_they_are() {
    let world = World::new().await;
    let users: Vec<Said> = (0..100).map(|n| user(&n.to_string(), 1, "a")).collect();
    world.tell_all("t", &[users, vec![department("d", 1, "")]].concat()).await;
    let all: Vec<Said> = (0..100).map(|n| member(&n.to_string(), "d", 1)).collect();
    let mut rest = all.as_slice();
    for size in [1, 10, 80] {
        let (batch, left) = rest.split_at(size);
        let waits = world.round_trips("t", batch).await;
        assert!(waits <= 3, "{waits} waits for {size} memberships");
        rest = left;
    }
    assert_eq!(world.statements("t", rest).await, 2 * rest.len() as u64, "look and write");
}

#[tokio::test(flavor = "multi_thread")]
async fn i5_a_batch_tells_what_its_events_tell_one_by_one_in_their_order() {
    let world = World::new().await;
    for seed in 0..CASES {
        let said = random_events(seed);
        // One ordering key: nothing may change places.
        let of = |tenant: &str| keyed(&said, tenant, |_| "one".to_owned());
        let together = world.deliver_together(of(&format!("together-{seed}"))).await;
        let mut singly = Vec::new();
        for event in of(&format!("singly-{seed}")) {
            singly.push(world.deliver_as_is(event).await);
        }
        assert_eq!(together, singly, "seed {seed}");
        same_rows(&world, seed, &said).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d2_a_batch_of_many_keys_ends_in_the_same_rows() {
    let world = World::new().await;
    for seed in 0..CASES {
        let said = random_events(seed);
        let own_key = |(event_type, body): &Said| format!("{event_type}{body}");
        world.deliver_together(keyed(&said, &format!("together-{seed}"), own_key)).await;
        for event in keyed(&said, &format!("singly-{seed}"), own_key) {
            world.deliver_as_is(event).await;
        }
        same_rows(&world, seed, &said).await;
    }
}

async fn same_rows(world: &World, seed: u64, said: &[Said]) {
    let (together, singly) = (format!("together-{seed}"), format!("singly-{seed}"));
    // A membership that waits for its user may have been live before or not, depending on which of them came first.
    let rows = |tenant: String| async move {
        let rows = world.rows(&tenant).await;
        rows.into_iter().filter(|row| !row.contains(" detached ")).collect::<Vec<_>>()
    };
    assert_eq!(rows(together.clone()).await, rows(singly.clone()).await, "seed {seed}: {said:?}");
    // What lacks two things waits for whichever was looked for first, so the reason is left out.
    let waiting = |tenant: String| async move {
        let waiting = world.waiting(&tenant).await;
        waiting.iter().filter_map(|row| row.rsplit_once(' ')).map(|(what, _)| what.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(waiting(together).await, waiting(singly).await, "seed {seed}: {said:?}");
}

fn keyed(said: &[Said], tenant: &str, key: impl Fn(&Said) -> String) -> Vec<Envelope> {
    let keyed = |(n, said): (usize, &Said)| {
        let mut event = event(said, &format!("e{n}"), None);
        event.tenant = tenant.to_owned();
        event.partition_key = key(said);
        event
    };
    said.iter().enumerate().map(keyed).collect()
}

/// Few users and departments, so that much collides; versions out of order, some twice.
fn random_events(seed: u64) -> Vec<Said> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut versions: Vec<i64> = (1..=EVENTS as i64).map(|n| n.min(EVENTS as i64 - 4)).collect();
    versions = shuffled(&versions, seed);
    let of_version = |version: i64| {
        let (id, place) = (random.random_range(0..4).to_string(), random.random_range(0..2).to_string());
        match random.random_range(0..10) {
            0 => no_user(&id, version),
            1 => department(&place, version, ""),
            2 | 3 => member(&id, &place, version),
            4 => no_member(&id, &place, version),
            _ => user(&id, version, &random.random_range(0..3).to_string()),
        }
    };
    versions.into_iter().map(of_version).collect()
}

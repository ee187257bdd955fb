//! D-5: what arrives before what it refers to is kept, and applied with it.

use super::world::{Said, World, department, member, no_department, no_member, no_user, shuffled, told, user, whats};

#[tokio::test(flavor = "multi_thread")]
async fn d5_a_child_before_its_parent_is_kept_and_applied_with_the_parent() {
    let world = World::new().await;
    let all = [department("c", 1, "b"), user("1", 1, "x"), member("1", "c", 1), department("b", 1, "a")];
    let told = world.tell_all("t", &all).await;
    assert_eq!(whats(&told), ["user d/1 created 1"]);
    assert_eq!(
        world.waiting("t").await,
        [
            "department b upsert 1 parent_missing",
            "department c upsert 1 parent_missing",
            "membership 1 c upsert 1 department_missing"
        ]
    );
    let told = world.tell_all("t", &[department("a", 1, "")]).await;
    let expected = [
        "department d/a created 1",
        "department d/b created 1",
        "department d/c created 1",
        "membership d/1/c created 1",
    ];
    assert_eq!(whats(&told), expected);
    assert_eq!(world.waiting("t").await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn d5_the_newest_version_wins_while_waiting() {
    let world = World::new().await;
    world.tell_all("t", &[department("c", 2, "p"), department("c", 3, "p")]).await;
    assert!(super::world::is_stale(&world.tell("t", &department("c", 1, "p")).await));
    world.tell_all("t", &[department("p", 1, "")]).await;
    assert_eq!(world.rows("t").await, ["department c live 3 c-3 p 0", "department p live 1 p-1 0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn d5_a_deletion_drops_what_waits_below_it() {
    let world = World::new().await;
    world.tell_all("t", &[department("c", 1, "p"), no_department("c", 2), member("1", "c", 1)]).await;
    world.tell_all("t", &[no_member("1", "c", 2), department("p", 1, ""), user("1", 1, "x")]).await;
    assert_eq!(world.waiting("t").await, [""; 0]);
    assert!(world.rows("t").await.contains(&"department c deleted 2 0".to_owned()));
}

/// An organisation with a history: moved departments, changed and deleted users, ended memberships.
fn organisation() -> Vec<Said> {
    let mut all = vec![department("0", 1, "")];
    for n in 1..30_usize {
        all.push(department(&n.to_string(), 1, &((n - 1) / 3).to_string()));
    }
    for n in 20..30_usize {
        all.push(department(&n.to_string(), 2, &(n % 7).to_string()));
    }
    for n in 0..40_usize {
        let (id, home, second) = (n.to_string(), (n % 30).to_string(), ((n * 7 + 1) % 30).to_string());
        all.extend([user(&id, 1, "x"), user(&id, 2, "y"), member(&id, &home, 1), member(&id, &second, 1)]);
        if n % 5 == 0 {
            all.push(no_member(&id, &second, 2));
        }
        if n % 8 == 0 {
            all.push(no_user(&id, 3));
        }
        if n % 16 == 0 {
            all.push(user(&id, 4, "back"));
        }
    }
    // A whole branch goes: the departments and those who were in them.
    for n in 0..40_usize {
        for department in [n % 30, (n * 7 + 1) % 30] {
            if department >= 28 {
                all.push(no_member(&n.to_string(), &department.to_string(), 3));
            }
        }
    }
    all.extend([no_department("28", 3), no_department("29", 3)]);
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn d5_a_whole_organisation_in_any_order_ends_the_same_with_nothing_left_waiting() {
    let world = World::new().await;
    let all = organisation();
    world.tell_all("in-order", &all).await;
    let expected = world.rows("in-order").await;
    // Memberships of deleted users wait for their return, in any order.
    let waiting = world.waiting("in-order").await;
    assert!(waiting.iter().all(|w| w.starts_with("membership") && w.ends_with("user_missing")), "{waiting:?}");
    for seed in 0..12 {
        let tenant = format!("shuffled-{seed}");
        world.tell_all(&tenant, &shuffled(&all, seed)).await;
        assert_eq!(live(&world.rows(&tenant).await), live(&expected), "seed {seed}");
        assert_eq!(world.waiting(&tenant).await, waiting, "seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d5_a_whole_organisation_delivered_by_eight_at_once_ends_the_same() {
    let world = std::sync::Arc::new(World::new().await);
    let all = organisation();
    world.tell_all("in-order", &all).await;
    let (expected, waiting) = (world.rows("in-order").await, world.waiting("in-order").await);
    for seed in 0..4 {
        let tenant = format!("crowd-{seed}");
        let order = shuffled(&all, seed);
        let lanes = (0..8).map(|lane| {
            let (world, tenant) = (world.clone(), tenant.clone());
            let mine: Vec<_> = order.iter().skip(lane).step_by(8).cloned().collect();
            tokio::spawn(async move { world.tell_all(&tenant, &mine).await })
        });
        for lane in lanes.collect::<Vec<_>>() {
            lane.await.unwrap();
        }
        assert_eq!(live(&world.rows(&tenant).await), live(&expected), "seed {seed}");
        assert_eq!(world.waiting(&tenant).await, waiting, "seed {seed}");
    }
}

/// What anybody can see; whether a membership of a deleted user is detached or never came makes no difference.
fn live(rows: &[String]) -> Vec<&String> {
    rows.iter().filter(|row| !row.contains(" detached ")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn d5_no_wake_up_is_lost_when_user_department_and_membership_arrive_at_the_same_time() {
    let world = World::new().await;
    for round in 0..40 {
        let tenant = format!("t{round}");
        let (a, b, c, d) = (department("p", 1, ""), department("c", 1, "p"), user("1", 1, "x"), member("1", "c", 1));
        let (a, b, c, d) = tokio::join!(
            world.tell(&tenant, &d),
            world.tell(&tenant, &c),
            world.tell(&tenant, &b),
            world.tell(&tenant, &a)
        );
        let told = [a, b, c, d].iter().map(|r| told(r.as_ref().unwrap()).len()).sum::<usize>();
        assert_eq!(told, 4, "each object is told once, in round {round}");
        assert_eq!(world.waiting(&tenant).await, [""; 0], "round {round}");
    }
}

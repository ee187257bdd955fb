//! D-6: no cycle, bounded depth, whatever arrives at the same time.

use onceflow::event::Stage;

use super::world::{World, department, is_stale, user};

#[tokio::test(flavor = "multi_thread")]
async fn d6_a_move_that_would_close_a_cycle_is_refused_with_a_clear_reason() {
    let world = World::new().await;
    world.tell_all("t", &[department("a", 1, ""), department("b", 1, "a"), department("c", 1, "b")]).await;
    let rejection = world.tell("t", &department("a", 2, "c")).await.unwrap_err();
    assert_eq!((rejection.stage, rejection.code), (Stage::Handle, "department_cycle"));
    assert!(rejection.message.contains("department d/a can't have the parent c"), "{rejection}");
    assert!(rejection.message.contains("a > c > b > a"), "{rejection}");
    let own = world.tell("t", &department("a", 2, "a")).await.unwrap_err();
    assert_eq!(own.code, "department_cycle");
    assert!(world.rows("t").await.contains(&"department a live 1 a-1 0".to_owned()), "nothing was written");
    world.tell_all("t", &[department("b", 3, "a")]).await;
    assert!(is_stale(&world.tell("t", &department("b", 2, "c")).await), "an old one is stale, not refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn d6_a_refused_move_can_be_replayed_once_the_other_move_has_been_applied() {
    let world = World::new().await;
    world.tell_all("t", &[department("a", 1, ""), department("b", 1, "a")]).await;
    let swap = department("a", 2, "b");
    assert!(world.tell("t", &swap).await.is_err());
    world.tell_all("t", &[department("b", 2, ""), swap]).await;
    assert_eq!(world.rows("t").await, ["department a live 2 a-2 b 0", "department b live 2 b-2 0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn d6_of_two_crossing_moves_at_the_same_time_exactly_one_is_refused() {
    let world = World::new().await;
    for round in 0..20 {
        let tenant = format!("t{round}");
        world.tell_all(&tenant, &[department("a", 1, ""), department("b", 1, "")]).await;
        let (under_b, under_a) = (department("a", 2, "b"), department("b", 2, "a"));
        let (one, two) = tokio::join!(world.tell(&tenant, &under_b), world.tell(&tenant, &under_a));
        assert_eq!([&one, &two].iter().filter(|r| r.is_ok()).count(), 1, "round {round}: {one:?} {two:?}");
        let refused = one.err().or(two.err()).unwrap();
        assert_eq!(refused.code, "department_cycle");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d6_two_departments_that_would_wait_for_each_other_are_a_cycle_too() {
    let world = World::new().await;
    world.tell("t", &department("a", 1, "b")).await.unwrap();
    let rejection = world.tell("t", &department("b", 1, "a")).await.unwrap_err();
    assert_eq!(rejection.code, "department_cycle");
}

#[tokio::test(flavor = "multi_thread")]
async fn d6_a_kept_move_that_would_close_a_cycle_waits_for_the_move_that_opens_it() {
    let world = World::new().await;
    world.tell_all("t", &[department("a", 1, ""), department("a", 2, "z"), department("z", 1, "a")]).await;
    assert_eq!(world.waiting("t").await, ["department a upsert 2 department_cycle"]);
    world.tell_all("t", &[department("z", 2, "")]).await;
    assert_eq!(world.rows("t").await, ["department a live 2 a-2 z 0", "department z live 2 z-2 0"]);
    assert_eq!(world.waiting("t").await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn d6_a_tree_is_at_most_64_levels_deep_also_below_a_moved_department() {
    let world = World::new().await;
    let mut parent = String::new();
    for level in 1..=64 {
        let id = format!("l{level}");
        world.tell("t", &department(&id, 1, &parent)).await.unwrap();
        parent = id;
    }
    assert_eq!(world.tell("t", &department("l65", 1, "l64")).await.unwrap_err().code, "department_too_deep");
    world.tell_all("t", &[department("r", 1, ""), department("s", 1, "")]).await;
    assert_eq!(world.tell("t", &department("l1", 2, "r")).await.unwrap_err().code, "department_too_deep");
    world.tell_all("t", &[department("l2", 2, "r"), user("1", 1, "x")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_other_tenants_and_directories_are_others() {
    let world = World::new().await;
    world.tell_all("t", &[department("a", 1, "")]).await;
    world.tell_all("u", &[department("b", 1, "a")]).await;
    assert_eq!(world.waiting("u").await, ["department b upsert 1 parent_missing"]);
    let mut elsewhere = department("b", 1, "a");
    elsewhere.1["directory"] = "other".into();
    world.tell_all("t", &[elsewhere]).await;
    assert_eq!(world.waiting("t").await, ["department b upsert 1 parent_missing"]);
}

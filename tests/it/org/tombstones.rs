//! D-4: deletions leave a tombstone; D-7: a department is deleted once it is empty.

use super::world::{
    World, department, is_no_change, is_stale, member, no_department, no_member, no_user, told, user, whats,
};

#[tokio::test(flavor = "multi_thread")]
async fn d4_a_late_update_does_not_resurrect_and_a_newer_one_restores() {
    let world = World::new().await;
    world.tell_all("t", &[user("1", 1, "a"), no_user("1", 3)]).await;
    assert!(is_stale(&world.tell("t", &user("1", 2, "b")).await));
    assert_eq!(world.rows("t").await, ["user 1 deleted 3 f"]);
    let told = told(&world.tell("t", &user("1", 4, "c")).await.unwrap());
    assert_eq!(whats(&told), ["user d/1 restored 4"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn d4_deleting_what_never_came_leaves_a_tombstone_that_keeps_older_events_out() {
    let world = World::new().await;
    let told = world.tell_all("t", &[no_user("1", 2), no_department("1", 2), no_member("1", "1", 2)]).await;
    assert!(told.is_empty(), "nobody knew them: {told:?}");
    assert!(is_stale(&world.tell("t", &user("1", 1, "a")).await));
    assert!(is_stale(&world.tell("t", &department("1", 1, "")).await));
    assert!(is_stale(&world.tell("t", &member("1", "1", 1)).await));
    assert_eq!(
        world.rows("t").await,
        ["department 1 deleted 2 0", "user 1 deleted 2 f", "membership 1 1 deleted 2 f "]
    );
    assert_eq!(world.waiting("t").await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_a_user_ends_their_memberships_and_a_restore_brings_them_back() {
    let world = World::new().await;
    world.tell_all("t", &[department("a", 1, ""), department("b", 1, ""), user("1", 1, "x")]).await;
    world.tell_all("t", &[member("1", "a", 7), member("1", "b", 8)]).await;
    let gone = world.tell_all("t", &[no_user("1", 2)]).await;
    assert_eq!(whats(&gone), ["user d/1 deleted 2", "membership d/1/a deleted 7", "membership d/1/b deleted 8"]);
    let left = world.tell_all("t", &[no_member("1", "b", 9)]).await;
    assert!(left.is_empty(), "its end was told before: {left:?}");
    let back = world.tell_all("t", &[user("1", 3, "x")]).await;
    assert_eq!(whats(&back), ["user d/1 restored 3", "membership d/1/a restored 7"]);
    assert_eq!(world.waiting("t").await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn d7_a_department_with_children_or_members_is_deleted_in_the_event_that_empties_it() {
    let world = World::new().await;
    let all = [
        department("r", 1, ""),
        department("p", 1, "r"),
        department("c", 1, "p"),
        user("1", 1, "x"),
        user("2", 1, "x"),
        member("1", "p", 1),
        member("2", "p", 1),
    ];
    world.tell_all("t", &all).await;
    let told = world.tell_all("t", &[no_department("p", 2), department("c", 2, "r"), no_member("1", "p", 2)]).await;
    assert_eq!(whats(&told), ["department d/c updated 2", "membership d/1/p deleted 2"]);
    assert_eq!(world.waiting("t").await, ["department p delete 2 not_empty"]);
    let told = world.tell_all("t", &[no_user("2", 2)]).await;
    assert_eq!(whats(&told), ["user d/2 deleted 2", "membership d/2/p deleted 1", "department d/p deleted 2"]);
    assert!(is_no_change(&world.tell("t", &no_department("p", 2)).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn d7_deletions_from_the_root_down_end_with_the_last_leaf() {
    let world = World::new().await;
    world.tell_all("t", &[department("r", 1, ""), department("p", 1, "r"), department("c", 1, "p")]).await;
    assert!(world.tell_all("t", &[no_department("r", 2), no_department("p", 2)]).await.is_empty());
    let told = world.tell_all("t", &[no_department("c", 2)]).await;
    assert_eq!(whats(&told), ["department d/c deleted 2", "department d/p deleted 2", "department d/r deleted 2"]);
    assert_eq!(world.waiting("t").await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn d7_an_update_newer_than_a_waiting_deletion_calls_it_off() {
    let world = World::new().await;
    world.tell_all("t", &[department("p", 1, ""), department("c", 1, "p"), no_department("p", 2)]).await;
    world.tell_all("t", &[department("p", 3, ""), no_department("c", 2)]).await;
    assert_eq!(world.rows("t").await, ["department c deleted 2 0", "department p live 3 p-3 0"]);
    assert_eq!(world.waiting("t").await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn d7_the_last_two_members_leaving_at_once_still_empty_the_department() {
    let world = World::new().await;
    for round in 0..20 {
        let tenant = format!("t{round}");
        let all =
            [department("p", 1, ""), user("1", 1, "x"), user("2", 1, "x"), member("1", "p", 1), member("2", "p", 1)];
        world.tell_all(&tenant, &all).await;
        let (one, two, delete) = (no_member("1", "p", 2), no_member("2", "p", 2), no_department("p", 2));
        let (a, b, c) =
            tokio::join!(world.tell(&tenant, &one), world.tell(&tenant, &delete), world.tell(&tenant, &two));
        (a.unwrap(), b.unwrap(), c.unwrap());
        assert!(world.rows(&tenant).await.contains(&"department p deleted 2 0".to_owned()), "round {round}");
        assert_eq!(world.waiting(&tenant).await, [""; 0]);
    }
}

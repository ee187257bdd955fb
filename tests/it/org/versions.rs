//! D-2: the greatest stamp wins, whatever the order of delivery.

use super::world::{
    Said, World, department, event, is_no_change, is_stale, no_department, no_user, permutations, shuffled, told, user,
};

async fn every_order_ends_alike(world: &World, name: &str, events: &[Said]) {
    let mut expected = None;
    for (number, order) in permutations(events).into_iter().enumerate() {
        let tenant = format!("{name}-{number}");
        world.tell_all(&tenant, &order).await;
        let rows = world.rows(&tenant).await;
        assert_eq!(&rows, expected.get_or_insert_with(|| rows.clone()), "order {order:?}");
        assert_eq!(world.waiting(&tenant).await, [""; 0], "order {order:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d2_every_permutation_of_five_versions_with_a_delete_ends_in_the_same_user() {
    let world = World::new().await;
    let restored = [user("1", 1, "a"), user("1", 2, "b"), no_user("1", 3), user("1", 4, "c"), user("1", 5, "d")];
    every_order_ends_alike(&world, "restored", &restored).await;
    assert_eq!(world.rows("restored-7").await, ["user 1 live 5 Person 1 1@example.com d  f"]);
    let deleted = [user("1", 1, "a"), no_user("1", 2), user("1", 3, "b"), user("1", 4, "c"), no_user("1", 5)];
    every_order_ends_alike(&world, "deleted", &deleted).await;
    assert_eq!(world.rows("deleted-99").await, ["user 1 deleted 5 f"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn d2_every_permutation_of_five_versions_with_a_delete_ends_in_the_same_department() {
    let world = World::new().await;
    let events = [
        department("1", 1, ""),
        department("1", 2, "absent"),
        no_department("1", 3),
        department("1", 4, ""),
        department("1", 5, ""),
    ];
    every_order_ends_alike(&world, "live", &events).await;
    assert_eq!(world.rows("live-50").await, ["department 1 live 5 1-5 0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn d2_events_of_one_version_converge_by_event_time_and_then_by_event_id() {
    let world = World::new().await;
    let events = [("a", "late", 2), ("b", "early", 1), ("c", "twin", 2), ("d", "late", 1)];
    for (number, order) in permutations(&events).into_iter().enumerate() {
        let tenant = number.to_string();
        for (id, title, time) in order {
            world.deliver(&tenant, event(&user("1", 3, title), id, Some(time))).await.unwrap();
        }
        assert_eq!(world.rows(&tenant).await, ["user 1 live 3 Person 1 1@example.com twin  f"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d2_an_older_version_is_stale_and_the_same_content_again_is_no_change() {
    let world = World::new().await;
    world.tell("t", &user("1", 2, "b")).await.unwrap();
    assert!(is_stale(&world.tell("t", &user("1", 1, "a")).await));
    assert!(is_no_change(&world.tell("t", &user("1", 2, "b")).await));
    world.tell("t", &department("1", 2, "")).await.unwrap();
    assert!(is_stale(&world.tell("t", &department("1", 1, "")).await));
    assert!(is_no_change(&world.tell("t", &department("1", 2, "")).await));
    world.tell("t", &no_user("1", 3)).await.unwrap();
    assert!(is_no_change(&world.tell("t", &no_user("1", 3)).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn d2_versions_that_arrive_at_the_same_time_end_in_the_newest_and_are_told_once_each() {
    let world = std::sync::Arc::new(World::new().await);
    for round in 0..20_u64 {
        let id = round.to_string();
        let versions: Vec<_> = shuffled(&[1, 2, 3, 4, 5, 6], round);
        let deliveries = versions.into_iter().map(|version| {
            let (world, said) = (world.clone(), user(&id, version, &format!("v{version}")));
            tokio::spawn(async move { told(&world.tell("t", &said).await.unwrap()) })
        });
        let mut ops = Vec::new();
        for delivery in deliveries.collect::<Vec<_>>() {
            ops.extend(delivery.await.unwrap());
        }
        let created = ops.iter().filter(|t| t.payload["op"] == "created").count();
        assert_eq!(created, 1, "round {round}: {ops:?}");
        assert!(ops.iter().all(|t| !t.fields.is_empty()));
        assert!(world.rows("t").await.contains(&format!("user {id} live 6 Person {id} {id}@example.com v6  f")));
    }
}

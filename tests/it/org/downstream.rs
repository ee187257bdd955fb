//! What siblings hear: only changes, with version and changed fields, the same from both encodings.

use bytes::Bytes;
use onceflow::event::Format;
use serde_json::json;

use super::world::{World, department, event, member, told, user, whats};

#[tokio::test(flavor = "multi_thread")]
async fn downstream_tells_only_of_changes_with_version_and_changed_fields() {
    let world = World::new().await;
    let created = world.tell_all("t", &[user("1", 1, "a")]).await;
    assert_eq!(created[0].fields, ["name", "email", "title"]);
    let updated = world.tell_all("t", &[user("1", 2, "b")]).await;
    assert_eq!((whats(&updated), &updated[0].fields), (vec!["user d/1 updated 2"], &vec!["title".to_owned()]));
    assert_eq!(
        updated[0].payload,
        json!({
            "directory": "d", "id": "1", "op": "updated", "version": "2", "changedFields": ["title"],
            "user": {"name": "Person 1", "email": "1@example.com", "title": "b"},
        })
    );
    assert!(world.tell_all("t", &[user("1", 3, "b")]).await.is_empty(), "a newer version of the same is silent");
    assert!(world.rows("t").await[0].starts_with("user 1 live 3"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_tells_of_the_parent_and_a_membership_of_its_values() {
    let world = World::new().await;
    world.tell_all("t", &[department("a", 1, ""), department("b", 1, ""), user("1", 1, "x")]).await;
    let mut moved = department("b", 2, "a");
    moved.1["name"] = "b-1".into();
    let told = world.tell_all("t", &[moved]).await;
    assert_eq!((whats(&told), &told[0].fields), (vec!["department d/b updated 2"], &vec!["parent_id".to_owned()]));
    assert_eq!(told[0].payload["department"], json!({"name": "b-1", "parentId": "a"}));
    let mut membership = member("1", "b", 1);
    world.tell_all("t", std::slice::from_ref(&membership)).await;
    membership.1["version"] = 2.into();
    membership.1["primary"] = true.into();
    let told = world.tell_all("t", &[membership]).await;
    assert_eq!(told[0].what, "membership d/1/b updated 2");
    assert_eq!(
        (&told[0].fields, &told[0].payload["membership"]),
        (&vec!["primary".to_owned()], &json!({"primary": true}))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sample_is_applied_alike_from_json_and_from_protobuf() {
    let world = World::new().await;
    let consumers = onceflow::domains::consumers();
    let org = consumers.iter().find(|c| c.name() == "org").unwrap();
    let prerequisite = json!({"directory": "dingtalk", "id": "1", "version": "1", "name": "Root"});
    let root = ("org.department.upserted.v1", prerequisite);
    world.tell_all("json", std::slice::from_ref(&root)).await;
    world.tell_all("protobuf", &[root]).await;
    for read in org.reads() {
        let json = event(&(read.name, serde_json::from_str(read.sample).unwrap()), read.name, None);
        let mut protobuf = json.clone();
        protobuf.format = Format::Protobuf;
        protobuf.data = Bytes::from((read.to_protobuf.unwrap())(read.sample).unwrap());
        let from_json = told(&world.deliver("json", json).await.unwrap());
        assert_eq!(from_json, told(&world.deliver("protobuf", protobuf).await.unwrap()), "{}", read.name);
    }
    assert_eq!(world.rows("json").await, world.rows("protobuf").await);
}

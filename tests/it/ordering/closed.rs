//! What happens to the line when an operator closes the dead letter that blocks it.

use onceflow::db::Commit;
use onceflow::replay::{self, Change};
use serde_json::json;

use super::{HELD, Ordered, STRICT, all_open, applied, nothing_waits, of_key, started, until_applied};
use crate::harness::{SOON, eventually};
use crate::invariants::broken::check;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i5_strict_an_archived_dead_letter_lets_those_behind_it_go_in_order() {
    let ordered = Ordered::refusing(&["a1"]);
    let stack = started(&ordered, STRICT).await;
    stack.publish_all(of_key(&stack, "a", 0..5)).await;
    stack.death("a1").await;
    stack.until_count(HELD, 3).await;
    let tx = stack.pool().begin().await.unwrap();
    let change = Change { reason: Some("not now".to_owned()), ..all_open() };
    assert_eq!(replay::archive(&tx, &change).await.unwrap().0.ids.len(), 1);
    assert!(matches!(tx.commit().await, Commit::Committed));
    until_applied(&stack, "a", &[0, 2, 3, 4]).await;
    nothing_waits(&stack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i5_strict_an_edited_copy_takes_the_place_of_its_original_and_those_behind_it_follow() {
    let stack = started(&Ordered::default(), &format!("[replay]\nedit = true\n{STRICT}")).await;
    let mut events = of_key(&stack, "a", 0..5);
    events[1].message.body = "{}".into();
    stack.publish_all(events).await;
    stack.death("a1").await;
    stack.until_count(HELD, 3).await;
    assert_eq!(applied(&stack, "a").await, [0]);

    let sql = "SELECT id FROM onceflow.dead_letter WHERE event_id = 'a1'";
    let id: uuid::Uuid = stack.client.query_one(sql, &[]).await.unwrap().get(0);
    let url = format!("http://{}/api/v1/dlq/{id}/edit", stack.app.as_ref().unwrap().admin);
    let body = &json!({ "payload": "{\"n\": 1}", "reason": "the number was missing" });
    // A machine with much to do may not know in time whether a token is needed; then nothing was done.
    eventually(SOON, || async {
        let answer = reqwest::Client::new().post(&url).json(body).send().await.unwrap();
        (answer.status().as_u16() != 503).then(|| assert_eq!(answer.status().as_u16(), 200))
    })
    .await;
    until_applied(&stack, "a", &[0, 1, 2, 3, 4]).await;
    nothing_waits(&stack).await;
    // What comes later waits for nobody.
    stack.publish_all(of_key(&stack, "a", 5..7)).await;
    until_applied(&stack, "a", &[0, 1, 2, 3, 4, 5, 6]).await;
    let report = check(stack.database.as_ref().unwrap().url(), &["--full"]).await;
    assert_eq!(report.status.code(), Some(0), "{}", String::from_utf8_lossy(&report.stdout));
}

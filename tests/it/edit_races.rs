//! Edits of dead letters beside other transactions, without a service.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use onceflow::db::{Commit, Pool};
use onceflow::replay::control;
use onceflow::replay::edit::{self, EditError, NewEdit, Rules};
use onceflow::retention::{Table, prune};
use onceflow::runtime::erase;
use onceflow::runtime::wire::Limits;
use serde_json::Value;
use uuid::Uuid;

use crate::edit::{INSERT, text};
use crate::harness::{Database, Probe, SOON, eventually};

/// As the service would, without one.
async fn edit_in(pool: &Pool, id: Uuid, actor: &str) -> Result<String, EditError> {
    let rules = Rules {
        on: true,
        consumers: vec![Arc::from(erase(Probe::new()))],
        limits: Limits::default(),
        queues: BTreeMap::from([("probe".to_owned(), "flow.probe".to_owned())]),
    };
    let new = NewEdit {
        id,
        payload: Some(b"{\"do\": \"apply\", \"n\": 2}".to_vec()),
        headers: BTreeMap::new(),
        reason: Some("mended".to_owned()),
        actor: actor.to_owned(),
        dry_run: false,
    };
    let tx = pool.begin().await.unwrap();
    match edit::edit(&tx, &new, &rules).await {
        Ok(made) => {
            assert!(matches!(tx.commit().await, Commit::Committed));
            Ok(made.copy_event_id.unwrap())
        }
        Err(error) => {
            tx.rollback().await;
            Err(error)
        }
    }
}

#[tokio::test]
async fn of_two_edits_at_once_one_is_made_and_the_other_is_told_whose() {
    let database = Database::new().await;
    let (client, pool) = (database.client().await, database.pool());
    let id = Uuid::now_v7();
    client.execute(INSERT, &[&id, &"e1"]).await.unwrap();
    let both = tokio::join!(edit_in(&pool, id, "li"), edit_in(&pool, id, "wang"));
    let (copy, refused) = match both {
        (Ok(copy), Err(refused)) | (Err(refused), Ok(copy)) => (copy, refused),
        both => panic!("{both:?}"),
    };
    assert!(matches!(&refused, EditError::AlreadyEdited { copy: told, .. } if *told == copy), "{refused}");
    let row = client.query_one("SELECT headers, routingkey, id FROM onceflow.outbox", &[]).await.unwrap();
    let headers: Value = row.get(0);
    assert_eq!((text(&headers, "amqp:message_id"), text(&headers, "cloudEvents:id")), (copy.as_str(), copy.as_str()));
    assert_eq!((text(&headers, "onceflow-edited-from"), row.get::<_, &str>(1)), ("e1", "flow.probe"));
    assert_eq!((headers.get("x-death"), row.get::<_, Uuid>(2).to_string()), (None, copy));
}

#[tokio::test]
async fn a_claim_of_the_original_that_is_being_made_is_waited_for() {
    let database = Database::new().await;
    let (client, pool) = (database.client().await, database.pool());
    let claim = "INSERT INTO onceflow.inbox (tenant, consumer, source, event_id, event_type, fingerprint, claim_id)
                 VALUES ('default', 'probe', '', $1, 'probe.done.v1', '', gen_random_uuid())";
    for (event, commits) in [("e1", true), ("e2", false)] {
        let id = Uuid::now_v7();
        client.execute(INSERT, &[&id, &event]).await.unwrap();
        let mut consumer = database.client().await;
        let claiming = consumer.transaction().await.unwrap();
        claiming.execute(claim, &[&event]).await.unwrap();
        let edited = tokio::spawn({
            let pool = pool.clone();
            async move { edit_in(&pool, id, "li").await }
        });
        let waits =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        eventually(SOON, || async {
            (client.query_one(waits, &[]).await.unwrap().get::<_, i64>(0) == 1).then_some(())
        })
        .await;
        if commits {
            claiming.commit().await.unwrap();
            assert!(matches!(edited.await.unwrap(), Err(EditError::AlreadyApplied { .. })));
        } else {
            claiming.rollback().await.unwrap();
            edited.await.unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn a_parked_copy_can_not_be_dropped_and_its_original_is_kept() {
    let database = Database::new().await;
    let (client, pool) = (database.client().await, database.pool());
    let id = Uuid::now_v7();
    client.execute(INSERT, &[&id, &"e1"]).await.unwrap();
    let copy: Uuid = edit_in(&pool, id, "li").await.unwrap().parse().unwrap();
    client.execute("UPDATE onceflow.outbox SET parked_at = now(), parked_reason = 'no queue'", &[]).await.unwrap();
    let tx = pool.begin().await.unwrap();
    assert_eq!(control::discard_parked(&tx, &[copy], ("li", "no queue")).await.unwrap(), 0);
    assert!(matches!(tx.commit().await, Commit::Committed));
    let tx = pool.begin().await.unwrap();
    let shown = edit::edit_of(&tx, id).await.unwrap().unwrap();
    tx.rollback().await;
    assert_eq!((shown.edited.copy_state.as_str(), shown.edited.copy_event_id), ("parked", copy.to_string()));
    let aged = "UPDATE onceflow.dead_letter SET closed_at = now() - interval '9 years'";
    client.execute(aged, &[]).await.unwrap();
    assert_eq!(prune(&pool, Table::DeadLetters, Some(Duration::from_secs(86_400))).await.unwrap(), 0);
}

//! Searching dead letters by text, with the index that migrations make and where it could not be made.

use onceflow::replay::{self, Filter, State};

use crate::harness::Database;
use crate::roles::{login, onceflow, set_up};

/// Undoes the newest migrations, for who wants to see it applied to what an installation has.
pub(super) const BACK_TO_15: &str = "
     DROP FUNCTION onceflow.outbox_partition_of;
     DROP INDEX onceflow.outbox_by_writer_seq;
     CREATE INDEX outbox_by_writer ON onceflow.outbox (partition, writer) WHERE parked_at IS NULL;
     ALTER TABLE onceflow.outbox_partition DROP COLUMN floor;
     DROP VIEW onceflow.outbox_books;
     DROP TABLE onceflow.outbox_tally;
     DROP INDEX onceflow.dead_letter_by_text, onceflow.dead_letter_facets, onceflow.dead_letter_replaying;
     DROP EXTENSION pg_trgm;
     DROP SCHEMA onceflow_search;
     DROP STATISTICS onceflow.dead_letter_kinds, onceflow.dead_letter_text;
     DROP FUNCTION onceflow.says(text, text[], text, text, text), onceflow.says(text, text[], text, text[], text, text, text),
         onceflow.searchable, onceflow.error_text;
     CREATE INDEX dead_letter_by_consumer ON onceflow.dead_letter (consumer, state, reason);
     DROP INDEX onceflow.sms_request_known_since, onceflow.sms_request_unread_number;
     ALTER TABLE onceflow.sms_request DROP COLUMN forgotten_at, ADD CONSTRAINT sms_request_accepted_whole CHECK (true);
     DELETE FROM onceflow.refinery_schema_history WHERE version >= 16";

#[tokio::test]
async fn text_is_found_the_same_with_the_index_and_without_it() {
    const LETTER: &str = "
        INSERT INTO onceflow.dead_letter (id, tenant, consumer, source, event_id, event_type, partition_key, stage, reason, error_chain,
            payload, headers, original_exchange, original_routing_key, attempts, first_failed_at, last_failed_at, consumer_version)
        VALUES (gen_random_uuid(), 'acme', 'org', 'hr', $1, 't', $2, 'handle', 'r', $3, '', '{}', '', '', 1, now(), now(), '1')";
    let database = Database::new().await;
    let (client, pool) = (database.client().await, database.pool());
    let key: Option<&str> = Some("Key 100%");
    let errors = ["Zeile 7:\nDer Schlüssel FEHLT".to_owned(), r"because C:\temp_1 is full".to_owned()];
    client.execute(LETTER, &[&"E-1", &key, &errors.to_vec()]).await.unwrap();
    for id in ["e-2", "e-3", "e-4"] {
        client.execute(LETTER, &[&id, &None::<&str>, &vec!["fine".to_owned()]]).await.unwrap();
    }
    // These two are not in the index.
    let replays = "
        UPDATE onceflow.dead_letter SET state = 'replaying' WHERE event_id = 'e-3';
        UPDATE onceflow.dead_letter SET state = 'replayed', closed_at = now() WHERE event_id = 'e-4'";
    client.batch_execute(replays).await.unwrap();
    let by_state =
        [(State::Replaying, 1), (State::Replayed, 1), (State::Discarded, 0), (State::Any, 3), (State::Open, 1)];
    let by_state = by_state.map(|(state, expected)| ("fine", state, expected));
    let of_open = [
        ("schlüssel fehlt", 1usize),
        ("FEHLT because", 1),
        (r"c:\TEMP_1", 1),
        (r"temp1", 0),
        ("E-1", 1),
        ("e-1", 0),
        ("E-", 0),
        ("Key 100%", 1),
        ("Key 100", 0),
        ("key", 0),
        ("temp_1", 1),
        ("full E-1", 0),
        ("i", 2),
        ("SCHLÜSSEL", 1),
        ("SCHLuSSEL", 0),
        ("ssel FEHLT", 1),
    ];
    let cases: Vec<_> =
        of_open.map(|(text, expected)| (text, State::Open, expected)).into_iter().chain(by_state).collect();
    for index in ["", "DROP INDEX onceflow.dead_letter_by_text"] {
        client.batch_execute(index).await.unwrap();
        for &(text, state, expected) in &cases {
            let tx = pool.begin().await.unwrap();
            // A table so small is read as a whole otherwise.
            tx.query("SELECT set_config('enable_seqscan', 'off', true)", &[]).await.unwrap();
            let filter = Filter { text: Some(text.to_owned()), state: Some(state), ..Filter::default() };
            let page = replay::list(&tx, &filter, None, 50).await.unwrap();
            assert_eq!(page.items.len(), expected, "{text}, {state:?}, {index}");
            assert_eq!(replay::total(&tx, &filter).await.unwrap().count, expected as i64, "{text}, {state:?}, {index}");
            tx.rollback().await;
        }
    }
}

#[tokio::test]
async fn whoever_may_not_make_extensions_migrates_and_is_told_that_searching_text_is_slow() {
    let database = Database::new().await;
    set_up(&database).await;
    let client = database.client().await;
    client.batch_execute(BACK_TO_15).await.unwrap();
    let owner = login(&database, Some("owner")).await;
    let output = onceflow(&owner, &["migrate"]).await;
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(told.contains("Searching by text"), "{told}");
    // What docs/OPERATIONS.md says.
    let document = include_str!("../../docs/OPERATIONS.md");
    let sql = document.split_once("**Searching by text").and_then(|(_, rest)| rest.split_once("```sql")).unwrap().1;
    for statement in sql.split_once("```").unwrap().0.split_inclusive(';') {
        client.batch_execute(statement).await.unwrap();
    }
    let output = onceflow(&owner, &["migrate"]).await;
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

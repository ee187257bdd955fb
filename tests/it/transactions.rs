//! Transactions: they can't lie about their end, and leave nothing to the next user of their connection.

use onceflow::db::{Commit, Pool, Settings};
use onceflow::tls::Tls;
use std::time::Duration;

use crate::harness::Database;

const ADD: &str =
    "INSERT INTO onceflow.consumer_state (consumer, paused, changed_by, reason) VALUES ($1, true, 'it', 'x')";
const COUNT: &str = "SELECT count(*) FROM onceflow.consumer_state";

/// A pool of one connection, so that the next user gets the same one.
fn one_connection(database: &Database) -> Pool {
    Pool::new(&Settings {
        url: database.url().to_owned().into(),
        max_connections: 1,
        statement_timeout: Duration::from_secs(20),
        allow_plaintext: false,
        tls: Tls::default(),
        application_name: "it".into(),
        rows_are_short_lived: false,
    })
    .unwrap()
}

async fn rows(pool: &Pool) -> i64 {
    let tx = pool.begin().await.unwrap();
    let count = tx.query_one(COUNT, &[]).await.unwrap().get(0);
    tx.rollback().await;
    count
}

#[tokio::test]
async fn d13_nothing_of_a_session_reaches_the_next_user_of_its_connection() {
    let database = Database::new().await;
    let pool = one_connection(&database);
    let tx = pool.begin().await.unwrap();
    let pid: i32 = tx.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    tx.execute("SET search_path = pg_catalog", &[]).await.unwrap();
    tx.execute("SELECT pg_advisory_lock(42)", &[]).await.unwrap();
    tx.execute("CREATE TEMPORARY TABLE left_over (n int)", &[]).await.unwrap();
    assert!(matches!(tx.commit().await, Commit::Committed));
    let tx = pool.begin().await.unwrap();
    let next: i32 = tx.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    assert_eq!(next, pid, "the same connection");
    let path: String = tx.query_one("SELECT current_setting('search_path')", &[]).await.unwrap().get(0);
    assert_eq!(path, "onceflow,pg_temp");
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()";
    assert_eq!(tx.query_one(locks, &[]).await.unwrap().get::<_, i64>(0), 0);
    let table = "SELECT to_regclass('pg_temp.left_over') IS NULL";
    assert!(tx.query_one(table, &[]).await.unwrap().get::<_, bool>(0));
    tx.rollback().await;
}

#[tokio::test]
async fn i3_a_last_statement_goes_with_the_commit_and_its_rows_are_there() {
    let database = Database::new().await;
    let pool = one_connection(&database);
    let tx = pool.begin().await.unwrap();
    tx.execute(ADD, &[&"first"]).await.unwrap();
    let (commit, answer) = tx.query_and_commit(COUNT, &[]).await;
    assert!(matches!(commit, Commit::Committed));
    assert_eq!(answer[0].get::<_, i64>(0), 1);
    assert_eq!(rows(&pool).await, 1);
}

#[tokio::test]
async fn i3_a_last_statement_that_the_server_refuses_takes_everything_with_it_d11() {
    let database = Database::new().await;
    let pool = one_connection(&database);
    let tx = pool.begin().await.unwrap();
    tx.execute(ADD, &[&"first"]).await.unwrap();
    let (commit, answer) = tx.query_and_commit(ADD, &[&"first"]).await;
    assert!(matches!(&commit, Commit::RolledBack(error) if error.sqlstate() == Some("23505")), "{commit:?}");
    assert_eq!((answer.len(), rows(&pool).await), (0, 0));
}

#[tokio::test]
async fn i3_a_last_statement_that_can_not_be_sent_is_not_committed_without_d11() {
    let database = Database::new().await;
    let pool = one_connection(&database);
    let tx = pool.begin().await.unwrap();
    tx.execute(ADD, &[&"first"]).await.unwrap();
    // A number where the statement has a text: the client refuses it, the server never sees it.
    let (commit, _) = tx.query_and_commit(ADD, &[&7i64]).await;
    assert!(matches!(commit, Commit::RolledBack(_)), "{commit:?}");
    assert_eq!(rows(&pool).await, 0);
}

#[tokio::test]
async fn i3_after_a_swallowed_error_the_last_statement_is_not_even_sent_d11() {
    let database = Database::new().await;
    let pool = one_connection(&database);
    let tx = pool.begin().await.unwrap();
    tx.execute(ADD, &[&"first"]).await.unwrap();
    tx.execute(ADD, &[&"first"]).await.unwrap_err();
    let (commit, _) = tx.query_and_commit(COUNT, &[]).await;
    assert!(matches!(commit, Commit::RolledBack(_)), "{commit:?}");
    assert_eq!(rows(&pool).await, 0);
}

#[tokio::test]
async fn i3_a_begin_that_goes_with_the_first_statement_makes_one_transaction() {
    let database = Database::new().await;
    let pool = one_connection(&database);
    for _ in 0..2 {
        let tx = pool.begin_with_first_statement().await.unwrap();
        tx.execute(ADD, &[&"first"]).await.unwrap();
        assert_eq!(tx.round_trips(), 1);
        tx.execute(ADD, &[&"second"]).await.unwrap();
        tx.rollback().await;
        assert_eq!(rows(&pool).await, 0, "both are undone");
    }
    let tx = pool.begin_with_first_statement().await.unwrap();
    let (commit, _) = tx.query_and_commit(ADD, &[&"only"]).await;
    assert!(matches!(commit, Commit::Committed), "{commit:?}");
    assert_eq!(rows(&pool).await, 1);
    let nothing = pool.begin_with_first_statement().await.unwrap();
    assert!(matches!(nothing.commit().await, Commit::Committed));
}

/// Were a BEGIN to fail, the statement that was sent with it would otherwise be committed alone.
#[tokio::test]
async fn i3_outside_a_transaction_our_sessions_can_not_write() {
    let database = Database::new().await;
    let pool = one_connection(&database);
    let tx = pool.begin().await.unwrap();
    tx.execute(ADD, &[&"before"]).await.unwrap();
    // The server ends the transaction behind our back; what follows stands alone.
    tx.execute("ROLLBACK", &[]).await.unwrap();
    let refused = tx.execute(ADD, &[&"alone"]).await.unwrap_err();
    assert_eq!(refused.sqlstate(), Some("25006"));
    tx.rollback().await;
    assert_eq!(rows(&pool).await, 0);
}

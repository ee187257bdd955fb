//! What is old is removed, and only that.

use std::time::Duration;

use onceflow::db::Pool;
use onceflow::retention::{Table, prune};
use tokio_postgres::Client;

use crate::harness::{Database, SOON, eventually};

const DAY: Duration = Duration::from_secs(86_400);
/// More than two batches.
const OLD: i64 = 2_300;

const INBOX: &str = "
    INSERT INTO onceflow.inbox (tenant, consumer, source, event_id, event_type, fingerprint, claim_id, processed_at)
    SELECT 'acme', 'org', 'hr', 'e' || n, 't', '', gen_random_uuid(),
           clock_timestamp() - CASE WHEN n <= $1::bigint THEN interval '31 days' ELSE interval '29 days' END
    FROM generate_series(1, $1::bigint + 10) AS n";
const DEAD_LETTERS: &str = "
    INSERT INTO onceflow.dead_letter (id, tenant, consumer, source, event_id, event_type, stage, reason, error_chain, payload, headers,
        original_exchange, original_routing_key, attempts, first_failed_at, last_failed_at, consumer_version, state, closed_at)
    SELECT gen_random_uuid(), 'acme', 'org', 'hr', 'e' || n, 't', 'handle', 'r', '{}', '', '{}', '', '', 1,
           clock_timestamp() - interval '99 days', clock_timestamp() - interval '99 days', '1',
           CASE n % 3 WHEN 0 THEN 'open' WHEN 1 THEN 'replayed' ELSE 'discarded' END,
           CASE n % 3 WHEN 0 THEN NULL WHEN 1 THEN clock_timestamp() - interval '31 days' ELSE clock_timestamp() - interval '29 days' END
    FROM generate_series(1, 300) AS n";
const ATTEMPTS: &str = "
    INSERT INTO onceflow.attempt (tenant, consumer, source, event_id, id, event_type, attempt, at, instance, consumer_version, stage, code,
        error_chain)
    SELECT 'acme', 'org', 'hr', 'e' || n, gen_random_uuid(), 't', 1, clock_timestamp() - n * interval '20 days', 'host:1', '1', 'handle',
           'r', '{}'
    FROM generate_series(0, 9) AS n";
const JOBS: &str = "
    INSERT INTO onceflow.bulk_job (id, action, state, actor, reason, selection, bound, plan, rate, max_in_flight, canary, hold_seconds,
        planned, waiting, skipped, finished_at)
    VALUES ('00000000-0000-0000-0000-000000000001', 'replay', 'cancelled', 'li', 'r', '{}', now(), '{}', 50, 100, 5, 10, 1500, 0, 1500,
            now() - interval '31 days'),
           ('00000000-0000-0000-0000-000000000002', 'replay', 'running', 'li', 'r', '{}', now(), '{}', 50, 100, 5, 10, 1500, 1500, 0, NULL);
    INSERT INTO onceflow.bulk_job_item (job_id, nth, tenant, dead_letter_id, consumer, key, turn, canary, ready, state, reason)
    SELECT j.id, n, 'acme', gen_random_uuid(), 'org', gen_random_uuid(), 1, false, true,
           CASE WHEN j.finished_at IS NULL THEN 'waiting' ELSE 'skipped' END, CASE WHEN j.finished_at IS NULL THEN NULL ELSE 'cancelled' END
    FROM onceflow.bulk_job j, generate_series(1, 1500) AS n;";
const AUDIT: &str = "
    INSERT INTO onceflow.audit (id, actor, action, subject, at)
    SELECT gen_random_uuid(), 'li', 'dlq.replay', 'ids', clock_timestamp() - n * interval '20 days' FROM generate_series(0, 3) AS n";

async fn start() -> (Database, Client, Pool) {
    let database = Database::new().await;
    let (client, pool) = (database.client().await, database.pool());
    (database, client, pool)
}

async fn count(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn old_inbox_rows_go_in_batches_and_younger_ones_stay() {
    let (_database, client, pool) = start().await;
    client.execute(INBOX, &[&OLD]).await.unwrap();
    assert_eq!(prune(&pool, Table::Inbox, Some(DAY * 30)).await.unwrap(), OLD.unsigned_abs());
    assert_eq!(count(&client, "SELECT count(*) FROM onceflow.inbox").await, 10);
    assert_eq!(prune(&pool, Table::Inbox, Some(DAY * 30)).await.unwrap(), 0);
}

/// It is looked for once a minute: with ten million young rows each look took seconds of a core, found by the bench at full size.
#[tokio::test]
async fn looking_for_old_rows_reads_no_young_ones() {
    const YOUNG: &str = "
        INSERT INTO onceflow.inbox (tenant, consumer, source, event_id, event_type, fingerprint, claim_id)
        SELECT 'acme', 'org', 'hr', 'e' || n, 't', '', gen_random_uuid() FROM generate_series(1, 20000) AS n";
    // Of whole transactions only, some time after their end.
    const READ: &str = "
        SELECT (seq_scan + idx_scan)::bigint, (seq_tup_read + idx_tup_fetch)::bigint
        FROM pg_stat_user_tables WHERE relname = 'inbox'";
    let (database, client, pool) = start().await;
    client.execute(YOUNG, &[]).await.unwrap();
    database.client().await.batch_execute("VACUUM ANALYZE onceflow.inbox").await.unwrap();
    let read = || async {
        let row = client.query_one(READ, &[]).await.unwrap();
        (row.get::<_, i64>(0), row.get::<_, i64>(1))
    };
    let (scans, rows) = read().await;
    assert_eq!(prune(&pool, Table::Inbox, Some(DAY * 30)).await.unwrap(), 0);
    // The look and that for the oldest.
    let looked = || async { Some(read().await).filter(|(now, _)| *now >= scans + 2) };
    let (_, now) = eventually(SOON, looked).await;
    assert!(now - rows <= 10, "{} rows were read", now - rows);
}

#[tokio::test]
async fn what_is_kept_for_ever_is_kept() {
    let (_database, client, pool) = start().await;
    client.execute(INBOX, &[&5_i64]).await.unwrap();
    assert_eq!(prune(&pool, Table::Inbox, None).await.unwrap(), 0);
    assert_eq!(count(&client, "SELECT count(*) FROM onceflow.inbox").await, 15);
}

#[tokio::test]
async fn open_dead_letters_never_go_however_old_they_are() {
    let (_database, client, pool) = start().await;
    client.execute(DEAD_LETTERS, &[]).await.unwrap();
    assert_eq!(prune(&pool, Table::DeadLetters, Some(DAY * 30)).await.unwrap(), 100);
    assert_eq!(count(&client, "SELECT count(*) FROM onceflow.dead_letter WHERE state = 'open'").await, 100);
    assert_eq!(count(&client, "SELECT count(*) FROM onceflow.dead_letter WHERE state = 'discarded'").await, 100);
}

#[tokio::test]
async fn attempts_go_by_their_age_unless_their_event_still_has_a_dead_letter() {
    let (_database, client, pool) = start().await;
    client.execute(ATTEMPTS, &[]).await.unwrap();
    client.execute(DEAD_LETTERS, &[]).await.unwrap();
    client.execute("DELETE FROM onceflow.dead_letter WHERE event_id NOT IN ('e2', 'e3')", &[]).await.unwrap();
    assert_eq!(prune(&pool, Table::Attempts, Some(DAY * 30)).await.unwrap(), 6);
    let left = "SELECT string_agg(event_id, ' ' ORDER BY event_id) FROM onceflow.attempt";
    assert_eq!(client.query_one(left, &[]).await.unwrap().get::<_, &str>(0), "e0 e1 e2 e3");
}

#[tokio::test]
async fn an_ended_job_goes_with_its_list_and_one_that_runs_stays() {
    let (_database, client, pool) = start().await;
    client.batch_execute(JOBS).await.unwrap();
    assert_eq!(prune(&pool, Table::Jobs, Some(DAY * 30)).await.unwrap(), 1_500);
    prune(&pool, Table::Jobs, Some(DAY * 30)).await.unwrap();
    assert_eq!(count(&client, "SELECT count(*) FROM onceflow.bulk_job_item").await, 1_500);
    let left = "SELECT count(*) FROM onceflow.bulk_job WHERE finished_at IS NULL";
    assert_eq!((count(&client, left).await, count(&client, "SELECT count(*) FROM onceflow.bulk_job").await), (1, 1));
}

#[tokio::test]
async fn audit_rows_go_by_their_age() {
    let (_database, client, pool) = start().await;
    client.execute(AUDIT, &[]).await.unwrap();
    assert_eq!(prune(&pool, Table::Audit, Some(DAY * 30)).await.unwrap(), 2);
    assert_eq!(count(&client, "SELECT count(*) FROM onceflow.audit").await, 2);
}

/// Nothing on the way of an event waits for retention, and retention waits for nobody.
#[tokio::test]
async fn a_locked_row_is_passed_over_and_goes_next_time() {
    let (database, client, pool) = start().await;
    client.execute(INBOX, &[&3_i64]).await.unwrap();
    let mut other = database.client().await;
    let held = other.transaction().await.unwrap();
    held.execute("SELECT 1 FROM onceflow.inbox WHERE event_id = 'e2' FOR UPDATE", &[]).await.unwrap();
    assert_eq!(prune(&pool, Table::Inbox, Some(DAY * 30)).await.unwrap(), 2);
    held.rollback().await.unwrap();
    assert_eq!(prune(&pool, Table::Inbox, Some(DAY * 30)).await.unwrap(), 1);
}

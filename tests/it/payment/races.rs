//! Concurrent transactions on one order, and batches on several.

use std::sync::Arc;
use std::time::Duration;

use onceflow::db::{Commit, Tx};
use onceflow::event::{Downstream, Envelope};
use onceflow::runtime::Outcome;

use super::{PLACED, cancel, consumer, direct, downstream, event, placed, recorded, skipped, state, success, types};
use crate::harness::direct::Direct;
use crate::harness::eventually;

const PATIENCE: Duration = Duration::from_secs(20);

async fn in_tx(tx: &Tx, event: Envelope) -> Outcome {
    let consumer = consumer();
    let decoded = consumer.decode(&event).unwrap();
    consumer.handle(tx, vec![(Arc::new(event), decoded)]).await.unwrap().remove(0)
}

/// Runs `first`, then `second` in a concurrent transaction that starts while the first one is open, then commits both.
async fn overlapping(direct: &Direct, first: Envelope, second: Envelope) -> Vec<Downstream> {
    let pool = direct.database.pool();
    let (one, two) = (pool.begin().await.unwrap(), pool.begin().await.unwrap());
    let told = in_tx(&one, first).await;
    let waiting = tokio::spawn(async move {
        let told = in_tx(&two, second).await;
        assert!(matches!(two.commit().await, Commit::Committed));
        told
    });
    until_one_waits(direct).await;
    assert!(matches!(one.commit().await, Commit::Committed));
    [Ok(told), Ok(waiting.await.unwrap())].into_iter().flat_map(downstream).collect()
}

/// Until another transaction waits for a lock.
async fn until_one_waits(direct: &Direct) {
    let client = direct.database.client().await;
    eventually(PATIENCE, || async {
        let sql =
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        let blocked: i64 = client.query_one(sql, &[]).await.unwrap().get(0);
        (blocked == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn p02_a_notification_that_two_transactions_record_at_once_for_two_orders_is_recorded_once() {
    let direct = direct().await;
    direct.apply_batch(vec![event(PLACED, &placed("SO-1")), event(PLACED, &placed("SO-2"))]).await.unwrap();
    let one = direct.database.pool().begin().await.unwrap();
    in_tx(&one, success("SO-1", "n1", "t1")).await;
    let (second, ()) = tokio::join!(direct.apply_one(success("SO-2", "n1", "t1")), async {
        until_one_waits(&direct).await;
        assert!(matches!(one.commit().await, Commit::Committed));
    });
    assert_eq!(second.unwrap_err().code, "callback_conflict");
    assert_eq!((state(&direct, "SO-1").await, state(&direct, "SO-2").await), ("PAID".into(), "CREATED".into()));
    assert_eq!(direct.apply_one(success("SO-1", "n1", "t1")).await, skipped("already_recorded"));
}

#[tokio::test]
async fn a_callback_and_its_order_in_concurrent_transactions_never_miss_each_other() {
    let direct = direct().await;
    let told = overlapping(&direct, success("SO-1", "n1", "t1"), event(PLACED, &placed("SO-1"))).await;
    assert_eq!(types(&told), ["payment.recorded.v1", "order.paid.v1"]);
    let told = overlapping(&direct, event(PLACED, &placed("SO-2")), success("SO-2", "n2", "t2")).await;
    assert_eq!(types(&told), ["payment.recorded.v1", "order.paid.v1"]);
    for order in ["SO-1", "SO-2"] {
        assert_eq!(recorded(&direct, order).await, ["SUCCESS accepted"]);
    }
}

#[tokio::test]
async fn p05_close_and_pay_that_race_have_one_winner() {
    let direct = direct().await;
    for i in 0..50 {
        let order = format!("SO-{i}");
        direct.apply_one(event(PLACED, &placed(&order))).await.unwrap();
        let pay = direct.apply_one(success(&order, &format!("n{i}"), &format!("t{i}")));
        let (paid, closed) = tokio::join!(pay, direct.apply_one(cancel(&order)));
        let told = [downstream(paid), downstream(closed)].concat();
        let end = state(&direct, &order).await;
        let expected: &[&str] = match end.as_str() {
            "PAID" => &["payment.recorded.v1", "order.paid.v1"],
            _ => &["payment.review_required.v1", "order.closed.v1"],
        };
        assert_eq!(types(&told), expected, "{end}");
    }
}

#[tokio::test]
async fn p10_batches_with_the_same_orders_in_opposite_order_never_deadlock() {
    let direct = direct().await;
    for round in 0..20 {
        let batch = |tag: &str| -> Vec<Envelope> {
            (0..10)
                .map(|i| success(&format!("SO-{i}"), &format!("{tag}{round}-{i}"), &format!("{tag}{round}-{i}")))
                .collect()
        };
        let (forward, mut backward) = (batch("a"), batch("b"));
        backward.reverse();
        let (one, two) = tokio::join!(direct.apply_batch(forward), direct.apply_batch(backward));
        assert_eq!((one.unwrap().len(), two.unwrap().len()), (10, 10));
    }
}

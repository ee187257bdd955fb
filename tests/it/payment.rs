//! Orders and callbacks on a real database: recorded once, in any order, in parallel; contradictions go to review.

mod batches;
mod races;
mod samples;

use futures_util::stream::{self, StreamExt};
use onceflow::domains::consumers;
use onceflow::event::{Downstream, Envelope, Rejection};
use onceflow::runtime::{AnyConsumer, Outcome, Skip};
use serde_json::{Value, json};

use crate::harness::direct::{Direct, envelope};

fn consumer() -> Box<dyn AnyConsumer> {
    consumers().into_iter().find(|consumer| consumer.name() == "payment").unwrap()
}

async fn direct() -> Direct {
    Direct::named("payment").await
}

fn placed(order: &str) -> Value {
    json!({
        "orderNo": order, "merchantId": "m1", "currency": "CNY", "total": "12800",
        "lines": [{"sku": "TEA", "quantity": "2", "unitPrice": "4950"}, {"sku": "CUP", "quantity": "1", "unitPrice": "2900"}],
    })
}

fn callback(order: &str, notify: &str, transaction: &str, status: &str) -> Value {
    json!({
        "provider": "wechat", "notifyId": notify, "transactionId": transaction, "orderNo": order, "merchantId": "m1",
        "amount": "12800", "currency": "CNY", "status": format!("PAYMENT_STATUS_{status}"), "paidAt": "2024-11-21T11:50:00Z",
    })
}

fn success(order: &str, notify: &str, transaction: &str) -> Envelope {
    event(CALLBACK, &callback(order, notify, transaction, "SUCCESS"))
}

const PLACED: &str = "order.placed.v1";
const CANCEL: &str = "order.cancel.requested.v1";
const CALLBACK: &str = "payment.callback.received.v1";

/// An event with an id that nothing else has.
fn event(event_type: &str, payload: &Value) -> Envelope {
    envelope(event_type, &uuid::Uuid::now_v7().to_string(), payload)
}

fn cancel(order: &str) -> Envelope {
    event(CANCEL, &json!({"orderNo": order, "reason": "payment_timeout"}))
}

fn downstream(outcome: Result<Outcome, Rejection>) -> Vec<Downstream> {
    match outcome {
        Ok(Outcome::Applied(downstream)) => downstream,
        Ok(Outcome::Skipped(_)) => vec![],
        other => panic!("neither applied nor skipped: {other:?}"),
    }
}

fn types(downstream: &[Downstream]) -> Vec<&'static str> {
    downstream.iter().map(|event| event.event_type).collect()
}

fn skipped(code: &'static str) -> Result<Outcome, Rejection> {
    Ok(Outcome::Skipped(Skip::Because(code)))
}

fn reasons(downstream: &Downstream) -> Value {
    assert_eq!(downstream.event_type, "payment.review_required.v1");
    serde_json::from_str::<Value>(&downstream.payload).unwrap()["reasons"].clone()
}

async fn state(direct: &Direct, order: &str) -> String {
    let sql = "select state from onceflow.payment_order where order_no = $1";
    direct.database.client().await.query_one(sql, &[&order]).await.unwrap().get(0)
}

/// `status disposition` of every recorded callback of the order, in order of arrival.
async fn recorded(direct: &Direct, order: &str) -> Vec<String> {
    let sql = "select status || ' ' || disposition from onceflow.payment where order_no = $1 order by seq";
    let rows = direct.database.client().await.query(sql, &[&order]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn an_order_is_placed_paid_and_told_of() {
    let direct = direct().await;
    assert!(downstream(direct.apply_one(event(PLACED, &placed("SO-1"))).await).is_empty());
    let paying = event(CALLBACK, &callback("SO-1", "n1", "t1", "PROCESSING"));
    assert_eq!(types(&downstream(direct.apply_one(paying).await)), ["payment.recorded.v1"]);
    let told = downstream(direct.apply_one(success("SO-1", "n2", "t1")).await);
    assert_eq!(types(&told), ["payment.recorded.v1", "order.paid.v1"]);
    assert_eq!((told[0].aggregate_type, told[0].aggregate_id.as_str()), ("payment", "wechat/t1"));
    assert_eq!((told[1].aggregate_type, told[1].aggregate_id.as_str()), ("order", "SO-1"));
    assert!(told.iter().all(|event| event.partition_key.as_deref() == Some("SO-1")));
    let mut paid: Value = serde_json::from_str(&told[1].payload).unwrap();
    let paid_at: jiff::Timestamp = paid["paidAt"].take().as_str().unwrap().parse().unwrap();
    assert_eq!(paid_at, "2024-11-21T11:50:00Z".parse().unwrap());
    assert_eq!(
        paid,
        json!({
            "orderNo": "SO-1", "merchantId": "m1", "total": "12800", "currency": "CNY", "provider": "wechat",
            "transactionId": "t1", "paidAt": null, "version": "3",
        })
    );
    assert_eq!(recorded(&direct, "SO-1").await, ["PROCESSING accepted", "SUCCESS accepted"]);
}

#[tokio::test]
async fn p02_a_hundred_parallel_copies_of_one_notification_are_recorded_once() {
    let direct = direct().await;
    direct.apply_one(event(PLACED, &placed("SO-1"))).await.unwrap();
    let copies = (0..100).map(|_| success("SO-1", "n1", "t1")).collect();
    assert_one_was_applied(concurrently(&direct, copies).await);
    assert_eq!(recorded(&direct, "SO-1").await, ["SUCCESS accepted"]);
}

#[tokio::test]
async fn p02_a_hundred_parallel_notifications_of_one_transaction_are_recorded_once() {
    let direct = direct().await;
    direct.apply_one(event(PLACED, &placed("SO-1"))).await.unwrap();
    let copies = (0..100).map(|i| success("SO-1", &format!("n{i}"), "t1")).collect();
    assert_one_was_applied(concurrently(&direct, copies).await);
    assert_eq!(recorded(&direct, "SO-1").await, ["SUCCESS accepted"]);
}

/// Each event in a transaction of its own, as many of them at once as the pool has connections.
async fn concurrently(direct: &Direct, events: Vec<Envelope>) -> Vec<Result<Outcome, Rejection>> {
    const CONNECTIONS: usize = 8;
    stream::iter(events).map(|event| direct.apply_one(event)).buffer_unordered(CONNECTIONS).collect().await
}

fn assert_one_was_applied(outcomes: Vec<Result<Outcome, Rejection>>) {
    let (again, first): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(|o| *o == skipped("already_recorded"));
    assert_eq!((first.len(), again.len()), (1, 99));
    let told = downstream(first.into_iter().next().unwrap());
    assert_eq!(types(&told), ["payment.recorded.v1", "order.paid.v1"]);
}

#[tokio::test]
async fn p02_copies_within_one_micro_batch_are_recorded_once() {
    let direct = direct().await;
    let batch = vec![
        event(PLACED, &placed("SO-1")),
        success("SO-1", "n1", "t1"),
        success("SO-1", "n1", "t1"),
        success("SO-1", "n2", "t1"),
    ];
    let outcomes = direct.apply_batch(batch).await.unwrap();
    let again = Outcome::Skipped(Skip::Because("already_recorded"));
    assert!(matches!(&outcomes[1], Outcome::Applied(told) if told.len() == 2));
    assert_eq!(outcomes[2..], [again.clone(), again]);
}

#[tokio::test]
async fn p02_other_news_under_a_known_notification_or_transaction_is_rejected() {
    let direct = direct().await;
    direct.apply_one(event(PLACED, &placed("SO-1"))).await.unwrap();
    direct.apply_one(success("SO-1", "n1", "t1")).await.unwrap();
    let mut dearer = callback("SO-1", "n2", "t1", "SUCCESS");
    dearer["amount"] = json!("99999");
    let table = [
        ("notification id, other transaction", callback("SO-1", "n1", "t2", "SUCCESS")),
        ("notification id, other status", callback("SO-1", "n1", "t1", "FAILED")),
        ("transaction, other order", callback("SO-2", "n2", "t1", "SUCCESS")),
        ("transaction, other amount", dearer),
    ];
    for (what, payload) in table {
        assert_eq!(direct.apply_one(event(CALLBACK, &payload)).await.unwrap_err().code, "callback_conflict", "{what}");
    }
    assert_eq!(state(&direct, "SO-1").await, "PAID");
    assert_eq!(recorded(&direct, "SO-1").await, ["SUCCESS accepted"]);
}

#[tokio::test]
async fn p02_two_tenants_and_two_providers_may_use_the_same_ids() {
    let direct = direct().await;
    let mut other_tenant = success("SO-1", "n1", "t1");
    other_tenant.tenant = "other".into();
    let mut other_provider = callback("SO-1", "n1", "t1", "SUCCESS");
    other_provider["provider"] = json!("alipay");
    for event in [success("SO-1", "n1", "t1"), other_tenant, event(CALLBACK, &other_provider)] {
        assert_eq!(direct.apply_one(event).await, Ok(Outcome::applied()));
    }
    assert_eq!(recorded(&direct, "SO-1").await.len(), 3);
}

/// Every order in which the events can come.
fn permutations(events: &[Envelope]) -> Vec<Vec<Envelope>> {
    if events.is_empty() {
        return vec![vec![]];
    }
    let heads = 0..events.len();
    heads
        .flat_map(|first| {
            let mut rest = events.to_vec();
            let head = rest.remove(first);
            permutations(&rest).into_iter().map(move |tail| [vec![head.clone()], tail].concat())
        })
        .collect()
}

fn story(order: &str) -> Vec<Envelope> {
    vec![
        event(PLACED, &placed(order)),
        event(CALLBACK, &callback(order, &format!("{order}-n1"), &format!("{order}-t"), "PROCESSING")),
        success(order, &format!("{order}-n2"), &format!("{order}-t")),
        cancel(order),
    ]
}

/// What must come of an order of [`story`]: once placed, whichever of success and cancel came first, with success before
/// a cancel where both waited for the order.
fn lawful(events: &[Envelope]) -> (&'static str, &'static str, Vec<&'static str>) {
    let at = |found: fn(&Envelope) -> bool| events.iter().position(found).unwrap();
    let placed = at(|e| e.event_type == PLACED);
    let succeeded = at(|e| e.data.windows(7).any(|w| w == b"SUCCESS")).max(placed);
    let cancelled = at(|e| e.event_type == CANCEL).max(placed);
    if succeeded <= cancelled {
        ("PAID", "SUCCESS accepted", vec!["order.paid.v1"])
    } else {
        ("CLOSED", "SUCCESS late", vec!["order.closed.v1", "payment.review_required.v1"])
    }
}

#[tokio::test]
async fn p03_all_permutations_of_placed_processing_success_and_cancel_end_lawfully() {
    let direct = direct().await;
    for (i, events) in (0..24).map(|i| (i, permutations(&story(&format!("SO-{i}"))).swap_remove(i))) {
        let order = format!("SO-{i}");
        let (end, success, mut expected) = lawful(&events);
        let names: Vec<_> = events.iter().map(|e| e.event_type.clone()).collect();
        // Half of them as one micro-batch: that must make no difference.
        let outcomes = if i % 2 == 0 {
            direct.apply(events).await
        } else {
            direct.apply_batch(events).await.unwrap().into_iter().map(Ok).collect()
        };
        let told: Vec<_> = outcomes.into_iter().flat_map(downstream).collect();
        let mut decisive: Vec<_> = types(&told).into_iter().filter(|t| *t != "payment.recorded.v1").collect();
        decisive.sort_unstable();
        expected.sort_unstable();
        assert_eq!(decisive, expected, "{names:?}");
        assert_eq!(state(&direct, &order).await, end, "{names:?}");
        let recorded = recorded(&direct, &order).await;
        assert!(recorded.len() == 2 && recorded.contains(&success.to_owned()), "{names:?}: {recorded:?}");
    }
}

#[tokio::test]
async fn p03_an_outranked_callback_is_recorded_without_effect() {
    let direct = direct().await;
    direct.apply_one(event(PLACED, &placed("SO-1"))).await.unwrap();
    direct.apply_one(success("SO-1", "n2", "t1")).await.unwrap();
    let late_news = event(CALLBACK, &callback("SO-1", "n1", "t1", "PROCESSING"));
    assert_eq!(direct.apply_one(late_news).await, skipped("outranked"));
    assert_eq!(direct.apply_one(cancel("SO-1")).await, skipped("already_paid"));
    assert_eq!(state(&direct, "SO-1").await, "PAID");
    assert_eq!(recorded(&direct, "SO-1").await, ["SUCCESS accepted", "PROCESSING no_effect"]);
}

#[tokio::test]
async fn p03_a_failed_or_closed_attempt_leaves_the_order_open_for_the_next() {
    let direct = direct().await;
    direct.apply_one(event(PLACED, &placed("SO-1"))).await.unwrap();
    for (notify, status) in [("n1", "FAILED"), ("n2", "CLOSED")] {
        let ended = event(CALLBACK, &callback("SO-1", notify, "t1", status));
        assert_eq!(types(&downstream(direct.apply_one(ended).await)), ["payment.recorded.v1"]);
    }
    assert_eq!(state(&direct, "SO-1").await, "CREATED");
    direct.apply_one(success("SO-1", "n3", "t2")).await.unwrap();
    assert_eq!(state(&direct, "SO-1").await, "PAID");
}

#[tokio::test]
async fn p04_a_callback_that_contradicts_its_order_puts_it_under_review_and_pays_nothing() {
    let direct = direct().await;
    let table = [
        ("amount", json!("12799"), json!(["amount_mismatch"])),
        ("currency", json!("USD"), json!(["currency_mismatch"])),
        ("merchantId", json!("m2"), json!(["merchant_mismatch"])),
    ];
    for (i, (field, value, expected)) in table.into_iter().enumerate() {
        let order = format!("SO-{i}");
        direct.apply_one(event(PLACED, &placed(&order))).await.unwrap();
        let mut payload = callback(&order, &format!("n{i}"), &format!("t{i}"), "SUCCESS");
        payload[field] = value;
        let told = downstream(direct.apply_one(event(CALLBACK, &payload)).await);
        assert_eq!(told.len(), 1, "{field}");
        assert_eq!(reasons(&told[0]), expected, "{field}");
        assert_eq!(state(&direct, &order).await, "REVIEW", "{field}");
        assert_eq!(recorded(&direct, &order).await, ["SUCCESS mismatch"], "{field}");
    }
}

#[tokio::test]
async fn p04_money_that_comes_while_an_order_is_under_review_is_recorded_and_not_posted() {
    let direct = direct().await;
    direct.apply_one(event(PLACED, &placed("SO-1"))).await.unwrap();
    let mut wrong = callback("SO-1", "n1", "t1", "SUCCESS");
    wrong["amount"] = json!("1");
    direct.apply_one(event(CALLBACK, &wrong)).await.unwrap();
    let told = downstream(direct.apply_one(success("SO-1", "n2", "t2")).await);
    assert_eq!(told.len(), 1);
    assert_eq!(reasons(&told[0]), json!(["order_under_review"]));
    assert_eq!(direct.apply_one(cancel("SO-1")).await, skipped("order_under_review"));
    assert_eq!(recorded(&direct, "SO-1").await, ["SUCCESS mismatch", "SUCCESS under_review"]);
}

#[tokio::test]
async fn p05_a_payment_after_the_order_was_closed_is_recorded_as_late_and_reviewed() {
    let direct = direct().await;
    direct.apply_one(event(PLACED, &placed("SO-1"))).await.unwrap();
    let closed = downstream(direct.apply_one(cancel("SO-1")).await);
    assert_eq!(types(&closed), ["order.closed.v1"]);
    assert_eq!(direct.apply_one(cancel("SO-1")).await, skipped("already_closed"));
    let told = downstream(direct.apply_one(success("SO-1", "n1", "t1")).await);
    assert_eq!(told.len(), 1);
    assert_eq!(reasons(&told[0]), json!(["paid_after_close"]));
    assert_eq!(direct.apply_one(success("SO-1", "n2", "t1")).await, skipped("already_recorded"));
    assert_eq!(state(&direct, "SO-1").await, "CLOSED");
    assert_eq!(recorded(&direct, "SO-1").await, ["SUCCESS late"]);
}

#[tokio::test]
async fn a_second_transaction_that_pays_a_paid_order_is_recorded_as_duplicate_and_reviewed() {
    let direct = direct().await;
    direct.apply_one(event(PLACED, &placed("SO-1"))).await.unwrap();
    direct.apply_one(success("SO-1", "n1", "t1")).await.unwrap();
    let told = downstream(direct.apply_one(success("SO-1", "n2", "t2")).await);
    assert_eq!(told.len(), 1);
    assert_eq!(reasons(&told[0]), json!(["duplicate_payment"]));
    assert_eq!(state(&direct, "SO-1").await, "PAID");
    assert_eq!(recorded(&direct, "SO-1").await, ["SUCCESS accepted", "SUCCESS duplicate_payment"]);
}

#[tokio::test]
async fn orphans_wait_for_their_order_and_have_all_effects_when_it_is_placed() {
    let direct = direct().await;
    let mut wrong = callback("SO-2", "n3", "t3", "SUCCESS");
    wrong["currency"] = json!("USD");
    for orphan in [success("SO-1", "n1", "t1"), success("SO-1", "n2", "t2"), event(CALLBACK, &wrong)] {
        assert_eq!(direct.apply_one(orphan).await, Ok(Outcome::applied()));
    }
    assert_eq!(state(&direct, "SO-1").await, "AWAITED");
    assert_eq!(recorded(&direct, "SO-1").await, ["SUCCESS orphan", "SUCCESS orphan"]);
    let told = downstream(direct.apply_one(event(PLACED, &placed("SO-1"))).await);
    assert_eq!(types(&told), ["payment.recorded.v1", "order.paid.v1", "payment.review_required.v1"]);
    assert_eq!(recorded(&direct, "SO-1").await, ["SUCCESS accepted", "SUCCESS duplicate_payment"]);
    let told = downstream(direct.apply_one(event(PLACED, &placed("SO-2"))).await);
    assert_eq!(reasons(&told[0]), json!(["currency_mismatch"]));
    assert_eq!(state(&direct, "SO-2").await, "REVIEW");
}

#[tokio::test]
async fn at_most_a_hundred_orphans_wait_for_one_order() {
    let direct = direct().await;
    let orphan = |i: usize| success("SO-1", &format!("n{i}"), &format!("t{i}"));
    direct.apply_batch((0..100).map(orphan).collect()).await.unwrap();
    assert_eq!(direct.apply_one(orphan(0)).await, skipped("already_recorded"));
    assert_eq!(direct.apply_one(orphan(100)).await.unwrap_err().code, "too_many_orphans");
    let told = downstream(direct.apply_one(event(PLACED, &placed("SO-1"))).await);
    assert_eq!(types(&told).iter().filter(|t| **t == "payment.review_required.v1").count(), 99);
    assert_eq!(types(&told).iter().filter(|t| **t == "order.paid.v1").count(), 1);
}

#[tokio::test]
async fn a_cancel_request_that_comes_before_its_order_waits_for_it() {
    let direct = direct().await;
    assert_eq!(direct.apply_one(cancel("SO-1")).await, Ok(Outcome::applied()));
    assert_eq!(direct.apply_one(cancel("SO-1")).await, skipped("already_requested"));
    let told = downstream(direct.apply_one(event(PLACED, &placed("SO-1"))).await);
    assert_eq!(types(&told), ["order.closed.v1"]);
    let closed: Value = serde_json::from_str(&told[0].payload).unwrap();
    assert_eq!(closed, json!({"orderNo": "SO-1", "merchantId": "m1", "reason": "payment_timeout", "version": "2"}));
}

#[tokio::test]
async fn the_same_order_again_is_skipped_and_another_one_under_its_number_is_rejected() {
    let direct = direct().await;
    direct.apply_one(event(PLACED, &placed("SO-1"))).await.unwrap();
    assert_eq!(direct.apply_one(event(PLACED, &placed("SO-1"))).await, skipped("already_placed"));
    let mut other_merchant = placed("SO-1");
    other_merchant["merchantId"] = json!("m2");
    let mut other_lines = placed("SO-1");
    other_lines["lines"] = json!([{"sku": "TEA", "quantity": "1", "unitPrice": "12800"}]);
    for changed in [other_merchant, other_lines] {
        assert_eq!(direct.apply_one(event(PLACED, &changed)).await.unwrap_err().code, "order_conflict");
    }
}

#[tokio::test]
async fn the_schema_itself_refuses_a_second_accepted_success_and_impossible_orders() {
    let direct = direct().await;
    direct.apply_one(event(PLACED, &placed("SO-1"))).await.unwrap();
    direct.apply_one(success("SO-1", "n1", "t1")).await.unwrap();
    direct.apply_one(success("SO-1", "n2", "t2")).await.unwrap();
    let client = direct.database.client().await;
    let table = [
        ("payment_paid_once", "update onceflow.payment set disposition = 'accepted', reasons = '{}'"),
        ("payment_amount_not_negative", "update onceflow.payment set amount = -1"),
        ("payment_reasons_given", "update onceflow.payment set disposition = 'mismatch', reasons = '{}'"),
        ("payment_order_placed_whole", "update onceflow.payment_order set total = null"),
        ("payment_order_closed_with_reason", "update onceflow.payment_order set state = 'CLOSED'"),
        ("payment_order_line_quantity_positive", "update onceflow.payment_order_line set quantity = 0"),
    ];
    for (constraint, sql) in table {
        let error = client.batch_execute(sql).await.unwrap_err();
        assert_eq!(error.as_db_error().and_then(|e| e.constraint()), Some(constraint));
    }
}

#[tokio::test]
async fn a_payment_that_the_schema_refuses_is_rejected_alone_and_never_called_a_duplicate() {
    let direct = direct().await;
    direct.apply_one(event(PLACED, &placed("SO-1"))).await.unwrap();
    direct.apply_one(success("SO-1", "n1", "t1")).await.unwrap();
    let by_hand = "update onceflow.payment_order set state = 'PAYING'";
    direct.database.client().await.batch_execute(by_hand).await.unwrap();
    assert_eq!(direct.apply_one(success("SO-1", "n2", "t2")).await.unwrap_err().code, "inconsistent_order");
    assert_eq!(recorded(&direct, "SO-1").await, ["SUCCESS accepted"]);
}

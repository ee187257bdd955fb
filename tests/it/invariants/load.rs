//! Whoever looks while events flow sees no alarm.

use std::collections::BTreeMap;
use std::time::Duration;

use onceflow::broker::{Outgoing, publish_once};
use onceflow::domains;
use onceflow::invariants::{self, Bounds, State};
use onceflow::replay::{self, Change, Selection};
use onceflow::retention::Policy;
use serde_json::{Value, json};
use uuid::Uuid;

use super::broken::check;
use crate::harness::{SOON, Stack, eventually, size};

const CHUNK: usize = 40;

/// What one number stands for in every domain: departments that come before their parents, memberships before their users, users who go
/// and come back, callbacks before their orders, cancelled and paid ones, copies, and events that can't be read.
fn events(stack: &Stack, n: u64) -> Vec<Outgoing> {
    let plain = |event_type: &str, id: String, body: &serde_json::Value| stack.plain(event_type, &id, body);
    let user = |version: u64, name: &str| json!({ "directory": "hr", "id": format!("u{n}"), "version": version.to_string(), "name": name });
    let gone = json!({ "directory": "hr", "id": format!("u{n}"), "version": "3" });
    let mut department = json!({ "directory": "hr", "id": format!("d{n}"), "version": "1", "name": "x" });
    // From the bottom to the root, of at most 20 levels.
    if n % 20 < 19 {
        department["parentId"] = format!("d{}", n + 1).into();
    }
    let member =
        json!({ "directory": "hr", "userId": format!("u{n}"), "departmentId": format!("d{}", n / 2), "version": "1" });
    let order = json!({ "orderNo": format!("o{n}"), "merchantId": "m", "currency": "CNY", "total": "100",
                        "lines": [{ "sku": "tea", "quantity": "2", "unitPrice": "50" }] });
    let paid = json!({ "provider": "wechat", "notifyId": format!("n{n}"), "transactionId": format!("t{n}"), "orderNo": format!("o{n}"),
                       "merchantId": "m", "amount": if n.is_multiple_of(7) { "99" } else { "100" }, "currency": "CNY",
                       "status": "PAYMENT_STATUS_SUCCESS", "paidAt": "2024-11-21T11:50:00Z" });
    let cancelled = json!({ "orderNo": format!("o{n}"), "reason": "late" });
    let sms = json!({ "requestId": format!("r{n}"), "phone": format!("+86138{n:08}"), "templateId": "login_code", "class": "OTP",
                      "params": { "code": "1", "minutes": "5" }, "expiresAt": "2099-12-31T23:59:59Z", "signature": "Onceflow" });
    let mut events = vec![
        plain("org.membership.added.v1", format!("m{n}"), &member),
        plain("org.department.upserted.v1", format!("d{n}"), &department),
        plain("org.user.upserted.v1", format!("u{n}.1"), &user(1, "Li")),
        plain("org.user.upserted.v1", format!("u{n}.2"), &user(2, "Wang")),
        plain("org.user.upserted.v1", format!("u{n}.1"), &user(1, "Li")),
        plain("sms.requested.v1", format!("s{n}"), &sms),
    ];
    let (order, paid) = (
        plain("order.placed.v1", format!("o{n}"), &order),
        plain("payment.callback.received.v1", format!("p{n}"), &paid),
    );
    events.extend(if n.is_multiple_of(2) { [order, paid] } else { [paid, order] });
    if n.is_multiple_of(3) {
        events.push(plain("org.user.deleted.v1", format!("u{n}.3"), &gone));
        events.push(plain("org.user.upserted.v1", format!("u{n}.4"), &user(4, "Chen")));
        events.push(plain("order.cancel.requested.v1", format!("c{n}"), &cancelled));
    }
    if n.is_multiple_of(25) {
        events.push(plain("org.user.upserted.v1", format!("x{n}"), &json!({ "directory": "" })));
    }
    events
}

/// Sends the open dead letters again, which fail again.
async fn replay_all(stack: &Stack) {
    let pool = stack.pool();
    let rows = stack.client.query("SELECT id FROM onceflow.dead_letter WHERE state = 'open'", &[]).await.unwrap();
    let queues = BTreeMap::from(["org", "payment", "sms"].map(|name| (name.to_owned(), format!("onceflow.{name}"))));
    for row in rows {
        let ids: Vec<Uuid> = vec![row.get(0)];
        let selection = Selection::Ids(ids);
        let change =
            Change { selection, reason: None, actor: "li".to_owned(), dry_run: false, expect_count: None, max: None };
        let tx = pool.begin().await.unwrap();
        replay::replay(&tx, &change, &queues).await.unwrap();
        tx.commit_repeatable().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i2_i3_i4_i5_nothing_is_violated_however_often_one_looks_while_events_flow() {
    let stack = Stack::start(domains::consumers()).await;
    let numbers = size("ONCEFLOW_EVENTS", 200);
    let all: Vec<_> = (0..numbers).flat_map(|n| events(&stack, n)).collect();
    let broker = stack.config.broker.clone();
    let load = tokio::spawn(async move {
        for chunk in all.chunks(CHUNK) {
            publish_once(&broker, chunk).await.unwrap();
        }
    });
    let day = Duration::from_secs(86_400);
    let retention = Policy {
        inbox: Some(day * 90),
        dead_letters: Some(day * 180),
        attempts: Some(day * 90),
        jobs: Some(day * 180),
        audit: Some(day * 400),
        personal_data: None,
    };
    let (pool, everything) = (stack.pool(), invariants::all(&domains::consumers()));
    let mut looks = 0;
    // Once more after the last event was sent: then the service works on what has piled up.
    while looks < 3 || !load.is_finished() {
        let since = (looks % 2 == 0).then_some(day);
        let bounds = Bounds { since, within: day, statement: Duration::from_secs(30), examples: 3, retention };
        for invariant in &everything {
            let found = invariants::check(&pool, invariant, &bounds).await.unwrap();
            assert!(matches!(found.state, State::Ok | State::Skipped), "look {looks}: {found:?}");
        }
        replay_all(&stack).await;
        looks += 1;
    }
    load.await.unwrap();
    stack.outcome(&format!("s{}", numbers - 1)).await;
    let output = check(stack.database.as_ref().unwrap().url(), &["--full", "--within", "60s", "-o", "json"]).await;
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{told}");
    let report: Value = serde_json::from_str(&told).unwrap();
    assert!(report["items"].as_array().unwrap().iter().all(|found| found["state"] == "ok"), "{told}");
    // It was looked at something.
    for some in [
        "org_membership WHERE state = 'live'",
        "payment_order WHERE state = 'PAID'",
        "payment_order WHERE state = 'REVIEW'",
        "dead_letter",
        "inbox WHERE duplicates > 0",
    ] {
        let sql = format!("SELECT count(*) FROM onceflow.{some}");
        eventually(SOON, || async { (stack.count(&sql).await > 0).then_some(()) }).await;
    }
}

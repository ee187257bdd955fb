//! 440 orders and 500 payment callbacks: some doubled, some before their order, some for orders that never come.

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use serde_json::json;

use super::Maker;
use crate::broker::Outgoing;

const ORDERS: usize = 440;
/// Callbacks that come before their order.
const EARLY: usize = 60;
/// The same notification once more, under its own message id or under a new one.
const REDELIVERED: usize = 20;
const RENOTIFIED: usize = 20;
/// Callbacks of orders that nobody placed.
const ORPHANS: usize = 20;

pub(super) fn events(maker: &Maker, rng: &mut StdRng) -> Vec<Outgoing> {
    let mut events: Vec<_> = (1..=EARLY).map(|n| callback(maker, n, "c")).collect();
    events.extend((1..=ORDERS).map(|n| order(maker, n)));
    let mut callbacks: Vec<_> = (EARLY + 1..=ORDERS).map(|n| callback(maker, n, "c")).collect();
    callbacks.extend((1..=REDELIVERED).map(|n| callback(maker, n, "c")));
    callbacks.extend((EARLY + 1..=EARLY + RENOTIFIED).map(|n| callback(maker, n, "again")));
    callbacks.extend((1..=ORPHANS).map(|n| callback(maker, 9000 + n, "c")));
    callbacks.shuffle(rng);
    events.extend(callbacks);
    events
}

fn order_no(maker: &Maker, n: usize) -> String {
    maker.id(&format!("SO-{n:05}"))
}

fn amount(n: usize) -> usize {
    1_000 + n * 7
}

fn order(maker: &Maker, n: usize) -> Outgoing {
    let order_no = order_no(maker, n);
    let total = amount(n).to_string();
    let body = json!({
        "orderNo": order_no, "merchantId": "merchant-1", "currency": "CNY", "total": total,
        "lines": [{"sku": format!("SKU-{}", n % 20), "quantity": "1", "unitPrice": total}],
    });
    maker.about("order.placed.v1", &format!("order-{n}"), &format!("order/{order_no}"), &body)
}

fn callback(maker: &Maker, n: usize, message: &str) -> Outgoing {
    let order_no = order_no(maker, n);
    let body = json!({
        "provider": if n.is_multiple_of(2) { "wechat" } else { "alipay" },
        "notifyId": maker.id(&format!("{message}-{n}")), "transactionId": maker.id(&format!("tx-{n}")),
        "orderNo": order_no, "merchantId": "merchant-1", "amount": amount(n).to_string(), "currency": "CNY",
        "status": "PAYMENT_STATUS_SUCCESS", "paidAt": "2026-01-31T11:50:00Z",
    });
    let id = format!("callback-{message}-{n}");
    maker.about("payment.callback.received.v1", &id, &format!("order/{order_no}"), &body)
}

//! What the wire may and may not say.

use super::{Callback, CancelRequest, PlacedOrder, Status};
use crate::domains::payment::proto::order::{OrderCancelRequested, OrderLine, OrderPlaced};
use crate::domains::payment::proto::payment::{PaymentCallbackReceived, PaymentStatus};
use crate::event::Stage;

fn order() -> OrderPlaced {
    let line = |sku: &str, quantity, unit_price| OrderLine { sku: sku.into(), quantity, unit_price };
    OrderPlaced {
        order_no: "SO-1".into(),
        merchant_id: "m1".into(),
        currency: "CNY".into(),
        lines: vec![line("TEA", 2, 4950), line("CUP", 1, 2900)],
        total: 12800,
    }
}

fn callback() -> PaymentCallbackReceived {
    PaymentCallbackReceived {
        provider: "wechat".into(),
        notify_id: "n1".into(),
        transaction_id: "t1".into(),
        order_no: "SO-1".into(),
        merchant_id: "m1".into(),
        amount: 12800,
        currency: "CNY".into(),
        status: PaymentStatus::Success.into(),
        paid_at: Some(pbjson_types::Timestamp { seconds: 1_732_190_000, nanos: 0 }),
    }
}

/// A change that breaks one rule, and the code it must be rejected with.
type Breach<M> = (&'static str, fn(&mut M));

#[test]
fn an_order_that_breaks_a_rule_is_rejected_with_its_code() {
    assert!(PlacedOrder::try_from(order()).is_ok());
    let breaches: [Breach<OrderPlaced>; 13] = [
        ("invalid_order_no", |o| o.order_no.clear()),
        ("invalid_merchant_id", |o| o.merchant_id = "m\u{0}".into()),
        ("invalid_currency", |o| o.currency = "cny".into()),
        ("invalid_amount", |o| o.total = -1),
        ("invalid_lines", |o| o.lines.clear()),
        ("invalid_lines", |o| o.lines = vec![o.lines[0].clone(); 501]),
        ("invalid_sku", |o| o.lines[0].sku = "x".repeat(65)),
        ("invalid_quantity", |o| o.lines[0].quantity = 0),
        ("invalid_quantity", |o| o.lines[0].quantity = -2),
        ("invalid_amount", |o| o.lines[1].unit_price = -1),
        ("total_mismatch", |o| o.total = 12801),
        ("amount_overflow", |o| o.lines[0].unit_price = i64::MAX),
        ("amount_overflow", |o| {
            o.lines[0] = OrderLine { quantity: 1, unit_price: i64::MAX, ..o.lines[0].clone() };
        }),
    ];
    for (code, breach) in breaches {
        let mut broken = order();
        breach(&mut broken);
        let rejection = PlacedOrder::try_from(broken).unwrap_err();
        assert_eq!((rejection.stage, rejection.code), (Stage::Validate, code), "{}", rejection.message);
        assert!(rejection.message.contains(';'), "says what to do: {}", rejection.message);
    }
}

#[test]
fn a_rejected_line_is_named_by_its_position() {
    let mut broken = order();
    broken.lines[1].unit_price = -1;
    let message = PlacedOrder::try_from(broken).unwrap_err().message;
    assert!(message.starts_with("lines[1].unitPrice is -1"), "{message}");
}

#[test]
fn a_callback_that_breaks_a_rule_is_rejected_with_its_code() {
    assert_eq!(Callback::try_from(callback()).unwrap().status, Status::Success);
    let breaches: [Breach<PaymentCallbackReceived>; 12] = [
        ("invalid_provider", |c| c.provider = "WeChat".into()),
        ("invalid_notify_id", |c| c.notify_id.clear()),
        ("invalid_transaction_id", |c| c.transaction_id = "x".repeat(129)),
        ("invalid_order_no", |c| c.order_no = "SO\n1".into()),
        ("invalid_merchant_id", |c| c.merchant_id = " m1".into()),
        ("invalid_amount", |c| c.amount = -12800),
        ("invalid_currency", |c| c.currency = "RMB¥".into()),
        ("invalid_status", |c| c.status = 0),
        ("invalid_status", |c| c.status = 99),
        ("invalid_paid_at", |c| c.paid_at = None),
        ("invalid_paid_at", |c| c.paid_at = Some(pbjson_types::Timestamp { seconds: i64::MAX, nanos: 0 })),
        ("invalid_paid_at", |c| c.paid_at = Some(pbjson_types::Timestamp { seconds: 1, nanos: -1 })),
    ];
    for (code, breach) in breaches {
        let mut broken = callback();
        breach(&mut broken);
        let rejection = Callback::try_from(broken).unwrap_err();
        assert_eq!((rejection.stage, rejection.code), (Stage::Validate, code), "{}", rejection.message);
        assert!(rejection.message.contains(';'), "says what to do: {}", rejection.message);
    }
}

#[test]
fn only_a_success_needs_the_time_of_payment() {
    let waiting = PaymentCallbackReceived { status: PaymentStatus::Processing.into(), paid_at: None, ..callback() };
    assert_eq!(Callback::try_from(waiting).unwrap().paid_at, None);
}

#[test]
fn a_cancel_reason_is_one_bounded_line() {
    let request = |reason: &str| OrderCancelRequested { order_no: "SO-1".into(), reason: reason.into() };
    assert_eq!(CancelRequest::try_from(request("")).unwrap().reason, "");
    for bad in ["two\nlines", "nul\u{0}", &"x".repeat(257)] {
        assert_eq!(CancelRequest::try_from(request(bad)).unwrap_err().code, "invalid_reason");
    }
}

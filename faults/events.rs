//! What the producer sends, made from a number alone: users with rising versions, orders with their payments, text messages,
//! and here and there something that can't be read.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

/// Users that the events are about; few, so that each has many versions.
const USERS: u64 = 25;
/// How many numbers before: in a batch that has been confirmed.
const EARLIER: u64 = 100;
const PERSISTENT: u8 = 2;
/// In every personal field, and in no log, metric or answer.
pub(crate) const CANARY: &str = "canary-7f3a";
/// Beginning of every phone number; none of these numbers may be seen anywhere either.
pub(crate) const PHONE: &str = "+86139";

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum About {
    User {
        user: u64,
        version: i64,
    },
    Order(u64),
    Payment(u64),
    Text,
    /// It can't be read, and must end as a dead letter.
    Poison,
}

/// An event as it is published.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) id: String,
    pub(crate) about: About,
    pub(crate) event_type: &'static str,
    pub(crate) key: String,
    pub(crate) body: Vec<u8>,
}

/// Which events are sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Feed {
    pub(crate) seed: u64,
    /// Each so-manieth event can't be read; 0 for none.
    pub(crate) poison_every: u64,
    /// With each so-manieth event an earlier one is sent again, as by a producer that isn't sure; 0 for none.
    pub(crate) again_every: u64,
}

impl Feed {
    /// The events from number `first` on, and those that are sent again among them.
    pub(crate) fn batch(&self, first: u64, count: u64) -> Vec<Event> {
        (first..first + count).flat_map(|n| [Some(self.event(n)), self.again(n)]).flatten().collect()
    }

    fn again(&self, n: u64) -> Option<Event> {
        let is_due = self.again_every > 0 && n % self.again_every == self.again_every - 1;
        let earlier = self.event(n.checked_sub(EARLIER).filter(|_| is_due)?);
        (earlier.about != About::Poison).then_some(earlier)
    }

    /// Event number `n`.
    pub(crate) fn event(&self, n: u64) -> Event {
        if self.poison_every > 0 && n % self.poison_every == self.poison_every - 1 {
            let body = b"{\"directory\": \"d\", \"id\":".to_vec();
            return event(n, About::Poison, "org.user.upserted.v1", (format!("p{n}"), body));
        }
        match n % 6 {
            3 => order(n, n),
            4 => payment(n, n - 1),
            5 => text(n),
            _ => user(n, mixed(self.seed, n) % USERS),
        }
    }
}

impl Event {
    pub(crate) fn properties(&self) -> BasicProperties {
        let attributes = [
            ("cloudEvents:specversion", "1.0"),
            ("cloudEvents:id", &self.id),
            ("cloudEvents:source", "faults/producer"),
            ("cloudEvents:type", self.event_type),
            ("cloudEvents:subject", &self.key),
            ("cloudEvents:partitionkey", &self.key),
            ("cloudEvents:time", "2026-01-31T08:00:00Z"),
        ];
        BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_message_id(self.id.as_str().into())
            .with_type(self.event_type.into())
            .with_content_type("application/json".into())
            .with_headers(table(attributes))
    }
}

/// A version of a user.
pub(crate) fn user_event(id: &str, user: u64, version: i64) -> Event {
    let key = user_key(user);
    let body = json!({"directory": "d", "id": key, "version": version.to_string(), "name": format!("Example {CANARY}"),
                      "email": format!("{CANARY}@example.com"), "title": format!("Engineer {version}")});
    let about = About::User { user, version };
    Event { id: id.to_owned(), about, event_type: "org.user.upserted.v1", key, body: body.to_string().into_bytes() }
}

pub(crate) fn user_key(user: u64) -> String {
    format!("u{user:04}")
}

pub(crate) fn order_no(n: u64) -> String {
    format!("SO-{n:010}")
}

/// The id of event number `n`: sorts as the numbers do.
pub(crate) fn id_of(n: u64) -> String {
    format!("00000000-0000-7000-8000-{n:012x}")
}

/// Text headers of a message.
pub(crate) fn table<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in pairs {
        table.insert(name.into(), AMQPValue::LongString(value.as_bytes().to_vec().into()));
    }
    table
}

fn user(n: u64, user: u64) -> Event {
    user_event(&id_of(n), user, i64::try_from(n + 1).unwrap_or(i64::MAX))
}

fn order(n: u64, order: u64) -> Event {
    let body = json!({"orderNo": order_no(order), "merchantId": "merchant-7", "currency": "CNY", "total": "12800",
        "lines": [{"sku": "TEA-GREEN-100G", "quantity": "2", "unitPrice": "4950"},
                  {"sku": "CUP-WHITE", "quantity": "1", "unitPrice": "2900"}]});
    as_json(n, About::Order(order), "order.placed.v1", (order_no(order), &body))
}

fn payment(n: u64, order: u64) -> Event {
    let number = order_no(order);
    let body = json!({"provider": "wechat", "notifyId": format!("EV-{number}"), "transactionId": format!("4200-{number}"),
        "orderNo": number, "merchantId": "merchant-7", "amount": "12800", "currency": "CNY",
        "status": "PAYMENT_STATUS_SUCCESS", "paidAt": "2026-01-31T08:00:00Z"});
    as_json(n, About::Payment(order), "payment.callback.received.v1", (number, &body))
}

fn text(n: u64) -> Event {
    let body = json!({"requestId": format!("r-{n}"), "phone": format!("{PHONE}{:08}", n % 100_000_000), "templateId": "login_code",
        "params": {"code": format!("{:06}", n % 1_000_000), "minutes": "5"}, "expiresAt": "2099-12-31T23:59:59Z"});
    as_json(n, About::Text, "sms.requested.v1", (format!("r-{n}"), &body))
}

fn as_json(n: u64, about: About, event_type: &'static str, (key, body): (String, &Value)) -> Event {
    event(n, about, event_type, (key, body.to_string().into_bytes()))
}

fn event(n: u64, about: About, event_type: &'static str, (key, body): (String, Vec<u8>)) -> Event {
    Event { id: id_of(n), about, event_type, key, body }
}

/// The same number for the same seed and event, spread evenly.
fn mixed(seed: u64, n: u64) -> u64 {
    let mut x = (n ^ seed.rotate_left(32)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

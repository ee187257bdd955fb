//! The events of one measurement, made from their number alone: the producer sends number `n`, the sibling knows it again.

use lapin::BasicProperties;
use prost::Message;

use crate::args::Domain;
use crate::wire::{self, CallbackReceived, OrderLine, OrderPlaced, SmsRequested, UserUpserted};

/// Orders are placed this far ahead of their callbacks, so that the two rarely share a batch.
const CALLBACK_LAG: u64 = 500;
/// A duplicate follows its original within this many events.
const DUPLICATE_WITHIN: u64 = 2_000;
/// Longest text that the directory takes, with room for what stands before the padding.
const MAX_PAD_CHARS: usize = 220;
const PERSISTENT: u8 = 2;

/// What is odd about some of the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mix {
    /// Nothing.
    Plain,
    /// Every tenth event repeats an earlier one.
    Duplicates,
    /// Every hundredth event can't be read.
    Poison,
    /// Nine of ten events are about one user.
    HotKey,
}

/// A series of events.
#[derive(Debug, Clone)]
pub(crate) struct Feed {
    pub(crate) domain: Domain,
    pub(crate) count: u64,
    pub(crate) body_bytes: usize,
    pub(crate) protobuf: bool,
    pub(crate) mix: Mix,
    pub(crate) seed: u64,
}

/// A message, ready to be published.
pub(crate) struct Ready {
    pub(crate) routing_key: &'static str,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Vec<u8>,
}

impl Feed {
    /// Event number `n` as it is published.
    pub(crate) fn message(&self, n: u64) -> Ready {
        let n = self.original(n);
        let (event_type, key, body) = match self.domain {
            Domain::Org => self.user(n),
            Domain::Payment => self.payment(n),
            Domain::Sms => self.sms(n),
        };
        let id = id_of(n);
        let attributes = [
            ("cloudEvents:specversion", "1.0"),
            ("cloudEvents:id", &id),
            ("cloudEvents:source", "bench/producer"),
            ("cloudEvents:type", event_type),
            ("cloudEvents:subject", &key),
            ("cloudEvents:partitionkey", &key),
            ("cloudEvents:tenant", "default"),
            ("cloudEvents:time", "2026-01-31T08:00:00Z"),
        ];
        let content_type = if self.protobuf { "application/protobuf" } else { "application/json" };
        let properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_message_id(id.as_str().into())
            .with_type(event_type.into())
            .with_content_type(content_type.into())
            .with_headers(wire::table(attributes));
        Ready { routing_key: event_type, properties, body }
    }

    /// How many downstream messages event `n` must cause.
    pub(crate) fn downstream(&self, n: u64) -> u32 {
        match (self.domain, self.mix) {
            (_, Mix::Poison) if is_poison(n) => 0,
            (_, Mix::Duplicates) if is_duplicate(n) => 0,
            (Domain::Payment, _) => match self.step(n) {
                Step::Place(_) => 0,
                Step::Pay(_) => 2,
            },
            _ => 1,
        }
    }

    /// Whether event `n` is about the hot key.
    pub(crate) fn is_hot(&self, n: u64) -> bool {
        self.mix == Mix::HotKey && mixed(self.seed, n) % 100 < 90
    }

    /// Counts the rows that the events must leave in the domain's tables: the query and its answer.
    pub(crate) fn rows(&self) -> (&'static str, u64) {
        match self.domain {
            Domain::Org => {
                let users: std::collections::HashSet<u64> = match self.mix {
                    Mix::HotKey => (0..self.count).map(|n| self.user_number(n)).collect(),
                    _ => (0..self.count).filter(|n| self.downstream(*n) > 0).map(|n| self.user_number(n)).collect(),
                };
                ("SELECT count(*) FROM onceflow.org_user WHERE state = 'live'", users.len() as u64)
            }
            Domain::Payment => (
                "SELECT count(*) FROM onceflow.payment_order o JOIN onceflow.payment p USING (tenant, order_no)
                 WHERE o.state = 'PAID' AND p.disposition = 'accepted' AND (SELECT count(*) = 2 FROM
                 onceflow.payment_order_line l WHERE l.tenant = o.tenant AND l.order_no = o.order_no)",
                self.count / 2,
            ),
            Domain::Sms => ("SELECT count(*) FROM onceflow.sms_request WHERE state = 'accepted'", self.count),
        }
    }

    /// A duplicate is sent as the event that it repeats.
    fn original(&self, n: u64) -> u64 {
        if self.mix != Mix::Duplicates || !is_duplicate(n) {
            return n;
        }
        let before = n - 1 - mixed(self.seed, n) % n.min(DUPLICATE_WITHIN);
        if is_duplicate(before) { before - 1 } else { before }
    }

    /// Every user comes twice: created first, changed later. The two never share a batch.
    fn users(&self) -> u64 {
        self.count.div_ceil(2).max(1_000)
    }

    fn user_number(&self, n: u64) -> u64 {
        if self.is_hot(n) { u64::MAX } else { n % self.users() }
    }

    fn user(&self, n: u64) -> (&'static str, String, Vec<u8>) {
        let event_type = "org.user.upserted.v1";
        let number = self.user_number(n);
        let id = if number == u64::MAX { "u-hot".to_owned() } else { format!("u-{number:010}") };
        let key = format!("bench/{id}");
        if self.mix == Mix::Poison && is_poison(n) {
            return (event_type, key, b"{\"directory\": \"bench\", \"id\":".to_vec());
        }
        // Rises with the number, whatever the user: an event never repeats the values of the one before.
        let version = i64::try_from(n + 1).unwrap_or(i64::MAX);
        let mut user = UserUpserted {
            directory: "bench".to_owned(),
            email: format!("{id}@bench.example"),
            title: format!("Engineer {version} "),
            employee_number: format!("{number:010}"),
            name: format!("Example Person {id}"),
            id,
            version,
            suspended: false,
        };
        let note = pad(&mut user, self.body_bytes);
        let body = if self.protobuf { user.encode_to_vec() } else { with_note(&json(&user), note) };
        (event_type, key, body)
    }

    fn step(&self, n: u64) -> Step {
        let orders = self.count / 2;
        let lag = CALLBACK_LAG.min(orders);
        if n < lag {
            Step::Place(n)
        } else if n >= 2 * orders - lag {
            Step::Pay(orders + n - 2 * orders)
        } else if (n - lag).is_multiple_of(2) {
            Step::Place(lag + (n - lag) / 2)
        } else {
            Step::Pay((n - lag) / 2)
        }
    }

    fn payment(&self, n: u64) -> (&'static str, String, Vec<u8>) {
        let (order_no, step) = match self.step(n) {
            step @ (Step::Place(order) | Step::Pay(order)) => (format!("SO-{order:010}"), step),
        };
        let merchant_id = "merchant-7".to_owned();
        let currency = "CNY".to_owned();
        if matches!(step, Step::Place(_)) {
            let line = |sku: &str, quantity, unit_price| OrderLine { sku: sku.to_owned(), quantity, unit_price };
            let lines = vec![line("TEA-GREEN-100G", 2, 4950), line("CUP-WHITE", 1, 2900)];
            let order = OrderPlaced { order_no: order_no.clone(), merchant_id, currency, lines, total: 12_800 };
            let body = if self.protobuf { order.encode_to_vec() } else { json(&order) };
            return ("order.placed.v1", order_no, body);
        }
        let callback = CallbackReceived {
            provider: "wechat".to_owned(),
            notify_id: format!("EV-{order_no}"),
            transaction_id: format!("42000012342026-{order_no}"),
            order_no: order_no.clone(),
            merchant_id,
            amount: 12_800,
            currency,
            status: wire::SUCCESS,
            paid_at: Some(pbjson_types::Timestamp { seconds: 1_769_846_400, nanos: 0 }),
        };
        let body = if self.protobuf { callback.encode_to_vec() } else { json(&callback) };
        ("payment.callback.received.v1", order_no, body)
    }

    fn sms(&self, n: u64) -> (&'static str, String, Vec<u8>) {
        let request = SmsRequested {
            request_id: format!("login-{n:012}"),
            phone: format!("+8613{n:09}"),
            template_id: "login_code".to_owned(),
            params: [("code", format!("{:06}", n % 1_000_000)), ("minutes", "5".to_owned())]
                .map(|(name, value)| (name.to_owned(), value))
                .into(),
            expires_at: Some(pbjson_types::Timestamp { seconds: 4_102_444_799, nanos: 0 }),
        };
        let body = if self.protobuf { request.encode_to_vec() } else { json(&request) };
        ("sms.requested.v1", request.request_id, body)
    }
}

/// What a payment event does to its order, by the order's number.
enum Step {
    Place(u64),
    Pay(u64),
}

/// The id of event `n`; a UUID in form.
pub(crate) fn id_of(n: u64) -> String {
    format!("00000000-0000-7000-8000-{n:012x}")
}

/// The number in an event's id.
pub(crate) fn number_of(id: &str) -> Option<u64> {
    u64::from_str_radix(id.strip_prefix("00000000-0000-7000-8000-")?, 16).ok()
}

fn is_duplicate(n: u64) -> bool {
    n % 10 == 9
}

fn is_poison(n: u64) -> bool {
    n % 100 == 99
}

/// The same number for the same seed and event, spread evenly.
fn mixed(seed: u64, n: u64) -> u64 {
    let mut x = (n ^ seed.rotate_left(32)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn json(message: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(message).expect("a struct of texts and numbers is always JSON")
}

/// Fills the texts until the JSON body has the wanted size; returns how much is left for a field that nobody reads.
fn pad(user: &mut UserUpserted, wanted: usize) -> usize {
    let missing = wanted.saturating_sub(json(user).len());
    if missing <= MAX_PAD_CHARS {
        user.title.extend(std::iter::repeat_n('x', missing));
        return 0;
    }
    // Three bytes a character: the longest names that a directory may send.
    for text in [&mut user.name, &mut user.title, &mut user.employee_number] {
        text.extend(std::iter::repeat_n('万', MAX_PAD_CHARS));
    }
    wanted.saturating_sub(json(user).len() + ",\"note\":\"\"".len())
}

fn with_note(json: &[u8], note: usize) -> Vec<u8> {
    if note == 0 {
        return json.to_vec();
    }
    let mut body = json[..json.len() - 1].to_vec();
    body.extend_from_slice(b",\"note\":\"");
    body.extend(std::iter::repeat_n(b'x', note));
    body.extend_from_slice(b"\"}");
    body
}

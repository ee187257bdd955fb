//! One directory under test: short ways to say an event, and to ask what became of it.

use std::sync::atomic::{AtomicU32, Ordering};

use jiff::Timestamp;
use onceflow::event::{Envelope, Rejection};
use onceflow::runtime::{Outcome, Skip};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::harness::direct::{Direct, envelope};

const DEPARTMENTS: &str = "
    SELECT concat_ws(' ', 'department', id, state, version, name, parent_id, sort_order)
    FROM onceflow.org_department WHERE tenant = $1 AND state <> 'unknown' ORDER BY id";
const USERS: &str = "
    SELECT concat_ws(' ', 'user', id, state, version, name, email, title, employee_number, suspended)
    FROM onceflow.org_user WHERE tenant = $1 AND state <> 'unknown' ORDER BY id";
const MEMBERSHIPS: &str = "
    SELECT concat_ws(' ', 'membership', user_id, department_id, state, version, is_primary, title)
    FROM onceflow.org_membership WHERE tenant = $1 AND state <> 'unknown' ORDER BY user_id, department_id";
const WAITING: &str = "
    SELECT concat_ws(' ', kind, object_id, nullif(department_id, ''), op, version, reason)
    FROM onceflow.org_waiting WHERE tenant = $1 ORDER BY kind, object_id, department_id";

/// An event without its identity: type and payload.
pub(super) type Said = (&'static str, Value);

pub(super) struct World {
    direct: Direct,
    client: Client,
    events: AtomicU32,
}

impl World {
    pub(super) async fn new() -> Self {
        let direct = Direct::named("org").await;
        let client = direct.database.client().await;
        Self { direct, client, events: AtomicU32::new(0) }
    }

    /// Delivers an event of the tenant.
    pub(super) async fn tell(&self, tenant: &str, said: &Said) -> Result<Outcome, Rejection> {
        let number = self.events.fetch_add(1, Ordering::Relaxed);
        self.deliver(tenant, event(said, &format!("e{number}"), None)).await
    }

    pub(super) async fn deliver(&self, tenant: &str, mut event: Envelope) -> Result<Outcome, Rejection> {
        event.tenant = tenant.into();
        self.direct.apply_one(event).await
    }

    /// Delivers an event with the tenant and key that it has.
    pub(super) async fn deliver_as_is(&self, event: Envelope) -> Outcome {
        self.direct.apply_one(event).await.unwrap()
    }

    /// Delivers events as one micro-batch.
    pub(super) async fn deliver_together(&self, events: Vec<Envelope>) -> Vec<Outcome> {
        self.direct.apply_batch(events).await.unwrap()
    }

    /// Delivers events as one micro-batch; how many statements it took.
    pub(super) async fn statements(&self, tenant: &str, all: &[Said]) -> u64 {
        self.direct.statements(self.batch(tenant, all)).await
    }

    /// Delivers events as one micro-batch; how often it waited for the database.
    pub(super) async fn round_trips(&self, tenant: &str, all: &[Said]) -> u64 {
        self.direct.round_trips(self.batch(tenant, all)).await
    }

    fn batch(&self, tenant: &str, all: &[Said]) -> Vec<Envelope> {
        let number = self.events.fetch_add(1, Ordering::Relaxed);
        let of_tenant = |(n, said): (usize, &Said)| {
            let mut event = event(said, &format!("e{number}-{n}"), None);
            event.tenant = tenant.into();
            event
        };
        all.iter().enumerate().map(of_tenant).collect()
    }

    /// Delivers events that must all be accepted, and returns what they told downstream.
    pub(super) async fn tell_all(&self, tenant: &str, all: &[Said]) -> Vec<Told> {
        let mut told = Vec::new();
        for said in all {
            told.extend(self::told(&self.tell(tenant, said).await.unwrap()));
        }
        told
    }

    /// Every row of the tenant that an event has told of, as text.
    pub(super) async fn rows(&self, tenant: &str) -> Vec<String> {
        let mut rows = Vec::new();
        for sql in [DEPARTMENTS, USERS, MEMBERSHIPS] {
            rows.extend(self.texts(sql, tenant).await);
        }
        rows
    }

    /// What waits, and why.
    pub(super) async fn waiting(&self, tenant: &str) -> Vec<String> {
        self.texts(WAITING, tenant).await
    }

    async fn texts(&self, sql: &str, tenant: &str) -> Vec<String> {
        self.client.query(sql, &[&tenant]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }
}

/// A downstream event in short.
#[derive(Debug, PartialEq)]
pub(super) struct Told {
    pub(super) what: String,
    pub(super) fields: Vec<String>,
    pub(super) payload: Value,
}

/// `user d/1 created 3`, with the changed fields.
pub(super) fn told(outcome: &Outcome) -> Vec<Told> {
    let Outcome::Applied(events) = outcome else { return Vec::new() };
    let short = |e: &onceflow::event::Downstream| {
        let payload: Value = serde_json::from_str(&e.payload).unwrap();
        assert_eq!(e.event_type, format!("org.{}.changed.v1", e.aggregate_type));
        let text = |name| payload[name].as_str().unwrap().to_owned();
        let fields = payload["changedFields"].as_array().into_iter().flatten();
        Told {
            what: format!("{} {} {} {}", e.aggregate_type, e.aggregate_id, text("op"), text("version")),
            fields: fields.map(|f| f.as_str().unwrap().to_owned()).collect(),
            payload: payload.clone(),
        }
    };
    events.iter().map(short).collect()
}

pub(super) fn whats(told: &[Told]) -> Vec<&str> {
    told.iter().map(|t| t.what.as_str()).collect()
}

pub(super) fn is_stale(result: &Result<Outcome, Rejection>) -> bool {
    matches!(result, Ok(Outcome::Skipped(Skip::Stale)))
}

pub(super) fn is_no_change(result: &Result<Outcome, Rejection>) -> bool {
    matches!(result, Ok(Outcome::Skipped(Skip::Because("no_change"))))
}

pub(super) fn event(said: &Said, id: &str, time: Option<i64>) -> Envelope {
    let mut event = envelope(said.0, id, &said.1);
    event.time = time.map(|second| Timestamp::from_second(second).unwrap());
    event
}

/// A department under `parent`, or a root where that is empty; named after its id and version.
pub(super) fn department(id: &str, version: i64, parent: &str) -> Said {
    let name = format!("{id}-{version}");
    let payload = json!({"directory": "d", "id": id, "version": version, "name": name, "parentId": parent});
    ("org.department.upserted.v1", payload)
}

pub(super) fn no_department(id: &str, version: i64) -> Said {
    ("org.department.deleted.v1", json!({"directory": "d", "id": id, "version": version}))
}

pub(super) fn user(id: &str, version: i64, title: &str) -> Said {
    let payload = json!({
        "directory": "d", "id": id, "version": version, "name": format!("Person {id}"),
        "email": format!("{id}@example.com"), "title": title,
    });
    ("org.user.upserted.v1", payload)
}

pub(super) fn no_user(id: &str, version: i64) -> Said {
    ("org.user.deleted.v1", json!({"directory": "d", "id": id, "version": version}))
}

pub(super) fn member(user: &str, department: &str, version: i64) -> Said {
    let payload = json!({"directory": "d", "userId": user, "departmentId": department, "version": version});
    ("org.membership.added.v1", payload)
}

pub(super) fn no_member(user: &str, department: &str, version: i64) -> Said {
    let payload = json!({"directory": "d", "userId": user, "departmentId": department, "version": version});
    ("org.membership.removed.v1", payload)
}

/// Every order of the items.
pub(super) fn permutations<T: Clone>(items: &[T]) -> Vec<Vec<T>> {
    if items.len() <= 1 {
        return vec![items.to_vec()];
    }
    let mut all = Vec::new();
    for (index, first) in items.iter().enumerate() {
        let mut rest = items.to_vec();
        rest.remove(index);
        for mut tail in permutations(&rest) {
            tail.insert(0, first.clone());
            all.push(tail);
        }
    }
    all
}

/// A random order that its seed repeats.
pub(super) fn shuffled<T: Clone>(items: &[T], seed: u64) -> Vec<T> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut items = items.to_vec();
    for last in (1..items.len()).rev() {
        items.swap(last, random.random_range(0..=last));
    }
    items
}

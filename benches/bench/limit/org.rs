//! `org.user.upserted.v1` → `org_user` → `org.user.changed.v1`

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};
use uuid::Uuid;

use super::Inbox;
use super::publisher::{Row, cause_headers};
use crate::wire::{Event, UserUpserted};

/// A user that comes twice in one batch is written once, with the newest event, which alone is told; the product tells of each.
pub(super) const WRITE: &str = "
    WITH incoming AS (
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::uuid[],
                             $7::text[], $8::text[], $9::int8[], $10::timestamptz[], $11::text[], $12::text[],
                             $13::text[], $14::text[], $15::text[], $16::bool[], $17::bool[],
                             $18::text[], $19::text[], $20::text[], $21::jsonb[])
            AS t (tenant, source, event_id, event_type, fingerprint, claim_id, directory, user_id, version, event_time,
                  event_key, name, email, title, employee_number, suspended, newest, aggregate, head, tail, headers)
    ), claimed AS (
        INSERT INTO onceflow.inbox (tenant, consumer, source, event_id, event_type, fingerprint, claim_id, downstream)
        SELECT tenant, 'org', source, event_id, event_type, fingerprint, claim_id, newest::int
        FROM incoming ORDER BY tenant, source, event_id, newest DESC
        ON CONFLICT DO NOTHING
        RETURNING claim_id
    ), fresh AS (
        SELECT i.* FROM incoming i JOIN claimed USING (claim_id) WHERE i.newest
    ), written AS (
        INSERT INTO onceflow.org_user AS u
            (tenant, directory, id, state, version, event_time, event_key, name, email, title, employee_number, suspended)
        SELECT tenant, directory, user_id, 'live', version, event_time, event_key, name, email, title, employee_number,
               suspended
        FROM fresh ORDER BY tenant, directory, user_id
        ON CONFLICT (tenant, directory, id) DO UPDATE SET
            version = excluded.version, event_time = excluded.event_time, event_key = excluded.event_key,
            state = excluded.state, name = excluded.name, email = excluded.email, title = excluded.title,
            employee_number = excluded.employee_number, suspended = excluded.suspended, deleted_at = NULL,
            updated_at = clock_timestamp()
        WHERE (excluded.version, excluded.event_time, excluded.event_key) > (u.version, u.event_time, u.event_key)
        RETURNING u.tenant, u.directory, u.id, u.xmax = 0 AS created
    ), told AS (
        SELECT f.*, w.created FROM fresh f
        JOIN written w ON w.tenant = f.tenant AND w.directory = f.directory AND w.id = f.user_id
    ), appended AS (
        INSERT INTO onceflow.outbox (id, tenant, aggregatetype, aggregateid, type, payload, headers)
        SELECT claim_id, tenant, 'user', aggregate, 'org.user.changed.v1',
               (head || CASE WHEN created THEN 'created' ELSE 'updated' END || tail)::json, headers
        FROM told ORDER BY claim_id
    )
    SELECT claim_id, created FROM told ORDER BY claim_id";

struct Change {
    user: UserUpserted,
    time: jiff::Timestamp,
    key: String,
    aggregate: String,
    head: String,
    tail: String,
    headers: Value,
}

impl Change {
    fn read(event: &Event) -> anyhow::Result<Self> {
        let user: UserUpserted = event.payload()?;
        let head = format!(r#"{{"directory":{},"id":{},"op":""#, json!(user.directory), json!(user.id));
        let values = json!({
            "name": user.name, "email": user.email, "title": user.title, "employeeNumber": user.employee_number,
        });
        let fields = r#"["name","email","title","employee_number"]"#;
        let tail = format!(r#"","version":"{}","changedFields":{fields},"user":{values}}}"#, user.version);
        Ok(Self {
            time: event.time.unwrap_or(jiff::Timestamp::UNIX_EPOCH),
            key: format!("{} {}", event.id, event.source),
            aggregate: format!("{}/{}", user.directory, user.id),
            headers: cause_headers("org", event),
            user,
            head,
            tail,
        })
    }

    fn stamp(&self) -> (i64, jiff::Timestamp, &str) {
        (self.user.version, self.time, &self.key)
    }
}

/// Which change of each user is the newest of the batch.
fn newest(changes: &[Change]) -> Vec<bool> {
    let mut best: HashMap<&str, usize> = HashMap::with_capacity(changes.len());
    for (n, change) in changes.iter().enumerate() {
        let place = best.entry(&change.aggregate).or_insert(n);
        if changes[*place].stamp() < change.stamp() {
            *place = n;
        }
    }
    let best: HashSet<usize> = best.into_values().collect();
    (0..changes.len()).map(|n| best.contains(&n)).collect()
}

pub(super) async fn write(client: &Client, statement: &Statement, events: &[Event]) -> anyhow::Result<Vec<Row>> {
    let changes = events.iter().map(Change::read).collect::<anyhow::Result<Vec<_>>>()?;
    let mut inbox = Inbox::default();
    events.iter().for_each(|event| inbox.push(event));
    let each = |column: fn(&Change) -> &str| changes.iter().map(column).collect::<Vec<_>>();
    let directories = each(|c| &c.user.directory);
    let users = each(|c| &c.user.id);
    let versions: Vec<i64> = changes.iter().map(|c| c.user.version).collect();
    let times: Vec<_> = changes.iter().map(|c| c.time).collect();
    let keys = each(|c| &c.key);
    let names = each(|c| &c.user.name);
    let emails = each(|c| &c.user.email);
    let titles = each(|c| &c.user.title);
    let numbers = each(|c| &c.user.employee_number);
    let suspended: Vec<bool> = changes.iter().map(|c| c.user.suspended).collect();
    let newest = newest(&changes);
    let aggregates = each(|c| &c.aggregate);
    let heads = each(|c| &c.head);
    let tails = each(|c| &c.tail);
    let headers: Vec<&Value> = changes.iter().map(|c| &c.headers).collect();
    let Inbox { tenants, sources, ids, types, fingerprints, claims } = &inbox;
    let params: [&(dyn ToSql + Sync); 21] = [
        tenants,
        sources,
        ids,
        types,
        fingerprints,
        claims,
        &directories,
        &users,
        &versions,
        &times,
        &keys,
        &names,
        &emails,
        &titles,
        &numbers,
        &suspended,
        &newest,
        &aggregates,
        &heads,
        &tails,
        &headers,
    ];
    let written = client.query(statement, &params).await?;
    let place: HashMap<Uuid, usize> = claims.iter().enumerate().map(|(n, id)| (*id, n)).collect();
    let row = |row: &tokio_postgres::Row| {
        let n = place[&row.get::<_, Uuid>(0)];
        let (event, change) = (&events[n], &changes[n]);
        let op = if row.get(1) { "created" } else { "updated" };
        Row {
            id: claims[n],
            event_type: "org.user.changed.v1".to_owned(),
            subject: format!("user/{}", change.aggregate),
            key: change.aggregate.clone(),
            tenant: event.tenant.clone(),
            body: [change.head.as_str(), op, change.tail.as_str()].concat(),
            headers: change.headers.clone(),
        }
    };
    Ok(written.iter().map(row).collect())
}

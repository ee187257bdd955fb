//! `sms.requested.v1` → `sms_request` → `sms.accepted.v1`. The happy path of one-time passwords in E.164.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, bail};
use aws_lc_rs::digest::{Context, SHA256};
use serde_json::{Value, json};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};
use uuid::Uuid;

use super::Inbox;
use super::publisher::{Row, cause_headers};
use crate::wire::{Event, SmsRequested};

const TEMPLATE: &str = "
    SELECT signature, body FROM onceflow.sms_template
    WHERE tenant = 'default' AND template_id = 'login_code' AND version = 1 AND state = 'approved'";
/// Characters of one text message; a longer one is split into parts of 153.
const ONE_PART: usize = 160;
const PART: usize = 153;

/// The same text for the same number within 30 seconds is no happy path: it is left out and ends the process.
const WRITE: &str = "
    WITH incoming AS (
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::uuid[],
                             $7::text[], $8::bytea[], $9::bytea[], $10::text[], $11::text[], $12::jsonb[],
                             $13::int4[], $14::timestamptz[], $15::text[], $16::jsonb[])
            AS t (tenant, source, event_id, event_type, fingerprint, claim_id, request_id, asked, content, phone,
                  template_id, params, segments, expires_at, body, headers)
    ), claimed AS (
        INSERT INTO onceflow.inbox (tenant, consumer, source, event_id, event_type, fingerprint, claim_id, downstream)
        SELECT tenant, 'sms', source, event_id, event_type, fingerprint, claim_id, 1
        FROM incoming ORDER BY tenant, source, event_id
        ON CONFLICT DO NOTHING
        RETURNING claim_id
    ), fresh AS (
        SELECT i.* FROM incoming i JOIN claimed USING (claim_id)
    ), stored AS (
        INSERT INTO onceflow.sms_request (tenant, request_id, fingerprint, content, state, phone, phone_given, template_id,
               template_version, class, signature, params, encoding, segments, expires_at, event_id)
        SELECT f.tenant, f.request_id, f.asked, f.content, 'accepted', f.phone, f.phone, f.template_id,
               t.version, t.class, t.signature, f.params, 'GSM-7', f.segments, f.expires_at, f.event_id
        FROM fresh f
        JOIN onceflow.sms_template t ON t.tenant = f.tenant AND t.template_id = f.template_id AND t.version = 1
        WHERE NOT EXISTS (SELECT FROM onceflow.sms_request r
                          WHERE r.tenant = f.tenant AND r.content = f.content AND r.state = 'accepted'
                            AND r.requested_at > clock_timestamp() - interval '30 seconds')
        ORDER BY f.tenant, f.request_id
        ON CONFLICT (tenant, request_id) DO NOTHING
        RETURNING tenant, request_id
    ), told AS (
        SELECT f.* FROM fresh f JOIN stored s ON s.tenant = f.tenant AND s.request_id = f.request_id
    ), appended AS (
        INSERT INTO onceflow.outbox (id, tenant, aggregatetype, aggregateid, type, payload, headers)
        SELECT claim_id, tenant, 'sms_request', request_id, 'sms.accepted.v1', body::json, headers
        FROM told ORDER BY claim_id
    )
    SELECT (SELECT count(*) FROM fresh), claim_id FROM told ORDER BY claim_id";

pub(super) struct Statements {
    write: Statement,
    signature: String,
    body: String,
}

struct Request {
    wire: SmsRequested,
    asked: Vec<u8>,
    content: Vec<u8>,
    params: Value,
    segments: i32,
    expires_at: jiff::Timestamp,
    told: String,
    headers: Value,
}

impl Statements {
    /// The template is read once; the product looks it up for each batch.
    pub(super) async fn prepare(client: &Client) -> anyhow::Result<Self> {
        let template = client.query_one(TEMPLATE, &[]).await?;
        Ok(Self { write: client.prepare(WRITE).await?, signature: template.get(0), body: template.get(1) })
    }

    fn read(&self, event: &Event) -> anyhow::Result<Request> {
        let wire: SmsRequested = event.payload()?;
        let time = wire.expires_at.as_ref().context("the bench always sends a time")?;
        let expires_at = jiff::Timestamp::new(time.seconds, time.nanos)?;
        let params: BTreeMap<&str, &str> = wire.params.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let mut text = format!("[{}] {}", self.signature, self.body);
        for (name, value) in &params {
            text = text.replace(&format!("${{{name}}}"), value);
        }
        let segments = if text.len() <= ONE_PART { 1 } else { i32::try_from(text.len().div_ceil(PART))? };
        let masked = format!("{}****{}", wire.phone.get(3..6).unwrap_or(""), wire.phone.get(10..).unwrap_or(""));
        let told = json!({
            "requestId": wire.request_id, "phoneMasked": masked, "templateId": wire.template_id, "templateVersion": 1,
            "class": "OTP", "signature": self.signature, "encoding": "GSM-7", "segments": segments,
            "expiresAt": expires_at.to_string(),
        });
        Ok(Request {
            asked: hash("request", &wire, &params, &expires_at.to_string()),
            content: hash("content", &wire, &params, ""),
            params: json!(params),
            told: told.to_string(),
            headers: cause_headers("sms", event),
            segments,
            expires_at,
            wire,
        })
    }

    pub(super) async fn write(&self, client: &Client, events: &[Event]) -> anyhow::Result<Vec<Row>> {
        let requests = events.iter().map(|event| self.read(event)).collect::<anyhow::Result<Vec<_>>>()?;
        let mut inbox = Inbox::default();
        events.iter().for_each(|event| inbox.push(event));
        let each = |column: fn(&Request) -> &str| requests.iter().map(column).collect::<Vec<_>>();
        let request_ids = each(|r| &r.wire.request_id);
        let asked: Vec<&[u8]> = requests.iter().map(|r| r.asked.as_slice()).collect();
        let contents: Vec<&[u8]> = requests.iter().map(|r| r.content.as_slice()).collect();
        let phones = each(|r| &r.wire.phone);
        let templates = each(|r| &r.wire.template_id);
        let values: Vec<&Value> = requests.iter().map(|r| &r.params).collect();
        let segments: Vec<i32> = requests.iter().map(|r| r.segments).collect();
        let expiries: Vec<_> = requests.iter().map(|r| r.expires_at).collect();
        let bodies = each(|r| &r.told);
        let headers: Vec<&Value> = requests.iter().map(|r| &r.headers).collect();
        let Inbox { tenants, sources, ids, types, fingerprints, claims } = &inbox;
        let params: [&(dyn ToSql + Sync); 16] = [
            tenants,
            sources,
            ids,
            types,
            fingerprints,
            claims,
            &request_ids,
            &asked,
            &contents,
            &phones,
            &templates,
            &values,
            &segments,
            &expiries,
            &bodies,
            &headers,
        ];
        let written = client.query(&self.write, &params).await?;
        let fresh: i64 = written.first().map_or(0, |row| row.get(0));
        if usize::try_from(fresh)? != written.len() {
            bail!("{fresh} requests, but only {} stored: not the happy path", written.len());
        }
        let place: HashMap<Uuid, usize> = claims.iter().enumerate().map(|(n, id)| (*id, n)).collect();
        let row = |row: &tokio_postgres::Row| {
            let n = place[&row.get::<_, Uuid>(1)];
            let (event, request) = (&events[n], &requests[n]);
            Row {
                id: claims[n],
                event_type: "sms.accepted.v1".to_owned(),
                subject: format!("sms_request/{}", request.wire.request_id),
                key: request.wire.request_id.clone(),
                tenant: event.tenant.clone(),
                body: request.told.clone(),
                headers: request.headers.clone(),
            }
        };
        Ok(written.iter().map(row).collect())
    }
}

/// The work of the product's fingerprints; the bytes are not compared with the product's.
fn hash(purpose: &str, wire: &SmsRequested, params: &BTreeMap<&str, &str>, expires_at: &str) -> Vec<u8> {
    let mut hash = Context::new(&SHA256);
    let mut text = |text: &str| {
        hash.update(&(text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
    };
    [purpose, &wire.phone, &wire.template_id, expires_at].into_iter().for_each(&mut text);
    params.iter().flat_map(|(name, value)| [*name, *value]).for_each(&mut text);
    hash.finish().as_ref().to_vec()
}

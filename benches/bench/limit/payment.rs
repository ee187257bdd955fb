//! `order.placed.v1` → `payment_order` with its lines; `payment.callback.received.v1` → `payment`, the order is paid →
//! `payment.recorded.v1` and `order.paid.v1`. The happy path only: whatever contradicts it ends the process.

use std::collections::HashMap;

use anyhow::bail;
use futures_util::future::try_join;
use serde_json::{Value, json};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};
use uuid::Uuid;

use super::Inbox;
use super::publisher::{Row, cause_headers};
use crate::wire::{CallbackReceived, Event, OrderPlaced};

const PLACE: &str = "
    WITH incoming AS (
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::uuid[],
                             $7::text[], $8::text[], $9::text[], $10::int8[])
            AS t (tenant, source, event_id, event_type, fingerprint, claim_id, order_no, merchant_id, currency, total)
    ), claimed AS (
        INSERT INTO onceflow.inbox (tenant, consumer, source, event_id, event_type, fingerprint, claim_id)
        SELECT tenant, 'payment', source, event_id, event_type, fingerprint, claim_id
        FROM incoming ORDER BY tenant, source, event_id
        ON CONFLICT DO NOTHING
        RETURNING claim_id
    ), fresh AS (
        SELECT i.* FROM incoming i JOIN claimed USING (claim_id)
    ), placed AS (
        INSERT INTO onceflow.payment_order AS o (tenant, order_no, state, merchant_id, currency, total, version)
        SELECT tenant, order_no, 'CREATED', merchant_id, currency, total, 1 FROM fresh ORDER BY tenant, order_no
        ON CONFLICT (tenant, order_no) DO UPDATE SET
            state = excluded.state, merchant_id = excluded.merchant_id, currency = excluded.currency,
            total = excluded.total, version = o.version + 1, changed_at = clock_timestamp()
        WHERE o.state = 'AWAITED'
        RETURNING o.tenant, o.order_no
    )
    INSERT INTO onceflow.payment_order_line (tenant, order_no, line_no, sku, quantity, unit_price)
    SELECT p.tenant, p.order_no, l.line_no, l.sku, l.quantity, l.unit_price
    FROM unnest($11::text[], $12::int4[], $13::text[], $14::int8[], $15::int8[])
        AS l (order_no, line_no, sku, quantity, unit_price)
    JOIN placed p ON p.order_no = l.order_no";

/// The payment is written only for an order that agrees with it and isn't paid yet.
const PAY: &str = "
    WITH incoming AS (
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::uuid[],
                             $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::int8[],
                             $14::timestamptz[], $15::uuid[], $16::text[], $17::text[], $18::jsonb[])
            AS t (tenant, source, event_id, event_type, fingerprint, claim_id, provider, notify_id, transaction_id,
                  order_no, merchant_id, currency, amount, paid_at, paid_id, recorded, paid, headers)
    ), claimed AS (
        INSERT INTO onceflow.inbox (tenant, consumer, source, event_id, event_type, fingerprint, claim_id, downstream)
        SELECT tenant, 'payment', source, event_id, event_type, fingerprint, claim_id, 2
        FROM incoming ORDER BY tenant, source, event_id
        ON CONFLICT DO NOTHING
        RETURNING claim_id
    ), fresh AS (
        SELECT i.* FROM incoming i JOIN claimed USING (claim_id)
    ), moved AS (
        UPDATE onceflow.payment_order o SET state = 'PAID', version = o.version + 1, changed_at = clock_timestamp()
        FROM fresh f
        WHERE o.tenant = f.tenant AND o.order_no = f.order_no AND o.state IN ('CREATED', 'PAYING')
          AND o.merchant_id = f.merchant_id AND o.currency = f.currency AND o.total = f.amount
        RETURNING f.claim_id, o.version
    ), told AS (
        SELECT f.*, m.version FROM fresh f JOIN moved m USING (claim_id)
    ), stored AS (
        INSERT INTO onceflow.payment (tenant, provider, transaction_id, status, notify_id, order_no, merchant_id, currency,
                                      amount, paid_at, disposition)
        SELECT tenant, provider, transaction_id, 'SUCCESS', notify_id, order_no, merchant_id, currency, amount, paid_at,
               'accepted'
        FROM told ORDER BY tenant, order_no
    ), appended AS (
        INSERT INTO onceflow.outbox (id, tenant, aggregatetype, aggregateid, type, payload, headers, partitionkey)
        SELECT id, tenant, kind, aggregate, type, body::json, headers, order_no
        FROM (SELECT claim_id AS id, tenant, 'payment' AS kind, provider || '/' || transaction_id AS aggregate,
                     'payment.recorded.v1' AS type, recorded AS body, headers, order_no, 1 AS n FROM told
              UNION ALL
              SELECT paid_id, tenant, 'order', order_no, 'order.paid.v1', paid || version || '\"}', headers, order_no, 2
              FROM told) AS rows
        ORDER BY id, n
    )
    SELECT (SELECT count(*) FROM fresh), claim_id, version FROM told ORDER BY claim_id";

pub(super) struct Statements {
    place: Statement,
    pay: Statement,
}

/// The two messages that a paid order causes; the version that the order then has stands at the end of the second.
struct Told {
    callback: CallbackReceived,
    paid_at: jiff::Timestamp,
    paid_id: Uuid,
    recorded: String,
    paid: String,
    headers: Value,
}

impl Told {
    fn read(event: &Event) -> anyhow::Result<Self> {
        let callback: CallbackReceived = event.payload()?;
        let Some(time) = &callback.paid_at else { bail!("a success without a time") };
        let paid_at = jiff::Timestamp::new(time.seconds, time.nanos)?;
        let c = &callback;
        let recorded = json!({
            "provider": c.provider, "transactionId": c.transaction_id, "orderNo": c.order_no, "merchantId": c.merchant_id,
            "amount": c.amount.to_string(), "currency": c.currency, "status": "PAYMENT_STATUS_SUCCESS",
            "paidAt": paid_at.to_string(),
        });
        let paid = json!({
            "orderNo": c.order_no, "merchantId": c.merchant_id, "total": c.amount.to_string(), "currency": c.currency,
            "provider": c.provider, "transactionId": c.transaction_id, "paidAt": paid_at.to_string(),
        });
        let mut paid = paid.to_string();
        paid.pop();
        paid.push_str(",\"version\":\"");
        let headers = cause_headers("payment", event);
        Ok(Self { paid_id: Uuid::now_v7(), recorded: recorded.to_string(), paid, callback, paid_at, headers })
    }
}

impl Statements {
    pub(super) async fn prepare(client: &Client) -> anyhow::Result<Self> {
        Ok(Self { place: client.prepare(PLACE).await?, pay: client.prepare(PAY).await? })
    }

    /// Orders first: a callback of the same batch finds its order.
    pub(super) async fn write(&self, client: &Client, events: &[Event]) -> anyhow::Result<Vec<Row>> {
        let (placed, paid): (Vec<&Event>, Vec<&Event>) =
            events.iter().partition(|event| event.event_type == "order.placed.v1");
        let ((), rows) = try_join(self.place(client, &placed), self.pay(client, &paid)).await?;
        Ok(rows)
    }

    async fn place(&self, client: &Client, events: &[&Event]) -> anyhow::Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        let orders = events.iter().map(|event| event.payload()).collect::<anyhow::Result<Vec<OrderPlaced>>>()?;
        let mut inbox = Inbox::default();
        events.iter().for_each(|event| inbox.push(event));
        let each = |column: fn(&OrderPlaced) -> &str| orders.iter().map(column).collect::<Vec<_>>();
        let totals: Vec<i64> = orders.iter().map(|o| o.total).collect();
        let (order_nos, merchants, currencies) =
            (each(|o| &o.order_no), each(|o| &o.merchant_id), each(|o| &o.currency));
        let lines = || {
            orders.iter().flat_map(|o| o.lines.iter().zip(0_i32..).map(move |(line, n)| (o.order_no.as_str(), n, line)))
        };
        let line_orders: Vec<&str> = lines().map(|(order, ..)| order).collect();
        let line_numbers: Vec<i32> = lines().map(|(_, n, _)| n).collect();
        let skus: Vec<&str> = lines().map(|(.., line)| line.sku.as_str()).collect();
        let quantities: Vec<i64> = lines().map(|(.., line)| line.quantity).collect();
        let prices: Vec<i64> = lines().map(|(.., line)| line.unit_price).collect();
        let Inbox { tenants, sources, ids, types, fingerprints, claims } = &inbox;
        let params: [&(dyn ToSql + Sync); 15] = [
            tenants,
            sources,
            ids,
            types,
            fingerprints,
            claims,
            &order_nos,
            &merchants,
            &currencies,
            &totals,
            &line_orders,
            &line_numbers,
            &skus,
            &quantities,
            &prices,
        ];
        client.execute(&self.place, &params).await?;
        Ok(())
    }

    async fn pay(&self, client: &Client, events: &[&Event]) -> anyhow::Result<Vec<Row>> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let told = events.iter().map(|event| Told::read(event)).collect::<anyhow::Result<Vec<_>>>()?;
        let mut inbox = Inbox::default();
        events.iter().for_each(|event| inbox.push(event));
        let each = |column: fn(&Told) -> &str| told.iter().map(column).collect::<Vec<_>>();
        let providers = each(|t| &t.callback.provider);
        let notifications = each(|t| &t.callback.notify_id);
        let transactions = each(|t| &t.callback.transaction_id);
        let orders = each(|t| &t.callback.order_no);
        let merchants = each(|t| &t.callback.merchant_id);
        let currencies = each(|t| &t.callback.currency);
        let amounts: Vec<i64> = told.iter().map(|t| t.callback.amount).collect();
        let times: Vec<_> = told.iter().map(|t| t.paid_at).collect();
        let paid_ids: Vec<Uuid> = told.iter().map(|t| t.paid_id).collect();
        let recorded = each(|t| &t.recorded);
        let paid = each(|t| &t.paid);
        let headers: Vec<&Value> = told.iter().map(|t| &t.headers).collect();
        let Inbox { tenants, sources, ids, types, fingerprints, claims } = &inbox;
        let params: [&(dyn ToSql + Sync); 18] = [
            tenants,
            sources,
            ids,
            types,
            fingerprints,
            claims,
            &providers,
            &notifications,
            &transactions,
            &orders,
            &merchants,
            &currencies,
            &amounts,
            &times,
            &paid_ids,
            &recorded,
            &paid,
            &headers,
        ];
        let written = client.query(&self.pay, &params).await?;
        let fresh: i64 = written.first().map_or(0, |row| row.get(0));
        if usize::try_from(fresh)? != written.len() {
            bail!("{fresh} callbacks, but only {} orders to pay: not the happy path", written.len());
        }
        let place: HashMap<Uuid, usize> = claims.iter().enumerate().map(|(n, id)| (*id, n)).collect();
        let rows = written.iter().flat_map(|row| {
            let n = place[&row.get::<_, Uuid>(1)];
            rows(&told[n], claims[n], events[n], row.get(2))
        });
        Ok(rows.collect())
    }
}

fn rows(told: &Told, id: Uuid, cause: &Event, version: i64) -> [Row; 2] {
    let callback = &told.callback;
    let row = |id, event_type: &str, subject: String, body: String| Row {
        id,
        event_type: event_type.to_owned(),
        subject,
        key: callback.order_no.clone(),
        tenant: cause.tenant.clone(),
        body,
        headers: told.headers.clone(),
    };
    let payment = format!("payment/{}/{}", callback.provider, callback.transaction_id);
    let order = format!("order/{}", callback.order_no);
    [
        row(id, "payment.recorded.v1", payment, told.recorded.clone()),
        row(told.paid_id, "order.paid.v1", order, format!("{}{version}\"}}", told.paid)),
    ]
}

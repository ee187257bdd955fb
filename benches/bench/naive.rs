//! The naive way: what a careful team writes by hand. Correct, one thing at a time.
//!
//! One transaction and one ack for each event: claim the inbox, write the user, insert the outbox row. A relay looks at the
//! outbox, publishes one row, awaits its confirm, deletes it, and takes the next. Organisation events only.

use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::StreamExt;
use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, ConfirmSelectOptions};
use lapin::types::FieldTable;
use serde_json::json;
use tokio_postgres::{Client, Statement};
use uuid::Uuid;

use crate::args::{Domain, Duty};
use crate::ground::connect;
use crate::limit::{Row, cause_headers, publish};
use crate::wire::{Event, UserUpserted};

const PREFETCH: u16 = 100;
/// How often the relay looks at an empty outbox.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const PAGE: i64 = 100;

const CLAIM: &str = "
    INSERT INTO onceflow.inbox (tenant, consumer, source, event_id, event_type, fingerprint, claim_id, downstream)
    VALUES ($1, 'org', $2, $3, $4, $5, $6, 1) ON CONFLICT DO NOTHING";
const UPSERT: &str = "
    INSERT INTO onceflow.org_user AS u
        (tenant, directory, id, state, version, event_time, event_key, name, email, title, employee_number, suspended)
    VALUES ($1, $2, $3, 'live', $4, $5, $6, $7, $8, $9, $10, $11)
    ON CONFLICT (tenant, directory, id) DO UPDATE SET
        version = excluded.version, event_time = excluded.event_time, event_key = excluded.event_key,
        state = excluded.state, name = excluded.name, email = excluded.email, title = excluded.title,
        employee_number = excluded.employee_number, suspended = excluded.suspended, deleted_at = NULL,
        updated_at = clock_timestamp()
    WHERE (excluded.version, excluded.event_time, excluded.event_key) > (u.version, u.event_time, u.event_key)
    RETURNING u.xmax = 0";
const APPEND: &str = "
    INSERT INTO onceflow.outbox (id, tenant, aggregatetype, aggregateid, type, payload, headers)
    VALUES ($1, $2, 'user', $3, 'org.user.changed.v1', $4, $5)";
const NEXT: &str = "
    SELECT id, tenant, aggregateid, payload::text, headers FROM onceflow.outbox WHERE parked_at IS NULL ORDER BY seq LIMIT $1";
const REMOVE: &str = "DELETE FROM onceflow.outbox WHERE tenant = $1 AND id = $2";

/// Runs until it is killed.
pub(crate) async fn run(duty: &Duty) -> anyhow::Result<()> {
    if duty.domain != Domain::Org {
        bail!("the naive way is written for org only");
    }
    tokio::try_join!(consume(duty), relay(duty))?;
    Ok(())
}

struct Statements {
    claim: Statement,
    upsert: Statement,
    append: Statement,
}

async fn consume(duty: &Duty) -> anyhow::Result<()> {
    let mut client = connect(&duty.database_url).await?;
    let statements = Statements {
        claim: client.prepare(CLAIM).await?,
        upsert: client.prepare(UPSERT).await?,
        append: client.prepare(APPEND).await?,
    };
    let connection = crate::sibling::connect(&duty.amqp_url).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let (queue, consume) = (duty.domain.queue(), BasicConsumeOptions::default());
    let mut consumer = channel.basic_consume(queue.as_str().into(), "".into(), consume, FieldTable::default()).await?;
    loop {
        let delivery = consumer.next().await.context("the queue is gone")??;
        let acker = delivery.acker.clone();
        handle(&mut client, &statements, delivery).await?;
        acker.ack(BasicAckOptions::default()).await?;
    }
}

async fn handle(client: &mut Client, statements: &Statements, mut delivery: Delivery) -> anyhow::Result<()> {
    let event = Event::read(&mut delivery)?;
    let user: UserUpserted = event.payload()?;
    let tx = client.transaction().await?;
    let claim_id = Uuid::now_v7();
    let fingerprint = event.fingerprint();
    let new = tx
        .execute(
            &statements.claim,
            &[&event.tenant, &event.source, &event.id, &event.event_type, &fingerprint, &claim_id],
        )
        .await?;
    if new == 0 {
        return Ok(tx.rollback().await?);
    }
    let time = event.time.unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    let key = format!("{} {}", event.id, event.source);
    let written = tx
        .query_opt(
            &statements.upsert,
            &[
                &event.tenant,
                &user.directory,
                &user.id,
                &user.version,
                &time,
                &key,
                &user.name,
                &user.email,
                &user.title,
                &user.employee_number,
                &user.suspended,
            ],
        )
        .await?;
    if let Some(row) = written {
        let changed = json!({
            "directory": user.directory, "id": user.id, "op": if row.get(0) { "created" } else { "updated" },
            "version": user.version.to_string(), "changedFields": ["name", "email", "title", "employee_number"],
            "user": {"name": user.name, "email": user.email, "title": user.title, "employeeNumber": user.employee_number},
        });
        let aggregate = format!("{}/{}", user.directory, user.id);
        let headers = cause_headers("org", &event);
        tx.execute(&statements.append, &[&claim_id, &event.tenant, &aggregate, &changed, &headers]).await?;
    }
    Ok(tx.commit().await?)
}

async fn relay(duty: &Duty) -> anyhow::Result<()> {
    let client = connect(&duty.database_url).await?;
    let (next, remove) = (client.prepare(NEXT).await?, client.prepare(REMOVE).await?);
    let connection = crate::sibling::connect(&duty.amqp_url).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    loop {
        let rows = client.query(&next, &[&PAGE]).await?;
        if rows.is_empty() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        for row in &rows {
            let row = read(row);
            relay_one(&client, &channel, &remove, row).await?;
        }
    }
}

fn read(row: &tokio_postgres::Row) -> Row {
    let aggregate: String = row.get(2);
    Row {
        id: row.get(0),
        event_type: "org.user.changed.v1".to_owned(),
        subject: format!("user/{aggregate}"),
        key: aggregate,
        tenant: row.get(1),
        body: row.get(3),
        headers: row.get(4),
    }
}

async fn relay_one(client: &Client, channel: &Channel, remove: &Statement, row: Row) -> anyhow::Result<()> {
    publish(channel, std::slice::from_ref(&row)).await?;
    client.execute(remove, &[&row.tenant, &row.id]).await?;
    Ok(())
}

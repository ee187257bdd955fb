//! The SQL of what a replay sends.

use std::collections::BTreeMap;

use tokio_postgres::Row;
use uuid::Uuid;

use super::store::{all_of, column};
use crate::db::{DbError, Tx};
use crate::outbox::Resent;

/// The message of each replay `$2` of a dead letter `$1`: as it was, but for the broker's own headers (a copied `x-death` makes the broker
/// see a cycle) and the counters of the attempts that failed: a replay starts afresh.
macro_rules! messages {
    () => {
        "SELECT r.nth, r.replay_id, d.tenant, d.id, d.event_type, d.payload,
                coalesce((SELECT jsonb_object_agg(h.key, h.value) FROM jsonb_each(d.headers) AS h
                           WHERE h.key NOT LIKE 'x-%'
                             AND h.key NOT IN ('onceflow-attempt', 'onceflow-first-failed-at', 'onceflow-error')), '{}')
                || jsonb_build_object('onceflow-replay-id', r.replay_id,
                                      'onceflow-original-exchange', d.original_exchange,
                                      'onceflow-original-routing-key', d.original_routing_key) AS headers,
                coalesce(d.partition_key, d.subject, d.event_id) AS key, q.queue
           FROM unnest($1::uuid[], $2::uuid[]) WITH ORDINALITY AS r (id, replay_id, nth)
           JOIN onceflow.dead_letter AS d ON d.id = r.id
           JOIN unnest($3::text[], $4::text[]) AS q (consumer, queue) ON q.consumer = d.consumer
          ORDER BY r.nth"
    };
}

/// The first of them, up to `$5` bytes, one aside.
const MESSAGES: &str = concat!(
    "
    SELECT s.*
      FROM (SELECT m.*, sum(octet_length(m.payload)) OVER (ORDER BY m.nth) - octet_length(m.payload) AS bytes_before
              FROM (",
    messages!(),
    ") AS m) AS s
     WHERE s.bytes_before < $5
     ORDER BY s.nth"
);

/// Without passing through this process, however many they are.
const SEND: &str = concat!(
    "
    INSERT INTO onceflow.outbox
           (id, tenant, aggregatetype, aggregateid, type, payload_raw, headers, partitionkey, exchange, routingkey)
    SELECT m.replay_id, m.tenant, 'dead_letter', m.id::text, m.event_type, m.payload, m.headers, m.key, '', m.queue
      FROM (",
    messages!(),
    ") AS m"
);

/// Writes the outbox row of each replay, in this order.
pub(super) async fn send(
    tx: &Tx,
    ids: &[Uuid],
    replays: &[Uuid],
    queues: &BTreeMap<String, String>,
) -> Result<(), DbError> {
    let consumers: Vec<&str> = queues.keys().map(String::as_str).collect();
    let names: Vec<&str> = queues.values().map(String::as_str).collect();
    let written = tx.execute(SEND, &[&ids, &replays, &consumers, &names]).await?;
    all_of(written, ids, "outbox rows of replays")
}

/// The messages of the first of these replays, in this order: as many as have about so many bytes together, at least one.
pub(super) async fn messages(
    tx: &Tx,
    (ids, replays): (&[Uuid], &[Uuid]),
    queues: &BTreeMap<String, String>,
    most_bytes: i64,
) -> Result<Vec<Resent>, DbError> {
    let consumers: Vec<&str> = queues.keys().map(String::as_str).collect();
    let names: Vec<&str> = queues.values().map(String::as_str).collect();
    let rows = tx.query(MESSAGES, &[&ids, &replays, &consumers, &names, &most_bytes]).await?;
    let messages: Vec<Resent> = rows.iter().map(resent).collect::<Result<_, _>>()?;
    let first = messages.iter().map(|message| message.id).eq(replays.iter().copied().take(messages.len()));
    if first && messages.is_empty() == ids.is_empty() {
        return Ok(messages);
    }
    Err(DbError::shape("messages of other dead letters than those that are locked"))
}

fn resent(row: &Row) -> Result<Resent, DbError> {
    Ok(Resent {
        id: column(row, "replay_id")?,
        tenant: column(row, "tenant")?,
        dead_letter: column(row, "id")?,
        event_type: column(row, "event_type")?,
        body: column(row, "payload")?,
        headers: column(row, "headers")?,
        key: column(row, "key")?,
        queue: column(row, "queue")?,
    })
}

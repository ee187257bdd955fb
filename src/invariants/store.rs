//! What must hold in the runtime's own tables, and the statements that surround every question.
//!
//! Each question sees one snapshot, and an event's rows are committed together, so nothing that is in flight can break a sentence.
//! What retention or the relay has removed is never taken as missing.

use std::time::Duration;

use tokio_postgres::Row;

use crate::db::{DbError, Tx};
use crate::runtime::{Invariant, Reach, Weight};

/// Looking never changes anything (I-9): the server itself refuses a write in such a transaction.
const BOUNDED: &str = "
    SELECT set_config('transaction_read_only', 'on', true), set_config('statement_timeout', $1::text, true),
           set_config('plan_cache_mode', 'force_custom_plan', true), set_config('jit', 'off', true)";

/// An index that is missing or invalid after a failed rebuild guards nothing.
const UNIQUE_INDEXES: &str = "
    WITH needed (name) AS (
        VALUES ('inbox_pkey'), ('outbox_pkey'), ('outbox_partition_pkey'), ('dead_letter_pkey'), ('dead_letter_live'),
               ('consumer_state_pkey'), ('consumer_layout_pkey'), ('bulk_job_pkey'), ('bulk_job_item_pkey'),
               ('bulk_job_item_live'), ('bulk_job_item_key_in_flight'), ('api_token_hash')
    ), broken AS (
        SELECT format('%s is missing, invalid or not unique', n.name) AS example FROM needed n
        WHERE NOT EXISTS (SELECT FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid
                          WHERE c.relname = n.name AND c.relnamespace = 'onceflow'::regnamespace
                            AND x.indisunique AND x.indisvalid AND x.indisready)
    )
    SELECT (SELECT count(*) FROM needed) AS looked, $2::text[] AS last, count(*) AS broken,
           (array_agg(example ORDER BY example))[1:$4::integer] AS examples
    FROM broken WHERE $1::float8 IS NOT NULL AND $3::bigint IS NOT NULL";

const RELAY_PARTITIONS: &str = "
    WITH broken AS (
        SELECT format('partition %s has no row in onceflow.outbox_partition', n) AS example
        FROM generate_series(0, 7) AS n
        WHERE NOT EXISTS (SELECT FROM onceflow.outbox_partition p WHERE p.partition = n)
    )
    SELECT 8::bigint AS looked, $2::text[] AS last, count(*) AS broken, (array_agg(example))[1:$4::integer] AS examples
    FROM broken WHERE $1::float8 IS NOT NULL AND $3::bigint IS NOT NULL";

/// Leases are of seconds, by the clock of this server.
const LEASES: &str = "
    WITH leases (what, until) AS (
        SELECT format('relay partition %s, held by %s,', partition, holder), expires_at FROM onceflow.outbox_partition
        UNION ALL
        SELECT format('job %s', id), expires_at FROM onceflow.bulk_job WHERE finished_at IS NULL OR in_flight > 0
        UNION ALL
        SELECT format('the move of consumer %s', consumer), mover_until FROM onceflow.consumer_layout
        WHERE mover_until IS NOT NULL
    ), broken AS (
        SELECT format('%s cannot be taken over before %s', what, until) AS example FROM leases
        WHERE until > clock_timestamp() + interval '5 minutes'
    )
    SELECT (SELECT least(count(*), $3::bigint - 1) FROM leases) AS looked, $2::text[] AS last, count(*) AS broken,
           (array_agg(example))[1:$4::integer] AS examples
    FROM broken WHERE $1::float8 IS NOT NULL";

/// A row names its cause by the event's id alone, so every source of the consumer is looked at.
const OUTBOX_CAUSES: &str = "
    WITH RECURSIVE place AS (
        (SELECT tenant, consumer, source FROM onceflow.inbox ORDER BY tenant, consumer, source LIMIT 1)
        UNION ALL
        SELECT n.tenant, n.consumer, n.source
        FROM place p
        CROSS JOIN LATERAL (SELECT b.tenant, b.consumer, b.source FROM onceflow.inbox b
                            WHERE (b.tenant, b.consumer, b.source) > (p.tenant, p.consumer, p.source)
                            ORDER BY b.tenant, b.consumer, b.source LIMIT 1) n
    ), page AS MATERIALIZED (
        SELECT o.tenant, o.id, o.exchange, o.created_at, o.headers ->> 'cloudEvents:source' AS source,
               o.headers ->> 'cloudEvents:causationid' AS cause
        FROM onceflow.outbox o
        WHERE (o.tenant, o.id) > (coalesce(($2::text[])[1], ''),
                                  coalesce(($2::text[])[2], '00000000-0000-0000-0000-000000000000')::uuid)
        ORDER BY o.tenant, o.id LIMIT $3::bigint
    ), made AS (
        SELECT tenant, substr(source, length('onceflow/') + 1) AS consumer, cause, count(*) AS rows
        FROM page
        WHERE source LIKE 'onceflow/%' AND cause IS NOT NULL AND exchange IS NULL
          AND created_at > now() - $1::float8 * interval '1 second'
        GROUP BY 1, 2, 3
    ), broken AS (
        SELECT format('event %s of %s, tenant %s: %s rows wait, the inbox says %s', m.cause, m.consumer, m.tenant, m.rows,
                      CASE WHEN i.known = 0 THEN 'nothing of it' ELSE i.said::text END) AS example
        FROM made m
        CROSS JOIN LATERAL (
            SELECT count(*) AS known, coalesce(sum(b.downstream), 0) AS said
            FROM place p
            JOIN onceflow.inbox b ON b.tenant = p.tenant AND b.consumer = p.consumer AND b.source = p.source
                                 AND b.event_id = m.cause
            WHERE p.tenant = m.tenant AND p.consumer = m.consumer) i
        WHERE m.rows > i.said
    )
    SELECT (SELECT count(*) FROM page) AS looked,
           (SELECT ARRAY[tenant, id::text] FROM page ORDER BY tenant DESC, id DESC LIMIT 1) AS last,
           count(*) AS broken, (array_agg(example))[1:$4::integer] AS examples
    FROM broken";

/// An open dead letter is never pruned, and whatever is on its way was open when it was sent.
const REPLAYS: &str = "
    WITH page AS MATERIALIZED (
        SELECT o.tenant, o.id, o.aggregatetype, o.aggregateid, o.exchange, o.created_at
        FROM onceflow.outbox o
        WHERE (o.tenant, o.id) > (coalesce(($2::text[])[1], ''),
                                  coalesce(($2::text[])[2], '00000000-0000-0000-0000-000000000000')::uuid)
        ORDER BY o.tenant, o.id LIMIT $3::bigint
    ), broken AS (
        SELECT format('outbox row %s replays dead letter %s, which does not exist', p.id, p.aggregateid) AS example
        FROM page p
        WHERE p.aggregatetype = 'dead_letter' AND p.exchange IS NOT NULL
          AND p.created_at > now() - $1::float8 * interval '1 second'
          AND p.aggregateid ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
          AND NOT EXISTS (SELECT FROM onceflow.dead_letter d WHERE d.tenant = p.tenant AND d.id = p.aggregateid::uuid)
        UNION ALL
        SELECT format('dead letter %s is on its way, but no replay was sent', d.id)
        FROM onceflow.dead_letter d
        WHERE $2::text[] IS NULL AND d.state = 'replaying' AND (d.replay_id IS NULL OR d.replays = 0)
    )
    SELECT (SELECT count(*) FROM page) AS looked,
           (SELECT ARRAY[tenant, id::text] FROM page ORDER BY tenant DESC, id DESC LIMIT 1) AS last,
           count(*) AS broken, (array_agg(example))[1:$4::integer] AS examples
    FROM broken";

const INBOX_ROWS: &str = "
    WITH page AS MATERIALIZED (
        SELECT b.tenant, b.consumer, b.source, b.event_id, b.outcome, b.downstream, b.duplicates, b.conflicts, b.processed_at
        FROM onceflow.inbox b
        WHERE b.processed_at >= coalesce(($2::text[])[1]::timestamptz, now() - $1::float8 * interval '1 second')
          AND ($2::text[] IS NULL
               OR (b.processed_at, b.tenant, b.consumer, b.source, b.event_id)
                  > (($2::text[])[1]::timestamptz, ($2::text[])[2], ($2::text[])[3], ($2::text[])[4], ($2::text[])[5]))
        ORDER BY b.processed_at, b.tenant, b.consumer, b.source, b.event_id LIMIT $3::bigint
    ), broken AS (
        SELECT format('event %s of %s, tenant %s: %s, %s downstream events, %s copies, %s of them with another body',
                      event_id, consumer, tenant, outcome, downstream, duplicates, conflicts) AS example
        FROM page
        WHERE downstream < 0 OR (outcome <> 'applied' AND downstream <> 0) OR conflicts < 0 OR conflicts > duplicates
    )
    SELECT (SELECT count(*) FROM page) AS looked,
           (SELECT ARRAY[processed_at::text, tenant, consumer, source, event_id] FROM page
            ORDER BY processed_at DESC, tenant DESC, consumer DESC, source DESC, event_id DESC LIMIT 1) AS last,
           count(*) AS broken, (array_agg(example))[1:$4::integer] AS examples
    FROM broken";

/// The items of a job that ended long ago are being removed.
const JOBS: &str = "
    WITH page AS MATERIALIZED (
        SELECT j.id, j.waiting, j.in_flight, j.succeeded, j.failed_again, j.skipped
        FROM onceflow.bulk_job j
        WHERE j.id > coalesce(($2::text[])[1], '00000000-0000-0000-0000-000000000000')::uuid
          AND (j.finished_at IS NULL OR j.in_flight > 0 OR j.finished_at > now() - $1::float8 * interval '1 second')
        ORDER BY j.id LIMIT $3::bigint
    ), broken AS (
        SELECT format('job %s says %s waiting, %s in flight, %s succeeded, %s failed again, %s skipped; its list has %s, %s, %s, %s, %s',
                      p.id, p.waiting, p.in_flight, p.succeeded, p.failed_again, p.skipped,
                      i.waiting, i.in_flight, i.succeeded, i.failed_again, i.skipped) AS example
        FROM page p
        CROSS JOIN LATERAL (
            SELECT count(*) FILTER (WHERE state = 'waiting') AS waiting, count(*) FILTER (WHERE state = 'sent') AS in_flight,
                   count(*) FILTER (WHERE state = 'succeeded') AS succeeded,
                   count(*) FILTER (WHERE state = 'failed_again') AS failed_again,
                   count(*) FILTER (WHERE state = 'skipped') AS skipped
            FROM onceflow.bulk_job_item WHERE job_id = p.id) i
        WHERE p.waiting <> i.waiting OR p.in_flight <> i.in_flight OR p.succeeded <> i.succeeded
           OR p.failed_again <> i.failed_again OR p.skipped <> i.skipped
    )
    SELECT (SELECT count(*) FROM page) AS looked, (SELECT ARRAY[id::text] FROM page ORDER BY id DESC LIMIT 1) AS last,
           count(*) AS broken, (array_agg(example))[1:$4::integer] AS examples
    FROM broken";

/// Rows of other writers that were confirmed, and inbox rows that were pruned, only make the left side smaller.
const BOOKS: &str = "
    WITH books AS (
        SELECT (SELECT coalesce(sum(downstream), 0) FROM onceflow.inbox) AS made,
               (SELECT count(*) FROM onceflow.outbox WHERE exchange IS NULL) AS waiting,
               (SELECT coalesce(sum(confirmed), 0) FROM onceflow.outbox_books) AS confirmed,
               (SELECT coalesce(sum(jsonb_array_length(detail -> 'ids')), 0) FROM onceflow.audit
                WHERE action = 'outbox.discard' AND jsonb_typeof(detail -> 'ids') = 'array') AS discarded
    ), broken AS (
        SELECT format('%s downstream events were made; %s wait, %s were confirmed, %s discarded: %s are gone', made, waiting,
                      confirmed, discarded, made - waiting - confirmed - discarded) AS example,
               made - waiting - confirmed - discarded AS gone
        FROM books WHERE made > waiting + confirmed + discarded
    )
    SELECT 1::bigint AS looked, $2::text[] AS last, coalesce(sum(gone), 0)::bigint AS broken,
           (array_agg(example))[1:$4::integer] AS examples
    FROM broken WHERE $1::float8 IS NOT NULL AND $3::bigint IS NOT NULL";

const NEEDLESS_DEAD_LETTERS: &str = "
    WITH page AS MATERIALIZED (
        SELECT d.tenant, d.consumer, d.source, d.event_id, d.id, d.state
        FROM onceflow.dead_letter d
        WHERE d.state IN ('open', 'replaying')
          AND (d.tenant, d.consumer, d.source, d.event_id)
              > (coalesce(($2::text[])[1], ''), coalesce(($2::text[])[2], ''), coalesce(($2::text[])[3], ''),
                 coalesce(($2::text[])[4], ''))
        ORDER BY d.tenant, d.consumer, d.source, d.event_id LIMIT $3::bigint
    ), broken AS (
        SELECT format('dead letter %s: event %s of %s was %s at %s', p.id, p.event_id, p.consumer, b.outcome, b.processed_at)
               AS example
        FROM page p
        JOIN onceflow.inbox b ON b.tenant = p.tenant AND b.consumer = p.consumer AND b.source = p.source
                             AND b.event_id = p.event_id
        WHERE p.state = 'open' AND $1::float8 IS NOT NULL
    )
    SELECT (SELECT count(*) FROM page) AS looked,
           (SELECT ARRAY[tenant, consumer, source, event_id] FROM page
            ORDER BY tenant DESC, consumer DESC, source DESC, event_id DESC LIMIT 1) AS last,
           count(*) AS broken, (array_agg(example))[1:$4::integer] AS examples
    FROM broken";

const LATE_REPLAYS: &str = "
    WITH late AS (
        SELECT d.id, d.consumer, d.replayed_at
        FROM onceflow.dead_letter d
        WHERE d.state = 'replaying' AND d.replayed_at < now() - interval '1 hour'
          AND d.consumer NOT IN (SELECT consumer FROM onceflow.consumer_state WHERE paused)
          AND NOT EXISTS (SELECT FROM onceflow.outbox o WHERE o.tenant = d.tenant AND o.id = d.replay_id)
    ), broken AS (
        SELECT format('dead letter %s of %s: left the outbox, sent at %s', id, consumer, replayed_at) AS example FROM late
    )
    SELECT (SELECT least(count(*), $3::bigint - 1) FROM onceflow.dead_letter WHERE state = 'replaying') AS looked,
           $2::text[] AS last, count(*) AS broken, (array_agg(example))[1:$4::integer] AS examples
    FROM broken WHERE $1::float8 IS NOT NULL";

const NOBODY_WORKS: &str = "
    WITH idle AS (
        SELECT format('relay partition %s: a row waits since %s and nobody holds the partition', p.partition, o.created_at)
               AS example
        FROM onceflow.outbox_partition p
        CROSS JOIN LATERAL (SELECT created_at FROM onceflow.outbox
                            WHERE partition = p.partition AND parked_at IS NULL ORDER BY seq LIMIT 1) o
        WHERE p.expires_at < now() - interval '1 minute' AND o.created_at < now() - interval '1 minute'
        UNION ALL
        SELECT format('job %s is %s and nobody runs it', id, state) FROM onceflow.bulk_job
        WHERE finished_at IS NULL AND (state IN ('canary', 'running') OR (state = 'held' AND hold_until < now() - interval '1 minute'))
          AND expires_at < now() - interval '1 minute' AND changed_at < now() - interval '1 minute'
    )
    SELECT (SELECT count(*) FROM onceflow.outbox_partition) AS looked, $2::text[] AS last, count(*) AS broken,
           (array_agg(example))[1:$4::integer] AS examples
    FROM idle WHERE $1::float8 IS NOT NULL AND $3::bigint IS NOT NULL";

/// What must hold in the tables of inbox, outbox, dead letters and jobs.
pub(super) const RUNTIME: &[Invariant] = &[
    Invariant {
        name: "unique-indexes",
        says: "every unique index that keeps an effect from happening twice is there and valid (I-2)",
        sql: UNIQUE_INDEXES,
        remedy: "REINDEX INDEX CONCURRENTLY, or create it as in migrations/; look for doubles first",
        weight: Weight::Violation,
        reach: Reach::Any,
    },
    Invariant {
        name: "relay-partitions",
        says: "each of the relay's eight partitions has its row",
        sql: RELAY_PARTITIONS,
        remedy: "INSERT INTO onceflow.outbox_partition (partition) VALUES (N): until then its rows never leave",
        weight: Weight::Violation,
        reach: Reach::Any,
    },
    Invariant {
        name: "leases-end",
        says: "every lease ends by itself within seconds",
        sql: LEASES,
        remedy: "the server's clock has jumped: once it is right, set that expires_at or mover_until to now()",
        weight: Weight::Violation,
        reach: Reach::Any,
    },
    Invariant {
        name: "outbox-causes",
        says: "an event has no more rows in the outbox than its inbox row says, and none without one (I-3)",
        sql: OUTBOX_CAUSES,
        remedy: "`onceflow events trace ID`; somebody changed inbox or outbox by hand",
        weight: Weight::Violation,
        reach: Reach::Kept,
    },
    Invariant {
        name: "replays-belong",
        says: "every replay in the outbox has its dead letter, and every dead letter on its way was sent",
        sql: REPLAYS,
        remedy: "`onceflow dlq show ID`; set a dead letter that was never sent back to state 'open'",
        weight: Weight::Violation,
        reach: Reach::Kept,
    },
    Invariant {
        name: "inbox-rows",
        says: "an event that was skipped made no downstream event, and its copies are counted",
        sql: INBOX_ROWS,
        remedy: "`onceflow events trace ID`; somebody changed the inbox by hand",
        weight: Weight::Violation,
        reach: Reach::Kept,
    },
    Invariant {
        name: "jobs-add-up",
        says: "the books of a job are what its list says",
        sql: JOBS,
        remedy: "`onceflow jobs cancel JOB`, then plan what is left anew",
        weight: Weight::Violation,
        reach: Reach::Kept,
    },
    Invariant {
        name: "outbox-books",
        says: "every downstream event that was made waits, was confirmed or was discarded (I-4)",
        sql: BOOKS,
        remedy: "rows were deleted from onceflow.outbox by hand: those downstream events were never published",
        weight: Weight::Violation,
        reach: Reach::Whole,
    },
    Invariant {
        name: "dead-letters-needed",
        says: "no dead letter is open whose event has been dealt with by another copy",
        sql: NEEDLESS_DEAD_LETTERS,
        remedy: "`onceflow dlq show ID`, then `onceflow dlq discard ID`",
        weight: Weight::Notice,
        reach: Reach::Any,
    },
    Invariant {
        name: "replays-arrive",
        says: "no replay is on its way for more than an hour while its consumer reads",
        sql: LATE_REPLAYS,
        remedy: "`onceflow status`: how much waits in the consumer's queue? Was it purged?",
        weight: Weight::Notice,
        reach: Reach::Any,
    },
    Invariant {
        name: "somebody-works",
        says: "where rows or jobs wait somebody holds the lease for them",
        sql: NOBODY_WORKS,
        remedy: "is `onceflow run` up? `onceflow status`",
        weight: Weight::Notice,
        reach: Reach::Any,
    },
];

/// The answer to a question.
pub(super) struct Answer {
    pub(super) looked: i64,
    pub(super) last: Option<Vec<String>>,
    pub(super) broken: i64,
    pub(super) examples: Vec<String>,
}

/// From here on the server refuses to write, and ends a statement after this time.
pub(super) async fn bounded(tx: &Tx, within: Duration) -> Result<(), DbError> {
    let millis = within.as_millis().max(1).to_string();
    tx.query(BOUNDED, &[&millis]).await.map(|_| ())
}

pub(super) async fn ask(
    tx: &Tx,
    sql: &'static str,
    since: f64,
    after: Option<&[String]>,
    (page, examples): (i64, i32),
) -> Result<Answer, DbError> {
    answer(&tx.query_one(sql, &[&since, &after, &page, &examples]).await?)
}

fn answer(row: &Row) -> Result<Answer, DbError> {
    let shape = |e: tokio_postgres::Error| DbError::shape(format!("an invariant's answer: {e}"));
    Ok(Answer {
        looked: row.try_get("looked").map_err(shape)?,
        last: row.try_get("last").map_err(shape)?,
        broken: row.try_get("broken").map_err(shape)?,
        examples: row.try_get::<_, Option<Vec<String>>>("examples").map_err(shape)?.unwrap_or_default(),
    })
}

//! What must hold in the tables of `sms`, for `onceflow check invariants`.

use crate::runtime::{Invariant, Reach, Weight};

const UNIQUE_INDEXES: &str = "
    WITH needed (name) AS (VALUES ('sms_request_pkey'), ('sms_template_pkey')), broken AS (
        SELECT format('%s is missing, invalid or not unique', n.name) AS example FROM needed n
        WHERE NOT EXISTS (SELECT FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid
                          WHERE c.relname = n.name AND c.relnamespace = 'onceflow'::regnamespace
                            AND x.indisunique AND x.indisvalid AND x.indisready)
    )
    SELECT (SELECT count(*) FROM needed) AS looked, $2::text[] AS last, count(*) AS broken,
           (array_agg(example ORDER BY example))[1:$4::integer] AS examples
    FROM broken WHERE $1::float8 IS NOT NULL AND $3::bigint IS NOT NULL";

/// A request names its event by the id alone, so every source of the consumer is looked at.
const REQUEST_EVENTS: &str = "
    WITH RECURSIVE place AS (
        (SELECT tenant, consumer, source FROM onceflow.inbox ORDER BY tenant, consumer, source LIMIT 1)
        UNION ALL
        SELECT n.tenant, n.consumer, n.source
        FROM place p
        CROSS JOIN LATERAL (SELECT b.tenant, b.consumer, b.source FROM onceflow.inbox b
                            WHERE (b.tenant, b.consumer, b.source) > (p.tenant, p.consumer, p.source)
                            ORDER BY b.tenant, b.consumer, b.source LIMIT 1) n
    ), page AS MATERIALIZED (
        SELECT r.tenant, r.request_id, r.event_id, r.requested_at
        FROM onceflow.sms_request r
        WHERE (r.tenant, r.request_id) > (coalesce(($2::text[])[1], ''), coalesce(($2::text[])[2], ''))
        ORDER BY r.tenant, r.request_id LIMIT $3::bigint
    ), broken AS (
        SELECT format('request %s of tenant %s: its event %s is not in the inbox', p.request_id, p.tenant, p.event_id) AS example
        FROM page p
        WHERE p.requested_at > now() - $1::float8 * interval '1 second'
          AND NOT EXISTS (
              SELECT FROM place s
              JOIN onceflow.inbox b ON b.tenant = s.tenant AND b.consumer = s.consumer AND b.source = s.source
                                   AND b.event_id = p.event_id
              WHERE s.tenant = p.tenant AND s.consumer = 'sms' AND b.outcome = 'applied')
    )
    SELECT (SELECT count(*) FROM page) AS looked,
           (SELECT ARRAY[tenant, request_id] FROM page ORDER BY tenant DESC, request_id DESC LIMIT 1) AS last,
           count(*) AS broken, (array_agg(example))[1:$4::integer] AS examples
    FROM broken";

/// Of this domain.
pub(super) const INVARIANTS: &[Invariant] = &[
    Invariant {
        name: "sms-unique-indexes",
        says: "the unique indexes that keep a message from being sent twice are there and valid",
        sql: UNIQUE_INDEXES,
        remedy: "REINDEX INDEX CONCURRENTLY, or create it as in migrations/; look for doubles first",
        weight: Weight::Violation,
        reach: Reach::Any,
    },
    Invariant {
        name: "sms-requests-come-from-events",
        says: "every request was made by an event that the inbox knows as applied (I-3)",
        sql: REQUEST_EVENTS,
        remedy: "`onceflow events trace ID`; a request was inserted by hand, or its inbox row deleted",
        weight: Weight::Violation,
        reach: Reach::Kept,
    },
];

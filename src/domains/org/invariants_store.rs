//! What must hold in the tables of `org`, for `onceflow check invariants`.

use crate::runtime::{Invariant, Reach, Weight};

const UNIQUE_INDEXES: &str = "
    WITH needed (name) AS (
        VALUES ('org_tree_pkey'), ('org_department_pkey'), ('org_user_pkey'), ('org_membership_pkey'), ('org_waiting_pkey')
    ), broken AS (
        SELECT format('%s is missing, invalid or not unique', n.name) AS example FROM needed n
        WHERE NOT EXISTS (SELECT FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid
                          WHERE c.relname = n.name AND c.relnamespace = 'onceflow'::regnamespace
                            AND x.indisunique AND x.indisvalid AND x.indisready)
    )
    SELECT (SELECT count(*) FROM needed) AS looked, $2::text[] AS last, count(*) AS broken,
           (array_agg(example ORDER BY example))[1:$4::integer] AS examples
    FROM broken WHERE $1::float8 IS NOT NULL AND $3::bigint IS NOT NULL";

/// Of users only: a department or membership may have waited for longer than its inbox row is kept. The stamp names the event as id
/// and source with a space between, and both may hold spaces, so each source of the inbox is tried.
const USER_EVENTS: &str = r#"
    WITH RECURSIVE place AS (
        (SELECT tenant, consumer, source FROM onceflow.inbox ORDER BY tenant, consumer, source LIMIT 1)
        UNION ALL
        SELECT n.tenant, n.consumer, n.source
        FROM place p
        CROSS JOIN LATERAL (SELECT b.tenant, b.consumer, b.source FROM onceflow.inbox b
                            WHERE (b.tenant, b.consumer, b.source) > (p.tenant, p.consumer, p.source)
                            ORDER BY b.tenant, b.consumer, b.source LIMIT 1) n
    ), page AS MATERIALIZED (
        SELECT u.tenant, u.directory, u.id, u.state, u.version, u.event_key COLLATE "default" AS event_key, u.updated_at
        FROM onceflow.org_user u
        WHERE (u.tenant, u.directory, u.id)
              > (coalesce(($2::text[])[1], ''), coalesce(($2::text[])[2], ''), coalesce(($2::text[])[3], ''))
        ORDER BY u.tenant, u.directory, u.id LIMIT $3::bigint
    ), broken AS (
        SELECT format('user %s of %s, tenant %s: version %s, of no event in the inbox', p.id, p.directory, p.tenant, p.version)
               AS example
        FROM page p
        WHERE p.state <> 'unknown' AND p.updated_at > now() - $1::float8 * interval '1 second'
          AND NOT EXISTS (
              SELECT FROM place s
              JOIN onceflow.inbox b ON b.tenant = s.tenant AND b.consumer = s.consumer AND b.source = s.source
                                   AND b.event_id = left(p.event_key, greatest(length(p.event_key) - length(s.source) - 1, 0))
              WHERE s.tenant = p.tenant AND s.consumer = 'org' AND right(p.event_key, length(s.source) + 1) = ' ' || s.source)
    )
    SELECT (SELECT count(*) FROM page) AS looked,
           (SELECT ARRAY[tenant, directory, id] FROM page ORDER BY tenant DESC, directory DESC, id DESC LIMIT 1) AS last,
           count(*) AS broken, (array_agg(example))[1:$4::integer] AS examples
    FROM broken"#;

/// What the outbox tells of an object was true when it was written, and versions only rise.
const VERSIONS: &str = "
    WITH page AS MATERIALIZED (
        SELECT o.tenant, o.id, o.type, o.payload, o.headers ->> 'cloudEvents:source' AS source, o.exchange
        FROM onceflow.outbox o
        WHERE (o.tenant, o.id) > (coalesce(($2::text[])[1], ''),
                                  coalesce(($2::text[])[2], '00000000-0000-0000-0000-000000000000')::uuid)
        ORDER BY o.tenant, o.id LIMIT $3::bigint
    ), told AS MATERIALIZED (
        SELECT tenant, id, type, (payload ->> 'version')::bigint AS version, payload ->> 'directory' AS directory,
               payload ->> 'id' AS object_id, payload ->> 'userId' AS user_id, payload ->> 'departmentId' AS department_id
        FROM page
        WHERE source = 'onceflow/org' AND exchange IS NULL AND payload IS NOT NULL AND payload ->> 'version' ~ '^[0-9]{1,18}$'
    ), stored AS (
        SELECT t.*, u.version AS is_at FROM told t
        LEFT JOIN onceflow.org_user u ON u.tenant = t.tenant AND u.directory = t.directory AND u.id = t.object_id
        WHERE t.type = 'org.user.changed.v1'
        UNION ALL
        SELECT t.*, d.version FROM told t
        LEFT JOIN onceflow.org_department d ON d.tenant = t.tenant AND d.directory = t.directory AND d.id = t.object_id
        WHERE t.type = 'org.department.changed.v1'
        UNION ALL
        SELECT t.*, m.version FROM told t
        LEFT JOIN onceflow.org_membership m ON m.tenant = t.tenant AND m.directory = t.directory AND m.user_id = t.user_id
                                           AND m.department_id = t.department_id
        WHERE t.type = 'org.membership.changed.v1'
    ), broken AS (
        SELECT format('outbox row %s (%s) tells of version %s, the table has %s', id, type, version,
                      coalesce(is_at::text, 'no row')) AS example
        FROM stored WHERE version > coalesce(is_at, -1) AND $1::float8 IS NOT NULL
    )
    SELECT (SELECT count(*) FROM page) AS looked,
           (SELECT ARRAY[tenant, id::text] FROM page ORDER BY tenant DESC, id DESC LIMIT 1) AS last,
           count(*) AS broken, (array_agg(example))[1:$4::integer] AS examples
    FROM broken";

const MEMBERS: &str = "
    WITH page AS MATERIALIZED (
        SELECT m.tenant, m.directory, m.user_id, m.department_id, m.state, m.updated_at
        FROM onceflow.org_membership m
        WHERE (m.tenant, m.directory, m.user_id, m.department_id)
              > (coalesce(($2::text[])[1], ''), coalesce(($2::text[])[2], ''), coalesce(($2::text[])[3], ''),
                 coalesce(($2::text[])[4], ''))
        ORDER BY m.tenant, m.directory, m.user_id, m.department_id LIMIT $3::bigint
    ), broken AS (
        SELECT format('membership of user %s in department %s of %s, tenant %s: user %s, department %s', p.user_id,
                      p.department_id, p.directory, p.tenant, coalesce(u.state, 'missing'), coalesce(d.state, 'missing'))
               AS example
        FROM page p
        LEFT JOIN onceflow.org_user u ON u.tenant = p.tenant AND u.directory = p.directory AND u.id = p.user_id
        LEFT JOIN onceflow.org_department d ON d.tenant = p.tenant AND d.directory = p.directory AND d.id = p.department_id
        WHERE p.state = 'live' AND p.updated_at > now() - $1::float8 * interval '1 second'
          AND (u.state IS DISTINCT FROM 'live' OR d.state IS DISTINCT FROM 'live')
    )
    SELECT (SELECT count(*) FROM page) AS looked,
           (SELECT ARRAY[tenant, directory, user_id, department_id] FROM page
            ORDER BY tenant DESC, directory DESC, user_id DESC, department_id DESC LIMIT 1) AS last,
           count(*) AS broken, (array_agg(example))[1:$4::integer] AS examples
    FROM broken";

/// Roots are at 1, and 64 is the deepest place: at most 63 above.
const TREE: &str = "
    WITH page AS MATERIALIZED (
        SELECT d.tenant, d.directory, d.id, d.parent_id, d.state, d.updated_at
        FROM onceflow.org_department d
        WHERE (d.tenant, d.directory, d.id)
              > (coalesce(($2::text[])[1], ''), coalesce(($2::text[])[2], ''), coalesce(($2::text[])[3], ''))
        ORDER BY d.tenant, d.directory, d.id LIMIT $3::bigint
    ), broken AS (
        SELECT format('department %s of %s, tenant %s, under %s: %s', p.id, p.directory, p.tenant, p.parent_id,
                      CASE WHEN w.cycle THEN 'a cycle' WHEN w.above > 63 THEN 'too deep' ELSE 'the parent is not live' END)
               AS example
        FROM page p
        JOIN onceflow.org_department parent
          ON parent.tenant = p.tenant AND parent.directory = p.directory AND parent.id = p.parent_id
        CROSS JOIN LATERAL (
            WITH RECURSIVE up (id, above) AS (
                SELECT p.parent_id, 1
                UNION ALL
                SELECT d.parent_id, up.above + 1 FROM up
                JOIN onceflow.org_department d ON d.tenant = p.tenant AND d.directory = p.directory AND d.id = up.id
                WHERE d.parent_id IS NOT NULL AND up.above <= 64
            )
            SELECT bool_or(up.id = p.id) AS cycle, max(up.above) AS above FROM up) w
        WHERE p.state = 'live' AND p.updated_at > now() - $1::float8 * interval '1 second'
          AND (w.cycle OR w.above > 63 OR parent.state <> 'live')
    )
    SELECT (SELECT count(*) FROM page) AS looked,
           (SELECT ARRAY[tenant, directory, id] FROM page ORDER BY tenant DESC, directory DESC, id DESC LIMIT 1) AS last,
           count(*) AS broken, (array_agg(example))[1:$4::integer] AS examples
    FROM broken";

/// Whoever makes an object live applies what waited for it in the same transaction.
const WAITING: &str = "
    WITH page AS MATERIALIZED (
        SELECT w.tenant, w.directory, w.kind, w.object_id, w.department_id, w.waits_for
        FROM onceflow.org_waiting w
        WHERE (w.tenant, w.directory, w.kind, w.object_id, w.department_id)
              > (coalesce(($2::text[])[1], ''), coalesce(($2::text[])[2], ''), coalesce(($2::text[])[3], ''),
                 coalesce(($2::text[])[4], ''), coalesce(($2::text[])[5], ''))
        ORDER BY w.tenant, w.directory, w.kind, w.object_id, w.department_id LIMIT $3::bigint
    ), broken AS (
        SELECT format('%s %s of %s, tenant %s, waits for %s, which is live', kind, concat_ws(' in ', object_id,
                      nullif(department_id, '')), directory, tenant, waits_for) AS example
        FROM page p
        WHERE $1::float8 IS NOT NULL
          AND CASE WHEN p.waits_for LIKE 'user/%' THEN EXISTS (
                        SELECT FROM onceflow.org_user u
                        WHERE u.tenant = p.tenant AND u.directory = p.directory AND u.id = substr(p.waits_for, 6)
                          AND u.state = 'live')
                   WHEN p.waits_for LIKE 'department/%' THEN EXISTS (
                        SELECT FROM onceflow.org_department d
                        WHERE d.tenant = p.tenant AND d.directory = p.directory AND d.id = substr(p.waits_for, 12)
                          AND d.state = 'live')
                   ELSE false END
    )
    SELECT (SELECT count(*) FROM page) AS looked,
           (SELECT ARRAY[tenant, directory, kind, object_id, department_id] FROM page
            ORDER BY tenant DESC, directory DESC, kind DESC, object_id DESC, department_id DESC LIMIT 1) AS last,
           count(*) AS broken, (array_agg(example))[1:$4::integer] AS examples
    FROM broken";

const RESEND: &str = "send the object's newest event again under a new id and with a greater version";

/// Of this domain.
pub(super) const INVARIANTS: &[Invariant] = &[
    Invariant {
        name: "org-unique-indexes",
        says: "the unique indexes of the directory's tables are there and valid",
        sql: UNIQUE_INDEXES,
        remedy: "REINDEX INDEX CONCURRENTLY, or create it as in migrations/; look for doubles first",
        weight: Weight::Violation,
        reach: Reach::Any,
    },
    Invariant {
        name: "org-users-come-from-events",
        says: "a user is as an event of the inbox has told (I-3)",
        sql: USER_EVENTS,
        remedy: RESEND,
        weight: Weight::Violation,
        reach: Reach::Kept,
    },
    Invariant {
        name: "org-versions",
        says: "no user, department or membership is behind what the outbox tells of it (I-5)",
        sql: VERSIONS,
        remedy: RESEND,
        weight: Weight::Violation,
        reach: Reach::Any,
    },
    Invariant {
        name: "org-members-live",
        says: "user and department of a live membership are live",
        sql: MEMBERS,
        remedy: RESEND,
        weight: Weight::Violation,
        reach: Reach::Any,
    },
    Invariant {
        name: "org-tree",
        says: "departments form a tree of at most 64 levels whose parents are live",
        sql: TREE,
        remedy: RESEND,
        weight: Weight::Violation,
        reach: Reach::Any,
    },
    Invariant {
        name: "org-waiting",
        says: "nothing waits for a user or department that is live",
        sql: WAITING,
        remedy: RESEND,
        weight: Weight::Violation,
        reach: Reach::Any,
    },
];

//! What must hold in the tables of `payment`, for `onceflow check invariants`.

use crate::runtime::{Invariant, Reach, Weight};

const UNIQUE_INDEXES: &str = "
    with needed (name) as (
        values ('payment_order_pkey'), ('payment_order_line_pkey'), ('payment_pkey'), ('payment_notified_once'), ('payment_paid_once')
    ), broken as (
        select format('%s is missing, invalid or not unique', n.name) as example from needed n
         where not exists (select from pg_index x join pg_class c on c.oid = x.indexrelid
                            where c.relname = n.name and c.relnamespace = 'onceflow'::regnamespace
                              and x.indisunique and x.indisvalid and x.indisready)
    )
    select (select count(*) from needed) as looked, $2::text[] as last, count(*) as broken,
           (array_agg(example order by example))[1:$4::integer] as examples
      from broken where $1::float8 is not null and $3::bigint is not null";

const LINES: &str = "
    with page as materialized (
        select o.tenant, o.order_no, o.state, o.total, o.changed_at
          from onceflow.payment_order o
         where (o.tenant, o.order_no) > (coalesce(($2::text[])[1], ''), coalesce(($2::text[])[2], ''))
         order by o.tenant, o.order_no limit $3::bigint
    ), broken as (
        select format('order %s of tenant %s, %s: total %s, lines %s', p.order_no, p.tenant, p.state, p.total, l.total) as example
          from page p
         cross join lateral (select coalesce(sum(r.quantity::numeric * r.unit_price), 0) as total
                               from onceflow.payment_order_line r
                              where r.tenant = p.tenant and r.order_no = p.order_no) l
         where p.changed_at > now() - $1::float8 * interval '1 second' and coalesce(p.total, 0) <> l.total
    )
    select (select count(*) from page) as looked,
           (select array[tenant, order_no] from page order by tenant desc, order_no desc limit 1) as last,
           count(*) as broken, (array_agg(example))[1:$4::integer] as examples
      from broken";

/// An order and what was said of it change under the order's lock, so both are seen as of one moment.
const PAID_ONCE: &str = "
    with page as materialized (
        select o.tenant, o.order_no, o.state, o.merchant_id, o.currency, o.total, o.changed_at
          from onceflow.payment_order o
         where (o.tenant, o.order_no) > (coalesce(($2::text[])[1], ''), coalesce(($2::text[])[2], ''))
         order by o.tenant, o.order_no limit $3::bigint
    ), broken as (
        select format('order %s of tenant %s, %s: total %s, %s accepted payments of %s, %s of them agree with it', p.order_no,
                      p.tenant, p.state, p.total, s.accepted, s.amount, s.agreeing) as example
          from page p
         cross join lateral (
               select count(*) as accepted, coalesce(sum(r.amount), 0) as amount,
                      count(*) filter (where r.amount = p.total and r.currency = p.currency and r.merchant_id = p.merchant_id)
                      as agreeing
                 from onceflow.payment r
                where r.tenant = p.tenant and r.order_no = p.order_no and r.disposition = 'accepted' and r.status = 'SUCCESS') s
         where p.changed_at > now() - $1::float8 * interval '1 second'
           and (s.accepted <> s.agreeing
                or case p.state when 'PAID' then s.accepted <> 1 when 'REVIEW' then s.accepted > 1 else s.accepted > 0 end)
    )
    select (select count(*) from page) as looked,
           (select array[tenant, order_no] from page order by tenant desc, order_no desc limit 1) as last,
           count(*) as broken, (array_agg(example))[1:$4::integer] as examples
      from broken";

const ORPHANS: &str = "
    with page as materialized (
        select o.tenant, o.order_no, o.state, o.changed_at
          from onceflow.payment_order o
         where (o.tenant, o.order_no) > (coalesce(($2::text[])[1], ''), coalesce(($2::text[])[2], ''))
         order by o.tenant, o.order_no limit $3::bigint
    ), broken as (
        select format('order %s of tenant %s is %s, and callbacks wait for it', p.order_no, p.tenant, p.state) as example
          from page p
         where p.changed_at > now() - $1::float8 * interval '1 second' and p.state <> 'AWAITED'
           and exists (select from onceflow.payment r
                        where r.tenant = p.tenant and r.order_no = p.order_no and r.disposition = 'orphan')
    )
    select (select count(*) from page) as looked,
           (select array[tenant, order_no] from page order by tenant desc, order_no desc limit 1) as last,
           count(*) as broken, (array_agg(example))[1:$4::integer] as examples
      from broken";

/// What the outbox tells of an order was true when it was written, and versions only rise.
const VERSIONS: &str = "
    with page as materialized (
        select o.tenant, o.id, o.type, o.payload, o.headers ->> 'cloudEvents:source' as source, o.exchange
          from onceflow.outbox o
         where (o.tenant, o.id) > (coalesce(($2::text[])[1], ''),
                                   coalesce(($2::text[])[2], '00000000-0000-0000-0000-000000000000')::uuid)
         order by o.tenant, o.id limit $3::bigint
    ), told as materialized (
        select tenant, id, type, (payload ->> 'version')::bigint as version, payload ->> 'orderNo' as order_no
          from page
         where source = 'onceflow/payment' and exchange is null and type in ('order.paid.v1', 'order.closed.v1')
           and payload ->> 'version' ~ '^[0-9]{1,18}$'
    ), broken as (
        select format('outbox row %s (%s) tells of version %s of order %s, the table has %s', t.id, t.type, t.version, t.order_no,
                      coalesce(o.version::text, 'no row')) as example
          from told t
          left join onceflow.payment_order o on o.tenant = t.tenant and o.order_no = t.order_no
         where t.version > coalesce(o.version, -1) and $1::float8 is not null
    )
    select (select count(*) from page) as looked,
           (select array[tenant, id::text] from page order by tenant desc, id desc limit 1) as last,
           count(*) as broken, (array_agg(example))[1:$4::integer] as examples
      from broken";

/// Of this domain.
pub(super) const INVARIANTS: &[Invariant] = &[
    Invariant {
        name: "payment-unique-indexes",
        says: "the unique indexes that keep an order from being paid twice are there and valid",
        sql: UNIQUE_INDEXES,
        remedy: "REINDEX INDEX CONCURRENTLY, or create it as in migrations/; look for doubles first",
        weight: Weight::Violation,
        reach: Reach::Any,
    },
    Invariant {
        name: "payment-lines",
        says: "the lines of an order add up to its total",
        sql: LINES,
        remedy: "compare the order with its source; somebody changed order or lines by hand",
        weight: Weight::Violation,
        reach: Reach::Any,
    },
    Invariant {
        name: "payment-paid-once",
        says: "a paid order has one accepted payment, of its merchant, amount and currency; an unpaid one has none",
        sql: PAID_ONCE,
        remedy: "ask the provider what was paid, then correct order or payment; refund what was paid twice",
        weight: Weight::Violation,
        reach: Reach::Any,
    },
    Invariant {
        name: "payment-orphans",
        says: "no callback waits for an order that was placed",
        sql: ORPHANS,
        remedy: "compare the order with its provider; somebody changed order or payment by hand",
        weight: Weight::Violation,
        reach: Reach::Any,
    },
    Invariant {
        name: "payment-versions",
        says: "no order is behind what the outbox tells of it (I-5)",
        sql: VERSIONS,
        remedy: "`onceflow events trace --key ORDER`; an order was set back by hand",
        weight: Weight::Violation,
        reach: Reach::Any,
    },
];

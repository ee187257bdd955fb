-- Orders to be paid and what payment providers said of them.

-- One row per order number that anything was heard of. Every transaction that deals with an order first makes sure
-- of this row and locks it, so that an order and the callbacks that came before it can't miss each other.
create table onceflow.payment_order (
    tenant        text        not null,
    order_no      text        not null,
    -- AWAITED: a callback or cancel request came before the order itself.
    state         text        not null default 'AWAITED',
    merchant_id   text,
    currency      text,
    -- Minor units; equals the sum of the lines.
    total         bigint,
    -- Of the cancel request that waits for the order (AWAITED) or closed it; may be empty.
    cancel_reason text,
    -- Rises with every change of state, for observers.
    version       bigint      not null default 0,
    created_at    timestamptz not null default clock_timestamp(),
    changed_at    timestamptz not null default clock_timestamp(),
    constraint payment_order_pkey primary key (tenant, order_no),
    constraint payment_order_state_known check (state in ('AWAITED', 'CREATED', 'PAYING', 'PAID', 'CLOSED', 'REVIEW')),
    constraint payment_order_placed_whole check
        (num_nonnulls(merchant_id, currency, total) = case state when 'AWAITED' then 0 else 3 end),
    constraint payment_order_total_not_negative check (total >= 0),
    constraint payment_order_currency_is_iso check (currency ~ '^[A-Z]{3}$'),
    constraint payment_order_closed_with_reason check (state <> 'CLOSED' or cancel_reason is not null),
    constraint payment_order_open_without_reason check (cancel_reason is null or state in ('AWAITED', 'CLOSED', 'REVIEW'))
);

create table onceflow.payment_order_line (
    tenant     text    not null,
    order_no   text    not null,
    -- Position in the order, from 0.
    line_no    integer not null,
    sku        text    not null,
    quantity   bigint  not null,
    -- Minor units of the order's currency.
    unit_price bigint  not null,
    constraint payment_order_line_pkey primary key (tenant, order_no, line_no),
    constraint payment_order_line_of_order foreign key (tenant, order_no) references onceflow.payment_order,
    constraint payment_order_line_quantity_positive check (quantity > 0),
    constraint payment_order_line_price_not_negative check (unit_price >= 0)
);

-- What was said of a transaction: one row for each status that a provider told of it.
create table onceflow.payment (
    tenant         text        not null,
    provider       text        not null,
    transaction_id text        not null,
    status         text        not null,
    -- Of the first notification that told it.
    notify_id      text        not null,
    order_no       text        not null,
    -- As the provider said them, also where they contradict the order.
    merchant_id    text        not null,
    currency       text        not null,
    amount         bigint      not null,
    paid_at        timestamptz,
    -- orphan: waits for its order. accepted: moved the order. noted: agrees, moved nothing. no_effect: came too late.
    -- The others need a person; they were never posted.
    disposition    text        not null,
    -- Stable codes that explain the disposition.
    reasons        text[]      not null default '{}',
    -- Order of arrival, in which orphans are matched.
    seq            bigint      generated always as identity,
    recorded_at    timestamptz not null default clock_timestamp(),
    constraint payment_pkey primary key (tenant, provider, transaction_id, status),
    constraint payment_notified_once unique (tenant, provider, notify_id),
    constraint payment_of_order foreign key (tenant, order_no) references onceflow.payment_order,
    constraint payment_status_known check (status in ('PROCESSING', 'SUCCESS', 'FAILED', 'CLOSED')),
    constraint payment_amount_not_negative check (amount >= 0),
    constraint payment_currency_is_iso check (currency ~ '^[A-Z]{3}$'),
    constraint payment_success_has_time check (status <> 'SUCCESS' or paid_at is not null),
    constraint payment_disposition_known check (disposition in
        ('orphan', 'accepted', 'noted', 'no_effect', 'mismatch', 'late', 'duplicate_payment', 'under_review')),
    constraint payment_reasons_given check
        ((cardinality(reasons) > 0) = (disposition not in ('orphan', 'accepted', 'noted')))
);
create index payment_by_order on onceflow.payment (tenant, order_no, seq);
-- An order is paid once, whatever the code believes.
create unique index payment_paid_once on onceflow.payment (tenant, order_no)
    where disposition = 'accepted' and status = 'SUCCESS';
create index payment_to_review on onceflow.payment (tenant, recorded_at)
    where disposition in ('mismatch', 'late', 'duplicate_payment', 'under_review');

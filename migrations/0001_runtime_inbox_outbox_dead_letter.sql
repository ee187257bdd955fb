-- The runtime's own tables. Forward only: expand first, contract in a later release.

create schema if not exists onceflow;

-- One row per event and consumer: the claim that makes an effect happen once.
create table onceflow.inbox (
    tenant       text        not null,
    consumer     text        not null,
    source       text        not null,
    event_id     text        not null,
    event_type   text        not null,
    -- SHA-256 of type and payload: the same id with another body is a producer's error that must be seen.
    fingerprint  bytea       not null,
    -- Names the attempt that claimed the row, so that a COMMIT whose answer was lost is recognised as our own.
    claim_id     uuid        not null,
    outcome      text        not null default 'applied',
    reason       text,
    -- How many outbox rows the event made: the books of I-3 and I-4 add up from here.
    downstream   integer     not null default 0,
    duplicates   integer     not null default 0,
    -- Deliveries with this identity but another body (counted in duplicates too).
    conflicts    integer     not null default 0,
    processed_at timestamptz not null default clock_timestamp(),
    constraint inbox_pkey primary key (tenant, consumer, source, event_id),
    constraint inbox_outcome_known check (outcome in ('applied', 'stale', 'skipped')),
    constraint inbox_reason_given check (outcome = 'applied' or reason is not null)
);
create index inbox_processed_at on onceflow.inbox (processed_at);

-- Events that wait to be published. Column names follow Debezium's outbox router, so a row written by hand
-- with psql needs only aggregatetype, aggregateid, type and payload.
create table onceflow.outbox (
    id             uuid        not null default gen_random_uuid(),
    tenant         text        not null default 'default',
    aggregatetype  text        not null,
    aggregateid    text        not null,
    type           text        not null,
    -- The payload as JSON text, or as raw bytes (protobuf, replays of undecodable messages): exactly one of the two.
    payload        json,
    payload_raw    bytea,
    -- CloudEvents attributes, AMQP properties and own headers as one flat object of strings.
    headers        jsonb       not null default '{}',
    -- Ordering key; the aggregate's id where null.
    partitionkey   text,
    -- Where to publish; null means the egress exchange with the event type as routing key. Replays name a queue.
    exchange       text,
    routingkey     text,
    seq            bigint      generated always as identity,
    -- Which relay partition publishes the row: rows of one key always share one.
    partition      smallint    not null generated always as
                       ((hashtext(tenant || '/' || coalesce(partitionkey, aggregateid)) & 2147483647) % 8) stored,
    created_at     timestamptz not null default clock_timestamp(),
    -- The process that wrote the row and hands it to its own relay in memory; 0 for everybody else, and once it was parked.
    writer         bigint      not null default 0,
    attempts       integer     not null default 0,
    -- Set when the broker could not route or accept the row: it stays until someone retries or discards it.
    parked_at      timestamptz,
    parked_reason  text,
    constraint outbox_pkey primary key (tenant, id),
    constraint outbox_one_payload check (num_nonnulls(payload, payload_raw) = 1),
    constraint outbox_route_whole check ((exchange is null) = (routingkey is null)),
    constraint outbox_parked_with_reason check ((parked_at is null) = (parked_reason is null))
);
create index outbox_ready on onceflow.outbox (partition, seq) where parked_at is null;
-- Answers at once whether a partition has rows of anybody else.
create index outbox_by_writer on onceflow.outbox (partition, writer) where parked_at is null;
create index outbox_parked on onceflow.outbox (parked_at) where parked_at is not null;

-- Who publishes a partition. The epoch rises at every takeover and is compared in every statement that removes rows,
-- so a relay that was frozen past its lease can't remove what another one now publishes.
create table onceflow.outbox_partition (
    partition  smallint    not null primary key,
    holder     text,
    epoch      bigint      not null default 0,
    expires_at timestamptz not null default '-infinity',
    -- The books: rows confirmed and removed, to the egress exchange and to named queues (replays).
    confirmed  bigint      not null default 0,
    replayed   bigint      not null default 0
);
insert into onceflow.outbox_partition (partition) select generate_series(0, 7);

-- The relays that run now: they share the partitions evenly.
create table onceflow.outbox_relay (
    holder  text        not null primary key,
    seen_at timestamptz not null default clock_timestamp()
);

-- Messages that failed for good. Browsed here and never in the broker: looking into a quorum queue counts as a delivery.
create table onceflow.dead_letter (
    id                   uuid        not null,
    tenant               text        not null,
    consumer             text        not null,
    source               text        not null,
    event_id             text        not null,
    event_type           text        not null,
    subject              text,
    partition_key        text,
    -- decode | validate | handle | database | exhausted | broker
    stage                text        not null,
    -- A stable code such as invalid_json, unknown_type, cycle, delivery_limit.
    reason               text        not null,
    -- The error and its causes, outermost first.
    error_chain          text[]      not null,
    content_type         text,
    payload              bytea       not null,
    headers              jsonb       not null,
    original_exchange    text        not null,
    original_routing_key text        not null,
    attempts             integer     not null,
    -- Deliveries that ended here with this identity while the row was open.
    occurrences          integer     not null default 1,
    first_failed_at      timestamptz not null,
    last_failed_at       timestamptz not null,
    consumer_version     text        not null,
    state                text        not null default 'open',
    replays              integer     not null default 0,
    -- Outbox row of the last replay; the state leaves 'replaying' when the consumer has dealt with it.
    replay_id            uuid,
    closed_at            timestamptz,
    closed_by            text,
    closed_reason        text,
    constraint dead_letter_pkey primary key (tenant, id),
    constraint dead_letter_state_known check (state in ('open', 'replaying', 'replayed', 'discarded')),
    constraint dead_letter_closed_whole check ((closed_at is not null) = (state in ('replayed', 'discarded')))
);
-- One live dead letter per message: a redelivered copy is counted, not stored again.
create unique index dead_letter_live on onceflow.dead_letter (tenant, consumer, source, event_id)
    where state in ('open', 'replaying');
create index dead_letter_by_state on onceflow.dead_letter (state, last_failed_at desc, id);
create index dead_letter_by_consumer on onceflow.dead_letter (consumer, state, reason);

-- What operators decided about a consumer; survives restarts and holds for every replica.
create table onceflow.consumer_state (
    consumer   text        not null primary key,
    paused     boolean     not null,
    changed_by text        not null,
    reason     text        not null,
    changed_at timestamptz not null default clock_timestamp()
);

-- Who changed what by hand. Insert only.
create table onceflow.audit (
    id      uuid        not null primary key,
    at      timestamptz not null default clock_timestamp(),
    actor   text        not null,
    action  text        not null,
    subject text        not null,
    reason  text,
    detail  jsonb       not null default '{}'
);
create index audit_at on onceflow.audit (at);

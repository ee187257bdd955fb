-- Dead letters grouped by how they failed, what people say of a group, and indexes for a million of them.

alter table onceflow.dead_letter
    -- Which failures are alike: the first 16 hex digits of SHA-256 over consumer, type, stage, reason and group_text.
    -- Null in rows of earlier versions, also of one that still runs; see group_of.
    add column group_id       text,
    -- The error text with everything taken out that differs from one event to the next.
    add column group_text     text,
    add column correlation_id text,
    -- The last replay: when, and out of which group. A replay that fails in another way moves the row to another group.
    add column replayed_at    timestamptz,
    add column replayed_group text,
    add constraint dead_letter_group_whole check ((group_id is null) = (group_text is null)) not valid;

-- The one rule for the group of a dead letter, used by every statement and by an index. Rows without a group_id are grouped by
-- their four fields, as before.
create function onceflow.group_of(group_id text, consumer text, event_type text, stage text, reason text) returns text
    language sql immutable parallel safe
    as $$ select coalesce($1, left(md5($2 || '|' || $3 || '|' || $4 || '|' || $5), 8)) $$;

-- Rows of earlier versions have it in their headers only.
create function onceflow.correlation_of(correlation_id text, headers jsonb) returns text
    language sql immutable parallel safe
    as $$ select coalesce($1, $2 ->> 'cloudEvents:correlationid', $2 ->> 'amqp:correlation_id') $$;

-- Pages, counts and groups are read from this index alone. It begins like dead_letter_by_state, which it replaces.
create index dead_letter_page on onceflow.dead_letter (state, last_failed_at desc, id)
    include (tenant, consumer, event_type, stage, reason, group_id, first_failed_at, attempts, replays);
drop index onceflow.dead_letter_by_state;
-- A group's rows, newest first: it may be a small one among many.
create index dead_letter_by_group on onceflow.dead_letter
    (state, onceflow.group_of(group_id, consumer, event_type, stage, reason), last_failed_at desc, id);
-- Operators name ids without the tenant that the primary key begins with.
create index dead_letter_by_id on onceflow.dead_letter (id);
create index dead_letter_by_key on onceflow.dead_letter (partition_key, last_failed_at desc, id)
    where partition_key is not null;
create index dead_letter_by_correlation on onceflow.dead_letter
    (onceflow.correlation_of(correlation_id, headers), last_failed_at desc, id)
    where onceflow.correlation_of(correlation_id, headers) is not null;
create index dead_letter_replays on onceflow.dead_letter (replayed_group, replayed_at desc)
    where replayed_group is not null;

-- What people say of a group. It needs no row before somebody says something, and outlives the group's dead letters.
create table onceflow.dead_letter_group (
    group_id   text        not null,
    note       text,
    owner      text,
    changed_by text        not null,
    changed_at timestamptz not null default clock_timestamp(),
    constraint dead_letter_group_pkey primary key (group_id)
);

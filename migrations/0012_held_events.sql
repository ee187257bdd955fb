-- Order through failure: keys that an event blocks, and the events that wait behind it. Empty unless a consumer is `strict`.

-- A row blocks its key: of the key only the event it names, the head, may be handled. Whoever adds to a line or moves it on locks
-- this row first, so that nobody is left behind.
create table onceflow.blocked_key (
    tenant        text        not null,
    consumer      text        not null,
    partition_key text        not null,
    -- The head: it waits for its next attempt, is a dead letter, or is on its way out of the line.
    source        text        not null,
    event_id      text        not null,
    -- The queue that the line is sent to, one event at a time.
    queue         text        not null,
    -- Outbox row with which the head left the line; null for one that did not come out of it.
    sent_id       uuid,
    since         timestamptz not null default clock_timestamp(),
    constraint blocked_key_pkey primary key (tenant, consumer, partition_key)
);

-- The line behind a blocked key.
create table onceflow.held_event (
    tenant        text        not null,
    consumer      text        not null,
    source        text        not null,
    event_id      text        not null,
    event_type    text        not null,
    partition_key text        not null,
    -- The place in the line: rises within a key.
    seq           bigint      not null generated always as identity,
    -- The message in the form that the outbox publishes. Null when there was no room for it: then only its place is kept, and
    -- the message itself goes round through a retry queue until there is.
    payload       bytea,
    headers       jsonb,
    held_at       timestamptz not null default clock_timestamp(),
    constraint held_event_pkey primary key (tenant, consumer, source, event_id),
    constraint held_event_message_whole check ((payload is null) = (headers is null))
);
create index held_event_line on onceflow.held_event (tenant, consumer, partition_key, seq);
-- How many messages a consumer holds.
create index held_event_stored on onceflow.held_event (consumer) where payload is not null;

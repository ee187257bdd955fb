-- Every failed attempt at an event leaves a row, so that its history outlives the retries. An event that is applied at the first
-- attempt leaves none.

create table onceflow.attempt (
    tenant           text        not null,
    consumer         text        not null,
    source           text        not null,
    event_id         text        not null,
    -- Made by the process that failed, so that a COMMIT whose answer was lost is not written twice.
    id               uuid        not null,
    event_type       text        not null,
    -- The ordering key; null where the envelope could not be read.
    partition_key    text,
    -- Counts from 1; a replay begins anew, so it is no key.
    attempt          integer     not null,
    -- When it failed, on the clock of the process, as in dead_letter.last_failed_at.
    at               timestamptz not null,
    -- Which process: its machine and process id.
    instance         text        not null,
    consumer_version text        not null,
    stage            text        not null,
    code             text        not null,
    -- The error and its causes, outermost first, cut to a bound.
    error_chain      text[]      not null,
    -- How long the attempt took; null where none was made, because the event could not be read or the broker gave up on it.
    duration_us      bigint,
    -- About how long it waits for the next attempt; null where this one made it a dead letter.
    retry_ms         bigint,
    replay_id        uuid,
    constraint attempt_pkey primary key (tenant, consumer, source, event_id, id),
    constraint attempt_counts_from_one check (attempt >= 1)
);
create index attempt_by_event on onceflow.attempt (event_id);
create index attempt_by_key on onceflow.attempt (partition_key);

-- Written when an event dies or an operator acts, never by an event that works.
create index dead_letter_by_event on onceflow.dead_letter (event_id);
-- Which changes by hand named a dead letter or an outbox row.
create index audit_ids on onceflow.audit using gin ((detail -> 'ids'));

-- Replaying or discarding many dead letters: one row per job, one per dead letter that it was planned with.

create table onceflow.bulk_job (
    id              uuid        not null,
    -- replay | discard
    action          text        not null,
    state           text        not null,
    -- Where a paused job goes on: canary or running.
    resume_to       text,
    -- Who planned it, and why.
    actor           text        not null,
    reason          text        not null,
    -- What was asked for: ids or a filter, as it came.
    selection       jsonb       not null,
    -- Dead letters that failed later than this are newcomers: counted, never included.
    bound           timestamptz not null,
    -- The same key again is the same job.
    idempotency_key text,
    -- What the plan found: counts by kind, and what was left out with its reason.
    plan            jsonb       not null,
    -- Dead letters a second at most, and how many may be on their way at once.
    rate            integer     not null,
    max_in_flight   integer     not null,
    -- How many go first and must succeed before the rest; 0 for none.
    canary          integer     not null,
    hold_seconds    integer     not null,
    -- Nothing is sent before this time: until then a cancel undoes everything.
    hold_until      timestamptz,
    -- The books: planned = waiting + in_flight + succeeded + failed_again + skipped.
    planned         integer     not null,
    waiting         integer     not null,
    in_flight       integer     not null default 0,
    succeeded       integer     not null default 0,
    failed_again    integer     not null default 0,
    skipped         integer     not null default 0,
    -- The last results, newest last: s succeeded, f failed again. What the rules for stopping look at, also after a restart.
    recent          text        not null default '',
    -- Why it paused or stopped, or who cancelled it and why.
    stop_reason     text,
    -- What it waits for though nobody paused it, e.g. the broker.
    waits_for       text,
    -- Which process runs it. The epoch rises at every takeover; whoever runs it locks the row by holder and epoch first.
    holder          uuid,
    epoch           bigint      not null default 0,
    expires_at      timestamptz not null default '-infinity',
    created_at      timestamptz not null default clock_timestamp(),
    changed_at      timestamptz not null default clock_timestamp(),
    finished_at     timestamptz,
    constraint bulk_job_pkey primary key (id),
    constraint bulk_job_action_known check (action in ('replay', 'discard')),
    constraint bulk_job_state_known check
        (state in ('planned', 'held', 'canary', 'running', 'paused', 'done', 'stopped', 'cancelled')),
    constraint bulk_job_paused_goes_on check ((state = 'paused') = (resume_to is not null)),
    constraint bulk_job_resume_to_known check (resume_to in ('canary', 'running')),
    constraint bulk_job_books_balance check (planned = waiting + in_flight + succeeded + failed_again + skipped),
    constraint bulk_job_books_not_negative check
        (least(waiting, in_flight, succeeded, failed_again, skipped, canary, hold_seconds) >= 0),
    constraint bulk_job_rate_bounded check (rate between 1 and 500),
    constraint bulk_job_in_flight_bounded check (max_in_flight between 1 and 5000),
    constraint bulk_job_hold_bounded check (hold_seconds between 0 and 300),
    constraint bulk_job_finished_when check ((finished_at is not null) = (state in ('done', 'stopped', 'cancelled'))),
    constraint bulk_job_held_until check (state <> 'held' or hold_until is not null)
);
create unique index bulk_job_idempotency on onceflow.bulk_job (idempotency_key) where idempotency_key is not null;
create index bulk_job_live on onceflow.bulk_job (created_at)
    where finished_at is null or in_flight > 0;
create index bulk_job_created on onceflow.bulk_job (created_at desc, id);

-- No foreign key: only planning writes rows, in the transaction that makes the job, and checking 100,000 costs a second of five.
create table onceflow.bulk_job_item (
    job_id         uuid    not null,
    -- Order of first failure.
    nth            integer not null,
    tenant         text    not null,
    dead_letter_id uuid    not null,
    consumer       text    not null,
    -- Hash of tenant, consumer and ordering key.
    key            uuid    not null,
    -- Place among those of the job with the same key.
    turn           integer not null,
    -- Goes first, and its result is waited for.
    canary         boolean not null,
    -- All earlier ones of its key have ended.
    ready          boolean not null,
    state          text    not null default 'waiting',
    -- Why it was skipped.
    reason         text,
    replay_id      uuid,
    sent_at        timestamptz,
    constraint bulk_job_item_pkey primary key (job_id, nth),
    constraint bulk_job_item_state_known check (state in ('waiting', 'sent', 'succeeded', 'failed_again', 'skipped')),
    constraint bulk_job_item_skipped_why check (state <> 'skipped' or reason is not null),
    constraint bulk_job_item_sent_when check (state <> 'sent' or (replay_id is not null and sent_at is not null))
);
-- A dead letter belongs to one live job at most, whatever two operators do.
create unique index bulk_job_item_live on onceflow.bulk_job_item (dead_letter_id) where state in ('waiting', 'sent');
-- Never two of one ordering key on their way, not even by two jobs.
create unique index bulk_job_item_key_in_flight on onceflow.bulk_job_item (key) where state = 'sent';
create unique index bulk_job_item_turn on onceflow.bulk_job_item (job_id, key, turn);
create index bulk_job_item_ready on onceflow.bulk_job_item (job_id, nth) where state = 'waiting' and ready;
create index bulk_job_item_sent on onceflow.bulk_job_item (job_id) where state = 'sent';

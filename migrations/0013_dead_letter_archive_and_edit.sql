-- Dead letters that are put away until further notice, and dead letters whose event was replaced by an edited copy.

-- Every stored row fits the wider rules, so nothing is read for them. A process of the version before leaves both states alone.
alter table onceflow.dead_letter
    drop constraint dead_letter_state_known,
    drop constraint dead_letter_closed_whole,
    add constraint dead_letter_state_known check
        (state in ('open', 'replaying', 'replayed', 'discarded', 'archived', 'edited')) not valid,
    add constraint dead_letter_closed_whole check
        ((closed_at is not null) = (state in ('replayed', 'discarded', 'archived', 'edited'))) not valid;

alter table onceflow.bulk_job
    drop constraint bulk_job_action_known,
    add constraint bulk_job_action_known check (action in ('replay', 'discard', 'archive')) not valid;

-- One row per edited dead letter: which event its copy is, who made it, and what differs.
create table onceflow.dead_letter_edit (
    tenant         text        not null,
    -- The original; its state is 'edited', and retention leaves it.
    dead_letter_id uuid        not null,
    consumer       text        not null,
    source         text        not null,
    event_id       text        not null,
    -- Identity of the copy: the same source, another id, which is also that of the outbox row that sent it. Its tenant differs from the
    -- dead letter's where nobody could read whose event that was.
    copy_tenant    text        not null,
    copy_event_id  text        not null,
    edited_by      text        not null,
    reason         text        not null,
    edited_at      timestamptz not null default clock_timestamp(),
    -- What differs, for people: a bounded list.
    diff           jsonb       not null,
    -- The payload of the copy, whole: its message is gone once it was applied.
    payload        bytea       not null,
    constraint dead_letter_edit_pkey primary key (tenant, dead_letter_id)
);
create index dead_letter_edit_by_event on onceflow.dead_letter_edit (event_id);
create index dead_letter_edit_by_copy on onceflow.dead_letter_edit (copy_event_id);

-- Jobs over a size that the configuration names are begun by two people.

alter table onceflow.bulk_job
    -- Whether somebody else than its planner has to agree before anything is sent.
    add column approval_needed boolean not null default false,
    -- Who agreed, and when.
    add column approved_by     text,
    add column approved_at     timestamptz,
    add constraint bulk_job_approved_whole check ((approved_by is null) = (approved_at is null)) not valid,
    add constraint bulk_job_approved_by_another check (approved_by <> actor) not valid,
    -- Whoever tries to begin it, a version that doesn't know of approvals too.
    add constraint bulk_job_approved_before_it_begins
        check (not approval_needed or approved_by is not null or state in ('planned', 'cancelled')) not valid;

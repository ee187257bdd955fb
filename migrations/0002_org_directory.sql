-- Departments, users and memberships as their directories last told us.
--
-- version, event_time, event_key: the stamp of the newest applied event. An event wins only with a greater stamp, so every
-- order of delivery ends in the same row. Version 0 belongs to rows that no event has told of yet (state 'unknown').

-- The lock of one tree: whoever sets a parent or deletes a department updates the row first, so that two moves which are
-- fine alone can't close a cycle together.
create table onceflow.org_tree (
    tenant    text   not null,
    directory text   not null,
    writes    bigint not null default 0,
    constraint org_tree_pkey primary key (tenant, directory)
);

create table onceflow.org_department (
    tenant     text        not null,
    directory  text        not null,
    id         text        not null,
    -- unknown: something waits for it; its row is what waiter and creator both lock. deleted: the tombstone.
    state      text        not null,
    version    bigint      not null,
    event_time timestamptz not null,
    event_key  text        collate "C" not null,
    name       text,
    parent_id  text,
    sort_order integer     not null default 0,
    deleted_at timestamptz,
    updated_at timestamptz not null default clock_timestamp(),
    constraint org_department_pkey primary key (tenant, directory, id),
    constraint org_department_parent foreign key (tenant, directory, parent_id)
        references onceflow.org_department (tenant, directory, id),
    constraint org_department_not_own_parent check (parent_id <> id),
    constraint org_department_state_known check (state in ('unknown', 'live', 'deleted')),
    constraint org_department_told check ((version > 0) = (state <> 'unknown')),
    constraint org_department_named check ((state = 'live') = (name is not null)),
    -- A tombstone holds no place in the tree.
    constraint org_department_placed check (state = 'live' or parent_id is null),
    constraint org_department_deleted_when check ((state = 'deleted') = (deleted_at is not null))
);
create index org_department_children on onceflow.org_department (tenant, directory, parent_id) where parent_id is not null;

create table onceflow.org_user (
    tenant          text        not null,
    directory       text        not null,
    id              text        not null,
    state           text        not null,
    version         bigint      not null,
    event_time      timestamptz not null,
    event_key       text        collate "C" not null,
    -- Personal data goes with the deletion: a tombstone keeps none.
    name            text,
    email           text,
    title           text,
    employee_number text,
    suspended       boolean     not null default false,
    deleted_at      timestamptz,
    updated_at      timestamptz not null default clock_timestamp(),
    constraint org_user_pkey primary key (tenant, directory, id),
    constraint org_user_state_known check (state in ('unknown', 'live', 'deleted')),
    constraint org_user_told check ((version > 0) = (state <> 'unknown')),
    constraint org_user_named check ((state = 'live') = (name is not null)),
    constraint org_user_forgotten check (state = 'live' or num_nonnulls(email, title, employee_number) = 0),
    constraint org_user_deleted_when check ((state = 'deleted') = (deleted_at is not null))
);

create table onceflow.org_membership (
    tenant        text        not null,
    directory     text        not null,
    user_id       text        not null,
    department_id text        not null,
    -- unknown: one that waits (org_waiting), so that it and a removal lock the same row.
    -- detached: ended because its user was deleted; it comes back with the user unless it is removed meanwhile.
    state         text        not null,
    version       bigint      not null,
    event_time    timestamptz not null,
    event_key     text        collate "C" not null,
    is_primary    boolean     not null default false,
    title         text        not null default '',
    deleted_at    timestamptz,
    updated_at    timestamptz not null default clock_timestamp(),
    constraint org_membership_pkey primary key (tenant, directory, user_id, department_id),
    constraint org_membership_state_known check (state in ('unknown', 'live', 'detached', 'deleted')),
    constraint org_membership_told check ((version > 0) = (state <> 'unknown')),
    constraint org_membership_deleted_when check ((state = 'deleted') = (deleted_at is not null))
);
create index org_membership_members on onceflow.org_membership (tenant, directory, department_id) where state = 'live';

-- Events that can't be applied yet, the newest per object, applied in the transaction that brings what they wait for.
create table onceflow.org_waiting (
    tenant        text        not null,
    directory     text        not null,
    -- department | membership
    kind          text        not null,
    -- The department's id, or the user's id of a membership.
    object_id     text        not null,
    -- The department's id of a membership, else empty.
    department_id text        not null,
    -- upsert | delete
    op            text        not null,
    version       bigint      not null,
    event_time    timestamptz not null,
    event_key     text        collate "C" not null,
    -- The values to apply.
    attributes    jsonb       not null,
    -- Why it waits: parent_missing, user_missing, department_missing, not_empty, department_cycle, department_too_deep.
    reason        text        not null,
    -- What wakes it: user/<id>, department/<id> (became live), empty/<id> (may have become empty), tree (any move or deletion).
    waits_for     text        not null,
    waiting_since timestamptz not null default clock_timestamp(),
    constraint org_waiting_pkey primary key (tenant, directory, kind, object_id, department_id),
    constraint org_waiting_kind_known check (kind in ('department', 'membership')),
    constraint org_waiting_op_known check (op in ('upsert', 'delete'))
);
create index org_waiting_for on onceflow.org_waiting (tenant, directory, waits_for, kind, object_id, department_id);
create index org_waiting_since on onceflow.org_waiting (waiting_since);

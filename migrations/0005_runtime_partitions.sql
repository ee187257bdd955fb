-- How many queues a consumer reads from, and the replicas that share them.

-- What counts is this table; the configuration is only the wish. A consumer without a row has one queue.
create table onceflow.consumer_layout (
    consumer    text        not null,
    partitions  integer     not null,
    -- Set while `onceflow topology apply` moves the consumer; nobody declares bindings meanwhile.
    moving_to   integer,
    -- Which apply may change the row and the broker, and until when without renewal.
    mover       uuid,
    mover_until timestamptz,
    changed_at  timestamptz not null default clock_timestamp(),
    constraint consumer_layout_pkey primary key (consumer),
    constraint consumer_layout_partitions_bounded check (partitions between 1 and 64),
    constraint consumer_layout_moving_to_bounded check (moving_to between 1 and 64),
    -- From several partitions to another number of them it goes by way of one queue.
    constraint consumer_layout_moves_by_way_of_one check (moving_to is null or (partitions = 1) <> (moving_to = 1)),
    constraint consumer_layout_mover_whole check ((mover is null) = (mover_until is null))
);

-- The replicas that run now: each reads its share of the partitions. Which one may read is decided by the broker (single active
-- consumer), so a view that is a few seconds old harms nothing.
create table onceflow.replica (
    id      uuid        not null,
    seen_at timestamptz not null default clock_timestamp(),
    constraint replica_pkey primary key (id)
);

-- While another session holds a transaction open, rows that were removed stay in the indexes. Where several replicas write, each asked with every
-- batch for the rows of the others, and visited all that these had written since. So a row that its own relay does not publish is nobody's
-- (writer = -2), and is looked for above a number below which nothing is left.

-- As the generated column computes it.
create function onceflow.outbox_partition_of(tenant text, partitionkey text, aggregateid text) returns smallint
    language sql immutable parallel safe
    as $$ select ((hashtext($1 || '/' || coalesce($2, $3)) & 2147483647) % 8)::smallint $$;

-- By expressions, so that no other index answers the same question: the planner takes the table for nearly empty and any index for good.
create index outbox_by_writer_seq on onceflow.outbox ((partition::int), writer, (seq + 0)) where num_nulls(parked_at) = 1;
drop index onceflow.outbox_by_writer;

-- Below it the partition has no rows that processes of ours wrote. For those who only count; the relay keeps its own.
alter table onceflow.outbox_partition add column floor bigint not null default 0;

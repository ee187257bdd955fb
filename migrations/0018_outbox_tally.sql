-- While another session holds a transaction open, no version of a row that was changed since can be removed. The books of the relay's
-- partitions were changed ten times a second and more, and each change read all versions before it: after some minutes the relay fell
-- behind. So what was removed is noted in rows of its own, which the relay adds up now and then.
create table onceflow.outbox_tally (
    id        bigint   not null generated always as identity primary key,
    partition smallint not null,
    -- Rows confirmed and removed, to the egress exchange and to named queues (replays).
    confirmed bigint   not null,
    replayed  bigint   not null
);

-- The books of each partition, whole.
create view onceflow.outbox_books as
    select p.partition,
           p.confirmed + coalesce(t.confirmed, 0)::bigint as confirmed,
           p.replayed + coalesce(t.replayed, 0)::bigint as replayed
    from onceflow.outbox_partition p
    left join (select partition, sum(confirmed) as confirmed, sum(replayed) as replayed
               from onceflow.outbox_tally group by partition) t using (partition);

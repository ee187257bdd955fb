-- Least privilege: whoever runs the service may add to the audit and read it, but change or remove nothing. Retention removes old rows
-- through this function, with the rights of its owner, and nobody can make it remove rows of the last 30 days.

create function onceflow.prune_audit(keep_seconds double precision, most bigint) returns bigint
    language sql security definer set search_path = pg_catalog, pg_temp
    as $$
        with old as materialized (
            select id from onceflow.audit
            where at < now() - greatest(keep_seconds, 30 * 86400) * interval '1 second'
            order by at limit least(most, 10000) for update skip locked
        ), gone as (
            delete from onceflow.audit a using old o where a.id = o.id returning a.id
        )
        select count(*) from gone
    $$;
revoke all on function onceflow.prune_audit(double precision, bigint) from public;

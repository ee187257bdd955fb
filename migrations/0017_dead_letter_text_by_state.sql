-- A replay changes a dead letter twice, and each change put all its trigrams into the index of its text again: two thirds of what
-- such a change cost, and at times a wait of 0.2 s in the consumer's transaction, when what had piled up was merged.

-- Letters that are on their way or were replayed are not in the index. `among` are the states that are asked for, a null is all of
-- them: of each part the index serves what it has, and what is asked for by no one folds away when a plan is made for its values.
create function onceflow.says(wanted text, among text[], state text, error_chain text[], event_id text, subject text, partition_key text)
    returns boolean
    language sql immutable parallel safe
    as $$
        select (($2[1] is null or $2 && array['open', 'discarded', 'archived', 'edited']) and $3 in ('open', 'discarded', 'archived', 'edited')
                or ($2[1] is null or 'replaying' = any ($2)) and $3 = 'replaying'
                or ($2[1] is null or 'replayed' = any ($2)) and $3 = 'replayed')
           and onceflow.searchable($4, $5, $6, $7)
                   like '%' || replace(replace(replace(lower($1), '\', '\\'), '%', '\%'), '_', '\_') || '%'
           and ($1 in ($5, $6, $7) or position(lower($1) in onceflow.error_text($4)) > 0)
    $$;

-- What waits to be merged is merged by whoever writes the row that makes it too much: little at a time.
do $$
declare
    place text;
begin
    select n.nspname into place
    from pg_extension e join pg_namespace n on n.oid = e.extnamespace
    where e.extname = 'pg_trgm' and has_schema_privilege(n.oid, 'usage');
    if place is not null then
        drop index if exists onceflow.dead_letter_by_text;
        execute format('create index dead_letter_by_text on onceflow.dead_letter
            using gin (onceflow.searchable(error_chain, event_id, subject, partition_key) %I.gin_trgm_ops)
            with (gin_pending_list_limit = 256)
            where state in (''open'', ''discarded'', ''archived'', ''edited'')', place);
    end if;
end
$$;

-- The planner doesn't use what it knows of a partial index's expression: without this a text that most letters have is taken for a
-- rare one, and all that have it are read. PostgreSQL 13 can't have it.
do $$
begin
    if current_setting('server_version_num')::integer >= 140000 then
        execute 'create statistics onceflow.dead_letter_text
            on (onceflow.searchable(error_chain, event_id, subject, partition_key)) from onceflow.dead_letter';
    end if;
end
$$;
analyze onceflow.dead_letter;

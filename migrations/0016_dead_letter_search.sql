-- Filters over a million dead letters: by a part of the error text, and by conditions that few or none meet.

-- The error and its causes in lower case. Not as plain SQL: array_to_string is immutable for texts, which the planner can't know.
create function onceflow.error_text(error_chain text[]) returns text
    language plpgsql immutable parallel safe
    as $$ begin return lower(array_to_string($1, ' ')); end $$;

-- What is indexed: the error text and the names by which people look for an event.
create function onceflow.searchable(error_chain text[], event_id text, subject text, partition_key text) returns text
    language plpgsql immutable parallel safe
    as $$ begin return lower(concat_ws(' ', array_to_string($1, ' '), $2, $3, $4)); end $$;

-- The one rule for the filter `text`: a part of the error text, or the whole event id, subject or ordering key. The first condition
-- follows from the second and is what the index answers.
create function onceflow.says(wanted text, error_chain text[], event_id text, subject text, partition_key text) returns boolean
    language sql immutable parallel safe
    as $$
        select onceflow.searchable($2, $3, $4, $5)
                   like '%' || replace(replace(replace(lower($1), '\', '\\'), '%', '\%'), '_', '\_') || '%'
           and ($1 in ($3, $4, $5) or position(lower($1) in onceflow.error_text($2)) > 0)
    $$;

-- The index needs an extension that comes with PostgreSQL and that this login may not be able to create. Without it the search reads
-- every dead letter; docs/OPERATIONS.md has the statements for who may.
do $$
declare
    place text;
begin
    if not exists (select from pg_extension where extname = 'pg_trgm') then
        begin
            create schema if not exists onceflow_search;
            create extension pg_trgm with schema onceflow_search;
        exception when insufficient_privilege or feature_not_supported or undefined_file then
            raise warning 'searching dead letters by text will be slow: % (see docs/OPERATIONS.md)', sqlerrm;
        end;
    end if;
    select n.nspname into place
    from pg_extension e join pg_namespace n on n.oid = e.extnamespace
    where e.extname = 'pg_trgm' and has_schema_privilege(n.oid, 'usage');
    if place is not null then
        execute format('create index dead_letter_by_text on onceflow.dead_letter
            using gin (onceflow.searchable(error_chain, event_id, subject, partition_key) %I.gin_trgm_ops)', place);
    end if;
end
$$;

-- What a filter asks for by equality, small because equal rows share an entry: filters that nothing meets are answered from it, and
-- bounds on attempts and replays too. It replaces an index over three of these.
create index dead_letter_facets on onceflow.dead_letter
    (state, consumer, event_type, stage, reason, tenant, attempts, replays);
drop index onceflow.dead_letter_by_consumer;
-- Those that are on their way, by the replay whose result is awaited: few among many.
create index dead_letter_replaying on onceflow.dead_letter (replay_id) where state = 'replaying';
-- A consumer has only its own types: without this the planner takes them for independent, and reads all to find the first page of none.
create statistics onceflow.dead_letter_kinds (dependencies, mcv)
    on consumer, event_type, stage, reason from onceflow.dead_letter;
analyze onceflow.dead_letter;

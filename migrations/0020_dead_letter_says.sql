-- A page of a text that most dead letters have, but not the newest, reads these one by one until it is full: 100,000 of them took 0.2 s, most
-- of it in the function that makes the indexed text. The condition that needs no function of ours comes first now: the planner knows
-- what functions of its own cost. (Stable, since array_to_string is; an immutable function of it would not be inlined.)
create or replace function onceflow.says(wanted text, among text[], state text, error_chain text[], event_id text, subject text, partition_key text)
    returns boolean
    language sql stable parallel safe
    as $$
        select (($2[1] is null or $2 && array['open', 'discarded', 'archived', 'edited']) and $3 in ('open', 'discarded', 'archived', 'edited')
                or ($2[1] is null or 'replaying' = any ($2)) and $3 = 'replaying'
                or ($2[1] is null or 'replayed' = any ($2)) and $3 = 'replayed')
           and onceflow.searchable($4, $5, $6, $7)
                   like '%' || replace(replace(replace(lower($1), '\', '\\'), '%', '\%'), '_', '\_') || '%'
           and ($1 in ($5, $6, $7) or position(lower($1) in lower(array_to_string($4, ' '))) > 0)
    $$;

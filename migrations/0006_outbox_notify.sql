-- Rows that somebody else writes into the outbox wake the relay. Only shortens waiting: what is missed is found by looking.
-- Rows of our own processes name their writer and need no trigger; so does a row with writer = -1, for a transaction that is
-- to be prepared (two-phase commit), which PostgreSQL refuses once it has notified.

create function onceflow.outbox_notify() returns trigger language plpgsql as $$
begin
    -- The same notification many times in a transaction is sent once, when it commits.
    perform pg_notify('onceflow_outbox', '');
    return null;
end
$$;

create trigger outbox_notify after insert on onceflow.outbox
    for each row when (new.writer = 0) execute function onceflow.outbox_notify();

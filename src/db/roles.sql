-- The group roles of this installation. They can't log in: grant them to the logins of people and services.
--   onceflow_owner     owns schema and tables: migrations
--   onceflow_app       onceflow run
--   onceflow_relay     what the relay of the outbox needs; part of onceflow_app
--   onceflow_readonly  looks, but sees no hash of a token: consoles, onceflow check invariants
-- May be run again at any time: it sets the grants of these roles to what stands here.
BEGIN;
-- A table that somebody holds is not waited for at length; nothing is changed then.
SET LOCAL lock_timeout = '5s';
-- Not beside a migration.
SELECT pg_advisory_xact_lock(1869505381);

DO $do$
DECLARE
    wanted name;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['onceflow_owner', 'onceflow_app', 'onceflow_relay', 'onceflow_readonly'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
        END IF;
    END LOOP;
END
$do$;

-- Whoever owns something now keeps what they may, as members of onceflow_owner, so that nothing stops working. Take it away once the
-- services have logins of their own.
DO $do$
DECLARE
    login name;
BEGIN
    FOR login IN
        SELECT r.rolname FROM pg_roles r
        WHERE NOT r.rolsuper AND r.rolname <> 'onceflow_owner' AND NOT pg_has_role(r.oid, 'onceflow_owner', 'USAGE')
          AND (r.rolname = current_user
               OR r.oid IN (SELECT nspowner FROM pg_namespace WHERE nspname = 'onceflow')
               OR r.oid IN (SELECT relowner FROM pg_class WHERE relnamespace = 'onceflow'::regnamespace))
    LOOP
        EXECUTE format('GRANT onceflow_owner TO %I', login);
    END LOOP;
END
$do$;

DO $do$
DECLARE
    thing text;
BEGIN
    IF EXISTS (SELECT FROM pg_namespace WHERE nspname = 'onceflow' AND nspowner <> 'onceflow_owner'::regrole) THEN
        ALTER SCHEMA onceflow OWNER TO onceflow_owner;
    END IF;
    FOR thing IN
        SELECT format('onceflow.%I', relname) FROM pg_class
        WHERE relnamespace = 'onceflow'::regnamespace AND relkind IN ('r', 'p', 'v') AND relowner <> 'onceflow_owner'::regrole
        ORDER BY relname
    LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO onceflow_owner', thing);
    END LOOP;
    FOR thing IN
        SELECT format('onceflow.%I', stxname) FROM pg_statistic_ext
        WHERE stxnamespace = 'onceflow'::regnamespace AND stxowner <> 'onceflow_owner'::regrole
    LOOP
        EXECUTE format('ALTER STATISTICS %s OWNER TO onceflow_owner', thing);
    END LOOP;
    FOR thing IN
        SELECT oid::regprocedure::text FROM pg_proc
        WHERE pronamespace = 'onceflow'::regnamespace AND proowner <> 'onceflow_owner'::regrole
    LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO onceflow_owner', thing);
    END LOOP;
END
$do$;

REVOKE ALL ON SCHEMA onceflow FROM PUBLIC, onceflow_app, onceflow_relay, onceflow_readonly;
REVOKE ALL ON ALL TABLES IN SCHEMA onceflow FROM PUBLIC, onceflow_app, onceflow_relay, onceflow_readonly;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA onceflow FROM PUBLIC, onceflow_app, onceflow_relay, onceflow_readonly;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA onceflow FROM PUBLIC, onceflow_app, onceflow_relay, onceflow_readonly;
GRANT USAGE ON SCHEMA onceflow TO onceflow_app, onceflow_relay, onceflow_readonly;

-- The service: rows of its tables, nothing of their shape.
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA onceflow TO onceflow_app;
REVOKE INSERT, UPDATE, DELETE ON onceflow.refinery_schema_history, onceflow.sms_template, onceflow.outbox_partition,
    onceflow.outbox_relay, onceflow.outbox_tally FROM onceflow_app;
-- Tokens are revoked and never removed; the audit is only added to. Old rows of it go through onceflow.prune_audit.
REVOKE DELETE ON onceflow.api_token FROM onceflow_app;
REVOKE UPDATE, DELETE ON onceflow.audit FROM onceflow_app;
GRANT SELECT ON ALL SEQUENCES IN SCHEMA onceflow TO onceflow_app;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA onceflow TO onceflow_app;

-- The relay: reads rows, removes what was confirmed, parks the rest; its leases.
GRANT SELECT, DELETE, UPDATE (writer, attempts, parked_at, parked_reason) ON onceflow.outbox TO onceflow_relay;
GRANT SELECT, UPDATE (holder, epoch, expires_at, confirmed, replayed, floor) ON onceflow.outbox_partition TO onceflow_relay;
GRANT SELECT, INSERT, UPDATE, DELETE ON onceflow.outbox_relay TO onceflow_relay;
GRANT SELECT, INSERT, DELETE ON onceflow.outbox_tally TO onceflow_relay;
GRANT SELECT ON SEQUENCE onceflow.outbox_seq_seq TO onceflow_relay;
GRANT onceflow_relay TO onceflow_app;

-- Readers: personal data included, hashes of tokens not.
GRANT SELECT ON ALL TABLES IN SCHEMA onceflow TO onceflow_readonly;
REVOKE SELECT ON onceflow.api_token FROM onceflow_readonly;
GRANT SELECT (id, name, role, created_at, created_by, revoked_at, revoked_by) ON onceflow.api_token TO onceflow_readonly;
GRANT EXECUTE ON FUNCTION onceflow.group_of(text, text, text, text, text), onceflow.correlation_of(text, jsonb),
    onceflow.error_text(text[]), onceflow.searchable(text[], text, text, text), onceflow.says(text, text[], text, text, text),
    onceflow.says(text, text[], text, text[], text, text, text)
    TO onceflow_readonly;

-- What later migrations make: `onceflow migrate` makes it as onceflow_owner.
ALTER DEFAULT PRIVILEGES FOR ROLE onceflow_owner REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE onceflow_owner IN SCHEMA onceflow
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO onceflow_app;
ALTER DEFAULT PRIVILEGES FOR ROLE onceflow_owner IN SCHEMA onceflow GRANT SELECT ON TABLES TO onceflow_readonly;
ALTER DEFAULT PRIVILEGES FOR ROLE onceflow_owner IN SCHEMA onceflow GRANT SELECT ON SEQUENCES TO onceflow_app;
ALTER DEFAULT PRIVILEGES FOR ROLE onceflow_owner IN SCHEMA onceflow GRANT EXECUTE ON FUNCTIONS TO onceflow_app;

-- The schema public, unless somebody uses it: others on this database may rely on it.
DO $do$
BEGIN
    IF to_regnamespace('public') IS NOT NULL
       AND NOT EXISTS (SELECT FROM pg_class WHERE relnamespace = to_regnamespace('public'))
       AND NOT EXISTS (SELECT FROM pg_proc WHERE pronamespace = to_regnamespace('public'))
       AND NOT EXISTS (SELECT FROM pg_type WHERE typnamespace = to_regnamespace('public')) THEN
        EXECUTE 'REVOKE ALL ON SCHEMA public FROM PUBLIC';
    END IF;
END
$do$;
COMMIT;

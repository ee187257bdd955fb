//! Each role of the database can do its work and nothing else (`spec/reliability.md` §7.16).

use std::process::{Output, Stdio};
use std::sync::Arc;

use onceflow::broker::{Link, Publisher, Purpose, Topology};
use onceflow::domains;
use onceflow::health::Health;
use onceflow::outbox::{Handover, Relay, RelaySettings, Unroutable};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::harness::service::{Service, free_port, until_ready};
use crate::harness::{Database, SOON, Stack, Wishes, connect, eventually, pool};
use crate::search::BACK_TO_15;

pub(super) async fn onceflow(database_url: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onceflow"));
    command.args(args).env_clear().current_dir(std::env::temp_dir()).stdin(Stdio::null());
    command.env("ONCEFLOW_DATABASE_URL", database_url).env("ONCEFLOW_AMQP_URL", "amqp://guest:guest@127.0.0.1:9/%2f");
    command.output().await.unwrap()
}

/// Makes the roles of a database, and returns what changed.
pub(super) async fn set_up(database: &Database) -> Value {
    let args = ["migrate", "--roles", "--role-prefix", database.role_prefix(), "-o", "json"];
    let output = onceflow(database.url(), &args).await;
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn count(value: &Value) -> usize {
    value.as_array().unwrap().len()
}

/// A new login with a role, or with none; returns its URL.
pub(super) async fn login(database: &Database, role: Option<&str>) -> String {
    let prefix = database.role_prefix();
    let name = format!("{prefix}_{}_in", role.unwrap_or("no"));
    let client = database.client().await;
    client.batch_execute(&format!("CREATE ROLE {name} LOGIN PASSWORD 'secret'")).await.unwrap();
    if let Some(role) = role {
        client.batch_execute(&format!("GRANT {prefix}_{role} TO {name}")).await.unwrap();
    }
    let mut url = url::Url::parse(database.url()).unwrap();
    url.set_username(&name).unwrap();
    url.set_password(Some("secret")).unwrap();
    url.into()
}

/// The SQLSTATE with which a statement is refused; one that isn't is undone.
async fn refused(client: &Client, sql: &str) -> Option<String> {
    let answer = client.batch_execute(&format!("BEGIN; {sql}; ROLLBACK")).await;
    // After a refusal the transaction is still open.
    client.batch_execute("ROLLBACK").await.unwrap();
    match answer {
        // Some can't be undone, so the server refuses them within a transaction before it looks at the rights.
        Err(error) if error.code().is_some_and(|code| code.code() == "25001") => refused_alone(client, sql).await,
        answer => code(answer),
    }
}

async fn refused_alone(client: &Client, sql: &str) -> Option<String> {
    code(client.batch_execute(sql).await)
}

fn code(answer: Result<(), tokio_postgres::Error>) -> Option<String> {
    answer.err().map(|error| error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned()))
}

/// What nobody may but the role's own work.
const FORBIDDEN: &[(Option<&str>, &[&str])] = &[
    (
        Some("app"),
        &[
            "CREATE TABLE onceflow.mine (id int)",
            "CREATE TABLE public.mine (id int)",
            "CREATE INDEX mine ON onceflow.inbox (event_type)",
            "ALTER TABLE onceflow.inbox ADD COLUMN mine int",
            "ALTER TABLE onceflow.outbox DISABLE TRIGGER ALL",
            "DROP TABLE onceflow.inbox",
            "TRUNCATE onceflow.inbox",
            "TRUNCATE onceflow.audit",
            "UPDATE onceflow.audit SET actor = 'nobody'",
            "DELETE FROM onceflow.audit",
            "SELECT FROM onceflow.audit FOR UPDATE",
            "DELETE FROM onceflow.api_token",
            "INSERT INTO onceflow.sms_template SELECT * FROM onceflow.sms_template",
            "UPDATE onceflow.refinery_schema_history SET version = 99",
            "DELETE FROM onceflow.outbox_partition",
            "UPDATE onceflow.outbox_partition SET partition = 9",
            "CREATE OR REPLACE FUNCTION onceflow.prune_audit(double precision, bigint) RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint'",
            "CREATE SCHEMA mine",
            "CREATE ROLE mine",
            "COPY onceflow.inbox TO PROGRAM 'true'",
            "SELECT pg_read_file('PG_VERSION')",
            "SET ROLE %_owner",
        ],
    ),
    (
        Some("relay"),
        &[
            "SELECT FROM onceflow.inbox",
            "SELECT FROM onceflow.dead_letter",
            "SELECT FROM onceflow.audit",
            "SELECT FROM onceflow.api_token",
            "SELECT FROM onceflow.org_user",
            "INSERT INTO onceflow.outbox (aggregatetype, aggregateid, type, payload) VALUES ('a', 'b', 'c', '{}')",
            "UPDATE onceflow.outbox SET payload = '{}'",
            "UPDATE onceflow.outbox SET routingkey = 'elsewhere'",
            "DELETE FROM onceflow.outbox_partition",
            "INSERT INTO onceflow.outbox_partition (partition) VALUES (9)",
            "UPDATE onceflow.outbox_partition SET partition = 9",
            "TRUNCATE onceflow.outbox",
            "SELECT onceflow.prune_audit(0, 1)",
            "CREATE TABLE onceflow.mine (id int)",
        ],
    ),
    (
        Some("readonly"),
        &[
            "INSERT INTO onceflow.audit (id, actor, action, subject) VALUES (gen_random_uuid(), 'a', 'b', 'c')",
            "UPDATE onceflow.dead_letter SET state = 'discarded'",
            "DELETE FROM onceflow.outbox",
            "SELECT FROM onceflow.inbox FOR UPDATE",
            "SELECT hash FROM onceflow.api_token",
            "SELECT * FROM onceflow.api_token",
            "TRUNCATE onceflow.inbox",
            "SELECT onceflow.prune_audit(0, 1)",
            "SELECT nextval('onceflow.outbox_seq_seq')",
            "CREATE TABLE onceflow.mine (id int)",
        ],
    ),
    (
        Some("owner"),
        &[
            "CREATE ROLE mine",
            "CREATE DATABASE mine",
            "CREATE SCHEMA mine",
            "ALTER SYSTEM SET fsync = off",
            "COPY onceflow.inbox TO PROGRAM 'true'",
            "SELECT pg_read_file('PG_VERSION')",
        ],
    ),
    (
        None,
        &[
            "SELECT FROM onceflow.inbox",
            "INSERT INTO onceflow.outbox (aggregatetype, aggregateid, type, payload) VALUES ('a', 'b', 'c', '{}')",
            "SELECT onceflow.group_of('a', 'b', 'c', 'd', 'e')",
            "CREATE TABLE public.mine (id int)",
        ],
    ),
];

/// Statements that nothing else in these tests makes.
const ALLOWED: &[(Option<&str>, &[&str])] = &[
    (
        Some("app"),
        &[
            "SELECT * FROM onceflow.audit",
            "SELECT onceflow.prune_audit(0, 1)",
            "SELECT FROM onceflow.refinery_schema_history",
        ],
    ),
    (Some("relay"), &["SELECT FROM onceflow.outbox FOR UPDATE", "LISTEN onceflow_outbox"]),
    (
        Some("readonly"),
        &[
            "SELECT * FROM onceflow.audit",
            "SELECT name, role FROM onceflow.api_token",
            "SELECT onceflow.group_of(group_id, consumer, event_type, stage, reason) FROM onceflow.dead_letter",
        ],
    ),
    (
        Some("owner"),
        &[
            "ALTER TABLE onceflow.inbox ADD COLUMN later int",
            "CREATE INDEX later ON onceflow.inbox (event_type)",
            "TRUNCATE onceflow.replica",
        ],
    ),
];

#[tokio::test]
async fn each_role_is_refused_what_is_not_its_work_s7_16() {
    let database = Database::new().await;
    set_up(&database).await;
    for (role, statements) in FORBIDDEN {
        let client = connect(&login(&database, *role).await).await;
        for sql in *statements {
            let sql = sql.replace('%', database.role_prefix());
            assert_eq!(refused(&client, &sql).await.as_deref(), Some("42501"), "{role:?}: {sql}");
        }
        for (_, allowed) in ALLOWED.iter().filter(|(of, _)| of == role) {
            for sql in *allowed {
                assert_eq!(refused(&client, sql).await, None, "{role:?}: {sql}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_young_in_the_audit_is_removed_by_nobody_who_runs_the_service_s7_16() {
    let database = Database::new().await;
    set_up(&database).await;
    let rows = "INSERT INTO onceflow.audit (id, actor, action, subject, at)
                SELECT gen_random_uuid(), 'li', 'dlq.replay', 'ids', now() - n * interval '10 days' FROM generate_series(0, 5) AS n";
    database.client().await.execute(rows, &[]).await.unwrap();
    let app = connect(&login(&database, Some("app")).await).await;
    for keep in ["-1", "0", "'-Infinity'"] {
        app.batch_execute(&format!("SELECT onceflow.prune_audit({keep}, 1000000)")).await.unwrap();
    }
    let left: i64 = app.query_one("SELECT count(*) FROM onceflow.audit", &[]).await.unwrap().get(0);
    assert_eq!(left, 3, "of 0, 10 and 20 days; that of 30 days is a moment older than that");
}

#[tokio::test]
async fn setting_up_the_roles_says_what_it_changed_and_changes_nothing_the_second_time() {
    let database = Database::new().await;
    let first = set_up(&database).await;
    assert_eq!(first["schema"], "onceflow.migrate.roles/1");
    assert_eq!(count(&first["roles"]["created"]), 4, "{first}");
    assert!(count(&first["roles"]["granted"]) > 50, "{first}");
    assert_eq!(first["roles"]["public_is_open"], false);
    let again = set_up(&database).await;
    for what in ["created", "granted", "revoked"] {
        assert_eq!(count(&again["roles"][what]), 0, "{again}");
    }
    let prefix = database.role_prefix();
    let client = database.client().await;
    let by_hand = format!(
        "GRANT TRUNCATE ON onceflow.inbox TO {prefix}_app; REVOKE SELECT ON onceflow.inbox FROM {prefix}_readonly"
    );
    client.batch_execute(&by_hand).await.unwrap();
    let mended = set_up(&database).await;
    let expected = json!([{ "role": format!("{prefix}_app"), "privilege": "TRUNCATE", "object": "table inbox" }]);
    assert_eq!(mended["roles"]["revoked"], expected);
    assert_eq!(count(&mended["roles"]["granted"]), 1);
}

#[tokio::test]
async fn a_dry_run_asks_nobody_and_prints_what_would_do_the_same() {
    let database = Database::new().await;
    let args = ["migrate", "--roles", "--dry-run", "--role-prefix", database.role_prefix()];
    let printed = onceflow("postgres://x@127.0.0.1:9/x", &args).await;
    assert_eq!(printed.status.code(), Some(0));
    let sql = String::from_utf8(printed.stdout).unwrap();
    database.client().await.batch_execute(&sql).await.unwrap();
    let nothing = set_up(&database).await;
    assert_eq!((count(&nothing["roles"]["created"]), count(&nothing["roles"]["granted"])), (0, 0), "{nothing}");
    assert_eq!(onceflow(database.url(), &["migrate", "--dry-run"]).await.status.code(), Some(2));
    assert_eq!(onceflow(database.url(), &["migrate", "--roles", "--role-prefix", "a b"]).await.status.code(), Some(2));
}

#[tokio::test]
async fn every_table_has_its_grants_also_one_that_a_later_migration_makes() {
    let database = Database::new().await;
    set_up(&database).await;
    let (prefix, client) = (database.role_prefix(), database.client().await);
    // The newest migration anew, by a login that owns nothing itself.
    client.batch_execute(BACK_TO_15).await.unwrap();
    let owner = login(&database, Some("owner")).await;
    let migrated = onceflow(&owner, &["migrate"]).await;
    assert_eq!(migrated.status.code(), Some(0), "{}", String::from_utf8_lossy(&migrated.stderr));
    let later =
        format!("SET ROLE {prefix}_owner; CREATE TABLE onceflow.later (id bigint GENERATED ALWAYS AS IDENTITY)");
    client.batch_execute(&later).await.unwrap();
    let without = "SELECT c.relname::text, pg_get_userbyid(c.relowner)::text FROM pg_class c
                    WHERE c.relnamespace = 'onceflow'::regnamespace AND c.relkind IN ('r', 'p')
                      AND NOT (has_table_privilege($1::text, c.oid, 'SELECT') AND has_any_column_privilege($2::text, c.oid, 'SELECT')
                               AND pg_get_userbyid(c.relowner)::text = $3::text)";
    let [app, readonly, owner] = ["app", "readonly", "owner"].map(|role| format!("{prefix}_{role}"));
    let found = client.query(without, &[&app, &readonly, &owner]).await.unwrap();
    let found: Vec<String> = found.iter().map(|row| row.get(0)).collect();
    assert!(found.is_empty(), "tables without grants, or of another owner: {found:?}");
    let app = connect(&login(&database, Some("app")).await).await;
    for sql in
        ["SELECT onceflow.prune_audit(0, 1)", "INSERT INTO onceflow.later DEFAULT VALUES", "DELETE FROM onceflow.later"]
    {
        assert_eq!(refused(&app, sql).await, None, "{sql}");
    }
}

#[tokio::test]
async fn whoever_may_not_make_roles_is_told_so_with_exit_8_and_nothing_is_changed() {
    let database = Database::new().await;
    set_up(&database).await;
    let (owner, other) = (login(&database, Some("owner")).await, format!("{}_x", database.role_prefix()));
    let args = ["migrate", "--roles", "--role-prefix", &other];
    let output = onceflow(&owner, &args).await;
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(8), "{told}");
    assert!(told.contains("CREATEROLE") && told.contains("--dry-run"), "{told}");
    assert_eq!(roles_of(&database, &other).await, 0);
}

/// Roles are made in the transaction of their grants.
#[tokio::test]
async fn a_table_that_somebody_holds_is_exit_9_and_nothing_is_changed() {
    let database = Database::new().await;
    let mut other = database.client().await;
    let held = other.transaction().await.unwrap();
    held.batch_execute("SELECT FROM onceflow.payment_order").await.unwrap();
    let output = onceflow(database.url(), &["migrate", "--roles", "--role-prefix", database.role_prefix()]).await;
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(9), "{told}");
    held.rollback().await.unwrap();
    assert_eq!(roles_of(&database, database.role_prefix()).await, 0);
}

async fn roles_of(database: &Database, prefix: &str) -> i64 {
    let sql = "SELECT count(*) FROM pg_roles WHERE rolname IN ($1 || '_owner', $1 || '_app', $1 || '_relay', $1 || '_readonly')";
    database.client().await.query_one(sql, &[&prefix]).await.unwrap().get(0)
}

/// A login that owns its database and may make roles, as managed databases have it.
async fn boss(database: &Database) -> String {
    let boss = login(database, None).await;
    let prefix = database.role_prefix();
    let sql = format!("ALTER ROLE {prefix}_no_in CREATEROLE; ALTER DATABASE {prefix} OWNER TO {prefix}_no_in");
    database.client().await.batch_execute(&sql).await.unwrap();
    boss
}

#[tokio::test]
async fn the_owner_of_the_database_needs_no_superuser_to_set_up_the_roles() {
    let database = Database::empty().await;
    let (boss, prefix) = (boss(&database).await, database.role_prefix());
    let args = ["migrate", "--roles", "--role-prefix", prefix, "-o", "json"];
    for created in [4, 0] {
        let output = onceflow(&boss, &args).await;
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(count(&told["roles"]["created"]), created, "{told}");
        assert_eq!(told["roles"]["owners"], json!([format!("{prefix}_no_in")]));
    }
    assert_eq!(onceflow(&boss, &["migrate"]).await.status.code(), Some(0));
    let reader = onceflow(&login(&database, Some("readonly")).await, &["check", "invariants"]).await;
    assert_eq!(reader.status.code(), Some(0), "{}", String::from_utf8_lossy(&reader.stderr));
}

#[tokio::test]
async fn whoever_owned_the_tables_goes_on_working_after_the_roles_were_set_up() {
    let database = Database::empty().await;
    let boss = boss(&database).await;
    assert_eq!(onceflow(&boss, &["migrate"]).await.status.code(), Some(0));
    let told = set_up(&database).await;
    assert_eq!(told["roles"]["owners"], json!([format!("{}_no_in", database.role_prefix())]), "{told}");
    let client = connect(&boss).await;
    for sql in [
        "DELETE FROM onceflow.inbox",
        "ALTER TABLE onceflow.inbox ADD COLUMN later int",
        "SELECT onceflow.prune_audit(0, 1)",
    ] {
        assert_eq!(refused(&client, sql).await, None, "{sql}");
    }
}

/// Rows that retention is to remove, each older than the default.
const OLD: &str = "
    INSERT INTO onceflow.inbox (tenant, consumer, source, event_id, event_type, fingerprint, claim_id, processed_at)
    VALUES ('acme', 'org', 'hr', 'old', 't', '', gen_random_uuid(), now() - interval '1000 days');
    INSERT INTO onceflow.audit (id, actor, action, subject, at)
    VALUES (gen_random_uuid(), 'li', 'old', 'ids', now() - interval '1000 days');
    INSERT INTO onceflow.attempt (tenant, consumer, source, event_id, id, event_type, attempt, at, instance, consumer_version, stage, code,
        error_chain)
    VALUES ('acme', 'org', 'hr', 'old', gen_random_uuid(), 't', 1, now() - interval '1000 days', 'host:1', '1', 'handle', 'r', '{}')";
const OLD_LEFT: &str = "
    SELECT (SELECT count(*) FROM onceflow.inbox WHERE event_id = 'old') + (SELECT count(*) FROM onceflow.audit WHERE action = 'old')
         + (SELECT count(*) FROM onceflow.attempt WHERE event_id = 'old')";

async fn ask(port: u16, token: Option<&str>, path: &str, body: Option<Value>) -> Value {
    let method = if body.is_some() { Method::POST } else { Method::GET };
    let mut request = reqwest::Client::new().request(method, format!("http://127.0.0.1:{port}/api/v1/{path}"));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    if let Some(body) = body {
        request = request.json(&body);
    }
    let answer = request.header("onceflow-actor", "li").send().await.unwrap();
    let status = answer.status();
    let text = answer.text().await.unwrap();
    assert!(status.is_success(), "{path}: {status} {text}");
    serde_json::from_str(&text).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_does_all_of_its_work_as_a_login_of_the_role_app() {
    let database = Database::new().await;
    set_up(&database).await;
    database.client().await.batch_execute(OLD).await.unwrap();
    let database_url = Some(login(&database, Some("app")).await);
    let stack = Stack::prepare(&domains::consumers(), Wishes { database_url, ..Wishes::default() }).await;
    let port = free_port();
    let file = std::fs::read_to_string(stack.config_file()).unwrap();
    let listen = format!("listen = \"127.0.0.1:{port}\"");
    std::fs::write(stack.config_file(), file.replacen("listen = \"127.0.0.1:0\"", &listen, 1)).unwrap();
    let service = Service::start(stack.config_file(), "");
    until_ready(port).await;

    for consumer in domains::consumers() {
        for (n, event) in consumer.reads().iter().enumerate() {
            let sample: Value = serde_json::from_str(event.sample).unwrap();
            stack.publish(event.name, &format!("{}-{n}", consumer.name()), &sample).await;
        }
    }
    for n in 0..3 {
        stack.publish("org.user.upserted.v1", &format!("bad-{n}"), &json!({ "directory": "" })).await;
    }
    stack
        .until_count("SELECT count(*) FROM onceflow.dead_letter WHERE event_id LIKE 'bad-%' AND state = 'open'", 3)
        .await;
    stack.until_count("SELECT count(*) FROM onceflow.inbox WHERE event_id ~ '^(org|payment|sms)-'", samples()).await;
    stack.until_count("SELECT count(*) FROM onceflow.outbox", 0).await;
    stack.until_count(OLD_LEFT, 0).await;

    let made = ask(port, None, "tokens", Some(json!({ "name": "li", "role": "admin" }))).await;
    let token = made["secret"].as_str();
    let listed = ask(port, token, "dlq", None).await;
    let id = |n: usize| listed["items"][n]["id"].clone();
    ask(port, token, "dlq/replay", Some(json!({ "selection": { "ids": [id(0)] } }))).await;
    stack.until_count("SELECT count(*) FROM onceflow.dead_letter WHERE replays = 1 AND state = 'open'", 1).await;
    ask(port, token, "dlq/discard", Some(json!({ "selection": { "ids": [id(0)] }, "reason": "a test" }))).await;
    let job = json!({ "action": "replay", "selection": { "filter": {} }, "reason": "a test",
                      "settings": { "rate": 500, "hold_seconds": 0, "canary": 1 } });
    ask(port, token, "jobs", Some(job)).await;
    // What can't be read fails again, so the canary pauses it.
    stack.until_count("SELECT count(*) FROM onceflow.bulk_job WHERE state = 'paused' AND failed_again > 0", 1).await;
    for verb in ["pause", "resume"] {
        ask(port, token, &format!("consumers/sms/{verb}"), Some(json!({ "reason": "a test" }))).await;
    }
    for path in ["status", "dlq/groups", "outbox", "consumers", "jobs", "events/trace?id=bad-0"] {
        ask(port, token, path, None).await;
    }
    ask(port, token, "tokens/revoke", Some(json!({ "name": "li" }))).await;
    assert!(stack.count("SELECT count(*) FROM onceflow.audit").await >= 6);
    service.stop().await;
}

fn samples() -> i64 {
    let all: usize = domains::consumers().iter().map(|consumer| consumer.reads().len()).sum();
    // The deletion of a department that has a member waits, and counts as applied; a sample that can't be applied would be a dead letter.
    i64::try_from(all).unwrap()
}

const BY_HAND: &str = "INSERT INTO onceflow.outbox (aggregatetype, aggregateid, type, payload)
    SELECT 'user', (n % 20)::text, 'org.user.changed.v1', '{}' FROM generate_series(1, 200) AS n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_does_all_of_its_work_as_a_login_of_the_role_relay() {
    let stack = Stack::prepare(&domains::consumers(), Wishes { no_sibling: true, ..Wishes::default() }).await;
    let database = stack.database.as_ref().unwrap();
    set_up(database).await;
    let (handover, health, stop) = (Handover::default(), Arc::new(Health::default()), CancellationToken::new());
    let link = Arc::new(Link::new(stack.config.broker.clone(), Purpose::Publish, health.clone()));
    let egress = stack.config.runtime.names.egress();
    let settings = RelaySettings { egress, unroutable: Unroutable::default(), holder: "alone".to_owned() };
    let pool = pool(&login(database, Some("relay")).await);
    let relay = Relay::new(settings, pool, Publisher::new(link, Topology::default()), handover, health);
    let task = tokio::spawn(relay.run(stop.clone()));
    stack
        .client
        .execute(
            "INSERT INTO onceflow.outbox (aggregatetype, aggregateid, type, payload) VALUES ('a', 'b', 'c', '{}')",
            &[],
        )
        .await
        .unwrap();
    let parked = "SELECT count(*) FROM onceflow.outbox WHERE parked_at IS NOT NULL";
    eventually(SOON, || async { (stack.count(parked).await == 1).then_some(()) }).await;
    stack.bind_sibling().await;
    stack.client.execute(BY_HAND, &[]).await.unwrap();
    stack.until_count("SELECT count(*) FROM onceflow.outbox WHERE parked_at IS NULL", 0).await;
    stack.until_count("SELECT sum(confirmed)::bigint FROM onceflow.outbox_books", 200).await;
    stop.cancel();
    task.await.unwrap();
    stack.until_count("SELECT count(*) FROM onceflow.outbox_relay", 0).await;
}

#[tokio::test]
async fn a_reader_can_ask_for_the_invariants_and_is_told_when_it_may_not() {
    let database = Database::new().await;
    set_up(&database).await;
    let reader = onceflow(&login(&database, Some("readonly")).await, &["check", "invariants", "--full"]).await;
    assert_eq!(reader.status.code(), Some(0), "{}", String::from_utf8_lossy(&reader.stderr));
    let relay = onceflow(&login(&database, Some("relay")).await, &["check", "invariants"]).await;
    let told = String::from_utf8(relay.stderr).unwrap();
    assert_eq!(relay.status.code(), Some(8), "{told}");
    assert!(told.contains("onceflow_readonly"), "{told}");
}

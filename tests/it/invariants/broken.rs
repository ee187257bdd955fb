//! Each invariant is broken by hand, and found.

use std::process::Output;

use onceflow::domains;
use onceflow::invariants;
use serde_json::Value;
use tokio::process::Command;

use crate::harness::Database;

/// The binary on a database, as an operator runs it.
pub(crate) async fn check(database_url: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onceflow"));
    command.args(["check", "invariants"]).args(args).env_clear().current_dir(std::env::temp_dir());
    command.env("ONCEFLOW_DATABASE_URL", database_url).env("ONCEFLOW_AMQP_URL", "amqp://guest:guest@127.0.0.1:9/%2f");
    command.stdin(std::process::Stdio::null()).output().await.unwrap()
}

/// Exit code, and the finding about one invariant.
pub(super) async fn find(database_url: &str, name: &str, args: &[&str]) -> (i32, Value) {
    let output = check(database_url, &[&["--only", name, "-o", "json"], args].concat()).await;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{name}: {told}"));
    assert_eq!(report["schema"], "onceflow.check.invariants/1");
    (output.status.code().unwrap(), report["items"][0].clone())
}

const LETTER: &str = "
    INSERT INTO onceflow.dead_letter (id, tenant, consumer, source, event_id, event_type, stage, reason, error_chain, payload, headers,
        original_exchange, original_routing_key, attempts, first_failed_at, last_failed_at, consumer_version, state, replay_id, replays,
        replayed_at)
    VALUES ('00000000-0000-0000-0000-000000000007', 'acme', 'org', 'hr', 'e1', 't', 'handle', 'r', '{}', '', '{}', '', '', 1, now(), now(),
            '1', ";

fn letter(rest: &str) -> String {
    format!("{LETTER}{rest});")
}

fn inbox(consumer: &str, rest: &str) -> String {
    format!(
        "INSERT INTO onceflow.inbox (tenant, consumer, source, event_id, event_type, fingerprint, claim_id, outcome, reason, downstream)
         VALUES ('acme', '{consumer}', 'hr', 'e1', 't', '', gen_random_uuid(), {rest});"
    )
}

/// `n` rows that event e1 of a consumer caused.
fn caused(consumer: &str, event_type: &str, payload: &str, n: i32) -> String {
    format!(
        "INSERT INTO onceflow.outbox (tenant, aggregatetype, aggregateid, type, payload, headers)
         SELECT 'acme', 'user', 'hr/1', '{event_type}', '{payload}',
                '{{\"cloudEvents:source\": \"onceflow/{consumer}\", \"cloudEvents:causationid\": \"e1\"}}'
         FROM generate_series(1, {n});"
    )
}

const USER: &str = "
    INSERT INTO onceflow.org_user (tenant, directory, id, state, version, event_time, event_key, name)
    VALUES ('acme', 'hr', '42', 'live', 5, now(), 'e1 hr', 'Li');";
const DEPARTMENTS: &str = "
    INSERT INTO onceflow.org_department (tenant, directory, id, state, version, event_time, event_key, name)
    VALUES ('acme', 'hr', 'a', 'live', 1, now(), 'e2 hr', 'A'), ('acme', 'hr', 'b', 'live', 1, now(), 'e3 hr', 'B');";

fn order(state: &str, changed: &str) -> String {
    let reason = if state == "CLOSED" { "'late'" } else { "NULL" };
    format!(
        "INSERT INTO onceflow.payment_order (tenant, order_no, state, merchant_id, currency, total, cancel_reason, version, changed_at)
         VALUES ('acme', 'o1', '{state}', 'm', 'CNY', 100, {reason}, 2, {changed});"
    )
}

fn lines(total: i64) -> String {
    format!(
        "INSERT INTO onceflow.payment_order_line (tenant, order_no, line_no, sku, quantity, unit_price)
         VALUES ('acme', 'o1', 0, 'tea', 1, {total});"
    )
}

fn payment(disposition: &str, amount: i64) -> String {
    format!(
        "INSERT INTO onceflow.payment (tenant, provider, transaction_id, status, notify_id, order_no, merchant_id, currency, amount, paid_at,
             disposition)
         VALUES ('acme', 'wechat', 't1', 'SUCCESS', 'n1', 'o1', 'm', 'CNY', {amount}, now(), '{disposition}');"
    )
}

/// Name, what breaks it, and words of the example that must be shown.
type Breakage = (&'static str, String, &'static str);

fn breakages() -> Vec<Breakage> {
    [of_the_runtime(), of_the_domains()].concat()
}

fn of_the_runtime() -> Vec<Breakage> {
    let replay = "INSERT INTO onceflow.outbox (tenant, aggregatetype, aggregateid, type, payload, exchange, routingkey)
                  VALUES ('acme', 'dead_letter', '00000000-0000-0000-0000-000000000009', 't', '{}', '', 'q')";
    let job = "INSERT INTO onceflow.bulk_job (id, action, state, actor, reason, selection, bound, plan, rate, max_in_flight, canary,
                   hold_seconds, planned, waiting)
               VALUES (gen_random_uuid(), 'replay', 'running', 'li', 'r', '{}', now(), '{}', 50, 100, 5, 10, 3, 3)";
    let owned = |sql: &str| sql.to_owned();
    vec![
        ("unique-indexes", owned("DROP INDEX onceflow.dead_letter_live"), "dead_letter_live"),
        ("relay-partitions", owned("DELETE FROM onceflow.outbox_partition WHERE partition = 5"), "partition 5"),
        (
            "leases-end",
            owned("UPDATE onceflow.outbox_partition SET expires_at = now() + interval '1 day' WHERE partition = 3"),
            "partition 3",
        ),
        ("outbox-causes", caused("org", "t", "{}", 1), "nothing of it"),
        (
            "outbox-causes",
            inbox("org", "'applied', NULL, 1") + &caused("org", "t", "{}", 2),
            "2 rows wait, the inbox says 1",
        ),
        ("outbox-causes", inbox("org", "'skipped', 'no_change', 0") + &caused("org", "t", "{}", 1), "the inbox says 0"),
        ("replays-belong", owned(replay), "000000000009"),
        ("replays-belong", letter("'replaying', NULL, 0, NULL"), "000000000007"),
        ("inbox-rows", inbox("org", "'skipped', 'no_change', 2"), "event e1 of org"),
        ("jobs-add-up", owned(job), "says 3 waiting"),
        ("outbox-books", inbox("org", "'applied', NULL, 2"), "2 are gone"),
        ("dead-letters-needed", inbox("org", "'applied', NULL, 0") + &letter("'open', NULL, 0, NULL"), "000000000007"),
        ("replays-arrive", letter("'replaying', gen_random_uuid(), 1, now() - interval '2 hours'"), "000000000007"),
        (
            "somebody-works",
            caused("x", "t", "{}", 1) + "UPDATE onceflow.outbox SET created_at = now() - interval '1 hour'",
            "nobody holds",
        ),
    ]
}

fn of_the_domains() -> Vec<Breakage> {
    let member = "INSERT INTO onceflow.org_membership (tenant, directory, user_id, department_id, state, version, event_time, event_key)
                  VALUES ('acme', 'hr', '42', 'a', 'live', 1, now(), 'e4 hr');";
    let waiting = "INSERT INTO onceflow.org_waiting (tenant, directory, kind, object_id, department_id, op, version, event_time, event_key,
                       attributes, reason, waits_for)
                   VALUES ('acme', 'hr', 'membership', '42', 'a', 'upsert', 1, now(), 'e4 hr', '{}', 'user_missing', 'user/42')";
    let request = "INSERT INTO onceflow.sms_request (tenant, request_id, fingerprint, state, reason, phone_given, template_id, event_id)
                   VALUES ('acme', 'r1', '', 'rejected', 'bad_phone', '1', 't', 'e9')";
    let owned = |sql: &str| sql.to_owned();
    vec![
        (
            "org-unique-indexes",
            owned("ALTER TABLE onceflow.org_waiting DROP CONSTRAINT org_waiting_pkey"),
            "org_waiting_pkey",
        ),
        ("org-users-come-from-events", owned(USER), "user 42 of hr"),
        (
            "org-versions",
            USER.to_owned()
                + &caused("org", "org.user.changed.v1", r#"{"directory": "hr", "id": "42", "version": "7"}"#, 1),
            "version 7, the table has 5",
        ),
        ("org-members-live", member.to_owned() + DEPARTMENTS, "user missing, department live"),
        (
            "org-tree",
            DEPARTMENTS.to_owned()
                + "UPDATE onceflow.org_department SET parent_id = CASE id WHEN 'a' THEN 'b' ELSE 'a' END WHERE id IN ('a', 'b')",
            "a cycle",
        ),
        ("org-waiting", USER.to_owned() + waiting, "waits for user/42"),
        ("payment-unique-indexes", owned("DROP INDEX onceflow.payment_paid_once"), "payment_paid_once"),
        ("payment-lines", order("CREATED", "now()") + &lines(99), "total 100, lines 99"),
        ("payment-paid-once", order("PAID", "now()") + &lines(100), "0 accepted payments"),
        ("payment-paid-once", order("PAID", "now()") + &lines(100) + &payment("accepted", 90), "0 of them agree"),
        ("payment-paid-once", order("CLOSED", "now()") + &lines(100) + &payment("accepted", 100), "CLOSED"),
        ("payment-orphans", order("CREATED", "now()") + &lines(100) + &payment("orphan", 100), "callbacks wait"),
        (
            "payment-versions",
            order("CREATED", "now()") + &caused("payment", "order.paid.v1", r#"{"orderNo": "o1", "version": "3"}"#, 1),
            "version 3 of order o1, the table has 2",
        ),
        (
            "sms-unique-indexes",
            owned("ALTER TABLE onceflow.sms_request DROP CONSTRAINT sms_request_pkey"),
            "sms_request_pkey",
        ),
        ("sms-requests-come-from-events", owned(request), "event e9"),
    ]
}

/// Notices are told, but a script goes on.
const NOTICES: [&str; 3] = ["dead-letters-needed", "replays-arrive", "somebody-works"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i3_i4_each_invariant_is_fine_at_first_and_found_once_it_is_broken() {
    for (name, sql, words) in breakages() {
        let database = Database::new().await;
        let (code, fine) = find(database.url(), name, &["--full"]).await;
        assert_eq!((code, fine["state"].as_str()), (0, Some("ok")), "{name}: {fine}");
        database.client().await.batch_execute(&sql).await.unwrap_or_else(|e| panic!("{name}: {e:?}"));
        let (code, found) = find(database.url(), name, &["--full"]).await;
        let expected = if NOTICES.contains(&name) { (0, "notice") } else { (1, "violated") };
        assert_eq!((code, found["state"].as_str().unwrap()), expected, "{name}: {found}");
        assert!(found["broken"].as_i64().unwrap() >= 1 && found["try"].is_string(), "{name}: {found}");
        assert!(found["examples"].to_string().contains(words), "{name} does not say {words:?}: {found}");
    }
}

#[test]
fn each_invariant_of_this_build_is_broken_by_a_test() {
    let tried: Vec<_> = breakages().iter().map(|(name, ..)| *name).collect();
    for invariant in invariants::all(&domains::consumers()) {
        assert!(tried.contains(&invariant.name), "nobody has tried to break {}", invariant.name);
    }
}

#[tokio::test]
async fn what_changed_before_the_window_is_found_only_when_everything_is_looked_at() {
    let database = Database::new().await;
    let old = order("CREATED", "now() - interval '3 days'") + &lines(99);
    database.client().await.batch_execute(&old).await.unwrap();
    for (args, expected) in [(&[][..], 0), (&["--since", "2d"], 0), (&["--since", "4d"], 1), (&["--full"], 1)] {
        assert_eq!(find(database.url(), "payment-lines", args).await.0, expected, "{args:?}");
    }
}

/// A table that can't be read in time must not pass for one that is in order.
#[tokio::test]
async fn a_table_that_is_locked_is_unfinished_and_exit_9() {
    let database = Database::new().await;
    let mut other = database.client().await;
    let held = other.transaction().await.unwrap();
    held.batch_execute("LOCK TABLE onceflow.payment_order IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let (code, found) = find(database.url(), "payment-lines", &["--within", "300ms"]).await;
    assert_eq!((code, found["state"].as_str()), (9, Some("unfinished")), "{found}");
    held.rollback().await.unwrap();
}

#[tokio::test]
async fn many_rows_are_read_page_by_page_and_counted_over_all_of_them() {
    let database = Database::new().await;
    let many = "INSERT INTO onceflow.payment_order (tenant, order_no, state, merchant_id, currency, total, version)
                SELECT 'acme', 'o' || n, 'CREATED', 'm', 'CNY', CASE WHEN n % 1000 = 0 THEN 1 ELSE 0 END, 1
                FROM generate_series(1, 5000) AS n";
    database.client().await.batch_execute(many).await.unwrap();
    let (code, found) = find(database.url(), "payment-lines", &["--limit", "3"]).await;
    assert_eq!((code, found["looked"].as_i64(), found["broken"].as_i64()), (1, Some(5000), Some(5)), "{found}");
    assert_eq!(found["examples"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn the_report_names_what_is_violated_and_the_exit_code_tells_scripts() {
    let database = Database::new().await;
    let fine = check(database.url(), &[]).await;
    let told = String::from_utf8(fine.stdout).unwrap();
    assert_eq!(fine.status.code(), Some(0), "{told}");
    assert!(told.contains("payment-paid-once") && !told.contains("VIOLATED"), "{told}");
    database.client().await.batch_execute("DELETE FROM onceflow.outbox_partition WHERE partition = 0").await.unwrap();
    let found = check(database.url(), &[]).await;
    let (table, talk) = (String::from_utf8(found.stdout).unwrap(), String::from_utf8(found.stderr).unwrap());
    assert_eq!(found.status.code(), Some(1));
    assert!(table.contains("VIOLATED") && table.contains("partition 0") && table.contains("try: "), "{table}");
    assert!(talk.contains("relay-partitions"), "{talk}");
    let lines = String::from_utf8(check(database.url(), &["-o", "jsonl"]).await.stdout).unwrap();
    assert!(lines.lines().all(|line| serde_json::from_str::<Value>(line).unwrap()["invariant"].is_string()));
    let away = check("postgres://x@127.0.0.1:9/x", &[]).await;
    assert_eq!((away.status.code(), away.stdout.len()), (Some(7), 0));
    let help = String::from_utf8(check(database.url(), &["--help"]).await.stdout).unwrap();
    assert!(help.contains("Examples:") && help.contains("--since"), "{help}");
    let unknown = check(database.url(), &["--only", "nonsense"]).await;
    assert_eq!(unknown.status.code(), Some(3));
    assert!(String::from_utf8(unknown.stderr).unwrap().contains("payment-paid-once"));
}

//! Secrets and personal data that nothing else has, pushed through every path of a real service; then everything that it shows to
//! anybody is searched for them (I-9, §7.5).

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use onceflow::broker::Outgoing;
use onceflow::domains;
use onceflow::message::{Message, Route};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use super::erasure::tables_with;
use crate::harness::{Database, SOON, Stack, Vhost, Wishes, connect, eventually};

const PHONE: &str = "13974628501";
const CODE: &str = "otp-canary-7731";
const NAME: &str = "Nomen Canarium";
const SMS: &str = "sms.requested.v1";
/// Refuses one request for good, with a DETAIL that quotes the row, and keeps another one waiting.
const TROUBLE: &str = "
    ALTER TABLE onceflow.sms_request ADD CONSTRAINT canary CHECK (request_id NOT LIKE 'forbidden%');
    CREATE FUNCTION onceflow.canary() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.request_id LIKE 'busy%' THEN RAISE EXCEPTION 'busy' USING ERRCODE = '57014', DETAIL = NEW.phone_given; END IF;
        RETURN NEW; END $$;
    CREATE TRIGGER canary BEFORE INSERT ON onceflow.sms_request FOR EACH ROW EXECUTE FUNCTION onceflow.canary()";
/// Everything that the service itself says; what it publishes is for those who are to know.
const TEXTS: &str = "SELECT coalesce(string_agg(text, ' '), '') FROM (
    SELECT concat_ws(' ', array_to_string(error_chain, ' '), group_text, reason, stage) AS text FROM onceflow.dead_letter
    UNION ALL SELECT concat_ws(' ', array_to_string(error_chain, ' '), code, instance) FROM onceflow.attempt
    UNION ALL SELECT concat_ws(' ', actor, action, subject, reason, detail::text) FROM onceflow.audit
    UNION ALL SELECT concat_ws(' ', parked_reason, headers::text) FROM onceflow.outbox) AS said";

/// What must not show, and the accounts that have it.
struct Canaries {
    role: String,
    broker: String,
    database: String,
    token: String,
    wrong: String,
    operator: String,
    viewer: String,
}

impl Canaries {
    fn new() -> Self {
        let secret = |what: &str| format!("canary-{what}-{}", uuid::Uuid::now_v7().simple());
        Self {
            role: format!("canary_{}", uuid::Uuid::now_v7().simple()),
            broker: secret("broker"),
            database: secret("database"),
            token: secret("token"),
            wrong: secret("wrong"),
            operator: String::new(),
            viewer: String::new(),
        }
    }

    fn all(&self) -> [&str; 9] {
        [&self.broker, &self.database, &self.token, &self.wrong, &self.operator, &self.viewer, PHONE, CODE, NAME]
    }

    fn url(url: &str, user: &str, password: &str) -> String {
        let mut url = url::Url::parse(url).unwrap();
        url.set_username(user).unwrap();
        url.set_password(Some(password)).unwrap();
        url.into()
    }

    async fn open_accounts(&self, database: &Database, vhost: &Vhost) {
        let create = format!("CREATE ROLE {} LOGIN SUPERUSER PASSWORD '{}'", self.role, self.database);
        connect(database.url()).await.batch_execute(&create).await.unwrap();
        let user = json!({"password": self.broker, "tags": ""});
        vhost.request(Method::PUT, &format!("/api/users/{}", self.role), user).await;
        let everything = json!({"configure": ".*", "write": ".*", "read": ".*"});
        vhost.request(Method::PUT, &format!("/api/permissions/{}/{}", vhost.name(), self.role), everything).await;
    }

    async fn close_accounts(&self, database: &Database, vhost: &Vhost) {
        let drop = format!("DROP ROLE {}", self.role);
        connect(database.url()).await.batch_execute(&drop).await.unwrap();
        vhost.request(Method::DELETE, &format!("/api/users/{}", self.role), Value::Null).await;
    }
}

/// The service in a process of its own, with secrets in files and everything that it says in another.
struct Running {
    process: Child,
    log: std::path::PathBuf,
    api: String,
    metrics: String,
}

impl Running {
    async fn start(place: &Path, stack: &Stack, canaries: &Canaries) -> Self {
        let secret = |name: &str, text: &str| {
            let file = place.join(name);
            fs::write(&file, text).unwrap();
            file
        };
        let (database, vhost) = (stack.database.as_ref().unwrap(), stack.vhost.as_ref().unwrap());
        let broker = secret("broker", &Canaries::url(vhost.url(), &canaries.role, &canaries.broker));
        let database = secret("database", &Canaries::url(database.url(), &canaries.role, &canaries.database));
        let token = secret("token", &canaries.token);
        let text = format!(
            "[broker]\nurl_file = {broker:?}\n[database]\nurl_file = {database:?}\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             metrics_listen = \"127.0.0.1:0\"\ntoken_file = {token:?}\n[topology]\nqueue_type = \"classic\"\n\
             [retry]\ndelays = [\"100ms\"]\nmax_attempts = 2\n[log]\nlevel = \"debug\"\nformat = \"json\"\n"
        );
        let (config, log) = (secret("onceflow.toml", &text), place.join("log"));
        let process = onceflow(&["run", "--config", config.to_str().unwrap()])
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let doors = || async { doors(&fs::read_to_string(&log).unwrap()) };
        let (api, metrics) = eventually(SOON, doors).await;
        let ready =
            || async { reqwest::get(format!("{api}/readyz")).await.is_ok_and(|r| r.status() == 200).then_some(()) };
        eventually(SOON, ready).await;
        Self { process, log, api, metrics }
    }

    async fn ask(&self, token: &str, method: Method, path: &str, body: Value) -> Value {
        let request = Client::new().request(method, format!("{}/api/v1{path}", self.api)).bearer_auth(token);
        request.json(&body).send().await.unwrap().json().await.unwrap()
    }

    /// Everything that whoever may only look can read.
    async fn seen_by(&self, viewer: &str) -> String {
        let mut seen = String::new();
        let letters = self.ask(viewer, Method::GET, "/dlq?limit=500", Value::Null).await;
        for letter in letters["items"].as_array().unwrap() {
            let id = letter["id"].as_str().unwrap();
            for path in [format!("/dlq/{id}"), format!("/dlq/{id}/diff")] {
                seen += &self.ask(viewer, Method::GET, &path, Value::Null).await.to_string();
            }
            let event = letter["event_id"].as_str().unwrap();
            seen += &self.ask(viewer, Method::GET, &format!("/events/trace?id={event}"), Value::Null).await.to_string();
        }
        let jobs = self.ask(viewer, Method::GET, "/jobs", Value::Null).await;
        for job in jobs["items"].as_array().unwrap() {
            let path = format!("/jobs/{}", job["id"].as_str().unwrap());
            let shown = self.ask(viewer, Method::GET, &path, Value::Null).await;
            assert!(
                !shown["plan"]["hints"]["previews"].as_array().unwrap().is_empty(),
                "a plan with payloads: {shown}"
            );
            seen += &shown.to_string();
        }
        assert!(seen.len() > 1_000, "nothing was looked at: {seen}");
        for path in ["/dlq/groups", "/status", "/consumers", "/outbox", "/jobs", "/tokens", "/nothing"] {
            seen += &self.ask(viewer, Method::GET, path, Value::Null).await.to_string();
        }
        seen + &letters.to_string()
    }
}

/// Where it says that it serves.
fn doors(log: &str) -> Option<(String, String)> {
    let line = log.lines().find(|line| line.contains("health and API on"))?;
    let mut urls = line.split("http://").skip(1).map(|rest| rest.split(['"', ',', '/']).next().unwrap_or_default());
    Some((format!("http://{}", urls.next()?), format!("http://{}/metrics", urls.next()?)))
}

fn onceflow(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onceflow"));
    command.args(args).env_clear().current_dir(std::env::temp_dir()).stdin(Stdio::null()).kill_on_drop(true);
    command
}

fn message(stack: &Stack, id: &str, kind: &str, content_type: &str, body: &[u8]) -> Outgoing {
    let message = Message {
        message_id: Some(id.to_owned()),
        message_type: Some(kind.to_owned()),
        content_type: Some(content_type.to_owned()),
        headers: [("to".to_owned(), json!(PHONE)), ("name".to_owned(), json!(NAME))].into(),
        body: body.to_vec().into(),
        ..Message::default()
    };
    stack.to_ingress(kind, message)
}

/// One message for each way to fail; all of them die.
fn doomed(stack: &Stack) -> Vec<(&'static str, Outgoing)> {
    let json =
        |id: &'static str, kind: &str, body: &str| (id, message(stack, id, kind, "application/json", body.as_bytes()));
    let request = |id: &'static str, code: &str| {
        let body = json!({"requestId": id, "phone": PHONE, "templateId": "login_code", "params": {"code": code, "minutes": "5"}});
        json(id, SMS, &body.to_string())
    };
    let protobuf = format!("\n\u{7f}{PHONE}{CODE}");
    let (_, mut given_up) = request("given-up", CODE);
    given_up.route = Route { exchange: String::new(), routing_key: stack.config.runtime.names.dlq("sms") };
    vec![
        json("broken", SMS, &format!(r#"{{"requestId":"x","phone":"{PHONE}"#)),
        json("number", SMS, &format!(r#"{{"requestId":"y","phone":{PHONE}}}"#)),
        json("wrong-enum", SMS, &format!(r#"{{"requestId":"y","class":"{CODE}"}}"#)),
        json("wrong-time", SMS, &format!(r#"{{"requestId":"y","phone":"{PHONE}","expiresAt":"{CODE}"}}"#)),
        json("no-request-id", SMS, &format!(r#"{{"phone":"{PHONE}","params":{{"code":"{CODE}"}}}}"#)),
        json("unknown-type", "sms.unknown.v1", &format!(r#"{{"phone":"{PHONE}"}}"#)),
        json(
            "org",
            "org.user.upserted.v1",
            &format!(r#"{{"directory":"{NAME}","id":{{"x":"{PHONE}"}},"version":"{CODE}"}}"#),
        ),
        json("order", "order.placed.v1", &format!(r#"{{"orderNo":"{PHONE}","lines":"{CODE}","currency":"{NAME}"}}"#)),
        ("protobuf", message(stack, "protobuf", SMS, "application/protobuf", protobuf.as_bytes())),
        ("text", message(stack, "text", SMS, "text/csv", PHONE.as_bytes())),
        request("forbidden", "111111"),
        request("busy", "222222"),
        ("given-up", given_up),
    ]
}

/// Applied, repeated with another body, and no number at all; nobody listens to what is told of them.
fn applied(stack: &Stack) -> Vec<Outgoing> {
    let request = |id: &str, phone: &str| {
        let body = json!({"requestId": id, "phone": phone, "templateId": "login_code", "params": {"code": CODE, "minutes": "5"}});
        message(stack, id, SMS, "application/json", body.to_string().as_bytes())
    };
    let user = json!({"directory": "d", "id": "1", "version": "1", "name": NAME});
    let user = message(stack, "user", "org.user.upserted.v1", "application/json", user.to_string().as_bytes());
    vec![
        request("fine", PHONE),
        request("fine", &format!("+86{PHONE}")),
        request("no-number", &format!("{PHONE} or so")),
        user,
    ]
}

/// What commands say that can't log in, and their arguments. The service waits for ever, and says so.
async fn failed_logins(place: &Path, stack: &Stack, canaries: &Canaries) -> String {
    let (database, vhost) = (stack.database.as_ref().unwrap(), stack.vhost.as_ref().unwrap());
    let file = place.join("failed");
    let mut said = String::new();
    for args in [&["check"][..], &["migrate"], &["topology", "plan"], &["run"]] {
        let output = File::create(&file).unwrap();
        let mut child = onceflow(args)
            .env("ONCEFLOW_AMQP_URL", Canaries::url(vhost.url(), &canaries.role, &canaries.wrong))
            .env("ONCEFLOW_DATABASE_URL", Canaries::url(database.url(), &canaries.role, &canaries.wrong))
            .env("ONCEFLOW_ADMIN__LISTEN", "127.0.0.1:0")
            .env("ONCEFLOW_ADMIN__METRICS_LISTEN", "127.0.0.1:0")
            .env("ONCEFLOW_LOG__LEVEL", "debug")
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        said += &fs::read_to_string(format!("/proc/{}/cmdline", child.id().unwrap())).unwrap_or_default();
        let _still_waits = tokio::time::timeout(Duration::from_secs(10), child.wait()).await;
        let told = fs::read_to_string(&file).unwrap();
        assert!(told.contains("password authentication failed") || told.contains("ACCESS_REFUSED"), "{args:?}: {told}");
        said += &told;
    }
    said
}

/// Erases the person, whom no table names then but as a user of a directory that has not deleted them, and in a row that waits for an
/// operator, as the answer says. Returns what was said of it.
async fn erase(service: &Running, stack: &Stack, canaries: &Canaries) -> String {
    let person = json!({"phone": format!("+86{PHONE}"), "text": NAME});
    let found = service.ask(&canaries.operator, Method::POST, "/persons/find", person.clone()).await;
    let order = json!({"person": person, "reason": "asked for"});
    let erased = service.ask(&canaries.token, Method::POST, "/persons/erase", order).await;
    let dead = found["dead_letters"].as_array().unwrap().len();
    assert!(dead > 5 && erased["dead_letters"] == found["dead_letters"], "{found} {erased}");
    assert_eq!(tables_with(&stack.client, PHONE).await, Vec::<String>::new());
    // Nobody listens to what is told of the user.
    let left = erased["items"].as_array().unwrap().iter().find(|item| item["what"] == "parked_outbox_rows").unwrap();
    assert!(left["why"].as_str().unwrap().contains("outbox retry"), "{erased}");
    assert_eq!(tables_with(&stack.client, NAME).await, ["onceflow.org_user", "onceflow.outbox"]);
    let audited = "SELECT string_agg(a::text, ' ') FROM onceflow.audit a WHERE action = 'person.erase'";
    let audited: String = stack.client.query_one(audited, &[]).await.unwrap().get(0);
    [found.to_string(), erased.to_string(), audited].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_and_nothing_personal_shows_anywhere_whatever_happens_s7_5() {
    let place = tempfile::tempdir().unwrap();
    let mut canaries = Canaries::new();
    let stack = Stack::prepare(&domains::consumers(), Wishes { no_sibling: true, ..Wishes::default() }).await;
    let (database, vhost) = (stack.database.as_ref().unwrap(), stack.vhost.as_ref().unwrap());
    canaries.open_accounts(database, vhost).await;
    stack.client.batch_execute(TROUBLE).await.unwrap();
    let mut service = Running::start(place.path(), &stack, &canaries).await;
    for role in ["viewer", "operator"] {
        let made = service.ask(&canaries.token, Method::POST, "/tokens", json!({"name": role, "role": role})).await;
        let secret = made["secret"].as_str().unwrap().to_owned();
        if role == "viewer" { canaries.viewer = secret } else { canaries.operator = secret }
    }

    let doomed = doomed(&stack);
    stack.publish_all(applied(&stack)).await;
    stack.publish_all(doomed.iter().map(|(_, outgoing)| outgoing.clone()).collect()).await;
    for id in ["fine", "no-number", "user"] {
        stack.outcome(id).await;
    }
    for (id, _) in &doomed {
        stack.death(id).await;
    }
    stack.until_count("SELECT count(*) FROM onceflow.outbox WHERE parked_at IS NULL", 0).await;
    let refused = service.ask(&canaries.wrong, Method::GET, "/dlq", Value::Null).await.to_string();
    let all = json!({"action": "replay", "selection": {"filter": {"consumer": "sms"}}, "reason": "again",
                     "settings": {"rate": 500, "max_in_flight": 100, "canary": 0, "hold_seconds": 0}});
    let job = service.ask(&canaries.operator, Method::POST, "/jobs", all).await;
    // Its payloads hold a name, which no mask knows.
    let named =
        json!({"action": "discard", "selection": {"filter": {"consumer": "org"}}, "reason": "seen", "plan_only": true});
    let plan = service.ask(&canaries.operator, Method::POST, "/jobs", named).await.to_string();
    assert!(plan.contains(NAME), "an operator is to see it: {plan}");
    stack
        .until_count(
            "SELECT count(*) FROM onceflow.dead_letter WHERE state = 'open' AND replays = 0 AND consumer = 'sms'",
            0,
        )
        .await;
    stack.until_count("SELECT count(*) FROM onceflow.dead_letter WHERE state = 'replaying'", 0).await;

    let seen = service.seen_by(&canaries.viewer).await;
    let texts: String = stack.client.query_one(TEXTS, &[]).await.unwrap().get(0);
    let erased = erase(&service, &stack, &canaries).await;

    let pid = service.process.id().unwrap();
    let shown = [
        ("the log", fs::read_to_string(&service.log).unwrap()),
        ("metrics", reqwest::get(&service.metrics).await.unwrap().text().await.unwrap()),
        ("health", reqwest::get(format!("{}/readyz", service.api)).await.unwrap().text().await.unwrap()),
        ("what a viewer sees", seen),
        ("what is said of an erasure", erased),
        ("the answer to a wrong token", refused),
        ("a job", job.to_string()),
        ("arguments of the process", fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap()),
        ("error texts, audit and headers", texts),
        ("failed logins", failed_logins(place.path(), &stack, &canaries).await),
    ];
    service.process.kill().await.unwrap();
    canaries.close_accounts(database, vhost).await;
    assert!(
        shown[0].1.contains("\"level\":\"DEBUG\"") && shown[0].1.contains("busy"),
        "the log is none at debug level"
    );
    for (what, text) in shown {
        eprintln!("canary: {} secrets and names looked for in {} bytes of {what}", canaries.all().len(), text.len());
        for canary in canaries.all() {
            let at = text.find(canary).map(|at| &text[text.floor_char_boundary(at.saturating_sub(300))..]);
            assert_eq!(at.map(|text| text.chars().take(600).collect::<String>()), None, "{canary} shows in {what}");
        }
    }
}

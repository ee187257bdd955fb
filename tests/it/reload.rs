//! SIGHUP: what is rotated is taken over by a running service, and what is wrong leaves it as it was.

use std::fs;
use std::path::PathBuf;

use onceflow::broker::{Outgoing, Settings, publish_once};
use onceflow::message::{Message, Route};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::service::{Service, free_port, until_ready};
use crate::harness::{Database, SOON, Vhost, eventually};

const EVENT: &str = "org.user.upserted.v1";
const TOKEN: &str = "the-first-token-of-a-test";

/// A service of its own logins, whose secrets stand in files.
struct Site {
    vhost: Vhost,
    database: Database,
    client: tokio_postgres::Client,
    directory: tempfile::TempDir,
    /// Of the broker and of the database.
    login: String,
    admin: u16,
    metrics: u16,
}

impl Site {
    async fn new() -> Self {
        let (vhost, database) = (Vhost::new().await, Database::new().await);
        // Old roles of tests are known by this beginning.
        let login = format!("it_{}", Uuid::now_v7().simple());
        let client = database.client().await;
        client.batch_execute(&format!("CREATE ROLE {login} LOGIN SUPERUSER")).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let site = Self { vhost, database, client, directory, login, admin: free_port(), metrics: free_port() };
        site.set_passwords("first").await;
        let everything = json!({ "configure": ".*", "write": ".*", "read": ".*" });
        let path = format!("/api/permissions/{}/{}", site.vhost.name(), site.login);
        site.vhost.request(Method::PUT, &path, everything).await;
        site.write_urls("first", "first");
        site.write("admin.token", TOKEN);
        site.configure("info", "");
        site
    }

    /// At the servers.
    async fn set_passwords(&self, password: &str) {
        let login = &self.login;
        self.client.batch_execute(&format!("ALTER ROLE {login} PASSWORD '{password}'")).await.unwrap();
        let account = json!({ "password": password, "tags": "" });
        self.vhost.request(Method::PUT, &format!("/api/users/{login}"), account).await;
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.directory.path().join(name), text).unwrap();
    }

    fn write_urls(&self, broker: &str, database: &str) {
        let url = |text: &str, password: &str| {
            let mut url = url::Url::parse(text).unwrap();
            url.set_username(&self.login).unwrap();
            url.set_password(Some(password)).unwrap();
            String::from(url)
        };
        self.write("broker.url", &url(self.vhost.url(), broker));
        self.write("database.url", &url(self.database.url(), database));
    }

    fn configure(&self, level: &str, more: &str) -> PathBuf {
        let (admin, metrics) = (self.admin, self.metrics);
        let file = |name: &str| self.directory.path().join(name);
        let (broker, database, token) = (file("broker.url"), file("database.url"), file("admin.token"));
        let text = format!(
            "[broker]\nurl_file = {broker:?}\n[database]\nurl_file = {database:?}\n[admin]\ntoken_file = {token:?}\n\
             listen = \"127.0.0.1:{admin}\"\nmetrics_listen = \"127.0.0.1:{metrics}\"\n[log]\nformat = \"json\"\n\
             level = {level:?}\n[topology]\nqueue_type = \"classic\"\n{more}"
        );
        self.write("onceflow.toml", &text);
        file("onceflow.toml")
    }

    async fn start(&self) -> Service {
        let config = self.directory.path().join("onceflow.toml");
        let service = Service::logging(&config, &self.directory.path().join("log"), &[]);
        until_ready(self.admin).await;
        service
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    async fn until_logged(&self, words: &str) {
        eventually(SOON, || async { self.log().contains(words).then_some(()) }).await;
    }

    /// Whether the last reload succeeded, and when one last did.
    async fn reloads(&self) -> (f64, f64) {
        let text = reqwest::get(format!("http://127.0.0.1:{}/metrics", self.metrics)).await.unwrap();
        let text = text.text().await.unwrap();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("onceflow_config_last_reload_{name} ")));
            line.unwrap().parse().unwrap()
        };
        (value("successful"), value("success_timestamp_seconds"))
    }

    async fn reload(&self, service: &Service) {
        let (_, before) = self.reloads().await;
        service.signal("HUP").await;
        let done = || async {
            let (successful, at) = self.reloads().await;
            (successful > 0.0 && at > before).then_some(())
        };
        eventually(SOON, done).await;
    }

    /// Of a service that is to take nothing over.
    async fn reload_in_vain(&self, service: &Service, words: &str) {
        service.signal("HUP").await;
        self.until_logged(words).await;
        let report = || async {
            let (_, report) = self.ask("/readyz", TOKEN).await;
            let why = report.to_string();
            (self.reloads().await.0 == 0.0 && why.contains("the old one stays") && why.contains(words)).then_some(())
        };
        eventually(SOON, report).await;
        until_ready(self.admin).await;
    }

    async fn ask(&self, path: &str, token: &str) -> (u16, Value) {
        let url = format!("http://127.0.0.1:{}{path}", self.admin);
        let answer = Client::new().get(url).bearer_auth(token).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or(Value::Null))
    }

    /// Ends what was connected, at the servers.
    async fn end_connections(&self) {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1";
        self.client.query(sql, &[&self.login]).await.unwrap();
        self.vhost.request(Method::DELETE, &format!("/api/connections/username/{}", self.login), Value::Null).await;
    }

    async fn applies(&self, id: &str) {
        let body = json!({ "directory": "hr", "id": id, "version": "1", "name": "Li" });
        let message = Message {
            message_id: Some(id.to_owned()),
            message_type: Some(EVENT.to_owned()),
            content_type: Some("application/json".to_owned()),
            body: body.to_string().into(),
            ..Message::default()
        };
        let route = Route { exchange: "onceflow.in".to_owned(), routing_key: EVENT.to_owned() };
        publish_once(&self.by_admin(), &[Outgoing { route, message }]).await.unwrap();
        let sql = "SELECT FROM onceflow.inbox WHERE event_id = $1";
        eventually(SOON, || async { self.client.query_opt(sql, &[&id]).await.unwrap().map(drop) }).await;
    }

    fn by_admin(&self) -> Settings {
        Settings {
            url: self.vhost.url().into(),
            allow_plaintext: false,
            heartbeat: std::time::Duration::from_secs(10),
            tls: onceflow::tls::Tls::default(),
            name: "test".to_owned(),
            declare: true,
            signs_as: None,
        }
    }

    /// Users outlive the virtual host.
    async fn end(self, service: Service) {
        service.stop().await;
        self.vhost.request(Method::DELETE, &format!("/api/users/{}", self.login), Value::Null).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewed_passwords_token_and_log_level_are_taken_over_by_a_running_service_s7_4() {
    let site = Site::new().await;
    let service = site.start().await;
    site.applies("before").await;
    assert!(!site.log().contains("tokio_postgres"));

    let now: String = site.client.query_one("SELECT clock_timestamp()::text", &[]).await.unwrap().get(0);
    site.set_passwords("second").await;
    site.write_urls("second", "second");
    site.write("admin.token", "the-second-token-of-a-test");
    site.configure("info,tokio_postgres=debug", "[runtime]\nbatch = 7\n");
    site.reload(&service).await;

    // Sessions go as they become free, without anybody ending them.
    let old = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND backend_start < $2::text::timestamptz";
    let left = || async { site.client.query_one(old, &[&site.login, &now]).await.unwrap().get::<_, i64>(0) };
    eventually(SOON, || async { (left().await == 0).then_some(()) }).await;
    site.end_connections().await;
    site.applies("after").await;
    assert_eq!(site.ask("/api/v1/status", TOKEN).await.0, 401);
    assert_eq!(site.ask("/api/v1/status", "the-second-token-of-a-test").await.0, 200);
    site.until_logged("tokio_postgres").await;
    site.until_logged("taken over only by a restart: runtime.batch").await;
    let log = site.log();
    assert!(!log.contains("second-token") && !log.contains(":second@"), "{log}");
    site.end(service).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_configuration_is_not_taken_over_and_the_error_is_shown_o3() {
    let site = Site::new().await;
    let service = site.start().await;
    site.applies("before").await;

    // One thing is wrong and another would be right: nothing is taken over.
    site.write("admin.token", "the-second-token-of-a-test");
    site.write("broker.url", "amqp//onceflow:hunter2@localhost");
    site.reload_in_vain(&service, "broker.url: not an AMQP URL").await;
    site.write_urls("first", "first");
    site.configure("loud", "");
    site.reload_in_vain(&service, "log.level").await;
    fs::remove_file(site.directory.path().join("database.url")).unwrap();
    site.reload_in_vain(&service, "database.url_file").await;
    site.configure("info", "");
    // What the servers refuse is as wrong as what can't be read.
    site.write_urls("hunter2", "first");
    site.reload_in_vain(&service, "refuses the login").await;
    site.write_urls("first", "hunter2");
    site.reload_in_vain(&service, "password authentication failed").await;

    site.end_connections().await;
    site.applies("after").await;
    assert_eq!(site.ask("/api/v1/status", TOKEN).await.0, 200, "the token is still the old one");
    assert!(!site.log().contains("hunter2"), "{}", site.log());

    site.write_urls("first", "first");
    site.reload(&service).await;
    let (_, report) = site.ask("/readyz", "the-second-token-of-a-test").await;
    assert!(!report.to_string().contains("the old one stays"), "{report}");
    site.end(service).await;
}

#[tokio::test]
async fn what_a_server_that_is_away_can_not_be_asked_is_taken_over_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let (config, log) = (directory.path().join("onceflow.toml"), directory.path().join("log"));
    let (admin, metrics) = (free_port(), free_port());
    // Nobody listens on the discard port.
    let write = |password: &str| {
        let text = format!(
            "[broker]\nurl = \"amqp://u:{password}@127.0.0.1:9/\"\n[database]\nurl = \"postgres://u:{password}@127.0.0.1:9/x\"\n\
             [admin]\nlisten = \"127.0.0.1:{admin}\"\nmetrics_listen = \"127.0.0.1:{metrics}\"\n"
        );
        fs::write(&config, text).unwrap();
    };
    write("first");
    let service = Service::logging(&config, &log, &[]);
    let logged = |words: &'static str| {
        let log = log.clone();
        move || {
            let found = fs::read_to_string(&log).unwrap_or_default().contains(words);
            async move { found.then_some(()) }
        }
    };
    eventually(SOON, logged("health and API on")).await;
    write("second");
    service.signal("HUP").await;
    for words in [
        "the new way to the broker can't be tried and is taken",
        "the new way to the database can't be tried",
        "read again",
    ] {
        eventually(SOON, logged(words)).await;
    }
    service.kill().await;
}

//! Each user of the broker can do its work and nothing else (`spec/reliability.md` §7.15).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use onceflow::broker::{
    Binding, BrokerError, Intake, Link, Outgoing, PublishError, Purpose, QueueKind, QueueSpec, Resize, Settings,
    Subscription, Topology, delete_queues, publish_once,
};
use onceflow::health::Health;
use onceflow::message::{Message, Route};
use onceflow::replay::{self, Change, Selection};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::harness::service::{Service, free_port, until_ready};
use crate::harness::{Database, SOON, Vhost, eventually};

const PASSWORD: &str = "secret-of-a-test";

/// A virtual host with the users that the program asks for.
struct Broker {
    vhost: Vhost,
    database: Database,
    client: Client,
    prefix: String,
    users: BTreeMap<String, Value>,
    directory: tempfile::TempDir,
}

impl Broker {
    async fn new() -> Self {
        let (vhost, database) = (Vhost::new().await, Database::new().await);
        let client = database.client().await;
        // Users are the whole broker's: their names begin with the prefix.
        let prefix = format!("p{}", Uuid::now_v7().simple());
        let directory = tempfile::tempdir().unwrap();
        let mut broker = Self { vhost, database, client, prefix, users: BTreeMap::new(), directory };
        broker.make_users().await;
        broker
    }

    async fn make_users(&mut self) {
        let args = ["topology", "permissions", "--producer", "hr=org.user.*.v1", "-o", "json"];
        let output = self.onceflow(self.vhost.url(), true, &args).await;
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(told["schema"], "onceflow.topology.permissions/1");
        assert_eq!(told["vhost"], self.vhost.name());
        for user in told["items"].as_array().unwrap() {
            let (name, vhost) = (user["user"].as_str().unwrap(), self.vhost.name());
            let account = json!({ "password": PASSWORD, "tags": user["tags"] });
            self.vhost.request(Method::PUT, &format!("/api/users/{name}"), account).await;
            let permissions = json!({ "configure": user["configure"], "write": user["write"], "read": user["read"] });
            self.vhost.request(Method::PUT, &format!("/api/permissions/{vhost}/{name}"), permissions).await;
            if user["topic"].is_object() {
                let path = format!("/api/topic-permissions/{vhost}/{name}");
                self.vhost.request(Method::PUT, &path, user["topic"].clone()).await;
            }
            let kind = name.strip_prefix(&format!("{}-", self.prefix)).unwrap();
            self.users.insert(kind.to_owned(), user.clone());
        }
    }

    fn name(&self, rest: &str) -> String {
        format!("{}.{rest}", self.prefix)
    }

    fn url(&self, user: &str) -> String {
        let mut url = url::Url::parse(self.vhost.url()).unwrap();
        url.set_username(self.users[user]["user"].as_str().unwrap()).unwrap();
        url.set_password(Some(PASSWORD)).unwrap();
        url.into()
    }

    fn settings(&self, user: &str) -> Settings {
        Settings {
            url: self.url(user).into(),
            allow_plaintext: false,
            heartbeat: Duration::from_secs(10),
            tls: onceflow::tls::Tls::default(),
            name: "test".to_owned(),
            declare: true,
            signs_as: None,
        }
    }

    fn link(&self, user: &str) -> Link {
        Link::new(self.settings(user), Purpose::Publish, Arc::new(Health::default()))
    }

    /// A configuration for a user of the broker.
    fn config(&self, amqp_url: &str, declare: bool, port: u16) -> PathBuf {
        let file = self.directory.path().join(format!("{port}-{declare}.toml"));
        let (prefix, database_url) = (&self.prefix, self.database.url());
        let text = format!(
            "[broker]\nurl = {amqp_url:?}\n[database]\nurl = {database_url:?}\n[admin]\nlisten = \"127.0.0.1:{port}\"\n\
             metrics_listen = \"127.0.0.1:0\"\n[topology]\nqueue_type = \"classic\"\nprefix = {prefix:?}\ndeclare = {declare}\n\
             [retry]\ndelays = [\"100ms\", \"200ms\"]\nmax_attempts = 3\n[consumers.org]\npartitions = 2\n"
        );
        std::fs::write(&file, text).unwrap();
        file
    }

    async fn onceflow(&self, amqp_url: &str, declare: bool, args: &[&str]) -> Output {
        let config = self.config(amqp_url, declare, 0);
        let mut command = Command::new(env!("CARGO_BIN_EXE_onceflow"));
        command.args(args).arg("--config").arg(config).env_clear().stdin(Stdio::null());
        command.current_dir(self.directory.path()).output().await.unwrap()
    }

    async fn deploy(&self) {
        let deployed = self.onceflow(&self.url("deploy"), true, &["check"]).await;
        let (report, told) = (String::from_utf8_lossy(&deployed.stdout), String::from_utf8_lossy(&deployed.stderr));
        assert_eq!(deployed.status.code(), Some(0), "{report}{told}");
    }

    /// Publishes as a user, to an exchange with a routing key.
    async fn publish(
        &self,
        user: &str,
        (exchange, key): (&str, &str),
        (id, body): (&str, &Value),
    ) -> Result<(), PublishError> {
        let message = Message {
            message_id: Some(id.to_owned()),
            message_type: Some(key.to_owned()),
            content_type: Some("application/json".to_owned()),
            body: body.to_string().into(),
            ..Message::default()
        };
        let route = Route { exchange: exchange.to_owned(), routing_key: key.to_owned() };
        publish_once(&self.settings(user), &[Outgoing { route, message }]).await
    }

    async fn may_publish(&self, user: &str, exchange: &str, key: &str) -> bool {
        match self.publish(user, (exchange, key), ("e", &json!({}))).await {
            // A message that no queue is bound for was allowed in.
            Ok(()) | Err(PublishError::Returned(_)) => true,
            Err(PublishError::Broker(error)) if error.is_refused() => false,
            Err(error) => panic!("{user} to {exchange:?}: {error}"),
        }
    }

    async fn may_read(&self, user: &str, queue: &str) -> bool {
        let link = self.link(user);
        let (stop, intake) = (CancellationToken::new(), Intake::new(1, 1 << 20, Resize::Allowed));
        match Subscription::open(&link, &Topology::default(), queue, &intake, &stop).await {
            Ok(Some(subscription)) => {
                subscription.close().await;
                true
            }
            Ok(None) => panic!("nobody stopped it"),
            Err(error) => !refused(&error, user),
        }
    }

    async fn may_declare(&self, user: &str, queue: &str) -> bool {
        let spec = QueueSpec {
            name: queue.to_owned(),
            kind: QueueKind::Classic,
            ttl: None,
            dead_letter_to: None,
            delivery_limit: 0,
            single_active_consumer: false,
        };
        let topology = Topology { queues: vec![spec], ..Topology::default() };
        topology.declare_now(&self.link(user)).await.map_or_else(|error| !refused(&error, user), |()| true)
    }

    async fn may_bind(&self, user: &str, queue: &str, exchange: &str) -> bool {
        let binding = Binding { queue: queue.to_owned(), exchange: exchange.to_owned(), pattern: "#".to_owned() };
        let topology = Topology { bindings: vec![binding], ..Topology::default() };
        topology.declare_now(&self.link(user)).await.map_or_else(|error| !refused(&error, user), |()| true)
    }

    async fn until_count(&self, sql: &str, expected: i64) {
        let count = || async { self.client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) };
        eventually(SOON, || async { (count().await == expected).then_some(()) }).await;
    }

    /// Sends the one open dead letter again.
    async fn replay(&self) {
        let row = self.client.query_one("SELECT id FROM onceflow.dead_letter", &[]).await.unwrap();
        let selection = Selection::Ids(vec![row.get(0)]);
        let change =
            Change { selection, reason: None, actor: "li".to_owned(), dry_run: false, expect_count: None, max: None };
        let tx = self.database.pool().begin().await.unwrap();
        let queues = BTreeMap::from([("org".to_owned(), self.name("org"))]);
        replay::replay(&tx, &change, &queues).await.unwrap();
        tx.commit_repeatable().await.unwrap();
    }

    /// Users outlive the virtual host.
    async fn remove_users(&self) {
        for user in self.users.values() {
            let path = format!("/api/users/{}", user["user"].as_str().unwrap());
            self.vhost.request(Method::DELETE, &path, Value::Null).await;
        }
    }
}

fn refused(error: &BrokerError, user: &str) -> bool {
    assert!(error.is_refused(), "{user}: {error}");
    true
}

fn user(name: &str) -> Value {
    json!({ "directory": "hr", "id": name, "version": "1", "name": "Li" })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_user_of_the_broker_does_its_work_and_nothing_else_s7_15() {
    let broker = Broker::new().await;
    broker.deploy().await;
    let port = free_port();
    let service = Service::start(&broker.config(&broker.url("run"), false, port), "");
    until_ready(port).await;

    // A producer, the service, a dead letter, a replay through the outbox: nothing of it takes more than their permissions.
    let (ingress, event) = (broker.name("in"), "org.user.upserted.v1");
    broker.publish("producer-hr", (&ingress, event), ("good", &user("1"))).await.unwrap();
    broker.until_count("SELECT count(*) FROM onceflow.inbox WHERE event_id = 'good'", 1).await;
    broker.publish("producer-hr", (&ingress, event), ("bad", &json!({ "directory": "" }))).await.unwrap();
    broker.until_count("SELECT count(*) FROM onceflow.dead_letter WHERE state = 'open'", 1).await;
    broker.replay().await;
    broker.until_count("SELECT count(*) FROM onceflow.dead_letter WHERE state = 'open' AND replays = 1", 1).await;
    // Its downstream event went to the egress exchange, which nobody is bound to.
    broker.until_count("SELECT count(*) FROM onceflow.outbox WHERE parked_reason LIKE 'unroutable%'", 1).await;
    service.stop().await;

    let (org, retry, dlq) = (broker.name("org"), broker.name("org.retry.100"), broker.name("org.dlq"));
    assert!(broker.may_publish("run", "", &retry).await, "retries");
    assert!(broker.may_read("run", &dlq).await && broker.may_read("run", &org).await);
    assert!(!broker.may_read("run", &retry).await && !broker.may_publish("run", &ingress, event).await);
    assert!(!broker.may_declare("run", &org).await && !broker.may_declare("run", "mine").await);
    assert!(!broker.may_bind("run", &org, &ingress).await);
    assert!(delete_queues(&broker.link("run"), std::slice::from_ref(&org)).await.unwrap_err().is_refused());

    assert!(broker.may_publish("producer-hr", &ingress, "org.user.deleted.v1").await);
    for (exchange, key) in [
        (ingress.as_str(), "payment.callback.received.v1"),
        (&ingress, "org.department.upserted.v1"),
        (&broker.name("out"), event),
        ("", &org),
    ] {
        assert!(!broker.may_publish("producer-hr", exchange, key).await, "{exchange:?} {key}");
    }
    assert!(!broker.may_read("producer-hr", &org).await && !broker.may_declare("producer-hr", "mine").await);
    assert!(!broker.may_bind("producer-hr", &org, &ingress).await);

    assert!(broker.may_bind("deploy", &org, &ingress).await);
    assert!(!broker.may_publish("deploy", &ingress, event).await && !broker.may_declare("deploy", "mine").await);

    assert!(!broker.may_publish("monitor", &ingress, event).await && !broker.may_read("monitor", &org).await);
    monitor_looks_only(&broker, &org).await;
    broker.remove_users().await;
}

async fn monitor_looks_only(broker: &Broker, queue: &str) {
    let admin: url::Url = broker.vhost.management_url().parse().unwrap();
    let ask = |method: Method, path: String| {
        let url = format!("http://{}:{}{path}", admin.host_str().unwrap(), admin.port().unwrap());
        let name = broker.users["monitor"]["user"].as_str().unwrap().to_owned();
        let request = reqwest::Client::new().request(method, url).basic_auth(name, Some(PASSWORD)).json(&json!({}));
        async move { request.send().await.unwrap().status().as_u16() }
    };
    let vhost = broker.vhost.name();
    assert_eq!(ask(Method::GET, "/api/overview".to_owned()).await, 200);
    assert_eq!(ask(Method::GET, format!("/api/queues/{vhost}/{queue}")).await, 200);
    assert_eq!(ask(Method::DELETE, format!("/api/queues/{vhost}/{queue}")).await, 401);
    assert_eq!(ask(Method::PUT, "/api/users/mine".to_owned()).await, 401);
}

#[tokio::test]
async fn a_service_that_may_not_declare_says_what_is_missing_and_who_makes_it() {
    let broker = Broker::new().await;
    let run = broker.url("run");
    let missing = broker.onceflow(&run, false, &["check"]).await;
    let report = String::from_utf8(missing.stdout).unwrap();
    assert_eq!(missing.status.code(), Some(1), "{report}");
    assert!(report.contains("NOT_FOUND") && report.contains("as the deploy user"), "{report}");
    let layouts = "SELECT count(*) FROM onceflow.consumer_layout";
    broker.until_count(layouts, 0).await;
    // With the setting left as it is the broker refuses, which is told with what to do.
    let refused = broker.onceflow(&run, true, &["check"]).await;
    let told = String::from_utf8(refused.stdout).unwrap() + &String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() != Some(0) && told.contains("topology.declare"), "{told}");
    broker.deploy().await;
    // A move would unbind the old side though it can't bind the new one.
    broker
        .client
        .execute("UPDATE onceflow.consumer_layout SET partitions = 1 WHERE consumer = 'org'", &[])
        .await
        .unwrap();
    let moved = broker.onceflow(&run, false, &["topology", "apply"]).await;
    let told = String::from_utf8(moved.stderr).unwrap();
    assert_eq!(moved.status.code(), Some(5), "{told}");
    assert!(told.contains("ONCEFLOW_TOPOLOGY__DECLARE=true"), "{told}");
    let there = broker.onceflow(&run, false, &["check"]).await;
    assert_eq!(there.status.code(), Some(0), "{}", String::from_utf8_lossy(&there.stdout));
    broker.remove_users().await;
}

#[tokio::test]
async fn the_commands_for_rabbitmqctl_need_neither_broker_nor_database() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onceflow"));
    command.args(["topology", "permissions"]).env_clear().current_dir(std::env::temp_dir()).stdin(Stdio::null());
    command
        .env("ONCEFLOW_DATABASE_URL", "postgres://x@127.0.0.1:9/x")
        .env("ONCEFLOW_AMQP_URL", "amqp://g:g@127.0.0.1:9/shop");
    let output = command.output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    for line in [
        "rabbitmqctl add_user 'onceflow-run'",
        r"rabbitmqctl set_permissions -p 'shop' 'onceflow-run' '^$' '^(amq\.default|onceflow\.out)$' '^onceflow\.(org|payment|sms)(\.([0-9]+|dlq))?$'",
        r"rabbitmqctl set_topic_permissions -p 'shop' 'onceflow-producer-org' 'onceflow.in' '^(org\..*)$' '^$'",
        "rabbitmqctl set_user_tags 'onceflow-monitor' monitoring",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
}

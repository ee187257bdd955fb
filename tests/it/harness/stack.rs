//! The whole service in the test's process, on a database and a virtual host of its own, with a sibling's queue.

use std::sync::Arc;
use std::time::Duration;

use onceflow::app::App;
use onceflow::broker::{
    Binding, ExchangeSpec, Intake, Link, Outgoing, Purpose, QueueKind, QueueSpec, Resize, Subscription, Topology,
    publish_once, queue_depths,
};
use onceflow::config::{self, Config};
use onceflow::health::Health;
use onceflow::message::{Message, Route};
use onceflow::runtime::{AnyConsumer, Layout, Place, consumer_topology};
use serde_json::Value;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::{Database, Vhost, eventually};

/// Longest wait for anything that is expected to happen.
pub(crate) const SOON: Duration = Duration::from_secs(120);
pub(crate) const SIBLING: &str = "sibling";

/// A running service and everything around it.
pub(crate) struct Stack {
    pub(crate) database: Option<Database>,
    database_url: String,
    pub(crate) vhost: Option<Vhost>,
    pub(crate) config: Config,
    pub(crate) client: Client,
    pub(crate) link: Arc<Link>,
    pub(crate) app: Option<App>,
    _directory: tempfile::TempDir,
}

/// Where a stack lives and how it is set.
#[derive(Default)]
pub(crate) struct Wishes {
    /// Other addresses than the shared servers': for servers of the test's own, or a proxy in between.
    pub(crate) amqp_url: Option<String>,
    pub(crate) database_url: Option<String>,
    /// More lines of its sections `[broker]` and `[database]`.
    pub(crate) broker: String,
    pub(crate) database: String,
    /// More lines of `onceflow.toml`.
    pub(crate) settings: String,
    /// Bind no sibling: downstream events are unroutable.
    pub(crate) no_sibling: bool,
}

/// Quick retries, one partition of every setting that a test would have to wait for.
const QUICK: &str = "
[retry]
delays = [\"100ms\", \"200ms\"]
max_attempts = 3
[runtime]
drain_within = \"5s\"
handler_timeout = \"2s\"
look_for_pauses = \"100ms\"
";

impl Stack {
    pub(crate) async fn start(consumers: Vec<Box<dyn AnyConsumer>>) -> Self {
        Self::start_with(consumers, Wishes::default()).await
    }

    pub(crate) async fn start_with(consumers: Vec<Box<dyn AnyConsumer>>, wishes: Wishes) -> Self {
        let mut stack = Self::prepare(&consumers, wishes).await;
        stack.run(consumers).await;
        stack
    }

    /// Everything but the service itself.
    pub(crate) async fn prepare(consumers: &[Box<dyn AnyConsumer>], wishes: Wishes) -> Self {
        let database = if wishes.database_url.is_none() { Some(Database::new().await) } else { None };
        let vhost = if wishes.amqp_url.is_none() { Some(Vhost::new().await) } else { None };
        let amqp_url = wishes.amqp_url.clone().or(vhost.as_ref().map(|v| v.url().to_owned())).unwrap();
        let database_url = wishes.database_url.clone().or(database.as_ref().map(|d| d.url().to_owned())).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("onceflow.toml");
        let quick = if wishes.settings.contains("[runtime]") { "" } else { QUICK };
        let topology = if wishes.settings.contains("[topology]") { "" } else { "[topology]\nqueue_type = \"classic\"" };
        let text = format!(
            "[broker]\nurl = {amqp_url:?}\n{}\n[database]\nurl = {database_url:?}\n{}\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             metrics_listen = \"127.0.0.1:0\"\n{topology}\n{quick}\n{}",
            wishes.broker, wishes.database, wishes.settings
        );
        std::fs::write(&file, text).unwrap();
        let names: Vec<_> = consumers.iter().map(|c| c.name()).collect();
        let config = config::load(Some(&file), &names).unwrap();
        let link = Arc::new(Link::new(config.broker.clone(), Purpose::Publish, Arc::new(Health::default())));
        let client = super::database::connect(&database_url).await;
        let stack = Self { database, database_url, vhost, config, client, link, app: None, _directory: directory };
        stack.declare(names, wishes.no_sibling).await;
        stack
    }

    /// A pool of the test's own.
    pub(crate) fn pool(&self) -> onceflow::db::Pool {
        super::database::pool(&self.database_url)
    }

    /// Lets the service, but not the test, reach the database through a proxy.
    pub(crate) fn through(&mut self, proxy: &super::proxy::Proxy) {
        let file = self.config_file().to_owned();
        let mut url = url::Url::parse(&self.database_url).unwrap();
        url.set_port(Some(proxy.port)).unwrap();
        let text = std::fs::read_to_string(&file).unwrap().replace(&self.database_url, url.as_str());
        std::fs::write(&file, text).unwrap();
        let names: Vec<String> = self.config.consumers.iter().map(|c| c.name.clone()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.config = config::load(Some(&file), &names).unwrap();
    }

    /// After the database server was restarted.
    pub(crate) async fn reconnect(&mut self) {
        self.client = super::database::connect(&self.database_url).await;
    }

    /// The configuration file, for a service in a process of its own.
    pub(crate) fn config_file(&self) -> &std::path::Path {
        self.config.file.as_deref().unwrap()
    }

    async fn declare(&self, consumers: Vec<&str>, no_sibling: bool) {
        let names = &self.config.runtime.names;
        let mut topology = Topology::default();
        for consumer in &self.config.consumers {
            // A partitioned consumer is laid out by the service itself, on a broker that has nothing of it yet.
            if consumer.partitions == 1 {
                let patterns = patterns_of(&consumer.name);
                let place = Place { settings: &self.config.runtime, own: consumer, patterns: &patterns };
                topology.extend(consumer_topology(place, Layout::of(1)));
            }
        }
        assert_eq!(consumers.len(), self.config.consumers.len());
        topology.exchanges.push(ExchangeSpec::topic(names.egress()));
        if !no_sibling {
            topology.queues.push(queue(SIBLING));
            topology.bindings.push(binding(SIBLING, &names.egress(), "#"));
        }
        let refused = topology.declare_all(&self.link).await.unwrap();
        assert!(refused.is_empty(), "{refused:?}");
    }

    /// Binds the sibling's queue later on.
    pub(crate) async fn bind_sibling(&self) {
        let egress = self.config.runtime.names.egress();
        let topology = Topology {
            queues: vec![queue(SIBLING)],
            bindings: vec![binding(SIBLING, &egress, "#")],
            ..Topology::default()
        };
        assert!(topology.declare_all(&self.link).await.unwrap().is_empty());
    }

    /// Starts the service and waits until it is ready.
    pub(crate) async fn run(&mut self, consumers: Vec<Box<dyn AnyConsumer>>) {
        let app = App::start(&self.config, consumers).await.unwrap();
        let health = app.health.clone();
        self.app = Some(app);
        let mut changes = health.subscribe();
        let ready = async {
            while !health.is_ready() {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(SOON, ready).await.unwrap_or_else(|_| panic!("not ready: {:?}", health.waiting()));
    }

    pub(crate) async fn stop(&mut self) -> bool {
        self.app.take().unwrap().stop().await
    }

    /// Publishes to the ingress exchange in the plain form: message id, type, JSON body.
    pub(crate) async fn publish(&self, event_type: &str, id: &str, body: &Value) {
        self.publish_all(vec![self.plain(event_type, id, body)]).await;
    }

    pub(crate) fn plain(&self, event_type: &str, id: &str, body: &Value) -> Outgoing {
        let message = Message {
            message_id: Some(id.to_owned()),
            message_type: Some(event_type.to_owned()),
            content_type: Some("application/json".to_owned()),
            body: body.to_string().into(),
            ..Message::default()
        };
        self.to_ingress(event_type, message)
    }

    /// In the plain form, ordered by `key`.
    pub(crate) fn keyed(&self, event_type: &str, id: &str, key: &str, body: &Value) -> Outgoing {
        let mut outgoing = self.plain(event_type, id, body);
        outgoing.message.headers.insert("cloudEvents:partitionkey".to_owned(), Value::from(key));
        outgoing
    }

    pub(crate) fn to_ingress(&self, routing_key: &str, message: Message) -> Outgoing {
        let route = Route { exchange: self.config.runtime.names.ingress(), routing_key: routing_key.to_owned() };
        Outgoing { route, message }
    }

    pub(crate) async fn publish_all(&self, messages: Vec<Outgoing>) {
        publish_once(&self.config.broker, &messages).await.unwrap();
    }

    /// Waits until the inbox has an event, and returns its outcome.
    pub(crate) async fn outcome(&self, id: &str) -> String {
        let sql = "SELECT outcome FROM onceflow.inbox WHERE event_id = $1";
        eventually(SOON, || async move { self.client.query_opt(sql, &[&id]).await.unwrap().map(|row| row.get(0)) })
            .await
    }

    /// Waits until an event is a dead letter, and returns its stage and reason.
    pub(crate) async fn death(&self, id: &str) -> (String, String) {
        let sql = "SELECT stage, reason FROM onceflow.dead_letter WHERE event_id = $1 AND state = 'open'";
        let look =
            || async move { self.client.query_opt(sql, &[&id]).await.unwrap().map(|row| (row.get(0), row.get(1))) };
        eventually(SOON, look).await
    }

    /// One number from the database.
    pub(crate) async fn count(&self, sql: &str) -> i64 {
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// Waits until a query that counts gives `expected`.
    pub(crate) async fn until_count(&self, sql: &str, expected: i64) {
        eventually(SOON, || async move { (self.count(sql).await == expected).then_some(()) }).await;
    }

    pub(crate) async fn depth(&self, queue: &str) -> u32 {
        queue_depths(&self.link, &[queue.to_owned()]).await.unwrap()[0]
    }

    /// Waits until the outbox is empty, then takes everything from the sibling's queue.
    pub(crate) async fn downstream(&self) -> Vec<Message> {
        self.until_count("SELECT count(*) FROM onceflow.outbox WHERE parked_at IS NULL", 0).await;
        let expected = self.depth(SIBLING).await;
        self.take(SIBLING, expected as usize).await
    }

    /// Takes `count` messages from a queue.
    pub(crate) async fn take(&self, queue: &str, count: usize) -> Vec<Message> {
        let stop = CancellationToken::new();
        let intake = Intake::new(1_000, 64 * 1024 * 1024, Resize::Allowed);
        let opened = Subscription::open(&self.link, &Topology::default(), queue, &intake, &stop).await;
        let mut subscription = opened.unwrap().unwrap();
        let mut taken = Vec::new();
        while taken.len() < count {
            let delivery = tokio::time::timeout(SOON, subscription.next()).await.unwrap().unwrap();
            taken.push(delivery.message.clone());
            assert!(delivery.ack().await.unwrap());
        }
        subscription.close().await;
        taken
    }
}

fn queue(name: &str) -> QueueSpec {
    QueueSpec {
        name: name.to_owned(),
        kind: QueueKind::Classic,
        ttl: None,
        dead_letter_to: None,
        delivery_limit: 0,
        single_active_consumer: false,
    }
}

fn binding(queue: &str, exchange: &str, pattern: &str) -> Binding {
    Binding { queue: queue.to_owned(), exchange: exchange.to_owned(), pattern: pattern.to_owned() }
}

/// Bindings are needed before the service runs, so that nothing published meanwhile is lost.
fn patterns_of(consumer: &str) -> Vec<&'static str> {
    match consumer {
        "payment" => vec!["payment.#", "order.#"],
        "org" => vec!["org.#"],
        "sms" => vec!["sms.#"],
        _ => vec!["probe.#"],
    }
}

//! Several replicas and partitioned queues: the order per key, the shares, and moving from one layout to another.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use onceflow::app::App;
use onceflow::broker::{Outgoing, publish_once, queue_states};
use onceflow::dev::servers::{Options, Servers};
use onceflow::domains;
use onceflow::message::Message;
use onceflow::runtime::{AnyConsumer, erase};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::task::JoinHandle;

use crate::harness::probe::EVENT;
use crate::harness::service::Service;
use crate::harness::{Probe, SOON, Stack, Wishes, connect, eventually, project};

const TYPE: &str = "org.user.upserted.v1";
const APPLIED: &str = "SELECT count(*) FROM onceflow.inbox WHERE outcome = 'applied'";
const REPLICAS: &str = "SELECT count(*) FROM onceflow.replica WHERE seen_at > clock_timestamp() - interval '4 seconds'";
const KEYS: i64 = 40;
/// Events on their way before the producer waits.
const AHEAD: i64 = 400;

async fn prepared(partitions: u16) -> Stack {
    let settings = format!("[consumers.org]\npartitions = {partitions}\n");
    Stack::prepare(&domains::consumers(), Wishes { settings, ..Wishes::default() }).await
}

/// One event in a transaction: much is in flight whenever the consumer is paused.
async fn prepared_slow() -> Stack {
    let settings = "[retry]\ndelays = [\"100ms\", \"200ms\"]\n[runtime]\nbatch = 1\ndrain_within = \"5s\"\n\
                    look_for_pauses = \"100ms\"\n[consumers.org]\npartitions = 1\n"
        .to_owned();
    Stack::prepare(&domains::consumers(), Wishes { settings, ..Wishes::default() }).await
}

/// Publishes version after version of every key, with the key in the header, until it is told to stop.
struct Producer {
    enough: Arc<AtomicBool>,
    task: JoinHandle<i64>,
}

impl Producer {
    async fn start(stack: &Stack) -> Self {
        let (broker, client) = (stack.config.broker.clone(), connect(stack.database.as_ref().unwrap().url()).await);
        let enough = Arc::new(AtomicBool::new(false));
        let (flag, ingress) = (enough.clone(), stack.plain(TYPE, "", &json!({})));
        let task = tokio::spawn(async move {
            let mut version = 0;
            while !flag.load(Ordering::Relaxed) {
                version += 1;
                let round: Vec<_> = (0..KEYS).map(|key| user(&ingress, key, version)).collect();
                publish_once(&broker, &round).await.unwrap();
                let wanted = version * KEYS - AHEAD;
                let keeps_up = || async {
                    let applied: i64 = client.query_one(APPLIED, &[]).await.unwrap().get(0);
                    (applied >= wanted || flag.load(Ordering::Relaxed)).then_some(())
                };
                eventually(SOON, keeps_up).await;
            }
            version
        });
        Self { enough, task }
    }

    /// Returns how many versions of each key were published.
    async fn stop(self) -> i64 {
        self.enough.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

fn user(like: &Outgoing, key: i64, version: i64) -> Outgoing {
    let mut outgoing = like.clone();
    let name = format!("Example {version}");
    let body = json!({"directory": "d", "id": format!("u{key}"), "version": version.to_string(), "name": name});
    outgoing.message.message_id = Some(format!("e{key}-{version}"));
    outgoing.message.body = body.to_string().into();
    outgoing.message.headers.insert("cloudEvents:partitionkey".to_owned(), Value::from(format!("u{key}")));
    outgoing
}

/// Waits until so many more events are applied than now.
async fn more(stack: &Stack, events: i64) {
    let wanted = stack.count(APPLIED).await + events;
    eventually(SOON, || async { (stack.count(APPLIED).await >= wanted).then_some(()) }).await;
}

/// Nothing is lost, nothing is applied twice, and every key's versions came to the sibling in their order.
async fn everything_came_in_order(stack: &Stack, versions: i64) {
    stack.until_count("SELECT count(*) FROM onceflow.inbox", versions * KEYS).await;
    assert_eq!(
        stack.count("SELECT count(*) FROM onceflow.inbox WHERE outcome <> 'applied'").await,
        0,
        "none came late"
    );
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.dead_letter").await, 0);
    let expected: Vec<i64> = (1..=versions).collect();
    let came = first_occurrences(&stack.downstream().await);
    assert_eq!(came.len(), usize::try_from(KEYS).unwrap());
    for (key, found) in came {
        assert_eq!(found, expected, "{key}");
    }
}

/// The versions of each key, in the order in which each was first there.
fn first_occurrences(messages: &[Message]) -> BTreeMap<String, Vec<i64>> {
    let mut seen = BTreeSet::new();
    let mut found: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for message in messages {
        let body: Value = serde_json::from_slice(&message.body).unwrap();
        if seen.insert(message.message_id.clone().unwrap()) {
            let key = message.headers["cloudEvents:subject"].as_str().unwrap().to_owned();
            found.entry(key).or_default().push(body["version"].as_str().unwrap().parse().unwrap());
        }
    }
    found
}

fn partitions(stack: &Stack, consumer: &str, count: u16) -> Vec<String> {
    (0..count).map(|number| stack.config.runtime.names.partition(consumer, number)).collect()
}

/// Waits until every queue has so many consumers.
async fn until_read(stack: &Stack, queues: &[String], consumers: u32) {
    let read = || async {
        let states = queue_states(&stack.link, queues).await.unwrap();
        states.iter().all(|state| state.is_some_and(|state| state.consumers == consumers)).then_some(())
    };
    eventually(SOON, read).await;
}

async fn exists(stack: &Stack, queue: &str) -> bool {
    queue_states(&stack.link, &[queue.to_owned()]).await.unwrap()[0].is_some()
}

/// The partitions that each replica is subscribed to, as the broker tells: one connection is one replica.
async fn shares(stack: &Stack) -> Vec<Vec<String>> {
    let vhost = stack.vhost.as_ref().unwrap();
    let text = vhost.request(Method::GET, &format!("/api/consumers/{}", vhost.name()), json!({})).await;
    let mut shares: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for consumer in serde_json::from_str::<Vec<Value>>(&text).unwrap() {
        let queue = consumer["queue"]["name"].as_str().unwrap();
        let is_partition =
            queue.starts_with("onceflow.org.") && queue.rsplit('.').next().unwrap().parse::<u16>().is_ok();
        if is_partition {
            let connection = consumer["channel_details"]["connection_name"].to_string();
            shares.entry(connection).or_default().push(queue.to_owned());
        }
    }
    let mut shares: Vec<Vec<String>> = shares.into_values().collect();
    shares.iter_mut().for_each(|share| share.sort());
    shares.sort();
    shares
}

/// Runs the command line on the stack's configuration, wishing for so many partitions of `org`.
async fn onceflow(stack: &Stack, wanted: u16, args: &[&str]) -> Output {
    command(stack, wanted, args).output().await.unwrap()
}

fn command(stack: &Stack, wanted: u16, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onceflow"));
    command.args(args).arg("--config").arg(stack.config_file());
    command.env("ONCEFLOW_CONSUMERS__ORG__PARTITIONS", wanted.to_string()).stdin(Stdio::null()).kill_on_drop(true);
    command
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn data(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", stderr(output)))
}

/// What a plan says of `org`.
async fn plan(stack: &Stack, wanted: u16) -> Value {
    let output = onceflow(stack, wanted, &["topology", "plan", "--consumer", "org", "-o", "json"]).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    data(&output)["items"][0].clone()
}

/// Applies, and waits for the right to do so of one that was killed to end.
async fn apply(stack: &Stack, wanted: u16) {
    let applied = || async {
        let output = onceflow(stack, wanted, &["topology", "apply", "--within", "2m"]).await;
        assert!([0, 5].contains(&code(&output)), "{}", stderr(&output));
        (code(&output) == 0).then_some(())
    };
    eventually(SOON, applied).await;
    let plan = plan(stack, wanted).await;
    assert_eq!((&plan["steps"], &plan["partitions"], &plan["moving_to"]), (&json!([]), &json!(wanted), &Value::Null));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i5_the_order_per_key_holds_while_replicas_join_leave_and_die() {
    let stack = prepared(4).await;
    let (producer, last) = replicas_come_and_go(&stack).await;
    let versions = producer.stop().await;
    everything_came_in_order(&stack, versions).await;
    last.kill().await;
}

/// A node of its own: one that many virtual hosts with quorum queues come and go on loses its hold of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i5_the_same_holds_on_quorum_queues_and_while_they_move() {
    let project = project();
    let options = Options { name: "quorum", postgres: false, rabbitmq: true, fresh_broker: true };
    let servers = Servers::start(project.path(), options, &|_| {}).await.unwrap();
    let settings = "[topology]\nqueue_type = \"quorum\"\n[consumers.org]\npartitions = 4\n".to_owned();
    let wishes = Wishes { amqp_url: servers.amqp_url(), settings, ..Wishes::default() };
    let stack = Stack::prepare(&domains::consumers(), wishes).await;
    let (producer, last) = replicas_come_and_go(&stack).await;
    apply(&stack, 2).await;
    more(&stack, 200).await;
    let versions = producer.stop().await;
    everything_came_in_order(&stack, versions).await;
    last.kill().await;
    servers.stop().await.unwrap();
}

/// Under load; one of the replicas is left.
async fn replicas_come_and_go(stack: &Stack) -> (Producer, Service) {
    let first = Service::start(stack.config_file(), "");
    until_read(stack, &partitions(stack, "org", 4), 1).await;
    let producer = Producer::start(stack).await;
    more(stack, 200).await;
    let second = Service::start(stack.config_file(), "");
    stack.until_count(REPLICAS, 2).await;
    more(stack, 400).await;
    first.stop().await;
    more(stack, 200).await;
    let third = Service::start(stack.config_file(), "");
    stack.until_count(REPLICAS, 2).await;
    more(stack, 400).await;
    second.kill().await;
    more(stack, 200).await;
    (producer, third)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_the_partitions_evenly_and_take_over_from_one_that_dies() {
    let stack = prepared(4).await;
    let share = |expected: &'static [&'static [&'static str]]| {
        let stack = &stack;
        async move { eventually(SOON, || async { (shares(stack).await == expected).then_some(()) }).await }
    };
    let all: &[&[&str]] = &[&["onceflow.org.0", "onceflow.org.1", "onceflow.org.2", "onceflow.org.3"]];
    let first = Service::start(stack.config_file(), "");
    share(all).await;
    let second = Service::start(stack.config_file(), "");
    share(&[&["onceflow.org.0", "onceflow.org.2"], &["onceflow.org.1", "onceflow.org.3"]]).await;
    second.kill().await;
    share(all).await;
    first.stop().await;
    assert_eq!(stack.count(REPLICAS).await, 0, "who stops takes its leave");
}

/// The broker activates the next in line when the active consumer is cancelled, whatever it has in flight.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i5_a_partition_that_drains_is_read_by_nobody_else_before_its_work_in_flight_is_done() {
    let settings = "[consumers.probe]\npartitions = 2\n[runtime]\nhandler_timeout = \"10m\"\ndrain_within = \"2m\"\n";
    let probe = Probe::new();
    let consumers = || -> Vec<Box<dyn AnyConsumer>> { vec![erase(probe.clone())] };
    let mut stack = Stack::prepare(&consumers(), Wishes { settings: settings.to_owned(), ..Wishes::default() }).await;
    Probe::create_ledger(&stack.client).await;
    stack.run(consumers()).await;
    let (leaving, queues) = (stack.app.take().unwrap(), partitions(&stack, "probe", 2));
    until_read(&stack, &queues, 1).await;

    let order =
        |key: &str, n: i64, what: &str| stack.keyed(EVENT, &format!("{key}-{n}"), key, &json!({"do": what, "n": n}));
    let held: Vec<Outgoing> = (0..8).map(|key| order(&format!("k{key}"), 1, "wait")).collect();
    let later: Vec<Outgoing> = (0..8)
        .flat_map(|key| (2..=5).map(move |n| (key, n)))
        .map(|(key, n)| order(&format!("k{key}"), n, "apply"))
        .collect();
    stack.publish_all(held).await;
    let waits = "SELECT count(*) FROM pg_stat_activity
                 WHERE datname = current_database() AND state = 'idle in transaction' AND query LIKE '%inbox%'";
    eventually(SOON, || async { (stack.count(waits).await > 0).then_some(()) }).await;

    // The other one waits in line for both partitions as soon as the first has taken its leave.
    let other = App::start(&stack.config, consumers()).await.unwrap();
    stack.until_count(REPLICAS, 2).await;
    let left = tokio::spawn(leaving.stop());
    stack.until_count(REPLICAS, 1).await;
    until_read(&stack, &queues, 2).await;
    stack.publish_all(later).await;
    // Whatever could overtake would do so now: the plain queue is read by the other one.
    let to_plain = |n| {
        let mut outgoing = order("marker", n, "apply");
        outgoing.route = onceflow::message::Route { exchange: String::new(), routing_key: "onceflow.probe".to_owned() };
        outgoing
    };
    stack.publish_all((1..=50).map(to_plain).collect()).await;
    stack.until_count("SELECT count(*) FROM onceflow.probe_ledger", 50).await;
    probe.gate.add_permits(100);
    assert!(left.await.unwrap());
    stack.until_count("SELECT count(*) FROM onceflow.probe_ledger WHERE key <> 'marker'", 40).await;
    let sql = "SELECT count(*) FROM (SELECT n, row_number() OVER (PARTITION BY key ORDER BY seq) AS place
               FROM onceflow.probe_ledger WHERE key <> 'marker') AS l WHERE n <> place";
    assert_eq!(stack.count(sql).await, 0, "every key in its order");
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i5_a_running_installation_moves_from_one_queue_to_four_to_two_to_one_while_producers_publish() {
    let stack = prepared_slow().await;
    let first = Service::start(stack.config_file(), "");
    until_read(&stack, &["onceflow.org".to_owned()], 1).await;
    let producer = Producer::start(&stack).await;
    more(&stack, 200).await;
    apply(&stack, 4).await;
    // Several replicas keep the order only while there are partitions, and on the way from one number of them to another.
    let second = Service::start(stack.config_file(), "");
    stack.until_count(REPLICAS, 2).await;
    more(&stack, 200).await;
    apply(&stack, 2).await;
    more(&stack, 200).await;
    second.stop().await;
    apply(&stack, 1).await;
    more(&stack, 200).await;
    let versions = producer.stop().await;
    everything_came_in_order(&stack, versions).await;
    assert!(!exists(&stack, "onceflow.org.0").await, "the partitions are gone");
    let audit = "SELECT count(*) FROM onceflow.audit WHERE action = 'topology.apply' AND subject = 'org'";
    assert_eq!(stack.count(audit).await, 3);
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.audit").await, 3, "one row for each apply");
    first.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_apply_that_was_interrupted_or_timed_out_is_repeated_and_a_second_one_at_once_is_refused() {
    let stack = prepared(1).await;
    let like = stack.plain(TYPE, "", &json!({}));
    stack.publish_all((0..KEYS).map(|key| user(&like, key, 1)).collect()).await;
    let moving = "SELECT count(*) FROM onceflow.consumer_layout WHERE consumer = 'org' AND moving_to = 4";

    // Nobody reads what waits.
    let late = onceflow(&stack, 4, &["topology", "apply", "--within", "500ms"]).await;
    assert_eq!(code(&late), 9, "{}", stderr(&late));
    assert!(stderr(&late).contains("nobody reads"), "{}", stderr(&late));
    assert_eq!(stack.count(moving).await, 1);
    assert_eq!(plan(&stack, 4).await["moving_to"], 4);

    let mut interrupted = command(&stack, 4, &["topology", "apply"]).stderr(Stdio::null()).spawn().unwrap();
    stack.until_count("SELECT count(*) FROM onceflow.consumer_layout WHERE mover IS NOT NULL", 1).await;
    let second = onceflow(&stack, 4, &["topology", "apply"]).await;
    assert_eq!(code(&second), 5, "{}", stderr(&second));
    interrupted.kill().await.unwrap();
    // As if it had been killed while it looked.
    let paused = "INSERT INTO onceflow.consumer_state (consumer, paused, changed_by, reason)
                  VALUES ('org', true, 'test', 'topology apply')
                  ON CONFLICT (consumer) DO UPDATE SET paused = true, reason = excluded.reason";
    stack.client.execute(paused, &[]).await.unwrap();

    // What is published meanwhile goes to the new side.
    stack.publish_all((0..KEYS).map(|key| user(&like, key, 2)).collect()).await;
    let service = Service::start(stack.config_file(), "");
    apply(&stack, 4).await;
    everything_came_in_order(&stack, 2).await;
    service.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_an_operator_has_paused_is_not_moved() {
    let stack = prepared(1).await;
    let pause = "INSERT INTO onceflow.consumer_state (consumer, paused, changed_by, reason) VALUES ('org', true, 'ops', 'bad data')";
    stack.client.execute(pause, &[]).await.unwrap();
    let refused = onceflow(&stack, 4, &["topology", "apply"]).await;
    assert_eq!(code(&refused), 5, "{}", stderr(&refused));
    assert!(stderr(&refused).contains("bad data"), "{}", stderr(&refused));
    let state = "SELECT count(*) FROM onceflow.consumer_state WHERE paused AND reason = 'bad data'";
    assert_eq!(stack.count(state).await, 1, "the pause stands");
    assert!(!exists(&stack, "onceflow.org.0").await);
    stack.client.execute("UPDATE onceflow.consumer_state SET paused = false", &[]).await.unwrap();
    apply(&stack, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wish_that_differs_from_the_layout_changes_nothing_until_it_is_applied() {
    let mut stack = prepared(1).await;
    stack.run(domains::consumers()).await;
    stack.stop().await;
    let mut wishes = stack.config.consumers.iter_mut();
    wishes.find(|own| own.name == "org").unwrap().partitions = 4;
    // Ready all the same.
    stack.run(domains::consumers()).await;
    let checks = stack.app.as_ref().unwrap().health.snapshot();
    let advice = format!("{:?}", checks["consumer.org"]);
    assert!(advice.contains("consumer org has 1 queue, the configuration wants 4 partitions"), "{advice}");
    let check = onceflow(&stack, 4, &["check", "-o", "json"]).await;
    assert_eq!(code(&check), 0, "{}", stderr(&check));
    let items = data(&check)["items"].as_array().unwrap().clone();
    let finding = items.iter().find(|item| item["check"] == "partitions").unwrap();
    assert_eq!((&finding["state"], &finding["try"]), (&json!("ok"), &json!("onceflow topology plan")));
    let plan = plan(&stack, 4).await;
    assert_eq!((&plan["partitions"], &plan["wanted"]), (&json!(1), &json!(4)));
    assert!(!plan["steps"].as_array().unwrap().is_empty());
    assert_eq!(code(&onceflow(&stack, 4, &["topology", "plan", "--consumer", "nobody"]).await), 3);
    assert!(!exists(&stack, "onceflow.org.0").await);
    let like = stack.plain(TYPE, "", &json!({}));
    stack.publish_all((0..KEYS).map(|key| user(&like, key, 1)).collect()).await;
    everything_came_in_order(&stack, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_installation_is_laid_out_as_wished_by_the_first_check() {
    let stack = prepared(4).await;
    let before = plan(&stack, 4).await;
    assert_eq!((&before["partitions"], &before["queues"]), (&Value::Null, &json!([])));
    let check = onceflow(&stack, 4, &["check"]).await;
    assert_eq!(code(&check), 0, "{}", stderr(&check));
    assert_eq!(plan(&stack, 4).await["queues"].as_array().unwrap().len(), 5);
    // Who wishes for something else later only gets advice.
    assert_eq!(code(&onceflow(&stack, 2, &["check"]).await), 0);
    assert_eq!(stack.count("SELECT partitions::bigint FROM onceflow.consumer_layout WHERE consumer = 'org'").await, 4);
    // Events are spread by their key, and what has none goes to one partition.
    let like = stack.plain(TYPE, "", &json!({}));
    stack.publish_all((0..KEYS).map(|key| user(&like, key, 1)).collect()).await;
    let waiting = async || -> Vec<u32> {
        let states = queue_states(&stack.link, &partitions(&stack, "org", 4)).await.unwrap();
        states.into_iter().flatten().map(|state| state.ready).collect()
    };
    let spread = waiting().await;
    assert!(spread.iter().all(|ready| *ready > 0) && spread.iter().sum::<u32>() == 40, "{spread:?}");
    let keyless = |n| stack.plain(TYPE, &format!("keyless-{n}"), &json!({}));
    stack.publish_all((0..40).map(keyless).collect()).await;
    let grown = waiting().await.iter().zip(&spread).filter(|(now, before)| now > before).count();
    assert_eq!(grown, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retried_event_of_a_partitioned_consumer_comes_back_through_the_plain_queue() {
    let settings = "[consumers.probe]\npartitions = 2\n".to_owned();
    let consumers = || -> Vec<Box<dyn AnyConsumer>> { vec![erase(Probe::new())] };
    let mut stack = Stack::prepare(&consumers(), Wishes { settings, ..Wishes::default() }).await;
    Probe::create_ledger(&stack.client).await;
    stack.run(consumers()).await;
    until_read(&stack, &partitions(&stack, "probe", 2), 1).await;
    stack.publish(EVENT, "stubborn", &json!({"do": "retry"})).await;
    assert_eq!(stack.death("stubborn").await, ("exhausted".to_owned(), "asked_for".to_owned()));
    assert_eq!(stack.count("SELECT attempts::bigint FROM onceflow.dead_letter").await, 3);
}

/// What the broker itself has to do with it: its plugin, and its memory of which key belongs to which queue.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_finds_a_partition_after_a_restart_of_the_broker_and_a_missing_plugin_is_named() {
    let project = project();
    let options = Options { name: "own", postgres: false, rabbitmq: true, fresh_broker: true };
    let mut servers = Servers::start(project.path(), options, &|_| {}).await.unwrap();
    let amqp_url = servers.amqp_url();
    let settings = "[consumers.org]\npartitions = 12\n".to_owned();
    let stack = Stack::prepare(&domains::consumers(), Wishes { amqp_url, settings, ..Wishes::default() }).await;
    let rabbitmq = servers.rabbitmq.as_mut().unwrap();

    let registry = |what: &str, end: &str| format!("rabbit_registry:{what}(exchange, <<\"x-consistent-hash\">>{end}).");
    rabbitmq.ctl(&["eval", &registry("unregister", "")]).await.unwrap();
    let check = onceflow(&stack, 12, &["check"]).await;
    assert_eq!(code(&check), 1, "{}", stderr(&check));
    let table = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(table.contains("rabbitmq-plugins enable rabbitmq_consistent_hash_exchange"), "{table}");
    let decided = "SELECT count(*) FROM onceflow.consumer_layout WHERE consumer = 'org'";
    assert_eq!(stack.count(decided).await, 0, "nothing is decided that the broker can't have");
    rabbitmq.ctl(&["eval", &registry("register", ", rabbit_exchange_type_consistent_hash")]).await.unwrap();
    let check = onceflow(&stack, 12, &["check"]).await;
    assert_eq!(code(&check), 0, "{}", stderr(&check));

    let like = stack.plain(TYPE, "", &json!({}));
    let published = async || {
        stack.publish_all((0..KEYS).map(|key| user(&like, key, 1)).collect()).await;
        let states = queue_states(&stack.link, &partitions(&stack, "org", 12)).await.unwrap();
        states.into_iter().flatten().map(|state| i64::from(state.ready)).sum::<i64>()
    };
    assert_eq!(published().await, KEYS);
    rabbitmq.stop().await.unwrap();
    rabbitmq.start().await.unwrap();
    // Not always the same one: a broker that keeps its metadata in Mnesia numbers the queues anew, several at a time.
    assert_eq!(published().await, 2 * KEYS);
    servers.stop().await.unwrap();
}

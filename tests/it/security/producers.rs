//! Who sent a message (§7.14): the broker checks the property `user_id`, and a consumer takes only whom it lists.

use std::collections::BTreeMap;

use onceflow::broker::{Outgoing, PublishError, Settings, publish_once};
use onceflow::message::Route;
use onceflow::replay::{self, Change, Selection};
use onceflow::runtime::{AnyConsumer, erase};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::probe::EVENT;
use crate::harness::{Probe, Stack, Wishes};

const PASSWORD: &str = "secret-of-a-test";

/// A user of the broker who may do everything, even write into the consumers' queues.
struct User {
    name: String,
    settings: Settings,
}

impl User {
    async fn new(stack: &Stack, name: String) -> Self {
        let vhost = stack.vhost.as_ref().unwrap();
        let account = json!({ "password": PASSWORD, "tags": "" });
        vhost.request(Method::PUT, &format!("/api/users/{name}"), account).await;
        let everything = json!({ "configure": ".*", "write": ".*", "read": ".*" });
        vhost.request(Method::PUT, &format!("/api/permissions/{}/{name}", vhost.name()), everything).await;
        let mut url = url::Url::parse(vhost.url()).unwrap();
        url.set_username(&name).unwrap();
        url.set_password(Some(PASSWORD)).unwrap();
        let url = String::from(url).into();
        Self { settings: Settings { url, signs_as: Some(name.clone()), ..stack.config.broker.clone() }, name }
    }

    async fn send(&self, outgoing: Outgoing) {
        publish_once(&self.settings, &[outgoing]).await.unwrap();
    }

    /// Under another name, or none.
    async fn send_as(&self, name: Option<&str>, outgoing: Outgoing) -> Result<(), PublishError> {
        let settings = Settings { signs_as: name.map(str::to_owned), ..self.settings.clone() };
        publish_once(&settings, &[outgoing]).await
    }

    /// Users outlive the virtual host.
    async fn remove(self, stack: &Stack) {
        let path = format!("/api/users/{}", self.name);
        stack.vhost.as_ref().unwrap().request(Method::DELETE, &path, Value::Null).await;
    }
}

/// A consumer that takes what `listed` sends.
async fn taking_only_from(listed: &str, settings: &str) -> Stack {
    let consumers = || -> Vec<Box<dyn AnyConsumer>> { vec![erase(Probe::new())] };
    let settings = format!("[consumers.probe]\nproducers = [{listed:?}]\n{settings}");
    let mut stack = Stack::prepare(&consumers(), Wishes { settings, ..Wishes::default() }).await;
    Probe::create_ledger(&stack.client).await;
    stack.run(consumers()).await;
    stack
}

/// Users are the whole broker's.
fn unique(role: &str) -> String {
    format!("{role}-{}", Uuid::now_v7().simple())
}

/// A copy as if a retry or a replay of ours had sent it, straight into the consumer's queue.
fn forged(stack: &Stack, id: &str, headers: &[(&str, Value)]) -> Outgoing {
    let Outgoing { mut message, .. } = stack.plain(EVENT, id, &json!({ "do": "apply" }));
    message.headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    Outgoing { route: Route { exchange: String::new(), routing_key: "onceflow.probe".to_owned() }, message }
}

fn dead_of(code: &str) -> (String, String) {
    ("validate".to_owned(), code.to_owned())
}

async fn replay(stack: &Stack, event: &str) {
    let sql = "SELECT id FROM onceflow.dead_letter WHERE event_id = $1 AND state = 'open'";
    let row = stack.client.query_one(sql, &[&event]).await.unwrap();
    let selection = Selection::Ids(vec![row.get(0)]);
    let change =
        Change { selection, reason: None, actor: "li".to_owned(), dry_run: false, expect_count: None, max: None };
    let tx = stack.pool().begin().await.unwrap();
    let queues = BTreeMap::from([("probe".to_owned(), "onceflow.probe".to_owned())]);
    replay::replay(&tx, &change, &queues).await.unwrap();
    tx.commit_repeatable().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_takes_messages_of_listed_producers_and_of_nobody_else_s7_14() {
    let name = unique("hr");
    let mut stack = taking_only_from(&name, "").await;
    let hr = User::new(&stack, name).await;
    let shop = User::new(&stack, unique("shop")).await;
    let event = |id: &str| stack.plain(EVENT, id, &json!({ "do": "apply", "n": 1 }));

    hr.send(event("proven")).await;
    assert_eq!(stack.outcome("proven").await, "applied");
    hr.send_as(None, event("nameless")).await.unwrap();
    assert_eq!(stack.death("nameless").await, dead_of("unproven_producer"));
    shop.send(event("other")).await;
    assert_eq!(stack.death("other").await, dead_of("unlisted_producer"));
    let refused = shop.send_as(Some(&hr.name), event("false-name")).await.unwrap_err().to_string();
    assert!(refused.contains("user_id") && refused.contains("broker.url"), "the broker checks it: {refused}");

    // Whoever may write into the queue forges a retry or a replay in vain.
    let origin =
        [("onceflow-original-exchange", json!("onceflow.in")), ("onceflow-original-routing-key", json!(EVENT))];
    let retry = [&origin[..], &[("onceflow-attempt", json!(1))]].concat();
    shop.send_as(None, forged(&stack, "retry", &retry)).await.unwrap();
    assert_eq!(stack.death("retry").await, dead_of("unproven_producer"));
    let replayed = [&origin[..], &[("onceflow-replay-id", json!(Uuid::now_v7().to_string()))]].concat();
    shop.send(forged(&stack, "replay", &replayed)).await;
    assert_eq!(stack.death("replay").await, dead_of("unlisted_producer"));
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.probe_ledger").await, 1);
    hr.remove(&stack).await;
    shop.remove(&stack).await;
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_and_replays_of_our_own_pass_where_only_listed_producers_are_taken_s7_14() {
    let mut stack = taking_only_from("nobody", "").await;
    // The test publishes as the service's own user, whose name stands on everything that it sends.
    assert!(stack.config.broker.signs_as.is_some());
    stack.publish(EVENT, "again", &json!({ "do": "retry", "n": 1 })).await;
    assert_eq!(stack.death("again").await, ("exhausted".to_owned(), "asked_for".to_owned()));
    assert_eq!(stack.count("SELECT max(attempts)::bigint FROM onceflow.dead_letter").await, 3);

    let nameless = Settings { signs_as: None, ..stack.config.broker.clone() };
    let event = stack.plain(EVENT, "once", &json!({ "do": "apply", "n": 2 }));
    publish_once(&nameless, &[event]).await.unwrap();
    assert_eq!(stack.death("once").await, dead_of("unproven_producer"));
    // An operator who knows better lets it in: the replay is ours.
    replay(&stack, "once").await;
    assert_eq!(stack.outcome("once").await, "applied");
    stack.until_count("SELECT count(*) FROM onceflow.dead_letter WHERE event_id = 'once' AND state = 'open'", 0).await;
    // What was published downstream is ours too.
    assert_eq!(stack.downstream().await.last().unwrap().user_id, stack.config.broker.signs_as);
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_of_an_unlisted_producer_blocks_no_key_of_a_strict_consumer_s7_14() {
    let mut stack = taking_only_from("nobody", "ordering = \"strict\"\n").await;
    let nameless = Settings { signs_as: None, ..stack.config.broker.clone() };
    publish_once(&nameless, &[stack.keyed(EVENT, "forged", "user/42", &json!({ "do": "apply" }))]).await.unwrap();
    assert_eq!(stack.death("forged").await, dead_of("unproven_producer"));
    stack.publish_all(vec![stack.keyed(EVENT, "genuine", "user/42", &json!({ "do": "apply", "n": 1 }))]).await;
    assert_eq!(stack.outcome("genuine").await, "applied");
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.blocked_key").await, 0);
    stack.stop().await;
}

//! A queue that is slow to answer whoever wants to consume, as one that has lost its majority: on a broker of the test's own.

use std::sync::Arc;
use std::time::Duration;

use onceflow::broker::{
    Fate, Intake, Link, Outgoing, Publisher, Purpose, QueueKind, QueueSpec, Resize, Settings, Subscription, Topology,
};
use onceflow::dev::servers::{Options, Servers};
use onceflow::health::Health;
use onceflow::message::{Message, Route};
use onceflow::tls::Tls;
use tokio_util::sync::CancellationToken;

use crate::harness::{SOON, project};

const QUEUE: &str = "slow";
/// Fewer than a consumer takes at first.
const COUNT: usize = 10;

fn link(url: String) -> Arc<Link> {
    let settings = Settings {
        url: url.into(),
        allow_plaintext: false,
        heartbeat: Duration::from_secs(10),
        tls: Tls::default(),
        name: "consuming".to_owned(),
        declare: true,
        signs_as: None,
    };
    Arc::new(Link::new(settings, Purpose::Consume, Arc::new(Health::default())))
}

async fn publish(link: &Arc<Link>, stop: &CancellationToken) {
    let queue = QueueSpec {
        name: QUEUE.to_owned(),
        kind: QueueKind::Quorum,
        ttl: None,
        dead_letter_to: None,
        delivery_limit: 1_000_000,
        single_active_consumer: false,
    };
    let publisher = Publisher::new(link.clone(), Topology { queues: vec![queue], ..Topology::default() });
    let message = |n: usize| Outgoing {
        route: Route { exchange: String::new(), routing_key: QUEUE.to_owned() },
        message: Message { message_id: Some(n.to_string()), body: "x".into(), ..Message::default() },
    };
    let fates = publisher.publish((0..COUNT).map(message).collect(), stop).await.unwrap();
    assert_eq!(fates, vec![Fate::Confirmed; COUNT]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i7_a_consumer_that_starts_after_nobody_waits_for_it_keeps_no_message_for_itself_b4() {
    let project = project();
    let options = Options { name: "own", postgres: false, rabbitmq: true, fresh_broker: false };
    let servers = Servers::start(project.path(), options, &|_| {}).await.unwrap();
    let broker = servers.rabbitmq.as_ref().unwrap();
    let (link, stop) = (link(broker.amqp_url()), CancellationToken::new());
    publish(&link, &stop).await;
    let open = async || {
        let intake = Intake::new(100, 1024 * 1024, Resize::Allowed);
        Subscription::open(&link, &Topology::default(), QUEUE, &intake, &stop).await
    };

    // The process of the queue, which has its name.
    let tell = |what: &str| format!("sys:{what}(list_to_atom(\"%2F_{QUEUE}\")).");
    broker.ctl(&["eval", &tell("suspend")]).await.unwrap();
    let silent = open().await.unwrap_err();
    assert!(silent.to_string().contains("consume: no answer"), "{silent}");
    broker.ctl(&["eval", &tell("resume")]).await.unwrap();

    let mut subscription = open().await.unwrap().unwrap();
    for _ in 0..COUNT {
        let delivery = tokio::time::timeout(SOON, subscription.next()).await;
        let delivery = delivery.expect("another consumer has the messages, and nobody reads them").unwrap();
        assert!(delivery.ack().await.unwrap());
    }
    subscription.close().await;
    link.close().await;
    servers.stop().await.unwrap();
}

//! What becomes of each message of a batch, although the client attaches returned messages to the wrong confirms.

use onceflow::broker::{Fate, Intake, Outgoing, Publisher, QueueKind, QueueSpec, Resize, Subscription, Topology};
use onceflow::message::{Message, Route};
use tokio_util::sync::CancellationToken;

use crate::harness::{SOON, Stack, Wishes};

const QUEUE: &str = "there";
/// Several bursts.
const COUNT: usize = 300;

/// Every third goes to a queue that nobody declared.
fn is_lost(n: usize) -> bool {
    n % 3 == 1
}

fn message(n: usize) -> Outgoing {
    let routing_key = if is_lost(n) { "nowhere" } else { QUEUE }.to_owned();
    Outgoing {
        route: Route { exchange: String::new(), routing_key },
        message: Message { message_id: Some(n.to_string()), body: "x".into(), ..Message::default() },
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i4_each_message_of_a_large_batch_gets_its_own_fate_and_the_order_is_kept() {
    for kind in [QueueKind::Classic, QueueKind::Quorum] {
        let stack = Stack::prepare(&[], Wishes::default()).await;
        let queue = QueueSpec {
            name: QUEUE.to_owned(),
            kind,
            ttl: None,
            dead_letter_to: None,
            delivery_limit: 1_000_000,
            single_active_consumer: false,
        };
        let topology = Topology { queues: vec![queue], ..Topology::default() };
        let publisher = Publisher::new(stack.link.clone(), topology.clone());
        let stop = CancellationToken::new();
        let fates = publisher.publish((0..COUNT).map(message).collect(), &stop).await.unwrap();

        assert_eq!(fates.len(), COUNT);
        for (n, fate) in fates.iter().enumerate() {
            assert_eq!(matches!(fate, Fate::Returned(why) if why.contains("nowhere")), is_lost(n), "{n}: {fate:?}");
            assert_eq!(*fate == Fate::Confirmed, !is_lost(n), "{n}: {fate:?}");
        }
        let intake = Intake::new(1_000, 64 * 1024 * 1024, Resize::Fixed);
        let opened = Subscription::open(&stack.link, &Topology::default(), QUEUE, &intake, &stop).await;
        let mut subscription = opened.unwrap().unwrap();
        for n in (0..COUNT).filter(|n| !is_lost(*n)) {
            let delivery = tokio::time::timeout(SOON, subscription.next()).await.unwrap().unwrap();
            assert_eq!(delivery.message.message_id, Some(n.to_string()));
            assert!(delivery.ack().await.unwrap());
        }
        subscription.close().await;
    }
}

//! Who is slow holds up nobody else: not another consumer, not the relay, not other keys and tenants.

use onceflow::broker::Outgoing;
use onceflow::domains;
use onceflow::runtime::{AnyConsumer, erase};
use serde_json::json;

use crate::harness::probe::EVENT;
use crate::harness::{Probe, SOON, Stack, Wishes, eventually};

const APPLIED: &str = "SELECT count(*) FROM onceflow.inbox WHERE outcome = 'applied' AND consumer = ";

/// A service whose handlers may take as long as they like, with a probe and perhaps others.
async fn stack(others: fn() -> Vec<Box<dyn AnyConsumer>>, lanes: usize) -> (Stack, Probe) {
    let probe = Probe::new();
    let consumers = || -> Vec<Box<dyn AnyConsumer>> {
        let mut all = others();
        all.push(erase(probe.clone()));
        all
    };
    let settings = format!("[runtime]\nhandler_timeout = \"10m\"\ndrain_within = \"1s\"\nlanes = {lanes}");
    let mut stack = Stack::prepare(&consumers(), Wishes { settings, ..Wishes::default() }).await;
    Probe::create_ledger(&stack.client).await;
    stack.run(consumers()).await;
    (stack, probe)
}

/// Waits until so many handlers hang inside their transactions.
async fn until_handlers_wait(stack: &Stack, expected: i64) {
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND state = 'idle in transaction'";
    eventually(SOON, || async { (stack.count(waiting).await >= expected).then_some(()) }).await;
}

fn of_tenant(mut outgoing: Outgoing, tenant: &str) -> Outgoing {
    outgoing.message.headers.insert("cloudEvents:tenant".to_owned(), tenant.into());
    outgoing
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_whose_handlers_hang_holds_up_neither_another_consumer_nor_the_relay() {
    const HELD: i64 = 300;
    let (stack, probe) = stack(domains::consumers, 2).await;
    let held = (0..HELD).map(|n| stack.plain(EVENT, &format!("held{n}"), &json!({"do": "wait", "n": n}))).collect();
    stack.publish_all(held).await;
    until_handlers_wait(&stack, 2).await;
    let user = |n: i64| {
        let body = json!({"directory": "d", "id": format!("u{n}"), "version": "1", "name": "Example Person"});
        stack.plain("org.user.upserted.v1", &format!("e{n}"), &body)
    };
    stack.publish_all((0..200).map(user).collect()).await;
    stack.until_count(&format!("{APPLIED} 'org'"), 200).await;
    assert_eq!(stack.downstream().await.len(), 200, "the relay has published them");
    assert_eq!(stack.count(&format!("{APPLIED} 'probe'")).await, 0, "and the probe's handlers still hang");
    probe.gate.add_permits(usize::try_from(HELD).unwrap());
    stack.until_count(&format!("{APPLIED} 'probe'"), HELD).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_key_with_a_backlog_that_hangs_leaves_the_events_of_other_keys_and_tenants_flowing() {
    const HOT: i64 = 600;
    const OTHERS: i64 = 400;
    let (stack, probe) = stack(Vec::new, 4).await;
    let hot = |n: i64| {
        let what = if n == 0 { "wait" } else { "apply" };
        of_tenant(stack.keyed(EVENT, &format!("hot{n}"), "hot", &json!({"do": what, "n": n})), "busy")
    };
    stack.publish_all((0..HOT).map(hot).collect()).await;
    until_handlers_wait(&stack, 1).await;
    let other = |n: i64| {
        let event = stack.keyed(EVENT, &format!("other{n}"), &format!("k{n}"), &json!({"do": "apply", "n": n}));
        of_tenant(event, &format!("t{}", n % 10))
    };
    stack.publish_all((0..OTHERS).map(other).collect()).await;
    // One lane of four hangs, and with it the keys that share it: about three quarters go on, of every tenant.
    let flowing = "SELECT count(*) FROM onceflow.inbox WHERE tenant <> 'busy'";
    eventually(SOON, || async { (stack.count(flowing).await >= OTHERS / 2).then_some(()) }).await;
    let tenants = "SELECT count(DISTINCT tenant) FROM onceflow.inbox WHERE tenant <> 'busy'";
    assert_eq!(stack.count(tenants).await, 10);
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.inbox WHERE tenant = 'busy'").await, 0);
    probe.gate.add_permits(1);
    stack.until_count(&format!("{APPLIED} 'probe'"), HOT + OTHERS).await;
    let backwards = "SELECT count(*) FROM onceflow.probe_ledger a JOIN onceflow.probe_ledger b
                     ON a.key = b.key AND a.seq < b.seq AND a.n > b.n";
    assert_eq!(stack.count(backwards).await, 0);
}

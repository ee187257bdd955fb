//! Killed at random and at each step, with two replicas: nothing is lost, nothing is applied twice, the order holds.

use std::collections::BTreeSet;
use std::process::Stdio;

use onceflow::domains;
use serde_json::json;
use tokio::process::Command;

use super::{HELD, OPEN, discard_all, nothing_waits};
use crate::harness::service::Service;
use crate::harness::{SOON, Stack, Wishes, eventually};

const TYPE: &str = "org.user.upserted.v1";
const VERSIONS: i64 = 20;

/// One broken event of a key, then versions of one user of it: an older one after a newer one would be stale.
async fn strict_org(settings: &str) -> Stack {
    let settings = format!("{settings}[consumers.org]\nordering = \"strict\"\npartitions = 2\n");
    let stack = Stack::prepare(&domains::consumers(), Wishes { settings, ..Wishes::default() }).await;
    // It lays out the partitions; published before that, events would reach no queue.
    let mut check = Command::new(env!("CARGO_BIN_EXE_onceflow"));
    check.arg("check").arg("--config").arg(stack.config_file()).stdin(Stdio::null());
    let checked = check.output().await.unwrap();
    assert!(String::from_utf8_lossy(&checked.stdout).contains("org is strict"), "{checked:?}");
    let bad = stack.keyed(TYPE, "bad", "user/1", &json!({"directory": "d"}));
    let user =
        |n: i64| json!({"directory": "d", "id": "u1", "version": n.to_string(), "name": format!("Example Person {n}")});
    let versions = (1..=VERSIONS).map(|n| stack.keyed(TYPE, &format!("v{n}"), "user/1", &user(n)));
    stack.publish_all(std::iter::once(bad).chain(versions).collect()).await;
    stack
}

async fn all_versions_in_order_and_once(stack: &Stack) {
    stack.until_count("SELECT count(*) FROM onceflow.inbox WHERE outcome = 'applied'", VERSIONS).await;
    nothing_waits(stack).await;
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.inbox").await, VERSIONS, "none was stale");
    assert_eq!(stack.count("SELECT version FROM onceflow.org_user").await, VERSIONS);
    let downstream = stack.downstream().await;
    let ids: BTreeSet<_> = downstream.iter().filter_map(|message| message.message_id.as_deref()).collect();
    assert_eq!(i64::try_from(ids.len()).unwrap(), VERSIONS, "each was applied once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i1_i5_strict_random_kills_of_two_replicas_lose_nothing_and_keep_the_order() {
    let stack = strict_org("").await;
    let mut services = [Service::start(stack.config_file(), ""), Service::start(stack.config_file(), "")];
    let held = || async { (stack.count(HELD).await >= VERSIONS / 2).then_some(()) };
    eventually(SOON, held).await;
    for n in [0, 1] {
        std::mem::replace(&mut services[n], Service::start(stack.config_file(), "")).kill().await;
    }
    stack.until_count(HELD, VERSIONS).await;
    assert_eq!(stack.count("SELECT count(*) FROM onceflow.inbox").await, 0);
    discard_all(&stack).await;
    for round in 1..=4 {
        let at = VERSIONS * round / 6;
        let so_many = || async { (stack.count("SELECT count(*) FROM onceflow.inbox").await >= at).then_some(()) };
        eventually(SOON, so_many).await;
        let n = usize::try_from(round % 2).unwrap();
        std::mem::replace(&mut services[n], Service::start(stack.config_file(), "")).kill().await;
    }
    all_versions_in_order_and_once(&stack).await;
    for service in services {
        service.kill().await;
    }
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i1_i5_strict_death_at_each_step_of_waiting_and_letting_go_keeps_the_order() {
    let stack = strict_org("").await;
    for point in ["after_block", "after_dead_letter", "after_hold"] {
        Service::start(stack.config_file(), &format!("{point}=return")).died(SOON).await;
    }
    let service = Service::start(stack.config_file(), "");
    stack.until_count(HELD, VERSIONS).await;
    assert_eq!(stack.count(OPEN).await, 1);
    service.kill().await;
    discard_all(&stack).await;
    for point in ["before_begin", "after_claim", "before_commit", "after_commit", "before_ack"] {
        Service::start(stack.config_file(), &format!("{point}=return")).died(SOON).await;
    }
    let service = Service::start(stack.config_file(), "");
    all_versions_in_order_and_once(&stack).await;
    service.kill().await;
}

//! Login to the broker by certificate instead of a password (SASL EXTERNAL), on a real node.

use std::fs;

use onceflow::config;
use onceflow::dev::servers::{Options, RabbitMq, Servers};
use onceflow::runtime::{AnyConsumer, erase};
use serde_json::json;

use super::authority::{Authority, Pair};
use super::tls::{SecureBroker, at, knock, showing, trusting};
use crate::harness::probe::EVENT;
use crate::harness::{Probe, Stack, Wishes, project};

const USER: &str = "onceflow-run";
const NEXT: &str = "onceflow-next";
/// A login is a certificate and nothing else; the name in it is the user's.
const BY_CERTIFICATE: &str = "auth_mechanisms.1 = EXTERNAL\nssl_cert_login_from = common_name\n";

/// A user that no password lets in.
async fn add_user(broker: &RabbitMq, name: &str) {
    broker.ctl(&["add_user", name, "is-cleared-at-once"]).await.unwrap();
    broker.ctl(&["clear_password", name]).await.unwrap();
    broker.ctl(&["set_permissions", "-p", "/", name, ".*", ".*", ".*"]).await.unwrap();
}

/// Without a user and a password.
fn by_certificate(secure: &SecureBroker) -> String {
    let port = url::Url::parse(&secure.url).unwrap().port().unwrap();
    format!("amqps://localhost:{port}/%2f?auth_mechanism=external")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_logs_in_to_the_broker_by_its_certificate_and_has_no_password_s7_1() {
    let project = project();
    let options = Options { postgres: false, ..Options::both("login") };
    let mut servers = Servers::start(project.path(), options, &|_| {}).await.unwrap();
    let authority = Authority::new();
    let broker = servers.rabbitmq.as_mut().unwrap();
    broker.enable("rabbitmq_auth_mechanism_ssl");
    let secure = SecureBroker::turn_on(broker, &authority, BY_CERTIFICATE).await;
    let broker = servers.rabbitmq.as_ref().unwrap();
    add_user(broker, USER).await;
    let url = by_certificate(&secure);
    let shown = authority.user(USER);
    let Pair { certificate, key } = &shown;

    let wishes = Wishes {
        amqp_url: Some(url.clone()),
        broker: format!("ca_file = {:?}\ncertificate_file = {certificate:?}\nkey_file = {key:?}", authority.file()),
        ..Wishes::default()
    };
    let consumers = || -> Vec<Box<dyn AnyConsumer>> { vec![erase(Probe::new())] };
    let mut stack = Stack::prepare(&consumers(), wishes).await;
    Probe::create_ledger(&stack.client).await;
    stack.run(consumers()).await;
    stack.publish(EVENT, "1", &json!({"do": "apply", "n": 1})).await;
    assert_eq!(stack.outcome("1").await, "applied");
    let listed = broker.ctl(&["list_connections", "user", "auth_mechanism", "ssl"]).await.unwrap();
    let logins: Vec<&str> = listed.lines().filter(|line| line.contains(USER)).collect();
    let expected = format!("{USER}\tEXTERNAL\ttrue");
    assert!(logins.len() >= 2 && logins.iter().all(|line| **line == expected), "{listed}");
    a_renewed_certificate_is_shown_at_the_next_connection(&mut stack, (broker, &authority), &shown).await;
    stack.stop().await;

    others_are_refused(&url, &secure, &authority).await;
    servers.stop().await.unwrap();
}

/// Here of another user, so that it shows which one was used; with the old user the broker ends its connections.
async fn a_renewed_certificate_is_shown_at_the_next_connection(
    stack: &mut Stack,
    (broker, authority): (&RabbitMq, &Authority),
    shown: &Pair,
) {
    add_user(broker, NEXT).await;
    let next = authority.user(NEXT);
    fs::copy(&next.certificate, &shown.certificate).unwrap();
    fs::copy(&next.key, &shown.key).unwrap();
    let read = config::load(Some(stack.config_file()), &["probe"]).unwrap();
    let renewed = stack.config.renewed(&read);
    assert!(renewed.waits.is_empty(), "{:?}", renewed.waits);
    stack.app.as_ref().unwrap().renew(&stack.config, &renewed.config).await.unwrap();
    stack.config = renewed.config;
    broker.ctl(&["delete_user", USER]).await.unwrap();
    stack.publish(EVENT, "2", &json!({"do": "apply", "n": 2})).await;
    assert_eq!(stack.outcome("2").await, "applied");
    let listed = broker.ctl(&["list_connections", "user"]).await.unwrap();
    assert!(listed.contains(NEXT) && !listed.contains(USER), "{listed}");
}

async fn others_are_refused(url: &str, secure: &SecureBroker, authority: &Authority) {
    let unknown = knock(url, &showing(authority, &authority.user("nobody"))).await.unwrap_err();
    assert!(unknown.contains("refuses the login") && unknown.contains("no such user"), "{unknown}");
    let without = knock(url, &trusting(authority)).await.unwrap_err();
    assert!(without.contains("set certificate_file and key_file"), "{without}");
    // A certificate of somebody else's authority does not even end the handshake.
    let stranger = Authority::new();
    knock(url, &showing(authority, &stranger.user(USER))).await.unwrap_err();
    let password = knock(&at(&secure.url, "localhost"), &showing(authority, &authority.user(NEXT))).await.unwrap_err();
    assert!(password.contains("add ?auth_mechanism=external"), "a password is no way in: {password}");
}

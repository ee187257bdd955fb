//! TLS to real servers whose certificates the test chooses. The right host is `localhost`, the wrong one `127.0.0.1`: the same server.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use onceflow::broker::{self, publish_once};
use onceflow::db::{self, Class, Pool};
use onceflow::dev::servers::{Options, RabbitMq, Servers};
use onceflow::runtime::{AnyConsumer, erase};
use onceflow::tls::{Identity, Tls};
use serde_json::json;
use tokio_postgres::Client;

use super::authority::{Authority, Pair};
use crate::harness::{Probe, SOON, Stack, Wishes, connect, eventually, pool, probe::EVENT, project};

const OURS: &str = "onceflow tls";

pub(super) fn trusting(authority: &Authority) -> Tls {
    Tls::new(Some(&fs::read_to_string(authority.file()).unwrap()), None).unwrap()
}

pub(super) fn showing(authority: &Authority, pair: &Pair) -> Tls {
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    let (certificate, key) = (read(&pair.certificate), read(&pair.key));
    Tls::new(Some(&read(&authority.file())), Some(Identity { certificate: &certificate, key: &key })).unwrap()
}

pub(super) fn at(url: &str, host: &str) -> String {
    url.replace("127.0.0.1", host)
}

/// Whether the session is encrypted, or why there is none.
async fn ask(url: &str, tls: &Tls) -> Result<bool, String> {
    let settings = db::Settings {
        url: url.into(),
        max_connections: 1,
        statement_timeout: Duration::from_secs(20),
        allow_plaintext: false,
        tls: tls.clone(),
        application_name: OURS.to_owned(),
        rows_are_short_lived: false,
    };
    let pool = Pool::new(&settings).map_err(|e| e.to_string())?;
    let tx = pool.begin().await.map_err(|error| {
        // A server that can't be trusted is a server that is away: nobody's attempts are spent on it (I-7).
        assert_eq!(error.class(), Class::Outage, "{error}");
        error.to_string()
    })?;
    let ssl = tx.query_one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).await.unwrap().get(0);
    tx.rollback().await;
    Ok(ssl)
}

/// Writes a file of the server's own, readable by nobody else, as it wants its key.
async fn write(client: &Client, name: &str, text: &str) {
    let rows: Vec<_> = text.lines().map(|line| format!("('{line}')")).collect();
    let copy = format!("COPY (VALUES {}) TO PROGRAM 'umask 077; cat > {name}'", rows.join(", "));
    client.batch_execute(&copy).await.unwrap();
}

async fn show(client: &Client, pair: &Pair) {
    write(client, "server.crt", &fs::read_to_string(&pair.certificate).unwrap()).await;
    write(client, "server.key", &fs::read_to_string(&pair.key).unwrap()).await;
    client.batch_execute("ALTER SYSTEM SET ssl = on").await.unwrap();
    reload(client).await;
}

/// How clients prove who they are; the plain line is for the test's own sessions.
async fn authenticate(client: &Client, with_tls: &str) {
    let lines = format!("hostssl all all 127.0.0.1/32 {with_tls}\nhost all all 127.0.0.1/32 scram-sha-256\n");
    write(client, "pg_hba.conf", &lines).await;
    reload(client).await;
}

/// New sessions follow a little later.
async fn reload(client: &Client) {
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
}

/// Waits until asking ends in these words.
async fn until_refused(url: &str, tls: &Tls, words: &str) -> String {
    let look = || async { ask(url, tls).await.err().filter(|told| told.contains(words)) };
    eventually(Duration::from_secs(20), look).await
}

async fn until_encrypted(url: &str, tls: &Tls) {
    let look = || async { (ask(url, tls).await == Ok(true)).then_some(()) };
    eventually(Duration::from_secs(20), look).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_is_believed_only_by_our_authority_under_its_name_and_within_its_dates_n12_s7_2() {
    let project = project();
    let options = Options { rabbitmq: false, ..Options::both("tls-database") };
    let servers = Servers::start(project.path(), options, &|_| {}).await.unwrap();
    let url = servers.database_url().unwrap();
    let (right, port) = (at(&url, "localhost"), servers.postgres.as_ref().unwrap().port());
    let (authority, stranger) = (Authority::new(), Authority::new());
    let ours = trusting(&authority);
    let admin = connect(&url).await;

    let told = ask(&right, &ours).await.unwrap_err();
    assert!(told.contains(&format!("localhost:{port} has no TLS")) && told.contains("ssl = on"), "{told}");
    let told = ask(&format!("{right}?sslmode=disable"), &ours).await.unwrap_err();
    assert!(told.contains("refusing plaintext to localhost"), "{told}");

    authenticate(&admin, "password").await;
    show(&admin, &authority.server("localhost")).await;
    let told = until_refused(&right, &ours, "channel_binding=prefer").await;
    assert!(told.contains(&format!("localhost:{port} does not prove")), "{told}");
    assert_eq!(ask(&format!("{right}?channel_binding=prefer"), &ours).await, Ok(true));

    authenticate(&admin, "scram-sha-256").await;
    until_encrypted(&right, &ours).await;
    assert_eq!(ask(&format!("{right}?sslmode=prefer"), &ours).await, Ok(true));
    let told = ask(&url, &ours).await.unwrap_err();
    assert!(told.contains(&format!("127.0.0.1:{port} is not trusted: its certificate is for another host")), "{told}");
    let told = ask(&right, &trusting(&stranger)).await.unwrap_err();
    assert!(told.contains(&format!("localhost:{port} is not trusted")) && told.contains("set ca_file"), "{told}");

    write(&admin, "root.crt", &fs::read_to_string(authority.file()).unwrap()).await;
    admin.batch_execute("ALTER SYSTEM SET ssl_ca_file = 'root.crt'").await.unwrap();
    authenticate(&admin, "scram-sha-256 clientcert=verify-ca").await;
    until_refused(&right, &ours, "valid client certificate").await;
    assert_eq!(ask(&right, &showing(&authority, &authority.client())).await, Ok(true));

    show(&admin, &authority.ended("localhost")).await;
    let told = until_refused(&right, &ours, "has expired").await;
    assert!(told.contains(&format!("localhost:{port}")), "{told}");
    let plain =
        "SELECT count(*) FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) WHERE application_name = $1 AND NOT ssl";
    assert_eq!(admin.query_one(plain, &[&OURS]).await.unwrap().get::<_, i64>(0), 0);
    servers.stop().await.unwrap();
}

/// A broker with a TLS port. It reads its certificate from files that the test may change.
pub(super) struct SecureBroker {
    pub(super) url: String,
    shown: Pair,
}

impl SecureBroker {
    pub(super) async fn turn_on(broker: &mut RabbitMq, authority: &Authority, more: &str) -> Self {
        let shown = authority.server("localhost");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        // A certificate of ours is checked where we show one.
        broker.configure(&format!(
            "listeners.ssl.default = 127.0.0.1:{port}\nssl_options.cacertfile = {}\nssl_options.certfile = {}\n\
             ssl_options.keyfile = {}\nssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = false\n{more}",
            authority.file().display(),
            shown.certificate.display(),
            shown.key.display(),
        ));
        broker.stop().await.unwrap();
        broker.start().await.unwrap();
        let mut url = url::Url::parse(&broker.amqp_url().replace("amqp:", "amqps:")).unwrap();
        url.set_port(Some(port)).unwrap();
        Self { url: url.into(), shown }
    }

    async fn change(&self, broker: &RabbitMq, pair: &Pair) {
        fs::copy(&pair.certificate, &self.shown.certificate).unwrap();
        fs::copy(&pair.key, &self.shown.key).unwrap();
        broker.ctl(&["eval", "ssl:clear_pem_cache()."]).await.unwrap();
    }
}

/// Opens a channel, or says why not.
pub(super) async fn knock(url: &str, tls: &Tls) -> Result<(), String> {
    let (heartbeat, name) = (Duration::from_secs(10), OURS.to_owned());
    let tls = tls.clone();
    let settings = broker::Settings {
        url: url.into(),
        allow_plaintext: false,
        heartbeat,
        tls,
        name,
        declare: true,
        signs_as: None,
    };
    publish_once(&settings, &[]).await.map_err(|e| e.to_string())
}

async fn the_broker_is_believed_only_as_it_should(broker: &RabbitMq, secure: &SecureBroker, authority: &Authority) {
    let (right, ours) = (at(&secure.url, "localhost"), trusting(authority));
    let place = |host: &str| format!("{host}:{}", url::Url::parse(&secure.url).unwrap().port().unwrap());
    assert_eq!(knock(&right, &ours).await, Ok(()));
    let told = knock(&secure.url, &ours).await.unwrap_err();
    let expected = format!("{} is not trusted: its certificate is for another host", place("127.0.0.1"));
    assert!(told.contains(&expected), "{told}");
    let stranger = Authority::new();
    let told = knock(&right, &trusting(&stranger)).await.unwrap_err();
    assert!(told.contains(&place("localhost")) && told.contains("set ca_file"), "{told}");
    let told = knock(&at(&broker.amqp_url(), "localhost"), &ours).await.unwrap_err();
    assert!(told.contains("use amqps://"), "an authority is for TLS: {told}");
    let told = knock(&at(&broker.amqp_url(), "localhost").replace("amqp:", "amqps:"), &ours).await.unwrap_err();
    assert!(told.contains("the TLS handshake failed"), "a port without TLS: {told}");
    assert_eq!(knock(&right, &showing(authority, &authority.client())).await, Ok(()));
    knock(&right, &showing(authority, &stranger.client())).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_connection_of_a_service_is_encrypted_to_servers_that_are_believed_n12_s7_1_s7_2() {
    let project = project();
    let mut servers = Servers::start(project.path(), Options::both("tls-both"), &|_| {}).await.unwrap();
    let authority = Authority::new();
    let url = servers.database_url().unwrap();
    let admin = connect(&url).await;
    authenticate(&admin, "scram-sha-256").await;
    show(&admin, &authority.server("localhost")).await;
    db::migrate(&pool(&url)).await.unwrap();
    let secure = SecureBroker::turn_on(servers.rabbitmq.as_mut().unwrap(), &authority, "").await;
    let broker = servers.rabbitmq.as_ref().unwrap();
    the_broker_is_believed_only_as_it_should(broker, &secure, &authority).await;

    let ca_file = format!("ca_file = {:?}", authority.file());
    let wishes = Wishes {
        amqp_url: Some(at(&secure.url, "localhost")),
        database_url: Some(at(&url, "localhost")),
        broker: ca_file.clone(),
        database: ca_file,
        ..Wishes::default()
    };
    let consumers = || -> Vec<Box<dyn AnyConsumer>> { vec![erase(Probe::new())] };
    let mut stack = Stack::prepare(&consumers(), wishes).await;
    Probe::create_ledger(&stack.client).await;
    stack.run(consumers()).await;
    stack.publish(EVENT, "1", &json!({"do": "apply", "n": 1})).await;
    assert_eq!(stack.outcome("1").await, "applied");
    let stack = Arc::new(stack);
    eventually(SOON, || async { sessions_are_encrypted(&stack).await }).await;
    let listed = broker.ctl(&["list_connections", "ssl", "name"]).await.unwrap();
    let connections: Vec<&str> = listed.lines().filter(|line| line.contains("->")).collect();
    assert!(connections.len() >= 3 && connections.iter().all(|line| line.starts_with("true")), "{listed}");

    secure.change(broker, &authority.ended("localhost")).await;
    let (right, ours) = (at(&secure.url, "localhost"), trusting(&authority));
    let expired = || async { knock(&right, &ours).await.err().filter(|told| told.contains("has expired")) };
    eventually(Duration::from_secs(20), expired).await;
    let mut stack = Arc::into_inner(stack).unwrap();
    stack.stop().await;
    servers.stop().await.unwrap();
}

/// Once the sessions of every part are there.
async fn sessions_are_encrypted(stack: &Stack) -> Option<()> {
    let sql = "SELECT DISTINCT application_name, ssl FROM pg_stat_activity JOIN pg_stat_ssl USING (pid)
               WHERE application_name LIKE 'onceflow %' ORDER BY 1";
    let rows = stack.client.query(sql, &[]).await.unwrap();
    let found: Vec<(String, bool)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert!(found.iter().all(|(_, ssl)| *ssl), "{found:?}");
    let parts = ["onceflow admin", "onceflow consumers", "onceflow listener", "onceflow relay"];
    parts.iter().all(|part| found.iter().any(|(name, _)| name == part)).then_some(())
}

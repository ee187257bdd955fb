//! The private servers themselves: each test boots its own, apart from those that the other tests share.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use onceflow::dev::servers::{Options, Servers};
use tokio_postgres::{Client, NoTls};

use crate::harness::{Database, Vhost, eventually, project, servers};

/// Guards give a server 20 s before they use force.
const GONE_WITHIN: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_survive_a_stop_and_taken_ports_are_passed_over() {
    let project = project();
    let first = start(project.path()).await;
    let (database_url, amqp_url) = (first.database_url().unwrap(), first.amqp_url().unwrap());
    let client = connect(&database_url).await;
    client.batch_execute("CREATE TABLE kept AS SELECT 7 AS n").await.unwrap();
    let directory = first.directory().to_owned();
    first.stop().await.unwrap();
    assert_eq!(processes_of(&directory), Vec::<String>::new(), "stop leaves no process");

    let taken: Vec<TcpListener> = [&database_url, &amqp_url].map(|url| take_port_of(url)).into();
    let second = start(project.path()).await;
    assert_ne!(second.database_url().unwrap(), database_url);
    assert_ne!(second.amqp_url().unwrap(), amqp_url);
    drop(taken);
    assert_eq!(kept(&second.database_url().unwrap()).await, 7, "the cluster is the same");
    second.stop().await.unwrap();
    assert_eq!(processes_of(&directory), Vec::<String>::new(), "stop leaves no process");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crashed_server_starts_again_on_its_port_with_its_data() {
    let project = project();
    let mut servers = start(project.path()).await;
    let (database_url, amqp_url) = (servers.database_url().unwrap(), servers.amqp_url().unwrap());
    let client = connect(&database_url).await;
    client.batch_execute("CREATE TABLE kept AS SELECT 8 AS n").await.unwrap();

    let postgres = servers.postgres.as_mut().unwrap();
    postgres.restart_immediate().await.unwrap();
    assert_eq!(kept(&database_url).await, 8);

    let rabbitmq = servers.rabbitmq.as_mut().unwrap();
    rabbitmq.ctl(&["add_vhost", "kept"]).await.unwrap();
    rabbitmq.kill().await.unwrap();
    rabbitmq.start().await.unwrap();
    assert_eq!(rabbitmq.amqp_url(), amqp_url);
    assert!(rabbitmq.ctl(&["list_vhosts"]).await.unwrap().contains("kept"));
    servers.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_process_is_left_when_the_parent_is_killed_or_its_input_ends() {
    let project = project();
    let directory = fs::canonicalize(project.path()).unwrap().join(".onceflow/test");
    let mut killed = spawn_servers_only(project.path());
    assert!(!processes_of(&directory).is_empty());
    killed.kill().unwrap();
    killed.wait().unwrap();
    eventually(GONE_WITHIN, || async { processes_of(&directory).is_empty().then_some(()) }).await;

    let mut ended = spawn_servers_only(project.path());
    drop(ended.stdin.take());
    assert!(ended.wait().unwrap().success());
    assert_eq!(processes_of(&directory), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_whose_guards_were_killed_too_are_stopped_by_the_next_start() {
    let project = project();
    let options = Options { name: "alone", postgres: true, rabbitmq: false, fresh_broker: false };
    let first = Servers::start(project.path(), options, &quiet).await.unwrap();
    let directory = first.directory().to_owned();
    let orphan = fs::read_to_string(directory.join("postgres.pid")).unwrap();
    let orphan: u32 = orphan.split(' ').next().unwrap().parse().unwrap();
    let guard = parent_of(orphan);
    // The guard and its shell that reads our orders.
    for process in [vec![guard], children_of(guard)].concat().into_iter().filter(|&process| process != orphan) {
        let script = ["-c", "kill -s KILL \"$1\"", "sh"];
        assert!(Command::new("sh").args(script).arg(process.to_string()).status().unwrap().success());
    }
    drop(first);
    let second = Servers::start(project.path(), options, &quiet).await.unwrap();
    let left = fs::read(format!("/proc/{orphan}/cmdline")).unwrap_or_default();
    assert!(left.is_empty(), "it is gone, or only waits to be reaped: {}", String::from_utf8_lossy(&left));
    second.stop().await.unwrap();
    assert_eq!(processes_of(&directory), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tests_get_migrated_databases_and_virtual_hosts_of_their_own() {
    let (one, other) = (Database::new().await, Database::new().await);
    let client = one.client().await;
    assert_ne!(one.url(), other.url());
    let tables = "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'onceflow'";
    assert!(client.query_one(tables, &[]).await.unwrap().get::<_, i64>(0) > 0);
    let vhost = Vhost::new().await;
    let found = vhost.request(reqwest::Method::GET, &format!("/api/vhosts/{}", vhost.name()), ().into()).await;
    assert!(found.contains(vhost.name()));
    assert!(vhost.url().ends_with(vhost.name()));
    assert!(vhost.url().starts_with("amqp://") && servers().await.management_url.starts_with("http://"));
}

async fn start(project: &Path) -> Servers {
    Servers::start(project, Options::both("own"), &quiet).await.unwrap()
}

fn quiet(_: &str) {}

fn spawn_servers_only(project: &Path) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_onceflow"))
        .args(["dev", "--servers-only"])
        .current_dir(project)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("amqp_url"), "{line}");
    child
}

fn parent_of(process: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("PPid:")).map_or(0, |parent| parent.trim().parse().unwrap())
}

fn children_of(process: u32) -> Vec<u32> {
    let names = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name());
    let processes = names.filter_map(|name| name.to_str()?.parse().ok());
    processes.filter(|&other| parent_of(other) == process).collect()
}

/// Every process that names the directory in its arguments, its environment or as its working directory.
fn processes_of(directory: &Path) -> Vec<String> {
    let mark = directory.to_str().unwrap();
    let is_ours = |process: &Path| {
        let named = ["cmdline", "environ"].iter().any(|file| {
            let text = fs::read(process.join(file)).unwrap_or_default();
            String::from_utf8_lossy(&text).contains(mark)
        });
        named || fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(directory))
    };
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let ours = processes.filter(|process| process.join("cmdline").is_file() && is_ours(process));
    ours.map(|process| fs::read_to_string(process.join("status")).unwrap_or_default()).collect()
}

fn take_port_of(url: &str) -> TcpListener {
    let port = url::Url::parse(url).unwrap().port().unwrap();
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap()
}

async fn kept(database_url: &str) -> i32 {
    connect(database_url).await.query_one("SELECT n FROM kept", &[]).await.unwrap().get(0)
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

//! How the service is run (§7.20): what is shipped takes away what it does not need, and it tells systemd how it does.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use onceflow::domains;
use tokio::net::UnixDatagram;

use crate::harness::service::{Service, free_port, until_ready};
use crate::harness::{SOON, Stack, Wishes};

fn shipped(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)).unwrap()
}

/// Nothing but what the unit says counts: `systemd-analyze` asks no running systemd.
fn analyze(arguments: &[&str]) -> Option<(bool, String)> {
    let output = Command::new("systemd-analyze").args(arguments).output().ok()?;
    let told = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&told).into_owned()))
}

#[test]
fn the_unit_takes_away_what_the_service_does_not_need_s7_20() {
    let unit = shipped("onceflow.service");
    for line in [
        "Type=notify",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "User=onceflow",
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
        "ProtectSystem=strict",
        "ProtectHome=yes",
        "PrivateTmp=yes",
        "LimitCORE=0",
        "MemoryDenyWriteExecute=yes",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
        "SystemCallFilter=@system-service",
    ] {
        assert!(unit.lines().any(|found| found == line), "{line} is missing");
    }
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("onceflow.service");
    // It also looks whether the program is there.
    fs::write(&file, unit.replace("/usr/local/bin/onceflow", env!("CARGO_BIN_EXE_onceflow"))).unwrap();
    let file = file.to_str().unwrap();
    let Some((valid, told)) = analyze(&["verify", file]) else { return };
    assert!(valid, "{told}");
    // Of 100; what is left is that it uses the network.
    let (safe, told) = analyze(&["security", "--offline=true", "--threshold=15", "--no-pager", file]).unwrap();
    assert!(safe, "{told}");
}

#[test]
fn the_container_runs_as_nobody_and_without_a_shell_s7_20() {
    let file = shipped("Containerfile");
    let run = file.rsplit("\nFROM ").next().unwrap();
    assert!(run.starts_with("scratch\nCOPY --from=build /image /\n"), "{run}");
    assert!(run.lines().any(|line| line == "USER 65532:65532"), "{run}");
    assert!(run.contains("ENTRYPOINT [\"/usr/local/bin/onceflow\"]") && run.contains("CMD [\"run\""), "{run}");
    assert!(!file.contains("ARG ") && !file.contains("ENV "), "secrets come at run time, in files: {file}");
}

/// The file system of the image as the root of a process: tests can't expect an engine for containers.
#[tokio::test]
async fn the_image_holds_all_that_the_service_needs_and_no_shell_s7_20() {
    let stack = Stack::prepare(&domains::consumers(), Wishes::default()).await;
    let (place, port) = (tempfile::tempdir().unwrap(), free_port());
    let root = place.path().join("image");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/image.sh");
    let made = Command::new(script).arg(env!("CARGO_BIN_EXE_onceflow")).arg(&root).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    for absent in ["bin", "usr/bin", "usr/lib/apt", "tmp"] {
        assert!(!root.join(absent).exists(), "{absent}");
    }
    let config = root.join("etc/onceflow/onceflow.toml");
    fs::create_dir_all(config.parent().unwrap()).unwrap();
    let text = fs::read_to_string(stack.config_file()).unwrap();
    fs::write(&config, text.replace("\nlisten = \"127.0.0.1:0\"", &format!("\nlisten = \"127.0.0.1:{port}\"")))
        .unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o644)).unwrap();
    let Some(service) = Service::rooted(&root).await else { return };
    until_ready(port).await;
    service.stop().await;
}

async fn told(socket: &UnixDatagram) -> String {
    let mut told = [0; 64];
    let length = tokio::time::timeout(SOON, socket.recv(&mut told)).await.expect("nothing was told").unwrap();
    String::from_utf8_lossy(&told[..length]).into_owned()
}

/// The next word that is no sign of life.
async fn next_word(socket: &UnixDatagram) -> String {
    loop {
        let word = told(socket).await;
        if word != "WATCHDOG=1" {
            return word;
        }
    }
}

#[tokio::test]
async fn systemd_is_told_when_the_service_listens_reloads_and_stops_and_that_it_lives_s7_20() {
    let place = tempfile::tempdir().unwrap();
    let (config, log, path) =
        (place.path().join("onceflow.toml"), place.path().join("log"), place.path().join("notify"));
    let socket = UnixDatagram::bind(&path).unwrap();
    let (admin, metrics) = (free_port(), free_port());
    // Nobody listens there: the service is up all the same, and waits.
    let text = format!(
        "[broker]\nurl = \"amqp://u:p@127.0.0.1:9/\"\n[database]\nurl = \"postgres://u:p@127.0.0.1:9/x\"\n[admin]\n\
         listen = \"127.0.0.1:{admin}\"\nmetrics_listen = \"127.0.0.1:{metrics}\"\n"
    );
    fs::write(&config, text).unwrap();
    let environment = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "200000")];
    let service = Service::logging(&config, &log, &environment);
    assert_eq!(next_word(&socket).await, "READY=1");
    assert_eq!(told(&socket).await, "WATCHDOG=1");
    service.signal("HUP").await;
    assert_eq!([next_word(&socket).await, next_word(&socket).await], ["RELOADING=1", "READY=1"]);
    service.signal("TERM").await;
    assert_eq!(next_word(&socket).await, "STOPPING=1");
    service.kill().await;
}

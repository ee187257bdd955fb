//! `onceflow run`: the service.

mod notify;
mod reload;

use tokio::signal::unix::{Signal, SignalKind, signal};

use self::notify::Notify;
use self::reload::Reloader;
use super::context::Context;
use super::exit::{Ending, Exit, Failure};
use crate::app::{App, StartError};
use crate::domains;
use crate::telemetry::logs;

pub(super) const EXAMPLES: &str = "\
Examples:
  ONCEFLOW_AMQP_URL=amqp://… ONCEFLOW_DATABASE_URL=postgres://… onceflow run
  onceflow run --config /etc/onceflow/onceflow.toml
  systemctl reload onceflow                 (kill -HUP) after a password, token or certificate was renewed

Waits for broker, database and schema, and says for what. SIGTERM or Ctrl-C drains: no new deliveries, what is in
flight ends, the rest goes back to the broker. A second signal ends at once.

SIGHUP reads the configuration and its files again: URLs with their passwords, certificates, admin token and log level are
taken over without a restart; what else differs is named. What is wrong, or refused by a server, leaves all as it was.
Under systemd use Type=notify: it is told when the service listens, reloads and stops, and that it is not stuck.";

pub(super) async fn run(context: &Context) -> Ending {
    let config = context.load_config()?;
    let level = logs::init(&context.log_level(&config.log.level), config.log.form)
        .map_err(|e| Failure::new(Exit::Configuration, "log.level").because(e))?;
    let mut signals = Signals::listen()?;
    let mut reloader = Reloader::new(context, config, level)?;
    let notify = Notify::from_environment();
    let serving = async {
        let app = App::start(reloader.running(), domains::consumers()).await.map_err(not_started)?;
        notify.ready();
        tokio::select! {
            () = signals.next() => {}
            () = reloader.until_hung_up(&app, &notify) => {}
        }
        notify.stopping();
        drain(app, &mut signals).await
    };
    tokio::select! {
        ending = serving => ending,
        never = notify.keep_alive() => match never {},
    }
}

async fn drain(app: App, signals: &mut Signals) -> Ending {
    tokio::select! {
        clean = app.stop() => if clean { Ok(Exit::Ok) } else {
            Err(Failure::new(Exit::Failed, "the drain took too long")
                .because("work in flight did not end in time; the broker delivers it again"))
        },
        () = signals.next() => {
            Err(Failure::new(Exit::Failed, "ended at once by a second signal").because("the broker delivers again what was in flight"))
        }
    }
}

fn not_started(error: StartError) -> Failure {
    let exit = match &error {
        StartError::Database(_) => Exit::Configuration,
        StartError::Listen(crate::admin::ListenError::TokenNeeded(_)) => Exit::Configuration,
        StartError::Listen(_) | StartError::Metrics(_) => Exit::Failed,
    };
    Failure::new(exit, "the service can't start").because(error).or_try("onceflow check")
}

fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|e| Failure::new(Exit::Failed, "can't listen for signals").because(e))
}

/// SIGTERM of an orchestrator and Ctrl-C of a person mean the same.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

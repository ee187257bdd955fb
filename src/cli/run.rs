//! `onceflow run`: the service.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::context::Context;
use super::exit::{Ending, Exit, Failure};
use crate::app::{App, StartError};
use crate::domains;
use crate::telemetry::logs;

pub(super) const EXAMPLES: &str = "\
Examples:
  ONCEFLOW_AMQP_URL=amqp://… ONCEFLOW_DATABASE_URL=postgres://… onceflow run
  onceflow run --config /etc/onceflow/onceflow.toml

Waits for broker, database and schema, and says for what. SIGTERM or Ctrl-C drains: no new deliveries, what is in
flight ends, the rest goes back to the broker. A second signal ends at once.";

pub(super) async fn run(context: &Context) -> Ending {
    let config = context.load_config()?;
    logs::init(&context.log_level(&config.log.level), config.log.form)
        .map_err(|e| Failure::new(Exit::Configuration, "log.level").because(e))?;
    let mut signals = Signals::listen()?;
    let app = App::start(&config, domains::consumers()).await.map_err(not_started)?;
    signals.next().await;
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

/// SIGTERM of an orchestrator and Ctrl-C of a person mean the same.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let failed = |e| Failure::new(Exit::Failed, "can't listen for signals").because(e);
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

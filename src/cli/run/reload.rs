//! SIGHUP: the configuration is read again, and what can be is taken over.
//!
//! All or nothing: what is wrong in the files, or refused by a server, leaves everything as it was, and is told in the log, on
//! `/readyz`, in `onceflow status` and by `onceflow_config_last_reload_successful`.

use std::io::IsTerminal;

use tokio::signal::unix::{Signal, SignalKind};
use tracing::{error, info, warn};

use super::super::context::Context;
use super::super::exit::Failure;
use super::notify::Notify;
use crate::app::App;
use crate::config::{Config, Renewed};
use crate::telemetry::logs::{self, Level};

/// Reloads what runs.
pub(super) struct Reloader<'c> {
    context: &'c Context,
    running: Config,
    level: Level,
    hangup: Signal,
    /// Whose terminal goes away wants the service to end with it, and not to be reloaded.
    on_terminal: bool,
}

impl<'c> Reloader<'c> {
    pub(super) fn new(context: &'c Context, running: Config, level: Level) -> Result<Self, Failure> {
        let hangup = super::listen(SignalKind::hangup())?;
        Ok(Self { context, running, level, hangup, on_terminal: std::io::stderr().is_terminal() })
    }

    pub(super) fn running(&self) -> &Config {
        &self.running
    }

    /// Reloads at each SIGHUP, until the terminal is gone.
    pub(super) async fn until_hung_up(&mut self, app: &App, notify: &Notify) {
        while self.hangup.recv().await.is_some() {
            if self.on_terminal && !std::io::stderr().is_terminal() {
                return;
            }
            notify.reloading();
            self.reload(app).await;
            notify.ready();
        }
        std::future::pending().await
    }

    async fn reload(&mut self, app: &App) {
        match self.take_over(app).await {
            Ok(waits) => {
                app.reloaded(None);
                info!("the configuration was read again");
                if !waits.is_empty() {
                    let waits = waits.join(", ");
                    warn!(waits, "changed, but taken over only by a restart: {waits}");
                }
            }
            Err(why) => {
                app.reloaded(Some(&why));
                error!(why, "the configuration was read again and not taken over, the old one stays: {why}");
            }
        }
    }

    /// What waits for a restart, or why nothing was taken over.
    async fn take_over(&mut self, app: &App) -> Result<Vec<String>, String> {
        let next = self.context.load_config().map_err(|failure| failure.details.join("; "))?;
        let level = self.context.log_level(&next.log.level);
        logs::check(&level).map_err(|error| format!("log.level: {error}"))?;
        let Renewed { config, waits } = self.running.renewed(&next);
        app.renew(&self.running, &config).await.map_err(|error| error.to_string())?;
        self.running = config;
        self.level.set(&level).map_err(|error| error.to_string())?;
        Ok(waits)
    }
}

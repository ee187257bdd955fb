//! The port mapper (`epmd`) by which the nodes of a private broker and its tools find each other.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::net::TcpStream;

use super::account::Account;
use super::error::ServersError;
use super::guard::{Guarded, Launch};
use super::place::Place;
use super::ports::Ports;

const READY_WITHIN: Duration = Duration::from_secs(60);

/// A private port mapper, running or stopped.
#[derive(Debug)]
pub(super) struct Mapper {
    port: u16,
    process: Option<Guarded>,
}

impl Mapper {
    pub(super) fn new(ports: &mut Ports) -> Result<Self, ServersError> {
        Ok(Self { port: ports.take()?, process: None })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Starts it, unless it runs.
    pub(super) async fn start(&mut self, place: &Place, account: &Account) -> Result<(), ServersError> {
        if self.process.is_some() {
            return Ok(());
        }
        let port = self.port;
        let command = ["epmd", "-port", &port.to_string(), "-address", "127.0.0.1"].map(str::to_owned).to_vec();
        let launch = Launch { name: "epmd", account, command, environment: Vec::new(), stop_signal: "TERM" };
        let mut process = Guarded::spawn(place, launch)?;
        let answers = |_| async move { TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok() };
        process.wait_until(READY_WITHIN, answers).await?;
        self.process = Some(process);
        Ok(())
    }

    pub(super) async fn stop(&mut self) -> Result<(), ServersError> {
        match self.process.take() {
            Some(process) => process.stop().await,
            None => Ok(()),
        }
    }
}

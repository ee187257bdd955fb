//! What systemd is told (`Type=notify`): that the service listens, reloads, stops, and that it is not stuck. A datagram each, for
//! which no library is needed. Nobody is told where nobody asked.

use std::convert::Infallible;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::config::variable;

pub(super) struct Notify {
    socket: Option<UnixDatagram>,
    /// How often it wants a sign of life.
    sign_every: Option<Duration>,
}

impl Notify {
    /// As the variables `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` say.
    pub(super) fn from_environment() -> Self {
        let socket = variable("NOTIFY_SOCKET").and_then(|name| match connected(&name) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(%error, "systemd can't be told how the service does: {error}");
                None
            }
        });
        let is_ours = variable("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let longest = variable("WATCHDOG_USEC").filter(|_| is_ours).and_then(|text| text.parse().ok());
        // Twice in that time, so that a single late one does no harm.
        let sign_every = longest.map(|longest| Duration::from_micros(longest) / 2).filter(|every| !every.is_zero());
        Self { socket, sign_every }
    }

    pub(super) fn ready(&self) {
        self.tell("READY=1");
    }

    /// Until [`ready`](Self::ready) is told again.
    pub(super) fn reloading(&self) {
        self.tell("RELOADING=1");
    }

    pub(super) fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// Gives signs of life for as long as it is polled.
    pub(super) async fn keep_alive(&self) -> Infallible {
        let Some(every) = self.sign_every.filter(|_| self.socket.is_some()) else {
            return std::future::pending().await;
        };
        let mut tick = tokio::time::interval(every);
        loop {
            tick.tick().await;
            self.tell("WATCHDOG=1");
        }
    }

    fn tell(&self, state: &str) {
        if let Some(Err(error)) = self.socket.as_ref().map(|socket| socket.send(state.as_bytes())) {
            tracing::debug!(%error, "systemd was not told {state}");
        }
    }
}

/// A name that begins with `@` stands for a socket without a file.
fn connected(name: &str) -> io::Result<UnixDatagram> {
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    // A manager that does not read must not hold us.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

//! Ports that nobody uses: below 32768, or an outgoing connection may have them, and none that a system server defaults to.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use uuid::Uuid;

use super::error::ServersError;

const FIRST: u16 = 20_000;
const LAST: u16 = 31_999;
/// Distribution port of a system-wide RabbitMQ node: free now, perhaps, but wanted later.
const RESERVED: u16 = 25_672;

/// Hands out free ports. Each directory begins at its own place, so that two projects rarely look at the same port and a
/// restart usually gets the ports it had.
#[derive(Debug)]
pub(super) struct Ports {
    next: u16,
}

impl Ports {
    pub(super) fn seeded_by(directory: &Path) -> Self {
        let hash = Uuid::new_v5(&Uuid::NAMESPACE_URL, directory.as_os_str().as_encoded_bytes()).as_u128();
        let offset = hash % u128::from(LAST - FIRST);
        Self { next: FIRST + u16::try_from(offset).unwrap_or(0) }
    }

    /// The next free port; never the same one twice.
    pub(super) fn take(&mut self) -> Result<u16, ServersError> {
        for _ in FIRST..=LAST {
            let port = self.next;
            self.next = if port == LAST { FIRST } else { port + 1 };
            if port != RESERVED && is_free(port) {
                return Ok(port);
            }
        }
        Err(ServersError::NoPort(FIRST, LAST))
    }
}

/// A listener on all addresses refuses this bind as well.
fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};
    use std::path::Path;

    use super::Ports;

    #[test]
    fn a_taken_port_is_passed_over() {
        let directory = Path::new("/a/project/of/this/test");
        let wanted = Ports::seeded_by(directory).take().unwrap();
        let taken = TcpListener::bind((Ipv4Addr::UNSPECIFIED, wanted)).unwrap();
        assert_ne!(Ports::seeded_by(directory).take().unwrap(), wanted);
        drop(taken);
    }

    #[test]
    fn a_port_is_given_once_and_lies_below_the_outgoing_range() {
        let mut ports = Ports::seeded_by(Path::new("/another/project"));
        let (first, second) = (ports.take().unwrap(), ports.take().unwrap());
        assert_ne!(first, second);
        assert!(first < 32_768 && second < 32_768);
    }
}

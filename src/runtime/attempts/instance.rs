//! The name of this process, for people who look for its logs.

use std::sync::Arc;

use super::super::headers::cut;
use super::super::wire::text_without_nul;

/// The longest name of a machine is 253 bytes.
const MAX_HOST_BYTES: usize = 253;
/// Where Linux tells the name of the machine; in a container that of the container.
const HOST_NAME: &str = "/proc/sys/kernel/hostname";

/// Machine and process id, e.g. `onceflow-7c9d:1`.
pub(in crate::runtime) fn instance() -> Arc<str> {
    let host = std::fs::read_to_string(HOST_NAME).unwrap_or_default();
    let host = text_without_nul(host.trim());
    let host = if host.is_empty() { "unknown" } else { cut(&host, MAX_HOST_BYTES) };
    format!("{host}:{}", std::process::id()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_process_tells_its_id_and_is_one_short_line() {
        let name = instance();
        let (host, id) = name.rsplit_once(':').unwrap();
        assert_eq!(id, std::process::id().to_string());
        assert!(!host.is_empty() && host.len() <= MAX_HOST_BYTES && !host.chars().any(char::is_control), "{name:?}");
    }
}

//! Opens the listeners, and refuses an open door: the API on a network needs a token.

use std::net::SocketAddr;

use tokio::net::TcpListener;

/// Why a listener could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Anybody on the network could replay and pause.
    #[error(
        "refusing to serve the admin API on {0} without a token: set ONCEFLOW_ADMIN_TOKEN_FILE, or listen on 127.0.0.1"
    )]
    TokenNeeded(SocketAddr),
    /// The address can't be had.
    #[error("can't listen on {address}: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
}

/// Opens the admin port.
///
/// # Errors
/// When the address isn't loopback and there is no token, or it can't be had.
pub async fn bind_admin(address: SocketAddr, has_token: bool) -> Result<TcpListener, ListenError> {
    if !address.ip().is_loopback() && !has_token {
        return Err(ListenError::TokenNeeded(address));
    }
    bind(address).await
}

/// Opens the metrics port. It shows no data of anybody, so a network may see it.
///
/// # Errors
/// When the address can't be had.
pub async fn bind_metrics(address: SocketAddr) -> Result<TcpListener, ListenError> {
    bind(address).await
}

async fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| ListenError::Bind { address, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_network_address_without_a_token_is_refused() {
        let refused = bind_admin("0.0.0.0:0".parse().unwrap(), false).await;
        assert!(matches!(refused, Err(ListenError::TokenNeeded(_))));
        assert!(bind_admin("127.0.0.1:0".parse().unwrap(), false).await.is_ok());
    }
}

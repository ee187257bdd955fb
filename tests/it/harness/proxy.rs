//! A TCP proxy in front of PostgreSQL that can lose the answer to a COMMIT.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const COMMIT: &[u8] = b"SELECT 1; COMMIT";

/// Forwards everything, except that the next answers to COMMIT are dropped with their connections, after the server gave them.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    to_cut: Arc<AtomicUsize>,
    cut: Arc<AtomicUsize>,
}

impl Proxy {
    pub(crate) async fn before(target_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (to_cut, cut) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counters = (to_cut.clone(), cut.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (to_cut, cut) = counters.clone();
                tokio::spawn(async move {
                    if let Ok(server) = TcpStream::connect(("127.0.0.1", target_port)).await {
                        forward(client, server, to_cut, cut).await;
                    }
                });
            }
        });
        Self { port, to_cut, cut }
    }

    /// Loses the answers to the next `n` COMMITs.
    pub(crate) fn lose_answers(&self, n: usize) {
        self.to_cut.store(n, Ordering::SeqCst);
    }

    /// How many were lost so far.
    pub(crate) fn lost(&self) -> usize {
        self.cut.load(Ordering::SeqCst)
    }
}

async fn forward(client: TcpStream, server: TcpStream, to_cut: Arc<AtomicUsize>, cut: Arc<AtomicUsize>) {
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (swallow, swallowing) = watch::channel(false);
    let up = upward(from_client, to_server, to_cut, swallow);
    let down = downward(from_server, to_client, swallowing, cut);
    // Whichever side ends takes the other with it.
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

async fn upward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    to_cut: Arc<AtomicUsize>,
    swallow: watch::Sender<bool>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let is_commit = buffer[..n].windows(COMMIT.len()).any(|w| w == COMMIT);
        let take = |left: usize| left.checked_sub(1);
        if is_commit && to_cut.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
            swallow.send_replace(true);
        }
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

async fn downward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    swallowing: watch::Receiver<bool>,
    cut: Arc<AtomicUsize>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if *swallowing.borrow() {
            // The server has answered, so the transaction is over; the client never learns how.
            cut.fetch_add(1, Ordering::SeqCst);
            return;
        }
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

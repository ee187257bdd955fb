//! A TCP proxy in front of PostgreSQL that can lose the answer to a COMMIT, or be away from a certain statement on.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const COMMIT: &[u8] = b"SELECT 1; COMMIT";

/// Forwards everything, except that the next answers to COMMIT are dropped with their connections, after the server gave them,
/// and that nobody gets through while it is away.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    faults: Arc<Faults>,
}

#[derive(Default)]
struct Faults {
    to_cut: AtomicUsize,
    cut: AtomicUsize,
    away_at: Mutex<Option<&'static str>>,
    away: watch::Sender<bool>,
}

impl Proxy {
    pub(crate) async fn before(target_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let faults = Arc::new(Faults::default());
        let shared = faults.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(attend(client, target_port, shared.clone()));
            }
        });
        Self { port, faults }
    }

    /// Loses the answers to the next `n` COMMITs.
    pub(crate) fn lose_answers(&self, n: usize) {
        self.faults.to_cut.store(n, Ordering::SeqCst);
    }

    /// How many were lost so far.
    pub(crate) fn lost(&self) -> usize {
        self.faults.cut.load(Ordering::SeqCst)
    }

    /// Ends every connection when somebody prepares a statement with these words, which the server does not get, and lets nobody
    /// through from then on.
    pub(crate) fn be_away_at(&self, words: &'static str) {
        *self.faults.away_at.lock().unwrap() = Some(words);
    }

    pub(crate) fn is_away(&self) -> bool {
        *self.faults.away.borrow()
    }

    pub(crate) fn be_back(&self) {
        self.faults.away.send_replace(false);
    }
}

impl Faults {
    fn reached(&self, bytes: &[u8]) -> bool {
        let mut words = self.away_at.lock().unwrap();
        let reached = words.is_some_and(|words| has(bytes, words.as_bytes()));
        if reached {
            *words = None;
            self.away.send_replace(true);
        }
        reached
    }
}

fn has(bytes: &[u8], words: &[u8]) -> bool {
    bytes.windows(words.len()).any(|window| window == words)
}

async fn attend(client: TcpStream, target_port: u16, faults: Arc<Faults>) {
    let mut away = faults.away.subscribe();
    tokio::select! {
        biased;
        _ = away.wait_for(|away| *away) => {}
        () = forward(client, target_port, &faults) => {}
    }
}

async fn forward(client: TcpStream, target_port: u16, faults: &Faults) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", target_port)).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (swallow, swallowing) = watch::channel(false);
    let up = upward(from_client, to_server, faults, swallow);
    let down = downward(from_server, to_client, swallowing, faults);
    // Whichever side ends takes the other with it.
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

async fn upward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, faults: &Faults, swallow: watch::Sender<bool>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if faults.reached(&buffer[..n]) {
            return;
        }
        let is_commit = has(&buffer[..n], COMMIT);
        let take = |left: usize| left.checked_sub(1);
        if is_commit && faults.to_cut.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
            swallow.send_replace(true);
        }
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

async fn downward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, swallowing: watch::Receiver<bool>, faults: &Faults) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if *swallowing.borrow() {
            // The server has answered, so the transaction is over; the client never learns how.
            faults.cut.fetch_add(1, Ordering::SeqCst);
            return;
        }
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

//! The connections of a listener, each bounded: in number, in the time and size of a request's head, in its whole life.
//!
//! `axum::serve` bounds none of them, and whoever opens connections and says nothing would take every file descriptor of the
//! process, those of its consumers included.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Most connections of one listener. Further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 128;
/// Longest time for the head of a request, and longest silence between two requests.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// Most bytes of a request's head.
const MAX_HEAD_BYTES: usize = 32 * 1024;
/// Most headers of a request.
const MAX_HEADERS: usize = 64;
/// Longest life of a connection: who reads an answer at one byte a second holds a place no longer than this.
const LIFE: Duration = Duration::from_secs(120);
/// How long a request that is being answered may still take when its connection is to end.
const LAST_ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// How long open connections may finish after the stop.
const FINISH_WITHIN: Duration = Duration::from_secs(3);
/// No file descriptor is free: trying at once would only burn time.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// Who is at the other end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) IpAddr);

/// Serves until `stop`; a client that never hangs up doesn't keep the process from ending.
pub(super) async fn serve(app: Router, listener: TcpListener, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    let accepting = async {
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "a connection was not accepted: {error}");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            };
            let (app, stop) = (app.clone().layer(Extension(Peer(address.ip()))), stop.clone());
            connections.spawn(async move {
                attend(stream, app, stop).await;
                drop(place);
            });
            while connections.try_join_next().is_some() {}
        }
    };
    stop.run_until_cancelled(accepting).await;
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    // Whoever is still there is cut off.
    let _ended = tokio::time::timeout(FINISH_WITHIN, all).await;
}

/// How a connection ends is the client's business: nothing is wrong here when it goes away.
async fn attend(stream: TcpStream, app: Router, stop: CancellationToken) {
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    let mut serving = pin!(serving);
    tokio::select! {
        _ended = serving.as_mut() => return,
        () = stop.cancelled() => {}
        () = tokio::time::sleep(LIFE) => {}
    }
    serving.as_mut().graceful_shutdown();
    let _ended = tokio::time::timeout(LAST_ANSWER_WITHIN, serving).await;
}

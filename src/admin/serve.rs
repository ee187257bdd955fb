//! The two servers.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Router, middleware};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::state::AdminState;
use super::{api, guard, health};
use crate::telemetry::{self, MetricsHandle};

/// Largest request body: a list of some ten thousand ids.
const MAX_BODY_BYTES: usize = 1024 * 1024;
/// How long open connections may finish after the stop.
const FINISH_WITHIN: Duration = Duration::from_secs(3);
/// The text format of Prometheus.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves health and API until `stop`.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve_admin(state: AdminState, listener: TcpListener, stop: CancellationToken) -> io::Result<()> {
    telemetry::admin_routes(&api::ROUTES);
    let state = Arc::new(state);
    let places = Arc::new(Semaphore::new(guard::MAX_CONCURRENT));
    let routes = api::routes()
        .layer(middleware::from_fn_with_state(Arc::clone(&state), guard::authorised))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn_with_state(places, guard::bounded));
    let app = Router::new()
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .method_not_allowed_fallback(api::method_not_allowed)
        .nest(api::PREFIX, routes)
        .fallback(api::not_found)
        .layer(middleware::from_fn(guard::hardened))
        .with_state(state);
    serve(app, listener, stop).await
}

/// Serves the metrics until `stop`, and keeps the recorder's memory bounded meanwhile.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve_metrics(handle: MetricsHandle, listener: TcpListener, stop: CancellationToken) -> io::Result<()> {
    let upkeep = handle.clone();
    let app = Router::new().route("/metrics", get(metrics)).with_state(handle);
    let (served, ()) = tokio::join!(serve(app, listener, stop.clone()), upkeep.keep_up(stop));
    served
}

async fn metrics(State(handle): State<MetricsHandle>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, TEXT_FORMAT)], handle.render())
}

/// A client that never hangs up must not keep the process from ending.
async fn serve(app: Router, listener: TcpListener, stop: CancellationToken) -> io::Result<()> {
    let late = stop.clone();
    let served = axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).into_future();
    tokio::select! {
        result = served => result,
        () = async { late.cancelled().await; tokio::time::sleep(FINISH_WITHIN).await } => Ok(()),
    }
}

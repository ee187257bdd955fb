//! The two servers.

use std::io;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Router, middleware};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::state::AdminState;
use super::throttle::Throttle;
use super::{api, connections, guard, health};
use crate::telemetry::{self, MetricsHandle};

/// Largest request body: a list of some ten thousand ids.
const MAX_BODY_BYTES: usize = 1024 * 1024;
/// The text format of Prometheus.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves health and API until `stop`.
///
/// # Errors
/// None so far: a listener that fails is tried again.
pub async fn serve_admin(state: AdminState, listener: TcpListener, stop: CancellationToken) -> io::Result<()> {
    telemetry::admin_routes(&api::ROUTES);
    let state = Arc::new(state);
    let places = Arc::new(Semaphore::new(guard::MAX_CONCURRENT));
    let guarded = (Arc::clone(&state), Arc::new(Throttle::default()));
    let api = api::routes()
        .layer(middleware::from_fn_with_state(guarded, guard::authorised))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn_with_state(places, guard::bounded));
    let app = Router::new()
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .nest("/api/v1", api)
        .fallback(api::not_found)
        .layer(middleware::from_fn(guard::hardened))
        .with_state(state);
    connections::serve(app, listener, stop).await;
    Ok(())
}

/// Serves the metrics until `stop`, and keeps the recorder's memory bounded meanwhile.
///
/// # Errors
/// None so far: a listener that fails is tried again.
pub async fn serve_metrics(handle: MetricsHandle, listener: TcpListener, stop: CancellationToken) -> io::Result<()> {
    let upkeep = handle.clone();
    let app = Router::new().route("/metrics", get(metrics)).with_state(handle);
    tokio::join!(connections::serve(app, listener, stop.clone()), upkeep.keep_up(stop));
    Ok(())
}

async fn metrics(State(handle): State<MetricsHandle>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, TEXT_FORMAT)], handle.render())
}

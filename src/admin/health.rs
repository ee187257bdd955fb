//! `/livez` and `/readyz`: from memory, whatever the database or the broker do.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};

use super::guard::may_know;
use super::state::AdminState;
use super::wire::{CheckReport, Readiness};
use crate::health::Check;

/// The process answers: nothing else is asked, so that no outage of others restarts it.
pub(super) async fn livez() -> &'static str {
    "ok\n"
}

/// Whether every check is met; which, and the reasons, only for those who may use the API.
pub(super) async fn readyz(State(state): State<Arc<AdminState>>, headers: HeaderMap) -> Response {
    let ready = state.health.is_ready();
    let checks = if may_know(&state, &headers) { reports(&state.health.snapshot()) } else { BTreeMap::new() };
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready, checks })).into_response()
}

/// The checks as they go over the wire.
pub(super) fn reports(checks: &BTreeMap<String, Check>) -> BTreeMap<String, CheckReport> {
    checks.iter().map(|(name, check)| (name.clone(), report(check))).collect()
}

fn report(check: &Check) -> CheckReport {
    let (state, why) = match check {
        Check::Ok => ("ok", None),
        Check::Advised(what) => ("ok", Some(what.clone())),
        Check::Paused(why) => ("paused", Some(why.clone())),
        Check::Waiting(why) => ("waiting", Some(why.clone())),
    };
    CheckReport { state: state.to_owned(), why }
}

//! Who may ask, how many at once, and for how long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

use super::api;
use super::problem::Problem;
use super::state::AdminState;
use crate::telemetry;

/// Longest time for one answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Most requests worked on at once: operators are few, and the rest of the process has its own work.
pub(super) const MAX_CONCURRENT: usize = 32;

/// Bounds number and length of the requests and counts them. Health is asked outside of this.
pub(super) async fn bounded(State(places): State<Arc<Semaphore>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let known = |path: String| api::ROUTES.iter().copied().find(|route| path.ends_with(route));
    let route = path.and_then(known).unwrap_or("other");
    let response = match places.try_acquire() {
        Ok(_place) => match tokio::time::timeout(ANSWER_WITHIN, next.run(request)).await {
            Ok(response) => response,
            Err(_) => {
                let detail = "no answer within 10 s; narrow the question or look at the database";
                Problem::new(StatusCode::GATEWAY_TIMEOUT, "timeout", detail).into_response()
            }
        },
        Err(_) => {
            let detail = "too many requests at once; try again";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail).into_response()
        }
    };
    telemetry::admin_request(route, response.status().as_u16(), started.elapsed());
    response
}

/// Lets in who has the token, or, where none is set, who asks for this machine by its own name.
pub(super) async fn authorised(State(state): State<Arc<AdminState>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let refused = if state.token.is_some() {
        let detail = "a bearer token is needed (--token-file, ONCEFLOW_ADMIN_TOKEN)";
        (!has_token(&state, headers)).then(|| Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail))
    } else {
        let detail = "without a token only requests to localhost are answered";
        (!names_this_machine(headers)).then(|| Problem::new(StatusCode::FORBIDDEN, "wrong_host", detail))
    };
    match refused {
        None => next.run(request).await,
        Some(problem) => {
            let mut response = problem.into_response();
            if response.status() == StatusCode::UNAUTHORIZED {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            response
        }
    }
}

/// Headers that every answer carries.
pub(super) async fn hardened(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'"));
    response
}

/// Whether details may be told: to everybody who may use the API.
pub(super) fn may_know(state: &AdminState, headers: &HeaderMap) -> bool {
    if state.token.is_some() { has_token(state, headers) } else { names_this_machine(headers) }
}

/// Compares digests, so that neither content nor length shows in the time it takes.
fn has_token(state: &AdminState, headers: &HeaderMap) -> bool {
    let given =
        headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("Bearer "));
    let (Some(expected), Some(given)) = (&state.token, given) else { return false };
    let expected = digest(&SHA256, expected.expose_secret().as_bytes());
    let given = digest(&SHA256, given.trim().as_bytes());
    expected.as_ref().ct_eq(given.as_ref()).into()
}

/// A web page of somebody else can make a browser ask us under its own name (DNS rebinding), but not as localhost.
fn names_this_machine(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|v| v.to_str().ok()) else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::HOST, HeaderValue::from_static(value))])
    }

    #[test]
    fn a_foreign_name_that_points_here_is_not_this_machine() {
        for name in ["localhost", "localhost:8080", "127.0.0.1:8080", "[::1]:8080"] {
            assert!(names_this_machine(&host(name)), "{name}");
        }
        for name in ["evil.example", "evil.example:8080", "10.0.0.1", ""] {
            assert!(!names_this_machine(&host(name)), "{name}");
        }
        assert!(!names_this_machine(&HeaderMap::new()));
    }
}

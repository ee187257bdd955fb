//! Who may ask, how many at once, and for how long.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;

use super::connections::Peer;
use super::problem::Problem;
use super::state::{AdminState, end_read};
use super::throttle::Throttle;
use super::wire::{ACTOR_HEADER, Role};
use super::{api, tokens};
use crate::telemetry;

/// Longest time for one answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Longest wait of who only looks for the answer whether anybody has a token.
const ASK_WITHIN: Duration = Duration::from_millis(200);
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

/// Who was let in.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// The name of their own token; none for the configured one and for whoever asks on this machine.
    name: Option<String>,
    /// What they may do.
    pub(super) role: Role,
}

/// Lets in who may do what is asked for. Who has a token of their own acts under its name, whatever the request says.
pub(super) async fn authorised(
    State((state, throttle)): State<(Arc<AdminState>, Arc<Throttle>)>,
    mut request: Request,
    next: Next,
) -> Response {
    let needed = needed(request.method(), request.uri().path());
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
    match throttled((&state, &throttle), request.headers(), peer, needed).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller.clone());
            if let Some(name) = caller.name {
                let claimed = request.headers().get(ACTOR_HEADER).and_then(|v| v.to_str().ok());
                let actor = claimed.map_or_else(|| name.clone(), |claimed| format!("{name} ({claimed})"));
                let actor = HeaderValue::from_str(&actor).unwrap_or(HeaderValue::from_static("a token"));
                request.headers_mut().insert(ACTOR_HEADER, actor);
            }
            next.run(request).await
        }
        Err(problem) => {
            let mut response = problem.into_response();
            let (name, value) = match response.status() {
                StatusCode::UNAUTHORIZED => (header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
                StatusCode::TOO_MANY_REQUESTS => (header::RETRY_AFTER, HeaderValue::from_static("1")),
                _ => return response,
            };
            response.headers_mut().insert(name, value);
            response
        }
    }
}

/// The role that a request needs; personal data is looked for by operators. Asking how replays ended is a question too long for a URL.
pub(super) fn needed(method: &Method, path: &str) -> Role {
    match (method, path) {
        (_, path) if path.starts_with("/tokens") || path == "/persons/erase" => Role::Admin,
        (&Method::POST, path) if path.starts_with("/dlq/") && path.ends_with("/edit") => Role::Admin,
        (&Method::GET | &Method::HEAD, _) | (_, "/dlq/settled") => Role::Viewer,
        _ => Role::Operator,
    }
}

/// Looks at no token of somebody who guesses; the configured one is known without asking anybody.
async fn throttled(
    (state, throttle): (&AdminState, &Throttle),
    headers: &HeaderMap,
    peer: Option<IpAddr>,
    needed: Role,
) -> Result<Caller, Problem> {
    let peer = peer.filter(|_| bearer(headers).is_some());
    if peer.is_some_and(|peer| throttle.is_closed_to(peer, Instant::now())) && !has_token(state, headers) {
        let detail = "too many wrong tokens from this address; wait a second, then use the right one";
        return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_wrong_tokens", detail));
    }
    let admitted = admitted(state, headers, needed).await;
    if let (Err(problem), Some(peer)) = (&admitted, peer)
        && problem.status() == StatusCode::UNAUTHORIZED
    {
        throttle.guessed(peer, Instant::now());
    }
    admitted
}

/// The configured token, and whoever asks on this machine by its own name while there is none, may do everything.
async fn admitted(state: &AdminState, headers: &HeaderMap, needed: Role) -> Result<Caller, Problem> {
    let anything = Caller { name: None, role: Role::Admin };
    let Some(given) = bearer(headers) else { return without_token(state, headers, needed).await.map(|()| anything) };
    if has_token(state, headers) {
        return Ok(anything);
    }
    let tx = state.begin_read().await?;
    let owner = tokens::owner(&tx, given).await;
    let (name, role) = end_read(tx, owner).await?.ok_or_else(no_token)?;
    if role < needed {
        let detail = format!("this needs the role {}; the token {name:?} has {}", needed.as_str(), role.as_str());
        return Err(Problem::new(StatusCode::FORBIDDEN, "not_permitted", detail));
    }
    Ok(Caller { name: Some(name), role })
}

/// Only on this machine, and only as long as nobody has made a token. While the database can't tell, one may look.
async fn without_token(state: &AdminState, headers: &HeaderMap, needed: Role) -> Result<(), Problem> {
    if state.token.is_some() {
        return Err(no_token());
    }
    if !names_this_machine(headers) {
        let detail = "without a token only requests to localhost are answered";
        return Err(Problem::new(StatusCode::FORBIDDEN, "wrong_host", detail));
    }
    if comes_from_another_site(headers) {
        let detail = "a page of another site asked for this; without a token only pages of this service may";
        return Err(Problem::new(StatusCode::FORBIDDEN, "wrong_site", detail));
    }
    // Who only looks is let in while the database can't tell; who changes something has to wait for it in any case.
    let within = if needed == Role::Viewer { ASK_WITHIN } else { state.begin_within };
    match tokio::time::timeout(within, any_token(state)).await {
        Ok(Ok(true)) => Err(no_token()),
        Ok(Ok(false)) => Ok(()),
        _ if needed == Role::Viewer => Ok(()),
        Ok(Err(problem)) => Err(problem),
        Err(_) => Err(Problem::unreachable("whether a token is needed could not be asked in time")),
    }
}

async fn any_token(state: &AdminState) -> Result<bool, Problem> {
    let tx = state.begin_read().await?;
    let any = tokens::any(&tx).await;
    end_read(tx, any).await
}

fn no_token() -> Problem {
    let detail = "a valid bearer token is needed (--token-file, ONCEFLOW_ADMIN_TOKEN)";
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
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

fn has_token(state: &AdminState, headers: &HeaderMap) -> bool {
    bearer(headers).is_some_and(|given| state.token.is(given))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    value.strip_prefix("Bearer ").map(str::trim)
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

/// A page of somebody else can send a request here without being allowed to read the answer; a browser says so.
fn comes_from_another_site(headers: &HeaderMap) -> bool {
    headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none")
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

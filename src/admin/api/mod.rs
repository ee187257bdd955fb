//! `/api/v1`: what the command line uses. Every verb of it is one endpoint here.

mod consumers;
mod dead_letters;
mod edits;
mod jobs;
mod outbox;
mod status;
mod tokens;
mod trace;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderMap, Uri};
use axum::routing::{get, post};

use super::problem::Problem;
use super::state::AdminState;
use super::wire::ACTOR_HEADER;

/// Longest name of an actor and longest reason that are kept.
const MAX_WORDS: usize = 500;

/// The templates of [`routes`], below `/api/v1`, as they are counted.
pub(super) const ROUTES: [&str; 29] = [
    "/status",
    "/dlq",
    "/dlq/groups",
    "/dlq/groups/{id}/note",
    "/dlq/replay",
    "/dlq/discard",
    "/dlq/archive",
    "/dlq/restore",
    "/dlq/settled",
    "/dlq/{id}/edit",
    "/dlq/{id}/diff",
    "/dlq/{id}",
    "/consumers",
    "/consumers/{name}/pause",
    "/consumers/{name}/resume",
    "/outbox",
    "/outbox/retry",
    "/outbox/discard",
    "/tokens",
    "/tokens/revoke",
    "/events/trace",
    "/jobs",
    "/jobs/{id}",
    "/jobs/{id}/start",
    "/jobs/{id}/pause",
    "/jobs/{id}/resume",
    "/jobs/{id}/cancel",
    "/jobs/{id}/rate",
    "other",
];

pub(super) fn routes() -> Router<Arc<AdminState>> {
    Router::new()
        .route("/status", get(status::status))
        .route("/dlq", get(dead_letters::list))
        .route("/dlq/groups", get(dead_letters::groups))
        .route("/dlq/groups/{id}/note", post(dead_letters::note))
        .route("/dlq/replay", post(dead_letters::replay))
        .route("/dlq/discard", post(dead_letters::discard))
        .route("/dlq/archive", post(dead_letters::archive))
        .route("/dlq/restore", post(dead_letters::restore))
        .route("/dlq/settled", post(dead_letters::settled))
        .route("/dlq/{id}", get(dead_letters::show))
        .route("/dlq/{id}/edit", post(edits::edit).layer(DefaultBodyLimit::max(edits::MAX_BODY_BYTES)))
        .route("/dlq/{id}/diff", get(edits::diff))
        .route("/consumers", get(consumers::list))
        .route("/consumers/{name}/pause", post(consumers::pause))
        .route("/consumers/{name}/resume", post(consumers::resume))
        .route("/outbox", get(outbox::status))
        .route("/outbox/retry", post(outbox::retry))
        .route("/outbox/discard", post(outbox::discard))
        .route("/tokens", get(tokens::list).post(tokens::create))
        .route("/tokens/revoke", post(tokens::revoke))
        .route("/events/trace", get(trace::trace))
        .route("/jobs", get(jobs::list).post(jobs::create))
        .route("/jobs/{id}", get(jobs::show))
        .route("/jobs/{id}/start", post(jobs::start))
        .route("/jobs/{id}/pause", post(jobs::pause))
        .route("/jobs/{id}/resume", post(jobs::resume))
        .route("/jobs/{id}/cancel", post(jobs::cancel))
        .route("/jobs/{id}/rate", post(jobs::rate))
        .fallback(not_found)
}

pub(super) async fn not_found(uri: Uri) -> Problem {
    Problem::not_found(uri.path())
}

/// Who acts, as the client says.
fn actor(headers: &HeaderMap) -> Result<String, Problem> {
    let name = headers.get(ACTOR_HEADER).map_or(Ok("unknown"), |v| v.to_str());
    let name = name.map_err(|_| Problem::invalid("invalid_actor", "the actor's name is no text"))?;
    words("actor", name)
}

/// A text that somebody will read in the audit: printable, not empty, not a book.
fn words(what: &'static str, text: &str) -> Result<String, Problem> {
    let text = text.trim();
    if text.is_empty() || text.len() > MAX_WORDS || text.chars().any(char::is_control) {
        let detail = format!("{what}: 1 to {MAX_WORDS} bytes of printable text are needed");
        return Err(Problem::invalid("invalid_words", detail));
    }
    Ok(text.to_owned())
}

//! `/api/v1`: what the command line uses. Every verb of it is one endpoint here.

mod consumers;
mod dead_letters;
mod document;
mod edits;
mod jobs;
mod outbox;
mod persons;
mod sheet;
mod status;
mod table;
mod tokens;
mod trace;

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderMap, Method, StatusCode, Uri};

pub use document::openapi;

use self::table::Table;
use super::problem::Problem;
use super::state::AdminState;
use super::wire::ACTOR_HEADER;
use crate::replay::Filter;

/// Where the API is served.
pub(super) const PREFIX: &str = "/api/v1";
/// Longest name of an actor and longest reason that are kept.
const MAX_WORDS: usize = 500;

/// The templates of [`table`], below [`PREFIX`], as they are counted.
pub(super) const ROUTES: [&str; 34] = [
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
    "/dlq/{id}/unmask",
    "/dlq/{id}",
    "/consumers",
    "/consumers/{name}/pause",
    "/consumers/{name}/resume",
    "/outbox",
    "/outbox/retry",
    "/outbox/discard",
    "/persons/find",
    "/persons/erase",
    "/tokens",
    "/tokens/revoke",
    "/events/trace",
    "/jobs",
    "/jobs/{id}",
    "/jobs/{id}/approve",
    "/jobs/{id}/start",
    "/jobs/{id}/pause",
    "/jobs/{id}/resume",
    "/jobs/{id}/cancel",
    "/jobs/{id}/rate",
    "/openapi.json",
    "other",
];

pub(super) fn routes() -> Router<Arc<AdminState>> {
    table().router()
}

/// Every route, with what it is for.
fn table() -> Table {
    let table = Table::new()
        .get("/status", "What runs, what waits and for what.", status::status)
        .get("/consumers", "Consumers and how they are.", consumers::list)
        .post("/consumers/{name}/pause", "Read nothing more, over restarts too.", consumers::pause)
        .post("/consumers/{name}/resume", "Go on after a pause.", consumers::resume)
        .get("/outbox", "The outbox, its partitions and parked rows.", outbox::status)
        .post("/outbox/retry", "Give parked rows back to the relay.", outbox::retry)
        .post("/outbox/discard", "Drop parked rows: they are never published.", outbox::discard)
        .post("/persons/find", "What is kept of a person, and where.", persons::find)
        .post("/persons/erase", "Erase what is kept of a person; the audit tells that, and why.", persons::erase)
        .get("/tokens", "Tokens, without the tokens themselves.", tokens::list)
        .post("/tokens", "Make a token; it is told this once.", tokens::create)
        .post("/tokens/revoke", "End a token, at once.", tokens::revoke)
        .get("/events/trace", "The life of an event, or of the events of a key.", trace::trace)
        .get("/openapi.json", "This document.", document::serve);
    dead_letter_routes(job_routes(table))
}

fn dead_letter_routes(table: Table) -> Table {
    table
        .get("/dlq", "Dead letters, the newest first.", dead_letters::list)
        .query::<Filter>()
        .query::<dead_letters::Paging>()
        .get("/dlq/groups", "Dead letters by how they failed, most first.", dead_letters::groups)
        .query::<Filter>()
        .post("/dlq/groups/{id}/note", "Say what a group is about, or who cares for it.", dead_letters::note)
        .post("/dlq/replay", "Send dead letters again, at once.", dead_letters::replay)
        .post("/dlq/discard", "Close dead letters for good, at once.", dead_letters::discard)
        .post("/dlq/archive", "Put dead letters away, until a restore or retention.", dead_letters::archive)
        .post("/dlq/restore", "Open archived dead letters again.", dead_letters::restore)
        .post("/dlq/settled", "How far replayed dead letters are.", dead_letters::settled)
        .get(
            "/dlq/{id}",
            "One dead letter with everything that is known of it; its payload masked.",
            dead_letters::show,
        )
        .post("/dlq/{id}/unmask", "One dead letter with its payload as it is; the audit tells.", dead_letters::unmask)
        .post_up_to(
            edits::MAX_BODY_BYTES,
            "/dlq/{id}/edit",
            "Send an edited copy in the place of a dead letter.",
            edits::edit,
        )
        .get("/dlq/{id}/diff", "How an edited copy differs from its original; values masked.", edits::diff)
        .post("/dlq/{id}/diff", "How it differs, with values as they are; the audit tells.", edits::unmasked_diff)
}

fn job_routes(table: Table) -> Table {
    table
        .get("/jobs", "Jobs, the newest first.", jobs::list)
        .query::<jobs::Listing>()
        .post("/jobs", "Plan a replay or discard of many, and begin it unless that is not wanted.", jobs::create)
        .get("/jobs/{id}", "One job with its plan and its books.", jobs::show)
        .post("/jobs/{id}/approve", "Agree to a large job of somebody else, and begin its undo window.", jobs::approve)
        .post("/jobs/{id}/start", "Begin the undo window of a planned job, or end that of a held one.", jobs::start)
        .post("/jobs/{id}/pause", "Send nothing more until it is resumed.", jobs::pause)
        .post("/jobs/{id}/resume", "Go on after a pause.", jobs::resume)
        .post("/jobs/{id}/cancel", "End it: in the undo window nothing was sent.", jobs::cancel)
        .post("/jobs/{id}/rate", "Change its rate.", jobs::rate)
}

pub(super) async fn not_found(uri: Uri) -> Problem {
    Problem::not_found(uri.path())
}

pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    let detail = format!("{} can't be asked with {method}", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
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

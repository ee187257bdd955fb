//! Dead letters: list, groups, one, replay, discard, archive, restore.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, State};
use axum::http::HeaderMap;
use schemars::JsonSchema;
use uuid::Uuid;

use super::super::guard::Caller;
use super::super::problem::Problem;
use super::super::state::{AdminState, end_change, end_read};
use super::super::wire::{ChangeRequest, Groups, Ids, NoteRequest, Role, UnmaskRequest};
use super::{actor, words};
use crate::db::{DbError, Tx};
use crate::replay::{
    self, Change, Cursor, CursorError, DeadLetter, Done, Filter, MAX_CHANGES, Note, Noted, Page, Selection, Settled,
};

const DEFAULT_PAGE: u32 = 50;
/// Hex digits of a group's id.
const LONGEST_GROUP: usize = 16;

type Params = Result<Query<BTreeMap<String, String>>, QueryRejection>;
type Body<T> = Result<Json<T>, JsonRejection>;

/// Which page of the list.
#[derive(Debug, JsonSchema)]
pub(super) struct Paging {
    /// `next` of the page before; the first page where absent.
    #[schemars(with = "Option<String>")]
    after: Option<Cursor>,
    /// Most rows, 1 to 500; 50 where absent.
    limit: Option<u32>,
    /// Whether to count all that match; where absent only the first page does.
    count: Option<bool>,
}

impl Paging {
    /// Takes its parameters out of the query; what is left are conditions.
    fn take(params: &mut BTreeMap<String, String>) -> Result<Self, Problem> {
        let after = params.remove("after").map(|text| text.parse()).transpose();
        let limit = params.remove("limit").map(|text| text.parse()).transpose();
        let count = params.remove("count").map(|text| text.parse()).transpose();
        Ok(Self {
            after: after.map_err(|e: CursorError| Problem::invalid("invalid_cursor", e.to_string()))?,
            limit: limit.map_err(|_| Problem::invalid("invalid_limit", "limit is a number from 1 to 500"))?,
            count: count.map_err(|_| Problem::invalid("invalid_count", "count is true or false"))?,
        })
    }
}

pub(super) async fn list(State(state): State<Arc<AdminState>>, params: Params) -> Result<Json<Page>, Problem> {
    let Query(mut params) = params?;
    let Paging { after, limit, count } = Paging::take(&mut params)?;
    let filter = filter(params)?;
    let tx = state.begin_read().await?;
    let page = page(&tx, &filter, (after, limit.unwrap_or(DEFAULT_PAGE)), count.unwrap_or(after.is_none())).await;
    end_read(tx, page).await.map(Json)
}

/// A page, with how many match where that is asked for; of itself only the first page is.
async fn page(tx: &Tx, filter: &Filter, place: (Option<Cursor>, u32), counts: bool) -> Result<Page, DbError> {
    let (after, limit) = place;
    let mut page = replay::list(tx, filter, after, limit).await?;
    if counts {
        let total = replay::total(tx, filter).await?;
        page.total = Some(total.count);
        page.total_is_exact = Some(total.is_exact);
    }
    Ok(page)
}

pub(super) async fn groups(State(state): State<Arc<AdminState>>, params: Params) -> Result<Json<Groups>, Problem> {
    let filter = filter(params?.0)?;
    let tx = state.begin_read().await?;
    let items = replay::groups(&tx, &filter).await;
    let items = end_read(tx, items).await?;
    Ok(Json(Groups { items }))
}

pub(super) async fn note(
    State(state): State<Arc<AdminState>>,
    id: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body<NoteRequest>,
) -> Result<Json<Noted>, Problem> {
    let (Path(id), Json(request), actor) = (id?, body?, actor(&headers)?);
    if id.len() > LONGEST_GROUP || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Problem::not_found("such a group"));
    }
    let note = Note { note: said("note", request.note)?, owner: said("owner", request.owner)? };
    let tx = state.begin().await?;
    let result = replay::note(&tx, &id, &note, &actor).await;
    let changed = matches!(&result, Ok(Some(noted)) if noted.changed);
    let noted = end_change(tx, result, changed).await?;
    noted.map(Json).ok_or_else(|| Problem::not_found(&format!("group {id}")))
}

/// Words, or nothing any more.
fn said(what: &'static str, text: Option<String>) -> Result<Option<String>, Problem> {
    match text {
        Some(text) if !text.trim().is_empty() => words(what, &text).map(Some),
        other => Ok(other.map(|_| String::new())),
    }
}

pub(super) async fn show(
    State(state): State<Arc<AdminState>>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<Uuid>, PathRejection>,
) -> Result<Json<DeadLetter>, Problem> {
    let Path(id) = id?;
    let tx = state.begin_read().await?;
    let found = replay::show(&tx, id).await;
    let letter = complete(&state, id, end_read(tx, found).await?)?;
    // Payloads hold phone numbers and more: who may only look sees what failed and why.
    Ok(Json(if caller.role == Role::Viewer { letter.outlined() } else { letter.masked() }))
}

pub(super) async fn unmask(
    State(state): State<Arc<AdminState>>,
    id: Result<Path<Uuid>, PathRejection>,
    headers: HeaderMap,
    body: Body<UnmaskRequest>,
) -> Result<Json<DeadLetter>, Problem> {
    let (Path(id), Json(request), actor) = (id?, body?, actor(&headers)?);
    let reason = request.reason.as_deref().map(|text| words("reason", text)).transpose()?;
    let tx = state.begin().await?;
    let found = replay::unmask(&tx, id, (&actor, reason.as_deref())).await;
    let seen = matches!(found, Ok(Some(_)));
    complete(&state, id, end_change(tx, found, seen).await?).map(Json)
}

/// With what this process knows of it.
fn complete(state: &AdminState, id: Uuid, found: Option<DeadLetter>) -> Result<DeadLetter, Problem> {
    let mut letter = found.ok_or_else(|| Problem::not_found(&format!("dead letter {id}")))?;
    if letter.summary.state == "archived" {
        letter.restorable_until = letter.closed_at.and_then(|at| state.restorable_until(at));
    }
    Ok(letter)
}

pub(super) async fn replay(
    State(state): State<Arc<AdminState>>,
    headers: HeaderMap,
    body: Body<ChangeRequest>,
) -> Result<Json<Done>, Problem> {
    let change = change(&headers, body?.0)?;
    let tx = state.begin().await?;
    let result = replay::replay(&tx, &change, &state.queues()).await;
    let done = end_change(tx, result, !change.dry_run).await?;
    if !done.dry_run && !done.ids.is_empty() {
        tracing::info!(actor = change.actor, count = done.ids.len(), "dead letters are replayed");
        state.outbox_wakeup.notify_one();
    }
    Ok(Json(done))
}

pub(super) async fn discard(
    State(state): State<Arc<AdminState>>,
    headers: HeaderMap,
    body: Body<ChangeRequest>,
) -> Result<Json<Done>, Problem> {
    let change = change(&headers, body?.0)?;
    let tx = state.begin().await?;
    let result = replay::discard(&tx, &change).await;
    let done = end_change(tx, result, !change.dry_run).await?;
    if !done.dry_run && !done.ids.is_empty() {
        tracing::info!(actor = change.actor, count = done.ids.len(), "dead letters were discarded");
    }
    Ok(Json(done))
}

pub(super) async fn archive(
    State(state): State<Arc<AdminState>>,
    headers: HeaderMap,
    body: Body<ChangeRequest>,
) -> Result<Json<Done>, Problem> {
    let change = change(&headers, body?.0)?;
    let tx = state.begin().await?;
    let result = replay::archive(&tx, &change).await;
    let (mut done, archived_at) = end_change(tx, result, !change.dry_run).await?;
    if let Some(at) = archived_at {
        done.restorable_until = state.restorable_until(at);
        tracing::info!(actor = change.actor, count = done.ids.len(), "dead letters were archived");
    }
    Ok(Json(done))
}

pub(super) async fn restore(
    State(state): State<Arc<AdminState>>,
    headers: HeaderMap,
    body: Body<ChangeRequest>,
) -> Result<Json<Done>, Problem> {
    let change = change(&headers, body?.0)?;
    let tx = state.begin().await?;
    let result = replay::restore(&tx, &change).await;
    let done = end_change(tx, result, !change.dry_run).await?;
    if !done.dry_run && !done.ids.is_empty() {
        tracing::info!(actor = change.actor, count = done.ids.len(), "archived dead letters were restored");
    }
    Ok(Json(done))
}

pub(super) async fn settled(State(state): State<Arc<AdminState>>, body: Body<Ids>) -> Result<Json<Settled>, Problem> {
    let Json(Ids { ids }) = body?;
    let tx = state.begin_read().await?;
    let settled = replay::settled(&tx, &ids).await;
    end_read(tx, settled).await.map(Json)
}

fn filter(params: BTreeMap<String, String>) -> Result<Filter, Problem> {
    Filter::from_query(params).map_err(|e| Problem::invalid("invalid_filter", e.to_string()))
}

fn change(headers: &HeaderMap, request: ChangeRequest) -> Result<Change, Problem> {
    if let Selection::Ids(ids) = &request.selection
        && ids.len() > MAX_CHANGES
    {
        return Err(Problem::invalid("too_many_ids", format!("at most {MAX_CHANGES} ids at once")));
    }
    let reason = request.reason.as_deref().map(|text| words("reason", text)).transpose()?;
    Ok(Change {
        selection: request.selection,
        reason,
        actor: actor(headers)?,
        dry_run: request.dry_run,
        expect_count: request.expect_count,
        max: request.max,
    })
}

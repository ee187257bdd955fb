//! The outbox: status, and what to do with rows that the broker would not take.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::HeaderMap;

use super::super::problem::Problem;
use super::super::state::{AdminState, end_change, end_read};
use super::super::wire::{ParkedRequest, Touched};
use super::{actor, words};
use crate::replay::control::{self, MAX_PARKED, OutboxStatus};

type Body = Result<Json<ParkedRequest>, JsonRejection>;

pub(super) async fn status(State(state): State<Arc<AdminState>>) -> Result<Json<OutboxStatus>, Problem> {
    let tx = state.begin_read().await?;
    let status = control::outbox_status(&tx).await;
    end_read(tx, status).await.map(Json)
}

pub(super) async fn retry(
    State(state): State<Arc<AdminState>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Touched>, Problem> {
    let (request, actor) = checked(body?.0, &headers)?;
    let tx = state.begin().await?;
    let result = control::retry_parked(&tx, &request.ids, (&actor, &request.reason)).await;
    let count = end_change(tx, result, true).await?;
    state.outbox_wakeup.notify_one();
    Ok(Json(Touched { count }))
}

pub(super) async fn discard(
    State(state): State<Arc<AdminState>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Touched>, Problem> {
    let (request, actor) = checked(body?.0, &headers)?;
    let tx = state.begin().await?;
    let result = control::discard_parked(&tx, &request.ids, (&actor, &request.reason)).await;
    let count = end_change(tx, result, true).await?;
    tracing::warn!(actor, count, "parked outbox rows were discarded: these events are never published");
    Ok(Json(Touched { count }))
}

fn checked(mut request: ParkedRequest, headers: &HeaderMap) -> Result<(ParkedRequest, String), Problem> {
    if request.ids.len() > MAX_PARKED {
        return Err(Problem::invalid("too_many_ids", format!("at most {MAX_PARKED} ids at once")));
    }
    request.reason = words("reason", &request.reason)?;
    Ok((request, actor(headers)?))
}

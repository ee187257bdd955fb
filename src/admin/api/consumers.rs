//! Consumers: list, pause, resume.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::HeaderMap;

use super::super::problem::Problem;
use super::super::state::{AdminState, end_change};
use super::super::wire::{Consumers, SwitchRequest, Switched};
use super::status::report;
use super::{actor, words};
use crate::replay::control;

pub(super) async fn list(State(state): State<Arc<AdminState>>) -> Json<Consumers> {
    Json(Consumers { items: report(&state).await.consumers })
}

pub(super) async fn pause(
    state: State<Arc<AdminState>>,
    name: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Result<Json<SwitchRequest>, JsonRejection>,
) -> Result<Json<Switched>, Problem> {
    switch(&state.0, (&name?.0, true), &headers, body?.0).await
}

pub(super) async fn resume(
    state: State<Arc<AdminState>>,
    name: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Result<Json<SwitchRequest>, JsonRejection>,
) -> Result<Json<Switched>, Problem> {
    switch(&state.0, (&name?.0, false), &headers, body?.0).await
}

async fn switch(
    state: &AdminState,
    (consumer, paused): (&str, bool),
    headers: &HeaderMap,
    request: SwitchRequest,
) -> Result<Json<Switched>, Problem> {
    if !state.consumers.iter().any(|c| c.name == consumer) {
        return Err(Problem::not_found(&format!("consumer {consumer:?}")));
    }
    let (actor, reason) = (actor(headers)?, words("reason", &request.reason)?);
    let tx = state.begin().await?;
    let result = control::set_paused(&tx, consumer, paused, (&actor, &reason)).await;
    let changed = end_change(tx, result, true).await?;
    if changed {
        tracing::info!(actor, reason, consumer, paused, "an operator switched consumer {consumer}");
        state.paused_changed.notify_waiters();
    }
    Ok(Json(Switched { consumer: consumer.to_owned(), paused, changed }))
}

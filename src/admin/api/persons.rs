//! What is kept of a person: find it, erase it. The question goes in the body, since addresses are logged on the way.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::HeaderMap;

use super::super::problem::Problem;
use super::super::state::{AdminState, end_change};
use super::super::wire::{EraseRequest, PersonRequest};
use super::{actor, words};
use crate::event::DEFAULT_TENANT;
use crate::replay::person::{self, Found, Order, Person};

pub(super) async fn find(
    State(state): State<Arc<AdminState>>,
    body: Result<Json<PersonRequest>, JsonRejection>,
) -> Result<Json<Found>, Problem> {
    let Json(request) = body?;
    let person = who(&request)?;
    let tx = state.begin_read().await?;
    let found = person::search(&tx, &state.editing.consumers, &person, request.after, None).await;
    end_change(tx, found, false).await.map(Json)
}

pub(super) async fn erase(
    State(state): State<Arc<AdminState>>,
    headers: HeaderMap,
    body: Result<Json<EraseRequest>, JsonRejection>,
) -> Result<Json<Found>, Problem> {
    let (Json(request), actor) = (body?, actor(&headers)?);
    let (person, reason) = (who(&request.person)?, words("reason", &request.reason)?);
    let order = Order { actor: &actor, reason: &reason };
    let tx = state.begin().await?;
    let found = person::search(&tx, &state.editing.consumers, &person, request.person.after, Some(order)).await;
    let found = end_change(tx, found, true).await?;
    let erased: u64 = found.items.iter().map(|item| item.erased).sum();
    if erased > 0 {
        tracing::info!(actor, erased, "what is kept of a person was erased");
        state.outbox_wakeup.notify_one();
    }
    Ok(Json(found))
}

fn who(request: &PersonRequest) -> Result<Person, Problem> {
    let tenant = request.tenant.as_deref().unwrap_or(DEFAULT_TENANT);
    let person = Person::new(tenant, request.user.as_deref(), request.phone.as_deref(), request.text.as_deref());
    person.map_err(|error| Problem::invalid("invalid_person", error.to_string()))
}

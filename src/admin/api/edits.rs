//! Edit and replay: send an edited copy in the place of a dead letter, and tell what differs.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{Extension, Path, State};
use axum::http::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use uuid::Uuid;

use super::super::guard::Caller;
use super::super::problem::Problem;
use super::super::state::{AdminState, end_change, end_read};
use super::super::wire::{EditRequest, Role, UnmaskRequest};
use super::{actor, words};
use crate::replay::edit::{self, EditMade, EditShown, NewEdit};

/// A payload of the default limit, escaped at worst; of most larger ones it is enough.
pub(super) const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;

pub(super) async fn edit(
    State(state): State<Arc<AdminState>>,
    id: Result<Path<Uuid>, PathRejection>,
    headers: HeaderMap,
    body: Result<Json<EditRequest>, JsonRejection>,
) -> Result<Json<EditMade>, Problem> {
    let (Path(id), Json(request)) = (id?, body?);
    let reason = request.reason.as_deref().map(|text| words("reason", text)).transpose()?;
    let (payload, dry_run) = (payload(request.payload, request.payload_base64)?, request.dry_run);
    let new = NewEdit { id, payload, headers: request.headers, reason, actor: actor(&headers)?, dry_run };
    let tx = state.begin().await?;
    let result = edit::edit(&tx, &new, &state.editing).await;
    let made = end_change(tx, result, !new.dry_run).await?;
    if new.dry_run {
        // Who sees what would differ has seen what stands there.
        let tx = state.begin().await?;
        let told = edit::seen(&tx, &made, (&new.actor, new.reason.as_deref())).await;
        end_change(tx, told, true).await?;
    }
    if let Some(copy) = &made.copy_event_id {
        tracing::info!(actor = new.actor, dead_letter = %id, copy, "an edited copy takes the place of dead letter {id}");
        state.outbox_wakeup.notify_one();
    }
    Ok(Json(made))
}

pub(super) async fn diff(
    State(state): State<Arc<AdminState>>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<Uuid>, PathRejection>,
) -> Result<Json<EditShown>, Problem> {
    let Path(id) = id?;
    let tx = state.begin_read().await?;
    let found = edit::edit_of(&tx, id).await;
    let edit = end_read(tx, found).await?.ok_or_else(|| no_edit(id))?;
    Ok(Json(if caller.role == Role::Viewer { edit.outlined() } else { edit.masked() }))
}

pub(super) async fn unmasked_diff(
    State(state): State<Arc<AdminState>>,
    id: Result<Path<Uuid>, PathRejection>,
    headers: HeaderMap,
    body: Result<Json<UnmaskRequest>, JsonRejection>,
) -> Result<Json<EditShown>, Problem> {
    let (Path(id), Json(request), actor) = (id?, body?, actor(&headers)?);
    let reason = request.reason.as_deref().map(|text| words("reason", text)).transpose()?;
    let tx = state.begin().await?;
    let found = edit::unmask(&tx, id, (&actor, reason.as_deref())).await;
    let seen = matches!(found, Ok(Some(_)));
    end_change(tx, found, seen).await?.map(Json).ok_or_else(|| no_edit(id))
}

fn no_edit(id: Uuid) -> Problem {
    Problem::not_found(&format!("an edit of dead letter {id}"))
}

fn payload(text: Option<String>, base64: Option<String>) -> Result<Option<Vec<u8>>, Problem> {
    match (text, base64) {
        (Some(_), Some(_)) => Err(Problem::invalid("invalid_payload", "payload and payload_base64: only one of them")),
        (Some(text), None) => Ok(Some(text.into_bytes())),
        (None, Some(text)) => {
            let decoded = BASE64.decode(text.trim());
            decoded.map(Some).map_err(|_| Problem::invalid("invalid_payload", "payload_base64 is not base64"))
        }
        (None, None) => Ok(None),
    }
}

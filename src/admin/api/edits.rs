//! Edit and replay: send an edited copy in the place of a dead letter, and tell what differs.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use uuid::Uuid;

use super::super::problem::Problem;
use super::super::state::{AdminState, end_change, end_read};
use super::super::wire::EditRequest;
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
    if let Some(copy) = &made.copy_event_id {
        tracing::info!(actor = new.actor, dead_letter = %id, copy, "an edited copy takes the place of dead letter {id}");
        state.outbox_wakeup.notify_one();
    }
    Ok(Json(made))
}

pub(super) async fn diff(
    State(state): State<Arc<AdminState>>,
    id: Result<Path<Uuid>, PathRejection>,
) -> Result<Json<EditShown>, Problem> {
    let Path(id) = id?;
    let tx = state.begin_read().await?;
    let found = edit::edit_of(&tx, id).await;
    let found = end_read(tx, found).await?;
    found.map(Json).ok_or_else(|| Problem::not_found(&format!("an edit of dead letter {id}")))
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

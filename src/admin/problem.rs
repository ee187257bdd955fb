//! Errors of the API: `application/problem+json` with a stable code, without SQL or paths.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::wire::ProblemBody;
use crate::db::{Class, DbError};
use crate::replay::ChangeError;
use crate::replay::edit::EditError;
use crate::replay::job::JobError;

/// An answer that isn't the one asked for.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into() }
    }

    pub(super) fn invalid(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    pub(super) fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("{what} does not exist"))
    }

    pub(super) fn unreachable(why: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "database_unreachable", format!("the database is away: {why}"))
    }

    /// What, and what to do.
    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    pub(super) fn unknown_outcome(error: &DbError) -> Self {
        let detail =
            format!("the answer to COMMIT was lost, the change may have been made; look before repeating it: {error}");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "outcome_unknown", detail)
    }
}

impl From<DbError> for Problem {
    fn from(error: DbError) -> Self {
        match error.class() {
            Class::Outage => Self::unreachable(&error.to_string()),
            Class::Contention | Class::Timeout => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "database_busy", "the database is busy; try again")
            }
            Class::Schema => {
                tracing::warn!(%error, "the admin API and the database's schema do not fit");
                let detail = "the database's schema does not fit this build; run `onceflow migrate`";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "schema_not_ready", detail)
            }
            Class::Permanent | Class::Bug => {
                tracing::error!(%error, "the admin API failed");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "internal error; the log says more")
            }
        }
    }
}

impl From<ChangeError> for Problem {
    fn from(error: ChangeError) -> Self {
        let detail = error.to_string();
        match error {
            // An event failed again in the moment in which its dead letter was restored.
            ChangeError::Database(error) if error.constraint() == Some("dead_letter_live") => {
                let detail = "an event of these failed again meanwhile: another dead letter of it is open; try again";
                Self::new(StatusCode::CONFLICT, "live_again", detail)
            }
            ChangeError::Database(error) => Self::from(error),
            ChangeError::ReasonNeeded(_) | ChangeError::NoReason => Self::invalid("reason_needed", detail),
            ChangeError::NotArchived(_) => Self::invalid("not_archived", detail),
            ChangeError::NotOpen(_) => Self::invalid("not_open", detail),
            ChangeError::Count { .. } => Self::new(StatusCode::CONFLICT, "count_differs", detail),
        }
    }
}

impl From<EditError> for Problem {
    fn from(error: EditError) -> Self {
        let detail = error.to_string();
        let conflict = |code| Self::new(StatusCode::CONFLICT, code, detail.clone());
        match error {
            EditError::Database(error) => Self::from(error),
            EditError::Off => Self::new(StatusCode::FORBIDDEN, "edit_off", detail),
            EditError::NotFound(_) => Self::new(StatusCode::NOT_FOUND, "not_found", detail),
            EditError::NoReason => Self::invalid("reason_needed", detail),
            EditError::Locked { .. } => Self::invalid("locked", detail),
            EditError::Unchanged => Self::invalid("unchanged", detail),
            EditError::Refused { .. } => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "payload_refused", detail),
            EditError::NotOpen { .. } => conflict("not_open"),
            EditError::AlreadyEdited { .. } => conflict("already_edited"),
            EditError::AlreadyApplied { .. } => conflict("already_applied"),
            EditError::UnknownConsumer(_) => conflict("unknown_consumer"),
        }
    }
}

impl From<JobError> for Problem {
    fn from(error: JobError) -> Self {
        let detail = error.to_string();
        let conflict = |code| Self::new(StatusCode::CONFLICT, code, detail.clone());
        match error {
            JobError::Database(error) if error.constraint() == Some("bulk_job_item_live") => {
                conflict("taken_by_another_job")
            }
            JobError::Database(error) => Self::from(error),
            JobError::ReasonNeeded => Self::invalid("reason_needed", detail),
            JobError::Setting(_) => Self::invalid("invalid_setting", detail),
            JobError::NotOpen(_) => Self::invalid("not_open", detail),
            JobError::Nothing => Self::new(StatusCode::NOT_FOUND, "nothing_matches", detail),
            JobError::NotFound(_) => Self::new(StatusCode::NOT_FOUND, "not_found", detail),
            JobError::NoneEligible(_) => conflict("none_eligible"),
            JobError::Count { .. } => conflict("count_differs"),
            JobError::Taken { .. } => conflict("taken_by_another_job"),
            JobError::KeyUsed(_) => conflict("key_used"),
            JobError::WrongState { .. } => conflict("wrong_state"),
        }
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), "invalid_body", rejection.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::invalid("invalid_query", rejection.body_text())
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::invalid("invalid_path", rejection.body_text())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = ProblemBody {
            kind: format!("urn:onceflow:problem:{}", self.code),
            title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: self.status.as_u16(),
            code: self.code.to_owned(),
            detail: self.detail,
        };
        let mut response = (self.status, Json(body)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }
}

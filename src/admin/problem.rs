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
use crate::replay::person::ErasureError;

/// Every stable code with what it says; the document lists them.
pub(super) const CODES: [(&str, &str); 50] = [
    ("already_applied", "The event was applied meanwhile."),
    ("already_edited", "An edited copy took its place already."),
    ("approval_needed", "A second person has to approve the job first."),
    ("busy", "Too many requests at once; try again."),
    ("count_differs", "Not as many dead letters are eligible as were expected: look again."),
    ("database_busy", "The database is busy; try again."),
    ("database_unreachable", "The database is away; nothing was changed."),
    ("edit_off", "Editing is off; `replay.edit` allows it."),
    ("internal", "A mistake of ours; the log of the service says more."),
    ("invalid_actor", "The header that says who acts is no text."),
    ("invalid_body", "The body is not the JSON that is needed."),
    ("invalid_count", "`count` is true or false."),
    ("invalid_cursor", "`after` is not the `next` of a page of this list."),
    ("invalid_filter", "There is no such condition, or its value does not fit."),
    ("invalid_limit", "`limit` is not a number."),
    ("invalid_path", "A part of the path is not what is needed, such as an id."),
    ("invalid_payload", "The payload of an edit is given twice, or is not base64."),
    ("invalid_person", "Nobody can be looked for by what was said of the person."),
    ("invalid_query", "The query can't be read, or has a parameter that means nothing here."),
    ("invalid_question", "One of id and key is needed, as printable text."),
    ("invalid_setting", "A setting of a job is out of its bounds."),
    ("invalid_words", "A name, reason or note is empty, too long or not printable."),
    ("key_used", "The idempotency key belongs to a job for something else."),
    ("last_admin", "The last admin's token can't be revoked while others are valid."),
    ("live_again", "Another dead letter of the event is open: it failed again since."),
    ("locked", "What names an event can not be edited."),
    ("method_not_allowed", "This path can't be asked with this method."),
    ("no_admin", "The first token must be an admin's."),
    ("none_eligible", "What matches can't be changed any more, or must not be."),
    ("not_archived", "Only archived dead letters can be restored."),
    ("not_found", "There is no such thing."),
    ("not_open", "Only open dead letters can be changed."),
    ("not_permitted", "The token has too low a role."),
    ("nothing_matches", "No open dead letter matches."),
    ("outcome_unknown", "The answer to COMMIT was lost: look before repeating it."),
    ("payload_refused", "The consumer would refuse the edited payload."),
    ("reason_needed", "More than one is meant: say why."),
    ("same_person", "Who planned the job can't approve it."),
    ("schema_not_ready", "The database's schema does not fit this build: migrate."),
    ("taken_by_another_job", "Another job has some of them."),
    ("timeout", "No answer within 10 s: narrow the question."),
    ("token_exists", "There is a valid token of this name already."),
    ("too_many_ids", "More ids than one call takes."),
    ("too_many_wrong_tokens", "Wrong tokens were tried too often; wait."),
    ("unauthorized", "A valid bearer token is needed."),
    ("unchanged", "The edit changes nothing."),
    ("unknown_consumer", "This build has no consumer of that name."),
    ("wrong_host", "Without a token only requests to localhost are answered."),
    ("wrong_site", "A page of another site must not change anything here."),
    ("wrong_state", "The job is in a state in which that has no meaning."),
];

/// An answer that isn't the one asked for.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
}

impl Problem {
    /// The code must be one of [`CODES`]; tests find out, and a release answers all the same.
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        debug_assert!(CODES.iter().any(|(known, _)| *known == code), "{code} is not in CODES");
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

    /// The HTTP status.
    pub(super) fn status(&self) -> StatusCode {
        self.status
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

impl From<ErasureError> for Problem {
    fn from(error: ErasureError) -> Self {
        match error {
            ErasureError::Database(error) => Self::from(error),
            ErasureError::Change(error) => Self::from(error),
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
            JobError::ApprovalNeeded(_) => conflict("approval_needed"),
            JobError::SamePerson(..) => Self::new(StatusCode::FORBIDDEN, "same_person", detail),
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

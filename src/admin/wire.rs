//! What goes over the wire between the admin API and its clients; the command line reads the same types.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::replay::control::{ConsumerSwitch, OutboxTotals};
use crate::replay::job::{Action, Job, Settings};
use crate::replay::{Group, Selection};

/// Header in which a client says who acts; written into the audit. A claim, not a proof.
pub const ACTOR_HEADER: &str = "onceflow-actor";

/// Body of `POST /api/v1/dlq/replay`, `…/discard`, `…/archive` and `…/restore`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeRequest {
    /// Which dead letters.
    pub selection: Selection,
    /// Why; needed for more than one, and for an archive or a restore of any.
    #[serde(default)]
    pub reason: Option<String>,
    /// Only tell what would be done.
    #[serde(default)]
    pub dry_run: bool,
    /// Do nothing unless exactly this many are eligible.
    #[serde(default)]
    pub expect_count: Option<usize>,
    /// At most this many, the oldest first.
    #[serde(default)]
    pub max: Option<usize>,
}

/// What a token allows; each role may also do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Looks.
    Viewer,
    /// Replays, discards, archives, pauses, resumes.
    Operator,
    /// Makes and revokes tokens, edits dead letters, erases persons.
    Admin,
}

impl Role {
    /// The stable name, as stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    /// From its name.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Viewer, Self::Operator, Self::Admin].into_iter().find(|role| role.as_str() == text)
    }
}

/// Body of `POST /api/v1/persons/find`. What matches any of `user`, `phone` and `text` is found; one of them is needed.
#[derive(Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PersonRequest {
    /// Whose data it is; `default` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// A user's id in the directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// A phone number with its country, such as +8613800138000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phone: Option<String>,
    /// Any other text, such as a mail address or a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// `next` of the answer before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Uuid>,
}

/// Without what is known of the person.
impl std::fmt::Debug for PersonRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PersonRequest").finish_non_exhaustive()
    }
}

/// Body of `POST /api/v1/persons/erase`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EraseRequest {
    /// Who.
    pub person: PersonRequest,
    /// Why; kept in the audit.
    pub reason: String,
}

/// A token of the API, without the token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Token {
    /// Its id.
    pub id: Uuid,
    /// Whose it is.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// Who revoked it.
    pub revoked_by: Option<String>,
}

/// `GET /api/v1/tokens`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Tokens {
    /// The newest first.
    pub items: Vec<Token>,
}

/// Body of `POST /api/v1/tokens`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// Whose it is.
    pub name: String,
    /// What it allows.
    pub role: Role,
}

/// Body of `POST /api/v1/tokens/revoke`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenName {
    /// Whose it is.
    pub name: String,
}

/// Answer that tells a new token, once.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct NewToken {
    /// What is stored of it.
    #[serde(flatten)]
    pub token: Token,
    /// The token itself.
    pub secret: String,
}

/// Without the token itself.
impl std::fmt::Debug for NewToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewToken").field("token", &self.token).finish_non_exhaustive()
    }
}

/// Body of requests that name dead letters or parked rows.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ids {
    /// The ids.
    pub ids: Vec<Uuid>,
}

/// Body of `POST /api/v1/dlq/groups/{id}/note`. Absent: stays as it is; empty: is taken away.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoteRequest {
    /// For those who look next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Who cares for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// Body of `POST /api/v1/outbox/retry` and `…/discard`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ParkedRequest {
    /// Parked rows.
    pub ids: Vec<Uuid>,
    /// Why.
    pub reason: String,
}

/// Body of `POST /api/v1/dlq/{id}/edit`. Without a payload it stays as it is.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EditRequest {
    /// The whole new payload, where it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
    /// The whole new payload in base64, where it isn't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_base64: Option<String>,
    /// Headers of the sender's own, or `amqp:content_type`; null takes one away.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, serde_json::Value>,
    /// Why; needed unless it is a dry run.
    #[serde(default)]
    pub reason: Option<String>,
    /// Only tell what would differ.
    #[serde(default)]
    pub dry_run: bool,
}

/// Body of `POST /api/v1/dlq/{id}/unmask` and `…/diff`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UnmaskRequest {
    /// Why, for the audit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Body of `POST /api/v1/jobs`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// Replay, discard or archive.
    pub action: Action,
    /// Which dead letters.
    pub selection: Selection,
    /// Why; needed unless it is a dry run.
    #[serde(default)]
    pub reason: Option<String>,
    /// Only tell what would be done.
    #[serde(default)]
    pub dry_run: bool,
    /// How careful.
    #[serde(default)]
    pub settings: Settings,
    /// Plan only: the undo window waits for `start`.
    #[serde(default)]
    pub plan_only: bool,
    /// No job unless exactly this many are eligible.
    #[serde(default)]
    pub expect_count: Option<u32>,
    /// At most this many, the oldest first.
    #[serde(default)]
    pub max: Option<u32>,
    /// The same key again is the same job.
    #[serde(default)]
    pub idempotency_key: Option<String>,
}

/// Body of `POST /api/v1/jobs/{id}/start` and of the other verbs on a job.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobChange {
    /// Why; kept in the audit.
    #[serde(default)]
    pub reason: Option<String>,
    /// The new rate, for `…/rate` only.
    #[serde(default)]
    pub rate: Option<u32>,
}

/// `GET /api/v1/jobs`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Jobs {
    /// The newest first.
    pub items: Vec<Job>,
}

/// Body of `POST /api/v1/consumers/{name}/pause` and `…/resume`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SwitchRequest {
    /// Why.
    pub reason: String,
}

/// Answer to a switch.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Switched {
    /// The consumer.
    pub consumer: String,
    /// How it is now.
    pub paused: bool,
    /// Whether that was a change.
    pub changed: bool,
}

/// Answer to a change of parked rows.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Touched {
    /// How many were parked and are no longer.
    pub count: usize,
}

/// Groups of dead letters.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Groups {
    /// Largest first.
    pub items: Vec<Group>,
}

/// `GET /api/v1/status`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct StatusReport {
    /// Version of the service.
    pub version: String,
    /// Whether every check is met.
    pub ready: bool,
    /// The checks.
    pub checks: BTreeMap<String, CheckReport>,
    /// Why the database's part is missing; absent when it is there.
    pub database_problem: Option<String>,
    /// The consumers of the service.
    pub consumers: Vec<ConsumerReport>,
    /// The outbox; absent when the database is away.
    pub outbox: Option<OutboxTotals>,
}

/// One readiness check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CheckReport {
    /// `ok`, `paused` or `waiting`.
    pub state: String,
    /// What it waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// One consumer.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ConsumerReport {
    /// Its name.
    pub consumer: String,
    /// `running`, `paused` or `waiting`.
    pub state: String,
    /// Why it isn't running.
    pub why: Option<String>,
    /// Queues that its events are spread over; absent when the database is away, or nobody has laid them out yet.
    #[serde(default)]
    pub partitions: Option<u16>,
    /// Deliveries settled by this process since its start, by outcome.
    pub since_start: BTreeMap<String, u64>,
    /// Open dead letters; absent when the database is away.
    pub dead_open: Option<i64>,
    /// Groups of the open ones.
    pub dead_groups: Option<i64>,
    /// Dead letters on their way back.
    pub dead_replaying: Option<i64>,
    /// Dead letters that are put away.
    #[serde(default)]
    pub dead_archived: Option<i64>,
    /// Age of the oldest open dead letter.
    pub dead_oldest_age_seconds: Option<f64>,
    /// Events that wait behind failed ones of their keys; absent when the database is away.
    #[serde(default)]
    pub held_events: Option<i64>,
    /// Keys that a failed event blocks.
    #[serde(default)]
    pub blocked_keys: Option<i64>,
    /// The operators' last word on it, if there was any.
    pub switch: Option<ConsumerSwitch>,
}

/// `GET /api/v1/consumers`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Consumers {
    /// The consumers.
    pub items: Vec<ConsumerReport>,
}

/// `GET /readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Readiness {
    /// Whether every check is met.
    pub ready: bool,
    /// The checks; none for those who may not know.
    pub checks: BTreeMap<String, CheckReport>,
}

/// An error, as in RFC 9457.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProblemBody {
    /// A URN made of the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status in words.
    pub title: String,
    /// The status.
    pub status: u16,
    /// Stable code.
    pub code: String,
    /// What, and what to do.
    pub detail: String,
}

//! What a job is, as it is stored and shown.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::super::filter::Selection;
use super::hints::Hints;
use crate::db::DbError;

/// Highest rate, in dead letters a second.
pub const MAX_RATE: u32 = 500;
/// Most that may be on their way at once.
pub const MAX_IN_FLIGHT: u32 = 5_000;
/// Longest undo window.
pub const MAX_HOLD_SECONDS: u32 = 300;
/// Largest canary: more than that is no canary.
pub const MAX_CANARY: u32 = 1_000;

/// What is done with the dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "JobAction")]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Send them again to the consumer that failed.
    Replay,
    /// Close them for good.
    Discard,
    /// Put them away; they can be restored.
    Archive,
}

/// Where a job is; see the module's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "JobState")]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Listed, not begun.
    Planned,
    /// In the undo window.
    Held,
    /// The first few are on their way.
    Canary,
    /// The rest is on its way.
    Running,
    /// Waits for an operator.
    Paused,
    /// Nothing is left.
    Done,
    /// Ended by a rule, because too many failed.
    Stopped,
    /// Ended by an operator.
    Cancelled,
}

/// How careful a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "JobSettings")]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Dead letters a second at most, 1 to [`MAX_RATE`].
    pub rate: u32,
    /// Most on their way at once, 1 to [`MAX_IN_FLIGHT`].
    pub max_in_flight: u32,
    /// How many go first; 0 for none.
    pub canary: u32,
    /// Length of the undo window, 0 to [`MAX_HOLD_SECONDS`].
    pub hold_seconds: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { rate: 50, max_in_flight: 500, canary: 5, hold_seconds: 10 }
    }
}

/// A job to be planned.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// What is done.
    pub action: Action,
    /// With which dead letters.
    pub selection: Selection,
    /// Who wants it.
    pub actor: String,
    /// Why; needed unless it is a dry run.
    pub reason: Option<String>,
    /// How careful.
    pub settings: Settings,
    /// Only tell what would be done.
    pub dry_run: bool,
    /// Whether the undo window begins at once; else it waits for `start`.
    pub start: bool,
    /// No job unless exactly this many are eligible.
    pub expect_count: Option<u32>,
    /// At most this many, the oldest first.
    pub max: Option<u32>,
    /// The same key again is the same job.
    pub idempotency_key: Option<String>,
    /// With more dead letters a second person has to approve it; 0 for never.
    pub second_person_above: u32,
}

/// What a job found when it was planned.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "JobPlan")]
pub struct Plan {
    /// How many dead letters it takes.
    pub count: u32,
    /// How many of them go first.
    pub canary: u32,
    /// They by kind, most first.
    pub kinds: Vec<Kind>,
    /// Selected, but left out, by reason.
    pub left_out: Vec<LeftOut>,
    /// Eligible, but more than was asked for.
    pub left: u32,
    /// Some of them.
    pub samples: Vec<Uuid>,
    /// How long it takes at the rate, in seconds; without the undo window.
    pub seconds: u32,
    /// How many of them failed last in the very version that made the plan: the same will likely happen again, unless what was wrong
    /// lay outside of it.
    #[serde(default)]
    pub same_version: u32,
    /// What helps to decide; only where one plan or job is shown.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hints: Option<Hints>,
}

/// Dead letters of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "JobKind")]
pub struct Kind {
    /// The consumer that failed.
    pub consumer: String,
    /// Event type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// Where in their way they failed.
    pub stage: String,
    /// Stable reason code.
    pub reason_code: String,
    /// Whose data.
    pub tenant: String,
    /// How many.
    pub count: u32,
}

/// Dead letters that were selected and left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeftOut {
    /// Why.
    pub why: Left,
    /// How many.
    pub count: u32,
    /// Some of them.
    pub ids: Vec<Uuid>,
}

/// Why a dead letter was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "WhyLeftOut")]
#[serde(rename_all = "snake_case")]
pub enum Left {
    /// No dead letter has this id.
    NotFound,
    /// Another live job has it.
    InJob,
    /// It is on its way already.
    Replaying,
    /// It was replayed with success.
    Replayed,
    /// Somebody dropped it.
    Discarded,
    /// Somebody put it away.
    Archived,
    /// An edited copy took its place.
    Edited,
    /// This build has no consumer of that name.
    UnknownConsumer,
    /// It was replayed too often already; see [`REPLAY_CAP`](super::REPLAY_CAP).
    Parked,
}

/// Answer to a new job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "JobPlanned")]
pub struct Planned {
    /// What was found.
    pub plan: Plan,
    /// The job; absent for a dry run.
    pub job: Option<Job>,
    /// The key was used before: this is that job, nothing was planned.
    pub repeated: bool,
}

/// A job as it is now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Job {
    /// Its id.
    pub id: Uuid,
    /// What it does.
    pub action: Action,
    /// Where it is.
    pub state: State,
    /// Who planned it.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// Whether somebody else has to approve it before anything is sent.
    #[serde(default)]
    pub approval_needed: bool,
    /// Who approved it.
    #[serde(default)]
    pub approved_by: Option<String>,
    /// When.
    #[serde(default)]
    pub approved_at: Option<Timestamp>,
    /// What was asked for.
    pub selection: serde_json::Value,
    /// Later failures are newcomers.
    pub bound: Timestamp,
    /// What was found then.
    pub plan: Plan,
    /// How careful it is.
    pub settings: Settings,
    /// Nothing is sent before.
    pub hold_until: Option<Timestamp>,
    /// How many dead letters it was planned with.
    pub planned: u32,
    /// Not sent yet.
    pub waiting: u32,
    /// On their way.
    pub in_flight: u32,
    /// Dealt with.
    pub succeeded: u32,
    /// Open again.
    pub failed_again: u32,
    /// Not touched, because somebody else had, or the job ended before.
    pub skipped: u32,
    /// Why it paused or stopped.
    pub stop_reason: Option<String>,
    /// What it waits for by itself.
    pub waits_for: Option<String>,
    /// Seconds until it is through at its rate, while it is on its way.
    pub eta_seconds: Option<u32>,
    /// When it was planned.
    pub created_at: Timestamp,
    /// When it last changed.
    pub changed_at: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// Dead letters that match as well but failed after the plan; only where one job is shown.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub newcomers: Option<u32>,
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The database said no, or was away.
    #[error(transparent)]
    Database(#[from] DbError),
    /// Nobody said why.
    #[error("a job needs a reason: it is kept in the audit")]
    ReasonNeeded,
    /// A setting is out of its bounds.
    #[error("{0}")]
    Setting(String),
    /// Only open dead letters can be changed.
    #[error("only open dead letters can be changed, not {0} ones")]
    NotOpen(&'static str),
    /// Nothing matches.
    #[error("no open dead letter matches")]
    Nothing,
    /// What matches can't be changed any more, or must not be.
    #[error("none of them is eligible: {0}")]
    NoneEligible(String),
    /// The selection isn't what the operator saw.
    #[error("expected {expected} dead letters, found {found}: no job was made")]
    Count {
        /// What the operator said.
        expected: u32,
        /// What is eligible now.
        found: u32,
    },
    /// Another job has some of them.
    #[error(
        "{count} of them belong to job {job} of {actor} ({reason}), which has not ended: wait for it, cancel it, or narrow the \
         filter"
    )]
    Taken {
        /// How many.
        count: u32,
        /// The other job.
        job: Uuid,
        /// Whose it is.
        actor: String,
        /// Why it was made.
        reason: String,
    },
    /// The key belongs to a job for something else.
    #[error("the idempotency key belongs to job {0}, which is for something else: use a new key")]
    KeyUsed(Uuid),
    /// Nobody else has agreed to it yet.
    #[error("job {0} has to be approved by a second person first: onceflow jobs approve {0} --reason WHY")]
    ApprovalNeeded(Uuid),
    /// Who planned it can't approve it.
    #[error("job {0} was planned by {1}: somebody else has to approve it")]
    SamePerson(Uuid, String),
    /// No such job.
    #[error("job {0} does not exist")]
    NotFound(Uuid),
    /// The job is in a state where that has no meaning.
    #[error("job {job} is {state}: it can't be {verb}")]
    WrongState {
        /// The job.
        job: Uuid,
        /// Its state.
        state: &'static str,
        /// What was asked for.
        verb: &'static str,
    },
}

impl Action {
    /// The stable name, as stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Replay => "replay",
            Self::Discard => "discard",
            Self::Archive => "archive",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        [Self::Replay, Self::Discard, Self::Archive].into_iter().find(|action| action.as_str() == name)
    }
}

impl State {
    const ALL: [Self; 8] = [
        Self::Planned,
        Self::Held,
        Self::Canary,
        Self::Running,
        Self::Paused,
        Self::Done,
        Self::Stopped,
        Self::Cancelled,
    ];

    /// The stable name, as stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Held => "held",
            Self::Canary => "canary",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Done => "done",
            Self::Stopped => "stopped",
            Self::Cancelled => "cancelled",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }

    /// Whether nothing more is begun.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Stopped | Self::Cancelled)
    }
}

impl Left {
    pub(super) fn named(name: &str) -> Option<Self> {
        serde_json::from_value(name.into()).ok()
    }

    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not found",
            Self::InJob => "in another job",
            Self::Replaying => "already replaying",
            Self::Replayed => "already replayed",
            Self::Discarded => "discarded",
            Self::Archived => "archived",
            Self::Edited => "edited",
            Self::UnknownConsumer => "no such consumer in this build",
            Self::Parked => "parked: replayed too often",
        }
    }
}

impl Job {
    /// Whether it waits for somebody else to agree.
    pub fn waits_for_approval(&self) -> bool {
        self.approval_needed && self.approved_by.is_none()
    }

    /// How many have ended, one way or the other.
    pub fn ended(&self) -> u32 {
        self.succeeded + self.failed_again + self.skipped
    }
}

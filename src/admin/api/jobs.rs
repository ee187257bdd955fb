//! Jobs: plan one, look, and steer it.

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
use super::super::state::{AdminState, end_change};
use super::super::wire::{JobChange, JobRequest, Jobs, Role};
use super::{actor, words};
use crate::db::Tx;
use crate::replay::job::{self, Action, Hints, Job, JobError, NewJob, Plan, Planned};
use crate::replay::{MAX_CHANGES, Selection};

const DEFAULT_LIST: u32 = 50;

type Id = Result<Path<Uuid>, PathRejection>;
type Body<T> = Result<Json<T>, JsonRejection>;
type Params = Result<Query<BTreeMap<String, String>>, QueryRejection>;

/// How much of the list.
#[derive(Debug, JsonSchema)]
pub(super) struct Listing {
    /// Most jobs, 1 to 200; 50 where absent.
    limit: Option<u32>,
}

impl Listing {
    fn read(params: &BTreeMap<String, String>) -> Result<Self, Problem> {
        if let Some(name) = params.keys().find(|name| *name != "limit") {
            return Err(Problem::invalid("invalid_query", format!("jobs are listed by limit alone, not by {name}")));
        }
        let limit = params.get("limit").map(|text| text.parse()).transpose();
        let limit = limit.map_err(|_| Problem::invalid("invalid_limit", "limit is a number from 1 to 200"))?;
        Ok(Self { limit })
    }
}

pub(super) async fn create(
    State(state): State<Arc<AdminState>>,
    headers: HeaderMap,
    body: Body<JobRequest>,
) -> Result<Json<Planned>, Problem> {
    let new = new_job(&headers, body?.0, state.second_person_above)?;
    let consumers: Vec<&str> = state.consumers.iter().map(|c| c.name).collect();
    let tx = state.begin().await?;
    let result = job::create(&tx, &new, &consumers).await;
    let mut planned = end_change(tx, result, !new.dry_run).await?;
    add_hints(&state, new.action, &mut planned.plan).await;
    if let Some(job) = planned.job.as_ref().filter(|_| !planned.repeated) {
        let (id, count) = (job.id, job.planned);
        tracing::info!(actor = new.actor, job = %id, count, "job {id} was planned with {count} dead letters");
    }
    Ok(Json(planned))
}

pub(super) async fn list(State(state): State<Arc<AdminState>>, params: Params) -> Result<Json<Jobs>, Problem> {
    let limit = Listing::read(&params?.0)?.limit.unwrap_or(DEFAULT_LIST);
    let tx = state.begin_read().await?;
    let items = job::jobs(&tx, limit).await;
    tx.rollback().await;
    Ok(Json(Jobs { items: items? }))
}

pub(super) async fn show(
    State(state): State<Arc<AdminState>>,
    Extension(caller): Extension<Caller>,
    id: Id,
) -> Result<Json<Job>, Problem> {
    let Path(id) = id?;
    let tx = state.begin_read().await?;
    let job = job::job(&tx, id).await;
    tx.rollback().await;
    let mut job = job?;
    add_hints(&state, job.action, &mut job.plan).await;
    if caller.role == Role::Viewer {
        job.plan.hints.iter_mut().for_each(Hints::outline);
    }
    Ok(Json(job))
}

/// A plan without them is a plan all the same.
async fn add_hints(state: &AdminState, action: Action, plan: &mut Plan) {
    state.loads.look().await;
    let Ok(tx) = state.begin_read().await else { return };
    let hints = job::hints(&tx, action, plan, &state.loads).await;
    tx.rollback().await;
    match hints {
        Ok(hints) => plan.hints = Some(hints),
        Err(error) => tracing::debug!(%error, "a plan is shown without hints: {error}"),
    }
}

pub(super) async fn start(
    State(state): State<Arc<AdminState>>,
    id: Id,
    headers: HeaderMap,
    body: Body<JobChange>,
) -> Result<Json<Job>, Problem> {
    let order = Order::read(id, &headers, body)?;
    let tx = state.begin().await?;
    let result = job::start(&tx, order.id, order.by()).await;
    order.end(tx, result, "started").await
}

pub(super) async fn approve(
    State(state): State<Arc<AdminState>>,
    id: Id,
    headers: HeaderMap,
    body: Body<JobChange>,
) -> Result<Json<Job>, Problem> {
    let body = body?;
    if body.reason.is_none() {
        return Err(Problem::invalid("reason_needed", "an approval needs a reason: it is kept in the audit"));
    }
    let order = Order::read(id, &headers, Ok(body))?;
    let tx = state.begin().await?;
    let result = job::approve(&tx, order.id, order.by()).await;
    order.end(tx, result, "approved").await
}

pub(super) async fn pause(
    State(state): State<Arc<AdminState>>,
    id: Id,
    headers: HeaderMap,
    body: Body<JobChange>,
) -> Result<Json<Job>, Problem> {
    let order = Order::read(id, &headers, body)?;
    let tx = state.begin().await?;
    let result = job::pause(&tx, order.id, order.by()).await;
    order.end(tx, result, "paused").await
}

pub(super) async fn resume(
    State(state): State<Arc<AdminState>>,
    id: Id,
    headers: HeaderMap,
    body: Body<JobChange>,
) -> Result<Json<Job>, Problem> {
    let order = Order::read(id, &headers, body)?;
    let tx = state.begin().await?;
    let result = job::resume(&tx, order.id, order.by()).await;
    order.end(tx, result, "resumed").await
}

pub(super) async fn cancel(
    State(state): State<Arc<AdminState>>,
    id: Id,
    headers: HeaderMap,
    body: Body<JobChange>,
) -> Result<Json<Job>, Problem> {
    let order = Order::read(id, &headers, body)?;
    let tx = state.begin().await?;
    let result = job::cancel(&tx, order.id, order.by()).await;
    order.end(tx, result, "cancelled").await
}

pub(super) async fn rate(
    State(state): State<Arc<AdminState>>,
    id: Id,
    headers: HeaderMap,
    body: Body<JobChange>,
) -> Result<Json<Job>, Problem> {
    let order = Order::read(id, &headers, body)?;
    let rate =
        order.rate.ok_or_else(|| Problem::invalid("invalid_setting", "rate: dead letters a second are needed"))?;
    let tx = state.begin().await?;
    let result = job::set_rate(&tx, order.id, rate, order.by()).await;
    order.end(tx, result, "given another rate").await
}

/// What an operator wants of a job.
struct Order {
    id: Uuid,
    actor: String,
    reason: String,
    rate: Option<u32>,
}

impl Order {
    fn read(id: Id, headers: &HeaderMap, body: Body<JobChange>) -> Result<Self, Problem> {
        let (Path(id), Json(change)) = (id?, body?);
        let reason = change.reason.as_deref().map(|text| words("reason", text)).transpose()?;
        let reason = reason.unwrap_or_else(|| "no reason given".to_owned());
        Ok(Self { id, actor: actor(headers)?, reason, rate: change.rate })
    }

    fn by(&self) -> (&str, &str) {
        (&self.actor, &self.reason)
    }

    async fn end(&self, tx: Tx, result: Result<Job, JobError>, verb: &str) -> Result<Json<Job>, Problem> {
        let job = end_change(tx, result, true).await?;
        tracing::info!(actor = self.actor, reason = self.reason, job = %job.id, "job {} was {verb}", job.id);
        Ok(Json(job))
    }
}

fn new_job(headers: &HeaderMap, request: JobRequest, second_person_above: u32) -> Result<NewJob, Problem> {
    if let Selection::Ids(ids) = &request.selection
        && ids.len() > MAX_CHANGES
    {
        return Err(Problem::invalid(
            "too_many_ids",
            format!("at most {MAX_CHANGES} ids at once; a filter takes more"),
        ));
    }
    let reason = request.reason.as_deref().map(|text| words("reason", text)).transpose()?;
    Ok(NewJob {
        action: request.action,
        selection: request.selection,
        actor: actor(headers)?,
        reason,
        settings: request.settings,
        dry_run: request.dry_run,
        start: !request.plan_only,
        expect_count: request.expect_count,
        max: request.max,
        idempotency_key: request.idempotency_key,
        second_person_above,
    })
}

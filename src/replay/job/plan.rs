//! Planning a job: what it would do, or the list frozen and the job made, in one transaction.

use std::collections::BTreeMap;

use serde_json::json;
use uuid::Uuid;

use super::super::filter::{Filter, Selection, State as LetterState};
use super::model::{
    Action, Job, JobError, Left, LeftOut, MAX_CANARY, MAX_HOLD_SECONDS, MAX_IN_FLIGHT, MAX_RATE, NewJob, Plan, Planned,
};
use super::plan_store::{self, Found, Look};
use super::{control, store};
use crate::db::{DbError, Tx};

/// Ids that are shown of what a job takes, and of each reason for leaving some out.
const SAMPLES: usize = 5;
const LEFT_OUT_IDS: usize = 20;
/// Kinds that are listed; the count covers all.
const KINDS: usize = 200;

/// Plans a job over all that is selected now, or tells what it would be. `consumers` are those of this build.
///
/// # Errors
/// When it is refused or the database fails; then the transaction is to be rolled back, as after a dry run.
pub async fn create(tx: &Tx, new: &NewJob, consumers: &[&str]) -> Result<Planned, JobError> {
    check(new)?;
    plan_store::one_plan_at_a_time(tx).await?;
    if let Some(job) = repeated(tx, new).await? {
        return Ok(Planned { plan: job.plan.clone(), job: Some(job), repeated: true });
    }
    let id = (!new.dry_run).then(Uuid::now_v7);
    let bound = plan_store::now(tx).await?;
    if let Some(id) = id {
        plan_store::insert_job(tx, id, new, bound).await?;
    }
    let (found, unknown) = look(tx, new, (id, bound), consumers).await?;
    let plan = summary(new, &found, unknown);
    if let Some(expected) = new.expect_count.filter(|expected| *expected != plan.count + plan.left) {
        return Err(JobError::Count { expected, found: plan.count + plan.left });
    }
    let Some(id) = id else { return Ok(Planned { plan, job: None, repeated: false }) };
    refuse(tx, &plan).await?;
    let needs_approval = new.second_person_above > 0 && plan.count > new.second_person_above;
    plan_store::finish_plan(tx, id, &plan, needs_approval).await?;
    let by = (new.actor.as_str(), new.reason.as_deref().unwrap_or_default());
    let detail = json!({
        "before": null, "after": "planned", "count": plan.count, "selection": new.selection, "settings": new.settings,
        "approval_needed": needs_approval, "left_out": plan.left_out.iter().map(|l| (l.why, l.count)).collect::<Vec<_>>(),
    });
    store::audit(tx, "job.plan", id, by, &detail).await?;
    let job =
        if new.start && !needs_approval { control::start(tx, id, by).await? } else { control::job(tx, id).await? };
    Ok(Planned { plan, job: Some(job), repeated: false })
}

/// The filter that a selection stands for; ids stand for themselves, whatever their state.
pub(super) fn filter_of(selection: &Selection) -> Filter {
    match selection {
        Selection::Ids(_) => Filter { state: Some(LetterState::Any), ..Filter::default() },
        Selection::Filter(filter) => filter.clone(),
    }
}

fn check(new: &NewJob) -> Result<(), JobError> {
    if !new.dry_run && new.reason.as_deref().is_none_or(|reason| reason.trim().is_empty()) {
        return Err(JobError::ReasonNeeded);
    }
    if let Selection::Filter(Filter { state: Some(state), .. }) = &new.selection
        && *state != LetterState::Open
    {
        return Err(JobError::NotOpen(state.as_str()));
    }
    let within = |name: &str, value: u32, least: u32, most: u32| {
        let sentence = || JobError::Setting(format!("{name}: {least} to {most}, not {value}"));
        if (least..=most).contains(&value) { Ok(()) } else { Err(sentence()) }
    };
    within("rate", new.settings.rate, 1, MAX_RATE)?;
    within("max_in_flight", new.settings.max_in_flight, 1, MAX_IN_FLIGHT)?;
    within("canary", new.settings.canary, 0, MAX_CANARY)?;
    within("hold_seconds", new.settings.hold_seconds, 0, MAX_HOLD_SECONDS)?;
    match &new.idempotency_key {
        Some(key) if key.is_empty() || key.len() > 200 => {
            Err(JobError::Setting("idempotency_key: 1 to 200 bytes".to_owned()))
        }
        _ => Ok(()),
    }
}

/// The job that this key has made before.
async fn repeated(tx: &Tx, new: &NewJob) -> Result<Option<Job>, JobError> {
    let Some(key) = new.idempotency_key.as_deref().filter(|_| !new.dry_run) else { return Ok(None) };
    let Some(id) = plan_store::by_key(tx, key).await? else { return Ok(None) };
    let job = control::job(tx, id).await?;
    let same = serde_json::to_value(&new.selection).is_ok_and(|selection| selection == job.selection);
    if same && job.action == new.action { Ok(Some(job)) } else { Err(JobError::KeyUsed(id)) }
}

async fn look(
    tx: &Tx,
    new: &NewJob,
    (job, bound): (Option<Uuid>, jiff::Timestamp),
    consumers: &[&str],
) -> Result<(Vec<Found>, Vec<Uuid>), DbError> {
    let filter = filter_of(&new.selection);
    let ids = match &new.selection {
        Selection::Ids(ids) => Some(ids.as_slice()),
        Selection::Filter(_) => None,
    };
    let replay = new.action == Action::Replay;
    let canary = if replay { new.settings.canary } else { 0 };
    let look = Look {
        filter: &filter,
        ids,
        bound,
        replay,
        consumers,
        max: new.max.map_or(i64::MAX, i64::from),
        canary: i64::from(canary),
        job,
    };
    let found = plan_store::plan(tx, &look).await?;
    let unknown = match ids {
        Some(ids) => plan_store::unknown_ids(tx, ids).await?,
        None => Vec::new(),
    };
    Ok((found, unknown))
}

fn summary(new: &NewJob, found: &[Found], unknown: Vec<Uuid>) -> Plan {
    let mut plan = Plan { canary: found.first().map_or(0, |line| line.canary), ..Plan::default() };
    let mut left_out: BTreeMap<Left, (u32, Vec<Uuid>)> = BTreeMap::new();
    for line in found {
        match line.why {
            Some(why) => note(&mut left_out, why, line.kind.count, &line.ids),
            None => {
                plan.count += line.kept;
                plan.left += line.kind.count - line.kept;
                if new.action == Action::Replay {
                    plan.same_version += line.same_version;
                }
                let mut kind = line.kind.clone();
                kind.count = line.kept;
                if line.kept > 0 && plan.kinds.len() < KINDS {
                    plan.kinds.push(kind);
                }
            }
        }
    }
    if !unknown.is_empty() {
        note(&mut left_out, Left::NotFound, u32::try_from(unknown.len()).unwrap_or(u32::MAX), &unknown);
    }
    plan.left_out = left_out.into_iter().map(|(why, (count, ids))| LeftOut { why, count, ids }).collect();
    plan.samples = samples(found);
    plan.seconds = plan.count.div_ceil(new.settings.rate.max(1));
    plan
}

/// Of each kind one, as far as there is room; a job of few kinds shows more of each.
fn samples(found: &[Found]) -> Vec<Uuid> {
    let taken = found.iter().filter(|line| line.why.is_none());
    let kept = |line: &Found| line.ids.len().min(usize::try_from(line.kept).unwrap_or(usize::MAX));
    let lines: Vec<&[Uuid]> = taken.map(|line| &line.ids[..kept(line)]).collect();
    (0..SAMPLES).flat_map(|turn| lines.iter().filter_map(move |ids| ids.get(turn).copied())).take(SAMPLES).collect()
}

fn note(left_out: &mut BTreeMap<Left, (u32, Vec<Uuid>)>, why: Left, count: u32, ids: &[Uuid]) {
    let (total, shown) = left_out.entry(why).or_default();
    *total += count;
    let room = LEFT_OUT_IDS.saturating_sub(shown.len());
    shown.extend(ids.iter().take(room));
}

/// What another operator has begun is left to them, and a job of nothing is none.
async fn refuse(tx: &Tx, plan: &Plan) -> Result<(), JobError> {
    if let Some(taken) = plan.left_out.iter().find(|left| left.why == Left::InJob)
        && let Some((job, actor, reason)) = plan_store::owner(tx, &taken.ids).await?
    {
        return Err(JobError::Taken { count: taken.count, job, actor, reason });
    }
    if plan.count > 0 {
        return Ok(());
    }
    let whys: Vec<String> = plan.left_out.iter().map(|l| format!("{} {}", l.count, l.why.as_str())).collect();
    let unknown = plan.left_out.iter().all(|left| left.why == Left::NotFound);
    if unknown { Err(JobError::Nothing) } else { Err(JobError::NoneEligible(whys.join(", "))) }
}

#[cfg(test)]
mod tests {
    use super::super::model::{Kind, Settings};
    use super::*;

    fn new_job() -> NewJob {
        NewJob {
            action: Action::Replay,
            selection: Selection::Filter(Filter::default()),
            actor: "li".into(),
            reason: Some("fixed".into()),
            settings: Settings::default(),
            dry_run: false,
            start: true,
            expect_count: None,
            max: None,
            idempotency_key: None,
            second_person_above: 0,
        }
    }

    fn line(reason: &str, why: Option<Left>, count: u32, kept: u32) -> Found {
        let kind = Kind {
            consumer: "org".into(),
            event_type: "t".into(),
            stage: "handle".into(),
            reason_code: reason.into(),
            tenant: "default".into(),
            count,
        };
        Found { kind, why, kept, same_version: kept / 2, ids: vec![Uuid::nil(); 3], canary: 2 }
    }

    #[test]
    fn a_plan_counts_what_is_taken_left_out_and_left_over() {
        let found =
            [line("cycle", None, 10, 7), line("x", Some(Left::Parked), 4, 0), line("y", Some(Left::Parked), 1, 0)];
        let plan = summary(&new_job(), &found, vec![Uuid::nil()]);
        assert_eq!((plan.count, plan.left, plan.canary, plan.seconds), (7, 3, 2, 1));
        assert_eq!((plan.kinds[0].count, plan.same_version), (7, 3));
        let left: Vec<_> = plan.left_out.iter().map(|l| (l.why, l.count)).collect();
        assert_eq!(left, [(Left::NotFound, 1), (Left::Parked, 5)]);
    }

    #[test]
    fn samples_are_of_every_kind_before_there_are_two_of_one() {
        let mut found = [line("many", None, 100, 100), line("few", None, 2, 2), line("none", Some(Left::Parked), 9, 0)];
        for (n, line) in found.iter_mut().enumerate() {
            line.ids = (0..10).map(|id| Uuid::from_u128(100 * n as u128 + id)).collect();
        }
        let ids: Vec<u128> = summary(&new_job(), &found, Vec::new()).samples.iter().map(Uuid::as_u128).collect();
        assert_eq!(ids, [0, 100, 1, 101, 2]);
    }

    #[test]
    fn a_job_without_reason_or_out_of_bounds_is_refused() {
        let refused = |change: fn(&mut NewJob)| {
            let mut new = new_job();
            change(&mut new);
            check(&new).is_err()
        };
        assert!(!refused(|_| ()));
        assert!(refused(|new| new.reason = Some(" ".into())));
        assert!(refused(|new| new.settings.rate = 0));
        assert!(refused(|new| new.settings.rate = 501));
        assert!(refused(|new| new.settings.hold_seconds = 301));
        assert!(refused(|new| new.settings.max_in_flight = 0));
        assert!(refused(
            |new| new.selection = Selection::Filter(Filter { state: Some(LetterState::Replayed), ..Filter::default() })
        ));
        assert!(!refused(|new| (new.dry_run, new.reason) = (true, None)));
    }
}

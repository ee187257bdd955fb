//! Following a job: a bar on a terminal, lines elsewhere, the result as an exit code.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::super::client::Client;
use super::super::context::Context;
use super::super::exit::{Ending, Exit, Failure};
use super::super::output::{age, printable};
use super::table;
use crate::replay::job::{Job, State};

/// How often the service is asked.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Lines come at most this often while nothing but the numbers changes.
const LINE_EVERY: Duration = Duration::from_secs(5);
const BAR_WIDTH: u32 = 30;

/// Follows a job until it has ended, or waits for an operator.
pub(in crate::cli) async fn watch(context: &Context, client: &Client, id: Uuid) -> Ending {
    let mut shown = Progress::new(context);
    let mut away: Option<Instant> = None;
    let mut tick = tokio::time::interval(ASK_EVERY);
    let job = loop {
        tick.tick().await;
        let job: Job = match client.get(&format!("jobs/{id}"), &()).await {
            Ok(job) => job,
            // The service may be restarting; the job goes on with it.
            Err(failure) if failure.exit == Exit::Unreachable => {
                let since = *away.get_or_insert_with(Instant::now);
                if since.elapsed() >= context.timeout {
                    return Err(failure);
                }
                continue;
            }
            Err(failure) => return Err(failure),
        };
        away = None;
        shown.show(context, &job);
        if has_ended(&job) {
            break job;
        }
    };
    shown.end();
    context.out.data("onceflow.jobs.watch/1", &job, || table(std::slice::from_ref(&job)))?;
    ending(&job)
}

/// A final state still waits for the results of what is on its way.
fn has_ended(job: &Job) -> bool {
    job.state == State::Paused || (job.state.is_final() && job.in_flight == 0)
}

fn ending(job: &Job) -> Ending {
    let (id, why) = (job.id, job.stop_reason.clone().unwrap_or_default());
    let failed = |what: &str| Failure::new(Exit::Failed, format!("job {id} {what}")).because(&why);
    match job.state {
        State::Paused => {
            Err(failed("is paused").or_try(format!("onceflow jobs resume {id}, or onceflow jobs cancel {id}")))
        }
        State::Stopped => Err(failed("was stopped").or_try("onceflow dlq groups, mend the cause, then plan it again")),
        State::Cancelled => Err(failed("was cancelled")),
        _ if job.failed_again + job.skipped > 0 => Ok(Exit::Partly),
        _ => Ok(Exit::Ok),
    }
}

/// What the reader has seen.
struct Progress {
    bar: bool,
    quiet: bool,
    last: Option<(State, Option<String>)>,
    at: Instant,
}

impl Progress {
    fn new(context: &Context) -> Self {
        Self { bar: io::stderr().is_terminal(), quiet: context.out.quiet, last: None, at: Instant::now() }
    }

    fn show(&mut self, context: &Context, job: &Job) {
        if self.quiet {
            return;
        }
        if self.bar {
            // Nobody is left to tell when stderr is gone.
            let _told = write!(io::stderr().lock(), "\r\u{1b}[K{} {}", bar(job), printable(&line(job)));
            return;
        }
        let now = (job.state, job.waits_for.clone());
        if self.last.as_ref() != Some(&now) || self.at.elapsed() >= LINE_EVERY {
            context.out.say(&line(job));
            (self.last, self.at) = (Some(now), Instant::now());
        }
    }

    fn end(&self) {
        if self.bar && !self.quiet {
            let _told = writeln!(io::stderr().lock());
        }
    }
}

fn line(job: &Job) -> String {
    let (ended, planned, state) = (job.ended(), job.planned, job.state.as_str());
    let mut text = format!(
        "{state} {ended}/{planned}: {} ok, {} failed again, {} skipped, {} on their way",
        job.succeeded, job.failed_again, job.skipped, job.in_flight
    );
    if let Some(seconds) = job.eta_seconds {
        text.push_str(&format!(", about {} left", age(Some(f64::from(seconds)))));
    }
    if let Some(why) = &job.waits_for {
        text.push_str(&format!(" (waits: {why})"));
    }
    text
}

fn bar(job: &Job) -> String {
    let full = job.ended().saturating_mul(BAR_WIDTH).checked_div(job.planned).unwrap_or(BAR_WIDTH).min(BAR_WIDTH);
    let (done, rest) = (full as usize, (BAR_WIDTH - full) as usize);
    format!("[{}{}]", "#".repeat(done), ".".repeat(rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::job::{Action, Plan, Settings};

    fn job(state: State, succeeded: u32, failed_again: u32) -> Job {
        let at = "2026-01-02T03:04:05Z".parse().unwrap();
        Job {
            id: Uuid::nil(),
            action: Action::Replay,
            state,
            actor: "li".into(),
            reason: "fixed".into(),
            approval_needed: false,
            approved_by: None,
            approved_at: None,
            selection: serde_json::Value::Null,
            bound: at,
            plan: Plan::default(),
            settings: Settings::default(),
            hold_until: None,
            planned: 10,
            waiting: 10 - succeeded - failed_again,
            in_flight: 0,
            succeeded,
            failed_again,
            skipped: 0,
            stop_reason: None,
            waits_for: None,
            eta_seconds: None,
            created_at: at,
            changed_at: at,
            finished_at: None,
            newcomers: None,
        }
    }

    #[test]
    fn the_exit_code_is_the_result_of_the_job() {
        let code = |job: Job| ending(&job).unwrap_or_else(|failure| failure.exit);
        assert_eq!(code(job(State::Done, 10, 0)), Exit::Ok);
        assert_eq!(code(job(State::Done, 9, 1)), Exit::Partly);
        for state in [State::Stopped, State::Cancelled, State::Paused] {
            assert_eq!(code(job(state, 1, 1)), Exit::Failed, "{state:?}");
        }
    }

    #[test]
    fn what_is_on_its_way_is_waited_for_also_after_a_stop() {
        let mut stopped = job(State::Stopped, 5, 1);
        stopped.in_flight = 3;
        assert!(!has_ended(&stopped));
        assert!(has_ended(&job(State::Stopped, 5, 1)));
        assert!(has_ended(&job(State::Paused, 5, 1)));
        assert!(!has_ended(&job(State::Held, 0, 0)));
    }

    #[test]
    fn a_bar_is_as_full_as_the_job() {
        assert_eq!(bar(&job(State::Running, 5, 0)), format!("[{}{}]", "#".repeat(15), ".".repeat(15)));
        assert_eq!(bar(&job(State::Done, 10, 0)).matches('#').count(), 30);
    }
}

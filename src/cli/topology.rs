//! `onceflow topology …`: works on broker and database directly; a running service is needed only where messages wait.

mod permissions;

use std::sync::Arc;
use std::time::Duration;

use clap::Subcommand;
use serde::Serialize;

use super::context::{Context, duration};
use super::exit::{Ending, Exit, Failure};
use super::output::Rows;
use crate::broker::{BrokerError, Link, Purpose};
use crate::config::{Config, Role};
use crate::db::{self, DbError, Pool};
use crate::domains;
use crate::health::Health;
use crate::runtime::{AnyConsumer, Place, Unavailable};
use crate::topology::{Apply, ApplyError, Plan, Subject, plan};

const PLAN_EXAMPLES: &str = "\
Examples:
  onceflow topology plan
  onceflow topology plan -o json | jq '.items[] | select(.steps != [])'

Changes nothing. The wish is `consumers.<name>.partitions`; what counts is stored in the database.";

const APPLY_EXAMPLES: &str = "\
Examples:
  onceflow topology apply
  onceflow topology apply --consumer org --within 30m

Works while the service runs and producers publish: nothing is lost, and the order per key holds. Every replica has to be
of this version: older ones would bind their queue again. Whatever interrupts it, the same command again goes on.
Exit codes: 5 an operator has paused the consumer, or another apply runs; 9 not empty within the time.";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Compare: what is, what is wanted, what waits in which queue, what would be done.
    #[command(after_help = PLAN_EXAMPLES)]
    Plan(PlanArgs),
    /// Move to what the configuration wants.
    #[command(after_help = APPLY_EXAMPLES)]
    Apply(ApplyArgs),
    /// The broker's users with the least that each needs, as commands.
    #[command(after_help = permissions::EXAMPLES)]
    Permissions(permissions::Args),
}

#[derive(Debug, clap::Args)]
pub(super) struct PlanArgs {
    /// Only this consumer
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct ApplyArgs {
    /// Only this consumer
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,
    /// Longest time for the old queues to become empty
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10m")]
    within: Duration,
}

#[derive(Debug, Serialize)]
struct Plans {
    items: Vec<Plan>,
}

#[derive(Debug, Serialize)]
struct Applied {
    items: Vec<AppliedTo>,
}

#[derive(Debug, Serialize)]
struct AppliedTo {
    consumer: String,
    partitions: u16,
    changed: bool,
}

pub(super) async fn run(context: &Context, command: &Command) -> Ending {
    if let Command::Permissions(args) = command {
        return permissions::run(context, args);
    }
    let config = context.load_config()?;
    let pool = config.database.pool(Role::Admin);
    let pool = pool.map_err(|e| Failure::new(Exit::Configuration, "database.url can't be used").because(e))?;
    let link = Link::new(config.broker.clone(), Purpose::Consume, Arc::new(Health::default()));
    let ground = Ground { config: &config, pool: &pool, link: &link };
    let ended = ground.carry_out(context, command).await;
    link.close().await;
    ended
}

struct Ground<'a> {
    config: &'a Config,
    pool: &'a Pool,
    link: &'a Link,
}

impl Ground<'_> {
    async fn carry_out(&self, context: &Context, command: &Command) -> Ending {
        let schema = db::schema_state(self.pool).await.map_err(|e| self.database(&e))?;
        if !schema.is_ready() {
            let what = format!("the schema is at {}, this build needs {}", schema.applied, schema.known);
            return Err(Failure::new(Exit::Conflict, what).or_try("onceflow migrate"));
        }
        match command {
            Command::Plan(args) => self.plan(context, args).await,
            Command::Apply(args) => self.apply(context, args).await,
            // Needs neither broker nor database.
            Command::Permissions(args) => permissions::run(context, args),
        }
    }

    async fn plan(&self, context: &Context, args: &PlanArgs) -> Ending {
        let consumers = chosen(args.consumer.as_deref())?;
        let mut items = Vec::new();
        for subject in self.subjects(&consumers) {
            items.push(plan(subject).await.map_err(|e| self.unavailable(e))?);
        }
        let plans = Plans { items };
        context.out.data("onceflow.topology.plan/1", &plans, || table(&plans))?;
        for plan in plans.items.iter().filter(|plan| !plan.steps.is_empty()) {
            context.out.say(&format!("{}:", plan.consumer));
            plan.steps.iter().enumerate().for_each(|(n, step)| context.out.say(&format!("  {}. {step}", n + 1)));
        }
        match plans.items.iter().any(|plan| plan.partitions.is_some() && !plan.steps.is_empty()) {
            true => context.out.say("  -> onceflow topology apply"),
            false => context.out.say("nothing to do"),
        }
        Ok(Exit::Ok)
    }

    async fn apply(&self, context: &Context, args: &ApplyArgs) -> Ending {
        let consumers = chosen(args.consumer.as_deref())?;
        let actor = context.actor();
        let tell = |step: &str| context.out.say(step);
        let mut items = Vec::new();
        for subject in self.subjects(&consumers) {
            let apply = Apply::new(subject, &actor, args.within, &tell);
            let moves = tokio::select! {
                moves = apply.run() => moves.map_err(|e| self.not_applied(&subject.place.own.name, e))?,
                _ = tokio::signal::ctrl_c() => {
                    apply.leave().await.map_err(|e| self.database(&e))?;
                    return Err(Failure::new(Exit::Failed, "interrupted").or_try("the same command again: it goes on"));
                }
            };
            items.push(AppliedTo {
                consumer: subject.place.own.name.clone(),
                partitions: subject.place.own.partitions,
                changed: !moves.is_empty(),
            });
        }
        let applied = Applied { items };
        context.out.data("onceflow.topology.apply/1", &applied, || applied_table(&applied))?;
        if applied.items.iter().all(|item| !item.changed) {
            context.out.say("nothing to do");
        }
        Ok(Exit::Ok)
    }

    fn subjects<'a>(&'a self, consumers: &'a [Box<dyn AnyConsumer>]) -> impl Iterator<Item = Subject<'a>> {
        consumers.iter().filter_map(|consumer| {
            let own = self.config.consumers.iter().find(|own| own.name == consumer.name())?;
            let place = Place { settings: &self.config.runtime, own, patterns: consumer.bindings() };
            Some(Subject { pool: self.pool, link: self.link, place })
        })
    }

    fn not_applied(&self, consumer: &str, error: ApplyError) -> Failure {
        let what = format!("consumer {consumer} was not moved to its end");
        let again = "the same command again: it goes on";
        match error {
            ApplyError::Conflict(why) => Failure::new(Exit::Conflict, what).because(why).or_try(again),
            ApplyError::TimedOut(why) => Failure::new(Exit::TimedOut, what).because(why).or_try(again),
            ApplyError::Database(error) => self.database(&error),
            ApplyError::Broker(error) => self.broker(&error),
        }
    }

    fn unavailable(&self, error: Unavailable) -> Failure {
        match error {
            Unavailable::Database(error) => self.database(&error),
            Unavailable::Broker(error) => self.broker(&error),
        }
    }

    fn database(&self, error: &DbError) -> Failure {
        let exit = if error.is_transient() { Exit::Unreachable } else { Exit::Failed };
        Failure::new(exit, format!("the database at {}", self.config.database.address()))
            .because(error)
            .or_try("ONCEFLOW_DATABASE_URL, or `onceflow check`")
    }

    fn broker(&self, error: &BrokerError) -> Failure {
        let exit = if error.is_refusal() { Exit::Failed } else { Exit::Unreachable };
        Failure::new(exit, format!("the broker at {}", self.config.broker.address()))
            .because(error)
            .or_try("ONCEFLOW_AMQP_URL, or `onceflow check`")
    }
}

fn chosen(name: Option<&str>) -> Result<Vec<Box<dyn AnyConsumer>>, Failure> {
    let mut consumers = domains::consumers();
    let all: Vec<&str> = consumers.iter().map(|consumer| consumer.name()).collect();
    let there = format!("there are {}", all.join(", "));
    consumers.retain(|consumer| name.is_none_or(|name| consumer.name() == name));
    match name.filter(|_| consumers.is_empty()) {
        Some(name) => Err(Failure::new(Exit::NotFound, format!("there is no consumer {name:?}")).or_try(there)),
        None => Ok(consumers),
    }
}

fn table(plans: &Plans) -> Rows {
    let mut rows = Rows::new(&["CONSUMER", "PARTITIONS", "MOVING TO", "WANTED", "QUEUE", "WAITING", "CONSUMERS"]);
    let number = |n: Option<u16>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    for plan in &plans.items {
        let head =
            vec![plan.consumer.clone(), number(plan.partitions), number(plan.moving_to), plan.wanted.to_string()];
        if plan.queues.is_empty() {
            rows.push([head.clone(), vec!["-".to_owned(); 3]].concat());
        }
        for queue in &plan.queues {
            let tail = vec![queue.queue.clone(), queue.ready.to_string(), queue.consumers.to_string()];
            rows.push([head.clone(), tail].concat());
        }
    }
    rows
}

fn applied_table(applied: &Applied) -> Rows {
    let mut rows = Rows::new(&["CONSUMER", "PARTITIONS", "CHANGED"]);
    for item in &applied.items {
        rows.push(vec![item.consumer.clone(), item.partitions.to_string(), item.changed.to_string()]);
    }
    rows
}

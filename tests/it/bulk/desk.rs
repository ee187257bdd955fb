//! Dead letters in a database, jobs over them, and a runner; the test itself plays relay and consumer.

use std::collections::BTreeMap;
use std::sync::Arc;

use onceflow::db::{Commit, Pool, Tx};
use onceflow::health::{Check, Health};
use onceflow::outbox::Handover;
use onceflow::replay::job::{self, Action, Job, JobError, NewJob, Planned, Runner, Settings};
use onceflow::replay::{Filter, Selection};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::harness::{Database, SOON, eventually};

/// `$3` dead letters of consumer `$1` with reason `$2`; the first failed longest ago. Their keys take turns among `$4`.
pub(super) const INSERT: &str = "
    INSERT INTO onceflow.dead_letter (id, tenant, consumer, source, event_id, event_type, subject, partition_key,
        stage, reason, error_chain, content_type, payload, headers, original_exchange, original_routing_key,
        attempts, first_failed_at, last_failed_at, consumer_version)
    SELECT gen_random_uuid(), 'default', $1::text, 'hr', e.id, $5::text, NULL, e.key, 'handle', $2::text, ARRAY['it failed'],
           'application/json', convert_to(replace($6::text, '%', n::text), 'UTF8'),
           jsonb_build_object('amqp:message_id', e.id, 'amqp:type', $5::text, 'amqp:content_type', 'application/json',
                              'cloudEvents:partitionkey', e.key),
           'onceflow.in', $5::text, 1, now() - ($3::int8 - n) * interval '1 millisecond' - interval '1 minute',
           now() - interval '30 seconds', '1'
      FROM generate_series(1, $3::int8) AS n,
           LATERAL (SELECT $2::text || '-' || n AS id, 'k' || n % $4::int8 AS key) AS e";

pub(super) struct Desk {
    pub(super) client: Client,
    pub(super) pool: Pool,
    pub(super) health: Arc<Health>,
    pub(super) database: Database,
}

/// A runner in a task of its own.
pub(super) struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    pub(super) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }

    /// As a kill would: nothing is given back.
    pub(super) async fn abort(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }
}

impl Desk {
    pub(super) async fn new() -> Self {
        let database = Database::new().await;
        let health = Arc::new(Health::default());
        for check in ["database", "migrations", "broker.publish"] {
            health.set(check, Check::Ok);
        }
        Self { client: database.client().await, pool: database.pool(), health, database }
    }

    pub(super) async fn letters(&self, consumer: &str, reason: &str, count: i64, keys: i64) {
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
            [&consumer, &reason, &count, &keys, &"probe.done.v1", &"{\"do\": \"apply\", \"n\": %}"];
        self.client.execute(INSERT, &params).await.unwrap();
    }

    pub(super) async fn create(&self, new: &NewJob) -> Result<Planned, JobError> {
        let tx = self.pool.begin().await.unwrap();
        let planned = job::create(&tx, new, &["probe", "sms"]).await;
        end(tx, planned, !new.dry_run).await
    }

    pub(super) async fn made(&self, new: &NewJob) -> Job {
        self.create(new).await.unwrap().job.unwrap()
    }

    pub(super) async fn job(&self, id: Uuid) -> Job {
        let tx = self.pool.begin().await.unwrap();
        let job = job::job(&tx, id).await.unwrap();
        tx.rollback().await;
        job
    }

    pub(super) async fn steer(&self, id: Uuid, verb: &str) -> Result<Job, JobError> {
        let tx = self.pool.begin().await.unwrap();
        let by = ("wang", "because");
        let job = match verb {
            "start" => job::start(&tx, id, by).await,
            "approve" => job::approve(&tx, id, by).await,
            "pause" => job::pause(&tx, id, by).await,
            "resume" => job::resume(&tx, id, by).await,
            "cancel" => job::cancel(&tx, id, by).await,
            _ => panic!("{verb}"),
        };
        end(tx, job, true).await
    }

    pub(super) fn run(&self) -> Running {
        self.run_on(self.pool.clone())
    }

    pub(super) fn run_on(&self, pool: Pool) -> Running {
        let queues = ["probe", "sms"].map(|name| (name.to_owned(), format!("flow.{name}")));
        let runner = Runner {
            pool,
            queues: BTreeMap::from(queues),
            outbox: Handover::default(),
            health: self.health.clone(),
            loads: Arc::default(),
        };
        let stop = CancellationToken::new();
        Running { task: tokio::spawn(job::run_jobs(runner, stop.clone())), stop }
    }

    /// Everything on its way arrives, and succeeds unless its event id is in `failing`. Returns the event ids in the order in
    /// which the relay would publish them.
    pub(super) async fn deliver(&self, failing: &str) -> Vec<String> {
        let sent = "DELETE FROM onceflow.outbox RETURNING seq, (headers->>'amqp:message_id') AS id, id AS replay";
        let mut rows = self.client.query(sent, &[]).await.unwrap();
        rows.sort_by_key(|row| row.get::<_, i64>(0));
        for row in &rows {
            let (id, replay): (&str, Uuid) = (row.get(1), row.get(2));
            let result = if id.starts_with(failing) && !failing.is_empty() {
                "UPDATE onceflow.dead_letter SET state = 'open', last_failed_at = clock_timestamp() WHERE replay_id = $1"
            } else {
                "UPDATE onceflow.dead_letter SET state = 'replayed', closed_at = clock_timestamp() WHERE replay_id = $1"
            };
            assert_eq!(self.client.execute(result, &[&replay]).await.unwrap(), 1);
        }
        rows.iter().map(|row| row.get(1)).collect()
    }

    /// Delivers whatever comes until the job is in this state; returns the event ids in order.
    pub(super) async fn deliver_until(&self, id: Uuid, state: job::State, failing: &str) -> Vec<String> {
        let mut sent = Vec::new();
        let deadline = tokio::time::Instant::now() + SOON;
        while self.job(id).await.state != state {
            assert!(tokio::time::Instant::now() < deadline, "{:?}", self.job(id).await);
            sent.extend(self.deliver(failing).await);
        }
        sent
    }

    pub(super) async fn until(&self, id: Uuid, what: impl Fn(&Job) -> bool) -> Job {
        let what = &what;
        eventually(SOON, || async move {
            let job = self.job(id).await;
            what(&job).then_some(job)
        })
        .await
    }

    pub(super) async fn count(&self, sql: &str) -> i64 {
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }

    pub(super) async fn audit(&self, action: &str) -> i64 {
        let sql = "SELECT count(*) FROM onceflow.audit WHERE action = $1";
        self.client.query_one(sql, &[&action]).await.unwrap().get(0)
    }

    pub(super) async fn audit_detail(&self, action: &str) -> Value {
        let sql = "SELECT detail FROM onceflow.audit WHERE action = $1 ORDER BY at LIMIT 1";
        self.client.query_one(sql, &[&action]).await.unwrap().get(0)
    }
}

async fn end<T>(tx: Tx, result: Result<T, JobError>, keep: bool) -> Result<T, JobError> {
    if result.is_err() || !keep {
        tx.rollback().await;
        return result;
    }
    match tx.commit().await {
        Commit::Committed => result,
        Commit::RolledBack(error) | Commit::Unknown(error) => Err(error.into()),
    }
}

/// A replay of everything open, without undo window, by li.
pub(super) fn everything() -> NewJob {
    NewJob {
        action: Action::Replay,
        selection: Selection::Filter(Filter::default()),
        actor: "li".to_owned(),
        reason: Some("mended".to_owned()),
        settings: Settings { rate: 500, max_in_flight: 500, canary: 0, hold_seconds: 0 },
        dry_run: false,
        start: true,
        expect_count: None,
        max: None,
        idempotency_key: None,
        second_person_above: 0,
    }
}

/// Where ids end in a number: that.
pub(super) fn number(id: &str) -> i64 {
    id.rsplit('-').next().unwrap().parse().unwrap()
}

pub(super) fn books(job: &Job) -> Value {
    json!([job.planned, job.waiting, job.in_flight, job.succeeded, job.failed_again, job.skipped])
}

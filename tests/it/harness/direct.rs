//! A consumer on a real database, without a broker.

use std::sync::Arc;

use bytes::Bytes;
use onceflow::db::{Class, Commit, Pool, Tx};
use onceflow::event::{DEFAULT_TENANT, Envelope, Format, Rejection, Trace};
use onceflow::runtime::{AnyConsumer, Consumer, Decoded, HandleError, Outcome, erase};
use serde_json::Value;

use super::Database;

/// As often as the runtime's lanes try a contended batch in place.
const CONTENTION_TRIES: u32 = 5;

/// A consumer with a database of its own.
pub(crate) struct Direct {
    pub(crate) database: Database,
    pool: Pool,
    consumer: Box<dyn AnyConsumer>,
}

impl Direct {
    pub(crate) async fn new(consumer: impl Consumer) -> Self {
        Self::of(erase(consumer)).await
    }

    /// A consumer of the build, by name: the types of the registered ones are private.
    pub(crate) async fn named(name: &str) -> Self {
        let found = onceflow::domains::consumers().into_iter().find(|consumer| consumer.name() == name);
        Self::of(found.unwrap()).await
    }

    pub(crate) async fn of(consumer: Box<dyn AnyConsumer>) -> Self {
        let database = Database::new().await;
        let pool = database.pool();
        Self { database, pool, consumer }
    }

    /// Applies the events one by one, each in its own transaction. As in the runtime, only applied and skipped events are
    /// committed; a rejection, from wherever, is an error here.
    pub(crate) async fn apply(&self, events: Vec<Envelope>) -> Vec<Result<Outcome, Rejection>> {
        let mut results = Vec::with_capacity(events.len());
        for event in events {
            results.push(self.apply_batch(vec![event]).await.map(|mut outcomes| outcomes.remove(0)));
        }
        results
    }

    /// Applies one event.
    pub(crate) async fn apply_one(&self, event: Envelope) -> Result<Outcome, Rejection> {
        self.apply(vec![event]).await.remove(0)
    }

    /// Applies the events as one micro-batch in one transaction, which is rolled back unless every one is applied or skipped.
    pub(crate) async fn apply_batch(&self, events: Vec<Envelope>) -> Result<Vec<Outcome>, Rejection> {
        let decoded = self.decode(events)?;
        for _ in 0..CONTENTION_TRIES {
            if let Some(result) = self.attempt(&decoded).await {
                return result;
            }
        }
        panic!("deadlocks at each of {CONTENTION_TRIES} attempts")
    }

    /// Applies the events as one micro-batch, and returns how many statements that took.
    pub(crate) async fn statements(&self, events: Vec<Envelope>) -> u64 {
        self.cost(events, Tx::statements).await
    }

    /// Applies the events as one micro-batch, and returns how often it waited for the database.
    pub(crate) async fn round_trips(&self, events: Vec<Envelope>) -> u64 {
        self.cost(events, Tx::round_trips).await
    }

    async fn cost(&self, events: Vec<Envelope>, of: fn(&Tx) -> u64) -> u64 {
        let decoded = self.decode(events).unwrap();
        let expected = decoded.len();
        let tx = self.pool.begin().await.unwrap();
        let handled = self.consumer.handle(&tx, decoded).await;
        let cost = of(&tx);
        finish(tx, handled, expected).await.unwrap();
        cost
    }

    fn decode(&self, events: Vec<Envelope>) -> Result<Vec<(Arc<Envelope>, Decoded)>, Rejection> {
        let decode = |event: Envelope| self.consumer.decode(&event).map(|payload| (Arc::new(event), payload));
        events.into_iter().map(decode).collect()
    }

    /// One transaction; `None` when it lost a deadlock or a race, which the runtime tries again in place.
    async fn attempt(&self, events: &[(Arc<Envelope>, Decoded)]) -> Option<Result<Vec<Outcome>, Rejection>> {
        let tx = self.pool.begin().await.unwrap();
        match self.consumer.handle(&tx, events.to_vec()).await {
            Err(HandleError::Database(error)) if error.class() == Class::Contention => {
                tx.rollback().await;
                None
            }
            handled => Some(finish(tx, handled, events.len()).await),
        }
    }
}

async fn finish(
    tx: Tx,
    handled: Result<Vec<Outcome>, HandleError>,
    expected: usize,
) -> Result<Vec<Outcome>, Rejection> {
    let outcomes = match handled {
        Ok(outcomes) => outcomes,
        Err(HandleError::Rejected(rejection)) => {
            tx.rollback().await;
            return Err(rejection);
        }
        Err(HandleError::Database(error)) => panic!("{error}"),
    };
    assert_eq!(outcomes.len(), expected, "one outcome for each event");
    let rejected = outcomes.iter().find_map(|outcome| match outcome {
        Outcome::Reject(rejection) => Some(rejection.clone()),
        _ => None,
    });
    if let Some(rejection) = rejected {
        tx.rollback().await;
        return Err(rejection);
    }
    if outcomes.iter().any(|outcome| matches!(outcome, Outcome::Retry { .. })) {
        tx.rollback().await;
        return Ok(outcomes);
    }
    match tx.commit().await {
        Commit::Committed => Ok(outcomes),
        Commit::RolledBack(error) | Commit::Unknown(error) => panic!("not committed: {error}"),
    }
}

/// A plain JSON event of the default tenant, ordered by its own id.
pub(crate) fn envelope(event_type: &str, id: &str, payload: &Value) -> Envelope {
    Envelope {
        id: id.to_owned(),
        source: "test".to_owned(),
        event_type: event_type.to_owned(),
        subject: None,
        partition_key: id.to_owned(),
        time: None,
        tenant: DEFAULT_TENANT.to_owned(),
        trace: Trace::default(),
        format: Format::Json,
        data: Bytes::from(payload.to_string()),
    }
}

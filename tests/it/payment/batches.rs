//! A micro-batch is written in sets: in few statements, and with nothing else to show for it than its events one by one.

use onceflow::event::{Envelope, Rejection};
use onceflow::runtime::Outcome;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::{CALLBACK, CANCEL, PLACED, callback, cancel, direct, event, placed, skipped, state, success};
use crate::harness::direct::Direct;

#[tokio::test]
async fn a_batch_takes_as_many_statements_for_a_hundred_events_as_for_one() {
    let direct = direct().await;
    for size in [1, 10, 100] {
        let order = |n: usize| format!("SO-{size}-{n}");
        let place = |n: usize| event(PLACED, &placed(&order(n)));
        let pay = |n: usize| success(&order(n), &format!("n-{size}-{n}"), &format!("t-{size}-{n}"));
        let batch = |make: &dyn Fn(usize) -> Vec<Envelope>| (0..size).flat_map(make).collect::<Vec<_>>();
        // Lock the orders, which inserts new ones; insert lines.
        assert_eq!(direct.statements(batch(&|n| vec![place(n)])).await, 2, "{size} new orders");
        // Lock and read the orders; insert payments; write the orders.
        assert_eq!(direct.statements(batch(&|n| vec![pay(n)])).await, 4, "{size} callbacks of known orders");
        // The payments can't be inserted: read what was recorded instead.
        assert_eq!(direct.statements(batch(&|n| vec![pay(n)])).await, 4, "{size} callbacks once more");
        // The same, and the lines to compare, and what might wait.
        assert_eq!(direct.statements(batch(&|n| vec![place(n)])).await, 4, "{size} orders once more");
        let whole = batch(&|n| vec![place(n + 100), pay(n + 100), cancel(&order(n + 100))]);
        assert_eq!(direct.statements(whole).await, 3, "{size} orders from their placing to their end");
        assert_eq!(direct.statements(batch(&|n| vec![pay(n + 200)])).await, 2, "{size} callbacks before their orders");
        direct.apply_batch(batch(&|n| vec![place(n + 300)])).await.unwrap();
        let mixed = batch(&|n| vec![place(n + 400), pay(n + 300)]);
        assert_eq!(direct.statements(mixed).await, 5, "{size} new orders and as many callbacks of known ones");
        assert_eq!(direct.statements(batch(&|n| vec![place(n + 200)])).await, 6, "{size} orders with orphans");
    }
}

#[tokio::test]
async fn p02_a_copy_among_other_callbacks_of_a_batch_changes_nothing() {
    let direct = direct().await;
    direct.apply_one(event(PLACED, &placed("SO-1"))).await.unwrap();
    direct.apply_one(success("SO-1", "n1", "t1")).await.unwrap();
    // By hand, so that the copy would move the order if it were taken for news.
    let by_hand = "update onceflow.payment_order set state = 'PAYING';
                   update onceflow.payment set disposition = 'noted'";
    direct.database.client().await.batch_execute(by_hand).await.unwrap();
    assert_eq!(direct.apply_one(success("SO-1", "n2", "t1")).await, skipped("already_recorded"));
    assert_eq!(state(&direct, "SO-1").await, "PAYING");
    let batch = vec![success("SO-1", "n2", "t1"), event(PLACED, &placed("SO-2")), success("SO-1", "n3", "t3")];
    let outcomes = direct.apply_batch(batch).await.unwrap();
    assert_eq!(Ok(outcomes[0].clone()), skipped("already_recorded"));
    assert!(matches!(&outcomes[2], Outcome::Applied(told) if told.len() == 2), "the other payment is accepted");
    assert_eq!((state(&direct, "SO-1").await, state(&direct, "SO-2").await), ("PAID".into(), "CREATED".into()));
    let version = "select version from onceflow.payment_order where order_no = 'SO-1'";
    let version: i64 = direct.database.client().await.query_one(version, &[]).await.unwrap().get(0);
    assert_eq!(version, 3, "one for each change of state");
}

const CASES: u64 = 40;
const BATCHES: usize = 5;
const LONGEST: usize = 14;

#[tokio::test]
async fn p03_a_batch_leaves_what_its_events_leave_one_by_one() {
    let direct = direct().await;
    let mut whole = 0;
    for seed in 0..CASES {
        let mut world = World { rng: StdRng::seed_from_u64(seed), told: Vec::new() };
        for n in 0..BATCHES {
            let batch = world.batch();
            let (together, in_one) =
                as_the_runtime_does(&direct, of_tenants(&batch, &format!("together-{seed}"))).await;
            let singly = direct.apply(of_tenants(&batch, &format!("singly-{seed}"))).await;
            assert_eq!(together, singly, "seed {seed}, batch {n}");
            whole += u64::from(in_one);
        }
        for tenant in 0..TENANTS {
            let (together, singly) = (format!("together-{seed}-{tenant}"), format!("singly-{seed}-{tenant}"));
            assert_eq!(rows(&direct, &together).await, rows(&direct, &singly).await, "seed {seed}");
        }
    }
    assert!(whole > CASES * BATCHES as u64 / 3, "too many batches were taken apart to show anything: {whole} were not");
}

/// In one transaction; where an event is rejected, each in its own.
async fn as_the_runtime_does(direct: &Direct, batch: Vec<Envelope>) -> (Vec<Result<Outcome, Rejection>>, bool) {
    match direct.apply_batch(batch.clone()).await {
        Ok(outcomes) => (outcomes.into_iter().map(Ok).collect(), true),
        Err(_) => (direct.apply(batch).await, false),
    }
}

const TENANTS: usize = 2;

fn of_tenants(batch: &[(usize, &'static str, Value)], prefix: &str) -> Vec<Envelope> {
    let of_tenant = |(tenant, event_type, payload): &(usize, &'static str, Value)| {
        let mut event = event(event_type, payload);
        event.tenant = format!("{prefix}-{tenant}");
        event
    };
    batch.iter().map(of_tenant).collect()
}

/// Everything that a tenant has, without the times at which it was written.
async fn rows(direct: &Direct, tenant: &str) -> Vec<Value> {
    let sql =
        "select to_jsonb(o) - '{tenant,created_at,changed_at}'::text[], array[1, row_number() over (order by order_no)]
                 from onceflow.payment_order o where tenant = $1
                union all
               select to_jsonb(l) - '{tenant}'::text[], array[2, row_number() over (order by order_no, line_no)]
                 from onceflow.payment_order_line l where tenant = $1
                union all
               select to_jsonb(p) - '{tenant,seq,recorded_at}'::text[], array[3, row_number() over (order by seq)]
                 from onceflow.payment p where tenant = $1
                order by 2";
    direct.database.client().await.query(sql, &[&tenant]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// Few orders of two tenants, so that much collides; now and then something that is rejected.
struct World {
    rng: StdRng,
    /// Callbacks so far.
    told: Vec<Value>,
}

impl World {
    fn batch(&mut self) -> Vec<(usize, &'static str, Value)> {
        let length = self.rng.random_range(1..=LONGEST);
        (0..length).map(|_| self.event()).collect()
    }

    fn event(&mut self) -> (usize, &'static str, Value) {
        let tenant = usize::from(self.rng.random_ratio(1, 6));
        let order = format!("SO-{}", self.rng.random_range(0..5));
        let (event_type, payload) = match self.rng.random_range(0..10) {
            0..3 => (PLACED, self.placed(&order)),
            3 => (CANCEL, json!({"orderNo": order, "reason": format!("reason {}", self.rng.random_range(0..3))})),
            _ => (CALLBACK, self.callback(&order)),
        };
        (tenant, event_type, payload)
    }

    fn placed(&mut self, order: &str) -> Value {
        let mut placed = placed(order);
        if self.rng.random_ratio(1, 40) {
            placed["lines"] = json!([{"sku": "TEA", "quantity": "1", "unitPrice": "12800"}]);
        }
        placed
    }

    fn callback(&mut self, order: &str) -> Value {
        let said = match self.rng.random_range(0..40) {
            // A copy, or the same news under another notification id.
            0..10 if !self.told.is_empty() => {
                let mut copy = self.told.choose(&mut self.rng).unwrap().clone();
                if self.rng.random() {
                    copy["notifyId"] = json!(self.new_id());
                }
                return copy;
            }
            // Another order under a known notification id or transaction.
            10 if !self.told.is_empty() => {
                let mut other = self.told.choose(&mut self.rng).unwrap().clone();
                let field = *["notifyId", "transactionId"].choose(&mut self.rng).unwrap();
                other[field] = json!(self.new_id());
                other["orderNo"] = json!(order);
                other
            }
            _ => {
                let status = *["PROCESSING", "SUCCESS", "SUCCESS", "FAILED", "CLOSED"].choose(&mut self.rng).unwrap();
                let transaction = format!("{order}-t{}", self.rng.random_range(0..3));
                let mut said = callback(order, &self.new_id(), &transaction, status);
                if self.rng.random_ratio(1, 12) {
                    said["transactionId"] = json!(self.new_id());
                    said["amount"] = json!("1");
                }
                said
            }
        };
        self.told.push(said.clone());
        said
    }

    fn new_id(&mut self) -> String {
        format!("id-{}", self.rng.random_range(0..u32::MAX))
    }
}

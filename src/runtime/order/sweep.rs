//! Now and then: lines that nobody moves on.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::{OrderPolicy, store};
use crate::db::{DbError, Pool};

/// How often it is looked for them.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Keys of one transaction: each may have many events.
const KEYS: i64 = 20;

/// Looks until `stop`: lines of a strict consumer whose heads are dealt with move on; of any other one all that waits is let go.
pub(in crate::runtime) async fn sweep(
    consumer: &'static str,
    policy: OrderPolicy,
    pool: Pool,
    stop: CancellationToken,
) {
    while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
        match stop.run_until_cancelled(once(consumer, policy, &pool)).await {
            None => return,
            Some(Ok(0)) => {}
            Some(Ok(keys)) => info!(consumer, keys, "{keys} blocked keys of {consumer} go on"),
            Some(Err(error)) => debug!(consumer, %error, "blocked keys were not looked at: {error}"),
        }
    }
}

async fn once(consumer: &str, policy: OrderPolicy, pool: &Pool) -> Result<usize, DbError> {
    let mut all = 0;
    loop {
        let tx = pool.begin_with_first_statement().await?;
        let keys = match policy {
            OrderPolicy::Strict => store::lock_orphans(&tx, consumer, KEYS).await?,
            OrderPolicy::Versioned => store::lock_some(&tx, consumer, KEYS).await?,
        };
        let found = keys.0.len();
        match policy {
            OrderPolicy::Strict => store::move_on(&tx, keys).await?,
            OrderPolicy::Versioned => store::let_go(&tx, keys).await?,
        }
        tx.commit_repeatable().await?;
        all += found;
        if i64::try_from(found).unwrap_or(KEYS) < KEYS {
            return Ok(all);
        }
    }
}

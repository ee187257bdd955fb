//! Another session's open transaction: it holds a snapshot and has written an outbox row whose number is then passed by others.

use tokio_postgres::Client;

use crate::events::id_of;
use crate::ground::connect;

const WRITE: &str = "
    INSERT INTO onceflow.outbox (aggregatetype, aggregateid, type, payload, headers)
    VALUES ('user', 'bench/held', 'org.user.changed.v1', '{}', jsonb_build_object('cloudEvents:causationid', $1::text))";

/// A session in an open transaction.
pub(crate) struct Held(Client);

impl Held {
    /// Opens the transaction and writes the row, as if event `n` had caused it.
    pub(crate) async fn open(database_url: &str, n: u64) -> anyhow::Result<Self> {
        let client = connect(database_url).await?;
        client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
        client.execute(WRITE, &[&id_of(n)]).await?;
        Ok(Self(client))
    }

    pub(crate) async fn commit(self) -> anyhow::Result<()> {
        Ok(self.0.batch_execute("COMMIT").await?)
    }
}

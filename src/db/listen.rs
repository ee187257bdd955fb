//! Waiting for notifications, on a connection of its own. Nothing rests on them: they only shorten waiting.
//!
//! A pool can't be used: a notification comes to the connection that listens, and only when somebody drives it
//! (`Connection::poll_message`). `LISTEN` needs no privilege. Behind a connection pooler in transaction mode nothing is ever
//! heard, which costs no more than the waiting.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, Stream, StreamExt, stream};
use tokio::sync::Notify;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls, Socket};
use tokio_util::sync::CancellationToken;

use super::access::Access;
use super::error::DbError;
use super::pool::{CONNECT_WITHIN, Settings, SettingsError, place_of};
use crate::pacing::Pacing;

/// Rows for the outbox from somebody who hands nothing over; the trigger that says so is in the migrations.
const LISTEN: &str = "LISTEN onceflow_outbox";
/// Longest wait for the answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Hears of rows that others write into the outbox.
pub struct Listener {
    access: Access,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}

impl Listener {
    /// Reaches the database as a pool with these settings would; connects when it runs.
    ///
    /// # Errors
    /// When the URL can't be used as it is.
    pub fn new(settings: &Settings) -> Result<Self, SettingsError> {
        Ok(Self { access: Access::new(settings)? })
    }

    /// Renews the way to the database; it then connects anew.
    pub fn access(&self) -> Access {
        self.access.clone()
    }

    /// Rings the bell at each notification until `stop`, and whenever it listens anew: nobody knows what was missed.
    pub async fn run(self, bell: Arc<Notify>, stop: CancellationToken) {
        let mut pacing = Pacing::reconnect();
        let mut changes = self.access.changes();
        let for_ever = async {
            loop {
                let mut listened = false;
                let Err(error) = tokio::select! {
                    ended = self.listen(&bell, &mut listened) => ended,
                    // The sender lives in the access that we hold.
                    _ = changes.changed() => continue,
                };
                if listened {
                    pacing.reset();
                    tracing::info!(%error, "not listening for rows of others: {error}; they are found a little later");
                }
                tokio::time::sleep(pacing.next_wait()).await;
            }
        };
        stop.run_until_cancelled(for_ever).await;
    }

    async fn listen(&self, bell: &Notify, listened: &mut bool) -> Result<std::convert::Infallible, DbError> {
        let way = self.access.now();
        match &way.tls {
            Some(tls) => listen_on(connect(&way.config, tls.clone()).await?, bell, listened).await,
            None => listen_on(connect(&way.config, NoTls).await?, bell, listened).await,
        }
    }
}

async fn connect<T>(config: &Config, tls: T) -> Result<(Client, Connection<Socket, T::Stream>), DbError>
where
    T: MakeTlsConnect<Socket>,
{
    match tokio::time::timeout(CONNECT_WITHIN, config.connect(tls)).await {
        Ok(connected) => connected.map_err(|e| DbError::connect(&place_of(config), e)),
        Err(_) => Err(DbError::silent("connect", CONNECT_WITHIN)),
    }
}

async fn listen_on<T>(
    (client, connection): (Client, Connection<Socket, T>),
    bell: &Notify,
    listened: &mut bool,
) -> Result<std::convert::Infallible, DbError>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut messages = messages_of(connection);
    let mut asked = pin!(tokio::time::timeout(ANSWER_WITHIN, client.batch_execute(LISTEN)).fuse());
    loop {
        tokio::select! {
            answer = &mut asked => {
                answer.map_err(|_| DbError::silent("listen", ANSWER_WITHIN))?.map_err(|e| DbError::postgres("listen", e))?;
                *listened = true;
                bell.notify_one();
            }
            message = messages.next() => match message {
                Some(Ok(AsyncMessage::Notification(_))) => bell.notify_one(),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(DbError::postgres("listen", error)),
                None => return Err(DbError::silent("listen", Duration::ZERO)),
            },
        }
    }
}

/// What the server sends; ends with the connection.
fn messages_of<T>(
    mut connection: Connection<Socket, T>,
) -> impl Stream<Item = Result<AsyncMessage, tokio_postgres::Error>> + Unpin
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    stream::poll_fn(move |context| connection.poll_message(context))
}

//! Wakes the relay of this process when a transaction with outbox rows has committed. Only shortens waiting.

use std::sync::Arc;

use tokio::sync::Notify;

/// A handle to wake the relay.
#[derive(Debug, Clone, Default)]
pub struct Wakeup(Arc<Notify>);

impl Wakeup {
    /// There are new rows.
    pub fn wake(&self) {
        self.0.notify_one();
    }

    /// The bell itself, for those who know nothing of the outbox.
    pub fn bell(&self) -> Arc<Notify> {
        self.0.clone()
    }

    pub(super) async fn woken(&self) {
        self.0.notified().await;
    }
}

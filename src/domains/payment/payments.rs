//! The payments that a batch deals with: those that were recorded before, those that it adds, and the orphans that it settles.

use foldhash::HashMap;

use super::event::{Callback, Status};
use super::verdict::Verdict;

/// A callback that is stored, and whose it is.
#[derive(Debug)]
pub(super) struct Recorded {
    pub(super) tenant: String,
    pub(super) callback: Callback,
}

/// A row of `payment`, to be written.
#[derive(Debug)]
pub(super) struct Payment<'a> {
    pub(super) tenant: &'a str,
    pub(super) callback: &'a Callback,
    pub(super) verdict: Verdict,
}

/// A callback that waits for its order.
#[derive(Debug)]
pub(super) enum Orphan<'a> {
    /// Stored by an earlier transaction.
    Stored(&'a Recorded),
    /// Added by this batch, at this position.
    Added(usize),
}

type NotificationKey<'a> = (&'a str, &'a str, &'a str);
type NewsKey<'a> = (&'a str, &'a str, &'a str, Status);

/// What is known of payments while a batch is planned.
#[derive(Debug, Default)]
pub(super) struct Payments<'a> {
    by_notification: HashMap<NotificationKey<'a>, &'a Callback>,
    by_news: HashMap<NewsKey<'a>, &'a Callback>,
    /// To be inserted, in order of arrival.
    pub(super) added: Vec<Payment<'a>>,
    /// Stored orphans whose order is there now.
    pub(super) settled: Vec<Payment<'a>>,
}

impl<'a> Payments<'a> {
    /// Those that were recorded before.
    pub(super) fn of(recorded: &'a [Recorded]) -> Self {
        let mut payments = Self::default();
        for Recorded { tenant, callback } in recorded {
            payments.know(tenant, callback);
        }
        payments
    }

    fn know(&mut self, tenant: &'a str, callback: &'a Callback) {
        self.by_notification.insert(notification_key(tenant, callback), callback);
        self.by_news.insert(news_key(tenant, callback), callback);
    }

    /// What is recorded under the callback's notification id, and under its transaction and status.
    pub(super) fn recorded(&self, tenant: &'a str, callback: &'a Callback) -> Vec<&'a Callback> {
        let same_notification = self.by_notification.get(&notification_key(tenant, callback));
        let same_news = self.by_news.get(&news_key(tenant, callback));
        same_notification.into_iter().chain(same_news).copied().collect()
    }

    /// Records a callback; the answer is what the order keeps where it has to wait.
    pub(super) fn add(&mut self, tenant: &'a str, callback: &'a Callback, verdict: Verdict) -> Orphan<'a> {
        self.know(tenant, callback);
        self.added.push(Payment { tenant, callback, verdict });
        Orphan::Added(self.added.len() - 1)
    }

    /// What the orphan says.
    pub(super) fn callback(&self, orphan: &Orphan<'a>) -> &'a Callback {
        match orphan {
            Orphan::Stored(recorded) => &recorded.callback,
            Orphan::Added(at) => self.added[*at].callback,
        }
    }

    /// Writes down what became of an orphan.
    pub(super) fn settle(&mut self, orphan: &Orphan<'a>, verdict: Verdict) {
        match orphan {
            Orphan::Stored(Recorded { tenant, callback }) => {
                self.settled.push(Payment { tenant, callback, verdict });
            }
            Orphan::Added(at) => self.added[*at].verdict = verdict,
        }
    }
}

fn notification_key<'a>(tenant: &'a str, callback: &'a Callback) -> NotificationKey<'a> {
    (tenant, callback.provider.as_str(), callback.notify_id.as_str())
}

fn news_key<'a>(tenant: &'a str, callback: &'a Callback) -> NewsKey<'a> {
    (tenant, callback.provider.as_str(), callback.transaction_id.as_str(), callback.status)
}

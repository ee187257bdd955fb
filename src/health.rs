//! What the process knows of its own condition: one named check per dependency and consumer. Pure state, no I/O.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// State of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// Works.
    Ok,
    /// Works, and an operator should do something all the same.
    Advised(String),
    /// An operator stopped it; the process is still ready.
    Paused(String),
    /// Doesn't work yet, or no longer: says what it waits for.
    Waiting(String),
}

/// The named checks of one process.
#[derive(Debug)]
pub struct Health {
    checks: Mutex<BTreeMap<String, Check>>,
    changed: watch::Sender<u64>,
}

impl Default for Health {
    fn default() -> Self {
        Self { checks: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

impl Health {
    /// Sets a check; returns whether that changed it, so that a caller can log the change once.
    pub fn set(&self, name: &str, check: Check) -> bool {
        let mut checks = self.lock();
        if checks.get(name) == Some(&check) {
            return false;
        }
        checks.insert(name.to_owned(), check);
        drop(checks);
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
        true
    }

    /// All checks by name.
    pub fn snapshot(&self) -> BTreeMap<String, Check> {
        self.lock().clone()
    }

    /// The checks that wait, as `name: reason`.
    pub fn waiting(&self) -> Vec<String> {
        let waits = |(name, check): (&String, &Check)| match check {
            Check::Waiting(why) => Some(format!("{name}: {why}")),
            Check::Ok | Check::Advised(_) | Check::Paused(_) => None,
        };
        self.lock().iter().filter_map(waits).collect()
    }

    /// Whether there are checks and none of them waits.
    pub fn is_ready(&self) -> bool {
        let checks = self.lock();
        !checks.is_empty() && checks.values().all(|c| !matches!(c, Check::Waiting(_)))
    }

    /// Rises at every change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Check>> {
        // A panic while holding the lock can't leave the map half-written.
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

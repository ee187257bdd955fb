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

    /// Sets a check that still is what the caller has last made of it; what another has said since stays. Returns whether that
    /// changed it.
    pub fn replace(&self, name: &str, own: &Check, check: Check) -> bool {
        let mut checks = self.lock();
        if checks.get(name) != Some(own) || *own == check {
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

#[cfg(test)]
mod tests {
    use super::{Check, Health};

    #[test]
    fn who_finds_all_well_takes_back_only_what_it_has_said_itself_d9() {
        let (health, starting) = (Health::default(), Check::Waiting("starting".to_owned()));
        health.set("database", starting.clone());
        assert!(health.replace("database", &starting, Check::Ok) && health.is_ready());
        let mut changes = health.subscribe();
        changes.mark_unchanged();
        // A session that only reads finds nothing wrong with a full disk.
        health.set("database", Check::Waiting("no space left on device".to_owned()));
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        assert!(!health.replace("database", &starting, Check::Ok) && !health.is_ready());
        assert!(!health.replace("database", &Check::Ok, Check::Ok) && !health.is_ready());
        assert!(!changes.has_changed().unwrap(), "nobody is told of what did not change");
    }
}

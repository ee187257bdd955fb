//! How long to wait before trying again: capped exponential delays with jitter, without end.
//!
//! The only user of the `backoff` package, which is unmaintained (RUSTSEC-2025-0012): a swap is this one file.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;

/// Successive waits for something that will come back some day.
#[derive(Debug)]
pub(crate) struct Pacing {
    inner: ExponentialBackoff,
}

impl Pacing {
    /// Waits that grow from `first` to `cap`, each spread by ±20 %, for ever.
    pub(crate) fn new(first: Duration, cap: Duration) -> Self {
        let inner = ExponentialBackoff {
            current_interval: first,
            initial_interval: first,
            max_interval: cap,
            multiplier: 2.0,
            randomization_factor: 0.2,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        Self { inner }
    }

    /// The pace for a connection to a server that is away: found again well within five seconds.
    pub(crate) fn reconnect() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(2))
    }

    /// How long to wait now.
    pub(crate) fn next_wait(&mut self) -> Duration {
        self.inner.next_backoff().unwrap_or(self.inner.max_interval)
    }

    /// It worked: the next wait is the first again.
    pub(crate) fn reset(&mut self) {
        self.inner.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_never_end() {
        let mut pacing = Pacing::new(Duration::from_millis(100), Duration::from_secs(2));
        let waits: Vec<_> = (0..200).map(|_| pacing.next_wait()).collect();
        assert!(waits[0] <= Duration::from_millis(120), "{:?}", waits[0]);
        assert!(waits.iter().all(|w| *w <= Duration::from_millis(2400)));
        assert!(waits[199] >= Duration::from_millis(1600));
        pacing.reset();
        assert!(pacing.next_wait() <= Duration::from_millis(120));
    }
}

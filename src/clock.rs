//! The only reader of the wall clock. Durations inside the process are measured with the monotonic `Instant`.

use jiff::Timestamp;

/// Now, by the wall clock of this machine.
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// Seconds since the epoch, for gauges.
pub fn unix_seconds() -> f64 {
    now().as_duration().as_secs_f64()
}

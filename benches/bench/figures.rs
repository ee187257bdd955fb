//! Figures of single measurements, and medians over the rounds.

use serde::Serialize;

use crate::triage::Looks;

/// What one measurement gave.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Measured {
    /// Events that count; those of the warm-up don't.
    pub(crate) events: u64,
    pub(crate) seconds: f64,
    /// Events a second, from the first arrival (or the first publish) to the last arrival at the sibling.
    pub(crate) rate: f64,
    /// Processor time of the contender's own process per event, in microseconds.
    pub(crate) cpu_us: f64,
    /// Highest resident memory of the process.
    pub(crate) peak_mib: f64,
    /// Downstream messages that came a second time, which is allowed.
    pub(crate) repeated: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) latency: Option<Percentiles>,
    /// While another session held a transaction open, or dead letters were replayed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) latency_held: Option<Percentiles>,
    /// Share of one core while there was nothing to do, in per cent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) idle_percent: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) looks: Option<Looks>,
    /// Seconds since the start, resident MiB.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) memory: Vec<(f64, f64)>,
}

/// Latencies in milliseconds, from when an event was due to the arrival of its downstream event at the sibling.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Percentiles {
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            // The smallest value that this share of all doesn't exceed.
            let rank = (share * values.len() as f64).ceil() as usize;
            values.get(rank.max(1) - 1).copied()
        };
        Some(Self { p50: at(0.50)?, p90: at(0.90)?, p99: at(0.99)?, max: *values.last()? })
    }
}

/// The median of a figure over the rounds; `None` where no round gave it.
pub(crate) fn median(rounds: &[Measured], figure: impl Fn(&Measured) -> Option<f64>) -> Option<f64> {
    let mut values: Vec<f64> = rounds.iter().filter_map(figure).filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
    Some(f64::midpoint(*low, *high))
}

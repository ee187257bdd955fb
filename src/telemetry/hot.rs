//! What is counted for every single event. The handles are looked up once, when a consumer is registered: finding a series by its
//! labels costs more than all the rest of counting.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use foldhash::{HashMap, HashMapExt as _};
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use super::names::{OTHER, OUTCOMES};
use super::recent::{DURATIONS, Durations, place};

/// One entry for each registered consumer.
static CONSUMERS: RwLock<Option<HashMap<&'static str, Handles>>> = RwLock::new(None);

/// Replays settled by this process since its start.
static REPLAYS: AtomicU64 = AtomicU64::new(0);

struct Handles {
    by_type: HashMap<&'static str, OfType>,
    process_duration: [Histogram; OUTCOMES.len()],
    end_to_end: Histogram,
    message_size: Histogram,
    in_flight: Gauge,
    /// How long live deliveries took since the start: the histogram can't be asked either.
    took: [AtomicU64; DURATIONS],
    /// Deliveries settled since the start, for the status: the recorder can't be asked for a number.
    settled: [AtomicU64; OUTCOMES.len()],
}

struct OfType {
    received: Counter,
    processed: [Counter; OUTCOMES.len()],
}

impl OfType {
    fn register(consumer: &'static str, event_type: &'static str) -> Self {
        let received = counter!("onceflow_messages_received_total", "consumer" => consumer, "event_type" => event_type);
        let processed = OUTCOMES.map(|outcome| {
            counter!("onceflow_messages_processed_total",
                "consumer" => consumer, "event_type" => event_type, "outcome" => outcome)
        });
        // Shows them at 0.
        received.absolute(0);
        processed.iter().for_each(|counter| counter.absolute(0));
        Self { received, processed }
    }
}

impl Handles {
    fn register(consumer: &'static str) -> Self {
        let in_flight = gauge!("onceflow_messages_in_flight", "consumer" => consumer);
        // Adding nothing registers a gauge without undoing what is set already.
        in_flight.increment(0.0);
        Self {
            by_type: HashMap::new(),
            process_duration: OUTCOMES.map(|outcome| {
                histogram!("onceflow_message_process_duration_seconds", "consumer" => consumer, "outcome" => outcome)
            }),
            end_to_end: histogram!("onceflow_message_end_to_end_duration_seconds", "consumer" => consumer),
            message_size: histogram!("onceflow_message_size_bytes", "consumer" => consumer),
            in_flight,
            took: std::array::from_fn(|_| AtomicU64::new(0)),
            settled: Default::default(),
        }
    }

    fn of_type(&self, event_type: &str) -> Option<&OfType> {
        self.by_type.get(event_type).or_else(|| self.by_type.get(OTHER))
    }
}

/// Makes the series of a consumer; a second call adds its types.
pub(super) fn register(consumer: &'static str, types: &[&'static str]) {
    let mut consumers = CONSUMERS.write().unwrap_or_else(PoisonError::into_inner);
    let handles = consumers.get_or_insert_default().entry(consumer).or_insert_with(|| Handles::register(consumer));
    for event_type in types.iter().copied().chain([OTHER]) {
        handles.by_type.entry(event_type).or_insert_with(|| OfType::register(consumer, event_type));
    }
}

/// A consumer that was never registered, as in some tests, is not counted.
fn with(consumer: &str, count: impl FnOnce(&Handles)) {
    let consumers = CONSUMERS.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(handles) = consumers.as_ref().and_then(|consumers| consumers.get(consumer)) {
        count(handles);
    }
}

/// A delivery with a body of so many bytes reached the consumer. A type that the consumer doesn't read counts as `other`.
pub fn received(consumer: &str, event_type: &str, bytes: usize) {
    with(consumer, |handles| {
        handles.message_size.record(bytes as f64);
        if let Some(of_type) = handles.of_type(event_type) {
            of_type.received.increment(1);
        }
    });
}

/// A delivery was settled: applied, duplicate, stale, ignored, retry, dead or held.
pub fn processed(consumer: &str, event_type: &str, outcome: &'static str, took: Duration) {
    let Some(place) = OUTCOMES.iter().position(|known| *known == outcome) else { return };
    with(consumer, |handles| {
        handles.settled[place].fetch_add(1, Ordering::Relaxed);
        handles.process_duration[place].record(took);
        if let Some(of_type) = handles.of_type(event_type) {
            of_type.processed[place].increment(1);
        }
    });
}

/// A delivery that is no replay was settled after so long: what replays must not slow down.
pub fn live_delivery(consumer: &str, took: Duration) {
    with(consumer, |handles| {
        handles.took[place(took)].fetch_add(1, Ordering::Relaxed);
    });
}

/// A replay was settled, of any consumer.
pub fn replayed_delivery() {
    REPLAYS.fetch_add(1, Ordering::Relaxed);
}

/// Replays that this process has settled since its start.
pub fn replays_since_start() -> u64 {
    REPLAYS.load(Ordering::Relaxed)
}

/// Time from the event's own time to the commit of its effects.
pub fn end_to_end(consumer: &str, took: Duration) {
    with(consumer, |handles| handles.end_to_end.record(took));
}

/// More or fewer deliveries are being worked on.
pub fn in_flight(consumer: &str, delta: i32) {
    with(consumer, |handles| handles.in_flight.increment(f64::from(delta)));
}

/// Deliveries of a consumer that this process has settled since its start, by outcome.
pub fn settled_since_start(consumer: &str) -> BTreeMap<String, u64> {
    let mut settled = BTreeMap::new();
    with(consumer, |handles| {
        let pair = |(name, count): (&&str, &AtomicU64)| ((*name).to_owned(), count.load(Ordering::Relaxed));
        settled = OUTCOMES.iter().zip(&handles.settled).map(pair).collect();
    });
    settled
}

/// How long this process has taken for deliveries of a consumer since its start, without replays; `None` where it has no such consumer.
pub fn durations_since_start(consumer: &str) -> Option<Durations> {
    let mut durations = None;
    with(consumer, |handles| {
        durations = Some(Durations(handles.took.each_ref().map(|count| count.load(Ordering::Relaxed))));
    });
    durations
}

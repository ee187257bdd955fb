//! Waiting for a state, with a deadline.

use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Looks again and again until `look` finds something, and fails the test if that takes longer than `deadline`.
pub(crate) async fn eventually<T, F>(deadline: Duration, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < deadline, "did not happen within {deadline:?}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

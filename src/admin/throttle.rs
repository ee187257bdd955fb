//! Wrong tokens: a few are a mistake, many are somebody guessing, and each would cost the database a question.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// So many wrong tokens in a row are a mistake. One more is allowed for each second that passes.
const MISTAKES: u64 = 10;
/// Most addresses that are remembered; beyond, those that guess no more are forgotten.
const MAX_KNOWN: usize = 1_000;

/// How many wrong tokens came from where lately.
#[derive(Debug, Default)]
pub(super) struct Throttle(Mutex<HashMap<IpAddr, Guesses>>);

#[derive(Debug, Clone, Copy)]
struct Guesses {
    wrong: u64,
    counted_at: Instant,
}

impl Guesses {
    fn at(self, now: Instant) -> Self {
        let passed = now.saturating_duration_since(self.counted_at).as_secs();
        let counted_at = if passed > 0 { now } else { self.counted_at };
        Self { wrong: self.wrong.saturating_sub(passed), counted_at }
    }
}

impl Throttle {
    /// Whether nobody looks at a token from there for the moment.
    pub(super) fn is_closed_to(&self, from: IpAddr, now: Instant) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&from).is_some_and(|guesses| guesses.at(now).wrong >= MISTAKES)
    }

    /// A wrong token came from there.
    pub(super) fn guessed(&self, from: IpAddr, now: Instant) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_KNOWN && !known.contains_key(&from) {
            known.retain(|_, guesses| guesses.at(now).wrong > 0);
            if known.len() >= MAX_KNOWN {
                return;
            }
        }
        let guesses = known.entry(from).or_insert(Guesses { wrong: 0, counted_at: now });
        *guesses = guesses.at(now);
        guesses.wrong += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn guessing_closes_the_door_for_the_guesser_alone_and_for_a_while_s7_6() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        let (guesser, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        for _ in 0..MISTAKES {
            assert!(!throttle.is_closed_to(guesser, now));
            throttle.guessed(guesser, now);
        }
        assert!(throttle.is_closed_to(guesser, now) && !throttle.is_closed_to(other, now));
        assert!(!throttle.is_closed_to(guesser, now + Duration::from_secs(1)));
    }

    #[test]
    fn what_is_remembered_of_guessers_is_bounded_s7_6() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        for n in 0..5_000_u32 {
            throttle.guessed(IpAddr::from(n.to_be_bytes()), now);
        }
        assert_eq!(throttle.0.lock().unwrap().len(), MAX_KNOWN);
        let later = now + Duration::from_secs(5);
        throttle.guessed(IpAddr::from([99, 0, 0, 1]), later);
        assert_eq!(throttle.0.lock().unwrap().len(), 1, "those that guess no more are forgotten");
    }
}

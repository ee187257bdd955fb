//! The token of the configuration, which a reload may replace while requests come in.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use aws_lc_rs::digest::{SHA256, digest};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

/// Who knows it may use the API. Clones hold the same one.
#[derive(Clone, Default)]
pub struct ConfiguredToken(Arc<RwLock<Option<SecretString>>>);

impl ConfiguredToken {
    /// None, for anybody on this machine.
    pub fn new(token: Option<SecretString>) -> Self {
        Self(Arc::new(RwLock::new(token)))
    }

    /// The next request needs this one.
    pub fn replace(&self, token: Option<SecretString>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = token;
    }

    /// Whether there is one.
    pub fn is_some(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Compares digests, so that neither content nor length shows in the time it takes.
    pub(super) fn is(&self, given: &str) -> bool {
        let token = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let Some(expected) = token.as_ref() else { return false };
        let expected = digest(&SHA256, expected.expose_secret().as_bytes());
        expected.as_ref().ct_eq(digest(&SHA256, given.as_bytes()).as_ref()).into()
    }
}

impl fmt::Debug for ConfiguredToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfiguredToken").field("is_some", &self.is_some()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_token_is_the_only_one_and_shows_nowhere_s7_4() {
        let token = ConfiguredToken::new(Some("the-first-one".into()));
        let clone = token.clone();
        clone.replace(Some("the-second-one".into()));
        assert!(token.is("the-second-one") && !token.is("the-first-one") && !token.is(""));
        assert!(!format!("{token:?}").contains("second"));
        clone.replace(None);
        assert!(!token.is_some() && !token.is("the-second-one"));
    }
}

//! Headers of a message, copied out of the client's memory only when somebody needs them all.

use std::fmt;
use std::ops::{Deref, DerefMut, Index};
use std::sync::{Arc, OnceLock};

use litemap::LiteMap;
use serde_json::Value;

/// Headers by name, ready to be stored as JSON. Binary values are base64 text. Few, so they lie in one sorted list.
pub type HeaderMap = LiteMap<String, Value>;

/// A header's value where it lies.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen<'h> {
    /// Text, not copied.
    Text(&'h str),
    /// Anything else, copied.
    Other(Value),
}

impl<'h> From<&'h Value> for Seen<'h> {
    fn from(value: &'h Value) -> Self {
        match value {
            Value::String(text) => Self::Text(text),
            other => Self::Other(other.clone()),
        }
    }
}

impl From<Seen<'_>> for Value {
    fn from(seen: Seen<'_>) -> Self {
        match seen {
            Seen::Text(text) => Self::from(text),
            Seen::Other(value) => value,
        }
    }
}

/// One header after the other, by name.
pub type Look<'h> = Box<dyn Iterator<Item = (&'h str, Seen<'h>)> + 'h>;

/// Headers as the client of a broker holds them.
pub trait Received: Send + Sync {
    /// How many.
    fn count(&self) -> usize;
    /// All of them, in the order of their names.
    fn look(&self) -> Look<'_>;
}

/// Headers in a neutral form.
///
/// Most messages are applied and forgotten: then [`look`](Headers::look) has read what the event needs, and nothing was copied.
/// Whoever treats them as a [`HeaderMap`] gets a copy, made once.
#[derive(Clone, Default)]
pub struct Headers {
    received: Option<Arc<dyn Received>>,
    map: OnceLock<HeaderMap>,
}

impl Headers {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Those of a message that has just come.
    pub fn received(received: Arc<dyn Received>) -> Self {
        Self { received: Some(received), map: OnceLock::new() }
    }

    /// How many.
    pub fn len(&self) -> usize {
        match (self.map.get(), &self.received) {
            (None, Some(received)) => received.count(),
            (map, _) => map.map_or(0, LiteMap::len),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, in the order of their names, where they lie.
    pub fn look(&self) -> Look<'_> {
        match (self.map.get(), &self.received) {
            (None, Some(received)) => received.look(),
            (map, _) => Box::new(map.into_iter().flatten().map(|(name, value)| (name.as_str(), value.into()))),
        }
    }

    fn copied(&self) -> HeaderMap {
        self.look().map(|(name, value)| (name.to_owned(), value.into())).collect()
    }
}

impl Deref for Headers {
    type Target = HeaderMap;

    fn deref(&self) -> &HeaderMap {
        self.map.get_or_init(|| self.received.as_ref().map(|_| self.copied()).unwrap_or_default())
    }
}

impl DerefMut for Headers {
    fn deref_mut(&mut self) -> &mut HeaderMap {
        let map = match self.map.take() {
            Some(map) => map,
            None => self.copied(),
        };
        *self = map.into();
        self.map.get_mut().unwrap_or_else(|| unreachable!("it was set"))
    }
}

/// Null where there is none, as with [`Value`].
impl Index<&str> for Headers {
    type Output = Value;

    fn index(&self, name: &str) -> &Value {
        self.get(name).unwrap_or(&Value::Null)
    }
}

impl From<HeaderMap> for Headers {
    fn from(map: HeaderMap) -> Self {
        Self { received: None, map: OnceLock::from(map) }
    }
}

impl FromIterator<(String, Value)> for Headers {
    fn from_iter<I: IntoIterator<Item = (String, Value)>>(headers: I) -> Self {
        HeaderMap::from_iter(headers).into()
    }
}

impl<const N: usize> From<[(String, Value); N]> for Headers {
    fn from(headers: [(String, Value); N]) -> Self {
        headers.into_iter().collect()
    }
}

impl IntoIterator for Headers {
    type Item = (String, Value);
    type IntoIter = std::vec::IntoIter<(String, Value)>;

    fn into_iter(mut self) -> Self::IntoIter {
        self.map.take().unwrap_or_else(|| self.copied()).into_iter()
    }
}

impl PartialEq for Headers {
    fn eq(&self, other: &Self) -> bool {
        self.look().eq(other.look())
    }
}

/// Without values, which may hold personal data.
impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.look().map(|(name, _)| name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Client {
        looks: AtomicUsize,
    }

    impl Received for Client {
        fn count(&self) -> usize {
            2
        }

        fn look(&self) -> Look<'_> {
            self.looks.fetch_add(1, Ordering::Relaxed);
            Box::new([("a", Seen::Text("x")), ("b", Seen::Other(Value::from(2)))].into_iter())
        }
    }

    #[test]
    fn headers_are_copied_once_and_only_for_who_needs_them_all() {
        let client = Arc::new(Client::default());
        let headers = Headers::received(client.clone());
        assert_eq!((headers.len(), headers.look().count(), headers.map.get()), (2, 2, None));
        assert_eq!((headers.get("a"), headers.get("b")), (Some(&Value::from("x")), Some(&Value::from(2))));
        assert_eq!(headers.look().count(), 2);
        assert_eq!(client.looks.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn changed_headers_are_no_longer_those_that_came() {
        let came = Headers::received(Arc::new(Client::default()));
        let mut changed = came.clone();
        changed.insert("a".to_owned(), Value::from("y"));
        changed.remove("b");
        assert_eq!(changed, Headers::from([("a".to_owned(), Value::from("y"))]));
        assert_eq!(came.into_iter().count(), 2);
    }

    #[test]
    fn of_two_headers_with_one_name_the_later_one_stays() {
        let value = |text: &str| ("a".to_owned(), Value::from(text));
        let headers = Headers::from([("b".to_owned(), Value::Null), value("x"), value("y")]);
        assert_eq!((headers.len(), &headers["a"], &headers["c"]), (2, &Value::from("y"), &Value::Null));
    }

    #[test]
    fn no_headers_are_empty_whichever_way_one_looks() {
        let mut none = Headers::new();
        assert_eq!((none.len(), none.look().count(), none.iter().count()), (0, 0, 0));
        none.insert("a".to_owned(), Value::Null);
        assert_eq!((none.len(), none.is_empty()), (1, false));
    }
}

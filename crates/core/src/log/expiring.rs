//! Values that expire, found by key and by time, so that letting go of old ones looks at nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

/// Values by key, each with its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expiring<K, V, T> {
    by_key: BTreeMap<K, (V, T)>,
    by_time: BTreeSet<(T, K)>,
}

impl<K, V, T> Default for Expiring<K, V, T> {
    fn default() -> Self {
        Self {
            by_key: BTreeMap::new(),
            by_time: BTreeSet::new(),
        }
    }
}

impl<K: Clone + Ord, V, T: Copy + Ord> Expiring<K, V, T> {
    pub fn get(&self, key: &K) -> Option<&(V, T)> {
        self.by_key.get(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &(V, T))> {
        self.by_key.iter()
    }

    pub fn insert(&mut self, key: K, value: V, at: T) {
        self.remove(&key);
        self.by_time.insert((at, key.clone()));
        self.by_key.insert(key, (value, at));
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        let (value, at) = self.by_key.remove(key)?;
        self.by_time.remove(&(at, key.clone()));
        Some(value)
    }

    /// Takes out the first whose time is over.
    pub fn pop(&mut self, is_over: impl Fn(T) -> bool) -> Option<(K, V)> {
        let (at, _) = self.by_time.first()?;
        if !is_over(*at) {
            return None;
        }
        let (_, key) = self.by_time.pop_first()?;
        let (value, _) = self.by_key.remove(&key)?;
        Some((key, value))
    }
}

impl<K: Hash, V: Hash, T: Hash> Hash for Expiring<K, V, T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.by_key.hash(state);
    }
}

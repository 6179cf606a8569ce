//! One task at a time per key: the second waits, and then finds the work done.
//!
//! Guaranteed: a key is forgotten when nobody works on it or waits for it, also if futures are dropped.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

type Map<K> = Arc<Mutex<HashMap<K, Arc<tokio::sync::Mutex<()>>>>>;

/// The keys being worked on.
#[derive(Debug)]
pub(crate) struct SingleFlight<K>(Map<K>);

/// While it lives, its key is this task's.
#[derive(Debug)]
pub(crate) struct Flight<K: Hash + Eq> {
    map: Map<K>,
    key: K,
    lock: Option<OwnedMutexGuard<()>>,
}

impl<K: Hash + Eq + Clone> SingleFlight<K> {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    /// Waits until nobody else works on `key`.
    pub(crate) async fn enter(&self, key: &K) -> Flight<K> {
        let mut flight = Flight {
            map: Arc::clone(&self.0),
            key: key.clone(),
            lock: None,
        };
        let lock = {
            let mut map = self.0.lock();
            Arc::clone(map.entry(key.clone()).or_default())
        };
        flight.lock = Some(lock.lock_owned().await);
        flight
    }
}

impl<K: Hash + Eq> Drop for Flight<K> {
    fn drop(&mut self) {
        self.lock = None;
        let mut map = self.map.lock();
        // Clones are made under the map's lock only, so one left means nobody waits.
        if map
            .get(&self.key)
            .is_some_and(|lock| Arc::strong_count(lock) == 1)
        {
            map.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_second_waits_for_the_first_and_nothing_is_left_behind() {
        let single_flight = SingleFlight::new();
        let first = single_flight.enter(&1).await;
        let second = tokio::time::timeout(Duration::from_millis(20), single_flight.enter(&1)).await;
        assert!(second.is_err());
        drop(single_flight.enter(&2).await);
        drop(first);
        assert!(single_flight.0.lock().is_empty());
    }
}

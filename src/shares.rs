//! A semaphore that is fair by key: nobody has all permits, and whoever has least goes first.
//!
//! Guaranteed: at most so many permits at once, at most so many of one holder (a namespace). Of those who wait, the holder that has least
//! goes first, then whoever came first. Whoever stopped waiting takes nothing. Who goes first is found in O(log n).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

/// The permits. Clones share them.
#[derive(Debug)]
pub(crate) struct Shares<K: Eq + Hash + Clone>(Arc<Inner<K>>);

#[derive(Debug)]
struct Inner<K: Eq + Hash + Clone> {
    /// In all, and of one holder.
    most: (usize, usize),
    state: Mutex<State<K>>,
}

#[derive(Debug)]
struct State<K: Eq + Hash + Clone> {
    taken: usize,
    waiters: u64,
    holders: HashMap<K, Holder<K>>,
    /// The holders that may have one more and wait for it, by how many they have and the number of their first waiter.
    first: BTreeMap<(usize, u64), K>,
}

#[derive(Debug)]
struct Holder<K: Eq + Hash + Clone> {
    held: usize,
    waiting: VecDeque<(u64, oneshot::Sender<Share<K>>)>,
    /// Where it is among the first.
    rank: Option<(usize, u64)>,
}

/// While it lives, somebody waits, or has their permit.
struct Waiting<'a, K: Eq + Hash + Clone> {
    of: &'a Arc<Inner<K>>,
    holder: K,
    number: u64,
}

/// One permit, given back when dropped.
#[derive(Debug)]
pub(crate) struct Share<K: Eq + Hash + Clone> {
    /// None: it is given back already.
    of: Option<(Arc<Inner<K>>, K)>,
}

impl<K: Eq + Hash + Clone> Clone for Shares<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Eq + Hash + Clone> Shares<K> {
    /// So many in all, and of one holder.
    pub(crate) fn new(all: usize, each: usize) -> Self {
        Self(Arc::new(Inner {
            most: (all, each),
            state: Mutex::new(State {
                taken: 0,
                waiters: 0,
                holders: HashMap::new(),
                first: BTreeMap::new(),
            }),
        }))
    }

    /// Waits for a permit.
    pub(crate) async fn enter(&self, holder: K) -> Share<K> {
        let (waiter, granted) = oneshot::channel();
        let number = self.0.with(|state, each| state.join(&holder, waiter, each));
        let _waiting = Waiting {
            of: &self.0,
            holder,
            number,
        };
        // Nobody drops a waiter whose owner waits.
        granted.await.unwrap_or(Share { of: None })
    }
}

impl<K: Eq + Hash + Clone> Inner<K> {
    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock()
    }

    /// Changes the state, given how many permits one holder may have, then gives what can be given.
    fn with<T>(self: &Arc<Self>, change: impl FnOnce(&mut State<K>, usize) -> T) -> T {
        let (all, each) = self.most;
        let mut state = self.lock();
        let changed = change(&mut state, each);
        while state.taken < all
            && let Some((holder, waiter)) = state.next(each)
        {
            let share = Share {
                of: Some((Arc::clone(self), holder.clone())),
            };
            if let Err(mut share) = waiter.send(share) {
                // Its owner left in this instant. The state is locked: it is given back by hand.
                share.of = None;
                state.release(&holder, each);
            }
        }
        changed
    }
}

impl<K: Eq + Hash + Clone> State<K> {
    /// The number of the waiter.
    fn join(&mut self, holder: &K, waiter: oneshot::Sender<Share<K>>, each: usize) -> u64 {
        self.waiters += 1;
        let number = self.waiters;
        self.change(holder, each, |holder| {
            holder.waiting.push_back((number, waiter));
        });
        number
    }

    /// The waiter of this number waits no longer, if it still did.
    fn leave(&mut self, holder: &K, number: u64, each: usize) {
        self.change(holder, each, |holder| {
            let place = holder.waiting.binary_search_by_key(&number, |(n, _)| *n);
            if let Ok(place) = place {
                holder.waiting.remove(place);
            }
        });
    }

    fn next(&mut self, each: usize) -> Option<(K, oneshot::Sender<Share<K>>)> {
        let name = self.first.first_key_value()?.1.clone();
        let (_, waiter) = self.change(&name, each, |holder| {
            holder.held += 1;
            holder.waiting.pop_front()
        })?;
        self.taken += 1;
        Some((name, waiter))
    }

    fn release(&mut self, holder: &K, each: usize) {
        self.taken -= 1;
        self.change(holder, each, |holder| holder.held -= 1);
    }

    /// Changes a holder, and puts it where it belongs among the first; who has nothing and waits for nothing is forgotten.
    fn change<T>(&mut self, name: &K, each: usize, change: impl FnOnce(&mut Holder<K>) -> T) -> T {
        let holder = self.holders.entry(name.clone()).or_insert_with(|| Holder {
            held: 0,
            waiting: VecDeque::new(),
            rank: None,
        });
        let changed = change(holder);
        let number = holder.waiting.front().map(|(number, _)| *number);
        let rank = number.map(|number| (holder.held, number));
        let rank = rank.filter(|(held, _)| *held < each);
        if let Some(before) = std::mem::replace(&mut holder.rank, rank) {
            self.first.remove(&before);
        }
        if holder.held == 0 && number.is_none() {
            self.holders.remove(name);
        } else if let Some(rank) = rank {
            self.first.insert(rank, name.clone());
        }
        changed
    }
}

impl<K: Eq + Hash + Clone> Drop for Waiting<'_, K> {
    fn drop(&mut self) {
        let (holder, number) = (&self.holder, self.number);
        self.of
            .with(|state, each| state.leave(holder, number, each));
    }
}

impl<K: Eq + Hash + Clone> Drop for Share<K> {
    fn drop(&mut self) {
        if let Some((inner, holder)) = self.of.take() {
            inner.with(|state, each| state.release(&holder, each));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures::stream::FuturesUnordered;
    use futures::{FutureExt as _, StreamExt as _};

    use super::*;

    #[test]
    fn one_holder_leaves_a_permit_to_others_and_who_has_left_takes_none() {
        let shares = Shares::new(3, 2);
        let mut greedy: Vec<_> = (0..9).map(|_| Box::pin(shares.enter(1))).collect();
        let begun = greedy
            .iter_mut()
            .filter_map(futures::FutureExt::now_or_never);
        let mut begun: Vec<_> = begun.collect();
        assert_eq!(begun.len(), 2);
        let other = shares.enter(2).now_or_never().unwrap();
        let mut next = Box::pin(shares.enter(2));
        assert!((&mut next).now_or_never().is_none());
        // Whoever holds least goes first, however long the others have waited.
        drop(other);
        let other = (&mut next).now_or_never().unwrap();
        drop(begun.pop());
        let next = greedy.iter_mut().skip(2);
        let next = next.filter_map(futures::FutureExt::now_or_never);
        assert_eq!(next.collect::<Vec<_>>().len(), 1);
        drop((greedy, begun, other));
        let last = shares.enter(3).now_or_never();
        drop(last.unwrap());
        let state = shares.0.lock();
        assert!(state.holders.is_empty() && state.first.is_empty());
        assert_eq!(state.taken, 0);
    }

    #[test]
    fn a_grant_costs_no_more_among_many_holders() {
        let shares = Shares::new(1, 1);
        let crowd = |count| {
            let held = shares.enter(count).now_or_never();
            let mut waiting: FuturesUnordered<_> =
                (0..count).map(|holder| shares.enter(holder)).collect();
            assert!(waiting.next().now_or_never().is_none());
            (held, waiting)
        };
        crate::cost::does_not_grow(crowd, |(held, waiting)| {
            drop(held.take());
            *held = waiting.next().now_or_never().flatten();
            assert!(held.is_some());
        });
    }
}

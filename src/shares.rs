//! A semaphore that is fair by key: nobody has all permits, and whoever has least goes first.
//!
//! Guaranteed: at most so many permits at once, at most so many of one holder (a namespace). Of those who wait, the holder that has least
//! goes first, then whoever came first. Whoever stopped waiting takes nothing.

use std::collections::{HashMap, VecDeque};
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
}

#[derive(Debug)]
struct Holder<K: Eq + Hash + Clone> {
    held: usize,
    waiting: VecDeque<(u64, oneshot::Sender<Share<K>>)>,
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
            }),
        }))
    }

    /// Waits for a permit.
    pub(crate) async fn enter(&self, holder: K) -> Share<K> {
        let (waiter, granted) = oneshot::channel();
        self.0.with(|state| state.join(holder, waiter));
        // Nobody drops a waiter whose owner waits.
        granted.await.unwrap_or(Share { of: None })
    }
}

impl<K: Eq + Hash + Clone> Inner<K> {
    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock()
    }

    /// Changes the state, then gives what can be given.
    fn with(self: &Arc<Self>, change: impl FnOnce(&mut State<K>)) {
        let mut state = self.lock();
        change(&mut state);
        while let Some((holder, waiter)) = state.next(self.most) {
            let share = Share {
                of: Some((Arc::clone(self), holder.clone())),
            };
            if let Err(mut share) = waiter.send(share) {
                // Its owner left in this instant. The state is locked: it is given back by hand.
                share.of = None;
                state.leave(&holder);
            }
        }
    }
}

impl<K: Eq + Hash + Clone> State<K> {
    fn join(&mut self, holder: K, waiter: oneshot::Sender<Share<K>>) {
        self.waiters += 1;
        let holder = self.holders.entry(holder).or_insert_with(|| Holder {
            held: 0,
            waiting: VecDeque::new(),
        });
        holder.waiting.push_back((self.waiters, waiter));
    }

    fn next(&mut self, (all, each): (usize, usize)) -> Option<(K, oneshot::Sender<Share<K>>)> {
        if self.taken >= all {
            return None;
        }
        self.holders.retain(|_, holder| {
            while holder.waiting.front().is_some_and(|(_, t)| t.is_closed()) {
                holder.waiting.pop_front();
            }
            holder.held > 0 || !holder.waiting.is_empty()
        });
        let waiting = self
            .holders
            .iter_mut()
            .filter(|(_, holder)| holder.held < each);
        let waiting = waiting.filter_map(|(name, holder)| {
            let (number, _) = holder.waiting.front()?;
            Some(((holder.held, *number), name, holder))
        });
        let (_, name, holder) = waiting.min_by_key(|(rank, ..)| *rank)?;
        let (_, waiter) = holder.waiting.pop_front()?;
        holder.held += 1;
        self.taken += 1;
        Some((name.clone(), waiter))
    }

    fn leave(&mut self, holder: &K) {
        self.taken -= 1;
        if let Some(holder) = self.holders.get_mut(holder) {
            holder.held -= 1;
        }
    }
}

impl<K: Eq + Hash + Clone> Drop for Share<K> {
    fn drop(&mut self) {
        if let Some((inner, holder)) = self.of.take() {
            inner.with(|state| state.leave(&holder));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures::FutureExt as _;

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
        assert_eq!(shares.0.lock().taken, 0);
    }
}

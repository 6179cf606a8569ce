//! A number of permits, shared out between those who want them: nobody has all, and who has least goes first.
//!
//! In comes whose permit it is to be (a namespace); out comes a [`Share`], when there is one. Guaranteed: no more than so many at once,
//! no more than so many of one party; of those who wait, the party that holds least goes first, then whoever came first; who has left
//! takes nothing.

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
    /// In all, and of one party.
    most: (usize, usize),
    state: Mutex<State<K>>,
}

#[derive(Debug)]
struct State<K: Eq + Hash + Clone> {
    taken: usize,
    tickets: u64,
    parties: HashMap<K, Party<K>>,
}

#[derive(Debug)]
struct Party<K: Eq + Hash + Clone> {
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
    /// So many in all, and of one party.
    pub(crate) fn new(all: usize, each: usize) -> Self {
        Self(Arc::new(Inner {
            most: (all, each),
            state: Mutex::new(State {
                taken: 0,
                tickets: 0,
                parties: HashMap::new(),
            }),
        }))
    }

    /// Waits for a permit.
    pub(crate) async fn enter(&self, party: K) -> Share<K> {
        let (ticket, granted) = oneshot::channel();
        self.0.with(|state| state.join(party, ticket));
        // Nobody drops a ticket whose owner waits.
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
        while let Some((party, ticket)) = state.next(self.most) {
            let share = Share {
                of: Some((Arc::clone(self), party.clone())),
            };
            if let Err(mut share) = ticket.send(share) {
                // Its owner left in this instant. The state is locked: it is given back by hand.
                share.of = None;
                state.leave(&party);
            }
        }
    }
}

impl<K: Eq + Hash + Clone> State<K> {
    fn join(&mut self, party: K, ticket: oneshot::Sender<Share<K>>) {
        self.tickets += 1;
        let party = self.parties.entry(party).or_insert_with(|| Party {
            held: 0,
            waiting: VecDeque::new(),
        });
        party.waiting.push_back((self.tickets, ticket));
    }

    fn next(&mut self, (all, each): (usize, usize)) -> Option<(K, oneshot::Sender<Share<K>>)> {
        if self.taken >= all {
            return None;
        }
        self.parties.retain(|_, party| {
            while party.waiting.front().is_some_and(|(_, t)| t.is_closed()) {
                party.waiting.pop_front();
            }
            party.held > 0 || !party.waiting.is_empty()
        });
        let waiting = self
            .parties
            .iter_mut()
            .filter(|(_, party)| party.held < each);
        let waiting = waiting.filter_map(|(name, party)| {
            let (number, _) = party.waiting.front()?;
            Some(((party.held, *number), name, party))
        });
        let (_, name, party) = waiting.min_by_key(|(rank, ..)| *rank)?;
        let (_, ticket) = party.waiting.pop_front()?;
        party.held += 1;
        self.taken += 1;
        Some((name.clone(), ticket))
    }

    fn leave(&mut self, party: &K) {
        self.taken -= 1;
        if let Some(party) = self.parties.get_mut(party) {
            party.held -= 1;
        }
    }
}

impl<K: Eq + Hash + Clone> Drop for Share<K> {
    fn drop(&mut self) {
        if let Some((inner, party)) = self.of.take() {
            inner.with(|state| state.leave(&party));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn one_party_leaves_a_permit_to_others_and_who_has_left_takes_none() {
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

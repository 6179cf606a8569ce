//! Who goes next: flows that share something are served alike.
//!
//! A flow is a namespace, or a promotion request of one; what is shared, and whom its limits let through, the caller knows. In come
//! flows as they begin to wait, and what each is granted; out comes how much each was served: the one served least goes first.
//! This is start-time fair queuing, with a virtual time that rises a little with every grant.
//!
//! Guaranteed: a new flow is ahead of those in service by its credit at most; the virtual time rises also while new flows are ahead,
//! so that none waits for ever.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

/// One grant, in the unit of service.
const GRANT: i64 = 1 << 20;

/// The flows of one level. What waits in each is the caller's: its permits, or the flows of the next level.
#[derive(Debug)]
pub(crate) struct FairQueue<K, F> {
    flows: HashMap<K, Flow<F>>,
    /// What the flow that is served now has been granted; at least what each would have been, had all been granted alike.
    virtual_time: i64,
    credit: i64,
}

#[derive(Debug)]
struct Flow<F> {
    /// Grants, counted from the virtual time at which the flow came.
    service: i64,
    inner: F,
}

impl<K: Hash + Eq, F> FairQueue<K, F> {
    /// A new flow is ahead of the others by `credit` grants.
    pub(crate) fn new(credit: i64) -> Self {
        Self {
            flows: HashMap::new(),
            virtual_time: 0,
            credit: credit * GRANT,
        }
    }

    /// A flow, which has something to wait for; a new one is made by `new`.
    pub(crate) fn join(&mut self, key: K, new: impl FnOnce() -> F) -> &mut F {
        // Who is alone is ahead of nobody.
        let credit = if self.flows.is_empty() {
            0
        } else {
            self.credit
        };
        let start = self.virtual_time - credit;
        let flow = self.flows.entry(key).or_insert_with(|| Flow {
            service: start,
            inner: new(),
        });
        // Whoever waited for nothing has saved up no more than a new one has.
        flow.service = flow.service.max(start);
        &mut flow.inner
    }

    /// Counts a grant to a flow.
    pub(crate) fn grant<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&mut F>
    where
        K: Borrow<Q>,
    {
        let flows = i64::try_from(self.flows.len()).unwrap_or(i64::MAX);
        let flow = self.flows.get_mut(key)?;
        self.virtual_time = (self.virtual_time + GRANT / flows).max(flow.service);
        flow.service += GRANT;
        Some(&mut flow.inner)
    }

    /// A grant was not used.
    pub(crate) fn refund(&mut self, key: &K) {
        if let Some(flow) = self.flows.get_mut(key) {
            flow.service -= GRANT;
        }
    }

    /// Each flow, and how much it was served.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, i64, &F)> {
        let flows = self.flows.iter();
        flows.map(|(key, flow)| (key, flow.service, &flow.inner))
    }

    /// As [`FairQueue::iter`].
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&K, i64, &mut F)> {
        let flows = self.flows.iter_mut();
        flows.map(|(key, flow)| (key, flow.service, &mut flow.inner))
    }

    pub(crate) fn get_mut<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&mut F>
    where
        K: Borrow<Q>,
    {
        self.flows.get_mut(key).map(|flow| &mut flow.inner)
    }

    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Forgets the flows that ended; gives their keys.
    pub(crate) fn remove(&mut self, ended: impl Fn(&F) -> bool) -> Vec<K> {
        let removed = self.flows.extract_if(|_, flow| ended(&flow.inner));
        removed.map(|(key, _)| key).collect()
    }

    /// Forgets idle flows that would be served no later had they never been here.
    pub(crate) fn forget_idle(&mut self, idle: impl Fn(&F) -> bool) {
        let start = self.virtual_time - self.credit;
        self.flows
            .retain(|_, flow| flow.service > start || !idle(&flow.inner));
    }

    /// Forgets all flows: nobody waits.
    pub(crate) fn clear(&mut self) {
        self.flows.clear();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// How many of `grants` go to each flow, in the order of their names; all wait.
    fn served(
        queue: &mut FairQueue<&'static str, ()>,
        grants: usize,
    ) -> Vec<(&'static str, usize)> {
        let mut served = std::collections::BTreeMap::new();
        for _ in 0..grants {
            let first = queue.iter().map(|(key, service, ())| (service, *key)).min();
            let (_, key) = first.unwrap();
            queue.grant(key);
            *served.entry(key).or_default() += 1;
        }
        served.into_iter().collect()
    }

    #[test]
    fn a_new_flow_is_ahead_by_its_credit_and_then_all_are_served_alike() {
        let mut queue = FairQueue::new(8);
        queue.join("old", || ());
        served(&mut queue, 1000);
        queue.join("new", || ());
        assert_eq!(served(&mut queue, 8), [("new", 8)]);
        let both = served(&mut queue, 100);
        assert!(
            both.iter().all(|(_, count)| count.abs_diff(50) <= 1),
            "{both:?}"
        );
    }

    #[test]
    fn who_comes_first_or_comes_back_has_saved_up_nothing() {
        let mut queue = FairQueue::new(8);
        queue.join("idle", || ());
        queue.join("busy", || ());
        for _ in 0..1000 {
            queue.grant("busy");
        }
        queue.join("idle", || ());
        assert_eq!(served(&mut queue, 10), [("busy", 1), ("idle", 9)]);
    }

    #[test]
    fn no_flow_waits_for_ever_while_new_ones_come() {
        let mut queue = FairQueue::new(8);
        queue.join(0, || ());
        for _ in 0..10 {
            queue.grant(&0);
        }
        // Each new one leaves before it has used up what it is ahead by.
        let old = (1..1000).find(|new| {
            queue.join(*new, || ());
            (0..4).any(|_| {
                let first = queue.iter().map(|(key, service, ())| (service, *key)).min();
                let (_, key) = first.unwrap();
                queue.grant(&key);
                key == 0
            }) || {
                queue.flows.remove(new);
                false
            }
        });
        assert!(old.is_some_and(|new| new < 10), "{old:?}");
    }

    #[test]
    fn an_idle_flow_is_forgotten_once_that_changes_nothing() {
        let mut queue = FairQueue::new(2);
        queue.join("a", || ());
        queue.join("b", || ());
        for _ in 0..3 {
            queue.grant("a");
        }
        queue.forget_idle(|()| true);
        assert_eq!(
            queue.iter().map(|(key, ..)| *key).collect::<Vec<_>>(),
            ["a"]
        );
        queue.join("b", || ());
        for _ in 0..9 {
            queue.grant("b");
        }
        queue.forget_idle(|()| true);
        assert_eq!(
            queue.iter().map(|(key, ..)| *key).collect::<Vec<_>>(),
            ["b"]
        );
    }
}

//! Which namespace goes next: flows that share something are served alike.
//!
//! What is shared, and whom its limits let through, the caller knows. In come flows as they begin to wait, and what each is granted; out
//! comes how much each was served: the one served least goes first.
//! This is start-time fair queuing, with a virtual time that rises a little with every grant.
//!
//! Guaranteed: a new flow is ahead of those in service by its credit at most; the virtual time rises also while new flows are ahead,
//! so that none waits for ever. Of `n` flows, who goes first is found, and kept up, in O(log n).

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// One grant, in the unit of service.
const GRANT: i64 = 1 << 20;

/// All flows. What waits in each is the caller's, which also says on which of `L` lists a flow is, of those that may go under a condition
/// of its own, and with which number.
#[derive(Debug)]
pub(crate) struct FairQueue<K, F, const L: usize, N> {
    flows: HashMap<K, Flow<F, L, N>>,
    lists: [BTreeMap<Rank<N>, K>; L],
    /// What the flow that is served now has been granted; at least what each would have been, had all been granted alike.
    virtual_time: i64,
    credit: i64,
}

/// How much a flow was served, then the number that it is listed with: the least goes first.
pub(crate) type Rank<N> = (i64, N);

#[derive(Debug)]
struct Flow<F, const L: usize, N> {
    /// Grants, counted from the virtual time at which the flow came.
    service: i64,
    /// Its number on each list that it is on.
    listed: [Option<N>; L],
    inner: F,
}

impl<F, const L: usize, N: Ord + Copy> Flow<F, L, N> {
    fn serve<K>(&mut self, service: i64, lists: &mut [BTreeMap<Rank<N>, K>; L]) {
        for (list, listed) in lists.iter_mut().zip(self.listed) {
            let listed =
                listed.and_then(|number| Some((number, list.remove(&(self.service, number))?)));
            if let Some((number, key)) = listed {
                list.insert((service, number), key);
            }
        }
        self.service = service;
    }
}

impl<K: Hash + Eq, F, const L: usize, N: Ord + Copy> FairQueue<K, F, L, N> {
    /// A new flow is ahead of the others by `credit` grants.
    pub(crate) fn new(credit: i64) -> Self {
        Self {
            flows: HashMap::new(),
            lists: std::array::from_fn(|_| BTreeMap::new()),
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
            listed: [None; L],
            inner: new(),
        });
        // Whoever waited for nothing has saved up no more than a new one has.
        if flow.service < start {
            flow.serve(start, &mut self.lists);
        }
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
        flow.serve(flow.service + GRANT, &mut self.lists);
        Some(&mut flow.inner)
    }

    /// Puts a flow on the lists for which it is given a number, which no other flow has there, and takes it off the others.
    pub(crate) fn list<Q>(&mut self, key: &Q, numbers: [Option<N>; L])
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        let lists = self.lists.iter_mut().zip(&mut flow.listed);
        for ((list, listed), number) in lists.zip(numbers) {
            if *listed == number {
                continue;
            }
            if let Some(number) = *listed {
                list.remove(&(flow.service, number));
            }
            if let Some(number) = number {
                list.insert((flow.service, number), key.to_owned());
            }
            *listed = number;
        }
    }

    /// The flow of a list that goes first.
    pub(crate) fn first(&self, list: usize) -> Option<(Rank<N>, &K)> {
        self.listed(list).next()
    }

    /// The flows of a list, as they go.
    pub(crate) fn listed(&self, list: usize) -> impl Iterator<Item = (Rank<N>, &K)> {
        self.lists[list].iter().map(|(rank, key)| (*rank, key))
    }

    pub(crate) fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&F>
    where
        K: Borrow<Q>,
    {
        self.flows.get(key).map(|flow| &flow.inner)
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

    /// Forgets a flow that ended.
    pub(crate) fn remove<Q>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        self.list(key, [None; L]);
        self.flows.remove(key);
    }

    /// Forgets idle flows, which are on no list, that would be served no later had they never been here.
    pub(crate) fn forget_idle(&mut self, idle: impl Fn(&F) -> bool) {
        let start = self.virtual_time - self.credit;
        self.flows
            .retain(|_, flow| flow.service > start || !idle(&flow.inner));
    }

    /// Forgets all flows: nobody waits.
    pub(crate) fn clear(&mut self) {
        self.flows.clear();
        self.lists = std::array::from_fn(|_| BTreeMap::new());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    type Queue<K> = FairQueue<K, (), 1, u64>;

    /// A flow that always waits for something.
    fn join<K: Hash + Eq + Clone>(queue: &mut Queue<K>, key: &K, number: u64) {
        queue.join(key.clone(), || ());
        queue.list(key, [Some(number)]);
    }

    /// Who was granted something.
    fn serve<K: Hash + Eq + Clone>(queue: &mut Queue<K>) -> K {
        let key = queue.first(0).unwrap().1.clone();
        queue.grant(&key);
        key
    }

    /// How many of `grants` go to each flow, in the order of their names; all wait.
    fn served(queue: &mut Queue<&'static str>, grants: usize) -> Vec<(&'static str, usize)> {
        let mut served = BTreeMap::new();
        for _ in 0..grants {
            *served.entry(serve(queue)).or_default() += 1;
        }
        served.into_iter().collect()
    }

    #[test]
    fn a_new_flow_is_ahead_by_its_credit_and_then_all_are_served_alike() {
        let mut queue = FairQueue::new(8);
        join(&mut queue, &"old", 1);
        served(&mut queue, 1000);
        join(&mut queue, &"new", 2);
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
        join(&mut queue, &"idle", 2);
        join(&mut queue, &"busy", 1);
        for _ in 0..1000 {
            queue.grant("busy");
        }
        join(&mut queue, &"idle", 2);
        assert_eq!(served(&mut queue, 10), [("busy", 1), ("idle", 9)]);
    }

    #[test]
    fn no_flow_waits_for_ever_while_new_ones_come() {
        let mut queue = FairQueue::new(8);
        join(&mut queue, &0, 0);
        for _ in 0..10 {
            queue.grant(&0);
        }
        // Each new one leaves before it has used up what it is ahead by.
        let old = (1..1000).find(|new| {
            join(&mut queue, new, *new);
            (0..4).any(|_| serve(&mut queue) == 0) || {
                queue.remove(new);
                false
            }
        });
        assert!(old.is_some_and(|new| new < 10), "{old:?}");
    }

    #[test]
    fn of_those_served_alike_the_least_number_goes_first_and_who_is_off_a_list_is_not_on_it() {
        let mut queue: FairQueue<&str, (), 2, u64> = FairQueue::new(0);
        for (key, numbers) in [
            ("a", [Some(3), None]),
            ("b", [Some(2), Some(2)]),
            ("c", [Some(1), Some(1)]),
        ] {
            queue.join(key, || ());
            queue.list(&key, numbers);
        }
        assert_eq!(
            (queue.first(0), queue.first(1)),
            (Some(((0, 1), &"c")), Some(((0, 1), &"c")))
        );
        queue.grant("c");
        queue.list(&"c", [Some(4), None]);
        assert_eq!(
            (queue.first(0), queue.first(1)),
            (Some(((0, 2), &"b")), Some(((0, 2), &"b")))
        );
        queue.remove(&"b");
        assert_eq!(
            (queue.first(0), queue.first(1)),
            (Some(((0, 3), &"a")), None)
        );
        queue.remove(&"a");
        assert_eq!(queue.first(0), Some(((GRANT, 4), &"c")));
        queue.clear();
        assert_eq!(queue.first(0), None);
    }

    #[test]
    fn an_idle_flow_is_forgotten_once_that_changes_nothing() {
        let mut queue: Queue<&str> = FairQueue::new(2);
        queue.join("a", || ());
        queue.join("b", || ());
        for _ in 0..3 {
            queue.grant("a");
        }
        queue.forget_idle(|()| true);
        assert!(queue.get_mut("a").is_some() && queue.get_mut("b").is_none());
        queue.join("b", || ());
        for _ in 0..9 {
            queue.grant("b");
        }
        queue.forget_idle(|()| true);
        assert!(queue.get_mut("a").is_none() && queue.get_mut("b").is_some());
    }
}

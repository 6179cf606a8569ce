//! How many requests of one [`Pool`] may be active at once.
//!
//! A request counts from when it begins until it holds nothing any more. Over the limit, the others wait and are called in the order
//! of their creation. A waiting request may not begin, so it does not block other namespaces: a newer request on its float supersedes
//! it, as it would a suspended one. Newer requests of its own pool wait behind it.
//!
//! Guaranteed: at most that many are admitted; a request that was called keeps its place until it is admitted or withdraws; as soon as
//! one may begin, the first in the queue is called.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::claims::Uid;
use super::pool::Pool;

/// What is counted together: the requests of a pool that promote, and those that only plan.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QuotaKey {
    /// The pool.
    pub pool: Arc<Pool>,
    /// Whether they only plan.
    pub plans: bool,
}

/// Which requests are active, and which wait, by pool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct NamespaceQuota {
    /// For each key; 0: no limit.
    limit: usize,
    by_key: BTreeMap<QuotaKey, Usage>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Usage {
    active: BTreeSet<Uid>,
    /// By order of creation.
    waiting: BTreeMap<(u64, Uid), Waiter>,
    /// The order of each that waits.
    orders: BTreeMap<Uid, u64>,
    /// Which of them wait behind another.
    behind: BTreeSet<(u64, Uid)>,
}

/// The state of a waiting request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Waiter {
    /// Not called yet.
    Waiting,
    /// Called: it may begin.
    Called,
    /// An earlier one in the queue has its float: it is called after that one has begun.
    Behind,
}

impl NamespaceQuota {
    /// A limit for each key; 0: none.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            by_key: BTreeMap::new(),
        }
    }

    /// The limit for each key; 0: none.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Whether `uid`, which could begin now, is admitted: it was before, or the limit allows it after every older one in the queue, and
    /// none of its `rivals` waits. Otherwise it waits from now on.
    pub fn try_admit<'a>(
        &mut self,
        key: &QuotaKey,
        uid: &str,
        order: u64,
        mut rivals: impl Iterator<Item = &'a Uid>,
    ) -> bool {
        if self.limit == 0 {
            return true;
        }
        let usage = self.by_key.entry(key.clone()).or_default();
        if usage.active.contains(uid) {
            return true;
        }
        // Before an order is recorded it may change: it must not wait for itself.
        let waited = usage.leave(uid);
        let own = (order, uid.to_owned());
        if rivals.any(|rival| usage.orders.contains_key(rival)) {
            usage.wait(own, Waiter::Behind);
            return false;
        }
        let free = self.limit.saturating_sub(usage.active.len());
        let before = usage.waiting.range(..&own).take(free).count();
        if before >= free {
            usage.wait(own, Waiter::Waiting);
            return false;
        }
        if waited {
            usage.call_behind();
        }
        usage.active.insert(own.1);
        true
    }

    /// Counts one that has begun already, even beyond the limit.
    pub fn occupy(&mut self, key: &QuotaKey, uid: &str) {
        if self.limit > 0 {
            let usage = self.by_key.entry(key.clone()).or_default();
            usage.active.insert(uid.to_owned());
        }
    }

    /// `uid` holds nothing any more: it is not active.
    pub fn release(&mut self, key: &QuotaKey, uid: &str) {
        if let Some(usage) = self.by_key.get_mut(key) {
            usage.active.remove(uid);
            self.tidy(key);
        }
    }

    /// `uid` cannot begin now for another reason: it waits no longer, if it did.
    pub fn withdraw(&mut self, key: &QuotaKey, uid: &str) {
        if let Some(usage) = self.by_key.get_mut(key) {
            usage.withdraw(uid);
            self.tidy(key);
        }
    }

    /// Calls those who may begin now: the first in the queue, as many as the limit allows, without those called before.
    pub fn call(&mut self, key: &QuotaKey) -> Vec<Uid> {
        let Some(usage) = self.by_key.get_mut(key) else {
            return Vec::new();
        };
        let free = self.limit.saturating_sub(usage.active.len());
        let first = usage.waiting.iter_mut().take(free);
        let waiting = first.filter(|(_, waiter)| **waiter == Waiter::Waiting);
        let called = waiting.map(|((_, uid), waiter)| {
            *waiter = Waiter::Called;
            uid.clone()
        });
        called.collect()
    }

    fn tidy(&mut self, key: &QuotaKey) {
        let empty = |usage: &Usage| usage.active.is_empty() && usage.waiting.is_empty();
        if self.by_key.get(key).is_some_and(empty) {
            self.by_key.remove(key);
        }
    }
}

impl Usage {
    /// Puts one into the queue.
    fn wait(&mut self, own: (u64, Uid), waiter: Waiter) {
        if waiter == Waiter::Behind {
            self.behind.insert(own.clone());
        }
        self.orders.insert(own.1.clone(), own.0);
        self.waiting.insert(own, waiter);
    }

    /// Takes one out of the queue, if it was there.
    fn leave(&mut self, uid: &str) -> bool {
        let Some(order) = self.orders.remove(uid) else {
            return false;
        };
        let own = (order, uid.to_owned());
        self.waiting.remove(&own);
        self.behind.remove(&own);
        true
    }

    /// Takes one out of the queue; whoever waited behind another may be called now.
    fn withdraw(&mut self, uid: &str) {
        if self.leave(uid) {
            self.call_behind();
        }
    }

    fn call_behind(&mut self) {
        for own in std::mem::take(&mut self.behind) {
            self.waiting.insert(own, Waiter::Waiting);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn key(namespace: &str) -> QuotaKey {
        QuotaKey {
            pool: Arc::new(Pool::new(namespace, "quay.io")),
            plans: false,
        }
    }

    fn try_admit(quota: &mut NamespaceQuota, namespace: &str, order: u64) -> bool {
        behind(quota, namespace, order, &[])
    }

    fn behind(quota: &mut NamespaceQuota, namespace: &str, order: u64, rivals: &[u64]) -> bool {
        let rivals: Vec<Uid> = rivals.iter().map(ToString::to_string).collect();
        quota.try_admit(&key(namespace), &order.to_string(), order, rivals.iter())
    }

    #[test]
    fn a_namespace_has_a_limit_of_its_own() {
        let mut quota = NamespaceQuota::new(2);
        assert!(try_admit(&mut quota, "a", 1) && try_admit(&mut quota, "a", 2));
        assert!(!try_admit(&mut quota, "a", 3));
        assert!(try_admit(&mut quota, "a", 1), "it is active");
        assert!(try_admit(&mut quota, "b", 4) && try_admit(&mut quota, "b", 5));
        let plans = QuotaKey {
            plans: true,
            ..key("a")
        };
        assert!(quota.try_admit(&plans, "6", 6, [].iter()));
        assert_eq!(quota.call(&key("a")), Vec::<Uid>::new());
    }

    #[test]
    fn the_queue_moves_in_the_order_of_creation_whoever_asks_first() {
        let mut quota = NamespaceQuota::new(1);
        assert!(try_admit(&mut quota, "a", 1));
        for order in [5, 3, 4] {
            assert!(!try_admit(&mut quota, "a", order));
        }
        quota.release(&key("a"), "1");
        assert_eq!(quota.call(&key("a")), ["3"]);
        assert_eq!(quota.call(&key("a")), Vec::<Uid>::new(), "called once");
        // Neither a waiting one nor a newcomer takes what is kept for the first.
        assert!(!try_admit(&mut quota, "a", 5) && !try_admit(&mut quota, "a", 6));
        // One that was created before them all may.
        assert!(try_admit(&mut quota, "a", 2));
        assert!(!try_admit(&mut quota, "a", 3));
        quota.release(&key("a"), "2");
        assert_eq!(
            quota.call(&key("a")),
            ["3"],
            "called again, since it was sent back"
        );
        assert!(try_admit(&mut quota, "a", 3));
    }

    #[test]
    fn who_withdraws_lets_the_next_come() {
        let mut quota = NamespaceQuota::new(1);
        assert!(
            try_admit(&mut quota, "a", 1)
                && !try_admit(&mut quota, "a", 2)
                && !try_admit(&mut quota, "a", 3)
        );
        quota.release(&key("a"), "1");
        assert_eq!(quota.call(&key("a")), ["2"]);
        quota.withdraw(&key("a"), "2");
        assert_eq!(quota.call(&key("a")), ["3"]);
        assert!(try_admit(&mut quota, "a", 3));
        quota.release(&key("a"), "3");
        assert_eq!(quota, NamespaceQuota::new(1), "nothing is left of it");
    }

    #[test]
    fn who_shares_a_float_with_a_waiting_one_comes_after_it_whatever_is_free() {
        let mut quota = NamespaceQuota::new(2);
        assert!(
            try_admit(&mut quota, "a", 1)
                && try_admit(&mut quota, "a", 2)
                && !try_admit(&mut quota, "a", 3)
        );
        quota.release(&key("a"), "1");
        quota.release(&key("a"), "2");
        assert!(!behind(&mut quota, "a", 4, &[3]));
        assert_eq!(quota.call(&key("a")), ["3"]);
        assert!(try_admit(&mut quota, "a", 3));
        assert_eq!(quota.call(&key("a")), ["4"]);
        assert!(behind(&mut quota, "a", 4, &[3]));
        // One of another namespace does not wait in this one.
        assert!(!try_admit(&mut quota, "a", 5));
        assert!(behind(&mut quota, "b", 6, &[5]));
    }

    #[test]
    fn who_has_begun_before_counts_even_beyond_the_limit() {
        let mut quota = NamespaceQuota::new(1);
        quota.occupy(&key("a"), "1");
        quota.occupy(&key("a"), "2");
        assert!(!try_admit(&mut quota, "a", 3));
        quota.release(&key("a"), "1");
        assert_eq!(quota.call(&key("a")), Vec::<Uid>::new());
        quota.release(&key("a"), "2");
        assert_eq!(quota.call(&key("a")), ["3"]);
    }

    #[test]
    fn one_whose_order_changes_before_it_is_recorded_waits_once() {
        let mut quota = NamespaceQuota::new(1);
        assert!(try_admit(&mut quota, "a", 1));
        assert!(!quota.try_admit(&key("a"), "x", 2, [].iter()));
        assert!(!quota.try_admit(&key("a"), "x", 5, [].iter()));
        quota.release(&key("a"), "1");
        assert_eq!(quota.call(&key("a")), ["x"]);
        assert!(quota.try_admit(&key("a"), "x", 6, [].iter()));
        quota.release(&key("a"), "x");
        assert_eq!(quota, NamespaceQuota::new(1));
    }

    #[test]
    fn without_a_limit_everybody_is_admitted() {
        let mut quota = NamespaceQuota::new(0);
        assert!((1..1000).all(|order| try_admit(&mut quota, "a", order)));
        assert_eq!(quota, NamespaceQuota::new(0));
    }

    proptest! {
        /// Requests ask when they are called and at any other time, withdraw and end; whoever is called is admitted in the end.
        #[test]
        fn no_more_than_the_limit_are_active_and_the_queue_never_stands_still(
            limit in 1_usize..4, moves in proptest::collection::vec((0_u8..4, 0_u64..8), 0..60),
        ) {
            let (mut quota, key) = (NamespaceQuota::new(limit), key("a"));
            let (mut active, mut waiting) = (BTreeSet::new(), BTreeSet::new());
            let mut called: BTreeSet<u64> = BTreeSet::new();
            for (what, order) in moves {
                let uid = order.to_string();
                match what {
                    // Every odd one shares the float of the even one before it.
                    0 | 1 => {
                        let rival = (order % 2 == 1).then(|| (order - 1).to_string());
                        let admitted = quota.try_admit(&key, &uid, order, rival.iter());
                        called.remove(&order);
                        let first = waiting.iter().next().is_none_or(|first| order <= *first);
                        if admitted {
                            prop_assert!(active.contains(&order) || first || waiting.range(..order).count() + active.len() < limit);
                            waiting.remove(&order);
                            active.insert(order);
                        } else {
                            waiting.insert(order);
                        }
                    }
                    2 => {
                        quota.release(&key, &uid);
                        active.remove(&order);
                    }
                    _ => {
                        quota.withdraw(&key, &uid);
                        waiting.remove(&order);
                        called.remove(&order);
                    }
                }
                called.extend(quota.call(&key).iter().map(|uid| uid.parse::<u64>().unwrap()));
                prop_assert!(active.len() <= limit);
                let free = limit - active.len();
                if free > 0 && let Some(first) = waiting.iter().next() {
                    prop_assert!(called.contains(first), "{first} is not called: {quota:?}");
                }
            }
        }
    }
}

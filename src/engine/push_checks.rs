//! Which requests are checked for push permission: a limited number per namespace, the oldest first.
//!
//! A check that waits for an unavailable registry sends nothing, and lets the next begin.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::machine::claims::Uid;
use crate::registry::Progress;

/// The checks that run, and who waits for one.
#[derive(Default)]
pub(super) struct PushChecks {
    /// At once, of each namespace; 0: any number.
    most: usize,
    namespaces: HashMap<String, Namespace>,
}

#[derive(Default)]
struct Namespace {
    running: HashMap<Uid, Arc<Progress>>,
    queue: BTreeSet<(u64, Uid)>,
    /// The order of each that waits.
    orders: HashMap<Uid, u64>,
}

impl PushChecks {
    pub fn new(most: usize) -> Self {
        Self {
            most,
            namespaces: HashMap::new(),
        }
    }

    /// Whether the check of a request may begin; if not, it waits from now on.
    pub fn begin(
        &mut self,
        namespace: &str,
        uid: &str,
        order: u64,
        progress: &Arc<Progress>,
    ) -> bool {
        // Before an order is recorded it may change.
        self.withdraw(namespace, uid);
        let all = self.namespaces.entry(namespace.to_owned()).or_default();
        let own = (order, uid.to_owned());
        if self.most > 0 {
            let before = all.queue.range(..&own).take(self.most).count();
            if all.busy() + before >= self.most {
                all.orders.insert(uid.to_owned(), order);
                all.queue.insert(own);
                return false;
            }
        }
        all.running.insert(own.1, Arc::clone(progress));
        true
    }

    /// A request waits no longer. Whether it did.
    pub fn withdraw(&mut self, namespace: &str, uid: &str) -> bool {
        let Some(all) = self.namespaces.get_mut(namespace) else {
            return false;
        };
        let order = all.orders.remove(uid);
        order.is_some_and(|order| all.queue.remove(&(order, uid.to_owned())))
    }

    /// A request was checked, or is gone.
    pub fn end(&mut self, namespace: &str, uid: &str) {
        self.withdraw(namespace, uid);
        if let Some(all) = self.namespaces.get_mut(namespace) {
            all.running.remove(uid);
            if all.running.is_empty() && all.queue.is_empty() {
                self.namespaces.remove(namespace);
            }
        }
    }

    /// Who is next, if another may begin: it is woken, and the one after it once that one has begun.
    pub fn next(&self, namespace: &str) -> Option<&Uid> {
        let all = self.namespaces.get(namespace)?;
        let first = all.queue.first().map(|(_, uid)| uid);
        first.filter(|_| all.busy() < self.most)
    }
}

impl Namespace {
    fn busy(&self) -> usize {
        let asks = |progress: &&Arc<Progress>| progress.waiting().is_none();
        self.running.values().filter(asks).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(push_checks: &mut PushChecks, order: u64) -> bool {
        push_checks.begin("a", &order.to_string(), order, &Arc::default())
    }

    #[test]
    fn so_many_of_a_namespace_are_checked_at_once_and_the_oldest_first() {
        let mut push_checks = PushChecks::new(2);
        assert!(begin(&mut push_checks, 1) && begin(&mut push_checks, 5));
        assert!(!begin(&mut push_checks, 7) && !begin(&mut push_checks, 6));
        assert!(push_checks.begin("b", "8", 8, &Arc::default()));
        assert_eq!(push_checks.next("a"), None);
        push_checks.end("a", "1");
        assert_eq!(push_checks.next("a").map(String::as_str), Some("6"));
        assert!(!begin(&mut push_checks, 7), "not before the older one");
        assert!(begin(&mut push_checks, 6));
        assert_eq!(push_checks.next("a"), None);
        // One that withdraws lets the next begin.
        push_checks.end("a", "7");
        push_checks.end("a", "5");
        assert_eq!(push_checks.next("a"), None);
        push_checks.end("a", "6");
        push_checks.end("b", "8");
        assert!(push_checks.namespaces.is_empty());
    }
}

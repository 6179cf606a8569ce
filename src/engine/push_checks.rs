//! Which requests are checked for push permission: of each pool a limited number, the oldest first.
//!
//! A check lasts while its registry is unavailable. So those on a registry that is down wait without asking anybody anything, and those on
//! another do not wait for them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::machine::claims::Uid;
use crate::machine::pool::Pool;

/// At once, of each pool: more than a registry answers at a time.
const MOST: usize = 64;

/// The checks that run, and who waits for one.
#[derive(Default)]
pub(super) struct PushChecks {
    pools: HashMap<Arc<Pool>, Checked>,
    /// Where each request is.
    places: HashMap<Uid, Place>,
}

#[derive(Default)]
struct Checked {
    running: usize,
    queue: BTreeSet<(u64, Uid)>,
}

struct Place {
    pool: Arc<Pool>,
    /// Its order, while it waits.
    waits: Option<u64>,
}

impl PushChecks {
    /// Whether the check of a request may begin; if not, it waits from now on.
    pub fn begin(&mut self, pool: &Arc<Pool>, uid: &str, order: u64) -> bool {
        // Before an order is recorded it may change.
        self.end(uid);
        let checked = self.pools.entry(Arc::clone(pool)).or_default();
        let own = (order, uid.to_owned());
        let before = checked.queue.range(..&own).take(MOST).count();
        let begins = checked.running + before < MOST;
        if begins {
            checked.running += 1;
        } else {
            checked.queue.insert(own);
        }
        let place = Place {
            pool: Arc::clone(pool),
            waits: (!begins).then_some(order),
        };
        self.places.insert(uid.to_owned(), place);
        begins
    }

    /// A request waits no longer; gives its pool.
    pub fn withdraw(&mut self, uid: &str) -> Option<Arc<Pool>> {
        self.places.get(uid)?.waits?;
        self.end(uid)
    }

    /// A request was checked, or is gone; gives its pool.
    pub fn end(&mut self, uid: &str) -> Option<Arc<Pool>> {
        let Place { pool, waits } = self.places.remove(uid)?;
        if let Some(checked) = self.pools.get_mut(&pool) {
            if let Some(order) = waits {
                checked.queue.remove(&(order, uid.to_owned()));
            } else {
                checked.running -= 1;
            }
            if checked.running == 0 && checked.queue.is_empty() {
                self.pools.remove(&pool);
            }
        }
        Some(pool)
    }

    /// Who is next, if another may begin: it is woken, and the one after it once that one has begun.
    pub fn next(&self, pool: &Pool) -> Option<&Uid> {
        let checked = self.pools.get(pool)?;
        let first = checked.queue.first().map(|(_, uid)| uid);
        first.filter(|_| checked.running < MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(namespace: &str, registries: &str) -> Arc<Pool> {
        Arc::new(Pool::new(namespace, registries))
    }

    #[test]
    fn so_many_are_checked_at_once_and_the_oldest_first() {
        let mut push_checks = PushChecks::default();
        let a = pool("a", "down.example");
        let begin = |push_checks: &mut PushChecks, order: usize| {
            push_checks.begin(&a, &order.to_string(), order as u64)
        };
        let [first, last] = [100, 100 + MOST - 1];
        assert!((first..=last).all(|order| begin(&mut push_checks, order)));
        assert!(!begin(&mut push_checks, 7) && !begin(&mut push_checks, 6));
        for apart in [pool("b", "down.example"), pool("a", "up.example")] {
            assert!(push_checks.begin(&apart, "apart", 8));
            push_checks.end("apart");
        }
        assert_eq!(push_checks.next(&a), None);
        push_checks.end(&first.to_string());
        assert_eq!(push_checks.next(&a).map(String::as_str), Some("6"));
        assert!(!begin(&mut push_checks, 7), "not before the older one");
        let checked = last.to_string();
        assert_eq!(push_checks.withdraw(&checked), None, "it is being checked");
        assert!(begin(&mut push_checks, 6));
        assert_eq!(push_checks.next(&a), None);
        // One that withdraws lets the next begin.
        assert!(!begin(&mut push_checks, 9));
        assert_eq!(push_checks.withdraw("7"), Some(Arc::clone(&a)));
        push_checks.end(&checked);
        assert_eq!(push_checks.next(&a).map(String::as_str), Some("9"));
        for order in (first..=last).chain([6, 9]) {
            push_checks.end(&order.to_string());
        }
        assert!(push_checks.pools.is_empty() && push_checks.places.is_empty());
    }
}

//! Which requests are checked for push permission: of those of a namespace that ask the same registries a limited number, the oldest first.
//!
//! A check lasts while its registry is unavailable. So those on a registry that is down wait without asking anybody anything, and those on
//! another do not wait for them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::machine::claims::Uid;

/// The checks that run, and who waits for one.
#[derive(Default)]
pub(super) struct PushChecks {
    /// At once, of each line; 0: any number.
    most: usize,
    lines: HashMap<Arc<Asked>, Line>,
    /// Where each request is.
    places: HashMap<Uid, Place>,
}

/// Whom the requests of a line ask.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Asked {
    pub namespace: String,
    /// Of the floats, sorted.
    pub hosts: Vec<String>,
}

#[derive(Default)]
struct Line {
    running: HashSet<Uid>,
    queue: BTreeSet<(u64, Uid)>,
}

struct Place {
    asked: Arc<Asked>,
    /// Its order, while it waits.
    waits: Option<u64>,
}

impl PushChecks {
    pub fn new(most: usize) -> Self {
        Self {
            most,
            ..Self::default()
        }
    }

    /// Whether the check of a request may begin; if not, it waits from now on.
    pub fn begin(&mut self, asked: &Arc<Asked>, uid: &str, order: u64) -> bool {
        // Before an order is recorded it may change.
        self.end(uid);
        let line = self.lines.entry(Arc::clone(asked)).or_default();
        let own = (order, uid.to_owned());
        let before = line.queue.range(..&own).take(self.most).count();
        let begins = self.most == 0 || line.running.len() + before < self.most;
        if begins {
            line.running.insert(own.1);
        } else {
            line.queue.insert(own);
        }
        let place = Place {
            asked: Arc::clone(asked),
            waits: (!begins).then_some(order),
        };
        self.places.insert(uid.to_owned(), place);
        begins
    }

    /// A request waits no longer; gives the line that it waited in.
    pub fn withdraw(&mut self, uid: &str) -> Option<Arc<Asked>> {
        self.places.get(uid)?.waits?;
        self.end(uid)
    }

    /// A request was checked, or is gone; gives its line.
    pub fn end(&mut self, uid: &str) -> Option<Arc<Asked>> {
        let Place { asked, waits } = self.places.remove(uid)?;
        if let Some(line) = self.lines.get_mut(&asked) {
            match waits {
                Some(order) => line.queue.remove(&(order, uid.to_owned())),
                None => line.running.remove(uid),
            };
            if line.running.is_empty() && line.queue.is_empty() {
                self.lines.remove(&asked);
            }
        }
        Some(asked)
    }

    /// Who is next, if another may begin: it is woken, and the one after it once that one has begun.
    pub fn next(&self, asked: &Asked) -> Option<&Uid> {
        let line = self.lines.get(asked)?;
        let first = line.queue.first().map(|(_, uid)| uid);
        first.filter(|_| line.running.len() < self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(namespace: &str, host: &str) -> Arc<Asked> {
        Arc::new(Asked {
            namespace: namespace.to_owned(),
            hosts: vec![host.to_owned()],
        })
    }

    #[test]
    fn so_many_are_checked_at_once_and_the_oldest_first() {
        let mut push_checks = PushChecks::new(2);
        let a = asked("a", "down.example");
        let begin = |push_checks: &mut PushChecks, order: u64| {
            push_checks.begin(&a, &order.to_string(), order)
        };
        assert!(begin(&mut push_checks, 1) && begin(&mut push_checks, 5));
        assert!(!begin(&mut push_checks, 7) && !begin(&mut push_checks, 6));
        for (n, apart) in [asked("b", "down.example"), asked("a", "up.example")]
            .iter()
            .enumerate()
        {
            assert!(push_checks.begin(apart, &format!("apart {n}"), 8));
            push_checks.end(&format!("apart {n}"));
        }
        assert_eq!(push_checks.next(&a), None);
        push_checks.end("1");
        assert_eq!(push_checks.next(&a).map(String::as_str), Some("6"));
        assert!(!begin(&mut push_checks, 7), "not before the older one");
        assert_eq!(push_checks.withdraw("5"), None, "it is being checked");
        assert!(begin(&mut push_checks, 6));
        assert_eq!(push_checks.next(&a), None);
        // One that withdraws lets the next begin.
        assert!(!begin(&mut push_checks, 9));
        assert_eq!(push_checks.withdraw("7"), Some(Arc::clone(&a)));
        push_checks.end("5");
        assert_eq!(push_checks.next(&a).map(String::as_str), Some("9"));
        push_checks.end("9");
        push_checks.end("6");
        assert!(push_checks.lines.is_empty() && push_checks.places.is_empty());
    }
}

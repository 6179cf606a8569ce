//! Who is asked about: of each namespace so many requests at once, in the order of their creation.
//!
//! A question that waits for a registry that is unwell sends nothing, and leaves its turn to the next.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::machine::claims::Uid;
use crate::registry::Progress;

/// The questions being asked, and who waits to be asked about.
#[derive(Default)]
pub(super) struct Questions {
    /// At once, of each namespace; 0: any number.
    most: usize,
    namespaces: HashMap<String, Namespace>,
}

#[derive(Default)]
struct Namespace {
    asked: HashMap<Uid, Arc<Progress>>,
    line: BTreeSet<(u64, Uid)>,
}

impl Questions {
    pub fn new(most: usize) -> Self {
        Self {
            most,
            namespaces: HashMap::new(),
        }
    }

    /// Whether a request's turn has come; if not, it stands in line from now on.
    pub fn begin(
        &mut self,
        namespace: &str,
        uid: &str,
        order: u64,
        progress: &Arc<Progress>,
    ) -> bool {
        let all = self.namespaces.entry(namespace.to_owned()).or_default();
        // Before an order is recorded it may change.
        all.line.retain(|(_, other)| other != uid);
        let own = (order, uid.to_owned());
        let before = all.line.range(..&own).count();
        if self.most > 0 && all.busy() + before >= self.most {
            all.line.insert(own);
            return false;
        }
        all.asked.insert(own.1, Arc::clone(progress));
        true
    }

    /// A request stands in line no longer. Whether it did.
    pub fn withdraw(&mut self, namespace: &str, uid: &str) -> bool {
        let Some(all) = self.namespaces.get_mut(namespace) else {
            return false;
        };
        let before = all.line.len();
        all.line.retain(|(_, other)| other != uid);
        all.line.len() < before
    }

    /// A request is answered, or gone.
    pub fn end(&mut self, namespace: &str, uid: &str) {
        self.withdraw(namespace, uid);
        if let Some(all) = self.namespaces.get_mut(namespace) {
            all.asked.remove(uid);
            if all.asked.is_empty() && all.line.is_empty() {
                self.namespaces.remove(namespace);
            }
        }
    }

    /// Whose turn it is now, of those in line: it is told, and the next when that one has begun.
    pub fn next(&self, namespace: &str) -> Option<&Uid> {
        let all = self.namespaces.get(namespace)?;
        let first = all.line.first().map(|(_, uid)| uid);
        first.filter(|_| all.busy() < self.most)
    }
}

impl Namespace {
    fn busy(&self) -> usize {
        let asks = |progress: &&Arc<Progress>| progress.waiting().is_none();
        self.asked.values().filter(asks).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(questions: &mut Questions, order: u64) -> bool {
        questions.begin("a", &order.to_string(), order, &Arc::default())
    }

    #[test]
    fn so_many_of_a_namespace_are_asked_about_at_once_and_the_oldest_first() {
        let mut questions = Questions::new(2);
        assert!(begin(&mut questions, 1) && begin(&mut questions, 5));
        assert!(!begin(&mut questions, 7) && !begin(&mut questions, 6));
        assert!(questions.begin("b", "8", 8, &Arc::default()));
        assert_eq!(questions.next("a"), None);
        questions.end("a", "1");
        assert_eq!(questions.next("a").map(String::as_str), Some("6"));
        assert!(!begin(&mut questions, 7), "not before the older one");
        assert!(begin(&mut questions, 6));
        assert_eq!(questions.next("a"), None);
        // One that leaves the line lets the next come.
        questions.end("a", "7");
        questions.end("a", "5");
        assert_eq!(questions.next("a"), None);
        questions.end("a", "6");
        questions.end("b", "8");
        assert!(questions.namespaces.is_empty());
    }
}

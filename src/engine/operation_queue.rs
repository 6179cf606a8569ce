//! Which operations run: the others wait, each as no more than its record.
//!
//! In come operations that were launched; out comes a [`Permit`], when one may begin, and it is given back with that value. What a
//! running operation holds is some tens of KiB, for a copy more: ten thousand at once would be a gigabyte, and no registry serves more
//! than a few of them at a time.
//!
//! There is one queue for each [`QueueKey`], a pair of registries and a kind of work, so that nobody waits behind a registry that is
//! down, nor a tag behind large layers. Guaranteed for each queue: of one request [`SHARE`] times the requests in flight per registry
//! run at the most; of one namespace [`SHARES`] times as many, those above the first share of as many different requests; the namespace
//! that was served least goes first, of it the request that was served least, and a new one is ahead of its namespace's others by
//! [`NEW_FLOW_CREDIT`] permits; who has left takes nothing.
//!
//! Queues are as many as there are names of registries, and names are free. So there is a bound on all queues together, [`QUEUES`] times
//! what one namespace may have in one queue. Of it, as of a queue, a namespace never takes the last part: each of `n` namespaces that
//! are there has at most one of `n + 1` equal parts, so that the next to come finds room.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::fair_queue::FairQueue;
use crate::machine::claims::Uid;
use crate::machine::{ImageSpec, Step};

/// Operations that run, whomever they belong to, for each request that may be in flight: enough that there is always one to send, also
/// while others rest.
const SHARE: usize = 4;
/// So many times that, of requests of which nothing else runs: a small one does not wait for the end of large copies.
const SHARES: usize = 4;
/// So many times that, in all queues.
const QUEUES: usize = 4;
/// How many permits a new request is ahead of those of its namespace that are there: the steps of four images.
const NEW_FLOW_CREDIT: i64 = 16;

/// All queues. Clones share them.
#[derive(Clone)]
pub(super) struct OperationQueue {
    all: Arc<Mutex<All>>,
}

/// What operations wait in one queue for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct QueueKey {
    source: String,
    float: String,
    /// Whether blobs are copied.
    copies: bool,
}

/// While it lives, an operation runs.
pub(super) struct Permit {
    queues: OperationQueue,
    /// None: it is given back already.
    of: Option<Running>,
}

/// Where an operation runs.
#[derive(Clone)]
struct Running {
    key: QueueKey,
    namespace: String,
    uid: Uid,
}

struct All {
    share: usize,
    queues: HashMap<QueueKey, Queue>,
    running: usize,
    namespaces: HashMap<String, Load>,
}

/// What a namespace has in all queues.
#[derive(Default)]
struct Load {
    running: usize,
    /// Queues it is in.
    queues: usize,
    /// Of these, those in which the bound on all queues holds it up.
    held_up: VecDeque<QueueKey>,
}

struct Queue {
    running: usize,
    waiters: u64,
    namespaces: FairQueue<String, Namespace>,
}

/// The requests of one namespace in a queue.
struct Namespace {
    running: usize,
    requests: FairQueue<Uid, Request>,
    held_up: bool,
}

/// One request in a queue.
#[derive(Default)]
struct Request {
    running: usize,
    waiters: VecDeque<(u64, oneshot::Sender<Permit>)>,
}

// === impl QueueKey ===

impl QueueKey {
    /// Where a step of an image waits.
    pub(super) fn of(image: &ImageSpec, step: Step) -> Self {
        Self {
            source: image.source.repository.host().to_owned(),
            float: image.float.repository().host().to_owned(),
            copies: step.copies(),
        }
    }
}

// === impl OperationQueue ===

impl OperationQueue {
    /// For registries that so many requests may be in flight to.
    pub(super) fn new(concurrency: usize) -> Self {
        Self {
            all: Arc::new(Mutex::new(All {
                share: concurrency * SHARE,
                queues: HashMap::new(),
                running: 0,
                namespaces: HashMap::new(),
            })),
        }
    }

    /// Waits until an operation of this request may begin.
    pub(super) async fn acquire(&self, key: QueueKey, namespace: &str, uid: &str) -> Permit {
        let (waiter, permit) = oneshot::channel();
        {
            let mut queues = self.lock();
            queues.join(&key, namespace, uid, waiter);
            queues.grant(&key, self);
        }
        // Nobody drops a waiter whose owner waits.
        permit.await.unwrap_or_else(|_| Permit {
            queues: self.clone(),
            of: None,
        })
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(running) = self.of.take() {
            let mut queues = self.queues.lock();
            queues.release(&running);
            queues.grant(&running.key, &self.queues);
            queues.grant_held_up(&self.queues);
        }
    }
}

// === impl All ===

impl All {
    /// How many of one namespace may run in a queue.
    fn most(&self) -> usize {
        self.share * SHARES
    }

    fn join(
        &mut self,
        key: &QueueKey,
        namespace: &str,
        uid: &str,
        waiter: oneshot::Sender<Permit>,
    ) {
        let queue = self.queues.entry(key.clone()).or_insert_with(Queue::new);
        if queue.join(namespace, uid, waiter) {
            let load = self.namespaces.entry(namespace.to_owned()).or_default();
            load.queues += 1;
        }
    }

    fn release(&mut self, running: &Running) {
        self.running -= 1;
        if let Some(load) = self.namespaces.get_mut(&running.namespace) {
            load.running -= 1;
        }
        if let Some(queue) = self.queues.get_mut(&running.key) {
            queue.release(&running.namespace, &running.uid);
        }
    }

    /// Whether one more of a namespace may run in all.
    fn has_room(&self, namespace: &str) -> bool {
        let most = self.most() * QUEUES;
        let part = most / (self.namespaces.len() + 1);
        let load = self.namespaces.get(namespace);
        self.running < most && load.is_none_or(|load| load.running < part.max(1))
    }

    /// Grants what can be granted in a queue.
    fn grant(&mut self, key: &QueueKey, queues: &OperationQueue) {
        let (share, most) = (self.share, self.most());
        while let Some(queue) = self.queues.get_mut(key) {
            for namespace in queue.tidy() {
                self.forget(&namespace);
            }
            let Some(queue) = self.queues.get(key) else {
                return;
            };
            if queue.namespaces.is_empty() {
                self.queues.remove(key);
                return;
            }
            let Some(namespace) = queue.first(share, most).cloned() else {
                return;
            };
            let room = self.has_room(&namespace);
            let Some(queue) = self.queues.get_mut(key) else {
                return;
            };
            if !room {
                // The others of this queue go on.
                let load = self.namespaces.entry(namespace.clone()).or_default();
                load.held_up.push_back(key.clone());
                queue.hold_up(&namespace, true);
                continue;
            }
            let Some((uid, waiter)) = queue.take(&namespace, share) else {
                return;
            };
            let running = Running {
                key: key.clone(),
                namespace,
                uid,
            };
            self.running += 1;
            let load = self
                .namespaces
                .entry(running.namespace.clone())
                .or_default();
            load.running += 1;
            let permit = Permit {
                queues: queues.clone(),
                of: Some(running.clone()),
            };
            if let Err(mut permit) = waiter.send(permit) {
                // Its owner left in this instant. The queues are locked: the permit is given back by hand.
                permit.of = None;
                self.release(&running);
            }
        }
    }

    /// Grants what can be granted where the bound on all queues held namespaces up: to who has least.
    fn grant_held_up(&mut self, queues: &OperationQueue) {
        loop {
            let held_up = self.namespaces.iter();
            let held_up = held_up.filter(|(_, load)| !load.held_up.is_empty());
            let Some((namespace, _)) = held_up.min_by_key(|(_, load)| load.running) else {
                return;
            };
            if !self.has_room(namespace) {
                return;
            }
            let namespace = namespace.clone();
            let load = self.namespaces.get_mut(&namespace);
            let Some(key) = load.and_then(|load| load.held_up.pop_front()) else {
                return;
            };
            if let Some(queue) = self.queues.get_mut(&key) {
                queue.hold_up(&namespace, false);
            }
            self.grant(&key, queues);
        }
    }

    /// A namespace has left a queue.
    fn forget(&mut self, namespace: &str) {
        if let Some(load) = self.namespaces.get_mut(namespace) {
            load.queues -= 1;
            if load.queues == 0 {
                self.namespaces.remove(namespace);
            }
        }
    }
}

// === impl Queue ===

impl Queue {
    fn new() -> Self {
        Self {
            running: 0,
            waiters: 0,
            // A namespace is ahead of no other: it could be anybody's.
            namespaces: FairQueue::new(0),
        }
    }

    /// Whether the namespace is new here.
    fn join(&mut self, namespace: &str, uid: &str, waiter: oneshot::Sender<Permit>) -> bool {
        self.waiters += 1;
        let before = self.namespaces.len();
        let of = self.namespaces.join(namespace.to_owned(), || Namespace {
            running: 0,
            requests: FairQueue::new(NEW_FLOW_CREDIT),
            held_up: false,
        });
        let request = of.requests.join(uid.to_owned(), Request::default);
        request.waiters.push_back((self.waiters, waiter));
        self.namespaces.len() > before
    }

    /// Forgets who has left; gives the namespaces of which nothing is here any more.
    fn tidy(&mut self) -> Vec<String> {
        for (_, _, namespace) in self.namespaces.iter_mut() {
            namespace.tidy();
        }
        self.namespaces
            .remove(|namespace| namespace.requests.is_empty() && !namespace.held_up)
    }

    /// The namespace that is served next.
    fn first(&self, share: usize, most: usize) -> Option<&String> {
        if self.running >= 2 * most {
            return None;
        }
        let part = (2 * most / (self.namespaces.len() + 1)).max(1);
        let open = self.namespaces.iter();
        let open = open.filter(|(_, _, of)| !of.held_up && of.running < part);
        let ranked = open.filter_map(|(name, service, of)| {
            let (rank, _) = of.first(share)?;
            Some(((service, rank), name))
        });
        ranked.min_by_key(|(rank, _)| *rank).map(|(_, name)| name)
    }

    /// The next waiter of a namespace, whose operation runs from now on.
    fn take(&mut self, namespace: &str, share: usize) -> Option<(Uid, oneshot::Sender<Permit>)> {
        let taken = self.namespaces.get_mut(namespace)?.take(share)?;
        self.namespaces.grant(namespace)?;
        self.running += 1;
        Some(taken)
    }

    fn hold_up(&mut self, namespace: &str, held_up: bool) {
        if let Some(namespace) = self.namespaces.get_mut(namespace) {
            namespace.held_up = held_up;
        }
    }

    fn release(&mut self, namespace: &str, uid: &str) {
        self.running -= 1;
        if let Some(namespace) = self.namespaces.get_mut(namespace) {
            namespace.running -= 1;
            if let Some(request) = namespace.requests.get_mut(uid) {
                request.running -= 1;
            }
        }
    }
}

// === impl Namespace ===

impl Namespace {
    fn tidy(&mut self) {
        for (_, _, request) in self.requests.iter_mut() {
            while request.waiters.front().is_some_and(|(_, w)| w.is_closed()) {
                request.waiters.pop_front();
            }
        }
        self.requests
            .remove(|request| request.running == 0 && request.waiters.is_empty());
    }

    /// The request that is served next, and its rank.
    fn first(&self, share: usize) -> Option<((i64, u64), &Uid)> {
        let ranked = self.requests.iter().filter_map(|(uid, service, request)| {
            let (number, _) = request.waiters.front()?;
            let open = self.running < share || request.running == 0;
            open.then_some(((service, *number), uid))
        });
        ranked.min_by_key(|(rank, _)| *rank)
    }

    fn take(&mut self, share: usize) -> Option<(Uid, oneshot::Sender<Permit>)> {
        let uid = self.first(share)?.1.clone();
        let request = self.requests.grant(&uid)?;
        let (_, waiter) = request.waiters.pop_front()?;
        request.running += 1;
        self.running += 1;
        Some((uid, waiter))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::pin::Pin;

    use futures::FutureExt as _;

    use super::*;

    type Acquiring<'a> = Pin<Box<dyn Future<Output = Permit> + 'a>>;

    /// Operations of one request. Polled outside a runtime: in it, a task that polls a lot is told that nothing is ready.
    struct Operations<'a> {
        waiting: Vec<Acquiring<'a>>,
        running: Vec<Permit>,
    }

    impl<'a> Operations<'a> {
        fn launch(queues: &'a OperationQueue, key: &QueueKey, uid: &'a str, count: usize) -> Self {
            let acquire =
                || Box::pin(queues.acquire(key.clone(), self::namespace(uid), uid)) as Acquiring;
            let mut launched = Self {
                waiting: (0..count).map(|_| acquire()).collect(),
                running: Vec::new(),
            };
            launched.running();
            launched
        }

        /// How many run by now.
        fn running(&mut self) -> usize {
            let running = &mut self.running;
            self.waiting.retain_mut(|one| match one.now_or_never() {
                Some(permit) => {
                    running.push(permit);
                    false
                }
                None => true,
            });
            self.running.len()
        }
    }

    /// A request is named `NAMESPACE/NAME`, or is of the one that all others are of.
    fn namespace(uid: &str) -> &str {
        uid.split_once('/').map_or("ci", |(namespace, _)| namespace)
    }

    impl All {
        fn is_empty(&self) -> bool {
            self.queues.is_empty() && self.namespaces.is_empty() && self.running == 0
        }
    }

    fn key(source: &str, step: Step) -> QueueKey {
        let float = "quay.io/openshift/ci:f".parse().unwrap();
        let source = format!("{source}.example/a/b:c").parse().unwrap();
        QueueKey::of(
            &ImageSpec {
                source,
                float,
                replaces: None,
                freeze: None,
                remove_incoming: false,
            },
            step,
        )
    }

    #[test]
    fn a_queue_is_shared_alike_and_has_room_for_the_first_of_many_requests() {
        let queues = OperationQueue::new(2);
        let stage = key("build", Step::Stage);
        let mut one = Operations::launch(&queues, &stage, "one", 20);
        assert_eq!(one.running(), 8);
        let names: Vec<String> = (0..50).map(|n| n.to_string()).collect();
        let others = names.iter();
        let others = others.map(|name| Operations::launch(&queues, &stage, name, 2));
        let mut others: Vec<_> = others.collect();
        let running = |others: &mut [Operations]| -> Vec<usize> {
            others.iter_mut().map(Operations::running).collect()
        };
        let begun = running(&mut others);
        assert_eq!(begun.iter().sum::<usize>(), 24);
        assert!(begun.iter().all(|&count| count <= 1));
        // Where the first has nothing that runs, it is one of many.
        one.running.clear();
        let begun = running(&mut others);
        assert_eq!(begun.iter().sum::<usize>() + one.running(), 32);
        assert!(begun.iter().all(|&count| count <= 1));
        // Whoever ends makes room until all have run, and nothing is left behind.
        while one.running() + running(&mut others).iter().sum::<usize>() > 0 {
            one.running.clear();
            for other in &mut others {
                other.running.clear();
            }
        }
        assert!(one.waiting.is_empty() && others.iter().all(|o| o.waiting.is_empty()));
        assert!(queues.lock().is_empty());
    }

    #[test]
    fn a_small_request_passes_a_large_one() {
        let queues = OperationQueue::new(1);
        let latch = key("build", Step::Latch);
        let mut large = Operations::launch(&queues, &latch, "large", 100);
        assert_eq!(large.running(), 4);
        let mut small = Operations::launch(&queues, &latch, "small", 3);
        assert_eq!(small.running(), 1);
        for _ in 0..2 {
            large.running.pop();
            // What is above the share goes to who has nothing that runs.
            large.running.pop();
            small.running();
        }
        assert_eq!((large.running(), small.running()), (1, 3));
    }

    #[test]
    fn a_large_request_is_served_however_many_small_ones_come() {
        let queues = OperationQueue::new(1);
        let latch = key("build", Step::Latch);
        let names: Vec<String> = (0..200).map(|n| format!("new {n}")).collect();
        let others: Vec<String> = (0..15).map(|n| format!("long {n}")).collect();
        let long = others.iter();
        let long = long.map(|name| Operations::launch(&queues, &latch, name, 1));
        let long: Vec<_> = long.collect();
        // One place is left, and what it is ahead by is used up.
        let mut large = Operations::launch(&queues, &latch, "large", 60);
        for _ in 0..20 {
            assert_eq!(large.running(), 1);
            large.running.clear();
        }
        let mut left = Vec::new();
        let mut older = Operations::launch(&queues, &latch, "first", 10);
        for name in &names {
            // There is always a newer one that waits as well.
            let mut newer = Operations::launch(&queues, &latch, name, 10);
            while !older.waiting.is_empty() {
                for operations in [&mut older, &mut newer, &mut large] {
                    operations.running.clear();
                }
                assert_eq!(older.running() + newer.running() + large.running(), 1);
            }
            left.push(large.waiting.len());
            older = newer;
        }
        assert_eq!(left[5], left[0]);
        assert_eq!(left[199], 0);
        drop((long, older));
    }

    #[test]
    fn nobody_waits_behind_another_registry_nor_a_tag_behind_copies() {
        let queues = OperationQueue::new(1);
        let mut down = Operations::launch(&queues, &key("down", Step::Stage), "a", 10);
        let mut well = Operations::launch(&queues, &key("well", Step::Stage), "a", 10);
        let mut tags = Operations::launch(&queues, &key("down", Step::BackUp), "a", 10);
        let running = [&mut down, &mut well, &mut tags].map(Operations::running);
        assert_eq!(running, [4, 4, 4]);
    }

    #[test]
    fn a_namespace_that_invents_registries_leaves_room_for_others() {
        let queues = OperationQueue::new(1);
        // Sixteen in each key, were there no bound on all.
        let keys: Vec<QueueKey> = (0..40)
            .map(|n| key(&format!("r{n}"), Step::Stage))
            .collect();
        let names: Vec<String> = (0..40).map(|n| format!("evil/{n}")).collect();
        let mut evil: Vec<_> = keys
            .iter()
            .flat_map(|key| names.iter().map(move |name| (key, name)))
            .map(|(key, name)| Operations::launch(&queues, key, name, 1))
            .collect();
        let running =
            |all: &mut [Operations]| all.iter_mut().map(Operations::running).sum::<usize>();
        // Half of 64: it may be joined by another.
        assert_eq!(running(&mut evil), 32);
        let mut good = Operations::launch(&queues, &keys[0], "good/1", 20);
        assert_eq!(good.running(), 4);
        let mut ended = 0;
        while !good.waiting.is_empty() {
            good.running.clear();
            good.running();
            ended += 1;
        }
        assert!(ended <= 6, "it is held up by none");
        good.running.clear();
        // What is freed goes round: every one of the others begins in the end.
        while !evil.iter().all(|one| one.waiting.is_empty()) {
            assert!(running(&mut evil) <= 32);
            for one in &mut evil {
                one.running.clear();
            }
            assert!(running(&mut evil) > 0);
        }
        drop((good, evil));
        assert!(queues.lock().is_empty());
    }

    #[test]
    fn a_namespace_of_many_requests_has_no_more_permits_than_one_of_few() {
        let queues = OperationQueue::new(1);
        let latch = key("build", Step::Latch);
        let names: Vec<String> = (0..100).map(|n| format!("many/{n}")).collect();
        let mut many: Vec<_> = names
            .iter()
            .map(|name| Operations::launch(&queues, &latch, name, 5))
            .collect();
        let begun = many.iter_mut().map(Operations::running).sum::<usize>();
        assert_eq!(begun, 16);
        let mut one = Operations::launch(&queues, &latch, "one/1", 8);
        assert_eq!(one.running(), 4, "a share of its own, at once");
        for other in &mut many {
            other.running.clear();
        }
        assert_eq!(one.running(), 4, "and no more than that");
        drop((one, many));
        assert!(queues.lock().is_empty());
    }

    #[test]
    fn who_has_left_takes_nothing() {
        let queues = OperationQueue::new(1);
        let post = key("build", Step::Post);
        let mut first = Operations::launch(&queues, &post, "first", 6);
        let left = Operations::launch(&queues, &post, "left", 20);
        let mut last = Operations::launch(&queues, &post, "last", 1);
        drop(left);
        first.running.clear();
        assert_eq!((first.running(), last.running()), (2, 1));
        drop((first, last));
        assert!(queues.lock().is_empty());
    }
}

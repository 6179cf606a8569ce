//! Which operations run: the others wait, each as no more than its record.
//!
//! In come operations that were launched; out comes a [`Permit`], when one may begin, and it is given back with that value. What a
//! running operation holds is some tens of KiB, for a copy more: ten thousand at once would be a gigabyte, and no registry serves more
//! than a few of them at a time.
//!
//! There is one queue for each [`QueueKey`], a pair of registries and a kind of work, so that nobody waits behind a registry that is
//! down, nor a tag behind large layers. Guaranteed for each queue: of one request [`SHARE`] times the requests in flight per registry
//! run at the most; of one namespace [`SHARES`] times as many, those above the first share of as many different requests; the namespace
//! that was served least goes first, of it the operation whose [`Turn`] is the least; who has left takes nothing.
//!
//! Queues are as many as there are names of registries, and names are free. So there is a bound on all queues together, [`QUEUES`] times
//! what one namespace may have in one queue. Of it, as of a queue, a namespace never takes the last part: each of `n` namespaces that
//! are there has at most one of `n + 1` equal parts, so that the next to come finds room. Of its part in turn a [`Pool`] takes no more
//! than it leaves free.
//!
//! To wait, to be granted, to give back and to leave look at the operations of that request and, in O(log n), at who goes first: never at
//! all who wait.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::fair_queue::FairQueue;
use crate::machine::claims::Uid;
use crate::machine::pool::Pool;
use crate::machine::{ImageSpec, Step};
use crate::turn::Turn;

/// Operations that run, whomever they belong to, for each request that may be in flight: enough that there is always one to send, also
/// while others rest.
const SHARE: usize = 4;
/// So many times that, of requests of which nothing else runs: a small one does not wait for the end of large copies.
const SHARES: usize = 4;
/// So many times that, in all queues.
const QUEUES: usize = 4;
/// All queues. Clones share them.
#[derive(Clone)]
pub(crate) struct OperationQueue {
    all: Arc<Mutex<All>>,
}

/// What operations wait in one queue for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct QueueKey {
    source: String,
    float: String,
    /// Whether blobs are copied.
    copies: bool,
}

/// While it lives, an operation runs.
pub(crate) struct Permit {
    queues: OperationQueue,
    /// None: it is given back already.
    of: Option<At>,
}

/// Where an operation waits, or runs.
#[derive(Clone)]
struct At {
    key: QueueKey,
    pool: Arc<Pool>,
    uid: Uid,
}

/// When an operation's turn comes, within its namespace, and its number among all that wait.
type Place = (Turn, u64);

/// While it lives, an operation waits, or has its permit.
struct Waiting<'a> {
    queues: &'a OperationQueue,
    at: At,
    place: Place,
}

struct All {
    share: usize,
    queues: HashMap<QueueKey, Queue>,
    waiters: u64,
    running: usize,
    namespaces: HashMap<String, Load>,
    /// The pools that the bound on all queues holds up, by how many of each run and how many of its namespace.
    held_up: BTreeSet<(usize, Arc<Pool>)>,
}

/// What a namespace has in all queues.
#[derive(Default)]
struct Load {
    running: usize,
    /// A few, however many registries it names.
    pools: HashMap<Arc<Pool>, PoolLoad>,
}

/// What a pool has in all queues.
#[derive(Default)]
struct PoolLoad {
    running: usize,
    waiting: usize,
    /// The queues in which the bound on all queues holds it up.
    held_up: VecDeque<QueueKey>,
}

struct Queue {
    /// How many of one request may run beside each other.
    share: usize,
    /// How many may run.
    most: usize,
    running: usize,
    /// Those that may be served are on the list.
    namespaces: FairQueue<String, Namespace, 1, Place>,
    /// All of them, by how many run.
    by_running: BTreeSet<(usize, String)>,
}

/// The requests of one namespace in a queue.
#[derive(Default)]
struct Namespace {
    running: usize,
    requests: HashMap<Uid, Request>,
    /// Those that wait are on the first list, and on the second if nothing of them runs, by the first of their operations.
    lists: [BTreeMap<Place, Uid>; 2],
    held_up: bool,
}

/// One request in a queue.
struct Request {
    pool: Arc<Pool>,
    running: usize,
    waiters: BTreeMap<Place, oneshot::Sender<Permit>>,
    /// Its place on each list that it is on.
    listed: [Option<Place>; 2],
}

// === impl QueueKey ===

impl QueueKey {
    /// Where a step of an image waits.
    pub(crate) fn of(image: &ImageSpec, step: Step) -> Self {
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
    pub(crate) fn new(concurrency: usize) -> Self {
        Self {
            all: Arc::new(Mutex::new(All {
                share: concurrency * SHARE,
                queues: HashMap::new(),
                waiters: 0,
                running: 0,
                namespaces: HashMap::new(),
                held_up: BTreeSet::new(),
            })),
        }
    }

    /// Waits until an operation of this request may begin.
    pub(crate) async fn acquire(
        &self,
        key: QueueKey,
        pool: &Arc<Pool>,
        uid: &str,
        turn: Turn,
    ) -> Permit {
        let (waiter, permit) = oneshot::channel();
        let at = At {
            key,
            pool: Arc::clone(pool),
            uid: uid.to_owned(),
        };
        let place = {
            let mut queues = self.lock();
            let place = queues.join(&at, turn, waiter);
            queues.grant(&at.key, self);
            place
        };
        let _waiting = Waiting {
            queues: self,
            at,
            place,
        };
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

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut queues = self.queues.lock();
        if queues.leave(&self.at, self.place) {
            queues.grant(&self.at.key, self.queues);
            queues.grant_held_up(self.queues);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(at) = self.of.take() {
            let mut queues = self.queues.lock();
            queues.release(&at);
            queues.grant(&at.key, &self.queues);
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

    /// The place of the waiter.
    fn join(&mut self, at: &At, turn: Turn, waiter: oneshot::Sender<Permit>) -> Place {
        self.waiters += 1;
        let place = (turn, self.waiters);
        let (share, most) = (self.share, self.most());
        let queue = self.queues.entry(at.key.clone());
        let queue = queue.or_insert_with(|| Queue::new(share, 2 * most));
        queue.join(&at.pool, &at.uid, place, waiter);
        self.change(&at.pool, |load| load.waiting += 1);
        place
    }

    /// Whether the waiter of this place still waited.
    fn leave(&mut self, at: &At, place: Place) -> bool {
        let queue = self.queues.get_mut(&at.key);
        let left = queue.is_some_and(|queue| queue.leave(&at.pool.namespace, &at.uid, place));
        if left {
            self.change(&at.pool, |load| load.waiting -= 1);
            self.forget(&at.key, &at.pool.namespace);
        }
        left
    }

    fn release(&mut self, at: &At) {
        self.running -= 1;
        self.change(&at.pool, |load| load.running -= 1);
        if let Some(queue) = self.queues.get_mut(&at.key) {
            queue.release(&at.pool.namespace, &at.uid);
        }
        self.forget(&at.key, &at.pool.namespace);
    }

    /// Whether one more of a pool may run in all.
    fn has_room(&self, pool: &Pool) -> bool {
        let most = self.most() * QUEUES;
        let part = most / (self.namespaces.len() + 1);
        let load = self.namespaces.get(&pool.namespace);
        self.running < most && load.is_none_or(|load| load.running_with(pool) < part.max(1))
    }

    /// Grants what can be granted in a queue.
    fn grant(&mut self, key: &QueueKey, queues: &OperationQueue) {
        while let Some(pool) = self.queues.get(key).and_then(Queue::first) {
            let (pool, room) = (Arc::clone(pool), self.has_room(pool));
            let Some(queue) = self.queues.get_mut(key) else {
                return;
            };
            if !room {
                // The others of this queue go on.
                queue.hold_up(&pool.namespace, true);
                self.change(&pool, |load| load.held_up.push_back(key.clone()));
                continue;
            }
            let Some((uid, waiter)) = queue.take(&pool.namespace) else {
                return;
            };
            let at = At {
                key: key.clone(),
                pool,
                uid,
            };
            self.running += 1;
            self.change(&at.pool, |load| {
                load.waiting -= 1;
                load.running += 1;
            });
            let permit = Permit {
                queues: queues.clone(),
                of: Some(at.clone()),
            };
            if let Err(mut permit) = waiter.send(permit) {
                // Its owner left in this instant. The queues are locked: the permit is given back by hand.
                permit.of = None;
                self.release(&at);
            }
        }
    }

    /// Grants what can be granted where the bound on all queues held pools up: to who has least.
    fn grant_held_up(&mut self, queues: &OperationQueue) {
        while let Some((_, pool)) = self.held_up.first().cloned() {
            if !self.has_room(&pool) {
                return;
            }
            let mut key = None;
            self.change(&pool, |load| key = load.held_up.pop_front());
            let Some(key) = key else {
                return;
            };
            if let Some(queue) = self.queues.get_mut(&key) {
                queue.hold_up(&pool.namespace, false);
            }
            self.forget(&key, &pool.namespace);
            self.grant(&key, queues);
        }
    }

    /// Changes what a pool has in all queues.
    fn change(&mut self, pool: &Arc<Pool>, change: impl FnOnce(&mut PoolLoad)) {
        let load = self.namespaces.entry(pool.namespace.clone()).or_default();
        for held_up in load.held_up() {
            self.held_up.remove(&held_up);
        }
        let of = load.pools.entry(Arc::clone(pool)).or_default();
        load.running -= of.running;
        change(of);
        load.running += of.running;
        if of.running + of.waiting == 0 && of.held_up.is_empty() {
            load.pools.remove(pool);
        }
        self.held_up.extend(load.held_up());
        if load.pools.is_empty() {
            self.namespaces.remove(&pool.namespace);
        }
    }

    /// Forgets a namespace of which nothing is in a queue any more, and a queue in which nothing is.
    fn forget(&mut self, key: &QueueKey, namespace: &str) {
        let Some(queue) = self.queues.get_mut(key) else {
            return;
        };
        queue.forget(namespace);
        if queue.namespaces.is_empty() {
            self.queues.remove(key);
        }
    }
}

// === impl Load ===

impl Load {
    /// How many of a pool run and how many of its namespace: what is compared with the namespace's part.
    fn running_with(&self, pool: &Pool) -> usize {
        let of = self.pools.get(pool).map_or(0, |of| of.running);
        self.running + of
    }

    /// The pools that the bound on all queues holds up, as they are listed.
    fn held_up(&self) -> impl Iterator<Item = (usize, Arc<Pool>)> {
        let held_up = self.pools.iter().filter(|(_, of)| !of.held_up.is_empty());
        held_up.map(|(pool, of)| (self.running + of.running, Arc::clone(pool)))
    }
}

// === impl Queue ===

impl Queue {
    fn new(share: usize, most: usize) -> Self {
        Self {
            share,
            most,
            running: 0,
            // A namespace is ahead of no other: it could be anybody's.
            namespaces: FairQueue::new(0),
            by_running: BTreeSet::new(),
        }
    }

    /// How many of one namespace may run, of so many.
    fn part(&self, namespaces: usize) -> usize {
        (self.most / (namespaces + 1)).max(1)
    }

    fn join(&mut self, pool: &Arc<Pool>, uid: &str, place: Place, waiter: oneshot::Sender<Permit>) {
        let (namespace, before) = (&pool.namespace, self.namespaces.len());
        let of = self
            .namespaces
            .join(namespace.to_owned(), Namespace::default);
        let request = of.requests.entry(uid.to_owned());
        let request = request.or_insert_with(|| Request::of(pool));
        request.waiters.insert(place, waiter);
        if self.namespaces.len() > before {
            self.by_running.insert((0, namespace.to_owned()));
            self.list_anew(before);
        }
        self.changed(namespace, uid);
    }

    /// Whether this waiter was there.
    fn leave(&mut self, namespace: &str, uid: &str, place: Place) -> bool {
        let of = self.namespaces.get_mut(namespace);
        let request = of.and_then(|of| of.requests.get_mut(uid));
        let left = request.and_then(|request| request.waiters.remove(&place));
        self.changed(namespace, uid);
        left.is_some()
    }

    /// The pool of the request that is served next.
    fn first(&self) -> Option<&Arc<Pool>> {
        let (_, namespace) = (self.namespaces.first(0)).filter(|_| self.running < self.most)?;
        let of = self.namespaces.get(namespace)?;
        let (_, uid) = of.first(self.share)?;
        Some(&of.requests.get(uid)?.pool)
    }

    /// The next waiter of a namespace, whose operation runs from now on.
    fn take(&mut self, namespace: &str) -> Option<(Uid, oneshot::Sender<Permit>)> {
        let of = self.namespaces.grant(namespace)?;
        let uid = of.first(self.share)?.1.clone();
        let request = of.requests.get_mut(&uid)?;
        let (_, waiter) = request.waiters.pop_first()?;
        request.running += 1;
        self.running += 1;
        self.count(namespace, |running| running + 1);
        self.changed(namespace, &uid);
        Some((uid, waiter))
    }

    fn release(&mut self, namespace: &str, uid: &str) {
        self.running -= 1;
        let of = self.namespaces.get_mut(namespace);
        if let Some(request) = of.and_then(|of| of.requests.get_mut(uid)) {
            request.running -= 1;
        }
        self.count(namespace, |running| running - 1);
        self.changed(namespace, uid);
    }

    fn hold_up(&mut self, namespace: &str, held_up: bool) {
        if let Some(of) = self.namespaces.get_mut(namespace) {
            of.held_up = held_up;
        }
        self.list(namespace);
    }

    /// Forgets a namespace of which nothing is here.
    fn forget(&mut self, namespace: &str) {
        let of = self.namespaces.get_mut(namespace);
        if of.is_none_or(|of| of.held_up || !of.requests.is_empty()) {
            return;
        }
        let before = self.namespaces.len();
        self.namespaces.remove(namespace);
        self.by_running.remove(&(0, namespace.to_owned()));
        self.list_anew(before);
    }

    /// Changes how many of a namespace run.
    fn count(&mut self, namespace: &str, change: impl FnOnce(usize) -> usize) {
        if let Some(of) = self.namespaces.get_mut(namespace) {
            self.by_running.remove(&(of.running, namespace.to_owned()));
            of.running = change(of.running);
            self.by_running.insert((of.running, namespace.to_owned()));
        }
    }

    /// A request of a namespace has more or less that waits or runs.
    fn changed(&mut self, namespace: &str, uid: &str) {
        if let Some(of) = self.namespaces.get_mut(namespace) {
            of.list(uid);
            self.list(namespace);
        }
    }

    /// Puts a namespace on the list, or takes it off.
    fn list(&mut self, namespace: &str) {
        let part = self.part(self.namespaces.len());
        if let Some(of) = self.namespaces.get_mut(namespace) {
            let first = of.first(self.share).map(|(place, _)| *place);
            let first = first.filter(|_| !of.held_up && of.running < part);
            self.namespaces.list(namespace, [first]);
        }
    }

    /// There were so many namespaces before: those of which more may run than before, or no longer, are put where they belong.
    fn list_anew(&mut self, before: usize) {
        let parts = [before, self.namespaces.len()].map(|namespaces| self.part(namespaces));
        let [from, to] = [parts[0].min(parts[1]), parts[0].max(parts[1])];
        let range = (from, String::new())..(to, String::new());
        let concerned = self.by_running.range(range).map(|(_, name)| name.clone());
        for namespace in concerned.collect::<Vec<_>>() {
            self.list(&namespace);
        }
    }
}

// === impl Request ===

impl Request {
    fn of(pool: &Arc<Pool>) -> Self {
        Self {
            pool: Arc::clone(pool),
            running: 0,
            waiters: BTreeMap::new(),
            listed: [None; 2],
        }
    }
}

// === impl Namespace ===

impl Namespace {
    /// Puts a request on the lists on which it belongs, or forgets it, if nothing of it is here.
    fn list(&mut self, uid: &str) {
        let Some(request) = self.requests.get_mut(uid) else {
            return;
        };
        let first = request.waiters.first_key_value().map(|(place, _)| *place);
        let idle = request.running == 0;
        let places = [first, first.filter(|_| idle)];
        let listed = std::mem::replace(&mut request.listed, places);
        for ((list, before), place) in self.lists.iter_mut().zip(listed).zip(places) {
            if before == place {
                continue;
            }
            if let Some(before) = before {
                list.remove(&before);
            }
            if let Some(place) = place {
                list.insert(place, uid.to_owned());
            }
        }
        if idle && first.is_none() {
            self.requests.remove(uid);
        }
    }

    /// The request that is served next, and the place of its first operation.
    fn first(&self, share: usize) -> Option<(&Place, &Uid)> {
        self.lists[usize::from(self.running >= share)].first_key_value()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::pin::Pin;

    use futures::stream::FuturesUnordered;
    use futures::{FutureExt as _, StreamExt as _};

    use super::*;
    use crate::turn::Turns;

    type Acquiring<'a> = Pin<Box<dyn Future<Output = Permit> + 'a>>;

    /// Operations of one request. Polled outside a runtime: in it, a task that polls a lot is told that nothing is ready.
    struct Operations<'a> {
        waiting: Vec<Acquiring<'a>>,
        running: Vec<Permit>,
    }

    impl<'a> Operations<'a> {
        /// Launched at once, before all others by nothing but their number.
        fn launch(queues: &'a OperationQueue, key: &QueueKey, uid: &'a str, count: usize) -> Self {
            Self::launch_in(queues, key, uid, count, Turn::default())
        }

        fn launch_in(
            queues: &'a OperationQueue,
            key: &QueueKey,
            uid: &'a str,
            count: usize,
            turn: Turn,
        ) -> Self {
            let acquire = || {
                let (key, pool) = (key.clone(), pool(uid, &key.float));
                let acquiring = async move { queues.acquire(key, &pool, uid, turn).await };
                Box::pin(acquiring) as Acquiring
            };
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
    fn pool(uid: &str, registries: &str) -> Arc<Pool> {
        let namespace = uid.split_once('/').map_or("ci", |(namespace, _)| namespace);
        Arc::new(Pool::new(namespace, registries))
    }

    impl All {
        fn is_empty(&self) -> bool {
            self.queues.is_empty()
                && self.namespaces.is_empty()
                && self.held_up.is_empty()
                && self.running == 0
        }
    }

    fn key(source: &str, step: Step) -> QueueKey {
        key_to("quay.io", source, step)
    }

    fn key_to(float: &str, source: &str, step: Step) -> QueueKey {
        let float = format!("{float}/openshift/ci:f").parse().unwrap();
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
        let (latch, mut turns) = (key("build", Step::Latch), Turns::<()>::new());
        let mut launch = |uid, count| {
            let turn = turns.begin("ci", count);
            Operations::launch_in(&queues, &latch, uid, count, turn)
        };
        let mut large = launch("large", 100);
        assert_eq!(large.running(), 4);
        let mut small = launch("small", 3);
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
    fn nobody_waits_behind_another_registry_nor_a_tag_behind_copies() {
        let queues = OperationQueue::new(1);
        let mut down = Operations::launch(&queues, &key("down", Step::Stage), "a", 10);
        let mut well = Operations::launch(&queues, &key("well", Step::Stage), "a", 10);
        let mut tags = Operations::launch(&queues, &key("down", Step::BackUp), "a", 10);
        let running = [&mut down, &mut well, &mut tags].map(Operations::running);
        assert_eq!(running, [4, 4, 4]);
    }

    #[test]
    fn a_registry_that_is_down_leaves_room_for_another_whatever_is_sent_to_it() {
        let queues = OperationQueue::new(1);
        let names: Vec<String> = (0..40).map(|n| format!("ci/{n}")).collect();
        let down: Vec<QueueKey> = (0..10)
            .flat_map(|n| [Step::Stage, Step::BackUp].map(|step| key(&format!("b{n}"), step)))
            .collect();
        let down = down
            .iter()
            .flat_map(|key| names.iter().map(move |name| (key, name)));
        let mut down: Vec<_> = down
            .map(|(key, name)| Operations::launch(&queues, key, name, 1))
            .collect();
        let running = down.iter_mut().map(Operations::running).sum::<usize>();
        assert_eq!(running, 16);
        let well = key_to("well.example", "b0", Step::Stage);
        let mut well = Operations::launch(&queues, &well, "ci/well", 10);
        assert_eq!(well.running(), 4);
        drop((down, well));
        assert!(queues.lock().is_empty());
    }

    #[test]
    fn a_namespace_that_invents_registries_leaves_room_for_others() {
        let queues = OperationQueue::new(1);
        // Sixteen in each key, were there no bound on all.
        let keys: Vec<QueueKey> = (0..40)
            .map(|n| {
                key_to(
                    &format!("f{}.example", n % 9),
                    &format!("r{n}"),
                    Step::Stage,
                )
            })
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

    #[test]
    fn a_grant_costs_no_more_among_many_who_wait() {
        let queues = OperationQueue::new(1);
        let latch = key("build", Step::Latch);
        // Half are of one namespace, two of each request; of the others each has a namespace.
        let uid = |number: usize| match number % 2 {
            0 => format!("many/{}", number / 4),
            _ => format!("few-{number}/1"),
        };
        let acquire = async |number: usize| {
            let uid = uid(number);
            let (pool, turn) = (pool(&uid, "quay.io"), Turn::default());
            queues.acquire(latch.clone(), &pool, &uid, turn).await
        };
        let crowd = |count| {
            let waiting: FuturesUnordered<_> = (0..count).map(acquire).collect();
            (waiting, VecDeque::new())
        };
        crate::cost::does_not_grow(crowd, |(waiting, running)| {
            while let Some(Some(permit)) = waiting.next().now_or_never() {
                running.push_back(permit);
            }
            assert!(running.pop_front().is_some());
        });
    }
}

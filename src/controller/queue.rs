//! From triggers to reconciles.
//!
//! One reconcile per key runs at a time, and a reconcile can ask to be run again later. Guaranteed: what is triggered runs at once, while
//! its namespace has turns left, and once more where it was triggered meanwhile; a trigger takes the place of a later time that was asked
//! for. The same queue serves the cluster and the file.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt as _};
use kube::core::{ObjectMeta, PartialObjectMeta, PartialObjectMetaExt as _};
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::watcher;
use tokio::time::{Instant, sleep_until};

use crate::api::PromotionRequest;
use crate::engine::{Engine, Next};
use crate::shares::{Share, Shares};
use crate::store::{Key, Store};

/// What the queue keeps of an object: its name is enough, because a reconcile loads it freshly.
pub type Named = PartialObjectMeta<PromotionRequest>;

/// Reconciles run at once, at most: each holds one object of at most 1.5 MB, several times.
const CONCURRENCY: usize = 16;
/// Reconciles of one namespace at once, however many are due: to decode a large object takes as long as several small reconciles.
const NAMESPACE_MAX: usize = 4;
/// Of these, of requests that are looked at for the first time: a thousand that are created at once do not hold up the next steps of those
/// at work.
const NEWCOMERS_MAX: usize = 2;

/// Which reconciles run, and which are asked for later.
#[derive(Default)]
struct Queue {
    /// And whether each was triggered meanwhile.
    running: HashMap<Key, bool>,
    later: BTreeSet<(Instant, Key)>,
    times: HashMap<Key, Instant>,
}

/// Where reconciles run.
#[derive(Clone)]
struct Places {
    all: Shares<String>,
    newcomers: Shares<String>,
}

/// The place of one, given back when dropped.
struct Place {
    _of_newcomers: Option<Share<String>>,
    _of_all: Share<String>,
}

/// Reconciles every key of `keys` whose object `names` knows, until `keys` ends.
pub async fn drive<S: Store>(
    engine: Engine<S>,
    names: reflector::Store<Named>,
    keys: impl Stream<Item = Key> + Unpin,
) {
    let places = Places::new();
    let reconcile = |key: Key| {
        let there = names.get(&object_ref(&key)).is_some();
        let (engine, places) = (engine.clone(), places.clone());
        async move {
            if !there {
                // It ended, or was deleted, between the trigger and its turn.
                engine.dequeue_missing(&key);
                return (key, Next::Triggered);
            }
            // All that are due wait here, each as no more than its name.
            let _place = places.enter(&key, !engine.has_been_seen(&key)).await;
            let reconciled = Box::pin(engine.reconcile(&key)).await;
            let next = reconciled.unwrap_or_else(|error| {
                tracing::warn!(request = %key, "{error}");
                Next::After(Duration::from_millis(rand::random_range(1_000..5_000)))
            });
            (key, next)
        }
    };
    run(keys, reconcile).await;
}

/// Runs `reconcile` for every key of `keys`, until they end, and again when it says so.
async fn run<F: Future<Output = (Key, Next)>>(
    mut keys: impl Stream<Item = Key> + Unpin,
    reconcile: impl Fn(Key) -> F,
) {
    let mut queue = Queue::default();
    let mut work = FuturesUnordered::new();
    loop {
        let first = queue.later.first().map(|(at, _)| *at);
        // In this order, and not by chance: a run can be played again.
        let begins = tokio::select! {
            biased;
            () = sleep_until(first.unwrap_or_else(Instant::now)), if first.is_some() => queue.due(),
            Some((key, next)) = work.next() => queue.ended(key, next, Instant::now()),
            key = keys.next() => match key {
                Some(key) => queue.trigger(key),
                None => break,
            },
        };
        work.extend(begins.map(&reconcile));
    }
    while work.next().await.is_some() {}
}

impl Places {
    fn new() -> Self {
        Self {
            all: Shares::new(CONCURRENCY, NAMESPACE_MAX),
            newcomers: Shares::new(CONCURRENCY, NEWCOMERS_MAX),
        }
    }

    /// Waits for a place. `newcomer`: it is looked at for the first time.
    async fn enter(&self, key: &Key, newcomer: bool) -> Place {
        let namespace = || key.namespace.clone();
        let of_newcomers = if newcomer {
            Some(self.newcomers.enter(namespace()).await)
        } else {
            None
        };
        Place {
            _of_newcomers: of_newcomers,
            _of_all: self.all.enter(namespace()).await,
        }
    }
}

impl Queue {
    /// The key, if it begins now.
    fn trigger(&mut self, key: Key) -> Option<Key> {
        if let Some(again) = self.running.get_mut(&key) {
            *again = true;
            return None;
        }
        if let Some(at) = self.times.remove(&key) {
            self.later.remove(&(at, key.clone()));
        }
        self.running.insert(key.clone(), false);
        Some(key)
    }

    /// The key, if it begins again at once.
    fn ended(&mut self, key: Key, next: Next, now: Instant) -> Option<Key> {
        let again = self.running.remove(&key).unwrap_or_default();
        match next {
            Next::After(after) if !again && !after.is_zero() => {
                self.times.insert(key.clone(), now + after);
                self.later.insert((now + after, key));
                None
            }
            Next::After(_) => self.trigger(key),
            Next::Triggered => again.then(|| self.trigger(key)).flatten(),
        }
    }

    /// The key whose time has come.
    fn due(&mut self) -> Option<Key> {
        let (_, key) = self.later.pop_first()?;
        self.times.remove(&key);
        self.trigger(key)
    }
}

fn object_ref(key: &Key) -> ObjectRef<Named> {
    let named = ObjectRef::new(&key.name);
    if key.namespace.is_empty() {
        named
    } else {
        named.within(&key.namespace)
    }
}

/// The little that [`Named`] keeps of an object's metadata.
#[must_use]
pub fn named(metadata: &ObjectMeta) -> Named {
    let kept = ObjectMeta {
        name: metadata.name.clone(),
        namespace: metadata.namespace.clone(),
        uid: metadata.uid.clone(),
        ..ObjectMeta::default()
    };
    kept.into_response_partial()
}

/// A reader that knows these objects and no others, for a store without a watch.
#[must_use]
pub fn names_of(objects: &[PromotionRequest]) -> reflector::Store<Named> {
    let (reader, mut writer) = reflector::store();
    writer.apply_watcher_event(&watcher::Event::Init);
    for object in objects {
        writer.apply_watcher_event(&watcher::Event::InitApply(named(&object.metadata)));
    }
    writer.apply_watcher_event(&watcher::Event::InitDone);
    reader
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use futures::FutureExt as _;
    use tokio::sync::mpsc;
    use tokio::time::sleep;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn key(name: &str) -> Key {
        Key {
            namespace: "ci".into(),
            name: name.into(),
        }
    }

    /// Each of which takes so long: what began when, in seconds, where `a` and `b` are triggered at these times.
    async fn began(takes: Duration, next: Next, triggers: &[(u64, &str)]) -> Vec<(String, u64)> {
        let (sender, mut keys) = mpsc::unbounded_channel();
        let keys = futures::stream::poll_fn(move |context| keys.poll_recv(context));
        let (start, began) = (Instant::now(), Rc::new(RefCell::new(Vec::new())));
        let reconcile = async |key: Key| {
            let at = start.elapsed();
            assert_eq!(at.subsec_millis(), 0, "a trigger waits for no clock");
            began.borrow_mut().push((key.name.clone(), at.as_secs()));
            sleep(takes).await;
            (key, next)
        };
        let trigger = async {
            for (at, name) in triggers {
                tokio::time::sleep_until(start + SECOND * u32::try_from(*at).unwrap_or_default())
                    .await;
                let _ = sender.send(key(name));
            }
            sleep(SECOND * 28).await;
            drop(sender);
        };
        futures::future::join(run(keys, reconcile), trigger).await;
        began.take()
    }

    fn shown(began: &[(String, u64)]) -> String {
        let began = began.iter().map(|(name, at)| format!("{name}{at}"));
        began.collect::<Vec<_>>().join(" ")
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_triggered_runs_at_once_one_at_a_time_and_again_if_it_was_triggered_meanwhile()
    {
        let triggers = [(0, "a"), (1, "b"), (1, "a"), (2, "a"), (8, "a")];
        let began = began(SECOND * 3, Next::Triggered, &triggers).await;
        assert_eq!(shown(&began), "a0 b1 a3 a8");
    }

    #[tokio::test]
    async fn a_request_at_work_waits_behind_none_of_a_thousand_newcomers() {
        let (places, key) = (Places::new(), key("a"));
        let mut newcomers: Vec<_> = (0..1000)
            .map(|_| Box::pin(places.enter(&key, true)))
            .collect();
        let mut at_once = Vec::new();
        for newcomer in &mut newcomers {
            at_once.extend(newcomer.now_or_never());
        }
        assert_eq!(at_once.len(), NEWCOMERS_MAX);
        let mut at_work = Vec::new();
        while let Some(place) = places.enter(&key, false).now_or_never() {
            at_work.push(place);
        }
        assert_eq!(at_work.len(), NAMESPACE_MAX - NEWCOMERS_MAX);
        // Whoever leaves makes room for whoever waits.
        let mut next = Box::pin(places.enter(&key, false));
        assert!(next.as_mut().now_or_never().is_none());
        at_once.pop();
        assert!(next.now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_trigger_takes_the_place_of_a_later_time() {
        let triggers = [(0, "a"), (3, "b"), (14, "a")];
        let began = began(Duration::ZERO, Next::After(SECOND * 10), &triggers).await;
        assert_eq!(shown(&began), "a0 b3 a10 b13 a14 b23 a24 b33 a34");
    }
}

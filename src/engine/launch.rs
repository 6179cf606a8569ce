//! Operations in flight: launched after a save, landed with an outcome, reported at most once per status interval.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::operation::Operation;
use super::operation_queue::QueueKey;
use super::shared::Engine;
use super::state::InFlight;
use super::telemetry;
use crate::image::Float;
use crate::machine::{Fault, FaultClass, Launch, Outcome, Reason, Request, Step};
use crate::registry::Progress;
use crate::store::{Access, Key, Store};

/// Operations of one namespace that are launched and have not landed, whether they are at work or wait for their turn: what each keeps is
/// little, and requests are many. Above this number a request launches nothing new, unless it has to end what it has committed.
const LAUNCHED_MAX: usize = 2_000;

/// While it lives, an operation counts among those of its namespace.
struct Launched<S: Store> {
    engine: Engine<S>,
    namespace: String,
}

impl<S: Store> Launched<S> {
    fn new(engine: &Engine<S>, namespace: &str) -> Self {
        let mut state = engine.lock();
        *state.launched.entry(namespace.to_owned()).or_default() += 1;
        drop(state);
        Self {
            engine: engine.clone(),
            namespace: namespace.to_owned(),
        }
    }
}

impl<S: Store> Drop for Launched<S> {
    fn drop(&mut self) {
        let next = self.engine.lock().landed(&self.namespace, LAUNCHED_MAX);
        if let Some(key) = next {
            self.engine.trigger(key);
        }
    }
}

impl<S: Store> Engine<S> {
    /// Whether a request may launch; one that may not is triggered when it may.
    pub(super) fn may_launch(&self, key: &Key, request: &Request) -> bool {
        let mut state = self.lock();
        let launched = state.launched.get(&key.namespace);
        if request.has_open_commit() || launched.is_none_or(|count| *count < LAUNCHED_MAX) {
            return true;
        }
        let held_back = state.held_back.entry(key.namespace.clone()).or_default();
        if !held_back.contains(key) {
            held_back.push_back(key.clone());
        }
        false
    }

    /// Launches what was just saved. All of it is in flight before any of it runs, so that the first to end does not count as
    /// the last.
    pub(super) fn launch(
        &self,
        key: &Key,
        uid: &str,
        request: &Request,
        launches: &[Launch],
        access: &Access,
    ) {
        let operations: Vec<_> = launches
            .iter()
            .filter_map(|&launch| self.enlist(key, uid, request, launch, access))
            .collect();
        for (index, id, operation) in operations {
            self.run(key, uid, index, id, operation);
        }
    }

    /// Registers an operation; returns its image's index and its number.
    fn enlist(
        &self,
        key: &Key,
        uid: &str,
        request: &Request,
        launch: Launch,
        access: &Access,
    ) -> Option<(usize, u64, Operation)> {
        let Launch {
            image: index,
            step,
            may_have_run,
        } = launch;
        let spec = request.spec.images.get(index)?;
        let image = request.status.images.get(index)?;
        let cancel = CancellationToken::new();
        let progress = Arc::new(Progress::of(&key.namespace, uid));
        let float = spec.float.clone();
        let id = {
            let mut state = self.lock();
            let id = state.next_operation();
            let operations = state.operations.entry(uid.to_owned()).or_default();
            operations.launched.insert(index);
            let operation = InFlight {
                id,
                step,
                float: float.clone(),
                access: access.clone(),
                cancel: cancel.clone(),
                progress: Arc::clone(&progress),
                started: Instant::now(),
                outcome: None,
            };
            operations.by_image.insert(index, operation);
            if state.draining || !state.is_entitled(uid, &float) {
                // The end, or a deletion, came between the save and its answer: it is recorded as given up.
                cancel.cancel();
            }
            id
        };
        let operation = Operation {
            tools: self.inner.tools.clone(),
            access: access.clone(),
            spec: spec.clone(),
            image: image.clone(),
            mode: request.spec.mode,
            referrers: request.spec.referrers,
            step,
            may_have_run,
            cancel,
            progress,
            read: Mutex::default(),
        };
        telemetry::launched(key, &float, launch);
        Some((index, id, operation))
    }

    /// Runs an operation, once it has its permit, to its outcome.
    fn run(&self, key: &Key, uid: &str, index: usize, id: u64, operation: Operation) {
        let progress = Arc::clone(&operation.progress);
        let (engine, key, uid) = (self.clone(), key.clone(), uid.to_owned());
        // Boxed: thousands may wait, and a task has room for a value wherever it is moved.
        let operation = Box::new(operation);
        let launched = Launched::new(self, &key.namespace);
        tokio::spawn(async move {
            let _launched = launched;
            let (queue, waits_in) = (
                engine.inner.queue.clone(),
                QueueKey::of(&operation.spec, operation.step),
            );
            let permit = tokio::select! {
                biased;
                () = operation.cancel.cancelled() => None,
                permit = queue.acquire(waits_in, &key.namespace, &uid) => Some(permit),
            };
            let Some(_permit) = permit else {
                engine.land(&key, &uid, index, id, Outcome::Dropped);
                return;
            };
            // Its own task: a panic in a step becomes an outcome instead of a float that waits forever.
            let mut work = tokio::spawn(operation.run());
            let outcome = loop {
                tokio::select! {
                    ended = &mut work => break ended,
                    () = progress.changed() => engine.report(&key, &uid),
                }
            };
            let outcome = outcome.unwrap_or_else(|error| {
                Outcome::Faulted(Fault {
                    reason: Reason::RegistryError,
                    message: format!("the step crashed: {error}"),
                    class: FaultClass::Attempt,
                })
            });
            engine.land(&key, &uid, index, id, outcome);
        });
    }

    /// Keeps an operation's outcome until it is recorded.
    fn land(&self, key: &Key, uid: &str, index: usize, id: u64, outcome: Outcome) {
        let Some((float, step, started)) = self.begun(uid, index, id) else {
            return;
        };
        telemetry::ended(self.metrics(), key, (&float, step, started), &outcome);
        let known = {
            let mut state = self.lock();
            let known = state.known.contains_key(uid);
            let Some(operations) = state.operations.get_mut(uid) else {
                return;
            };
            let Some(operation) = operations.by_image.get_mut(&index).filter(|o| o.id == id) else {
                return;
            };
            if known {
                operation.outcome = Some(outcome);
            } else {
                operations.by_image.remove(&index);
            }
            known
        };
        if known {
            self.report(key, uid);
        } else {
            self.settle_claims(uid);
        }
    }

    /// The float and step of an operation, and its start.
    fn begun(&self, uid: &str, index: usize, id: u64) -> Option<(Float, Step, Instant)> {
        let state = self.lock();
        let operation = state.operations.get(uid)?.by_image.get(&index)?;
        (operation.id == id).then(|| (operation.float.clone(), operation.step, operation.started))
    }

    /// Asks for a reconcile: at once if nothing else of the request runs, else once per status interval.
    pub(super) fn report(&self, key: &Key, uid: &str) {
        let now = Instant::now();
        let due = {
            let mut state = self.lock();
            let idle = state.running(uid).next().is_none();
            let Some(known) = state.known.get_mut(uid) else {
                return;
            };
            let due = known
                .saved_at
                .map_or(now, |at| at + self.inner.settings.status_interval);
            if idle || due <= now {
                now
            } else if known.triggered {
                return;
            } else {
                known.triggered = true;
                due
            }
        };
        if due <= now {
            self.trigger(key.clone());
            return;
        }
        let (engine, key, uid) = (self.clone(), key.clone(), uid.to_owned());
        tokio::spawn(async move {
            tokio::time::sleep_until(due).await;
            if let Some(known) = engine.lock().known.get_mut(&uid) {
                known.triggered = false;
            }
            // It may have been saved since: then the interval restarts.
            engine.report(&key, &uid);
        });
    }
}

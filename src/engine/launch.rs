//! Operations in flight: launched after a save, landed with an outcome, reported at most once per status interval.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::operation::Operation;
use super::operation_queue::QueueKey;
use super::shared::{Engine, contender, identity};
use super::state::{OperationHandle, PendingSave};
use super::stats::RequestStats;
use super::telemetry;
use crate::api::PromotionRequest;
use crate::coordinator::{Ended, Object};
use crate::image::Float;
use crate::machine::pool::Pool;
use crate::machine::{Fault, FaultClass, Launch, Outcome, Reason, Request, Step};
use crate::registry::Progress;
use crate::store::{Key, Store};
use crate::turn::Turn;

/// Operations of one pool that are launched and have not landed, whether they are at work or wait for their turn: what each keeps is
/// little, and requests are many. Above this number a request launches nothing new, unless it has to end what it has committed.
const LAUNCHED_MAX: usize = 2_000;

/// While it lives, an operation counts among those of its pool.
struct Launched<S: Store> {
    engine: Engine<S>,
    pool: Arc<Pool>,
    uid: String,
}

impl<S: Store> Launched<S> {
    /// None where the request is gone.
    fn new(engine: &Engine<S>, uid: &str) -> Option<Self> {
        let mut state = engine.lock();
        let pool = Arc::clone(&state.coordinator.known(uid)?.pool);
        state.turns.launch(&pool);
        Some(Self {
            engine: engine.clone(),
            pool,
            uid: uid.to_owned(),
        })
    }
}

impl<S: Store> Drop for Launched<S> {
    fn drop(&mut self) {
        let mut state = self.engine.lock();
        let next = state.landed(&self.pool, &self.uid, LAUNCHED_MAX);
        drop(state);
        if let Some(key) = next {
            self.engine.trigger(key);
        }
    }
}

impl<S: Store> Engine<S> {
    /// Whether a request may launch; one that may not is triggered when it may.
    pub(super) fn may_launch(&self, key: &Key, uid: &str, request: &Request) -> bool {
        let mut state = self.lock();
        let pool = state.coordinator.known(uid).map(|k| Arc::clone(&k.pool));
        let Some(pool) = pool.filter(|_| !request.has_open_commit()) else {
            return true;
        };
        if state.turns.launched(&pool) < LAUNCHED_MAX {
            return true;
        }
        let turn = state.turn(key, uid, request);
        state.turns.hold_back(&pool, key, turn);
        false
    }

    /// Whether a request of this name has begun, or was saved by this process: others are looked at for the first time.
    #[must_use]
    pub fn has_been_seen(&self, key: &Key) -> bool {
        let state = self.lock();
        let mut named = state.coordinator.named(key).into_iter();
        named.any(|uid| {
            let known = state.coordinator.known(&uid);
            known.is_some_and(|known| known.contender.started || known.kept.saved_at.is_some())
        })
    }

    /// Forgets, gives up and launches what was just saved. All of it is in flight before any of it runs, so that the first to end does
    /// not count as the last.
    pub(super) fn carry_out(
        &self,
        key: &Key,
        record: &PendingSave,
        saved: Option<&PromotionRequest>,
    ) {
        let (uid, request, round) = (&record.uid, &record.request, &record.round);
        let (now, version) = (
            Instant::now(),
            saved.and_then(|o| identity(&o.metadata)).map(|id| id.1),
        );
        let saved = saved.zip(version).map(|(object, version)| Object {
            key,
            version,
            contender: contender(key, uid, version, request),
            counts: RequestStats::of(object, request),
        });
        let access = record.access.as_ref();
        // A request that only waits has no turn yet.
        let turn = if round.launches.is_empty() {
            Turn::FIRST
        } else {
            self.lock().turn(key, uid, request)
        };
        let kept = |_| {
            Some(OperationHandle {
                access: access?.clone(),
                cancel: CancellationToken::new(),
                progress: Arc::new(Progress::in_turn(&key.namespace, uid, turn)),
                started: now,
            })
        };
        let (operations, settle_at) = self.with_log(|coordinator, log| {
            for &image in &round.drops {
                if let Some(operation) = coordinator.operation(uid, image) {
                    operation.kept.cancel.cancel();
                }
            }
            let answered = coordinator.answered(log, (uid, request, round), saved, now, kept);
            let launched = answered.launched.into_iter();
            let operations = launched.filter_map(|launched| {
                let operation = coordinator.operation(uid, launched.launch.image)?;
                if !launched.entitled {
                    // It is recorded as given up.
                    operation.kept.cancel.cancel();
                }
                let operation = self.operation(request, launched.launch, &operation.kept)?;
                Some((launched, operation))
            });
            (operations.collect::<Vec<_>>(), answered.settle_at)
        });
        self.settle_again(uid, settle_at);
        for (launched, operation) in operations {
            telemetry::launched(key, &operation.spec.float, launched.launch);
            self.run(key, uid, launched.launch.image, launched.id, operation);
        }
    }

    fn operation(
        &self,
        request: &Request,
        launch: Launch,
        handle: &OperationHandle,
    ) -> Option<Operation> {
        Some(Operation {
            tools: self.inner.tools.clone(),
            access: handle.access.clone(),
            spec: request.spec.images.get(launch.image)?.clone(),
            image: request.status.images.get(launch.image)?.clone(),
            mode: request.spec.mode,
            referrers: request.spec.referrers,
            step: launch.step,
            may_have_run: launch.may_have_run,
            cancel: handle.cancel.clone(),
            progress: Arc::clone(&handle.progress),
            read: Mutex::default(),
            ahead: Mutex::default(),
        })
    }

    /// Runs an operation, once it has its permit, to its outcome.
    fn run(&self, key: &Key, uid: &str, index: usize, id: u64, operation: Operation) {
        let progress = Arc::clone(&operation.progress);
        let (engine, key, uid) = (self.clone(), key.clone(), uid.to_owned());
        // Boxed: thousands may wait, and a task has room for a value wherever it is moved.
        let operation = Box::new(operation);
        let Some(launched) = Launched::new(self, &uid) else {
            // It is gone: nothing of it runs.
            self.land(&key, &uid, index, id, Outcome::Dropped);
            return;
        };
        tokio::spawn(async move {
            let (queue, waits_in) = (
                engine.inner.queue.clone(),
                QueueKey::of(&operation.spec, operation.step),
            );
            let turn = progress.turn();
            let permit = tokio::select! {
                biased;
                () = operation.cancel.cancelled() => None,
                permit = queue.acquire(waits_in, &launched.pool, &uid, turn) => Some(permit),
            };
            let Some(_permit) = permit else {
                engine.land(&key, &uid, index, id, Outcome::Dropped);
                return;
            };
            // Its own task: a panic in a step becomes an outcome instead of a float that waits forever. Boxed: a task is moved about as
            // it begins and ends.
            let mut work = tokio::spawn(Box::pin(operation.run()));
            let outcome = loop {
                tokio::select! {
                    biased;
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
        let ended = (self.lock().coordinator).ended(uid, index, id, outcome);
        match ended {
            Ended::Record => self.report(key, uid),
            Ended::Settle => self.settle_claims(uid),
            Ended::Unknown => {}
        }
    }

    /// The float and step of an operation, and its start.
    fn begun(&self, uid: &str, index: usize, id: u64) -> Option<(Float, Step, Instant)> {
        let state = self.lock();
        let operation = state.coordinator.operation(uid, index)?;
        let started = operation.kept.started;
        (operation.id == id).then(|| (operation.float.clone(), operation.step, started))
    }

    /// Asks for a reconcile: at once if nothing else of the request runs, else once per status interval.
    pub(super) fn report(&self, key: &Key, uid: &str) {
        let now = Instant::now();
        let due = {
            let mut state = self.lock();
            let idle = state.coordinator.running(uid).next().is_none();
            let Some(known) = state.known(uid) else {
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
            if let Some(known) = engine.lock().known(&uid) {
                known.triggered = false;
            }
            // It may have been saved since: then the interval restarts.
            engine.report(&key, &uid);
        });
    }
}

//! The engine as all its parts share it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::leadership::Leadership;
use super::memory::Memory;
use super::operation::Tools;
use super::operation_queue::OperationQueue;
use super::state::{Coordinator, State};
use super::stats::WorkQueue;
use crate::api::status::ReadError;
use crate::api::{self, PromotionRequest};
use crate::log::WriteLog;
use crate::machine::Request;
use crate::machine::claims::{Contender, Standing};
use crate::policy::Policy;
use crate::registry::RegistryClient;
use crate::shares::Shares;
use crate::store::{Key, Store, Unreadable};

/// How the engine is set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a tag write may take to show.
    pub settle: Duration,
    /// How long after it was given up a tag write that was not answered may land.
    pub late: Duration,
    /// A request whose operations still run is saved at most this often.
    pub status_interval: Duration,
    /// So many requests of one namespace may have begun at once; 0: any number.
    pub namespace_max: usize,
}

/// Runs requests. Cheap to clone; clones share everything.
pub struct Engine<S> {
    pub(super) inner: Arc<Inner<S>>,
}

pub(super) struct Inner<S> {
    pub(super) store: S,
    pub(super) tools: Tools,
    pub(super) policy: Policy,
    pub(super) settings: Settings,
    pub(super) triggers: mpsc::UnboundedSender<Key>,
    pub(super) queue: OperationQueue,
    pub(super) state: Mutex<State>,
    pub(super) work_queue: Mutex<WorkQueue>,
    /// Requests whose image stream tags are set at once, by namespace: each holds one object.
    pub(super) references: Shares<String>,
}

impl<S> Clone for Engine<S> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<S: Store> Engine<S> {
    /// An engine, and the stream of keys that it wants reconciled.
    pub fn new(
        store: S,
        registry: RegistryClient,
        policy: Policy,
        leadership: Leadership,
        settings: Settings,
    ) -> (Self, mpsc::UnboundedReceiver<Key>) {
        let (triggers, queue) = mpsc::unbounded_channel();
        let operations = OperationQueue::new(registry.concurrency());
        // So long after its sending a write that is not answered is given up.
        let given_up = registry.put_timeout();
        let tools = Tools {
            registry,
            memory: Arc::new(Memory::new(settings.settle, given_up + settings.late)),
            leadership,
        };
        let state = Mutex::new(State::new(settings.namespace_max));
        let inner = Inner {
            store,
            tools,
            policy,
            settings,
            triggers,
            queue: operations,
            state,
            work_queue: Mutex::default(),
            references: Shares::new(8, 2),
        };
        let engine = Self {
            inner: Arc::new(inner),
        };
        engine.register_collector();
        (engine, queue)
    }

    /// The store behind it.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.inner.store
    }

    /// What this process knows of its own tag writes.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.inner.tools.memory
    }

    /// An object in the machine's terms with what is frozen of it now, and the number of the change that made that so.
    pub(super) fn read(
        &self,
        key: &Key,
        object: &PromotionRequest,
    ) -> Result<(Request, u64), ReadError> {
        let mut request = api::status::read(object)?;
        let state = self.lock();
        state.freezes.mark(key, &mut request, Timestamp::now());
        Ok((request, state.freeze_changes))
    }

    /// Asks for a reconcile of an object.
    pub fn trigger(&self, key: Key) {
        self.inner.work_queue.lock().add(&key);
        // The receiver is gone only when the process ends.
        let _ = self.inner.triggers.send(key);
    }

    /// Triggers a reconcile of every known request: what they may do has changed.
    pub fn reconsider(&self) {
        let keys = {
            let state = self.lock();
            let known = state.coordinator.all_known().map(|known| &known.key);
            let shelved = state.coordinator.shelved().map(|shelved| &shelved.key);
            known.chain(shelved).cloned().collect()
        };
        self.wake(keys);
    }

    pub(super) fn wake(&self, keys: Vec<Key>) {
        for key in keys {
            self.trigger(key);
        }
    }

    /// Does something under the lock, and wakes those whom it concerns.
    pub(super) fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let result = act(&mut state);
        let woken = state.take_woken();
        drop(state);
        self.wake(woken);
        result
    }

    /// The same with the log of own tag writes.
    pub(super) fn with_log<R>(
        &self,
        act: impl FnOnce(&mut Coordinator, &mut WriteLog<Instant>) -> R,
    ) -> R {
        let memory = &self.inner.tools.memory;
        self.with(|state| memory.log(|log| act(&mut state.coordinator, log)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock()
    }
}

/// Now, in whole seconds, as times in status are.
pub(super) fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

/// A request as read at `version`, among those it shares a float with; whether it may begin is not known from the record.
pub(super) fn contender(key: &Key, uid: &str, version: u64, request: &Request) -> Contender {
    // Before an order is saved, the present resourceVersion counts.
    let order = request.status.order.unwrap_or(version);
    Contender::of(uid, &key.to_string(), order, request, Standing::Undecided)
}

/// An object that cannot be read and is left alone; none where it is refused: it cannot be carried out and has not begun.
pub(super) fn left_alone(object: &PromotionRequest, error: &ReadError) -> Option<Unreadable> {
    let begun = object
        .status
        .as_ref()
        .is_some_and(|status| status.start_time.is_some());
    if matches!(error, ReadError::Spec { .. }) && !begun {
        return None;
    }
    Some(Unreadable::of_object(object, error))
}

/// The UID and resourceVersion of an object that has both.
pub(super) fn identity(metadata: &ObjectMeta) -> Option<(String, u64)> {
    let uid = metadata.uid.clone()?;
    let version = metadata.resource_version.as_ref()?.parse().ok()?;
    Some((uid, version))
}

//! Requests in a file, with their status in another one next to it.
//!
//! The requests are the documents of a YAML file, in their order. The state file is locked by whoever uses it, and replaced atomically and
//! fsynced at every save that a tag write may rely on, with all saves before it. Those before there is a source wait for the next one, or
//! for the end: after a crash nothing has happened. Those that record how far a step has come, and nothing that the next one relies on, are
//! written a moment later, while that runs, or with the next: after a crash the step runs again, as after one directly before its save, and
//! finds its work done. An object is matched to its state by name and by a hash of its spec (without the fields that may change), so that a
//! state never speaks of another promotion. Whatever is saved or published is also sent to whoever shows it.

mod documents;
mod error;
mod state;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::{Access, AccessError, Event, Key, Store, StoreError};
use crate::api::status::reset;
use crate::api::{Mode, PromotionRequest, PromotionRequestStatus};
use crate::image::Float;
use crate::machine::Phase;
use crate::registry::Keyring;
pub use documents::{Document, check_floats, parse_requests, read_documents, read_requests};
pub use error::FileError;
use state::{SavedRequest, StateFile, StatePath, spec_hash};

/// So long after a save that nothing relies on, the state is written down, with all that was saved since: often that is one that something
/// relies on.
const MEANWHILE: Duration = Duration::from_millis(100);

/// What happened to the requests, for the display.
#[derive(Debug)]
pub enum Update {
    /// This was saved.
    Saved(Arc<PromotionRequest>),
    /// The state could not be saved; nothing continues until it can.
    NotSaved(String),
    /// This is worth telling.
    Published {
        /// The request.
        key: Key,
        /// What happened.
        event: Event,
        /// It is the last event.
        last: bool,
    },
}

/// Requests in a file.
pub struct FileStore {
    keyring: Keyring,
    updates: mpsc::UnboundedSender<Update>,
    shared: Arc<Shared>,
}

struct Shared {
    place: StatePath,
    inner: Mutex<Inner>,
}

struct Inner {
    objects: BTreeMap<Key, Arc<PromotionRequest>>,
    /// The documents in their order, among them what the state says of others.
    slots: Vec<Slot>,
    version: u64,
    saved_at: Option<Timestamp>,
    quiet: Duration,
    /// There is more than the file has.
    ahead: bool,
    /// That will be written soon.
    pending: bool,
}

/// A place in the order of requests.
enum Slot {
    /// A document of the file, and the hash of its spec.
    Document(Key, String),
    /// A request that the file does not name any more, kept as it is.
    Other(Box<SavedRequest>),
}

impl FileStore {
    /// The requests of `objects` with the state at `state`, if there is one; `settle` is how long a tag write may take to show, `late` how
    /// long one that was not answered may take to land.
    /// Beside the store comes everything that will be saved or published.
    ///
    /// # Errors
    /// Where the state is in use, cannot be read or written, or belongs to other requests, or a float cannot be promoted any more.
    pub fn open(
        objects: Vec<PromotionRequest>,
        state: &Path,
        keyring: Keyring,
        settle: Duration,
        late: Duration,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Update>), FileError> {
        let place = StatePath::take(state)?;
        let old = state::read(place.path())?;
        let quiet = old.quiet(settle, late);
        let mut inner = Inner::of(objects, old, place.path())?;
        inner.quiet = quiet;
        inner.renew(place.path())?;
        if inner.objects.values().any(|object| is_relied_on(object)) {
            inner.write(&place)?;
        }
        let (updates, receiver) = mpsc::unbounded_channel();
        let inner = Mutex::new(inner);
        let store = Self {
            keyring,
            updates,
            shared: Arc::new(Shared { place, inner }),
        };
        Ok((store, receiver))
    }

    /// The requests of `objects` with what the state at `state` records of them, as it was left. Nothing is written, and whoever uses the
    /// state is not disturbed.
    ///
    /// # Errors
    /// Where the state cannot be read, or belongs to other requests.
    pub fn recorded(
        objects: Vec<PromotionRequest>,
        state: &Path,
    ) -> Result<Vec<PromotionRequest>, FileError> {
        Ok(Inner::of(objects, state::read(state)?, state)?.documents())
    }

    /// The same, as a run would begin with them.
    ///
    /// # Errors
    /// As [`FileStore::open`].
    pub fn foreseen(
        objects: Vec<PromotionRequest>,
        state: &Path,
    ) -> Result<Vec<PromotionRequest>, FileError> {
        let mut inner = Inner::of(objects, state::read(state)?, state)?;
        inner.renew(state)?;
        Ok(inner.documents())
    }

    /// How long a tag write of an earlier run may still take to show or to land; zero where nothing will be launched.
    #[must_use]
    pub fn quiet(&self) -> Duration {
        let inner = self.lock();
        if inner.objects.values().all(|object| object.is_finished()) {
            return Duration::ZERO;
        }
        inner.quiet
    }

    /// The objects as they are now, in the order of the documents.
    #[must_use]
    pub fn objects(&self) -> Vec<PromotionRequest> {
        self.lock().documents()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner.lock()
    }

    /// Writes down what was saved, while what relies on none of it goes on. Where that fails, the next save says so, or the end.
    fn write_meanwhile(&self, inner: &mut Inner) {
        if std::mem::replace(&mut inner.pending, true) {
            return;
        }
        let shared = Arc::downgrade(&self.shared);
        tokio::spawn(async move {
            sleep(MEANWHILE).await;
            tokio::task::spawn_blocking(move || {
                if let Some(Err(error)) = shared.upgrade().map(|shared| shared.catch_up()) {
                    tracing::warn!("{error}");
                }
            });
        });
    }

    fn publish(&self, update: Update) {
        // Nobody looks any more when the process ends.
        let _ = self.updates.send(update);
    }
}

impl Shared {
    /// Writes down what the file does not have, if there is any.
    fn catch_up(&self) -> Result<(), FileError> {
        let mut inner = self.inner.lock();
        inner.pending = false;
        if inner.ahead {
            inner.write(&self.place)?;
        }
        Ok(())
    }
}

impl Inner {
    /// Objects with what an earlier run recorded of them.
    fn of(objects: Vec<PromotionRequest>, old: StateFile, path: &Path) -> Result<Self, FileError> {
        // What an earlier run has begun goes on.
        let begun = |key: &Key| old.requests.iter().any(|entry| entry.key() == *key);
        let new = objects.iter().enumerate();
        check_floats(new.filter(|(_, object)| !begun(&Key::from(*object))))?;
        let mut inner = Self {
            objects: BTreeMap::new(),
            slots: Vec::new(),
            version: 0,
            saved_at: old.saved_at,
            quiet: Duration::ZERO,
            ahead: true,
            pending: false,
        };
        inner
            .adopt(objects, old)
            .map_err(|message| odd(path, message))?;
        Ok(inner)
    }

    /// In the order of the documents.
    fn documents(&self) -> Vec<PromotionRequest> {
        let documents = self.slots.iter().filter_map(|slot| match slot {
            Slot::Document(key, _) => self.objects.get(key),
            Slot::Other(_) => None,
        });
        documents.map(|object| (**object).clone()).collect()
    }

    /// Matches objects with the state of an earlier run.
    fn adopt(&mut self, objects: Vec<PromotionRequest>, old: StateFile) -> Result<(), String> {
        let named: BTreeSet<Key> = objects.iter().map(Key::from).collect();
        let mut entries: Vec<Option<SavedRequest>> = old.requests.into_iter().map(Some).collect();
        let strangers: Vec<String> = entries.iter().flatten().map(|e| e.name.clone()).collect();
        let mut matched = false;
        for (index, mut object) in objects.into_iter().enumerate() {
            let key = Key::from(&object);
            let same = |e: &Option<SavedRequest>| e.as_ref().is_some_and(|e| e.key() == key);
            let known = entries.iter().position(same);
            let is_named =
                |e: &Option<SavedRequest>| e.as_ref().is_some_and(|e| named.contains(&e.key()));
            let next = || entries.iter().position(is_named).unwrap_or(entries.len());
            // What stood before it and is no document any more came before it; of a new one, what stood before all that are left.
            let before = known.unwrap_or_else(next);
            for earlier in &mut entries[..before] {
                if let Some(other) = earlier.take_if(|e| !named.contains(&e.key())) {
                    self.slots.push(Slot::Other(Box::new(other)));
                }
            }
            let hash = spec_hash(&object);
            if let Some(entry) = known.and_then(|at| entries[at].take()) {
                if entry.spec_hash != hash {
                    return Err(format!(
                        "holds the state of another request of the name {key} (its spec differs)"
                    ));
                }
                object.status = Some(entry.status);
                matched = true;
            }
            self.version += 1;
            object.metadata.uid = Some(key.to_string());
            object.metadata.generation = Some(1);
            object.metadata.resource_version = Some(self.version.to_string());
            let status = object.status.get_or_insert_default();
            status.order = i64::try_from(index + 1).ok();
            self.slots.push(Slot::Document(key.clone(), hash));
            self.objects.insert(key, Arc::new(object));
        }
        if !strangers.is_empty() && !matched {
            let strangers = strangers.join(", ");
            return Err(format!("holds the state of other requests ({strangers})"));
        }
        self.slots
            .extend(entries.into_iter().flatten().map(Box::new).map(Slot::Other));
        Ok(())
    }

    /// The deadline restarts; what failed or was cancelled is tried again from what is recorded. What has not moved its floats
    /// gives way to a later request that has begun on them: no float goes back to an older request's image.
    fn renew(&mut self, path: &Path) -> Result<(), FileError> {
        let now = Timestamp::now();
        let mut begun: HashMap<Float, String> = HashMap::new();
        for slot in self.slots.iter().rev() {
            match slot {
                Slot::Document(key, _) => {
                    let Some(object) = self.objects.get_mut(key) else {
                        continue;
                    };
                    let object = Arc::make_mut(object);
                    reset(object, |float| begun.get(float).cloned(), now)
                        .map_err(|e| odd(path, e.to_string()))?;
                    if object.spec.mode == Mode::Promote {
                        note_begun(&mut begun, key, object.status.as_ref());
                    }
                }
                Slot::Other(entry) => note_begun(&mut begun, &entry.key(), Some(&entry.status)),
            }
        }
        Ok(())
    }

    /// Writes down all that there is.
    fn write(&mut self, place: &StatePath) -> Result<(), FileError> {
        place.replace(&self.state())?;
        self.ahead = false;
        Ok(())
    }

    fn state(&self) -> StateFile {
        let entry = |slot: &Slot| match slot {
            Slot::Document(key, hash) => {
                let object = self.objects.get(key)?;
                Some(SavedRequest::of(object, hash.clone()))
            }
            Slot::Other(entry) => Some(SavedRequest::clone(entry)),
        };
        StateFile::new(self.saved_at, self.slots.iter().filter_map(entry).collect())
    }
}

/// Whether a tag write may rely on what is recorded: a source is, before the first step that writes. What has ended stays so, too.
fn is_relied_on(object: &PromotionRequest) -> bool {
    let images = object.status.iter().flat_map(|status| &status.images);
    object.is_finished() || images.into_iter().any(|image| image.source.is_some())
}

/// What of a record nothing finds again: all but how far the steps have come, which can be run again, and what is told of that.
fn lasting(object: &PromotionRequest) -> PromotionRequestStatus {
    let mut status = object.status.clone().unwrap_or_default();
    status.conditions.clear();
    (status.phase, status.progress) = (None, None);
    for image in &mut status.images {
        if !Phase::parse(&image.phase).is_some_and(Phase::is_finished) {
            image.phase.clear();
        }
        (image.reason, image.message) = (None, None);
        (image.pinned_time, image.next_attempt_time) = (None, None);
        (image.bytes_copied, image.copied_now, image.copy_total) = (None, None, None);
        if let Some(source) = &mut image.source {
            source.media_type = None;
        }
    }
    status
}

/// A state that does not go with the requests.
fn odd(path: &Path, message: String) -> FileError {
    FileError::State {
        path: path.into(),
        message,
    }
}

/// Notes the floats of a request that has begun on them; one that only planned has not.
fn note_begun(
    begun: &mut HashMap<Float, String>,
    key: &Key,
    status: Option<&PromotionRequestStatus>,
) {
    let Some(status) = status.filter(|status| status.start_time.is_some()) else {
        return;
    };
    let promoting = |phase: &str| !Phase::parse(phase).is_some_and(Phase::is_planned);
    for image in status.images.iter().filter(|i| promoting(&i.phase)) {
        if let Ok(float) = image.float.parse() {
            begun.entry(float).or_insert_with(|| key.to_string());
        }
    }
}

impl Drop for FileStore {
    /// What was recorded last is to be seen there, also where nothing relied on it.
    fn drop(&mut self) {
        if let Err(error) = self.shared.catch_up() {
            tracing::warn!("{error}");
        }
    }
}

impl Store for FileStore {
    async fn load(&self, key: &Key) -> Result<Option<PromotionRequest>, StoreError> {
        Ok(self
            .lock()
            .objects
            .get(key)
            .map(|object| (**object).clone()))
    }

    async fn save(&self, object: &PromotionRequest) -> Result<PromotionRequest, StoreError> {
        let key = Key::from(object);
        let mut inner = self.lock();
        let known = inner
            .objects
            .get(&key)
            .ok_or_else(|| StoreError::Gone(key.clone()))?;
        if known.metadata.resource_version != object.metadata.resource_version {
            return Err(StoreError::Conflict(key));
        }
        inner.version += 1;
        let mut saved = object.clone();
        saved.metadata.resource_version = Some(inner.version.to_string());
        let saved = Arc::new(saved);
        let before = inner.objects.insert(key.clone(), Arc::clone(&saved));
        inner.saved_at = Some(Timestamp::now());
        inner.ahead = true;
        // Under the lock: a few hundred kilobytes, and the order of the files on disk must be that of the saves.
        let relied_on = is_relied_on(&saved);
        let written = if !relied_on {
            Ok(())
        } else if before.as_deref().map(lasting) == Some(lasting(&saved)) {
            self.write_meanwhile(&mut inner);
            Ok(())
        } else {
            inner.write(&self.shared.place)
        };
        if let Err(error) = written {
            if let Some(before) = before {
                inner.objects.insert(key.clone(), before);
            }
            self.publish(Update::NotSaved(error.to_string()));
            return Err(StoreError::Failed {
                verb: "save",
                key,
                message: error.to_string(),
            });
        }
        self.publish(Update::Saved(Arc::clone(&saved)));
        Ok((*saved).clone())
    }

    async fn access(&self, _: &PromotionRequest) -> Result<Access, AccessError> {
        Ok(Access::unconditional(
            self.keyring.clone(),
            self.keyring.clone(),
        ))
    }

    async fn access_anew(&self, object: &PromotionRequest) -> Result<Access, AccessError> {
        self.access(object).await
    }

    async fn publish(&self, object: &PromotionRequest, event: Event) {
        let conditions = object.status.as_ref().map(|s| s.conditions.as_slice());
        let of_the_end = |c: &&k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
            c.type_ == "Progressing"
        };
        let end = conditions.and_then(|c| c.iter().find(of_the_end));
        let last = object.is_finished() && end.is_some_and(|c| c.reason == event.reason.as_str());
        self.publish(Update::Published {
            key: Key::from(object),
            event,
            last,
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn request() -> PromotionRequest {
        let digest = crate::image::Digest::of(b"x");
        let image = json!({"source": format!("a.io/b/c@{digest}"), "float": "a.io/b/d:e"});
        serde_json::from_value(json!({
            "apiVersion": "ci.openshift.io/v1alpha1", "kind": "PromotionRequest", "metadata": {"name": "one"},
            "spec": {"images": [image]},
        }))
        .unwrap()
    }

    #[test]
    fn what_the_next_step_relies_on_is_written_before_it_and_the_rest_meanwhile() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.max_blocking_threads(1).enable_time();
        let runtime = runtime.build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state.yaml");
        let (keyring, late) = (Keyring::anonymous(), Duration::from_secs(30));
        let opened = FileStore::open(vec![request()], &state, keyring, late, late);
        let (store, _updates) = opened.unwrap();
        let digest = crate::image::Digest::of(b"x").to_string();
        let pin = json!({"digest": digest, "pruneTag": "20260101000000_prune_e"});
        let on_disk = || {
            let requests = state::read(&state).unwrap().requests;
            requests
                .first()
                .map(|request| request.status.images[0].phase.clone())
        };
        let save = |status: Value| {
            let mut object = store.objects().remove(0);
            object.status = Some(serde_json::from_value(status).unwrap());
            runtime.block_on(store.save(&object)).unwrap();
        };
        // What is written meanwhile waits until this ends.
        let (release, held) = std::sync::mpsc::channel::<()>();
        runtime.spawn_blocking(move || held.recv());
        for (phase, attempts, known, committed, written) in [
            ("Pending", 1, false, false, None),
            ("Pending", 1, true, false, Some("Pending")),
            ("Incoming", 1, true, false, Some("Pending")),
            ("Incoming", 2, true, false, Some("Incoming")),
            ("BackedUp", 1, true, true, Some("BackedUp")),
            ("Latched", 1, true, true, Some("BackedUp")),
        ] {
            let source = known.then(|| json!({"digest": digest}));
            let image = json!({
                "float": "a.io/b/d:e", "phase": phase, "attempts": attempts, "source": source, "displaced": [pin],
                "committed": committed,
            });
            save(json!({"images": [image]}));
            assert_eq!(on_disk().as_deref(), written, "{phase}");
        }
        drop(release);
        while on_disk().is_some_and(|phase| phase != "Latched") {
            runtime.block_on(async { sleep(Duration::from_millis(1)).await });
        }
    }
}

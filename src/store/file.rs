//! Requests in a file, with their status in another one next to it.
//!
//! The requests are the documents of a YAML file, in their order. The state file is replaced atomically and fsynced at every
//! save, and locked by whoever uses it. An object is matched to its state by name and by a hash of its spec (without the
//! fields that may change), so that a state never speaks of another promotion.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Access, AccessError, Event, Key, Store, StoreError};
use crate::api::status::{ReadError, read, reset};
use crate::api::{PromotionRequest, PromotionRequestStatus};
use crate::image::Digest;
use crate::machine::Phase;
use crate::registry::Keyring;

/// Why requests or their state cannot be used. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A file cannot be read or written.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On which file.
        path: PathBuf,
        /// What came back.
        #[source]
        source: std::io::Error,
    },
    /// Not the YAML it should be.
    #[error("{}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
    /// A document that is no valid request.
    #[error("{}: document {number}{}: {message}", path.display(), name.as_ref().map_or(String::new(), |n| format!(" ({n})")))]
    Document {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        number: usize,
        /// Its name, if it has one.
        name: Option<String>,
        /// Which field, and what to do.
        message: String,
    },
    /// The state belongs to something else.
    #[error("{}: {message}; name another --state, or remove this one to promote anew", path.display())]
    State {
        /// The state file.
        path: PathBuf,
        /// What does not match.
        message: String,
    },
    /// Somebody else uses the state.
    #[error("{} is in use by {holder}; wait until that has ended", path.display())]
    Locked {
        /// The state file.
        path: PathBuf,
        /// Who.
        holder: String,
    },
}

/// The state file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StateFile {
    /// What this file is, for people who open it.
    kind: String,
    /// When it was written last.
    saved_at: Option<Timestamp>,
    /// Each request's state, in the order of the documents.
    requests: Vec<Entry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    namespace: String,
    name: String,
    spec_hash: String,
    status: PromotionRequestStatus,
}

const KIND: &str = "PromotionState";

/// Requests in a file.
pub struct FileStore {
    state: PathBuf,
    keyring: Keyring,
    settle: Duration,
    /// Held as long as the store lives.
    _lock: File,
    inner: Mutex<Inner>,
}

struct Inner {
    objects: BTreeMap<Key, PromotionRequest>,
    /// The keys in the order of the documents.
    order: Vec<Key>,
    /// Entries of requests that the file does not name (any more), kept as they are.
    others: Vec<Entry>,
    version: u64,
    quiet: Duration,
}

impl FileStore {
    /// The requests of `objects` with the state in `state`, if there is one; `settle` is how long a tag write may take to land.
    ///
    /// # Errors
    /// Where the state is in use, cannot be read, or belongs to other requests.
    pub fn open(
        objects: Vec<PromotionRequest>,
        state: PathBuf,
        keyring: Keyring,
        settle: Duration,
    ) -> Result<Self, FileError> {
        let lock = lock(&state)?;
        let old = read_state(&state)?;
        let mut inner = Inner {
            objects: BTreeMap::new(),
            order: Vec::new(),
            others: Vec::new(),
            version: 0,
            quiet: quiet(&old, settle),
        };
        inner.adopt(objects, old, &state)?;
        Ok(Self {
            state,
            keyring,
            settle,
            _lock: lock,
            inner: Mutex::new(inner),
        })
    }

    /// How long a tag write of an earlier run may still take to show or to land.
    #[must_use]
    pub fn quiet(&self) -> Duration {
        self.lock().quiet.min(self.settle)
    }

    /// The objects as they are now, in the order of the documents.
    #[must_use]
    pub fn objects(&self) -> Vec<PromotionRequest> {
        let inner = self.lock();
        inner
            .order
            .iter()
            .filter_map(|key| inner.objects.get(key))
            .cloned()
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Matches objects with the state of an earlier run, and makes ready what is to be tried again.
    fn adopt(
        &mut self,
        objects: Vec<PromotionRequest>,
        old: StateFile,
        path: &Path,
    ) -> Result<(), FileError> {
        let mut entries = old.requests;
        let strangers = !entries.is_empty();
        for (index, mut object) in objects.into_iter().enumerate() {
            let key = Key::of(&object);
            let hash = spec_hash(&object);
            let same = |e: &Entry| e.name == key.name && e.namespace == key.namespace;
            if let Some(at) = entries.iter().position(same) {
                let entry = entries.remove(at);
                if entry.spec_hash != hash {
                    let message = format!(
                        "holds the state of another request of the name {key} (its spec differs)"
                    );
                    return Err(FileError::State {
                        path: path.into(),
                        message,
                    });
                }
                object.status = Some(entry.status);
            }
            self.version += 1;
            object.metadata.uid = Some(key.to_string());
            object.metadata.generation = Some(1);
            object.metadata.resource_version = Some(self.version.to_string());
            let status = object.status.get_or_insert_default();
            status.order = i64::try_from(index + 1).ok();
            self.order.push(key.clone());
            self.objects.insert(key, object);
        }
        let matched = self
            .objects
            .values()
            .any(|o| o.status.as_ref().is_some_and(|s| s.phase.is_some()));
        if strangers && !matched {
            let names: Vec<&str> = entries.iter().map(|e| e.name.as_str()).collect();
            let message = format!("holds the state of other requests ({})", names.join(", "));
            return Err(FileError::State {
                path: path.into(),
                message,
            });
        }
        self.others = entries;
        self.renew(path)
    }

    /// The deadline restarts; what failed or was cancelled is tried again from what is recorded, unless a later document has
    /// begun on one of its floats.
    fn renew(&mut self, path: &Path) -> Result<(), FileError> {
        for at in 0..self.order.len() {
            let later: Vec<(String, Vec<String>)> = self.order[at + 1..]
                .iter()
                .filter_map(|key| self.objects.get(key))
                .filter(|o| o.status.as_ref().is_some_and(|s| s.start_time.is_some()))
                .map(|o| {
                    (
                        Key::of(o).to_string(),
                        o.spec.images.iter().map(|i| i.float.clone()).collect(),
                    )
                })
                .collect();
            let Some(object) = self.objects.get_mut(&self.order[at]) else {
                continue;
            };
            let shares =
                |floats: &[String]| object.spec.images.iter().any(|i| floats.contains(&i.float));
            let by = later
                .iter()
                .find(|(_, floats)| shares(floats))
                .map(|(name, _)| name.clone());
            let result = reset(object, by.as_deref(), Timestamp::now());
            result.map_err(|error: ReadError| FileError::State {
                path: path.into(),
                message: error.to_string(),
            })?;
        }
        Ok(())
    }

    fn state(&self) -> StateFile {
        let entry = |key: &Key| {
            let object = self.objects.get(key)?;
            Some(Entry {
                namespace: key.namespace.clone(),
                name: key.name.clone(),
                spec_hash: spec_hash(object),
                status: object.status.clone().unwrap_or_default(),
            })
        };
        let requests = self.order.iter().filter_map(entry);
        StateFile {
            kind: KIND.into(),
            saved_at: Some(Timestamp::now()),
            requests: requests.chain(self.others.iter().cloned()).collect(),
        }
    }
}

impl Store for FileStore {
    async fn load(&self, key: &Key) -> Result<Option<PromotionRequest>, StoreError> {
        Ok(self.lock().objects.get(key).cloned())
    }

    async fn save(&self, object: &PromotionRequest) -> Result<PromotionRequest, StoreError> {
        let key = Key::of(object);
        let failed = |message: String| StoreError::Failed {
            verb: "save",
            key: key.clone(),
            message,
        };
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
        let before = inner.objects.insert(key.clone(), saved.clone());
        // Under the lock: a few hundred kilobytes, and the order of the files on disk must be that of the saves.
        if let Err(error) = write_state(&self.state, &inner.state()) {
            if let Some(before) = before {
                inner.objects.insert(key.clone(), before);
            }
            return Err(failed(error.to_string()));
        }
        Ok(saved)
    }

    async fn access(&self, _: &PromotionRequest) -> Result<Access, AccessError> {
        Ok(Access {
            pull: self.keyring.clone(),
            push: self.keyring.clone(),
        })
    }

    async fn tell(&self, _: &PromotionRequest, _: Event) {
        // The engine's own log line has said it.
    }
}

/// The requests of a YAML file, every one of them valid.
///
/// # Errors
/// The first document that is none, with its field and what to do.
pub fn read_requests(path: &Path) -> Result<Vec<PromotionRequest>, FileError> {
    let io = |source| FileError::Io {
        verb: "read",
        path: path.into(),
        source,
    };
    let text = std::fs::read_to_string(path).map_err(io)?;
    let parse = |message: String| FileError::Parse {
        path: path.into(),
        message,
    };
    let documents: Vec<serde_json::Value> =
        serde_saphyr::from_multiple(&text).map_err(|error| parse(error.to_string()))?;
    if documents.is_empty() {
        return Err(parse(
            "holds no document; write at least one PromotionRequest".into(),
        ));
    }
    let mut objects: Vec<PromotionRequest> = Vec::with_capacity(documents.len());
    for (index, document) in documents.into_iter().enumerate() {
        let name = document
            .pointer("/metadata/name")
            .and_then(|n| n.as_str())
            .map(str::to_owned);
        let refused = |message| FileError::Document {
            path: path.into(),
            number: index + 1,
            name: name.clone(),
            message,
        };
        let object = read_document(document).map_err(refused)?;
        if objects.iter().any(|o| Key::of(o) == Key::of(&object)) {
            return Err(refused(
                "metadata.name: another document has this name; name each once".into(),
            ));
        }
        objects.push(object);
    }
    Ok(objects)
}

fn read_document(document: serde_json::Value) -> Result<PromotionRequest, String> {
    let text = |pointer: &str| {
        document
            .pointer(pointer)
            .and_then(|v| v.as_str())
            .unwrap_or_default()
            .to_owned()
    };
    let (version, kind) = (text("/apiVersion"), text("/kind"));
    if version != "ci.openshift.io/v1alpha1" || kind != "PromotionRequest" {
        return Err(format!(
            "apiVersion, kind: are '{version}', '{kind}'; write ci.openshift.io/v1alpha1, PromotionRequest"
        ));
    }
    if text("/metadata/name").is_empty() {
        return Err("metadata.name: is missing; the state is kept under it".into());
    }
    let mut unknown = None;
    let mut object: PromotionRequest = serde_ignored::deserialize(document, |path| {
        unknown = unknown.take().or(Some(path.to_string()))
    })
    .map_err(|error| error.to_string())?;
    if let Some(field) = unknown.filter(|field| field.starts_with("spec")) {
        return Err(format!(
            "{field}: there is no such field; see 'promotion-controller crd'"
        ));
    }
    object.status = None;
    check_bounds(&object)?;
    read(&object).map_err(|error| error.to_string())?;
    Ok(object)
}

/// The bounds that an API server would enforce.
fn check_bounds(object: &PromotionRequest) -> Result<(), String> {
    let spec = &object.spec;
    if spec.images.len() > 256 {
        return Err(format!(
            "spec.images: has {} entries; at most 256 are allowed",
            spec.images.len()
        ));
    }
    let bounds = [
        ("attempts", spec.attempts, 1, 20),
        ("deadlineSeconds", spec.deadline_seconds, 60, 86_400),
        (
            "ttlSecondsAfterFinished",
            spec.ttl_seconds_after_finished,
            0,
            7_776_000,
        ),
    ];
    for (field, value, least, most) in bounds {
        if value < least || value > most {
            return Err(format!(
                "spec.{field}: is {value}; it must be {least} to {most}"
            ));
        }
    }
    Ok(())
}

/// A hash of what cannot change in a spec.
fn spec_hash(object: &PromotionRequest) -> String {
    let mut spec = object.spec.clone();
    (spec.suspend, spec.cancel, spec.ttl_seconds_after_finished) = (false, false, 0);
    let text = serde_json::to_vec(&spec).unwrap_or_default();
    Digest::of(&text).to_string()
}

/// How long to wait before anything is launched: a write of the earlier run may be unanswered (then from now), or younger than
/// `settle` (then from when the state was written, which is after its answer).
fn quiet(old: &StateFile, settle: Duration) -> Duration {
    let unanswered = |image: &crate::api::ImageStatus| {
        let finished = Phase::parse(&image.phase).is_some_and(Phase::is_finished);
        !finished && image.attempts.unwrap_or_default() > 0
    };
    if old
        .requests
        .iter()
        .flat_map(|e| &e.status.images)
        .any(unanswered)
    {
        return settle;
    }
    let Some(saved_at) = old.saved_at else {
        return Duration::ZERO;
    };
    let age = Duration::try_from(saved_at.duration_until(Timestamp::now())).unwrap_or_default();
    settle.saturating_sub(age)
}

fn lock(state: &Path) -> Result<File, FileError> {
    let path = beside(state, ".lock");
    let io = |source| FileError::Io {
        verb: "lock",
        path: path.clone(),
        source,
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io)?;
    match file.try_lock() {
        Ok(()) => {
            let _ = file.set_len(0);
            let _ = write!(
                file,
                "process {} since {:.0}",
                std::process::id(),
                Timestamp::now()
            );
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file
                .rewind()
                .and_then(|()| file.read_to_string(&mut holder));
            Err(FileError::Locked {
                path: state.into(),
                holder,
            })
        }
        Err(TryLockError::Error(source)) => Err(io(source)),
    }
}

fn read_state(path: &Path) -> Result<StateFile, FileError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) if text.is_empty() => return Ok(StateFile::default()),
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(StateFile::default());
        }
        Err(source) => {
            return Err(FileError::Io {
                verb: "read",
                path: path.into(),
                source,
            });
        }
    };
    let odd = |message: String| FileError::State {
        path: path.into(),
        message,
    };
    let value: serde_json::Value =
        serde_saphyr::from_str(&text).map_err(|e| odd(format!("is no state file ({e})")))?;
    let state: StateFile =
        serde_json::from_value(value).map_err(|e| odd(format!("is no state file ({e})")))?;
    if state.kind != KIND {
        return Err(odd(format!(
            "is no state file (kind is '{}', not {KIND})",
            state.kind
        )));
    }
    Ok(state)
}

/// Replaces the state file: written beside it, fsynced, renamed, and the folder fsynced too.
fn write_state(path: &Path, state: &StateFile) -> Result<(), FileError> {
    let io = |source| FileError::Io {
        verb: "write",
        path: path.into(),
        source,
    };
    let other = |error: String| io(std::io::Error::other(error));
    let value = serde_json::to_value(state).map_err(|e| other(e.to_string()))?;
    let text = serde_saphyr::to_string(&value).map_err(|e| other(e.to_string()))?;
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(io)?;
    file.write_all(text.as_bytes()).map_err(io)?;
    file.as_file().sync_all().map_err(io)?;
    file.persist(path).map_err(|e| io(e.error))?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(io)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

//! The engine in the test's own process, on a file, with saves that fail or never come back where the test says so.

#![allow(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use parking_lot::Mutex;
use promotion_controller::api::PromotionRequest;
use promotion_controller::controller::queue;
use promotion_controller::engine::leadership::Leadership;
use promotion_controller::engine::{Engine, Settings};
use promotion_controller::machine::Reason;
use promotion_controller::policy::Policy;
use promotion_controller::registry::{self, Keyring, RegistryClient};
use promotion_controller::store::file::FileStore;
use promotion_controller::store::{Access, AccessError, Event, Key, Store, StoreError};
use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a write without an answer may take to land, where nothing is.
const LATE: Duration = Duration::from_secs(3);

/// A working request is saved at most this often.
pub const STATUS_INTERVAL: Duration = Duration::from_millis(200);

/// Picks a save.
pub type Wanted = fn(&PromotionRequest) -> bool;

/// What happens to a save.
#[derive(Default)]
pub enum OnSave {
    /// It is done.
    #[default]
    Nothing,
    /// The first that is picked fails; after it, all are done.
    Refuse(Wanted),
    /// The nth, counted from 1, stops before it is done, and does not come back.
    StopBefore(usize),
    /// The nth stops when it is done, and does not come back.
    StopAfter(usize),
    /// The first that is picked stops when it is done, and does not come back.
    StopOn(Wanted),
    /// The first that is picked is done; its answer is held back until [`Watched::go_on`].
    HoldAnswer(Wanted),
    /// The first that is picked is done and its answer lost; what is loaded next is held back until [`Watched::go_on`].
    LoseAnswer(Wanted),
}

/// A file store whose saves the test decides on.
pub struct Watched {
    file: FileStore,
    on_save: Mutex<OnSave>,
    saves: Mutex<usize>,
    loads: Mutex<usize>,
    told: Mutex<Vec<Event>>,
    stopped: Notify,
    going_on: Notify,
    /// The object whose next load is held back.
    held: Mutex<Option<Key>>,
    deleted: Mutex<HashSet<Key>>,
}

impl Watched {
    pub fn new(file: FileStore, on_save: OnSave) -> Self {
        Self {
            file,
            on_save: Mutex::new(on_save),
            saves: Mutex::new(0),
            loads: Mutex::new(0),
            told: Mutex::default(),
            stopped: Notify::new(),
            going_on: Notify::new(),
            held: Mutex::default(),
            deleted: Mutex::default(),
        }
    }

    pub fn objects(&self) -> Vec<PromotionRequest> {
        self.file.objects()
    }

    /// Saves so far.
    pub fn saves(&self) -> usize {
        *self.saves.lock()
    }

    /// Loads so far.
    pub fn loads(&self) -> usize {
        *self.loads.lock()
    }

    /// How many events had this reason so far.
    pub fn told(&self, reason: Reason) -> usize {
        let told = self.told.lock();
        told.iter().filter(|event| event.reason == reason).count()
    }

    /// Resolves when a save has stopped.
    pub async fn stopped(&self) {
        self.stopped.notified().await;
    }

    /// Lets go what is held back.
    pub fn go_on(&self) {
        self.going_on.notify_one();
    }

    /// The object is there no more.
    pub fn delete(&self, key: &Key) {
        self.deleted.lock().insert(key.clone());
    }

    fn is_deleted(&self, key: &Key) -> bool {
        self.deleted.lock().contains(key)
    }

    /// Says that something is held back, and waits until it may go on.
    async fn hold(&self) {
        self.stopped.notify_one();
        self.going_on.notified().await;
    }

    /// Whether no save is to be refused any more.
    pub fn has_refused(&self) -> bool {
        matches!(*self.on_save.lock(), OnSave::Nothing)
    }

    fn refuses(&self, object: &PromotionRequest) -> bool {
        let mut on_save = self.on_save.lock();
        let refuses = matches!(&*on_save, OnSave::Refuse(wanted) if wanted(object));
        if refuses {
            *on_save = OnSave::Nothing;
        }
        refuses
    }

    async fn stop(&self) -> ! {
        self.stopped.notify_one();
        std::future::pending().await
    }
}

impl Store for Watched {
    async fn load(&self, key: &Key) -> Result<Option<PromotionRequest>, StoreError> {
        *self.loads.lock() += 1;
        let loaded = self.file.load(key).await?;
        let loaded = loaded.filter(|_| !self.is_deleted(key));
        let held = self.held.lock().take_if(|held| held == key);
        if held.is_some() {
            self.hold().await;
        }
        Ok(loaded)
    }

    async fn save(&self, object: &PromotionRequest) -> Result<PromotionRequest, StoreError> {
        if self.refuses(object) {
            return Err(StoreError::Failed {
                verb: "save",
                key: Key::from(object),
                message: "refused by the test".into(),
            });
        }
        let key = Key::from(object);
        if self.is_deleted(&key) {
            return Err(StoreError::Gone(key));
        }
        let number = {
            let mut saves = self.saves.lock();
            *saves += 1;
            *saves
        };
        let (mut hold, mut lose) = (false, false);
        let (before, after) = {
            let mut on_save = self.on_save.lock();
            match &*on_save {
                OnSave::StopBefore(n) => (*n == number, false),
                OnSave::StopAfter(n) => (false, *n == number),
                OnSave::StopOn(wanted) => (false, wanted(object)),
                OnSave::HoldAnswer(wanted) | OnSave::LoseAnswer(wanted) if wanted(object) => {
                    hold = matches!(&*on_save, OnSave::HoldAnswer(_));
                    lose = !hold;
                    *on_save = OnSave::Nothing;
                    (false, false)
                }
                _ => (false, false),
            }
        };
        if before {
            self.stop().await;
        }
        let saved = self.file.save(object).await;
        if after {
            self.stop().await;
        }
        if hold {
            self.hold().await;
        }
        if lose {
            *self.held.lock() = Some(key.clone());
            return Err(StoreError::Failed {
                verb: "save",
                key,
                message: "its answer was lost".into(),
            });
        }
        saved
    }

    async fn access(&self, object: &PromotionRequest) -> Result<Access, AccessError> {
        self.file.access(object).await
    }

    async fn access_anew(&self, object: &PromotionRequest) -> Result<Access, AccessError> {
        self.file.access_anew(object).await
    }

    async fn publish(&self, object: &PromotionRequest, event: Event) {
        self.told.lock().push(event.clone());
        self.file.publish(object, event).await;
    }
}

/// Starts an engine on the requests, with anonymous rights on plain registries, at work in tasks of the current runtime.
pub fn start(
    objects: Vec<PromotionRequest>,
    state: &Path,
    hosts: Vec<String>,
    settle: Duration,
    leadership: Leadership,
    on_save: OnSave,
) -> Engine<Watched> {
    let anonymous = Keyring::anonymous();
    start_as(
        anonymous, objects, state, hosts, settle, leadership, on_save,
    )
}

/// As [`start`], with these credentials.
pub fn start_as(
    keyring: Keyring,
    objects: Vec<PromotionRequest>,
    state: &Path,
    hosts: Vec<String>,
    settle: Duration,
    leadership: Leadership,
    on_save: OnSave,
) -> Engine<Watched> {
    super::install_tls();
    let (file, _) = FileStore::open(objects, state, keyring, settle, LATE).unwrap();
    let quiet = file.quiet();
    let settings = registry::Settings {
        plain_http: hosts,
        qps: 0,
        ..registry::Settings::default()
    };
    let (engine, mut keys) = Engine::new(
        Watched::new(file, on_save),
        RegistryClient::new(settings).unwrap(),
        Policy::default(),
        leadership,
        Settings {
            settle,
            late: LATE,
            status_interval: STATUS_INTERVAL,
            namespace_max: 0,
        },
    );
    let until = Instant::now() + quiet;
    engine.memory().log(|log| log.keep_quiet(until, until));
    let objects = engine.store().objects();
    for object in &objects {
        engine.observe(object);
    }
    engine.rebuild();
    for object in &objects {
        engine.trigger(Key::from(object));
    }
    let keys = futures::stream::poll_fn(move |context| keys.poll_recv(context));
    let names = queue::names_of(&objects);
    tokio::spawn(queue::drive(engine.clone(), names, keys));
    engine
}

/// Whether every request has ended.
pub fn is_over(engine: &Engine<Watched>) -> bool {
    let ended = |o: &PromotionRequest| {
        o.status
            .as_ref()
            .is_some_and(|s| s.completion_time.is_some())
    };
    engine.store().objects().iter().all(ended)
}

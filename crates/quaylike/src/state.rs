//! What the whole registry shares: the store, who may do what, faults, gates, the log.
//!
//! In: the options at the start, changes of settings. Out: the parts, for requests and for the handle.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

use super::auth::Authority;
use super::content::Blob;
use super::faults::Faults;
use super::gate::{Gates, HeldWrites, Moment};
use super::log::{Log, LoggedRequest};
use super::manifest::Manifest;
use super::rate_limit::RateLimit;
use super::settings::{Options, Settings};
use super::stale_cache::StaleCache;
use super::store::Store;
use super::uploads::Uploads;

/// The running registry.
#[derive(Debug)]
pub(super) struct RegistryState {
    store: Mutex<Store>,
    pub(super) uploads: Uploads,
    pub(super) authority: Authority,
    pub(super) faults: Faults,
    pub(super) log: Log,
    pub(super) gates: Arc<Gates>,
    pub(super) held: HeldWrites,
    /// Answers by digest that outlive the content.
    pub(super) stale_manifests: StaleCache<Arc<Manifest>>,
    pub(super) stale_blobs: StaleCache<Blob>,
    pub(super) rate_limit: RateLimit,
    pub(super) stop: CancellationToken,
    /// Base URL of the second listener.
    pub(super) storage: String,
    pub(super) control_api: bool,
}

// === impl RegistryState ===

impl RegistryState {
    pub(super) fn new(options: Options, storage: String, stop: CancellationToken) -> Self {
        Self {
            store: Mutex::new(Store::new(options.settings)),
            uploads: Uploads::default(),
            authority: Authority::new(options.auth),
            faults: Faults::default(),
            log: Log::new(options.log_entries),
            gates: Arc::new(Gates::default()),
            held: HeldWrites::new(),
            stale_manifests: StaleCache::default(),
            stale_blobs: StaleCache::default(),
            rate_limit: RateLimit::default(),
            stop,
            storage,
            control_api: options.control_api,
        }
    }

    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock()
    }

    pub(super) fn settings(&self) -> Settings {
        self.store().settings
    }

    /// Parks a request where a gate stops it. False: its connection is to be cut.
    pub(super) async fn passes(&self, moment: Moment, entry: &LoggedRequest) -> bool {
        tokio::select! {
            biased;
            through = self.gates.pass(moment, entry) => through,
            () = self.stop.cancelled() => false,
        }
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut Settings)) -> Settings {
        let mut store = self.store();
        let mut settings = store.settings;
        change(&mut settings);
        store.change(settings, Instant::now());
        settings
    }
}

//! The only place that speaks to registries.
//!
//! Operations of the OCI distribution protocol come in, as the engine thinks of them (look at a float, copy an image, set a
//! tag); manifests and classed errors come out. An operation waits inside while its host is unavailable and says so in its
//! [`Progress`]; a caller that drops the future ends the wait.
//!
//! Guaranteed: manifests are never re-serialised and every digest is computed here; absence is believed only where the registry
//! says so with a typed 404 to a credential that may push there; a tag that may have been written is never written again from
//! here; what one credential was granted or shown never serves another; memory does not grow with the size of images.
//!
//! In reading order: `dialect` and `error` (what answers mean, and how they count), `keyring` and `credential`, `endpoint` (addresses), `access` (rights), `budget` (what
//! a host is asked to bear; `queue`, `pace`, `breaker`), `reserve` (what memory manifests take), `egress` (who may be connected to; `network`, `location`, `clients`), `transport` (the one
//! way out; `token`, `reply`), `manifest`, `look` and `put` (tags),
//! `copy` (`blob`, `upload`, `download`, `sparse`), `survey` (what a copy would take), `referrers` and `labels` (what else belongs to staging an image).

mod auth;
mod endpoint;
mod error;
mod host;
mod ops;
mod single_flight;
mod wire;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use moka::policy::EvictionPolicy;

pub use auth::credential::Credential;
pub use auth::keyring::{Keyring, KeyringError};
pub use error::{BuildError, Class, Error};
pub use host::progress::{Progress, Waiting};
pub use ops::expiry::TagLabels;
pub use ops::manifest::Manifest;
pub use ops::put::Put;
pub use ops::referrers::{Listing, Referrer, list_with};
pub(crate) use single_flight::SingleFlight;
pub use wire::clients::Proxies;

use crate::image::{Digest, Repository};
use crate::machine::Reason;
use crate::metrics::Metrics;
use crate::policy::HostPattern;
use auth::credential::CredentialKey;
use endpoint::Endpoint;
use host::reserve::Reserve;
use wire::send::Transport;

/// The manifests kept, in bytes. Large ones are not: they would drive out those of everybody else.
const MANIFESTS_MAX: u64 = 24 * 1024 * 1024;
/// What one of them takes beside its own bytes, about.
const MANIFEST_KEPT: usize = 1024;
/// How long a blob is remembered as brought: registries hold what no tag holds for about an hour.
const PRESENT_FOR: Duration = Duration::from_mins(50);
/// How many of them are remembered.
const PRESENT_MAX: u64 = 25_000;
/// How long it is remembered that a credential may push, where only trying tells.
const PUSHABLE_FOR: Duration = Duration::from_hours(1);
/// How many such answers are remembered.
const PUSHABLE_MAX: u64 = 10_000;
/// How many images' labels are remembered.
const LABELS_MAX: u64 = 10_000;
/// How long it is remembered that a repository's registry has no referrers API.
const UNLISTED_FOR: Duration = Duration::from_hours(1);
/// Of how many repositories.
const UNLISTED_MAX: u64 = 10_000;

/// How long it is remembered whether a registry takes an index without its children.
const SPARSE_FOR: Duration = Duration::from_mins(10);
/// Of how many registries.
const SPARSE_MAX: u64 = 1000;

/// How registries are spoken to.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `HOST` or `HOST:PORT` spoken to over plain HTTP.
    pub plain_http: Vec<String>,
    /// Manifest requests a second, and blob requests a second, per host; 0: no pacing.
    pub qps: u32,
    /// Requests in flight per host, at least 3; a quarter of them is kept free of blobs on their way.
    pub concurrency: usize,
    /// Time to make a connection.
    pub connect_timeout: Duration,
    /// How long a read may stand still.
    pub read_timeout: Duration,
    /// Total time of one try of a request for a manifest, a token or a mount.
    pub request_timeout: Duration,
    /// Total time of a tag PUT.
    pub put_timeout: Duration,
    /// The hosts that may be connected to whatever their address; none: there is no list, and what a spec names may.
    pub allowed: Option<Vec<HostPattern>>,
    /// Networks that are internal although their addresses are public.
    pub cluster_ranges: Vec<IpNet>,
    /// `HOST` or `HOST:PORT`, and the PEM file of the CA that is trusted there besides the system's.
    pub registry_ca: Vec<(String, PathBuf)>,
    /// Which proxies requests go through.
    pub proxies: Proxies,
    /// Host as a spec names it -> address spoken to instead, over plain HTTP.
    pub rewrite: HashMap<String, String>,
    /// What is counted, here and by the engine that works with these registries.
    pub metrics: Metrics,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            plain_http: Vec::new(),
            qps: 40,
            concurrency: 16,
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_mins(1),
            request_timeout: Duration::from_mins(1),
            put_timeout: Duration::from_secs(8),
            allowed: None,
            cluster_ranges: Vec::new(),
            registry_ca: Vec::new(),
            proxies: Proxies::default(),
            rewrite: HashMap::new(),
            metrics: Metrics::default(),
        }
    }
}

/// All registries, as this process sees them: one budget, one memory. Clones share both.
#[derive(Debug, Clone)]
pub struct RegistryClient(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    transport: Transport,
    manifests: moka::sync::Cache<ManifestKey, Manifest>,
    blobs: moka::sync::Cache<BlobKey, BlobState>,
    pushable: moka::sync::Cache<(CredentialKey, Repository), ()>,
    /// The labels of images that count, by their configs.
    labels: moka::sync::Cache<BlobKey, ops::expiry::Written>,
    /// Repositories that a credential was told no referrers of, for want of an API.
    unlisted: moka::sync::Cache<(CredentialKey, Repository), ()>,
    /// Whether a registry takes an index without its children, by address.
    sparse: moka::sync::Cache<String, bool>,
    single_flight: SingleFlight<BlobKey>,
    /// Memory for large manifests.
    reserve: Arc<Reserve>,
}

/// A manifest as one credential was shown it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ManifestKey {
    pub(crate) credential: CredentialKey,
    pub(crate) repository: Repository,
    pub(crate) digest: Digest,
}

/// A blob of a repository, as one credential brings it there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct BlobKey {
    pub(crate) credential: CredentialKey,
    pub(crate) repository: Repository,
    pub(crate) digest: Digest,
}

/// What is known of a blob that was to be brought to a repository. Child manifests are not remembered: they are put each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlobState {
    /// It is there. Else the registry refused a manifest for want of content since, and what a HEAD says of it is not believed.
    pub(crate) there: bool,
    /// The registry said last that it mounted it.
    pub(crate) mounted: bool,
}

impl RegistryClient {
    /// Nothing is contacted yet. A default rustls crypto provider must be installed.
    ///
    /// # Errors
    /// The TLS backend cannot be set up, or an address of the settings is none.
    pub fn new(settings: Settings) -> Result<Self, BuildError> {
        Self::with_backoff(settings, Duration::from_secs(1), Duration::from_mins(1))
    }

    /// As [`RegistryClient::new`], with the first and the longest rest of an unavailable host.
    ///
    /// # Errors
    /// As [`RegistryClient::new`].
    #[doc(hidden)]
    pub fn with_backoff(
        settings: Settings,
        first: Duration,
        longest: Duration,
    ) -> Result<Self, BuildError> {
        let manifests = moka::sync::Cache::builder()
            .weigher(|_, manifest: &Manifest| {
                u32::try_from(manifest.bytes.len() + MANIFEST_KEPT).unwrap_or(u32::MAX)
            })
            .max_capacity(MANIFESTS_MAX)
            // What is new is what is in work: by default it would have to be wanted more often than what has long been promoted.
            .eviction_policy(EvictionPolicy::lru())
            .support_invalidation_closures()
            .build();
        let blobs = moka::sync::Cache::builder()
            .max_capacity(PRESENT_MAX)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(PRESENT_FOR)
            .support_invalidation_closures()
            .build();
        let pushable = moka::sync::Cache::builder()
            .max_capacity(PUSHABLE_MAX)
            .time_to_live(PUSHABLE_FOR)
            .build();
        let labels = moka::sync::Cache::new(LABELS_MAX);
        let unlisted = moka::sync::Cache::builder()
            .max_capacity(UNLISTED_MAX)
            .time_to_live(UNLISTED_FOR)
            .build();
        let sparse = moka::sync::Cache::builder()
            .max_capacity(SPARSE_MAX)
            .time_to_live(SPARSE_FOR)
            .build();
        let metrics = settings.metrics.clone();
        let shared = Arc::new(Shared {
            transport: Transport::new(settings, first, longest)?,
            manifests,
            blobs,
            pushable,
            labels,
            unlisted,
            sparse,
            single_flight: SingleFlight::new(),
            reserve: Arc::default(),
        });
        let known = Arc::downgrade(&shared);
        metrics.at_scrape(move |scrape| {
            if let Some(shared) = known.upgrade() {
                shared.transport.publish(scrape);
            }
        });
        Ok(Self(shared))
    }

    /// Forgets what was remembered of a repository's content (manifests, blobs), so that the next look or copy asks again. What
    /// is known to be missing stays known: an answer to a HEAD may come from a cache.
    pub fn forget(&self, repository: &Repository) {
        let gone = repository.clone();
        // These fail only without `support_invalidation_closures`.
        let _ = self
            .0
            .blobs
            .invalidate_entries_if(move |blob, known| blob.repository == gone && known.there);
        let gone = repository.clone();
        let _ = self
            .0
            .manifests
            .invalidate_entries_if(move |key, _| key.repository == gone);
    }

    /// What counts the requests.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.transport().settings.metrics
    }

    /// What requests to a repository's registry wait for now, while that is unavailable.
    #[must_use]
    pub fn unavailable(&self, repository: &Repository) -> Option<Waiting> {
        let endpoint = self.endpoint(repository).ok()?;
        self.transport().unavailable(&endpoint.base)
    }

    /// How many requests may be in flight to one registry.
    #[must_use]
    pub fn concurrency(&self) -> usize {
        self.transport().settings.concurrency
    }

    fn transport(&self) -> &Transport {
        &self.0.transport
    }

    fn endpoint(&self, repository: &Repository) -> Result<Endpoint, Error> {
        self.transport().endpoints.of(repository).ok_or_else(|| {
            Error::terminal(
                Reason::InvalidSpec,
                format!("{repository}: its host is no address; correct it"),
            )
        })
    }
}
#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::image::{Float, Reference};

    #[test]
    fn a_new_manifest_is_kept_however_often_those_kept_before_were_wanted() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let registry = RegistryClient::new(Settings::default()).unwrap();
        let float: Float = "quay.io/openshift/ci:f".parse().unwrap();
        let credential = Credential::anonymous();
        let manifest = |n: usize| {
            let annotation = "x".repeat(30 * 1024);
            let config = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
            let body = format!(
                r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"c","digest":"{config}","size":2}},"layers":[],"annotations":{{"{n}":"{annotation}"}}}}"#
            );
            Manifest::read("x", body.into(), None, None, None).unwrap()
        };
        let kept = |manifest: &Manifest| {
            let reference = Reference::Digest(manifest.digest);
            registry.cached(float.repository(), &reference, &credential)
        };
        for n in 0..1700 {
            let manifest = manifest(n);
            registry.remember(float.repository(), &manifest, &credential);
            for _ in 0..5 {
                kept(&manifest);
            }
        }
        let new = manifest(1700);
        registry.remember(float.repository(), &new, &credential);
        registry.0.manifests.run_pending_tasks();
        assert_eq!(kept(&new), Some(new));
        assert!(registry.0.manifests.weighted_size() <= MANIFESTS_MAX);
    }
}

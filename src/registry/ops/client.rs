//! The client: all registries, as this process sees them, and what it remembers of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use moka::policy::EvictionPolicy;

use super::known::{BlobKey, BlobState, ManifestKey};
use super::labels::LabelValues;
use super::manifest::Manifest;
use crate::image::Repository;
use crate::machine::Reason;
use crate::metrics::Metrics;
use crate::registry::auth::credential::{CredentialKey, Remote};
use crate::registry::endpoint::Endpoint;
use crate::registry::error::{BuildError, Error};
use crate::registry::host::progress::{Progress, Waiting};
use crate::registry::host::reserve::Reserve;
use crate::registry::settings::Settings;
use crate::registry::single_flight::SingleFlight;
use crate::registry::wire::send::Transport;
use crate::registry::wire::tokens::{Exclusive, WideCell};
use crate::registry::wire::wide_token::{WideKey, WideToken};

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

/// How long it is remembered whether a repository's registry deletes tags alone.
const UNDELETABLE_FOR: Duration = Duration::from_hours(24);
/// Of how many repositories.
const UNDELETABLE_MAX: u64 = 1000;

/// Speaks to all registries of this process, within one set of limits and with one cache. Clones share both.
#[derive(Debug, Clone)]
pub struct RegistryClient(pub(super) Arc<Remembered>);

#[derive(Debug)]
pub(super) struct Remembered {
    pub(super) transport: Transport,
    pub(super) manifests: moka::sync::Cache<ManifestKey, Manifest>,
    pub(super) blobs: moka::sync::Cache<BlobKey, BlobState>,
    pub(super) pushable: moka::sync::Cache<(CredentialKey, Repository), ()>,
    /// The labels of images that count, by their configs.
    pub(super) labels: moka::sync::Cache<BlobKey, LabelValues>,
    /// Repositories that a credential was told no referrers of, for want of an API.
    pub(super) unlisted: moka::sync::Cache<(CredentialKey, Repository), ()>,
    /// Whether a registry takes an index without its children, by address.
    pub(super) sparse: moka::sync::Cache<String, bool>,
    /// Why no tag of a repository is deleted; none: they are, alone.
    pub(super) undeletable: moka::sync::Cache<(CredentialKey, Repository), Option<String>>,
    /// Where that is being tried.
    pub(super) trying: SingleFlight<(CredentialKey, Repository)>,
    pub(super) single_flight: SingleFlight<BlobKey>,
    /// Memory for large manifests.
    pub(super) reserve: Arc<Reserve>,
}

impl RegistryClient {
    /// Contacts nothing yet. Needs a default rustls crypto provider to be installed.
    ///
    /// # Errors
    /// The TLS backend cannot be set up, or an address in the settings is invalid.
    pub fn new(settings: Settings) -> Result<Self, BuildError> {
        Self::with_backoff(settings, Duration::from_secs(1), Duration::from_mins(1))
    }

    /// As [`RegistryClient::new`], with the first and the longest backoff of an unavailable host.
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
        let metrics = settings.metrics.clone();
        let shared = Arc::new(Remembered {
            transport: Transport::new(settings, first, longest)?,
            manifests,
            blobs,
            pushable: remembered(PUSHABLE_MAX, PUSHABLE_FOR),
            labels: moka::sync::Cache::new(LABELS_MAX),
            unlisted: remembered(UNLISTED_MAX, UNLISTED_FOR),
            sparse: remembered(SPARSE_MAX, SPARSE_FOR),
            undeletable: remembered(UNDELETABLE_MAX, UNDELETABLE_FOR),
            trying: SingleFlight::new(),
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

    /// Reads what the system trusts now, and not beside the first connection that needs it.
    ///
    /// # Errors
    /// It trusts nobody.
    pub async fn load_trust(&self) -> Result<(), BuildError> {
        self.transport().egress.load_trust().await
    }

    /// Forgets a repository's manifests and blobs, so that the next read or copy asks again. Blobs known to be missing stay known: a
    /// HEAD may be answered by a cache.
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

    /// The metrics that count the requests.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.transport().settings.metrics
    }

    /// What requests to a repository's registry wait for while it is unavailable.
    #[must_use]
    pub fn unavailable(&self, repository: &Repository) -> Option<Waiting> {
        let endpoint = self.endpoint(repository).ok()?;
        self.transport().unavailable(&endpoint.base)
    }

    /// Takes note of what a promotion request will ask for: each repository with its credential, and whether it is written to. One
    /// token is then asked for all that it needs of a registry with one credential.
    pub fn expect<'a>(
        &self,
        progress: &Progress,
        wanted: impl IntoIterator<Item = (Remote<'a>, bool)>,
    ) {
        let mut tokens: HashMap<WideKey, BTreeMap<Repository, bool>> = HashMap::new();
        for (remote, push) in wanted {
            let Ok(endpoint) = self.endpoint(remote.repository) else {
                continue;
            };
            let key = WideKey {
                flow: progress.flow(),
                address: endpoint.address.clone(),
                credential: remote.credential.key(),
            };
            let repositories = tokens.entry(key).or_default();
            *repositories.entry(remote.repository.clone()).or_default() |= push;
        }
        for (key, repositories) in tokens {
            let wide = || {
                let (wanted, cell) = (WideToken::new(&repositories), Exclusive::default());
                Arc::new(WideCell { wanted, cell })
            };
            self.transport().tokens.wide.get_with(key, wide);
        }
    }

    /// After a pause: every registry is asked as slowly as at first, until it was seen to bear more.
    pub fn restart(&self) {
        self.transport().restart();
    }

    /// How many requests may be in flight to one registry.
    #[must_use]
    pub fn concurrency(&self) -> usize {
        self.transport().settings.concurrency
    }

    pub(super) fn transport(&self) -> &Transport {
        &self.0.transport
    }

    pub(super) fn endpoint(&self, repository: &Repository) -> Result<Arc<Endpoint>, Error> {
        self.transport().endpoints.of(repository).ok_or_else(|| {
            Error::terminal(
                Reason::InvalidSpec,
                format!("{repository}: its host is no address; correct it"),
            )
        })
    }
}

/// At most so many answers, each for so long.
fn remembered<K, V>(most: u64, lifetime: Duration) -> moka::sync::Cache<K, V>
where
    K: std::hash::Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    let cache = moka::sync::Cache::builder().max_capacity(most);
    cache.time_to_live(lifetime).build()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::image::{Float, Reference};
    use crate::registry::auth::credential::Credential;

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

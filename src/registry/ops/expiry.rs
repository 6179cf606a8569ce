//! What an image's labels do to its tags on quay: `quay.expires-after` makes a tag expire, `quay.immutable` keeps it from being moved.
//!
//! An annotation of the manifest overrides the label of the config; an index has the values that all its children share. Guaranteed:
//! registries other than quay are not asked; a config is fetched once, and once more where that failed, and not at all if it was streamed;
//! no more children are read than needed; what cannot be read is not an error.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use reqwest::{Method, StatusCode};

use super::blob::{blob_url, mismatch, named};
use super::client::RegistryClient;
use super::job::Job;
use super::known::BlobKey;
use super::labels::{LabelValues, written_in};
use super::manifest::{Blob, Manifest};
use crate::image::{Digest, Reference, Repository};
use crate::machine::Reason;
use crate::registry::auth::access::Access;
use crate::registry::auth::challenge::Challenge;
use crate::registry::auth::credential::{Credential, Remote};
use crate::registry::endpoint::Endpoint;
use crate::registry::error::Error;
use crate::registry::host::progress::Progress;
use crate::steps::TagLabels;

/// The most of a config that is read for its labels.
const CONFIG_MAX: u64 = 1024 * 1024;
/// How long the one try to read them may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Levels of indexes that are read.
const DEPTH_MAX: usize = 4;

/// A config on its way, kept for its labels.
pub(crate) struct ConfigCapture {
    key: BlobKey,
    pub(crate) bytes: Vec<u8>,
}

/// Where the content of an image is read.
struct Reading<'a> {
    endpoint: Arc<Endpoint>,
    repository: &'a Repository,
    credential: &'a Credential,
    progress: &'a Progress,
    push: bool,
}

impl Job<'_> {
    /// Where to keep a blob that is about to be streamed, if its labels count.
    pub(crate) fn capture(&self, blob: Blob) -> Option<ConfigCapture> {
        let configs = self.configs.lock();
        (configs.contains(&blob.digest) && blob.size <= CONFIG_MAX).then(|| ConfigCapture {
            key: self.blob_key(blob.digest),
            bytes: Vec::new(),
        })
    }
}

impl RegistryClient {
    /// What the labels of an image do to its tags in `target`, if that registry acts on them. The content is read from `held`. `push`: with
    /// the right to push.
    pub async fn tag_expiry(
        &self,
        target: &Repository,
        held: Remote<'_>,
        manifest: &Manifest,
        push: bool,
        progress: &Progress,
    ) -> TagLabels {
        let acts = self.endpoint(target).is_ok_and(|at| {
            let access = Access::new(&at, held.credential, target, push);
            self.is_quay(&access)
        });
        let Some(endpoint) = self.endpoint(held.repository).ok().filter(|_| acts) else {
            return TagLabels::default();
        };
        let reading = Reading {
            endpoint,
            repository: held.repository,
            credential: held.credential,
            progress,
            push,
        };
        let labels = self.read_labels(&reading, manifest, 0);
        let why = match tokio::time::timeout(PATIENCE, labels).await {
            Ok(Ok(written)) => return written.meant(),
            Ok(Err(error)) => error.message,
            Err(_) => "timed out".into(),
        };
        tracing::debug!(repository = %held.repository, digest = %manifest.digest, why, "labels were not read");
        TagLabels::default()
    }

    /// Whether the registry is quay: it says so by its token endpoint.
    pub(crate) fn is_quay(&self, access: &Access<'_>) -> bool {
        if access.endpoint.name == "quay.io" {
            return true;
        }
        let Some(Challenge::Bearer { realm, .. }) = self.transport().tokens.known(access) else {
            return false;
        };
        reqwest::Url::parse(&realm).is_ok_and(|realm| realm.path().ends_with("/v2/auth"))
    }

    /// The labels of an image, or those that all children of an index share.
    fn read_labels<'a>(
        &'a self,
        reading: &'a Reading<'a>,
        manifest: &'a Manifest,
        depth: usize,
    ) -> BoxFuture<'a, Result<LabelValues, Error>> {
        async move {
            if !manifest.is_index() {
                return self.read_image(reading, manifest).await;
            }
            if depth == DEPTH_MAX {
                return Ok(LabelValues::default());
            }
            let mut shared: Option<LabelValues> = None;
            for digest in manifest.parts("an index")?.children {
                let reference = Reference::Digest(digest);
                let (repository, credential) = (reading.repository, reading.credential);
                let child = self.get(repository, &reference, credential, reading.progress);
                let written = match child.await? {
                    Some(child) => self.read_labels(reading, &child, depth + 1).await?,
                    None => LabelValues::default(),
                };
                let both = match shared {
                    Some(shared) => shared.shared_with(&written),
                    None => written,
                };
                if both.is_empty() {
                    return Ok(both);
                }
                shared = Some(both);
            }
            Ok(shared.unwrap_or_default())
        }
        .boxed()
    }

    /// The labels of one image: annotations, and the config's as remembered, else by the one GET.
    async fn read_image(
        &self,
        reading: &Reading<'_>,
        manifest: &Manifest,
    ) -> Result<LabelValues, Error> {
        let Some(config) = manifest.config() else {
            return Ok(LabelValues::default());
        };
        let annotated = manifest.annotated();
        if annotated.is_complete() {
            return Ok(annotated);
        }
        let access = Access::new(
            &reading.endpoint,
            reading.credential,
            reading.repository,
            reading.push,
        );
        let key = BlobKey::of(&access, config.digest);
        let _flight = self.0.single_flight.enter(&key).await;
        if let Some(known) = self.0.labels.get(&key) {
            return Ok(annotated.or(known));
        }
        let bytes = self.read_config(&access, config, reading.progress).await?;
        let written = written_in(&bytes);
        self.0.labels.insert(key, written.clone());
        Ok(annotated.or(written))
    }

    /// Reads the config whose labels will be asked for first, while it is being mounted from there.
    pub(crate) async fn read_labels_ahead(&self, job: &Job<'_>, blob: Blob) {
        let key = job.blob_key(blob.digest);
        let wanted = *job.first_config.lock() == Some(blob.digest);
        if wanted
            && self.is_quay(&job.target())
            && !self.0.labels.contains_key(&key)
            // Boxed: it is one blob of many.
            && let Ok(bytes) = Box::pin(self.read_config(&job.source(), blob, job.progress)).await
        {
            self.0.labels.insert(key, written_in(&bytes));
        }
    }

    async fn read_config(
        &self,
        access: &Access<'_>,
        config: Blob,
        progress: &Progress,
    ) -> Result<Bytes, Error> {
        let what = named(access.repository, config.digest);
        let too_large = || {
            let message = format!("{what}: the config is larger than 1 MiB");
            Error::attempt(Reason::TooLarge, message)
        };
        if config.size > CONFIG_MAX {
            return Err(too_large());
        }
        let url = blob_url(access, config.digest);
        let mut request = self.blob_request(Method::GET, url, &what, access, progress);
        request.timeout = Some(PATIENCE);
        request.patience = Some(Duration::ZERO);
        let reply = self.transport().send(&mut request).await?;
        if reply.status() != StatusCode::OK {
            return Err(reply.refusal(&what).await);
        }
        let max = usize::try_from(CONFIG_MAX).unwrap_or(usize::MAX);
        let bytes = reply.body(&what, max).await?.ok_or_else(too_large)?;
        if Digest::of(&bytes) != config.digest {
            return Err(mismatch(access.repository, config.digest));
        }
        Ok(bytes)
    }

    /// Remembers what a config says that was streamed whole.
    pub(crate) fn learn_labels(&self, capture: ConfigCapture) {
        let written = written_in(&capture.bytes);
        self.0.labels.insert(capture.key, written);
    }
}

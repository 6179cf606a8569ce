//! Labels that quay acts on when a tag is pushed: `quay.expires-after` makes it expire, `quay.immutable` keeps it from being moved.
//!
//! In comes an image that a repository has; out comes what its labels do to every tag of it, where the registry acts on them. An
//! annotation of the manifest overrides the label of the config; an index has what all its children have with the same value.
//! Guaranteed: registries other than quay are not asked; a config is fetched once at most, and not at all where it was streamed; no
//! more children are read than it takes to know; what cannot be read is no error.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use oci_client::manifest::{
    IMAGE_CONFIG_MEDIA_TYPE, IMAGE_DOCKER_CONFIG_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE,
};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::blob::{blob_url, mismatch, named};
use super::client::RegistryClient;
use super::job::Job;
use super::known::{BlobKey, LabelValues};
use super::manifest::{Blob, Descriptor, Manifest};
use crate::image::{Digest, Reference, Repository};
use crate::machine::Reason;
use crate::registry::auth::access::Access;
use crate::registry::auth::challenge::Challenge;
use crate::registry::auth::credential::{Credential, Remote};
use crate::registry::endpoint::Endpoint;
use crate::registry::error::{Error, one_line};
use crate::registry::host::progress::Progress;

/// The most of a config that is read for its labels.
const CONFIG_MAX: u64 = 1024 * 1024;
/// How long the one try to read them may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most of a label's value that is shown.
const VALUE_MAX: usize = 40;
/// The longest value that is compared with those of other children.
const COMPARED_MAX: usize = 256;
/// Levels of indexes that are read.
const DEPTH_MAX: usize = 4;

/// What an image's labels do to its tags.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TagLabels {
    /// The life of each, as `quay.expires-after` says it; none: for ever.
    pub expires_after: Option<String>,
    /// `quay.immutable`: none of them can be moved, once it is there.
    pub immutable: bool,
}

/// A config on its way, kept for its labels.
pub(crate) struct ConfigCapture {
    key: BlobKey,
    pub(crate) bytes: Vec<u8>,
}

/// Where the content of an image is read.
struct Reading<'a> {
    endpoint: Endpoint,
    repository: &'a Repository,
    credential: &'a Credential,
    progress: &'a Progress,
    push: bool,
}

/// What of a manifest says what its labels are. Nothing else of it is kept, however much there is.
#[derive(Deserialize)]
struct Labelled<'a> {
    #[serde(borrow)]
    config: Option<Descriptor<'a>>,
    #[serde(borrow)]
    annotations: Option<Labels<'a>>,
}

#[derive(Deserialize)]
struct Config<'a> {
    #[serde(borrow)]
    config: Option<Inner<'a>>,
}

#[derive(Deserialize)]
struct Inner<'a> {
    #[serde(rename = "Labels", borrow)]
    labels: Option<Labels<'a>>,
}

/// The labels, or annotations, that count.
#[derive(Deserialize)]
struct Labels<'a> {
    #[serde(rename = "quay.expires-after", borrow)]
    expires_after: Option<&'a RawValue>,
    #[serde(rename = "quay.immutable", borrow)]
    immutable: Option<&'a RawValue>,
}

impl Labels<'_> {
    /// Their values, where they are text.
    fn written(&self) -> LabelValues {
        let text = |value: Option<&RawValue>| {
            let value: String = serde_json::from_str(value?.get()).ok()?;
            Some(value.chars().take(COMPARED_MAX).collect())
        };
        LabelValues {
            expires_after: text(self.expires_after),
            immutable: text(self.immutable),
        }
    }
}

impl LabelValues {
    /// What both have with the same value.
    fn shared_with(self, other: &Self) -> Self {
        let shared = |own: Option<String>, other: &Option<String>| {
            own.filter(|own| Some(own) == other.as_ref())
        };
        Self {
            expires_after: shared(self.expires_after, &other.expires_after),
            immutable: shared(self.immutable, &other.immutable),
        }
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// These, and where they say nothing what `others` say.
    fn or(self, others: Self) -> Self {
        Self {
            expires_after: self.expires_after.or(others.expires_after),
            immutable: self.immutable.or(others.immutable),
        }
    }

    fn meant(&self) -> TagLabels {
        let immutable = self.immutable.as_deref().map(str::trim);
        TagLabels {
            expires_after: self.expires_after.as_deref().and_then(meant),
            immutable: immutable.is_some_and(|value| value.eq_ignore_ascii_case("true")),
        }
    }
}

impl Manifest {
    /// The config of an image; none of an index, nor of an artifact that is no image.
    pub(crate) fn config(&self) -> Option<Blob> {
        let labelled: Labelled = serde_json::from_slice(&self.bytes).ok()?;
        let config = labelled.config.filter(|_| !self.is_index())?;
        let image = [IMAGE_CONFIG_MEDIA_TYPE, IMAGE_DOCKER_CONFIG_MEDIA_TYPE];
        image.contains(&&*config.media_type).then_some(())?;
        Some(Blob {
            digest: config.digest.parse().ok()?,
            size: u64::try_from(config.size).ok()?,
            elsewhere: false,
        })
    }

    /// The annotations that count: none but of an OCI image.
    fn annotated(&self) -> LabelValues {
        let labelled: Option<Labelled> = serde_json::from_slice(&self.bytes).ok();
        let annotations = labelled.and_then(|labelled| labelled.annotations);
        let annotations = annotations.filter(|_| self.media_type == OCI_IMAGE_MEDIA_TYPE);
        annotations.map_or_else(LabelValues::default, |annotations| annotations.written())
    }
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
    /// What the labels of an image do to the tags that `target` gets for it, where its registry acts on them; its content is read
    /// in `held`, with the rights it comes with. `push`: to be written to as well.
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
        if annotated.expires_after.is_some() && annotated.immutable.is_some() {
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

/// The labels of a config that count.
fn written_in(config: &[u8]) -> LabelValues {
    let config: Option<Config> = serde_json::from_slice(config).ok();
    let labels = config.and_then(|config| config.config?.labels);
    labels.map_or_else(LabelValues::default, |labels| labels.written())
}

/// The value, if it says a time: an empty one takes a base image's label back, and quay ignores words.
fn meant(value: &str) -> Option<String> {
    let value = value.trim();
    value
        .starts_with(|c: char| c.is_ascii_digit())
        .then(|| one_line(value, VALUE_MAX))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn manifest(media_type: &str, config_type: &str, annotations: &str) -> Manifest {
        let digest = Digest::of(b"config");
        let body = format!(
            r#"{{"schemaVersion":2,"mediaType":"{media_type}","config":{{"mediaType":"{config_type}","digest":"{digest}","size":6}},
            "layers":[],"annotations":{annotations}}}"#
        );
        Manifest::read("x", Bytes::from(body), Some(media_type), None, None).unwrap()
    }

    #[test]
    fn the_label_is_that_of_the_configs_labels_and_says_a_time() {
        let value_of = |config: &[u8]| written_in(config).meant().expires_after;
        let config = |value: &str| {
            value_of(
                format!(r#"{{"config":{{"Labels":{{"quay.expires-after":{value}}}}}}}"#).as_bytes(),
            )
        };
        assert_eq!(config(r#""2d""#), Some("2d".into()));
        assert_eq!(config(r#"" 3w ""#), Some("3w".into()));
        for none in [r#""""#, r#""never""#, "7", "null"] {
            assert_eq!(config(none), None, "{none}");
        }
        for none in [
            "{}",
            r#"{"config":{}}"#,
            r#"{"config":{"Labels":null}}"#,
            "x",
        ] {
            assert_eq!(value_of(none.as_bytes()), None, "{none}");
        }
    }

    #[test]
    fn labels_count_for_images_alone() {
        let annotated = r#"{"quay.expires-after":"1h","other":"x"}"#;
        let image = manifest(OCI_IMAGE_MEDIA_TYPE, IMAGE_CONFIG_MEDIA_TYPE, annotated);
        assert_eq!(image.annotated().expires_after.as_deref(), Some("1h"));
        let config = Blob {
            digest: Digest::of(b"config"),
            size: 6,
            elsewhere: false,
        };
        assert_eq!(image.config(), Some(config));
        let empty = "application/vnd.oci.empty.v1+json";
        assert_eq!(manifest(OCI_IMAGE_MEDIA_TYPE, empty, "{}").config(), None);
    }

    #[test]
    fn an_image_is_immutable_where_the_label_says_true() {
        for (value, immutable) in [
            (r#""true""#, true),
            (r#""True ""#, true),
            (r#""false""#, false),
            (r#""""#, false),
            ("true", false),
        ] {
            let config = format!(r#"{{"config":{{"Labels":{{"quay.immutable":{value}}}}}}}"#);
            let labels = written_in(config.as_bytes()).meant();
            assert_eq!(labels.immutable, immutable, "{value}");
            assert_eq!(labels.expires_after, None);
        }
    }

    #[test]
    fn an_index_has_what_its_children_have_with_the_same_value() {
        let written = |expires: &str, immutable: &str| LabelValues {
            expires_after: (!expires.is_empty()).then(|| expires.into()),
            immutable: (!immutable.is_empty()).then(|| immutable.into()),
        };
        for (one, other, shared) in [
            (
                written("2d", "true"),
                written("2d", "true"),
                written("2d", "true"),
            ),
            (
                written("2d", "true"),
                written("3d", "true"),
                written("", "true"),
            ),
            (written("2d", ""), written("", "true"), written("", "")),
        ] {
            assert_eq!(one.shared_with(&other), shared);
        }
    }
}

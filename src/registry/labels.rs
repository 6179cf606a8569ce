//! Labels that make tags expire: `quay.expires-after`, which quay reads when a tag is pushed.
//!
//! In comes an image that a repository has; out comes the life that its labels give every tag of it, where the registry acts on
//! them. An annotation of the manifest overrides the label of the config; indexes have neither. Guaranteed: registries other than
//! quay are not asked; a config is fetched once at most, and not at all where it was streamed; what cannot be read is no error.

use std::time::Duration;

use bytes::Bytes;
use oci_client::manifest::{
    IMAGE_CONFIG_MEDIA_TYPE, IMAGE_DOCKER_CONFIG_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE,
};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::access::{Access, Challenge};
use super::activity::Activity;
use super::blob::{Job, blob_url, mismatch, named};
use super::credential::Credential;
use super::error::{Error, one_line};
use super::manifest::{Blob, Descriptor, Manifest};
use super::transport::Failure;
use super::{Present, Registry};
use crate::image::{Digest, Repository};
use crate::machine::Reason;

/// The most of a config that is read for its labels.
const CONFIG_MAX: u64 = 1024 * 1024;
/// How long the one try to read them may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most of a label's value that is shown.
const VALUE_MAX: usize = 40;

/// A config on its way, kept for its labels.
pub(super) struct Capture {
    key: Present,
    pub(super) bytes: Vec<u8>,
}

/// What of a manifest says how long its tags live. Nothing else of it is kept, however much there is.
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

/// The one label, or annotation, that counts.
#[derive(Deserialize)]
struct Labels<'a> {
    #[serde(rename = "quay.expires-after", borrow)]
    expires_after: Option<&'a RawValue>,
}

impl Labels<'_> {
    /// Its value, where it is text.
    fn expires_after(&self) -> Option<String> {
        serde_json::from_str(self.expires_after?.get()).ok()
    }
}

impl Manifest {
    /// The config of an image; none of an index, nor of an artifact that is no image.
    pub(super) fn config(&self) -> Option<Blob> {
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

    /// The annotation, if it is there.
    fn annotated(&self) -> Option<String> {
        let labelled: Labelled = serde_json::from_slice(&self.bytes).ok()?;
        labelled.annotations?.expires_after()
    }
}

impl Job<'_> {
    /// Where to keep a blob that is about to be streamed, if its labels count.
    pub(super) fn capture(&self, blob: Blob) -> Option<Capture> {
        let config = self.config.filter(|config| *config == blob)?;
        (config.size <= CONFIG_MAX).then(|| Capture {
            key: self.present(blob.digest),
            bytes: Vec::new(),
        })
    }
}

impl Registry {
    /// How long the tags of an image live by its labels, on registries that act on them; none: for ever, or it cannot be told.
    pub async fn lifetime(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        credential: &Credential,
        activity: &Activity,
    ) -> Option<String> {
        let endpoint = self.endpoint(repository).ok()?;
        let access = Access::new(&endpoint, credential, repository, true);
        if !self.is_quay(&access) {
            return None;
        }
        let config = manifest.config()?;
        if manifest.media_type == OCI_IMAGE_MEDIA_TYPE
            && let Some(value) = manifest.annotated()
        {
            return meant(&value);
        }
        let labels = self.read_labels(&access, config, activity);
        match tokio::time::timeout(PATIENCE, labels).await {
            Ok(Ok(value)) => value,
            Ok(Err(error)) => {
                tracing::debug!(%repository, digest = %manifest.digest, %error, "labels were not read");
                None
            }
            Err(_) => {
                tracing::debug!(%repository, digest = %manifest.digest, "labels were not read in time");
                None
            }
        }
    }

    /// Whether the registry is quay: it says so by its token endpoint.
    pub(super) fn is_quay(&self, access: &Access<'_>) -> bool {
        if access.endpoint.name == "quay.io" {
            return true;
        }
        let Some(Challenge::Bearer { realm, .. }) = self.transport().tokens.known(access) else {
            return false;
        };
        reqwest::Url::parse(&realm).is_ok_and(|realm| realm.path().ends_with("/v2/auth"))
    }

    /// What the labels of a config say: as remembered, else by the one GET.
    async fn read_labels(
        &self,
        access: &Access<'_>,
        config: Blob,
        activity: &Activity,
    ) -> Result<Option<String>, Error> {
        let key = Present::of(access, config.digest);
        let _flight = self.0.flights.enter(&key).await;
        if let Some(known) = self.0.lifetimes.get(&key) {
            return Ok(known);
        }
        let bytes = self.read_config(access, config, activity).await?;
        let value = value_of(&bytes);
        self.0.lifetimes.insert(key, value.clone());
        Ok(value)
    }

    async fn read_config(
        &self,
        access: &Access<'_>,
        config: Blob,
        activity: &Activity,
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
        let mut ask = self.blob_ask(Method::GET, url, &what, access, activity);
        ask.timeout = Some(PATIENCE);
        ask.patience = Some(Duration::ZERO);
        let reply = self
            .transport()
            .send(&mut ask)
            .await
            .map_err(Failure::into_error)?;
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
    pub(super) fn learn_lifetime(&self, capture: Capture) {
        self.0
            .lifetimes
            .insert(capture.key, value_of(&capture.bytes));
    }
}

/// The label of a config.
fn value_of(config: &[u8]) -> Option<String> {
    let config: Config = serde_json::from_slice(config).ok()?;
    let labels = config.config?.labels?;
    meant(&labels.expires_after()?)
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
        assert_eq!(image.annotated().as_deref(), Some("1h"));
        let config = Blob {
            digest: Digest::of(b"config"),
            size: 6,
            elsewhere: false,
        };
        assert_eq!(image.config(), Some(config));
        let empty = "application/vnd.oci.empty.v1+json";
        assert_eq!(manifest(OCI_IMAGE_MEDIA_TYPE, empty, "{}").config(), None);
    }
}

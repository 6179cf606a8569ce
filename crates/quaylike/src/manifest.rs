//! Manifests, parsed once when they are pushed.
//!
//! In: the bytes and the media type they were pushed with. Out: a [`Manifest`]: the bytes untouched, and the digests that it names.
//! Docker schema 1 and every type but the four is refused.

use std::collections::HashSet;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::content::Digest;

/// Docker's image manifest, version 2 schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// The OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// All media types a manifest may have.
pub const MANIFEST_TYPES: [&str; 4] = [DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX];

/// The largest manifest taken, in bytes: the 4 MiB that the OCI distribution spec asks registries to allow.
pub const MAX_MANIFEST: usize = 4 << 20;

/// A manifest of one of the four types, with what it names.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The digest of `bytes`.
    pub digest: Digest,
    /// One of [`MANIFEST_TYPES`].
    pub media_type: &'static str,
    /// As they were pushed.
    pub bytes: Bytes,
    /// Its config and its layers but for those that lie elsewhere, each once.
    pub blobs: Vec<Digest>,
    /// The manifests of an index or list, each once.
    pub children: Vec<Digest>,
    /// The manifest that this one refers to.
    pub subject: Option<Digest>,
    /// `artifactType`, or else the config's media type.
    pub artifact_type: Option<String>,
    /// Annotations of the manifest itself.
    pub annotations: Map<String, Value>,
}

/// Why this registry does not take some bytes as a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not one of the four media types.
    #[error(
        "media type `{0}` is not supported: push an OCI or docker schema 2 manifest, index or list"
    )]
    Unsupported(String),
    /// Docker schema 1.
    #[error("docker schema 1 is not supported: push a schema 2 or OCI manifest")]
    SchemaOne,
    /// The bytes say something else than the `Content-Type` does.
    #[error(
        "the manifest's mediaType is `{body}`, its Content-Type `{header}`: they must be equal"
    )]
    Mismatch {
        /// `mediaType` in the body.
        body: String,
        /// The `Content-Type`.
        header: String,
    },
    /// The JSON is broken or lacks a field.
    #[error("the manifest does not parse: {0}")]
    Malformed(#[from] serde_json::Error),
    /// A field has a value that it must not have.
    #[error("the manifest is invalid: {0}")]
    Invalid(&'static str),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    schema_version: u64,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
    artifact_type: Option<String>,
    #[serde(default)]
    annotations: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    #[serde(default)]
    urls: Vec<String>,
}

// === impl Manifest ===

impl Manifest {
    /// Reads a manifest. `media_type` is the `Content-Type`, parameters cut off; without one the body's `mediaType` counts.
    ///
    /// # Errors
    /// [`ManifestError`] for anything but a well-formed manifest of the four types.
    pub fn parse(media_type: Option<&str>, bytes: Bytes) -> Result<Self, ManifestError> {
        let header = media_type.map(|text| text.split(';').next().unwrap_or(text).trim());
        if header.is_some_and(|text| text.contains("manifest.v1+")) && header != Some(OCI_MANIFEST)
        {
            return Err(ManifestError::SchemaOne);
        }
        let document: Document = serde_json::from_slice(&bytes)?;
        if document.schema_version == 1 {
            return Err(ManifestError::SchemaOne);
        }
        if document.schema_version != 2 {
            return Err(ManifestError::Invalid("schemaVersion must be 2"));
        }
        if let (Some(header), Some(body)) = (header, &document.media_type)
            && header != body
        {
            return Err(ManifestError::Mismatch {
                body: body.clone(),
                header: header.to_owned(),
            });
        }
        let named = header
            .or(document.media_type.as_deref())
            .unwrap_or_default();
        let media_type = MANIFEST_TYPES
            .into_iter()
            .find(|known| *known == named)
            .ok_or_else(|| ManifestError::Unsupported(named.to_owned()))?;
        Self::of(document, media_type, bytes)
    }

    fn of(
        document: Document,
        media_type: &'static str,
        bytes: Bytes,
    ) -> Result<Self, ManifestError> {
        let (mut blobs, mut children) = (Vec::new(), Vec::new());
        let mut artifact_type = document.artifact_type;
        if matches!(media_type, DOCKER_LIST | OCI_INDEX) {
            let manifests = document
                .manifests
                .ok_or(ManifestError::Invalid("an index needs `manifests`"))?;
            children.extend(manifests.into_iter().map(|child| child.digest));
        } else {
            let config = document
                .config
                .ok_or(ManifestError::Invalid("a manifest needs `config`"))?;
            let layers = document
                .layers
                .ok_or(ManifestError::Invalid("a manifest needs `layers`"))?;
            artifact_type = artifact_type.or(Some(config.media_type));
            blobs.push(config.digest);
            blobs.extend(
                layers
                    .iter()
                    .filter(|layer| !layer.lies_elsewhere())
                    .map(|layer| layer.digest),
            );
        }
        Ok(Self {
            digest: Digest::of(&bytes),
            media_type,
            bytes,
            blobs: each_once(blobs),
            children: each_once(children),
            subject: document.subject.map(|subject| subject.digest),
            artifact_type: artifact_type.filter(|text| !text.is_empty()),
            annotations: document.annotations,
        })
    }

    /// Whether it is an index or a list.
    #[must_use]
    pub fn is_index(&self) -> bool {
        matches!(self.media_type, DOCKER_LIST | OCI_INDEX)
    }
}

impl Descriptor {
    /// Layers that say where they lie need not be in the registry, whatever their type.
    fn lies_elsewhere(&self) -> bool {
        !self.urls.is_empty()
    }
}

fn each_once(mut digests: Vec<Digest>) -> Vec<Digest> {
    let mut seen = HashSet::new();
    digests.retain(|digest| seen.insert(*digest));
    digests
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn parse(media_type: Option<&str>, document: &Value) -> Result<Manifest, ManifestError> {
        Manifest::parse(media_type, document.to_string().into())
    }

    fn image() -> Value {
        json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": {"mediaType": "c", "digest": Digest::of(b"config")},
            "layers": [
                {"mediaType": "l", "digest": Digest::of(b"one")},
                {"mediaType": "l", "digest": Digest::of(b"one")},
                {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "digest": Digest::of(b"far"), "urls": ["http://elsewhere"]},
                {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "digest": Digest::of(b"near")},
                {"mediaType": "l", "digest": Digest::of(b"linked"), "urls": ["http://elsewhere"]},
            ],
        })
    }

    #[test]
    fn blobs_are_named_once_and_layers_that_lie_elsewhere_not_at_all() {
        let manifest = parse(Some(OCI_MANIFEST), &image()).unwrap();
        let held = [b"config".as_slice(), b"one", b"near"].map(Digest::of);
        assert_eq!(manifest.blobs, held);
        assert_eq!(manifest.artifact_type.as_deref(), Some("c"));
    }

    #[test]
    fn schema_one_and_strangers_are_refused() {
        let v1 = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        assert!(matches!(
            parse(Some(v1), &image()),
            Err(ManifestError::SchemaOne)
        ));
        let old = json!({"schemaVersion": 1, "fsLayers": []});
        assert!(matches!(parse(None, &old), Err(ManifestError::SchemaOne)));
        let stranger = json!({"schemaVersion": 2});
        assert!(matches!(
            parse(Some("text/plain"), &stranger),
            Err(ManifestError::Unsupported(_))
        ));
    }

    #[test]
    fn a_content_type_that_contradicts_the_body_is_refused() {
        assert!(matches!(
            parse(Some(DOCKER_MANIFEST), &image()),
            Err(ManifestError::Mismatch { .. })
        ));
        assert_eq!(parse(None, &image()).unwrap().media_type, OCI_MANIFEST);
    }
}

//! Images to seed: small and the same on every run, or as large as a test needs.
//!
//! In: a name and a shape. Out: an [`Image`] with its manifests and blobs, to be put into a repository. Two images with the same
//! seed have the same digests; layers with the same seed are the same blob, shared between images.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::content::{Blob, Digest};
use super::manifest::{
    DOCKER_LIST, DOCKER_MANIFEST, Manifest, ManifestError, OCI_INDEX, OCI_MANIFEST,
};
use super::store::{Store, StoreError};

/// Length of the block that a large layer repeats.
const BLOCK: usize = 256 << 10;

/// An image, or an index with its images.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its manifest.
    pub manifest: Arc<Manifest>,
    /// Config and layers; foreign layers are not among them.
    pub blobs: Vec<(Digest, Blob)>,
    /// Its children, if it is an index.
    pub children: Vec<Image>,
    platform: Option<Value>,
}

/// A layer.
#[derive(Clone, Debug)]
pub struct Layer {
    digest: Digest,
    blob: Blob,
    /// Where a foreign layer lies.
    url: Option<String>,
}

/// Builds a single image.
#[derive(Clone, Debug)]
pub struct ImageBuilder {
    docker: bool,
    seed: String,
    layers: Vec<Layer>,
    labels: Map<String, Value>,
    architecture: String,
    annotations: Map<String, Value>,
    subject: Option<Value>,
    artifact_type: Option<String>,
    /// Without a config: an artifact that is no image.
    empty: bool,
}

/// An image described in JSON, for the control API and the command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSpec {
    /// Its shape.
    #[serde(default)]
    pub shape: Shape,
    /// What makes it different from others.
    pub seed: String,
    /// Layers of each image.
    #[serde(default = "two")]
    pub layers: usize,
    /// Length of each layer in bytes; by default a few words.
    #[serde(default)]
    pub layer_bytes: Option<u64>,
    /// Labels in the config: `quay.expires-after` is one that quay acts on.
    #[serde(default)]
    pub labels: Map<String, Value>,
    /// Architectures of an index.
    #[serde(default = "both")]
    pub platforms: Vec<String>,
}

/// The shape of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// One OCI image.
    #[default]
    Oci,
    /// One docker schema 2 image.
    Docker,
    /// An OCI index.
    Index,
    /// A docker manifest list.
    DockerList,
    /// An OCI index that holds an OCI index and an image.
    Nested,
}

fn two() -> usize {
    2
}

fn both() -> Vec<String> {
    vec!["amd64".to_owned(), "arm64".to_owned()]
}

// === impl Layer ===

impl Layer {
    /// A small layer: a few words around the seed.
    #[must_use]
    pub fn named(seed: &str) -> Self {
        Self::of(Blob::new(format!("layer {seed}\n")))
    }

    /// A layer of so many bytes. It takes a quarter of a MiB of memory at most; its digest is computed here, once.
    #[must_use]
    pub fn sized(seed: &str, length: u64) -> Self {
        let mut block = vec![0; BLOCK.min(usize::try_from(length).unwrap_or(BLOCK))];
        let mut begin = [0; 32];
        for (to, from) in begin
            .iter_mut()
            .zip(Digest::of(seed.as_bytes()).to_string().bytes().skip(7))
        {
            *to = from;
        }
        StdRng::from_seed(begin).fill_bytes(&mut block);
        Self::of(Blob::repeated(block, length))
    }

    /// A layer that lies at a URL and not in the registry.
    #[must_use]
    pub fn foreign(seed: &str, url: &str) -> Self {
        Self {
            url: Some(url.to_owned()),
            ..Self::named(seed)
        }
    }

    /// Its digest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    fn of(blob: Blob) -> Self {
        Self {
            digest: blob.digest(),
            blob,
            url: None,
        }
    }

    fn descriptor(&self, docker: bool) -> Value {
        let media_type = match (docker, &self.url) {
            (true, None) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (true, Some(_)) => "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            (false, None) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (false, Some(_)) => "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        };
        let mut descriptor = json!({
            "mediaType": media_type, "digest": self.digest, "size": self.blob.length(),
        });
        if let Some(url) = &self.url {
            descriptor["urls"] = json!([url]);
        }
        descriptor
    }
}

// === impl ImageBuilder ===

impl ImageBuilder {
    /// An OCI image without layers.
    #[must_use]
    pub fn oci(seed: &str) -> Self {
        Self {
            docker: false,
            seed: seed.to_owned(),
            layers: Vec::new(),
            labels: Map::new(),
            architecture: "amd64".to_owned(),
            annotations: Map::new(),
            subject: None,
            artifact_type: None,
            empty: false,
        }
    }

    /// A docker schema 2 image without layers.
    #[must_use]
    pub fn docker(seed: &str) -> Self {
        Self {
            docker: true,
            ..Self::oci(seed)
        }
    }

    /// An artifact of this type, with the empty config of the specification, and no layers.
    #[must_use]
    pub fn artifact(artifact_type: &str) -> Self {
        Self {
            artifact_type: Some(artifact_type.to_owned()),
            empty: true,
            ..Self::oci("")
        }
    }

    /// Adds a layer.
    #[must_use]
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// Sets a label of the config.
    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.to_owned(), json!(value));
        self
    }

    /// Sets an annotation of the manifest.
    #[must_use]
    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        self.annotations.insert(name.to_owned(), json!(value));
        self
    }

    /// Sets the architecture, `amd64` by default. The system is always linux.
    #[must_use]
    pub fn architecture(mut self, architecture: &str) -> Self {
        architecture.clone_into(&mut self.architecture);
        self
    }

    /// Makes it refer to another image: a signature, an SBOM.
    #[must_use]
    pub fn referring_to(mut self, subject: &Image, artifact_type: &str) -> Self {
        self.subject = Some(subject.descriptor());
        self.artifact_type = Some(artifact_type.to_owned());
        self
    }

    /// The image.
    ///
    /// # Errors
    /// None in practice: what is built here parses.
    pub fn build(self) -> Result<Image, ManifestError> {
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| layer.descriptor(self.docker))
            .collect();
        let diffs: Vec<Digest> = self.layers.iter().map(Layer::digest).collect();
        let config = json!({
            "architecture": self.architecture, "os": "linux", "config": {"Labels": self.labels},
            "rootfs": {"type": "layers", "diff_ids": diffs}, "history": [{"created_by": self.seed}],
        });
        let config = if self.empty { json!({}) } else { config };
        let config = Layer::of(Blob::new(config.to_string()));
        let (media_type, config_type) = if self.empty {
            (OCI_MANIFEST, "application/vnd.oci.empty.v1+json")
        } else if self.docker {
            (
                DOCKER_MANIFEST,
                "application/vnd.docker.container.image.v1+json",
            )
        } else {
            (OCI_MANIFEST, "application/vnd.oci.image.config.v1+json")
        };
        let mut document = json!({
            "schemaVersion": 2, "mediaType": media_type,
            "config": {"mediaType": config_type, "digest": config.digest, "size": config.blob.length()},
            "layers": layers,
        });
        if !self.annotations.is_empty() {
            document["annotations"] = Value::Object(self.annotations);
        }
        if let Some(subject) = self.subject {
            document["subject"] = subject;
        }
        if let Some(artifact_type) = self.artifact_type {
            document["artifactType"] = json!(artifact_type);
        }
        let stored = self.layers.iter().filter(|layer| layer.url.is_none());
        let blobs = stored
            .chain([&config])
            .map(|layer| (layer.digest, layer.blob.clone()));
        Ok(Image {
            manifest: written(media_type, &document)?,
            blobs: blobs.collect(),
            children: Vec::new(),
            platform: Some(json!({"architecture": self.architecture, "os": "linux"})),
        })
    }
}

fn written(media_type: &'static str, document: &Value) -> Result<Arc<Manifest>, ManifestError> {
    let bytes = Bytes::from(document.to_string());
    Manifest::parse(Some(media_type), bytes).map(Arc::new)
}

// === impl Image ===

impl Image {
    /// An OCI index of these images, which may be indexes themselves.
    ///
    /// # Errors
    /// None in practice: what is built here parses.
    pub fn index(children: Vec<Self>) -> Result<Self, ManifestError> {
        Self::of(OCI_INDEX, children)
    }

    /// A docker manifest list of these images.
    ///
    /// # Errors
    /// None in practice: what is built here parses.
    pub fn docker_list(children: Vec<Self>) -> Result<Self, ManifestError> {
        Self::of(DOCKER_LIST, children)
    }

    /// Its digest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.manifest.digest
    }

    fn of(media_type: &'static str, children: Vec<Self>) -> Result<Self, ManifestError> {
        let manifests: Vec<Value> = children.iter().map(Self::descriptor).collect();
        let document = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests});
        Ok(Self {
            manifest: written(media_type, &document)?,
            blobs: Vec::new(),
            children,
            platform: None,
        })
    }

    fn descriptor(&self) -> Value {
        let manifest = &self.manifest;
        let mut descriptor = json!({
            "mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.bytes.len(),
        });
        if let Some(platform) = &self.platform {
            descriptor["platform"] = platform.clone();
        }
        descriptor
    }

    /// Puts it into a repository, under a tag or held for the grace.
    pub(super) fn put(
        &self,
        store: &mut Store,
        repository: &str,
        tag: Option<&str>,
        now: Instant,
    ) -> Result<(), StoreError> {
        for (digest, blob) in &self.blobs {
            store.put_blob(repository, *digest, blob.clone(), now);
        }
        for child in &self.children {
            child.put(store, repository, None, now)?;
        }
        store.put_manifest(repository, tag, &self.manifest, now)
    }
}

// === impl ImageSpec ===

impl ImageSpec {
    /// Of this shape, with two small layers, on two platforms.
    #[must_use]
    pub fn new(shape: Shape, seed: &str) -> Self {
        Self {
            shape,
            seed: seed.to_owned(),
            layers: two(),
            layer_bytes: None,
            labels: Map::new(),
            platforms: both(),
        }
    }

    /// The image.
    ///
    /// # Errors
    /// None in practice: what is built here parses.
    pub fn build(&self) -> Result<Image, ManifestError> {
        let docker = matches!(self.shape, Shape::Docker | Shape::DockerList);
        let images = |seed: &str| -> Result<Vec<Image>, ManifestError> {
            let platforms = self.platforms.iter();
            platforms
                .map(|platform| self.single(seed, platform, docker))
                .collect()
        };
        match self.shape {
            Shape::Oci | Shape::Docker => self.single(&self.seed, "amd64", docker),
            Shape::Index => Image::index(images(&self.seed)?),
            Shape::DockerList => Image::docker_list(images(&self.seed)?),
            Shape::Nested => {
                let inner = Image::index(images(&format!("{}-inner", self.seed))?)?;
                Image::index(vec![inner, self.single(&self.seed, "amd64", docker)?])
            }
        }
    }

    fn single(&self, seed: &str, architecture: &str, docker: bool) -> Result<Image, ManifestError> {
        let mut builder = if docker {
            ImageBuilder::docker(seed)
        } else {
            ImageBuilder::oci(seed)
        };
        builder = builder.architecture(architecture);
        builder.labels.clone_from(&self.labels);
        for number in 0..self.layers {
            let name = format!("{seed}-{architecture}-{number}");
            builder = builder.layer(match self.layer_bytes {
                Some(length) => Layer::sized(&name, length),
                None => Layer::named(&name),
            });
        }
        builder.build()
    }
}

/// Images to begin with: repository, tag, image.
///
/// # Errors
/// None in practice: what is built here parses.
pub fn built_in() -> Result<Vec<(&'static str, &'static str, Image)>, ManifestError> {
    let sources = "ci-op-demo/pipeline";
    let floats = "openshift/ci";
    [
        (sources, "cli", Shape::Oci, "cli-new"),
        (sources, "installer", Shape::Docker, "installer-new"),
        (
            sources,
            "ovn-kubernetes",
            Shape::DockerList,
            "ovn-kubernetes-new",
        ),
        (sources, "machine-os", Shape::Index, "machine-os-new"),
        (sources, "release", Shape::Nested, "release-new"),
        (floats, "ocp_4.21_cli", Shape::Oci, "cli-old"),
        (
            floats,
            "ocp_4.21_ovn-kubernetes",
            Shape::DockerList,
            "ovn-kubernetes-old",
        ),
    ]
    .into_iter()
    .map(|(repository, tag, shape, seed)| {
        Ok((repository, tag, ImageSpec::new(shape, seed).build()?))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_digest_and_another_another() {
        for shape in [
            Shape::Oci,
            Shape::Docker,
            Shape::Index,
            Shape::DockerList,
            Shape::Nested,
        ] {
            let digest = |seed| ImageSpec::new(shape, seed).build().unwrap().digest();
            assert_eq!(digest("a"), digest("a"));
            assert_ne!(digest("a"), digest("b"));
        }
    }

    #[test]
    fn a_large_layer_takes_the_memory_of_one_block() {
        let layer = Layer::sized("big", 64 << 20);
        assert_eq!(layer.blob.length(), 64 << 20);
        let pieces: Vec<Bytes> = layer.blob.read(0..64 << 20).collect();
        assert!(
            pieces
                .iter()
                .all(|piece| piece.as_ptr() == pieces[0].as_ptr())
        );
        assert_ne!(layer.digest(), Layer::sized("other", 64 << 20).digest());
    }
}

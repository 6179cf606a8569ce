//! Images to seed registries with.
//!
//! Enters: a kind, a seed, sizes. Leaves: manifests and blobs in memory. Guaranteed: the same input gives the
//! same bytes and digests; different seeds share no content. Layers are noise, as no part of the system unpacks
//! them.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::ImageKind;

const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];

/// An image, not yet in any registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The media type of [`Self::manifest`].
    pub media_type: &'static str,
    /// The manifest's bytes, which its digest is of.
    pub manifest: Vec<u8>,
    /// Configuration and layers; none for an index.
    pub blobs: Vec<Vec<u8>>,
    /// The manifests an index or list names.
    pub children: Vec<Image>,
}

impl Image {
    /// A small image: two layers of 1 KiB for each architecture.
    pub fn new(kind: ImageKind, seed: &str) -> Self {
        Self::with_layers(kind, seed, 2, 1024)
    }

    /// An image of which each single manifest has `layers` layers of `layer_bytes` bytes.
    pub fn with_layers(kind: ImageKind, seed: &str, layers: usize, layer_bytes: usize) -> Self {
        Self::build(kind, seed, ARCHITECTURES[0], &|image, architecture| {
            single(kind, image, architecture, layers, layer_bytes, &json!({}))
        })
    }

    /// A small image whose configuration has these labels. Quay reads some: `quay.expires-after`.
    pub fn with_labels(kind: ImageKind, seed: &str, labels: &[(&str, &str)]) -> Self {
        let labels: Value = labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), json!(value)))
            .collect::<serde_json::Map<String, Value>>()
            .into();
        Self::build(kind, seed, ARCHITECTURES[0], &|image, architecture| {
            single(kind, image, architecture, 2, 1024, &labels)
        })
    }

    fn build(
        kind: ImageKind,
        seed: &str,
        architecture: &str,
        single: &dyn Fn(&str, &str) -> Self,
    ) -> Self {
        if kind.children().is_empty() {
            return single(seed, architecture);
        }
        let children: Vec<Self> = kind
            .children()
            .iter()
            .zip(ARCHITECTURES)
            .map(|(child, architecture)| {
                Self::build(
                    *child,
                    &format!("{seed}/{architecture}"),
                    architecture,
                    single,
                )
            })
            .collect();
        let manifests: Vec<Value> = children
            .iter()
            .zip(ARCHITECTURES)
            .map(|(child, architecture)| {
                let mut named = descriptor(child.media_type, &child.manifest);
                named["platform"] = json!({ "os": "linux", "architecture": architecture });
                named
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": kind.media_type(),
            "manifests": manifests,
        });
        Self {
            media_type: kind.media_type(),
            manifest: manifest.to_string().into_bytes(),
            blobs: Vec::new(),
            children,
        }
    }

    /// The digest of the topmost manifest.
    pub fn digest(&self) -> String {
        digest_of(&self.manifest)
    }

    /// The digests of all manifests, the topmost first.
    pub fn manifest_digests(&self) -> Vec<String> {
        let below = self.children.iter().flat_map(Self::manifest_digests);
        std::iter::once(self.digest()).chain(below).collect()
    }

    /// The digests of all blobs.
    pub fn blob_digests(&self) -> Vec<String> {
        let own = self.blobs.iter().map(|blob| digest_of(blob));
        own.chain(self.children.iter().flat_map(Self::blob_digests))
            .collect()
    }
}

/// `sha256:` and 64 hexadecimal digits.
pub fn digest_of(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().fold("sha256:".to_owned(), |text, byte| {
        format!("{text}{byte:02x}")
    })
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest_of(bytes), "size": bytes.len() })
}

fn single(
    kind: ImageKind,
    seed: &str,
    architecture: &str,
    layers: usize,
    layer_bytes: usize,
    labels: &Value,
) -> Image {
    let types = kind.single();
    let layers: Vec<Vec<u8>> = (0..layers)
        .map(|layer| noise(&format!("{seed}/{layer}"), layer_bytes))
        .collect();
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest_of(layer)).collect();
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Labels": labels },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": [{ "comment": seed }],
    })
    .to_string()
    .into_bytes();
    let named: Vec<Value> = layers
        .iter()
        .map(|layer| descriptor(types.layer, layer))
        .collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": types.manifest,
        "config": descriptor(types.config, &config),
        "layers": named,
    });
    let mut blobs = vec![config];
    blobs.extend(layers);
    Image {
        media_type: types.manifest,
        manifest: manifest.to_string().into_bytes(),
        blobs,
        children: Vec::new(),
    }
}

/// Bytes that depend on `seed` alone: the hash of the seed and a counter, block after block.
fn noise(seed: &str, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 32);
    let mut block = 0_u64;
    while bytes.len() < length {
        let hash = Sha256::new()
            .chain_update(seed)
            .chain_update(block.to_be_bytes())
            .finalize();
        bytes.extend_from_slice(&hash);
        block += 1;
    }
    bytes.truncate(length);
    bytes
}

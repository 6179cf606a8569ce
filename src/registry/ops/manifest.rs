//! Manifests: checked, and what they reference.
//!
//! A [`Manifest`] has a digest that was computed here and one of the four media types that can be promoted. Guaranteed: the media type in
//! the header and the one in the body agree (if neither is given, the content decides); an index is not an image at the same time.

use std::borrow::Cow;
use std::collections::HashSet;

use bytes::Bytes;
use oci_client::manifest::IMAGE_LAYER_NONDISTRIBUTABLE_MEDIA_TYPE;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::first_of::FirstOf;
use super::media_type::{Shape, is_index, is_supported, media_type, unsupported};
use crate::image::Digest;
use crate::machine::Reason;
use crate::registry::error::{Error, one_line};
use crate::registry::host::limits::Connection;
use crate::registry::host::reserve::{Hold, SMALL_MAX};

/// Manifests below an index.
pub(crate) const CHILDREN_MAX: usize = 1000;
/// A blob of this size is worth a connection of its own: so few are sent in a second that the rate of those connections is none.
const LARGE_BLOB: u64 = 4 * 1024 * 1024;
/// Layers of one image.
pub(crate) const LAYERS_MAX: usize = 1000;
/// Docker's schema 1, signed or not.
const SCHEMA_ONE: &str = "application/vnd.docker.distribution.manifest.v1+";
/// Docker's name for a layer that is fetched from elsewhere.
const FOREIGN_LAYER: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";

/// A manifest as the registry holds it: never re-serialised. Clones are cheap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Computed from `bytes`.
    pub digest: Digest,
    /// One of the four of OCI and docker schema 2.
    pub media_type: String,
    /// Exactly what the registry sent.
    pub bytes: Bytes,
    /// The memory that it takes, where it is large.
    pub(crate) hold: Option<Hold>,
}

/// A blob that a manifest references.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// It is not to be distributed, and the manifest says where it is fetched from: the source need not have it.
    pub(crate) elsewhere: bool,
}

impl Blob {
    /// What its content is sent on.
    pub(crate) fn connection(&self) -> Connection {
        if self.size < LARGE_BLOB {
            Connection::Shared
        } else {
            Connection::Bulk
        }
    }
}

/// What a manifest references: blobs of its own, or other manifests.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) blobs: Vec<Blob>,
    pub(crate) children: Vec<Digest>,
    /// Whether one of the children is said to be an index.
    pub(crate) nested: bool,
}

/// What is read of a descriptor. What else it says costs no memory, however much it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor<'a> {
    #[serde(borrow)]
    pub(crate) media_type: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) digest: Cow<'a, str>,
    pub(crate) size: i64,
    urls: Option<FirstOf<IgnoredAny, 0>>,
}

/// What an image, or an artifact in the shape of one, consists of. Layers are required by the specification and left out by some.
#[derive(Deserialize)]
struct Contents<'a> {
    #[serde(borrow)]
    config: Descriptor<'a>,
    #[serde(borrow)]
    layers: Option<FirstOf<Descriptor<'a>, LAYERS_MAX>>,
}

/// What an index lists.
#[derive(Deserialize)]
struct Index<'a> {
    #[serde(borrow)]
    manifests: FirstOf<Descriptor<'a>, CHILDREN_MAX>,
}

impl Manifest {
    /// Whether it lists other manifests.
    #[must_use]
    pub fn is_index(&self) -> bool {
        is_index(&self.media_type)
    }

    /// Checks `bytes` and what came with them. `named`: the digest it was asked by; `stated`: the one in the header.
    pub(crate) fn read(
        what: &str,
        bytes: Bytes,
        content_type: Option<&str>,
        named: Option<Digest>,
        stated: Option<&str>,
    ) -> Result<Self, Error> {
        let shape = serde_json::from_slice::<Shape>(&bytes);
        // Its digest is that of a part of it where it is signed.
        let first = content_type.is_some_and(|value| value.trim().starts_with(SCHEMA_ONE));
        if first
            || shape
                .as_ref()
                .is_ok_and(|shape| shape.schema_version == Some(1))
        {
            return Err(unsupported(what, "it is of docker schema 1"));
        }
        let digest = Digest::of(&bytes);
        let stated = stated.filter(|stated| stated.starts_with("sha256:"));
        let wrong = named.is_some_and(|named| named != digest)
            || stated.is_some_and(|stated| stated != digest.to_string());
        if wrong {
            let message = format!(
                "{what}: what was received has the digest {}, not the one named",
                digest.short()
            );
            return Err(Error::attempt(Reason::DigestMismatch, message));
        }
        let shape = shape.map_err(|_| unsupported(what, "it is not a JSON manifest"))?;
        let media_type = media_type(what, &shape, content_type)?;
        Ok(Self {
            digest,
            media_type,
            bytes,
            hold: None,
        })
    }

    /// Whether it is held for as short as can be: others wait for the memory that it takes.
    #[must_use]
    pub fn is_large(&self) -> bool {
        self.bytes.len() > SMALL_MAX
    }

    /// The blobs and children it references, each once, in order.
    pub(crate) fn parts(&self, what: &str) -> Result<Parts, Error> {
        let bad =
            |error: serde_json::Error| unsupported(what, &format!("it cannot be read ({error})"));
        let mut parts = Parts::default();
        let mut seen = HashSet::new();
        if self.is_index() {
            let index: Index = serde_json::from_slice(&self.bytes).map_err(bad)?;
            if index.manifests.0.len() > CHILDREN_MAX {
                return Err(unsupported(
                    what,
                    "its index lists more than 1000 manifests",
                ));
            }
            for child in &index.manifests.0 {
                if !is_supported(&child.media_type) {
                    let named = one_line(&child.media_type, 80);
                    return Err(unsupported(
                        what,
                        &format!("it lists a manifest of type '{named}'"),
                    ));
                }
                let digest = digest_of(what, &child.digest)?;
                parts.nested |= is_index(&child.media_type);
                if seen.insert(digest) {
                    parts.children.push(digest);
                }
            }
            return Ok(parts);
        }
        let image: Contents = serde_json::from_slice(&self.bytes).map_err(bad)?;
        let layers = image.layers.as_ref().map_or(&[][..], |layers| &layers.0);
        if layers.len() > LAYERS_MAX {
            let message = format!("{what}: it has more than 1000 layers; make it of fewer");
            return Err(Error::terminal(Reason::TooLarge, message));
        }
        for descriptor in std::iter::once(&image.config).chain(layers) {
            let digest = digest_of(what, &descriptor.digest)?;
            let size = u64::try_from(descriptor.size)
                .map_err(|_| unsupported(what, "it names a blob of negative size"))?;
            if seen.insert(digest) {
                let elsewhere = descriptor.is_elsewhere();
                parts.blobs.push(Blob {
                    digest,
                    size,
                    elsewhere,
                });
            }
        }
        Ok(parts)
    }
}

pub(crate) fn digest_of(what: &str, text: &str) -> Result<Digest, Error> {
    text.parse()
        .map_err(|_| unsupported(what, "it names a digest that is not sha256"))
}

impl Descriptor<'_> {
    /// Whether it is a layer that is not to be distributed, with the places it is fetched from.
    fn is_elsewhere(&self) -> bool {
        let kinds = [IMAGE_LAYER_NONDISTRIBUTABLE_MEDIA_TYPE, FOREIGN_LAYER];
        kinds.iter().any(|kind| self.media_type.starts_with(kind))
            && self.urls.as_ref().is_some_and(|urls| !urls.0.is_empty())
    }
}

#[cfg(test)]
mod tests;

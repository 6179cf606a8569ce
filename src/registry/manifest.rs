//! Manifests: checked, and what they reference.
//!
//! In come bytes and what came with them; out comes a [`Manifest`] whose digest was computed here and whose media type is one of
//! the four that can be promoted. Guaranteed: the media type of the header and the one in the body agree; an index is not an image
//! at the same time.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use oci_client::manifest::{
    IMAGE_LAYER_NONDISTRIBUTABLE_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE,
    IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE,
};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};

use super::error::{Error, one_line};
use crate::image::Digest;
use crate::machine::Reason;

/// Manifests below an index.
pub(super) const CHILDREN_MAX: usize = 1000;
/// Layers of one image.
pub(super) const LAYERS_MAX: usize = 1000;
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
}

/// A blob that a manifest references.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// What a manifest references: blobs of its own, or other manifests.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) blobs: Vec<Blob>,
    pub(super) children: Vec<Digest>,
}

/// What is read of a descriptor. What else it says costs no memory, however much it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor<'a> {
    #[serde(borrow)]
    pub(super) media_type: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) digest: Cow<'a, str>,
    pub(super) size: i64,
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

/// The first `MAX` entries of a list, and one more where there are more.
pub(super) struct FirstOf<T, const MAX: usize>(pub(super) Vec<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for FirstOf<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Entries(PhantomData))
    }
}

struct Entries<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Entries<T, MAX> {
    type Value = FirstOf<T, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while entries.len() <= MAX {
            match seq.next_element()? {
                Some(entry) => entries.push(entry),
                None => return Ok(FirstOf(entries)),
            }
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(FirstOf(entries))
    }
}

/// The fields that tell what a manifest is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<i64>,
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    config: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
}

impl Manifest {
    /// Whether it lists other manifests.
    #[must_use]
    pub fn is_index(&self) -> bool {
        matches!(
            self.media_type.as_str(),
            OCI_IMAGE_INDEX_MEDIA_TYPE | IMAGE_MANIFEST_LIST_MEDIA_TYPE
        )
    }

    /// Checks `bytes` and what came with them. `named`: the digest it was asked by; `stated`: the one in the header.
    pub(super) fn read(
        what: &str,
        bytes: Bytes,
        content_type: Option<&str>,
        named: Option<Digest>,
        stated: Option<&str>,
    ) -> Result<Self, Error> {
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
        let media_type = media_type(what, &bytes, content_type)?;
        Ok(Self {
            digest,
            media_type,
            bytes,
        })
    }

    /// The blobs and children it references, each once, in order. Layers that are not to be distributed are left out.
    pub(super) fn parts(&self, what: &str) -> Result<Parts, Error> {
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
        let layers = layers.iter().filter(|layer| is_distributed(layer));
        for descriptor in std::iter::once(&image.config).chain(layers) {
            let digest = digest_of(what, &descriptor.digest)?;
            let size = u64::try_from(descriptor.size)
                .map_err(|_| unsupported(what, "it names a blob of negative size"))?;
            if seen.insert(digest) {
                parts.blobs.push(Blob { digest, size });
            }
        }
        Ok(parts)
    }
}

pub(super) fn unsupported(what: &str, why: &str) -> Error {
    let message =
        format!("{what} cannot be promoted: {why}; rebuild it as an OCI or docker schema 2 image");
    Error::terminal(Reason::UnsupportedManifest, message)
}

pub(super) fn digest_of(what: &str, text: &str) -> Result<Digest, Error> {
    text.parse()
        .map_err(|_| unsupported(what, "it names a digest that is not sha256"))
}

fn is_supported(media_type: &str) -> bool {
    matches!(
        media_type,
        OCI_IMAGE_INDEX_MEDIA_TYPE
            | IMAGE_MANIFEST_LIST_MEDIA_TYPE
            | OCI_IMAGE_MEDIA_TYPE
            | IMAGE_MANIFEST_MEDIA_TYPE
    )
}

fn is_distributed(layer: &Descriptor<'_>) -> bool {
    !layer
        .media_type
        .starts_with(IMAGE_LAYER_NONDISTRIBUTABLE_MEDIA_TYPE)
        && !layer.media_type.starts_with(FOREIGN_LAYER)
}

/// The media type that header and body agree on.
fn media_type(what: &str, bytes: &[u8], content_type: Option<&str>) -> Result<String, Error> {
    let shape: Shape = serde_json::from_slice(bytes)
        .map_err(|_| unsupported(what, "it is not a JSON manifest"))?;
    if shape.schema_version == Some(1) {
        return Err(unsupported(what, "it is of docker schema 1"));
    }
    let header = content_type
        .and_then(|value| value.split(';').next())
        .map(|value| value.trim().to_ascii_lowercase())
        .filter(|value| {
            !matches!(
                value.as_str(),
                "" | "application/json" | "application/octet-stream" | "text/plain"
            )
        });
    let media_type = match (header, shape.media_type) {
        (Some(header), Some(body)) if header != body => {
            let (header, body) = (one_line(&header, 60), one_line(&body, 60));
            return Err(unsupported(
                what,
                &format!("it is sent as '{header}' and says it is '{body}'"),
            ));
        }
        (Some(media_type), _) | (None, Some(media_type)) => media_type,
        (None, None) => return Err(unsupported(what, "its media type is not told")),
    };
    if !is_supported(&media_type) {
        return Err(unsupported(
            what,
            &format!("its media type is '{}'", one_line(&media_type, 80)),
        ));
    }
    let index = matches!(
        media_type.as_str(),
        OCI_IMAGE_INDEX_MEDIA_TYPE | IMAGE_MANIFEST_LIST_MEDIA_TYPE
    );
    let (lists, holds) = (
        shape.manifests.is_some(),
        shape.config.is_some() || shape.layers.is_some(),
    );
    if lists != index || holds == index {
        return Err(unsupported(what, "its content is not of its media type"));
    }
    Ok(media_type)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn read(body: &str, content_type: Option<&str>) -> Result<Manifest, Error> {
        Manifest::read(
            "x",
            Bytes::copy_from_slice(body.as_bytes()),
            content_type,
            None,
            None,
        )
    }

    fn image(media_type: &str, layers: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{media_type}","config":{{"mediaType":"c","digest":"sha256:{HEX}","size":2}},"layers":[{layers}]}}"#
        )
    }

    #[test]
    fn header_and_body_must_agree_on_the_media_type() {
        let docker = image(IMAGE_MANIFEST_MEDIA_TYPE, "");
        assert_eq!(
            read(&docker, Some(IMAGE_MANIFEST_MEDIA_TYPE))
                .unwrap()
                .media_type,
            IMAGE_MANIFEST_MEDIA_TYPE
        );
        assert_eq!(
            read(&docker, None).unwrap().media_type,
            IMAGE_MANIFEST_MEDIA_TYPE
        );
        assert_eq!(
            read(&docker, Some("application/json; charset=utf-8"))
                .unwrap()
                .media_type,
            IMAGE_MANIFEST_MEDIA_TYPE
        );
        for (body, header) in [
            (docker.as_str(), OCI_IMAGE_MEDIA_TYPE),
            (
                r#"{"schemaVersion":1,"name":"x"}"#,
                "application/vnd.docker.distribution.manifest.v1+prettyjws",
            ),
            (
                r#"{"schemaVersion":2,"manifests":[],"layers":[],"config":{}}"#,
                OCI_IMAGE_INDEX_MEDIA_TYPE,
            ),
            (
                r#"{"schemaVersion":2,"manifests":[]}"#,
                OCI_IMAGE_MEDIA_TYPE,
            ),
            (r#"{"schemaVersion":2}"#, "text/html"),
            ("<html>", "text/html"),
        ] {
            let error = read(body, Some(header)).unwrap_err();
            assert_eq!(error.reason, Reason::UnsupportedManifest, "{body}");
        }
    }

    #[test]
    fn every_digest_is_computed_here() {
        let bytes = Bytes::from(image(OCI_IMAGE_MEDIA_TYPE, ""));
        let own = Digest::of(&bytes).to_string();
        let other = format!("sha256:{HEX}");
        let read = |named: Option<&str>, stated: Option<&str>| {
            let named = named.map(|named| named.parse().unwrap());
            Manifest::read("x", bytes.clone(), None, named, stated)
        };
        assert!(read(Some(&own), Some(&own)).is_ok());
        assert!(read(None, Some("sha512:ab")).is_ok());
        assert_eq!(
            read(Some(&other), None).unwrap_err().reason,
            Reason::DigestMismatch
        );
        assert_eq!(
            read(None, Some(&other)).unwrap_err().reason,
            Reason::DigestMismatch
        );
    }

    #[test]
    fn foreign_layers_and_repeated_blobs_are_left_out() {
        let a = "a".repeat(64);
        let layers = format!(
            r#"{{"mediaType":"l","digest":"sha256:{a}","size":7}},{{"mediaType":"l","digest":"sha256:{a}","size":7}},
            {{"mediaType":"{FOREIGN_LAYER}.gzip","digest":"sha256:{HEX}","size":9,"urls":["http://x/"]}}"#
        );
        let parts = read(&image(IMAGE_MANIFEST_MEDIA_TYPE, &layers), None)
            .unwrap()
            .parts("x")
            .unwrap();
        let sizes: Vec<_> = parts.blobs.iter().map(|blob| blob.size).collect();
        assert_eq!((sizes, parts.children.len()), (vec![2, 7], 0));
    }

    #[test]
    fn a_digest_or_child_of_another_kind_is_refused() {
        let bad = image(
            IMAGE_MANIFEST_MEDIA_TYPE,
            r#"{"mediaType":"l","digest":"sha512:00","size":7}"#,
        );
        assert_eq!(
            read(&bad, None).unwrap().parts("x").unwrap_err().reason,
            Reason::UnsupportedManifest
        );
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/x","digest":"sha256:{HEX}","size":1}}]}}"#
        );
        let index = read(&index, Some(OCI_IMAGE_INDEX_MEDIA_TYPE)).unwrap();
        assert_eq!(
            index.parts("x").unwrap_err().reason,
            Reason::UnsupportedManifest
        );
    }

    /// Values of every kind, where a manifest has one.
    fn values() -> impl Strategy<Value = serde_json::Value> {
        use serde_json::json;
        let known = prop::sample::select(vec![
            json!(null),
            json!(2),
            json!(1),
            json!(-1),
            json!(1e300),
            json!(u64::MAX),
            json!(""),
            json!("x"),
            json!([]),
            json!({}),
            json!(OCI_IMAGE_MEDIA_TYPE),
            json!(OCI_IMAGE_INDEX_MEDIA_TYPE),
            json!(IMAGE_MANIFEST_MEDIA_TYPE),
            json!(format!("sha256:{HEX}")),
            json!(format!("sha512:{HEX}")),
            json!("sha256:\u{202e}"),
        ]);
        let leaf = prop_oneof![4 => known, 1 => "\\PC{0,300}".prop_map(serde_json::Value::String)];
        leaf.prop_recursive(3, 24, 4, |inner| {
            let names = prop::sample::select(vec!["schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "size", "annotations"]);
            let fields = prop::collection::btree_map(names.prop_map(str::to_owned), inner.clone(), 0..8);
            prop_oneof![
                1 => prop::collection::vec(inner, 0..4).prop_map(serde_json::Value::Array),
                3 => fields.prop_map(|fields| serde_json::Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    fn check(bytes: Vec<u8>, content_type: Option<&str>) -> Result<(), TestCaseError> {
        let bytes = Bytes::from(bytes);
        let read = Manifest::read("x", bytes.clone(), content_type, None, None);
        let parts = read
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|manifest| manifest.parts("x"));
        if let Ok(manifest) = &read {
            prop_assert_eq!(
                (manifest.digest, &manifest.bytes),
                (Digest::of(&bytes), &bytes)
            );
            prop_assert!(is_supported(&manifest.media_type));
            let _ = (manifest.config(), manifest.referrers("x"));
        }
        match parts {
            Ok(parts) => prop_assert!(
                parts.blobs.len() <= LAYERS_MAX + 1 && parts.children.len() <= CHILDREN_MAX
            ),
            Err(error) => {
                prop_assert!(
                    matches!(error.reason, Reason::UnsupportedManifest | Reason::TooLarge),
                    "{error:?}"
                );
                prop_assert!(
                    error.message.chars().count() <= 256
                        && !error.message.contains(['\n', '\u{202e}']),
                    "{error}"
                );
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_manifest_or_refused(bytes: Vec<u8>, content_type in prop::option::of("\\PC{0,40}")) {
            check(bytes, content_type.as_deref())?;
        }

        #[test]
        fn any_json_is_a_manifest_or_refused(value in values(), header in 0_usize..4) {
            let header = [None, Some(OCI_IMAGE_MEDIA_TYPE), Some(OCI_IMAGE_INDEX_MEDIA_TYPE), Some(IMAGE_MANIFEST_LIST_MEDIA_TYPE)][header];
            check(value.to_string().into_bytes(), header)?;
        }
    }

    #[test]
    fn a_manifest_of_any_depth_or_length_is_refused() {
        let deep = |open: &str| format!(r#"{{"schemaVersion":2,"config":{}"#, open.repeat(500_000));
        for body in [deep("["), deep(r#"{"a":"#), "[".repeat(4_000_000)] {
            let error = read(&body, Some(OCI_IMAGE_MEDIA_TYPE)).unwrap_err();
            assert_eq!(error.reason, Reason::UnsupportedManifest);
        }
        let entry = |n: usize, media_type: &str| {
            format!(r#"{{"mediaType":"{media_type}","digest":"sha256:{n:064x}","size":1}}"#)
        };
        let list = |count: usize, media_type: &str| {
            let entries: Vec<_> = (0..count).map(|n| entry(n, media_type)).collect();
            entries.join(",")
        };
        for (count, fits) in [(1000, true), (1001, false), (20_000, false)] {
            let body = image(OCI_IMAGE_MEDIA_TYPE, &list(count, "l"));
            let parts = read(&body, None).unwrap().parts("x");
            assert_eq!(
                parts.as_ref().err().map(|e| e.reason),
                (!fits).then_some(Reason::TooLarge)
            );
            assert!(!fits || parts.unwrap().blobs.len() == 1001);
            let body = format!(
                r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
                list(count, OCI_IMAGE_MEDIA_TYPE)
            );
            let parts = read(&body, Some(OCI_IMAGE_INDEX_MEDIA_TYPE))
                .unwrap()
                .parts("x");
            assert_eq!(
                parts.as_ref().err().map(|e| e.reason),
                (!fits).then_some(Reason::UnsupportedManifest)
            );
            assert!(!fits || parts.unwrap().children.len() == 1000);
        }
    }
}

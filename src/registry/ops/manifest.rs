//! Manifests: checked, and what they reference.
//!
//! In come bytes and what came with them; out comes a [`Manifest`] whose digest was computed here and whose media type is one of
//! the four that can be promoted. Guaranteed: the media type of the header and the one in the body agree (where neither tells it,
//! what the body holds does); an index is not an image at the same time.

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
use serde_json::value::RawValue;

use crate::image::Digest;
use crate::machine::Reason;
use crate::registry::error::{Error, one_line};
use crate::registry::host::reserve::{Hold, SMALL_MAX};

/// Manifests below an index.
pub(crate) const CHILDREN_MAX: usize = 1000;
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

/// The first `MAX` entries of a list, and one more where there are more. Some write an empty list as null.
pub(crate) struct FirstOf<T, const MAX: usize>(pub(crate) Vec<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for FirstOf<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Entries(PhantomData))
    }
}

struct Entries<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Entries<T, MAX> {
    type Value = FirstOf<T, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
        Ok(FirstOf(Vec::new()))
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
struct Shape<'a> {
    schema_version: Option<i64>,
    media_type: Option<String>,
    /// Some write a list of nothing as null.
    #[serde(default, borrow, deserialize_with = "there")]
    manifests: Option<&'a RawValue>,
    #[serde(borrow)]
    config: Option<&'a RawValue>,
    #[serde(default)]
    layers: Option<IgnoredAny>,
}

/// What a descriptor, or the first of a list, says that it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Typed<'a> {
    #[serde(borrow)]
    media_type: Option<Cow<'a, str>>,
}

/// A field that is there, also where it is null.
fn there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
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

pub(crate) fn unsupported(what: &str, why: &str) -> Error {
    let message =
        format!("{what} cannot be promoted: {why}; rebuild it as an OCI or docker schema 2 image");
    Error::terminal(Reason::UnsupportedManifest, message)
}

pub(crate) fn digest_of(what: &str, text: &str) -> Result<Digest, Error> {
    text.parse()
        .map_err(|_| unsupported(what, "it names a digest that is not sha256"))
}

fn is_index(media_type: &str) -> bool {
    matches!(
        media_type,
        OCI_IMAGE_INDEX_MEDIA_TYPE | IMAGE_MANIFEST_LIST_MEDIA_TYPE
    )
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

impl Descriptor<'_> {
    /// Whether it is a layer that is not to be distributed, with the places it is fetched from.
    fn is_elsewhere(&self) -> bool {
        let kinds = [IMAGE_LAYER_NONDISTRIBUTABLE_MEDIA_TYPE, FOREIGN_LAYER];
        kinds.iter().any(|kind| self.media_type.starts_with(kind))
            && self.urls.as_ref().is_some_and(|urls| !urls.0.is_empty())
    }
}

impl Shape<'_> {
    /// The media type of what it holds, where nobody tells it: docker's where its config, or the first manifest it lists, is.
    fn media_type(&self) -> Option<&'static str> {
        let is_dockers = |entry: &RawValue| {
            let typed: Option<Typed> = serde_json::from_str(entry.get()).ok();
            let media_type = typed.and_then(|typed| typed.media_type);
            media_type.is_some_and(|media_type| media_type.starts_with("application/vnd.docker."))
        };
        if self.schema_version != Some(2) {
            return None;
        }
        let list = match (self.manifests, self.config) {
            (Some(list), None) => list,
            (Some(list), _) if list.get() != "null" => list,
            (_, Some(config)) if is_dockers(config) => return Some(IMAGE_MANIFEST_MEDIA_TYPE),
            (_, Some(_)) => return Some(OCI_IMAGE_MEDIA_TYPE),
            (None, None) => return None,
        };
        let listed: FirstOf<&RawValue, 0> = serde_json::from_str(list.get()).ok()?;
        Some(if listed.0.first().copied().is_some_and(is_dockers) {
            IMAGE_MANIFEST_LIST_MEDIA_TYPE
        } else {
            OCI_IMAGE_INDEX_MEDIA_TYPE
        })
    }
}

/// The media type that header and body agree on.
fn media_type(what: &str, shape: &Shape<'_>, content_type: Option<&str>) -> Result<String, Error> {
    let header = content_type
        .and_then(|value| value.split(';').next())
        .map(|value| value.trim().to_ascii_lowercase())
        .filter(|value| {
            !matches!(
                value.as_str(),
                "" | "application/json"
                    | "application/octet-stream"
                    | "binary/octet-stream"
                    | "text/plain"
            )
        });
    let body = shape.media_type.clone().filter(|body| !body.is_empty());
    let media_type = match (header, body) {
        (Some(header), Some(body)) if header != body => {
            let (header, body) = (one_line(&header, 60), one_line(&body, 60));
            return Err(unsupported(
                what,
                &format!("it is sent as '{header}' and says it is '{body}'"),
            ));
        }
        (Some(media_type), _) | (None, Some(media_type)) => media_type,
        (None, None) => match shape.media_type() {
            Some(held) => held.to_owned(),
            None => return Err(unsupported(what, "its media type is not told")),
        },
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
    let lists = match shape.manifests.map(RawValue::get) {
        Some("null") => index,
        list => list.is_some(),
    };
    let holds = shape.config.is_some() || shape.layers.is_some();
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
    fn only_a_layer_that_says_where_it_is_fetched_from_may_be_missing() {
        let layer = |n: u32, media_type: &str, urls: &str| {
            let digest = Digest::of(&n.to_be_bytes());
            format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{n}{urls}}}"#)
        };
        let (foreign, urls) = (format!("{FOREIGN_LAYER}.gzip"), r#","urls":["http://x/"]"#);
        let layers = [
            layer(7, "l", ""),
            layer(7, "l", ""),
            layer(8, "l", urls),
            layer(9, &foreign, urls),
            layer(10, &foreign, ""),
            layer(11, &foreign, r#","urls":[]"#),
            layer(12, &foreign, r#","urls":null"#),
            layer(
                13,
                &format!("{IMAGE_LAYER_NONDISTRIBUTABLE_MEDIA_TYPE}+zstd"),
                urls,
            ),
        ];
        let manifest = read(&image(IMAGE_MANIFEST_MEDIA_TYPE, &layers.join(",")), None);
        let parts = manifest.unwrap().parts("x").unwrap();
        let found: Vec<_> = parts
            .blobs
            .iter()
            .map(|blob| (blob.size, blob.elsewhere))
            .collect();
        let wanted = [
            (2, false),
            (7, false),
            (8, false),
            (9, true),
            (10, false),
            (11, false),
            (12, false),
            (13, true),
        ];
        assert_eq!((found, parts.children.len()), (wanted.to_vec(), 0));
    }

    #[test]
    fn docker_schema_1_is_what_it_is_whatever_digest_is_stated() {
        let signed = r#"{"schemaVersion":1,"name":"a","signatures":[]}"#;
        let other = format!("sha256:{HEX}");
        for content_type in [
            Some("application/vnd.docker.distribution.manifest.v1+prettyjws"),
            Some("application/vnd.docker.distribution.manifest.v1+json; charset=utf-8"),
            Some("application/json"),
            None,
        ] {
            let bytes = Bytes::from(signed);
            let named = Some(other.parse().unwrap());
            let error = Manifest::read("x", bytes, content_type, named, Some(&other)).unwrap_err();
            assert_eq!(
                error.reason,
                Reason::UnsupportedManifest,
                "{content_type:?}"
            );
        }
    }

    #[test]
    fn where_nobody_tells_the_media_type_what_is_held_does() {
        let config = |kind: &str| {
            format!(r#""config":{{"mediaType":"{kind}","digest":"sha256:{HEX}","size":2}}"#)
        };
        let docker = config("application/vnd.docker.container.image.v1+json");
        let oci = config("application/vnd.oci.image.config.v1+json");
        let child = |kind: &str| {
            format!(r#""manifests":[{{"mediaType":"{kind}","digest":"sha256:{HEX}","size":1}}]"#)
        };
        for (held, media_type) in [
            (
                format!(r#"{docker},"layers":[]"#),
                IMAGE_MANIFEST_MEDIA_TYPE,
            ),
            (
                format!(r#"{docker},"layers":null,"manifests":null"#),
                IMAGE_MANIFEST_MEDIA_TYPE,
            ),
            (format!(r#"{oci},"layers":[]"#), OCI_IMAGE_MEDIA_TYPE),
            (
                format!(r#"{oci},"layers":[],"mediaType":"""#),
                OCI_IMAGE_MEDIA_TYPE,
            ),
            (
                child(IMAGE_MANIFEST_MEDIA_TYPE),
                IMAGE_MANIFEST_LIST_MEDIA_TYPE,
            ),
            (child(OCI_IMAGE_MEDIA_TYPE), OCI_IMAGE_INDEX_MEDIA_TYPE),
            (r#""manifests":null"#.to_owned(), OCI_IMAGE_INDEX_MEDIA_TYPE),
        ] {
            let body = format!(r#"{{"schemaVersion":2,{held}}}"#);
            for header in [
                None,
                Some("application/json; charset=utf-8"),
                Some("binary/octet-stream"),
            ] {
                let manifest = read(&body, header).unwrap();
                assert_eq!(manifest.media_type, media_type, "{body}");
                assert_eq!(manifest.bytes, body, "to the byte");
                assert!(manifest.parts("x").is_ok(), "{body}");
            }
        }
        for nothing in [
            r#"{"schemaVersion":2}"#,
            r#"{"config":{},"layers":[]}"#,
            "[]",
        ] {
            let error = read(nothing, Some("application/json")).unwrap_err();
            assert_eq!(error.reason, Reason::UnsupportedManifest, "{nothing}");
        }
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

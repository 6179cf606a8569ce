#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE,
};

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
        let names = prop::sample::select(vec![
            "schemaVersion",
            "mediaType",
            "config",
            "layers",
            "manifests",
            "digest",
            "size",
            "annotations",
        ]);
        let fields =
            prop::collection::btree_map(names.prop_map(str::to_owned), inner.clone(), 0..8);
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
                error.message.chars().count() <= 256 && !error.message.contains(['\n', '\u{202e}']),
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

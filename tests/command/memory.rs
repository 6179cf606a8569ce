//! Sources that say very much: what `promote` takes for it.

use serde_json::json;

use super::sources::{Case, MEMORY_MAX, all};
use crate::testbed::scripted::{INDEX, Image, OCI, Say, answer, digest, head};

const MIB: usize = 1024 * 1024;
/// With 32 MiB of manifests, the most that is kept of them, 64 MiB of one index, and eight more on their way.
const MANY_MAX: u64 = 192 * 1024 * 1024;

fn is_manifest(head: &str) -> bool {
    head.contains("/manifests/")
}

fn endless(media_type: &str) -> Say {
    Say::Endless(
        head(200, &[("content-type", media_type)]),
        vec![b'['; 64 * 1024],
    )
}

/// A manifest of almost 4 MiB, made of `entry` within `outside`.
fn filled(outside: [&str; 2], entry: &str) -> Vec<u8> {
    filled_to(4 * MIB, outside, entry)
}

fn filled_to(length: usize, outside: [&str; 2], entry: &str) -> Vec<u8> {
    let room = length - outside[0].len() - outside[1].len() - 1;
    let inside = vec![entry; room / (entry.len() + 1)].join(",");
    format!("{}{inside}{}", outside[0], outside[1]).into_bytes()
}

fn entries(count: usize, media_type: &str) -> String {
    let entry =
        |n| format!(r#"{{"mediaType":"{media_type}","digest":"sha256:{n:064x}","size":1}}"#);
    (0..count).map(entry).collect::<Vec<_>>().join(",")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_registry_says_without_end_is_read_within_64_mib() {
    let image = || Image::new("new");
    let made = |manifest: Vec<u8>| Image {
        manifest,
        ..Image::new("new")
    };
    let nothing = |_: &Image, _: &str| None;
    let (config, layer) = (
        String::from_utf8(
            serde_json::to_vec(&crate::testbed::scripted::descriptor(
                "application/vnd.oci.image.config.v1+json",
                &image().config,
            ))
            .unwrap(),
        )
        .unwrap(),
        Image::layer(&image().layer).to_string(),
    );
    let annotated = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI}","config":{config},"layers":[{layer}],"annotations":{{"x":["#
    );
    let index = format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":["#);
    let layered =
        format!(r#"{{"schemaVersion":2,"mediaType":"{OCI}","config":{config},"layers":["#);
    let entry = format!(
        r#"{{"mediaType":"{INDEX}","digest":"{}","size":0,"annotations":{{"":""}}}}"#,
        digest(b"x")
    );
    let cases = vec![
        Case::new("a manifest without end", image(), "TooLarge", |_, head| {
            is_manifest(head).then(|| endless(OCI))
        }),
        Case::new("a length of 10 TiB", image(), "TooLarge", |_, asked| {
            let length = (10_u64 << 40).to_string();
            is_manifest(asked).then(|| {
                Say::Endless(
                    head(200, &[("content-type", OCI), ("content-length", &length)]),
                    vec![b'['; 64 * 1024],
                )
            })
        }),
        Case::new("a 404 without end", image(), "RegistryError", |_, asked| {
            is_manifest(asked).then(|| Say::Endless(head(404, &[]), vec![b'['; 64 * 1024]))
        }),
        Case::new(
            "annotations of 1 MiB in small pieces",
            made(filled_to(MIB, [&annotated, "]}}"], r#"{"a":0}"#)),
            "Promoted",
            nothing,
        ),
        Case::new(
            "an index of 100,000 manifests",
            made(format!("{index}{}]}}", entries(100_000, OCI)).into_bytes()),
            "TooLarge",
            nothing,
        ),
        Case::new(
            "an index of 25,000 manifests",
            made(format!("{index}{}]}}", entries(25_000, OCI)).into_bytes()),
            "UnsupportedManifest",
            nothing,
        ),
        Case::new(
            "an index with as many annotations as fit",
            made(filled([&index, "]}"], &entry)),
            "UnsupportedManifest",
            nothing,
        ),
        Case::new(
            "a manifest of 10,000 layers",
            made(format!("{layered}{}]}}", entries(10_000, "l")).into_bytes()),
            "TooLarge",
            nothing,
        ),
        Case::new(
            "as many layers as fit",
            made(filled(
                [&layered, "]}"],
                r#"{"mediaType":"","digest":"","size":0}"#,
            )),
            "TooLarge",
            nothing,
        ),
        Case::new(
            "nothing but brackets",
            made(vec![b'['; 4 * MIB]),
            "UnsupportedManifest",
            nothing,
        ),
        Case::new(
            "referrers without end",
            image(),
            "ReferrersFailed",
            |_, head| head.contains("/referrers/").then(|| endless(INDEX)),
        )
        .with(json!({"referrers": "Require"})),
        Case::new(
            "referrers of 4 MiB in small pieces",
            image(),
            "ReferrersFailed",
            move |_, head| {
                head.contains("/referrers/").then(|| {
                    answer(
                        200,
                        &[("content-type", INDEX)],
                        filled([r#"{"schemaVersion":2,"manifests":["#, "]}"], r#"{"a":0}"#),
                    )
                })
            },
        )
        .with(json!({"referrers": "Require"})),
        Case::new(
            "referrers on pages without end",
            image(),
            "ReferrersFailed",
            |_, head| {
                head.contains("/referrers/").then(|| {
                    answer(
                        200,
                        &[("link", "</v2/src/x/referrers/next>; rel=\"next\"")],
                        br#"{"manifests":[]}"#,
                    )
                })
            },
        )
        .with(json!({"referrers": "Require"})),
        Case::new(
            "referrers that go on elsewhere",
            image(),
            "ReferrersFailed",
            |_, head| {
                head.contains("/referrers/").then(|| {
                    answer(
                        200,
                        &[("link", "<http://localhost:1/x>; rel=\"next\"")],
                        br#"{"manifests":[]}"#,
                    )
                })
            },
        )
        .with(json!({"referrers": "Require"})),
    ];
    all(cases, MEMORY_MAX).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manifests_of_an_index_are_given_up_when_they_are_more_than_64_mib() {
    // A hundred of almost 4 MiB each.
    let child = |n: usize| {
        let image = Image::new("new").with(|manifest| manifest["n"] = json!(n));
        let mut bytes = image.manifest;
        bytes.resize(4 * MIB - 1, b' ');
        bytes
    };
    let children: Vec<_> = (0..100)
        .map(|n| crate::testbed::scripted::descriptor(OCI, &child(n)))
        .collect();
    let numbers: std::collections::HashMap<String, usize> = children
        .iter()
        .enumerate()
        .map(|(n, child)| (child["digest"].as_str().unwrap().to_owned(), n))
        .collect();
    let top = Image::new("new").with(|manifest| {
        *manifest = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": children});
    });
    let case = Case::new("400 MiB of manifests", top, "TooLarge", move |_, head| {
        let asked = head.split(' ').nth(1)?.rsplit('/').next()?;
        let number = numbers.get(asked)?;
        Some(answer(200, &[("content-type", OCI)], child(*number)))
    });
    all(vec![case], MANY_MAX).await;
}

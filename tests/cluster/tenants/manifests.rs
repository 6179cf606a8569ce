//! Images whose manifests are as large as manifests may be.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;

use super::cores::elsewhere;
use super::{Tenants, within_memory};
use crate::testbed::scripted::{
    INDEX, Image, OCI, Say, Scripted, answer, descriptor, digest, unknown,
};
use crate::testbed::stage::{phase, spec};

const CHILDREN: usize = 14;
const IMAGES: usize = 64;

/// A registry of images, each an index of fourteen manifests of almost 4 MiB, itself of as much.
async fn heavy() -> (Scripted, Vec<String>) {
    let filled = |seed: String| {
        let mut bytes = Image::new("new").with(|manifest| manifest["n"] = json!(seed));
        bytes.manifest.resize(4 * 1024 * 1024 - 1, b' ');
        bytes.manifest
    };
    let children: HashMap<String, Vec<u8>> = (0..CHILDREN)
        .map(|n| filled(format!("child {n}")))
        .map(|bytes| (digest(&bytes), bytes))
        .collect();
    let listed: Vec<_> = children
        .values()
        .map(|child| descriptor(OCI, child))
        .collect();
    // The first is as large itself.
    let indexes: HashMap<String, Vec<u8>> = (0..IMAGES)
        .map(|n| {
            let index =
                json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": listed, "n": n});
            let mut bytes = index.to_string().into_bytes();
            if n % 8 == 0 {
                bytes.resize(4 * 1024 * 1024 - 1, b' ');
            }
            (digest(&bytes), bytes)
        })
        .collect();
    let names = indexes.keys().cloned().collect();
    let server = Scripted::start(move |head| {
        let path = head.split(' ').nth(1).unwrap();
        let asked = path.rsplit('/').next().unwrap();
        let found = |media_type: &str, bytes: &Vec<u8>| -> Say {
            let body: &[u8] = if head.starts_with("HEAD") { b"" } else { bytes };
            answer(200, &[("content-type", media_type)], body)
        };
        match (indexes.get(asked), children.get(asked)) {
            (Some(index), _) => found(INDEX, index),
            (_, Some(child)) => found(OCI, child),
            _ if path == "/v2/" => answer(200, &[], b""),
            _ => unknown(),
        }
    })
    .await;
    (server, names)
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_and_copies_of_64_images_with_56_mib_of_manifests_each_stay_within_the_memory() {
    let tenants = Tenants::new().await;
    let (server, names) = elsewhere(heavy()).await;
    let (from, to) = (server.host(), tenants.registry.host());
    let controller = tenants.controller(&[&from], &["--registry-qps=0"]);
    let alone = tenants.alone().await;
    for (name, mode) in [("plan", "Plan"), ("copy", "Promote")] {
        let pairs: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(n, digest)| {
                (
                    format!("{from}/x@{digest}"),
                    format!("{to}/evil:{name}-{n}"),
                )
            })
            .collect();
        let pairs: Vec<_> = pairs.iter().map(|(a, b)| (&**a, &**b)).collect();
        let mut request = spec(&pairs);
        request["mode"] = json!(mode);
        tenants.evil.create(name, &request).await;
    }
    // Until many of the manifests were read.
    let read = || {
        server
            .heads()
            .iter()
            .filter(|head| head.starts_with("GET"))
            .count()
    };
    let begun = std::time::Instant::now();
    while read() < 200 && begun.elapsed() < Duration::from_secs(30) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tenants.beside("S1", alone).await;
    within_memory("S1", &controller);
    assert!(read() >= 100, "{} manifests were read", read());
    let plan = tenants.evil.get("plan").await;
    assert_ne!(phase(&plan), "Failed", "{:?}", plan.status);
}

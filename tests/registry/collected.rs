//! What was collected while the registry's caches still show it: by digest its answers are not believed, by tag they are.

use std::time::Duration;

use promotion_controller::machine::Reason;
use promotion_controller::registry::{Credential, Error, Manifest, Progress, Put, RegistryClient};
use quaylike::{AuthMode, Matcher, Registry, RequestKind, Shape};

use crate::testbed::client::{client, credential, guarded, open, put, repository, seeded, tag};

const LONG: Duration = Duration::from_mins(5);
const NONE: fn() -> Credential = Credential::anonymous;

/// A registry that answers by digest what it had within five minutes, and takes indexes without their children where `sparse`.
async fn cached(sparse: bool) -> Registry {
    let host = open().await;
    host.update(|settings| {
        (settings.stale_manifests, settings.stale_blobs) = (LONG, LONG);
        (settings.sparse, settings.audit) = (sparse, true);
    });
    host
}

async fn copy(
    client: &RegistryClient,
    from: &Registry,
    manifest: &Manifest,
    to: &Registry,
) -> Result<(), Error> {
    let (source, target) = (repository(from, "src/a"), repository(to, "team/a"));
    let (none, progress) = (NONE(), Progress::default());
    client
        .copy(none.at(&source), manifest, none.at(&target), &progress)
        .await
}

/// Copies and sets the tag, as often as an image is tried; how often that took.
async fn promote(
    client: &RegistryClient,
    from: &Registry,
    manifest: &Manifest,
    to: &Registry,
) -> u32 {
    for attempt in 1..=5 {
        match copy(client, from, manifest, to).await {
            Ok(()) => {}
            Err(error) => {
                assert_eq!(error.reason, Reason::ManifestRejected, "{error}");
                continue;
            }
        }
        match put(client, to, "team/a", "x", manifest).await {
            Put::Written => return attempt,
            Put::ContentMissing(_) => {}
            other => panic!("{other:?}"),
        }
    }
    panic!("never written");
}

/// Reads every blob and manifest of the target by digest, as one who pulls it does: that fills the registry's caches.
async fn pull(to: &Registry, manifest: &Manifest) {
    let http = crate::testbed::http_builder().build().unwrap();
    let mut work = vec![manifest.digest.to_string()];
    while let Some(digest) = work.pop() {
        let url = format!("{}/v2/team/a/manifests/{digest}", to.url());
        let body = http.get(url).send().await.unwrap().bytes().await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let named = |field: &str| {
            let list = body[field].as_array().cloned().unwrap_or_default();
            let digests = list
                .into_iter()
                .map(|d| d["digest"].as_str().unwrap().to_owned());
            digests.collect::<Vec<_>>()
        };
        work.extend(named("manifests"));
        let config = body["config"]["digest"].as_str().map(str::to_owned);
        for blob in named("layers").into_iter().chain(config) {
            let url = format!("{}/v2/team/a/blobs/{blob}", to.url());
            let status = http.head(url).send().await.unwrap().status();
            assert!(status.is_success(), "{blob}: {status}");
        }
    }
}

#[tokio::test]
async fn what_only_a_cache_still_shows_is_brought_again() {
    for sparse in [false, true] {
        for shape in [Shape::Oci, Shape::Index, Shape::Nested] {
            let (from, to) = (open().await, cached(sparse).await);
            let first = client(&[&from, &to]);
            let manifest = seeded(&from, &first, "src/a", shape, &NONE()).await;
            assert_eq!(promote(&first, &from, &manifest, &to).await, 1);
            pull(&to, &manifest).await;
            // One process remembers what it brought, another asks for it: neither may be misled.
            for client in [first, client(&[&from, &to])] {
                to.delete_tag("team/a", "x").unwrap();
                to.reset_log();
                let attempts = promote(&client, &from, &manifest, &to).await;
                // The blobs of a child are brought anew at once; those of the image itself by the next attempt.
                let wanted = if shape == Shape::Oci { 2 } else { 1 };
                assert_eq!(attempts, wanted, "{shape:?}, sparse: {sparse}");
                assert!(to.dangling().is_empty(), "{shape:?}: {:?}", to.dangling());
                assert_eq!(to.audit_trail(), [], "{shape:?}");
                let heads = Matcher::kind(RequestKind::Manifest).method("HEAD");
                assert_eq!(to.count(&heads), 0, "a child is put, not asked for");
            }
        }
    }
}

#[tokio::test]
async fn what_is_missed_though_it_was_mounted_is_uploaded() {
    let host = open().await;
    let client = client(&[&host]);
    let manifest = seeded(&host, &client, "src/a", Shape::Oci, &NONE()).await;
    let (source, target) = (repository(&host, "src/a"), repository(&host, "team/a"));
    let (none, progress) = (NONE(), Progress::default());
    let copy = || client.copy(none.at(&source), &manifest, none.at(&target), &progress);
    copy().await.unwrap();
    let upload = |method: &str| Matcher::kind(RequestKind::Upload).method(method);
    assert_eq!(host.count(&upload("PUT")), 0, "mounted");
    let body: serde_json::Value = serde_json::from_slice(&manifest.bytes).unwrap();
    let layer = body["layers"][0]["digest"].as_str().unwrap();
    assert!(host.lose_blob("team/a", layer.parse().unwrap()));
    let lost = put(&client, &host, "team/a", "x", &manifest).await;
    assert!(matches!(lost, Put::ContentMissing(_)), "{lost:?}");
    // Forgetting what is there does not make it believed again.
    client.forget(&target);
    host.reset_log();
    copy().await.unwrap();
    assert_eq!(host.count(&upload("PUT")), 3);
    assert_eq!(
        host.count(&Matcher::kind(RequestKind::Blob).method("HEAD")),
        0
    );
    let written = put(&client, &host, "team/a", "x", &manifest).await;
    assert!(matches!(written, Put::Written), "{written:?}");
}

#[tokio::test]
async fn an_index_within_its_repository_is_not_put_without_its_children_where_a_registry_would_take_it()
 {
    for sparse in [false, true] {
        let host = guarded(AuthMode::Bearer).await;
        host.update(|settings| (settings.sparse, settings.stale_manifests) = (sparse, LONG));
        let (client, bot) = (client(&[&host]), credential(&host, "bot"));
        let manifest = seeded(&host, &client, "team/a", Shape::Index, &bot).await;
        let (repository, progress) = (repository(&host, "team/a"), Progress::default());
        let held = || client.get_cached(&repository, manifest.digest, &bot, &progress);
        let copy = || {
            client.copy(
                bot.at(&repository),
                &manifest,
                bot.at(&repository),
                &progress,
            )
        };
        assert_eq!(held().await.unwrap(), Some(manifest.clone()));
        copy().await.unwrap();
        let children = Matcher::put_manifest().tag(false);
        assert_eq!(host.count(&children), if sparse { 4 } else { 0 });
        let body: serde_json::Value = serde_json::from_slice(&manifest.bytes).unwrap();
        let child = body["manifests"][0]["digest"].as_str().unwrap();
        assert!(host.lose_manifest("team/a", child.parse().unwrap()));
        // The registry answers reads of all of them from its cache still.
        let found = held().await.unwrap();
        assert_eq!(found.is_none(), sparse, "else its PUT tells");
        assert_eq!(copy().await.is_err(), sparse);
        let put = client
            .put_tag(&repository, &tag("x"), &manifest, &bot, || true, &progress)
            .await;
        assert_eq!(matches!(put, Put::ContentMissing(_)), !sparse, "{put:?}");
        let pings = Matcher::kind(RequestKind::Ping);
        assert!(host.count(&pings) <= 2, "remembered");
    }
}

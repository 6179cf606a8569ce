//! The registry layer against CNCF distribution, the real binary. Sources come from the embedded registry.

use std::time::Duration;

use promotion_controller::image::Repository;
use promotion_controller::registry::{Credential, Progress, Put, RegistryClient};
use quaylike::{ImageSpec, Registry, Shape};

use crate::testbed::client::{client_with, fetched, open, repository, seeded, settings, tag};
use crate::testbed::{Distribution, DistributionOptions};

async fn distribution() -> Distribution {
    Distribution::start(DistributionOptions::default())
        .await
        .unwrap()
}

fn client_beside(to: &Distribution, hosts: &[&Registry]) -> RegistryClient {
    let mut settings = settings(hosts);
    settings.plain_http.push(to.host());
    settings.put_timeout = Duration::from_secs(5);
    client_with(settings)
}

fn place(to: &Distribution, path: &str) -> Repository {
    format!("{}/{path}", to.host()).parse().unwrap()
}

#[tokio::test]
async fn every_shape_goes_to_distribution_and_on_to_its_other_repositories() {
    let (from, to) = (open().await, distribution().await);
    let client = client_beside(&to, &[&from]);
    let (none, progress) = (Credential::anonymous(), Progress::default());
    for shape in [
        Shape::Oci,
        Shape::Docker,
        Shape::Index,
        Shape::DockerList,
        Shape::Nested,
    ] {
        let mut spec = ImageSpec::new(shape, &format!("{shape:?}"));
        spec.layer_bytes = Some(300_000);
        from.seed_spec("src/a", "seed", &spec).unwrap();
        let manifest = fetched(&from, &client, "src/a", &none).await;
        let (source, first, second) = (
            repository(&from, "src/a"),
            place(&to, "team/a"),
            place(&to, "team/b"),
        );
        let before = progress.bytes();
        client
            .copy(none.at(&source), &manifest, none.at(&first), &progress)
            .await
            .unwrap();
        assert!(progress.bytes() > before);
        let put = client
            .put_tag(&first, &tag("x"), &manifest, &none, || true, &progress)
            .await;
        assert!(matches!(put, Put::Written), "{shape:?} {put:?}");
        assert_eq!(
            client
                .get_authoritative(&first, &tag("x"), &none, &progress)
                .await
                .unwrap()
                .unwrap(),
            manifest
        );
        let before = progress.bytes();
        client
            .copy(none.at(&first), &manifest, none.at(&second), &progress)
            .await
            .unwrap();
        assert_eq!(progress.bytes(), before, "mounted, not streamed");
        let put = client
            .put_tag(&second, &tag("x"), &manifest, &none, || true, &progress)
            .await;
        assert!(matches!(put, Put::Written), "{shape:?} {put:?}");
    }
    let absent = client
        .get_authoritative(&place(&to, "team/a"), &tag("y"), &none, &progress)
        .await
        .unwrap();
    assert_eq!(absent, None);
    let absent = client
        .get_authoritative(&place(&to, "team/new"), &tag("y"), &none, &progress)
        .await
        .unwrap();
    assert_eq!(absent, None);
}

#[tokio::test]
async fn distribution_says_that_content_is_missing() {
    let (from, to) = (open().await, distribution().await);
    let client = client_beside(&to, &[&from]);
    let (none, progress) = (Credential::anonymous(), Progress::default());
    for shape in [Shape::Docker, Shape::Index] {
        let manifest = seeded(&from, &client, "src/a", shape, &none).await;
        let put = client
            .put_tag(
                &place(&to, "team/a"),
                &tag("x"),
                &manifest,
                &none,
                || true,
                &progress,
            )
            .await;
        assert!(matches!(put, Put::ContentMissing(_)), "{shape:?} {put:?}");
    }
    client
        .may_push(&place(&to, "team/a"), &none, &progress)
        .await
        .unwrap();
}

#[tokio::test]
async fn distribution_deletes_a_tag_alone_and_keeps_what_other_tags_hold() {
    let (from, to) = (open().await, distribution().await);
    let client = client_beside(&to, &[&from]);
    let (none, progress) = (Credential::anonymous(), Progress::default());
    let manifest = seeded(&from, &client, "src/a", Shape::Index, &none).await;
    let (source, team) = (repository(&from, "src/a"), place(&to, "team/a"));
    client
        .copy(none.at(&source), &manifest, none.at(&team), &progress)
        .await
        .unwrap();
    for name in ["x", "x_incoming"] {
        let tag = tag(name);
        let put = client.put_tag(&team, &tag, &manifest, &none, || true, &progress);
        assert!(matches!(put.await, Put::Written));
    }
    let undeletable = client.undeletable(&team, &none, || true, &progress);
    assert_eq!(undeletable.await.unwrap(), None);
    // A tag that is gone already is none the less gone.
    for _ in 0..2 {
        let incoming = tag("x_incoming");
        let deletion = client.delete_tag(&team, &incoming, &none, || true, &progress);
        assert!(matches!(deletion.await, Put::Written));
    }
    let look = async |name: &str| {
        let tag = tag(name);
        let look = client.get_authoritative(&team, &tag, &none, &progress);
        look.await.unwrap()
    };
    assert_eq!(look("x_incoming").await, None);
    assert_eq!(look("x").await, Some(manifest));
}

//! What other registries than quay answer, and quay on a bad day: each answer comes to what it means.

use std::sync::atomic::{AtomicUsize, Ordering};

use promotion_controller::image::{Digest, Reference};
use promotion_controller::machine::Reason;
use promotion_controller::registry::{
    Class, Credential, Error, Manifest, Progress, Put, RegistryClient, Settings,
};
use quaylike::{Action, Dialect, ImageBuilder, Layer, Matcher, Registry, RequestKind, Rule, Shape};

use crate::testbed::PATIENCE;
use crate::testbed::client::{
    by_tag, client, client_with, fetched, open, put, repository, seeded, settings, tag,
};
use crate::testbed::scripted::{self, Image, Scripted, answer};

const QUIET: fn() -> Credential = Credential::anonymous;

fn upload(method: &str) -> Matcher {
    Matcher::kind(RequestKind::Upload).method(method)
}

fn said(status: u16, code: &str, message: &str) -> Action {
    Action::Status {
        status,
        code: Some(code.into()),
        message: Some(message.into()),
        detail: None,
        body: None,
        retry_after: None,
    }
}

/// Copies `src/a` to `team/a`, within ten seconds.
async fn copied(
    client: &RegistryClient,
    from: &Registry,
    manifest: &Manifest,
    to: &Registry,
) -> Result<(), Error> {
    let (source, target) = (repository(from, "src/a"), repository(to, "team/a"));
    let (none, progress) = (QUIET(), Progress::default());
    let copying = client.copy(none.at(&source), manifest, none.at(&target), &progress);
    let copied = tokio::time::timeout(PATIENCE, copying).await;
    copied.unwrap_or_else(|_| panic!("waited: {:?}", progress.waiting()))
}

#[tokio::test]
async fn what_harbor_has_not_is_absent_and_what_a_page_says_is_not() {
    let host = open().await;
    host.update(|switches| switches.dialect = Dialect::Harbor);
    let client = client(&[&host]);
    let (target, progress) = (repository(&host, "team/a"), Progress::default());
    for name in ["x", "y"] {
        let found = client
            .get_authoritative(&target, &tag(name), &QUIET(), &progress)
            .await;
        assert_eq!(found.unwrap(), None);
        // The repository is there, the artifact is not.
        let manifest = seeded(&host, &client, "team/a", Shape::Oci, &QUIET()).await;
        assert!(matches!(
            put(&client, &host, "team/a", "x", &manifest).await,
            Put::Written
        ));
    }
    for action in [
        said(404, "NOT_FOUND", "page not found"),
        said(404, "UNKNOWN", "artifact team/a:z not found"),
        Action::page(404),
        Action::Status {
            status: 404,
            code: None,
            message: None,
            detail: None,
            body: Some("artifact team/a:z not found".into()),
            retry_after: None,
        },
    ] {
        host.clear_rules();
        host.add_rule(Rule::new(
            Matcher::kind(RequestKind::Manifest),
            action.clone(),
        ));
        let error = client
            .get_authoritative(&target, &tag("z"), &QUIET(), &progress)
            .await;
        let error = error.unwrap_err();
        assert_eq!(
            (error.reason, error.class),
            (Reason::RegistryError, Class::Attempt),
            "{action:?}"
        );
    }
}

#[tokio::test]
async fn a_tag_that_must_not_move_is_told_in_every_dialect() {
    for dialect in [
        Dialect::Quay,
        Dialect::Distribution,
        Dialect::Harbor,
        Dialect::Ecr,
    ] {
        let host = open().await;
        host.update(|switches| switches.dialect = dialect);
        let client = client(&[&host]);
        let manifest = seeded(&host, &client, "team/a", Shape::Oci, &QUIET()).await;
        host.add_rule(Rule::new(Matcher::put_manifest(), Action::ImmutableTag));
        assert!(matches!(
            put(&client, &host, "team/a", "new", &manifest).await,
            Put::Written
        ));
        let Put::Immutable(error) = put(&client, &host, "team/a", "seed", &manifest).await else {
            panic!("{dialect:?}");
        };
        assert_eq!(
            (error.reason, error.class),
            (Reason::TagImmutable, Class::Terminal),
            "{dialect:?}: {error}"
        );
    }
}

#[tokio::test]
async fn a_413_is_an_attempt_unless_the_registry_itself_says_that_it_is_too_large() {
    for (action, wanted) in [
        (Action::page(413), (Reason::RegistryError, Class::Attempt)),
        (
            said(413, "SIZE_INVALID", "Uploaded blob is larger than allowed"),
            (Reason::TooLarge, Class::Terminal),
        ),
    ] {
        let (from, to) = (open().await, open().await);
        let client = client(&[&from, &to]);
        let manifest = seeded(&from, &client, "src/a", Shape::Oci, &QUIET()).await;
        to.add_rule(Rule::new(upload("PUT"), action).times(1));
        let error = copied(&client, &from, &manifest, &to).await.unwrap_err();
        assert_eq!((error.reason, error.class), wanted, "{error}");
        copied(&client, &from, &manifest, &to).await.unwrap();
        assert!(matches!(
            put(&client, &to, "team/a", "x", &manifest).await,
            Put::Written
        ));
    }
}

#[tokio::test]
async fn a_blob_at_which_the_registry_fails_is_sent_once_in_an_attempt() {
    let (from, to) = (open().await, open().await);
    let client = client(&[&from, &to]);
    let image = ImageBuilder::oci("x").layer(Layer::named("x")).build();
    from.seed_image("src/a", "seed", &image.unwrap()).unwrap();
    let manifest = fetched(&from, &client, "src/a", &QUIET()).await;
    let layer = Layer::named("x").digest().to_string();
    to.add_rule(Rule::new(
        upload("PUT").reference(&layer),
        Action::error(500, "UNKNOWN"),
    ));
    for n in 1..=3 {
        let error = copied(&client, &from, &manifest, &to).await.unwrap_err();
        assert_eq!(
            (error.reason, error.class),
            (Reason::RegistryError, Class::Attempt),
            "{error}"
        );
        assert_eq!(to.count(&upload("PUT").reference(&layer)), n, "{error}");
    }
}

#[tokio::test]
async fn writes_that_are_redirected_within_the_registry_are_sent_again_there() {
    let (from, to) = (open().await, open().await);
    let client = client(&[&from, &to]);
    let manifest = seeded(&from, &client, "src/a", Shape::Index, &QUIET()).await;
    let writes = Matcher {
        write: Some(true),
        ..Matcher::default()
    };
    to.add_rule(Rule::new(writes, Action::RedirectWrite));
    let (target, progress) = (repository(&to, "team/a"), Progress::default());
    client.may_push(&target, &QUIET(), &progress).await.unwrap();
    copied(&client, &from, &manifest, &to).await.unwrap();
    let asked = AtomicUsize::new(0);
    let gate = || {
        asked.fetch_add(1, Ordering::Relaxed);
        true
    };
    let none = QUIET();
    let name = tag("x");
    let putting = client.put_tag(&target, &name, &manifest, &none, gate, &progress);
    assert!(matches!(putting.await, Put::Written));
    assert_eq!(asked.load(Ordering::Relaxed), 2, "before every sending");
    assert_eq!(
        to.tag("team/a", "x").unwrap().to_string(),
        manifest.digest.to_string()
    );
    let mount = repository(&to, "team/b");
    client
        .copy(none.at(&target), &manifest, none.at(&mount), &progress)
        .await
        .unwrap();
    assert_eq!(to.dangling().len(), 0);
}

#[tokio::test]
async fn a_write_is_followed_to_no_other_address_nor_to_another_tag() {
    let from = open().await;
    let elsewhere = Scripted::start(|_| answer(201, &[], "")).await;
    let away = format!("http://{}", elsewhere.host());
    for (post, put, to) in [
        (307, 200, away.clone()),
        (308, 200, away.clone()),
        (200, 307, away.clone()),
        (200, 308, away.clone()),
        (200, 307, "/v2/team/a/manifests/other".into()),
        (307, 200, "/v2/team/a/manifests/other".into()),
        (307, 200, "/v2/team/a/blobs/uploads/".into()),
    ] {
        let next = to.clone();
        let host = Scripted::start(move |head| {
            let path = head.split(' ').nth(1).unwrap();
            let again = if next.starts_with("http") {
                format!("{next}{path}")
            } else {
                next.clone()
            };
            let said = |status| match status {
                200 => answer(202, &[("location", "/v2/team/a/blobs/uploads/1")], ""),
                status => answer(status, &[("location", &again)], ""),
            };
            match head.split(' ').next().unwrap() {
                "GET" => answer(200, &[], ""),
                "POST" => said(post),
                "PUT" => said(put),
                _ => answer(404, &[], ""),
            }
        })
        .await;
        let mut settings = settings(&[&from]);
        settings.plain_http.extend([host.host(), elsewhere.host()]);
        let client = client_with(settings);
        let manifest = seeded(&from, &client, "src/a", Shape::Oci, &QUIET()).await;
        let target = format!("{}/team/a", host.host()).parse().unwrap();
        let (source, none, progress) = (repository(&from, "src/a"), QUIET(), Progress::default());
        let work = async {
            let copied = client.copy(none.at(&source), &manifest, none.at(&target), &progress);
            let copied = copied.await;
            let name = tag("x");
            let put = client.put_tag(&target, &name, &manifest, &none, || true, &progress);
            (copied.unwrap_err(), put.await)
        };
        let (error, tagged) = tokio::time::timeout(PATIENCE, work)
            .await
            .unwrap_or_else(|_| panic!("{post} {put} {to}: {:?}", progress.waiting()));
        assert!(!matches!(error.class, Class::Wait { .. }), "{to}: {error}");
        if put != 200 {
            assert!(
                matches!(&tagged, Put::Refused(e) if e.reason == Reason::NotAllowed),
                "{tagged:?}"
            );
        }
        assert_eq!(elsewhere.connections(), 0, "{post} {put}: {error}");
        let other = host
            .heads()
            .iter()
            .any(|head| head.contains("/manifests/other"));
        assert!(!other, "{post} {put}: {:#?}", host.heads());
    }
}

#[tokio::test]
async fn a_mount_that_is_not_answered_as_it_should_be_falls_back_to_a_copy() {
    for action in [
        Action::page(405),
        said(405, "METHOD NOT ALLOWED", "Method Not Allowed"),
        Action::error(405, "UNSUPPORTED"),
        Action::error(400, "UNSUPPORTED"),
        Action::page(404),
        Action::page(403),
        Action::NoLocation,
    ] {
        let host = open().await;
        let client = client(&[&host]);
        let manifest = seeded(&host, &client, "src/a", Shape::Oci, &QUIET()).await;
        host.add_rule(Rule::new(upload("POST"), action.clone()).times(1));
        let copied = copied(&client, &host, &manifest, &host).await;
        copied.unwrap_or_else(|error| panic!("{action:?}: {error}"));
        assert!(
            matches!(
                put(&client, &host, "team/a", "x", &manifest).await,
                Put::Written
            ),
            "{action:?}"
        );
    }
}

/// A registry that leads all reads to `regional`.
async fn front(regional: String) -> Scripted {
    Scripted::start(move |head| {
        let path = head.split(' ').nth(1).unwrap();
        if path == "/v2/" {
            return answer(200, &[], "");
        }
        answer(
            307,
            &[("location", &format!("http://{regional}{path}"))],
            "",
        )
    })
    .await
}

#[tokio::test]
async fn a_typed_404_behind_a_redirect_is_an_absence_to_reads_and_never_to_a_look() {
    let regional = open().await;
    let seed = client(&[&regional]);
    let image = ImageBuilder::oci("x")
        .layer(Layer::named("x"))
        .build()
        .unwrap();
    regional.seed_image("src/a", "seed", &image).unwrap();
    let manifest = fetched(&regional, &seed, "src/a", &QUIET()).await;
    let front = front(regional.host()).await;
    let mut settings = settings(&[&regional]);
    settings.plain_http.push(front.host());
    let client = client_with(settings);
    let (none, progress) = (QUIET(), Progress::default());
    let at = format!("{}/src/a", front.host()).parse().unwrap();
    let gone = Digest::of(b"gone");
    for reference in [by_tag("gone"), Reference::Digest(gone)] {
        let found = client.get(&at, &reference, &none, &progress).await;
        assert_eq!(found.unwrap(), None, "{reference}");
    }
    for found in [
        client
            .get_authoritative(&at, &tag("gone"), &none, &progress)
            .await,
        client.get_cached(&at, gone, &none, &progress).await,
    ] {
        let error = found.unwrap_err();
        assert_eq!(
            (error.reason, error.class),
            (Reason::RegistryError, Class::Attempt)
        );
    }
    // A part that is missing there is missing.
    let to = open().await;
    assert!(regional.lose_blob("src/a", Layer::named("x").digest()));
    let target = repository(&to, "team/a");
    let mut settings = crate::testbed::client::settings(&[&regional, &to]);
    settings.plain_http.push(front.host());
    let client = client_with(settings);
    let copied = client.copy(none.at(&at), &manifest, none.at(&target), &progress);
    assert_eq!(copied.await.unwrap_err().reason, Reason::SourceIncomplete);
    // A page there tells nothing.
    regional.add_rule(Rule::new(
        Matcher::kind(RequestKind::Manifest),
        Action::page(404),
    ));
    let error = client.get(&at, &by_tag("gone"), &none, &progress).await;
    assert!(error.unwrap_err().message.contains("redirects to"));
}

#[tokio::test]
async fn a_layer_is_left_out_only_where_it_says_where_it_is_and_the_source_lacks_it() {
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    for (urls, there, works) in [
        (None, true, true),
        (None, false, false),
        (Some("http://x/"), true, true),
        (Some("http://x/"), false, true),
    ] {
        let to = open().await;
        let image = Image::new("windows").with(|manifest| {
            manifest["layers"][0]["mediaType"] = foreign.into();
            if let Some(url) = urls {
                manifest["layers"][0]["urls"] = serde_json::json!([url]);
            }
        });
        let (honest, layer) = (image.clone(), scripted::digest(&image.layer));
        let lost = layer.clone();
        let from = Scripted::start(move |head| {
            if head.contains(&lost) && !there {
                return scripted::unknown();
            }
            honest.honest(head)
        })
        .await;
        let mut settings = settings(&[&to]);
        settings.plain_http.push(from.host());
        let client = client_with(settings);
        let (none, progress) = (QUIET(), Progress::default());
        let source = format!("{}/src/a", from.host()).parse().unwrap();
        let found = client.get(&source, &by_tag("t"), &none, &progress).await;
        let manifest = found.unwrap().unwrap();
        let target = repository(&to, "team/a");
        let planned =
            client.estimate_copy(none.at(&source), &manifest, none.at(&target), &progress);
        assert_eq!(planned.await.is_ok(), works, "{urls:?} {there}");
        let copied = client.copy(none.at(&source), &manifest, none.at(&target), &progress);
        match copied.await {
            Ok(()) => assert!(works, "{urls:?} {there}"),
            Err(error) => {
                assert!(!works, "{urls:?} {there}: {error}");
                assert_eq!(error.reason, Reason::SourceIncomplete, "{error}");
                continue;
            }
        }
        let sent = to.count(&upload("PUT").reference(&layer));
        assert_eq!(sent, usize::from(there), "{urls:?} {there}");
        assert!(matches!(
            put(&client, &to, "team/a", "x", &manifest).await,
            Put::Written
        ));
    }
}

#[tokio::test]
async fn the_reason_in_the_detail_is_shown_and_schema_1_is_what_it_is() {
    let host = open().await;
    let client = client(&[&host]);
    let manifest = seeded(&host, &client, "src/a", Shape::Oci, &QUIET()).await;
    let Put::ContentMissing(error) = put(&client, &host, "team/a", "x", &manifest).await else {
        panic!("it has no blobs there");
    };
    assert!(
        error
            .message
            .contains("manifest invalid: Unknown blob `sha256:"),
        "{error}"
    );
    // Signed: its digest is that of a part of it.
    let signed = br#"{"schemaVersion":1,"name":"a","signatures":[{}]}"#;
    let old = Scripted::start(move |head| {
        if head.starts_with("GET /v2/ ") {
            return answer(200, &[], b"");
        }
        let kind = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        let headers = [
            ("content-type", kind),
            ("docker-content-digest", &scripted::digest(b"payload")),
        ];
        answer(200, &headers, signed)
    })
    .await;
    let client = client_with(Settings {
        plain_http: vec![old.host()],
        ..Settings::default()
    });
    let (none, progress) = (QUIET(), Progress::default());
    let at = format!("{}/src/a", old.host()).parse().unwrap();
    for found in [
        client
            .get_authoritative(&at, &tag("t"), &none, &progress)
            .await,
        client.get(&at, &by_tag("t"), &none, &progress).await,
    ] {
        let error = found.unwrap_err();
        assert_eq!(
            (error.reason, error.class),
            (Reason::UnsupportedManifest, Class::Terminal),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_mount_that_lies_is_followed_by_a_copy() {
    let host = open().await;
    let client = client(&[&host]);
    for shape in [Shape::Oci, Shape::Index] {
        let name = format!("{shape:?}");
        let manifest = seeded(&host, &client, "src/a", shape, &QUIET()).await;
        host.add_rule(Rule::new(upload("POST"), Action::LieMount));
        let mut tries = 0;
        let written = loop {
            tries += 1;
            copied(&client, &host, &manifest, &host).await.unwrap();
            match put(&client, &host, "team/a", &name, &manifest).await {
                // As the engine does: the next attempt.
                Put::ContentMissing(_) if tries < 3 => client.forget(&repository(&host, "team/a")),
                put => break put,
            }
        };
        assert!(matches!(written, Put::Written), "{name}: {written:?}");
        assert_eq!(host.dangling().len(), 0);
        host.clear_rules();
        assert!(host.delete_tag("team/a", &name).is_ok());
    }
}

#[tokio::test]
async fn what_a_storage_refuses_is_no_word_of_the_registry() {
    let from = open().await;
    for status in [400, 401, 403, 404, 405, 413, 415] {
        let storage = Scripted::start(move |_| answer(status, &[], "")).await;
        let location = format!("http://{}/up?signature=s3cret", storage.host());
        let host = Scripted::start(move |head| match head.split(' ').next().unwrap() {
            "GET" => answer(200, &[], ""),
            "POST" => answer(202, &[("location", &location)], ""),
            _ => answer(404, &[], ""),
        })
        .await;
        let mut settings = settings(&[&from]);
        settings.plain_http.push(host.host());
        let client = client_with(settings);
        let manifest = seeded(&from, &client, "src/a", Shape::Oci, &QUIET()).await;
        let target = format!("{}/team/a", host.host()).parse().unwrap();
        let (source, none, progress) = (repository(&from, "src/a"), QUIET(), Progress::default());
        let copying = client.copy(none.at(&source), &manifest, none.at(&target), &progress);
        let copied = tokio::time::timeout(PATIENCE, copying).await;
        let error = copied.unwrap().unwrap_err();
        assert_eq!(
            (error.reason, error.class),
            (Reason::RegistryError, Class::Attempt),
            "{error}"
        );
        let words = format!("the storage the registry redirects to answered {status}");
        assert!(error.message.contains(&words), "{error}");
        assert!(!error.message.contains("s3cret"), "{error}");
    }
}

#[tokio::test]
async fn an_upload_session_that_is_redirected_nowhere_is_a_definite_no() {
    for (status, location) in [
        (301, Some("/elsewhere")),
        (302, Some("https://login.example/")),
        (303, Some("/v2/")),
        (307, None),
        (308, Some("")),
        (307, Some("http://[")),
        (307, Some("https://other.example/v2/team/a/blobs/uploads/")),
    ] {
        let host = Scripted::start(move |head| {
            if !head.starts_with("POST") {
                return answer(200, &[], "");
            }
            let location = location.map(|to| ("location", to));
            answer(status, location.as_slice(), "")
        })
        .await;
        let client = client_with(Settings {
            plain_http: vec![host.host()],
            ..Settings::default()
        });
        let target = format!("{}/team/a", host.host()).parse().unwrap();
        let (none, progress) = (QUIET(), Progress::default());
        let asked = client.may_push(&target, &none, &progress);
        let asked = tokio::time::timeout(PATIENCE, asked).await;
        let error =
            asked.unwrap_or_else(|_| panic!("{status} {location:?}: {:?}", progress.waiting()));
        assert_eq!(
            error.unwrap_err().class,
            Class::Terminal,
            "{status} {location:?}"
        );
    }
}

#[tokio::test]
async fn a_tag_put_that_is_redirected_is_a_definite_no_and_sent_nowhere_else() {
    for (status, location) in [
        (301, Some("/v2/team/a/manifests/x")),
        (302, Some("https://login.example/")),
        (303, Some("/v2/team/b/manifests/x")),
        (307, None),
    ] {
        let host = Scripted::start(move |head| {
            if !head.starts_with("PUT") {
                return answer(200, &[], "");
            }
            let location = location.map(|to| ("location", to));
            answer(status, location.as_slice(), "")
        })
        .await;
        let from = open().await;
        let mut settings = settings(&[&from]);
        settings.plain_http.push(host.host());
        let client = client_with(settings);
        let manifest = seeded(&from, &client, "src/a", Shape::Oci, &QUIET()).await;
        let target = format!("{}/team/a", host.host()).parse().unwrap();
        let (none, progress) = (QUIET(), Progress::default());
        let name = tag("x");
        let put = client.put_tag(&target, &name, &manifest, &none, || true, &progress);
        let Put::Refused(error) = put.await else {
            panic!("{status} {location:?}");
        };
        assert_eq!(error.class, Class::Terminal, "{status}: {error}");
        let words = "the registry redirects this write";
        assert!(error.message.contains(words), "{status}: {error}");
        let heads = host.heads().into_iter();
        assert_eq!(heads.filter(|head| head.starts_with("PUT")).count(), 1);
    }
}

#[tokio::test]
async fn an_upload_session_without_a_place_shows_the_right_to_push() {
    let host = open().await;
    let client = client(&[&host]);
    host.add_rule(Rule::new(upload("POST"), Action::NoLocation));
    let target = repository(&host, "team/a");
    let (none, progress) = (QUIET(), Progress::default());
    client.may_push(&target, &none, &progress).await.unwrap();
}

#[tokio::test]
async fn a_docker_manifest_whose_type_nobody_tells_is_copied_to_the_byte() {
    let to = open().await;
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    let image = Image::new("untold").with(|manifest| {
        manifest.as_object_mut().unwrap().remove("mediaType");
        manifest["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json".into();
    });
    let honest = image.clone();
    let from = Scripted::start(move |head| {
        if head.contains("/manifests/") {
            let generic = [("content-type", "application/json; charset=utf-8")];
            return answer(200, &generic, &honest.manifest);
        }
        honest.honest(head)
    })
    .await;
    let mut settings = settings(&[&to]);
    settings.plain_http.push(from.host());
    let client = client_with(settings);
    let (none, progress) = (QUIET(), Progress::default());
    let (source, target) = (
        format!("{}/src/a", from.host()).parse().unwrap(),
        repository(&to, "team/a"),
    );
    let found = client.get(&source, &by_tag("t"), &none, &progress).await;
    let manifest = found.unwrap().unwrap();
    assert_eq!(manifest.media_type, docker);
    let copied = client.copy(none.at(&source), &manifest, none.at(&target), &progress);
    copied.await.unwrap();
    assert!(matches!(
        put(&client, &to, "team/a", "x", &manifest).await,
        Put::Written
    ));
    let digest = to.tag("team/a", "x").unwrap().to_string();
    assert_eq!(digest, scripted::digest(&image.manifest));
}

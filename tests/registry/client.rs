//! The registry layer against the embedded registry: real requests, real faults.
//!
//! The embedded registry is the crate quaylike, of the feature `embedded-registry`.
#![allow(
    clippy::wildcard_imports,
    reason = "the ground is made for these tests"
)]

use promotion_controller::{image, machine, registry};

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::testbed::client::*;
use image::Repository;
use machine::Reason;
use quaylike::{
    Action, AuthMode, ImageSpec, Matcher, Registry, RequestKind, RetryAfter, Rule, Shape,
};
use registry::{Class, Credential, Error, Manifest, Progress, Put, RegistryClient};

const QUIET: fn() -> Credential = Credential::anonymous;

fn upload(method: &str) -> Matcher {
    Matcher::kind(RequestKind::Upload).method(method)
}

fn digest_at(host: &Registry, path: &str, name: &str) -> Option<String> {
    host.tag(path, name).map(|digest| digest.to_string())
}

/// Copies without any credential.
async fn copied(
    client: &RegistryClient,
    source: &Repository,
    manifest: &Manifest,
    target: &Repository,
    progress: &Progress,
) -> Result<(), Error> {
    let none = QUIET();
    let copy = client.copy(none.at(source), manifest, none.at(target), progress);
    copy.await
}

#[tokio::test]
async fn every_shape_is_copied_byte_for_byte_to_another_registry() {
    let (from, to) = (open().await, open().await);
    let client = client(&[&from, &to]);
    for shape in [
        Shape::Oci,
        Shape::Docker,
        Shape::Index,
        Shape::DockerList,
        Shape::Nested,
    ] {
        let manifest = seeded(&from, &client, "src/a", shape, &QUIET()).await;
        let (source, target) = (repository(&from, "src/a"), repository(&to, "team/a"));
        let (progress, name) = (Progress::default(), format!("{shape:?}"));
        copied(&client, &source, &manifest, &target, &progress)
            .await
            .unwrap();
        assert!(matches!(
            put(&client, &to, "team/a", &name, &manifest).await,
            Put::Written
        ));
        assert_eq!(
            digest_at(&to, "team/a", &name),
            Some(manifest.digest.to_string())
        );
        assert_eq!(progress.waiting(), None);
        assert!(progress.bytes() > 0 || shape != Shape::Oci);
    }
    assert_eq!(to.dangling().len(), 0);
}

#[tokio::test]
async fn an_upload_is_opened_while_its_source_is() {
    const LATENCY: Duration = Duration::from_millis(300);
    let (from, to) = (open().await, open().await);
    let client = client_with(settings(&[&from, &to]));
    let (none, progress) = (Credential::anonymous(), Progress::default());
    let manifest = seeded(&from, &client, "src/a", Shape::Oci, &none).await;
    for host in [&from, &to] {
        host.update(|switches| switches.latency = LATENCY);
    }
    let (source, target) = (repository(&from, "src/a"), repository(&to, "team/a"));
    let copy = client.copy(none.at(&source), &manifest, none.at(&target), &progress);
    copy.await.unwrap();
    let first = |host: &Registry, kind| host.requests(&Matcher::kind(kind))[0].time;
    let (read, opened) = (
        first(&from, RequestKind::Blob),
        first(&to, RequestKind::Upload),
    );
    let apart = Duration::from_millis(read.abs_diff(opened));
    assert!(apart < LATENCY, "{apart:?}");
}

#[tokio::test]
async fn on_one_registry_blobs_are_mounted_without_a_look_first() {
    let host = guarded(AuthMode::Bearer).await;
    let (client, bot) = (client(&[&host]), credential(&host, "bot"));
    let manifest = seeded(&host, &client, "src/a", Shape::Oci, &bot).await;
    host.reset_log();
    let (source, target) = (repository(&host, "src/a"), repository(&host, "team/a"));
    let progress = Progress::default();
    client
        .copy(bot.at(&source), &manifest, bot.at(&target), &progress)
        .await
        .unwrap();
    let put = client
        .put_tag(&target, &tag("x"), &manifest, &bot, || true, &progress)
        .await;
    assert!(matches!(put, Put::Written), "{put:?}");
    assert_eq!(host.count(&Matcher::kind(RequestKind::Blob)), 0);
    assert_eq!(host.count(&upload("POST")), 3);
    assert_eq!(host.count(&upload("PUT")), 0);
    assert_eq!(host.count(&Matcher::kind(RequestKind::Ping)), 0);
    assert_eq!(progress.bytes(), 0);
    host.reset_log();
    client
        .copy(bot.at(&source), &manifest, bot.at(&target), &progress)
        .await
        .unwrap();
    assert_eq!(
        host.count(&Matcher::default()),
        0,
        "what is present is remembered"
    );
    client.forget(&target);
    client
        .copy(bot.at(&source), &manifest, bot.at(&target), &progress)
        .await
        .unwrap();
    assert_eq!(host.count(&upload("POST")), 3);
}

#[tokio::test]
async fn a_push_credential_that_may_not_read_the_source_does_not_mount_it() {
    let host = guarded(AuthMode::Bearer).await;
    let (client, reader, other) = (
        client(&[&host]),
        credential(&host, "reader"),
        credential(&host, "other"),
    );
    let manifest = seeded(&host, &client, "src/a", Shape::Oci, &reader).await;
    let (source, target) = (repository(&host, "src/a"), repository(&host, "team/a"));
    client
        .copy(
            reader.at(&source),
            &manifest,
            other.at(&target),
            &Progress::default(),
        )
        .await
        .unwrap();
    let mounts = host
        .requests(&upload("POST"))
        .into_iter()
        .filter(|entry| entry.query.contains("mount"));
    assert_eq!(mounts.count(), 0);
    assert_eq!(host.count(&upload("PUT")), 3);
}

#[tokio::test]
async fn a_mount_that_opens_a_session_has_that_session_used() {
    let host = open().await;
    let client = client(&[&host]);
    let manifest = seeded(&host, &client, "src/a", Shape::Oci, &QUIET()).await;
    host.add_rule(Rule::new(upload("POST"), Action::RefuseMount));
    let (source, target) = (repository(&host, "src/a"), repository(&host, "team/a"));
    copied(&client, &source, &manifest, &target, &Progress::default())
        .await
        .unwrap();
    assert_eq!(
        (host.count(&upload("POST")), host.count(&upload("PUT"))),
        (3, 3)
    );
    assert!(matches!(
        put(&client, &host, "team/a", "x", &manifest).await,
        Put::Written
    ));
}

#[tokio::test]
async fn two_copies_at_once_move_each_blob_once() {
    let (from, to) = (open().await, open().await);
    let client = client(&[&from, &to]);
    let manifest = seeded(&from, &client, "src/a", Shape::Oci, &QUIET()).await;
    let (source, target) = (repository(&from, "src/a"), repository(&to, "team/a"));
    let (none, progress) = (QUIET(), Progress::default());
    let copies =
        (0..6).map(|_| client.copy(none.at(&source), &manifest, none.at(&target), &progress));
    for outcome in futures::future::join_all(copies).await {
        outcome.unwrap();
    }
    assert_eq!(to.count(&upload("PUT")), 3);
    assert_eq!(from.count(&Matcher::kind(RequestKind::Blob)), 3);
}

#[tokio::test]
async fn content_collected_behind_our_back_is_brought_again_once_it_is_missed() {
    let (from, to) = (open().await, open().await);
    let client = client(&[&from, &to]);
    let manifest = seeded(&from, &client, "src/a", Shape::Index, &QUIET()).await;
    let (source, target) = (repository(&from, "src/a"), repository(&to, "team/a"));
    let (none, progress) = (QUIET(), Progress::default());
    client
        .copy(none.at(&source), &manifest, none.at(&target), &progress)
        .await
        .unwrap();
    assert!(matches!(
        put(&client, &to, "team/a", "x", &manifest).await,
        Put::Written
    ));
    to.delete_tag("team/a", "x").unwrap();
    // What was remembered of the blobs is not true any more: the registry says so of each child.
    client
        .copy(none.at(&source), &manifest, none.at(&target), &progress)
        .await
        .unwrap();
    assert!(matches!(
        put(&client, &to, "team/a", "x", &manifest).await,
        Put::Written
    ));
}

#[tokio::test]
async fn only_a_typed_404_is_absence() {
    let host = open().await;
    let client = client(&[&host]);
    let (target, progress) = (repository(&host, "team/a"), Progress::default());
    assert_eq!(
        client
            .get_authoritative(&target, &tag("x"), &QUIET(), &progress)
            .await
            .unwrap(),
        None
    );
    host.seed_spec("team/a", "y", &ImageSpec::new(Shape::Oci, "y"))
        .unwrap();
    assert_eq!(
        client
            .get_authoritative(&target, &tag("x"), &QUIET(), &progress)
            .await
            .unwrap(),
        None
    );
    host.add_rule(Rule::new(
        Matcher::kind(RequestKind::Manifest),
        Action::page(404),
    ));
    let error = client
        .get_authoritative(&target, &tag("y"), &QUIET(), &progress)
        .await
        .unwrap_err();
    assert_eq!(
        (error.reason, error.class),
        (Reason::RegistryError, Class::Attempt)
    );
    let error = client
        .get(&target, &by_tag("y"), &QUIET(), &progress)
        .await
        .unwrap_err();
    assert_eq!(
        (error.reason, error.class),
        (Reason::RegistryError, Class::Attempt)
    );
}

#[tokio::test]
async fn limits_and_outages_are_waited_out_and_told() {
    let host = open().await;
    let client = client(&[&host]);
    host.seed_spec("team/a", "x", &ImageSpec::new(Shape::Oci, "x"))
        .unwrap();
    let target = repository(&host, "team/a");
    for (action, reason) in [
        (Action::TooMany { retry_after: None }, Reason::RateLimited),
        (Action::page(502), Reason::RegistryUnavailable),
        (
            Action::error(503, "UNAVAILABLE"),
            Reason::RegistryUnavailable,
        ),
        (Action::page(408), Reason::RegistryUnavailable),
        (Action::DropConnection, Reason::RegistryUnavailable),
    ] {
        host.add_rule(Rule::new(Matcher::kind(RequestKind::Manifest), action.clone()).times(3));
        let progress = Progress::default();
        let (none, name) = (QUIET(), tag("x"));
        let look = client.get_authoritative(&target, &name, &none, &progress);
        let seen = async {
            loop {
                progress.changed().await;
                if let Some(waiting) = progress.waiting() {
                    return waiting;
                }
            }
        };
        let (found, waiting) = tokio::join!(look, seen);
        assert!(found.unwrap().is_some(), "{action:?}");
        assert_eq!(waiting.reason, reason, "{action:?}");
        assert!(waiting.message.contains("127.0.0.1"), "{}", waiting.message);
        assert_eq!(progress.waiting(), None);
        host.clear_rules();
    }
}

#[tokio::test]
async fn retry_after_is_kept_in_both_forms() {
    let host = open().await;
    let client = client(&[&host]);
    host.seed_spec("team/a", "x", &ImageSpec::new(Shape::Oci, "x"))
        .unwrap();
    for retry_after in [RetryAfter::Seconds(1), RetryAfter::Date(2)] {
        let action = Action::TooMany {
            retry_after: Some(retry_after),
        };
        host.add_rule(Rule::new(Matcher::kind(RequestKind::Manifest), action).times(1));
        let start = Instant::now();
        let found = client
            .get_authoritative(
                &repository(&host, "team/a"),
                &tag("x"),
                &QUIET(),
                &Progress::default(),
            )
            .await;
        assert!(found.unwrap().is_some());
        assert!(
            start.elapsed() > Duration::from_millis(900),
            "{retry_after:?} {:?}",
            start.elapsed()
        );
    }
}

#[tokio::test]
async fn the_same_bad_answer_twenty_times_while_others_are_served_is_the_urls_fault() {
    let host = open().await;
    let client = client(&[&host]);
    host.seed_spec("team/a", "good", &ImageSpec::new(Shape::Oci, "x"))
        .unwrap();
    host.add_rule(Rule::new(
        Matcher::kind(RequestKind::Manifest).reference("bad"),
        Action::page(500),
    ));
    let target = repository(&host, "team/a");
    let good = tokio::spawn({
        let (client, target) = (client.clone(), target.clone());
        async move {
            loop {
                client
                    .get_authoritative(&target, &tag("good"), &QUIET(), &Progress::default())
                    .await
                    .unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    let error = client
        .get_authoritative(&target, &tag("bad"), &QUIET(), &Progress::default())
        .await
        .unwrap_err();
    good.abort();
    assert_eq!(
        (error.reason, error.class),
        (Reason::RegistryError, Class::Attempt)
    );
    assert_eq!(
        host.count(&Matcher::kind(RequestKind::Manifest).reference("bad")),
        20
    );
}

#[tokio::test]
async fn a_tag_put_without_a_certain_answer_is_unknown_and_sent_once() {
    let host = open().await;
    let client = client(&[&host]);
    let manifest = seeded(&host, &client, "team/a", Shape::Oci, &QUIET()).await;
    for action in [
        Action::LoseAnswer,
        Action::DropConnection,
        Action::page(502),
        Action::error(500, "UNKNOWN"),
        Action::page(501),
        Action::page(408),
        Action::Hang { ms: 60_000 },
        Action::LieDigest { digest: None },
    ] {
        host.clear_rules();
        host.reset_log();
        host.add_rule(Rule::new(Matcher::put_manifest(), action.clone()).times(1));
        let start = Instant::now();
        let put = put(&client, &host, "team/a", "x", &manifest).await;
        assert!(matches!(put, Put::Unknown(_)), "{action:?}: {put:?}");
        assert!(start.elapsed() < Duration::from_secs(30), "{action:?}");
        assert_eq!(host.count(&Matcher::put_manifest()), 1, "{action:?}");
    }
}

#[tokio::test]
async fn definite_refusals_of_a_tag_put_are_told_apart() {
    let host = open().await;
    let client = client(&[&host]);
    let manifest = seeded(&host, &client, "team/a", Shape::Oci, &QUIET()).await;
    assert!(matches!(
        put(&client, &host, "team/empty", "x", &manifest).await,
        Put::ContentMissing(_)
    ));
    let rule = host.add_rule(Rule::new(Matcher::put_manifest(), Action::ImmutableTag));
    assert!(matches!(
        put(&client, &host, "team/a", "seed", &manifest).await,
        Put::Immutable(_)
    ));
    host.remove_rule(rule);
    for (action, reason) in [
        (
            Action::error(400, "MANIFEST_INVALID"),
            Reason::ManifestRejected,
        ),
        (Action::error(403, "DENIED"), Reason::PermissionDenied),
        (Action::error(404, "NAME_UNKNOWN"), Reason::PermissionDenied),
        (Action::error(405, "UNSUPPORTED"), Reason::RegistryError),
        (Action::page(413), Reason::TooLarge),
    ] {
        let rule = host.add_rule(Rule::new(Matcher::put_manifest(), action.clone()));
        match put(&client, &host, "team/a", "x", &manifest).await {
            Put::Refused(error) => assert_eq!(error.reason, reason, "{action:?}"),
            other => panic!("{action:?}: {other:?}"),
        }
        host.remove_rule(rule);
    }
    assert_eq!(digest_at(&host, "team/a", "x"), None);
}

#[tokio::test]
async fn the_gate_is_asked_before_every_sending_and_a_closed_one_sends_nothing() {
    let host = guarded(AuthMode::Bearer).await;
    let (client, bot) = (client(&[&host]), credential(&host, "bot"));
    let manifest = seeded(&host, &client, "team/a", Shape::Oci, &bot).await;
    let (target, progress) = (repository(&host, "team/a"), Progress::default());
    let closed = client
        .put_tag(&target, &tag("x"), &manifest, &bot, || false, &progress)
        .await;
    assert!(matches!(closed, Put::NotSent));
    assert_eq!(host.count(&Matcher::put_manifest()), 0);
    host.revoke_tokens();
    host.add_rule(
        Rule::new(
            Matcher::put_manifest(),
            Action::TooMany { retry_after: None },
        )
        .times(1),
    );
    host.add_rule(Rule::new(Matcher::put_manifest(), Action::ReadOnly).times(2));
    let asked = AtomicUsize::new(0);
    let gate = || {
        asked.fetch_add(1, Ordering::SeqCst);
        true
    };
    let put = client
        .put_tag(&target, &tag("x"), &manifest, &bot, gate, &progress)
        .await;
    assert!(matches!(put, Put::Written), "{put:?}");
    assert_eq!(
        asked.load(Ordering::SeqCst),
        host.count(&Matcher::put_manifest())
    );
    assert!(asked.load(Ordering::SeqCst) >= 3);
}

#[tokio::test]
async fn a_cold_start_pings_once_and_fetches_one_token() {
    let host = guarded(AuthMode::Bearer).await;
    let (client, bot) = (client(&[&host]), credential(&host, "bot"));
    host.seed_spec("team/a", "x", &ImageSpec::new(Shape::Oci, "x"))
        .unwrap();
    let (target, progress, name) = (repository(&host, "team/a"), Progress::default(), tag("x"));
    let looks = (0..12).map(|_| client.get_authoritative(&target, &name, &bot, &progress));
    for look in futures::future::join_all(looks).await {
        assert!(look.unwrap().is_some());
    }
    assert_eq!(host.count(&Matcher::kind(RequestKind::Ping)), 1);
    assert_eq!(host.count(&Matcher::kind(RequestKind::Token)), 1);
    assert_eq!(host.count(&Matcher::kind(RequestKind::Manifest)), 12);
    host.revoke_tokens();
    assert!(
        client
            .get_authoritative(&target, &name, &bot, &progress)
            .await
            .unwrap()
            .is_some()
    );
    assert_eq!(host.count(&Matcher::kind(RequestKind::Token)), 2);
}

#[tokio::test]
async fn a_missing_right_is_known_before_anything_is_sent_with_it() {
    let host = guarded(AuthMode::Bearer).await;
    let (client, reader) = (client(&[&host]), credential(&host, "reader"));
    let manifest = seeded(&host, &client, "src/a", Shape::Oci, &reader).await;
    let (source, progress) = (repository(&host, "src/a"), Progress::default());
    let error = client
        .may_push(&source, &reader, &progress)
        .await
        .unwrap_err();
    assert_eq!(
        (error.reason, error.class),
        (Reason::PermissionDenied, Class::Terminal)
    );
    assert!(error.message.contains("Secret ci/robot"), "{error}");
    assert!(!error.message.contains("s3cret"), "{error}");
    let put = client
        .put_tag(&source, &tag("x"), &manifest, &reader, || true, &progress)
        .await;
    assert!(matches!(put, Put::Refused(error) if error.reason == Reason::PermissionDenied));
    assert!(
        client
            .get_authoritative(&source, &tag("seed"), &reader, &progress)
            .await
            .is_err()
    );
    assert_eq!(host.count(&Matcher::put_manifest()), 0);
    let bot = credential(&host, "bot");
    // What a repository itself asks for is told to a stranger.
    let strangers = host.requests(&upload("POST"));
    assert!(strangers.len() <= 1, "{strangers:?}");
    assert!(strangers.iter().all(|post| post.status == Some(401)));
    host.reset_log();
    client
        .may_push(&repository(&host, "team/a"), &bot, &progress)
        .await
        .unwrap();
    assert_eq!(host.count(&Matcher::kind(RequestKind::Upload)), 0);
}

#[tokio::test]
async fn without_tokens_the_right_to_push_is_tried_once_and_left_clean() {
    let host = guarded(AuthMode::Basic).await;
    let (client, bot, reader) = (
        client(&[&host]),
        credential(&host, "bot"),
        credential(&host, "reader"),
    );
    let (target, progress) = (repository(&host, "team/a"), Progress::default());
    for _ in 0..3 {
        client.may_push(&target, &bot, &progress).await.unwrap();
    }
    host.wait_for(&upload("DELETE"), 1, true).await;
    // The first of all requests asks without a credential what the registry wants to see; it stands for the ping.
    let posts: Vec<_> = host.requests(&upload("POST"));
    let who: Vec<_> = posts
        .iter()
        .map(|p| (p.credential.as_deref(), p.status))
        .collect();
    assert_eq!(who, [(None, Some(401)), (Some("bot"), Some(202))]);
    let pings = host.count(&Matcher::kind(RequestKind::Ping));
    let deletes = host.count(&upload("DELETE"));
    assert_eq!((deletes, pings, host.open_uploads()), (1, 0, 0));
    let error = client
        .may_push(&target, &reader, &progress)
        .await
        .unwrap_err();
    assert_eq!(error.class, Class::Terminal, "{error}");
    host.add_rule(Rule::new(upload("POST"), Action::page(503)));
    let error = client
        .may_push(&repository(&host, "team/b"), &bot, &progress)
        .await
        .unwrap_err();
    assert!(matches!(error.class, Class::Wait { .. }), "{error}");
}

#[tokio::test]
async fn a_rejected_credential_is_named_and_a_token_endpoint_that_is_unwell_is_waited_for() {
    for mode in [AuthMode::Bearer, AuthMode::Basic] {
        let host = guarded(mode).await;
        let client = client(&[&host]);
        host.seed_spec("src/a", "seed", &ImageSpec::new(Shape::Oci, "x"))
            .unwrap();
        let (source, progress) = (repository(&host, "src/a"), Progress::default());
        for who in [credential(&host, "nobody"), QUIET()] {
            let error = client
                .get(&source, &by_tag("seed"), &who, &progress)
                .await
                .unwrap_err();
            assert_eq!(
                (error.reason, error.class),
                (Reason::Unauthorized, Class::Terminal),
                "{error}"
            );
            assert_eq!(
                error.message.contains("Secret ci/robot, entry 127"),
                !who.is_anonymous(),
                "{error}"
            );
        }
        for action in [
            Action::page(503),
            Action::TooMany { retry_after: None },
            Action::DropConnection,
        ] {
            host.add_rule(Rule::new(Matcher::kind(RequestKind::Token), action).times(2));
        }
        let reader = credential(&host, "reader");
        assert!(
            client
                .get(&source, &by_tag("seed"), &reader, &progress)
                .await
                .unwrap()
                .is_some()
        );
    }
}

#[tokio::test]
async fn what_one_credential_was_shown_is_not_shown_to_another() {
    let host = guarded(AuthMode::Bearer).await;
    let (client, reader, other) = (
        client(&[&host]),
        credential(&host, "reader"),
        credential(&host, "other"),
    );
    let manifest = seeded(&host, &client, "src/a", Shape::Oci, &reader).await;
    let (source, progress) = (repository(&host, "src/a"), Progress::default());
    let by_digest = image::Reference::Digest(manifest.digest);
    host.reset_log();
    assert!(
        client
            .get(&source, &by_digest, &reader, &progress)
            .await
            .unwrap()
            .is_some()
    );
    assert_eq!(
        host.count(&Matcher::default()),
        0,
        "the cache answers its owner"
    );
    for who in [other, QUIET()] {
        assert!(
            client
                .get(&source, &by_digest, &who, &progress)
                .await
                .is_err()
        );
    }
}

#[tokio::test]
async fn no_credential_follows_a_redirect_to_the_storage() {
    let (from, to) = (redirecting().await, open().await);
    let (client, reader) = (client(&[&from, &to]), credential(&from, "reader"));
    let manifest = seeded(&from, &client, "src/a", Shape::Oci, &reader).await;
    let (source, target) = (repository(&from, "src/a"), repository(&to, "team/a"));
    client
        .copy(
            reader.at(&source),
            &manifest,
            QUIET().at(&target),
            &Progress::default(),
        )
        .await
        .unwrap();
    let storage = from.requests(&Matcher::kind(RequestKind::Storage));
    assert_eq!(storage.len(), 3);
    assert!(storage.iter().all(|entry| !entry.authorization));
    let error = {
        from.add_rule(Rule::new(
            Matcher::kind(RequestKind::Storage),
            Action::page(403),
        ));
        client.forget(&target);
        let elsewhere = repository(&to, "team/b");
        client
            .copy(
                reader.at(&source),
                &manifest,
                QUIET().at(&elsewhere),
                &Progress::default(),
            )
            .await
            .unwrap_err()
    };
    assert_eq!(
        (error.reason, error.class),
        (Reason::RegistryError, Class::Attempt),
        "{error}"
    );
    assert!(!error.message.contains("http"), "{error}");
}

#[tokio::test]
async fn a_download_that_breaks_goes_on_where_it_broke() {
    let (from, to) = (open().await, open().await);
    let client = client(&[&from, &to]);
    let mut spec = ImageSpec::new(Shape::Oci, "big");
    (spec.layers, spec.layer_bytes) = (1, Some(3_000_000));
    from.seed_spec("src/a", "seed", &spec).unwrap();
    let manifest = fetched(&from, &client, "src/a", &QUIET()).await;
    from.add_rule(
        Rule::new(
            Matcher::kind(RequestKind::Blob),
            Action::CutBody { after: 1_000_000 },
        )
        .times(2),
    );
    let (source, target) = (repository(&from, "src/a"), repository(&to, "team/a"));
    let progress = Progress::default();
    copied(&client, &source, &manifest, &target, &progress)
        .await
        .unwrap();
    assert!(matches!(
        put(&client, &to, "team/a", "x", &manifest).await,
        Put::Written
    ));
    assert_eq!(to.count(&upload("PUT")), 2, "one upload for each blob");
    assert!(from.count(&Matcher::kind(RequestKind::Blob)) > 2);
    assert!(progress.bytes() >= 3_000_000 && progress.bytes() < 3_010_000);
}

#[tokio::test]
async fn corrupt_content_never_completes_an_upload() {
    let (from, to) = (open().await, open().await);
    let client = client(&[&from, &to]);
    let manifest = seeded(&from, &client, "src/a", Shape::Oci, &QUIET()).await;
    from.add_rule(Rule::new(
        Matcher::kind(RequestKind::Blob),
        Action::Corrupt { at: 3 },
    ));
    let (source, target) = (repository(&from, "src/a"), repository(&to, "team/a"));
    let progress = Progress::default();
    let error = copied(&client, &source, &manifest, &target, &progress)
        .await
        .unwrap_err();
    assert_eq!(
        (error.reason, error.class),
        (Reason::DigestMismatch, Class::Attempt),
        "{error}"
    );
    assert!(
        to.requests(&upload("PUT"))
            .iter()
            .all(|entry| entry.status != Some(201))
    );
    assert_eq!(progress.bytes(), 0, "what did not arrive is not counted");
}

#[tokio::test]
async fn an_upload_whose_answer_is_lost_is_found_to_have_landed() {
    let (from, to) = (open().await, open().await);
    let client = client(&[&from, &to]);
    let manifest = seeded(&from, &client, "src/a", Shape::Oci, &QUIET()).await;
    to.add_rule(Rule::new(upload("PUT"), Action::LoseAnswer).times(1));
    let (source, target) = (repository(&from, "src/a"), repository(&to, "team/a"));
    copied(&client, &source, &manifest, &target, &Progress::default())
        .await
        .unwrap();
    assert_eq!(to.count(&upload("PUT")), 3);
    to.add_rule(Rule::new(upload("PUT"), Action::page(500)));
    let elsewhere = repository(&to, "team/b");
    let error = copied(
        &client,
        &source,
        &manifest,
        &elsewhere,
        &Progress::default(),
    )
    .await
    .unwrap_err();
    assert_eq!(
        (error.reason, error.class),
        (Reason::RegistryError, Class::Attempt),
        "{error}"
    );
}

#[tokio::test]
async fn an_upload_that_is_limited_starts_again_without_counting() {
    let (from, to) = (open().await, open().await);
    let client = client(&[&from, &to]);
    let manifest = seeded(&from, &client, "src/a", Shape::Index, &QUIET()).await;
    to.add_rule(Rule::new(upload("PUT"), Action::TooMany { retry_after: None }).times(9));
    to.add_rule(Rule::new(upload("POST"), Action::ReadOnly).times(3));
    let (source, target) = (repository(&from, "src/a"), repository(&to, "team/a"));
    copied(&client, &source, &manifest, &target, &Progress::default())
        .await
        .unwrap();
    assert!(matches!(
        put(&client, &to, "team/a", "x", &manifest).await,
        Put::Written
    ));
}

#[tokio::test]
async fn a_source_that_misses_a_part_is_incomplete() {
    let (from, to) = (open().await, open().await);
    let client = client(&[&from, &to]);
    let image = ImageSpec::new(Shape::Index, "seed").build().unwrap();
    from.seed_image("src/a", "seed", &image).unwrap();
    let manifest = fetched(&from, &client, "src/a", &QUIET()).await;
    assert!(from.lose_blob("src/a", image.children[0].blobs[0].0));
    let (source, target) = (repository(&from, "src/a"), repository(&to, "team/a"));
    let progress = Progress::default();
    let error = copied(&client, &source, &manifest, &target, &progress)
        .await
        .unwrap_err();
    assert_eq!(
        (error.reason, error.class),
        (Reason::SourceIncomplete, Class::Attempt),
        "{error}"
    );
    assert!(from.lose_manifest("src/a", image.children[1].digest()));
    let other = RegistryClient::clone(&crate::testbed::client::client(&[&from, &to]));
    let error = copied(&other, &source, &manifest, &target, &progress)
        .await
        .unwrap_err();
    assert_eq!(error.reason, Reason::SourceIncomplete, "{error}");
}

#[tokio::test]
async fn a_manifest_that_lies_or_never_ends_is_refused() {
    let host = open().await;
    let client = client(&[&host]);
    host.seed_spec("src/a", "seed", &ImageSpec::new(Shape::Oci, "x"))
        .unwrap();
    let (source, progress) = (repository(&host, "src/a"), Progress::default());
    for (action, reason) in [
        (Action::LieDigest { digest: None }, Reason::DigestMismatch),
        (Action::Corrupt { at: 9 }, Reason::DigestMismatch),
        (Action::CutBody { after: 20 }, Reason::RegistryError),
        (Action::Endless { bytes: None }, Reason::TooLarge),
    ] {
        host.clear_rules();
        host.add_rule(Rule::new(
            Matcher::kind(RequestKind::Manifest),
            action.clone(),
        ));
        let error = client
            .get(&source, &by_tag("seed"), &QUIET(), &progress)
            .await
            .unwrap_err();
        assert_eq!(error.reason, reason, "{action:?}: {error}");
    }
}

#[tokio::test]
async fn a_registry_that_comes_up_later_is_waited_for() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let settings = registry::Settings {
        plain_http: vec![address.to_string()],
        ..registry::Settings::default()
    };
    let client = client_with(settings);
    let target: image::Repository = format!("{address}/team/a").parse().unwrap();
    let progress = Progress::default();
    let (name, none) = (tag("x"), QUIET());
    let look = client.get_authoritative(&target, &name, &none, &progress);
    let start = async {
        while progress.waiting().is_none() {
            progress.changed().await;
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert_eq!(
            progress.waiting().unwrap().reason,
            Reason::RegistryUnavailable
        );
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        tokio::spawn(quaylike::serve(
            listener,
            quaylike::Options::default(),
            |_| {},
            std::future::pending(),
        ));
    };
    let (found, ()) = tokio::join!(look, start);
    assert_eq!(found.unwrap(), None);
}

#[tokio::test]
async fn a_rewritten_host_is_spoken_to_at_its_stand_in() {
    let host = guarded(AuthMode::Bearer).await;
    let rewrite = [("quay.io".to_owned(), host.host())].into();
    let client = client_with(registry::Settings {
        rewrite,
        ..registry::Settings::default()
    });
    host.seed_spec("team/a", "x", &ImageSpec::new(Shape::Oci, "x"))
        .unwrap();
    let target: image::Repository = "quay.io/team/a".parse().unwrap();
    let found = client
        .get_authoritative(
            &target,
            &tag("x"),
            &credential(&host, "bot"),
            &Progress::default(),
        )
        .await;
    assert!(found.unwrap().is_some());
}

#[tokio::test]
async fn no_more_requests_are_in_flight_than_the_budget_allows() {
    let (from, to) = (open().await, open().await);
    let settings = registry::Settings {
        concurrency: 4,
        ..settings(&[&from, &to])
    };
    let client = client_with(settings);
    to.update(|switches| switches.latency = Duration::from_millis(5));
    from.update(|switches| switches.latency = Duration::from_millis(5));
    let mut copies = Vec::new();
    for n in 0..6 {
        let path = format!("src/{n}");
        let spec = ImageSpec::new(Shape::Index, &path);
        for host in [&from, &to] {
            host.seed_spec(&path, "seed", &spec).unwrap();
        }
        let (a, b) = if n % 2 == 0 {
            (&from, &to)
        } else {
            (&to, &from)
        };
        let manifest = fetched(a, &client, &path, &QUIET()).await;
        let (source, target) = (repository(a, &path), repository(b, &format!("team/{n}")));
        let client = client.clone();
        copies.push(tokio::spawn(async move {
            copied(&client, &source, &manifest, &target, &Progress::default()).await
        }));
    }
    for copy in copies {
        tokio::time::timeout(Duration::from_secs(30), copy)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
    assert!(
        from.peak_in_flight() <= 4 && to.peak_in_flight() <= 4,
        "{} {}",
        from.peak_in_flight(),
        to.peak_in_flight()
    );
}

#[tokio::test]
async fn a_source_that_is_down_does_not_keep_others_from_the_target() {
    let (dead, live, to) = (open().await, open().await, open().await);
    let settings = registry::Settings {
        concurrency: 4,
        ..settings(&[&dead, &live, &to])
    };
    let client = client_with(settings);
    let lost = seeded(&dead, &client, "src/dead", Shape::DockerList, &QUIET()).await;
    let manifest = seeded(&live, &client, "src/live", Shape::Index, &QUIET()).await;
    let source = repository(&dead, "src/dead");
    // What is left to copy are the blobs.
    for child in lost_children(&lost) {
        client
            .get(
                &source,
                &image::Reference::Digest(child),
                &QUIET(),
                &Progress::default(),
            )
            .await
            .unwrap();
    }
    drop(dead);
    let mut waiting = Vec::new();
    for n in 0..4 {
        let (client, source, lost) = (client.clone(), source.clone(), lost.clone());
        let target = repository(&to, &format!("team/dead{n}"));
        waiting.push(tokio::spawn(async move {
            copied(&client, &source, &lost, &target, &Progress::default()).await
        }));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (source, target) = (repository(&live, "src/live"), repository(&to, "team/live"));
    let (none, progress) = (QUIET(), Progress::default());
    let copy = client.copy(none.at(&source), &manifest, none.at(&target), &progress);
    tokio::time::timeout(Duration::from_secs(30), copy)
        .await
        .unwrap()
        .unwrap();
    for task in waiting {
        assert!(!task.is_finished(), "an outage is waited for");
        task.abort();
    }
}

fn lost_children(manifest: &registry::Manifest) -> Vec<image::Digest> {
    let index: serde_json::Value = serde_json::from_slice(&manifest.bytes).unwrap();
    let children = index["manifests"].as_array().unwrap().iter();
    children
        .map(|child| child["digest"].as_str().unwrap().parse().unwrap())
        .collect()
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_is_terminal() {
    let key = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let private =
        rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], private)
        .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(tls));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = acceptor.accept(stream).await;
        }
    });
    let client = client_with(registry::Settings::default());
    let target: image::Repository = format!("localhost:{port}/team/a").parse().unwrap();
    let error = client
        .get_authoritative(&target, &tag("x"), &QUIET(), &Progress::default())
        .await
        .unwrap_err();
    assert_eq!(
        (error.reason, error.class),
        (Reason::CertificateUntrusted, Class::Terminal),
        "{error}"
    );
}

#[test]
fn every_future_can_be_spawned() {
    fn sent<T: Send>(_: &T) {}
    fn check(
        client: &RegistryClient,
        repository: &image::Repository,
        manifest: &registry::Manifest,
    ) {
        let (none, progress, name) = (QUIET(), Progress::default(), tag("x"));
        let reference = by_tag("x");
        sent(&client.get_authoritative(repository, &name, &none, &progress));
        sent(&client.get(repository, &reference, &none, &progress));
        sent(&client.get_cached(repository, manifest.digest, &none, &progress));
        sent(&client.copy(
            none.at(repository),
            manifest,
            none.at(repository),
            &progress,
        ));
        sent(&client.put_tag(repository, &name, manifest, &none, || true, &progress));
        sent(&client.may_push(repository, &none, &progress));
    }
    let _ = check;
}

#[tokio::test]
async fn where_everybody_may_push_the_first_upload_session_stands_for_the_ping() {
    let host = open().await;
    let client = client(&[&host]);
    let (target, progress) = (repository(&host, "team/a"), Progress::default());
    for _ in 0..3 {
        client.may_push(&target, &QUIET(), &progress).await.unwrap();
    }
    let found = client
        .get_authoritative(&target, &tag("x"), &QUIET(), &progress)
        .await;
    assert!(found.unwrap().is_none());
    host.wait_for(&upload("DELETE"), 1, true).await;
    let counts = [
        host.count(&Matcher::kind(RequestKind::Ping)),
        host.count(&upload("POST")),
        host.count(&upload("DELETE")),
        host.count(&Matcher::default()),
    ];
    assert_eq!(counts, [0, 1, 1, 3]);
    assert_eq!(host.open_uploads(), 0);
}

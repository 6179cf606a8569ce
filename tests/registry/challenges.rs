//! What a registry wants to see, asked of each repository itself: open pings, several challenges on one host, several realms.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use promotion_controller::image::Repository;
use promotion_controller::machine::Reason;
use promotion_controller::registry::{Class, Credential, Keyring, Manifest, Progress, Put};
use quaylike::{Auth, AuthMode, ImageSpec, Matcher, Options, Registry, RequestKind, Shape, User};

use crate::testbed::PATIENCE;
use crate::testbed::client::{
    by_tag, client, client_with, credential, fetched, repository, settings, tag,
};
use crate::testbed::scripted::{Say, Scripted, answer};

fn users(auth: Auth) -> Auth {
    auth.user(User::new("bot", "bot-s3cret").push("team").pull("src"))
        .user(User::new("reader", "reader-s3cret").pull("src"))
}

async fn start(auth: Auth) -> Registry {
    let host = Registry::start(Options::default().auth(users(auth)))
        .await
        .unwrap();
    for path in ["src/a", "src/b", "team/a"] {
        host.seed_spec(path, "seed", &ImageSpec::new(Shape::Oci, path))
            .unwrap();
    }
    host
}

/// A source is read, copied, tagged and looked at, each by the one who may.
async fn promoted(host: &Registry) -> Manifest {
    let client = client(&[host]);
    let (reader, bot) = (credential(host, "reader"), credential(host, "bot"));
    let (source, target) = (repository(host, "src/a"), repository(host, "team/a"));
    let progress = Progress::default();
    let manifest = fetched(host, &client, "src/a", &reader).await;
    client.may_push(&target, &bot, &progress).await.unwrap();
    client
        .copy(reader.at(&source), &manifest, bot.at(&target), &progress)
        .await
        .unwrap();
    let name = tag("x");
    let put = client.put_tag(&target, &name, &manifest, &bot, || true, &progress);
    let put = put.await;
    assert!(matches!(put, Put::Written), "{put:?}");
    let found = client
        .get_authoritative(&target, &tag("x"), &bot, &progress)
        .await;
    assert_eq!(found.unwrap().unwrap().digest, manifest.digest);
    manifest
}

#[tokio::test]
async fn a_valid_credential_is_used_where_the_ping_is_open_also_by_many_at_once() {
    for mode in [AuthMode::Bearer, AuthMode::Basic] {
        let host = start(Auth::new(mode).ping(AuthMode::None)).await;
        for _ in 0..10 {
            let client = client(&[&host]);
            let (reader, bot) = (credential(&host, "reader"), credential(&host, "bot"));
            let progress = Progress::default();
            let sources = [repository(&host, "src/a"), repository(&host, "src/b")];
            let (target, seed) = (repository(&host, "team/a"), tag("seed"));
            let reads = (0..8).map(|n| {
                let (client, source, reader) = (&client, &sources[n % 2], &reader);
                let progress = &progress;
                async move { client.get(source, &by_tag("seed"), reader, progress).await }
            });
            let looks = (0..4).map(|_| client.get_authoritative(&target, &seed, &bot, &progress));
            let (reads, looks) = futures::join!(
                futures::future::join_all(reads),
                futures::future::join_all(looks)
            );
            for found in reads.into_iter().chain(looks) {
                assert!(found.unwrap().is_some(), "{mode:?}");
            }
        }
        promoted(&host).await;
    }
}

#[tokio::test]
async fn each_repository_is_shown_what_it_asks_for_itself() {
    for ping in [AuthMode::None, AuthMode::Basic, AuthMode::Bearer] {
        for (source, target) in [
            (AuthMode::Basic, AuthMode::Bearer),
            (AuthMode::Bearer, AuthMode::Basic),
            (AuthMode::None, AuthMode::Bearer),
        ] {
            let auth = Auth::new(target).ping(ping).mode_of("src", source);
            let host = start(auth).await;
            promoted(&host).await;
            let (client, bot) = (client(&[&host]), credential(&host, "bot"));
            let (reader, progress) = (credential(&host, "reader"), Progress::default());
            let reads = (0..10).map(|n| {
                let (path, who) = [("src/a", &reader), ("team/a", &bot)][n % 2];
                let (client, progress) = (&client, &progress);
                let place = repository(&host, path);
                async move { client.get(&place, &by_tag("seed"), who, progress).await }
            });
            for found in futures::future::join_all(reads).await {
                assert!(found.unwrap().is_some(), "{ping:?} {source:?} {target:?}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_hidden_from_strangers_is_not_taken_as_absent() {
    for mode in [AuthMode::Bearer, AuthMode::Basic] {
        let host = start(Auth::new(mode).ping(AuthMode::None).hiding()).await;
        let (bot, progress) = (credential(&host, "bot"), Progress::default());
        let client = client(&[&host]);
        let target = repository(&host, "team/a");
        let found = client
            .get_authoritative(&target, &tag("seed"), &bot, &progress)
            .await;
        assert!(found.unwrap().is_some(), "{mode:?}");
        let found = client
            .get_authoritative(&target, &tag("none"), &bot, &progress)
            .await;
        assert!(found.unwrap().is_none(), "{mode:?}");
    }
}

#[tokio::test]
async fn a_credential_that_is_wrong_is_rejected_once_it_was_shown() {
    for ping in [AuthMode::None, AuthMode::Basic, AuthMode::Bearer] {
        for mode in [AuthMode::Bearer, AuthMode::Basic] {
            let host = start(Auth::new(mode).ping(ping)).await;
            let (client, progress) = (client(&[&host]), Progress::default());
            let (nobody, none) = (credential(&host, "nobody"), Credential::anonymous());
            for who in [nobody, none] {
                host.reset_log();
                let source = repository(&host, "src/a");
                let name = by_tag("seed");
                let error = client.get(&source, &name, &who, &progress);
                let error = error.await.unwrap_err();
                let is = (error.reason, error.class);
                assert_eq!(is, (Reason::Unauthorized, Class::Terminal), "{error}");
                let named = error.message.contains("Secret ci/robot, entry 127");
                assert_eq!(named, !who.is_anonymous(), "{error}");
                let sent = host.count(&Matcher::default());
                assert!(sent <= 5, "{ping:?} {mode:?}: {sent} requests");
            }
        }
    }
}

#[tokio::test]
async fn what_a_repository_asks_for_is_remembered() {
    let host = start(Auth::new(AuthMode::Bearer).ping(AuthMode::None)).await;
    let (client, progress) = (client(&[&host]), Progress::default());
    let reader = credential(&host, "reader");
    for _ in 0..20 {
        let source = repository(&host, "src/a");
        let name = by_tag("seed");
        let found = client.get(&source, &name, &reader, &progress);
        assert!(found.await.unwrap().is_some());
    }
    let counts = [RequestKind::Ping, RequestKind::Token, RequestKind::Manifest];
    let counts = counts.map(|kind| host.count(&Matcher::kind(kind)));
    assert_eq!(counts, [1, 1, 21], "one is asked without a credential");
    // The registry changes its ways.
    host.set_auth(users(Auth::new(AuthMode::Basic)));
    client
        .get(
            &repository(&host, "src/a"),
            &by_tag("seed"),
            &reader,
            &progress,
        )
        .await
        .unwrap();
}

fn at(host: &str, path: &str) -> Repository {
    format!("{host}/{path}").parse().unwrap()
}

fn bot(host: &str) -> Credential {
    let auths = serde_json::json!({"auths": {host: {"username": "bot", "password": "bot-s3cret"}}});
    let ring = Keyring::parse(auths.to_string().as_bytes(), "Secret ci/robot").unwrap();
    ring.credential(&at(host, "any/thing")).unwrap()
}

const MANIFEST: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0},"layers":[]}"#;

fn manifest() -> Say {
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    answer(200, &[("content-type", media_type)], MANIFEST)
}

fn challenged(challenge: &str) -> Say {
    answer(401, &[("www-authenticate", challenge)], "")
}

fn shown(head: &str) -> &str {
    let shown = head.split("authorization: ").nth(1);
    shown.map_or("", |rest| rest.lines().next().unwrap_or_default())
}

fn own_host(head: &str) -> &str {
    let host = head.split("host: ").nth(1).unwrap_or_default();
    host.lines().next().unwrap_or_default()
}

/// `bot:bot-s3cret`.
const BASIC: &str = "Basic Ym90OmJvdC1zM2NyZXQ=";

async fn read(registry: &Scripted, path: &str) -> Result<bool, (Reason, Class, String)> {
    let host = registry.host();
    let client = client_with(promotion_controller::registry::Settings {
        plain_http: vec![host.clone()],
        ..settings(&[])
    });
    let (who, progress) = (bot(&host), Progress::default());
    let source = at(&host, path);
    let name = by_tag("t");
    let asked = client.get(&source, &name, &who, &progress);
    let found = tokio::time::timeout(PATIENCE, asked).await;
    let found = found.unwrap_or_else(|_| panic!("waited: {:?}", progress.waiting()));
    found
        .map(|found| found.is_some())
        .map_err(|error| (error.reason, error.class, error.message))
}

#[tokio::test]
async fn a_ping_that_asks_in_vain_for_what_no_repository_asks_is_not_the_last_word() {
    for (name, ping) in [
        (
            "a realm that knows nobody",
            "Bearer realm=\"http://HOST/refuses\",service=\"s\"",
        ),
        (
            "a realm that is gone",
            "Bearer realm=\"http://HOST/gone\",service=\"s\"",
        ),
        (
            "a realm that is a page",
            "Bearer realm=\"http://HOST/page\",service=\"s\"",
        ),
        (
            "a realm of somebody else",
            "Bearer realm=\"http://foreign.test/token\",service=\"s\"",
        ),
        ("a realm that is none", "Bearer realm=\"/token\""),
        ("a kind that nobody knows", "Negotiate"),
    ] {
        for own in [
            "Basic realm=\"x\"",
            "Bearer realm=\"http://HOST/token\",service=\"own\"",
        ] {
            let registry = Scripted::start(move |head| {
                let host = own_host(head).to_owned();
                let path = head.split(' ').nth(1).unwrap();
                match path.split('?').next().unwrap() {
                    "/v2/" => challenged(&ping.replace("HOST", &host)),
                    "/refuses" => answer(401, &[], ""),
                    "/gone" => answer(404, &[], ""),
                    "/page" => answer(200, &[("content-type", "text/html")], "<html>"),
                    "/token" if shown(head) == BASIC => answer(200, &[], r#"{"token":"t0k"}"#),
                    _ if shown(head) == BASIC && own.starts_with("Basic") => manifest(),
                    _ if shown(head) == "Bearer t0k" && own.starts_with("Bearer") => manifest(),
                    _ => challenged(&own.replace("HOST", &host)),
                }
            })
            .await;
            assert_eq!(read(&registry, "src/x").await, Ok(true), "{name}, {own}");
        }
    }
}

#[tokio::test]
async fn tokens_of_one_realm_are_not_shown_to_the_repositories_of_another() {
    let registry = Scripted::start(|head| {
        let host = own_host(head).to_owned();
        let path = head.split(' ').nth(1).unwrap();
        let ways = ["one", "two"].into_iter().find(|way| path.contains(way));
        match (path, ways) {
            ("/v2/", _) => answer(200, &[], ""),
            (_, Some(way)) if path.starts_with("/token") && shown(head) == BASIC => {
                let life = r#""expires_in":3600"#;
                answer(200, &[], format!(r#"{{"token":"t0k-{way}",{life}}}"#))
            }
            (_, Some(way)) if shown(head) == format!("Bearer t0k-{way}") => manifest(),
            (_, Some(way)) => challenged(&format!(
                "Bearer realm=\"http://{host}/token\",service=\"{way}\""
            )),
            _ => answer(404, &[], ""),
        }
    })
    .await;
    let host = registry.host();
    let client = client_with(promotion_controller::registry::Settings {
        plain_http: vec![host.clone()],
        ..settings(&[])
    });
    let (who, progress) = (bot(&host), Progress::default());
    for _ in 0..3 {
        let (one, two, name) = (at(&host, "one/x"), at(&host, "two/x"), by_tag("t"));
        let (one, two) = futures::join!(
            client.get(&one, &name, &who, &progress),
            client.get(&two, &name, &who, &progress)
        );
        assert!(one.unwrap().is_some() && two.unwrap().is_some());
    }
    let heads = registry.heads();
    for (token, other) in [("t0k-one", "two/x"), ("t0k-two", "one/x")] {
        for head in &heads {
            assert!(!(head.contains(token) && head.contains(other)), "{head}");
        }
    }
    assert_eq!(heads.len(), 1 + 2 + 2 + 6, "{heads:#?}");
}

#[tokio::test]
async fn a_registry_that_asks_for_another_kind_each_time_rejects_nothing() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let registry = Scripted::start(move |head| {
        let host = own_host(head).to_owned();
        let n = counted.fetch_add(1, Ordering::Relaxed);
        match head.split(' ').nth(1).unwrap() {
            "/v2/" => answer(200, &[], ""),
            path if path.starts_with("/token") => {
                answer(200, &[], format!(r#"{{"token":"t0k-{n}"}}"#))
            }
            _ => challenged(&format!("Bearer realm=\"http://{host}/token{n}\"")),
        }
    })
    .await;
    let (reason, class, message) = read(&registry, "src/x").await.unwrap_err();
    let is = (reason, class);
    assert_eq!(is, (Reason::RegistryError, Class::Attempt), "{message}");
    assert!(count.load(Ordering::Relaxed) < 12);
}

#[tokio::test]
async fn a_401_that_does_not_say_what_for_rejects_nothing_that_was_not_shown() {
    let registry = Scripted::start(|head| match head.split(' ').nth(1).unwrap() {
        "/v2/" => answer(200, &[], ""),
        _ => answer(401, &[], ""),
    })
    .await;
    let (reason, class, message) = read(&registry, "src/x").await.unwrap_err();
    let is = (reason, class);
    assert_eq!(is, (Reason::RegistryError, Class::Attempt), "{message}");
    assert!(message.contains("does not say which kind"), "{message}");
}

#[tokio::test]
async fn a_token_that_was_taken_back_is_renewed_whatever_the_401_says() {
    for challenge in [true, false] {
        let issued = Arc::new(AtomicUsize::new(0));
        let registry = Scripted::start(move |head| {
            let host = own_host(head).to_owned();
            let path = head.split(' ').nth(1).unwrap();
            let challenge_it = format!("Bearer realm=\"http://{host}/token\"");
            let valid = || format!("Bearer t0k-{}", issued.load(Ordering::Relaxed));
            match path.split('?').next().unwrap() {
                "/token" => {
                    let n = issued.fetch_add(1, Ordering::Relaxed) + 1;
                    let life = r#""expires_in":3600"#;
                    answer(200, &[], format!(r#"{{"token":"t0k-{n}",{life}}}"#))
                }
                "/v2/" => challenged(&challenge_it),
                "/v2/src/revoke/manifests/t" => {
                    issued.fetch_add(1, Ordering::Relaxed);
                    answer(404, &[], r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#)
                }
                _ if shown(head) == valid() => manifest(),
                _ if challenge => challenged(&challenge_it),
                _ => answer(401, &[], ""),
            }
        })
        .await;
        let host = registry.host();
        let client = client_with(promotion_controller::registry::Settings {
            plain_http: vec![host.clone()],
            ..settings(&[])
        });
        let (who, progress) = (bot(&host), Progress::default());
        for path in ["src/x", "src/revoke", "src/x"] {
            let source = at(&host, path);
            let found = client.get(&source, &by_tag("t"), &who, &progress).await;
            assert_eq!(found.unwrap().is_some(), path != "src/revoke");
        }
    }
}

const PLAIN: &str = "Bearer realm=\"http://HOST/token\",service=\"s\"";

/// A registry that wants tokens, at whose token endpoint `token` answers.
async fn issuing(token: impl Fn() -> Say + Send + Sync + 'static) -> Scripted {
    Scripted::start(move |head| match head.split(' ').nth(1).unwrap() {
        path if path.starts_with("/token") => token(),
        _ => challenged(&PLAIN.replace("HOST", own_host(head))),
    })
    .await
}

#[tokio::test]
async fn a_token_endpoint_that_refuses_is_named_with_its_words() {
    let said = |code: &str, message: &str| {
        let error = serde_json::json!({"code": code, "message": message});
        serde_json::json!({"errors": [error]}).to_string()
    };
    let disabled = said("UNAUTHORIZED", "Robot ci+bot owner is disabled bot-s3cret");
    for (status, body, reason, class, words) in [
        (
            401,
            disabled.clone(),
            Reason::Unauthorized,
            Class::Terminal,
            "Robot ci+bot owner is disabled",
        ),
        (
            403,
            disabled,
            Reason::Unauthorized,
            Class::Terminal,
            "Robot ci+bot owner is disabled",
        ),
        (
            401,
            "<html>".into(),
            Reason::Unauthorized,
            Class::Terminal,
            "; renew it",
        ),
        (
            404,
            String::new(),
            Reason::RegistryError,
            Class::Attempt,
            "404",
        ),
        (
            404,
            "<html>".into(),
            Reason::RegistryError,
            Class::Attempt,
            "404",
        ),
        (
            410,
            said("GONE", "moved to x"),
            Reason::RegistryError,
            Class::Attempt,
            "moved to x",
        ),
        (
            200,
            "<html>".into(),
            Reason::RegistryError,
            Class::Attempt,
            "no token",
        ),
        (
            204,
            String::new(),
            Reason::RegistryError,
            Class::Attempt,
            "no token",
        ),
    ] {
        let shown = body.clone();
        let registry = issuing(move || answer(status, &[], &body)).await;
        let error = read(&registry, "src/x").await.unwrap_err();
        assert_eq!(
            (error.0, error.1),
            (reason, class),
            "{status} {shown}: {}",
            error.2
        );
        assert!(error.2.contains(words), "{status} {shown}: {}", error.2);
        assert!(!error.2.contains("s3cret"), "{}", error.2);
        if reason == Reason::RegistryError {
            assert!(error.2.contains(&registry.host()), "{}", error.2);
        }
    }
}

#[tokio::test]
async fn who_has_a_credential_is_not_answered_as_a_stranger() {
    let unknown = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"unknown"}]}"#;
    for (status, body) in [(403, ""), (404, unknown), (404, ""), (403, "<html>")] {
        for bearer in [false, true] {
            let registry = Scripted::start(move |head| {
                let host = own_host(head).to_owned();
                match head.split(' ').nth(1).unwrap() {
                    "/v2/" => answer(200, &[], ""),
                    path if path.starts_with("/token") => answer(200, &[], r#"{"token":"t0k"}"#),
                    path if path.contains("missing") && !shown(head).is_empty() => {
                        answer(404, &[], unknown)
                    }
                    _ if shown(head) == "Bearer t0k" => manifest(),
                    _ if shown(head) == BASIC && bearer => {
                        challenged(&PLAIN.replace("HOST", &host))
                    }
                    _ if shown(head) == BASIC => manifest(),
                    _ => answer(status, &[], body),
                }
            })
            .await;
            assert_eq!(
                read(&registry, "src/x").await,
                Ok(true),
                "{status} {bearer}"
            );
            assert_eq!(read(&registry, "src/missing").await, Ok(false), "{status}");
        }
    }
}

#[tokio::test]
async fn a_login_throttle_without_a_pause_is_not_asked_without_one() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let registry = issuing(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        answer(429, &[("retry-after", "0")], "")
    })
    .await;
    let host = registry.host();
    let client = client_with(promotion_controller::registry::Settings {
        plain_http: vec![host.clone()],
        ..settings(&[])
    });
    let (who, progress, name) = (bot(&host), Progress::default(), by_tag("t"));
    let source = at(&host, "src/x");
    let asked = client.get(&source, &name, &who, &progress);
    let ended = tokio::time::timeout(std::time::Duration::from_secs(2), asked).await;
    assert!(ended.is_err(), "{ended:?}");
    assert!(count.load(Ordering::Relaxed) <= 2000 / 20 + 1, "{count:?}");
}

#[tokio::test]
async fn what_is_waited_for_is_shown_to_all_who_wait() {
    // It accepts, and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = silent.local_addr().unwrap().to_string();
    let holder = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = silent.accept().await {
            kept.push(stream);
        }
    });
    let client = client_with(promotion_controller::registry::Settings {
        plain_http: vec![host.clone()],
        request_timeout: std::time::Duration::from_millis(700),
        ..settings(&[])
    });
    let mut waiting = Vec::new();
    for n in 0..5 {
        let (client, who) = (client.clone(), bot(&host));
        let (repository, progress) = (at(&host, &format!("team/{n}")), Progress::default());
        let shown = progress.clone();
        let task = async move { client.may_push(&repository, &who, &progress).await };
        waiting.push((tokio::spawn(task), shown));
    }
    let all_shown = async {
        let unavailable = |shown: &Progress| {
            let waiting = shown.waiting().map(|waiting| waiting.reason);
            waiting == Some(Reason::RegistryUnavailable)
        };
        while !waiting.iter().all(|(_, shown)| unavailable(shown)) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all_shown).await.unwrap();
    assert!(waiting.iter().all(|(task, _)| !task.is_finished()));
    for (task, _) in waiting {
        task.abort();
    }
    holder.abort();
}

//! Targets that lie: what becomes of an upload, and where it is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use promotion_controller::machine::Reason;
use promotion_controller::registry::{Class, Credential, Error, Progress, Put, Settings};
use quaylike::Shape;

use super::tokens::{at, credential};
use crate::testbed::PATIENCE;
use crate::testbed::client::{client_with, open, repository, seeded};
use crate::testbed::scripted::{Say, Scripted, answer, head, unknown};

type Saying = Box<dyn Fn() -> Say + Send + Sync>;

/// Registries spoken to without TLS, with short times.
pub fn settings(hosts: &[&str]) -> Settings {
    Settings {
        plain_http: hosts.iter().map(|host| (*host).to_owned()).collect(),
        qps: 0,
        read_timeout: Duration::from_millis(200),
        request_timeout: Duration::from_millis(600),
        put_timeout: Duration::from_millis(400),
        ..Settings::default()
    }
}

/// Copies an image to `target` with a credential; an error shows no secret.
pub async fn copied(target: &Scripted) -> Result<(), Error> {
    let from = open().await;
    let host = target.host();
    let client = client_with(settings(&[&from.host(), &host]));
    let (none, who, progress) = (
        Credential::anonymous(),
        credential(&host),
        Progress::default(),
    );
    let manifest = seeded(&from, &client, "src/a", Shape::Oci, &none).await;
    let (source, to) = (repository(&from, "src/a"), at(&host, "team/a"));
    let copying = client.copy(none.at(&source), &manifest, who.at(&to), &progress);
    let copied = tokio::time::timeout(PATIENCE, copying).await;
    let copied = copied.unwrap_or_else(|_| panic!("waited: {:?}", progress.waiting()));
    if let Err(error) = &copied {
        assert!(!error.message.contains("s3cret"), "{error}");
        assert!(error.message.chars().count() <= 256, "{error}");
    }
    copied
}

/// A registry with accounts that has no blob; an upload begins as `begin` says and ends as `finish` says.
async fn taking(
    begin: impl Fn() -> Say + Send + Sync + 'static,
    finish: impl Fn() -> Say + Send + Sync + 'static,
) -> Scripted {
    Scripted::start(move |asked| {
        let shown = asked.to_lowercase().contains("authorization:");
        let (method, path) = asked.split_once(' ').unwrap();
        match method {
            "GET" if path.starts_with("/v2/ ") && !shown => {
                answer(401, &[("www-authenticate", "Basic realm=\"x\"")], b"")
            }
            "GET" => answer(200, &[], b""),
            "POST" => begin(),
            "PUT" => finish(),
            _ => unknown(),
        }
    })
    .await
}

fn created() -> Say {
    answer(201, &[], b"")
}

#[tokio::test]
async fn an_upload_goes_where_the_registry_says_with_its_credential_to_itself_alone() {
    let session = "X-Amz-Signature=s3cret&_state=a%2Fb%3D";
    for (location, way) in [
        (
            format!("/v2/team/a/blobs/uploads/1?{session}"),
            "/v2/team/a/blobs/uploads/1?",
        ),
        (format!("2?{session}"), "/v2/team/a/blobs/uploads/2?"),
        (format!("?{session}"), "/v2/team/a/blobs/uploads/?"),
    ] {
        let target = taking(
            move || answer(202, &[("location", &location)], b""),
            created,
        )
        .await;
        copied(&target).await.unwrap();
        let heads = target.heads();
        let puts: Vec<_> = heads
            .iter()
            .filter(|head| head.starts_with("PUT"))
            .collect();
        assert!(puts.len() >= 2, "{heads:#?}");
        for put in puts {
            let wanted = format!("PUT {way}{session}&digest=sha256%3A");
            assert!(put.starts_with(&wanted), "{put}");
            assert!(put.contains("authorization: Basic "), "{put}");
        }
    }
    // Another address of the same machine, with and without somebody else's name in it.
    for who in ["", "bot:bot-s3cret@"] {
        let storage = Scripted::start(|_| created()).await;
        let elsewhere = format!("http://{who}{}/up?{session}", storage.host());
        let target = taking(
            move || answer(202, &[("location", &elsewhere)], b""),
            created,
        )
        .await;
        copied(&target).await.unwrap();
        assert!(
            storage
                .heads()
                .iter()
                .all(|head| head.starts_with("PUT /up?"))
        );
        assert!(!storage.heads().is_empty());
        storage.assert_shown_nothing(who);
        assert!(!storage.heads().iter().any(|head| head.contains('@')));
    }
}

#[tokio::test]
async fn an_upload_that_begins_or_ends_badly_is_an_error_of_one_kind() {
    let began = || answer(202, &[("location", "/v2/team/a/blobs/uploads/1")], b"");
    let at = |location: &'static str| move || answer(202, &[("location", location)], b"");
    let page = || vec![b'<'; 64 * 1024];
    let attempt = (Reason::RegistryError, Class::Attempt);
    let table: Vec<(&str, Saying, Saying, (Reason, Class))> = vec![
        (
            "no location",
            Box::new(|| answer(202, &[], b"")),
            Box::new(created),
            attempt,
        ),
        (
            "a malformed location",
            Box::new(at("http://[")),
            Box::new(created),
            attempt,
        ),
        (
            "a location without a host",
            Box::new(at("http:///")),
            Box::new(created),
            attempt,
        ),
        (
            "a location of another kind",
            Box::new(at("ftp://127.0.0.1/x")),
            Box::new(created),
            attempt,
        ),
        (
            "a location in a file",
            Box::new(at("file:///etc/passwd")),
            Box::new(created),
            attempt,
        ),
        (
            "a location at the link",
            Box::new(at("https://169.254.169.254/x")),
            Box::new(created),
            (Reason::NotAllowed, Class::Terminal),
        ),
        (
            "a beginning that is a 200",
            Box::new(|| answer(200, &[("location", "/x")], b"")),
            Box::new(created),
            attempt,
        ),
        (
            "a beginning without end",
            Box::new(move || Say::Endless(head(403, &[]), page())),
            Box::new(created),
            (Reason::PermissionDenied, Class::Terminal),
        ),
        (
            "an end that is a 200",
            Box::new(began),
            Box::new(|| answer(200, &[], b"")),
            attempt,
        ),
        (
            "an end that is a 204",
            Box::new(began),
            Box::new(|| answer(204, &[], b"")),
            attempt,
        ),
        (
            "an end that is a redirect",
            Box::new(began),
            Box::new(|| answer(307, &[("location", "/x")], b"")),
            attempt,
        ),
        (
            "an end without end",
            Box::new(began),
            Box::new(move || Say::Endless(head(403, &[]), page())),
            (Reason::PermissionDenied, Class::Terminal),
        ),
        (
            "another digest in the end",
            Box::new(began),
            Box::new(|| {
                answer(
                    201,
                    &[(
                        "docker-content-digest",
                        &crate::testbed::scripted::digest(b"other"),
                    )],
                    b"",
                )
            }),
            (Reason::DigestMismatch, Class::Attempt),
        ),
        (
            "a 413",
            Box::new(began),
            Box::new(|| answer(413, &[], b"")),
            attempt,
        ),
        (
            "a 413 of the registry itself",
            Box::new(began),
            Box::new(|| answer(413, &[], br#"{"errors":[{"code":"SIZE_INVALID"}]}"#)),
            (Reason::TooLarge, Class::Terminal),
        ),
    ];
    for (name, begin, finish, wanted) in table {
        let target = taking(begin, finish).await;
        let error = copied(&target).await.unwrap_err();
        assert_eq!((error.reason, error.class), wanted, "{name}: {error}");
    }
    // A 201 need not say where, or what.
    let target = taking(began, created).await;
    copied(&target).await.unwrap();
}

#[tokio::test]
async fn only_a_201_with_our_digest_is_a_tag_that_was_written() {
    let from = open().await;
    let table = [
        (200, "", false),
        (202, "", false),
        (204, "", false),
        (500, "", false),
        (201, "sha256:00", false),
        (201, "sha512:00", true),
        (201, "", true),
    ];
    for (status, stated, written) in table {
        let target = taking(created, move || {
            answer(status, &[("docker-content-digest", stated)], b"")
        })
        .await;
        let host = target.host();
        let client = client_with(settings(&[&from.host(), &host]));
        let none = Credential::anonymous();
        let manifest = seeded(&from, &client, "src/a", Shape::Oci, &none).await;
        let (repository, tag) = (at(&host, "team/a"), "t".parse().unwrap());
        let (who, progress) = (credential(&host), Progress::default());
        let put = client.put_tag(&repository, &tag, &manifest, &who, || true, &progress);
        match put.await {
            Put::Written => assert!(written, "{status} {stated}"),
            Put::Unknown(error) => assert!(!written, "{status} {stated}: {error}"),
            other => panic!("{status} {stated}: {other:?}"),
        }
        let puts = target
            .heads()
            .iter()
            .filter(|head| head.starts_with("PUT"))
            .count();
        assert_eq!(puts, 1, "never sent again: {status} {stated}");
    }
}

#[tokio::test]
async fn a_registry_is_asked_again_within_ten_minutes_whatever_it_says_of_later() {
    for (value, least, most) in [
        ("1000000000000", 590, 600),
        ("18446744073709551615", 590, 600),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 590, 600),
        ("599", 590, 600),
        ("18446744073709551616", 0, 1),
        ("-1", 0, 1),
        ("soon", 0, 1),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 1),
    ] {
        for status in [429, 503] {
            let asked = Arc::new(AtomicUsize::new(0));
            let times = Arc::clone(&asked);
            let registry = Scripted::start(move |head| {
                if head.starts_with("GET /v2/ ") {
                    return answer(200, &[], b"");
                }
                times.fetch_add(1, Ordering::Relaxed);
                answer(status, &[("retry-after", value)], b"")
            })
            .await;
            let host = registry.host();
            let client = client_with(settings(&[&host]));
            let (none, progress) = (Credential::anonymous(), Progress::default());
            let (repository, tag) = (at(&host, "team/a"), "t".parse().unwrap());
            let looking = client.get_authoritative(&repository, &tag, &none, &progress);
            // Several tries, where it is not told to wait.
            let waits = async {
                loop {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    let tries = asked.load(Ordering::Relaxed);
                    let waiting = progress
                        .waiting()
                        .filter(|_| tries > usize::from(least == 0));
                    if let Some(waiting) = waiting {
                        return waiting;
                    }
                }
            };
            let waiting = tokio::select! {
                found = looking => panic!("{status} {value}: {found:?}"),
                waiting = waits => waiting,
                () = tokio::time::sleep(Duration::from_secs(10)) => panic!("{status} {value}: nothing is shown"),
            };
            let left = waiting
                .until
                .saturating_duration_since(Instant::now())
                .as_secs();
            assert!((least..=most).contains(&left), "{status} {value}: {left} s");
            assert!(matches!(
                waiting.reason,
                Reason::RateLimited | Reason::RegistryUnavailable
            ));
            let asked = asked.load(Ordering::Relaxed);
            assert!(
                if least > 0 { asked == 1 } else { asked > 1 },
                "{status} {value}: asked {asked} times"
            );
        }
    }
}

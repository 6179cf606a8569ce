//! Registries that lead a write elsewhere: to another registry's tags, to another repository's, to where nobody asked.

use std::time::Duration;

use promotion_controller::machine::Reason;
use promotion_controller::registry::{Class, Credential, Error, Progress, Settings};
use quaylike::{ImageSpec, Matcher, Registry, Shape};

use super::targets::settings;
use super::tokens::{at, credential};
use crate::testbed::PATIENCE;
use crate::testbed::client::{client_with, open, repository, seeded};
use crate::testbed::scripted::{Scripted, answer, unknown};

/// Whose word counts for where a registry may lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    /// The victim is on the list.
    Listed,
    /// It is named for plain HTTP alone.
    Plain,
    /// There is no list.
    Free,
}

fn naming(named: Named, attacker: &Scripted, from: &Registry, victim: &Registry) -> Settings {
    let (attacker, from, victim) = (attacker.host(), from.host(), victim.host());
    let allowed = match named {
        Named::Listed => vec![&attacker, &from, &victim],
        Named::Plain => vec![&attacker, &from],
        Named::Free => Vec::new(),
    };
    let allowed = allowed.iter().map(|host| host.parse().unwrap()).collect();
    Settings {
        allowed: (named != Named::Free).then_some(allowed),
        ..settings(&[&attacker, &from, &victim])
    }
}

/// A registry whose uploads begin at `location`, and whose mounts do.
async fn leading(location: String) -> Scripted {
    Scripted::start(move |asked| match asked.split(' ').next().unwrap() {
        "GET" => answer(200, &[], b""),
        "POST" => answer(202, &[("location", &location)], b""),
        // What is given up is what the DELETE comes for.
        "PUT" => answer(400, &[], b""),
        _ => unknown(),
    })
    .await
}

/// Copies an image to a registry that leads astray, and asks whether it may be pushed to.
async fn copied(from: &Registry, attacker: &Scripted, settings: Settings) -> Result<(), Error> {
    let client = client_with(settings);
    let (none, progress) = (Credential::anonymous(), Progress::default());
    let who = credential(&attacker.host());
    let manifest = seeded(from, &client, "src/a", Shape::Oci, &none).await;
    let (source, to) = (repository(from, "src/a"), at(&attacker.host(), "team/a"));
    let _ = client.may_push(&to, &who, &progress).await;
    let copying = client.copy(none.at(&source), &manifest, who.at(&to), &progress);
    let copied = tokio::time::timeout(PATIENCE, copying).await;
    // The session that showed the right to push is given up behind the answer.
    tokio::time::sleep(Duration::from_millis(50)).await;
    copied.unwrap_or_else(|_| panic!("waited: {:?}", progress.waiting()))
}

#[tokio::test]
async fn no_upload_leads_to_the_tags_of_another_registry() {
    let from = open().await;
    let victim = open().await;
    let float = victim
        .seed_spec("team/a", "float", &ImageSpec::new(Shape::Oci, "v"))
        .unwrap();
    for named in [Named::Listed, Named::Plain, Named::Free] {
        for path in [
            "/v2/team/a/manifests/float",
            "//v2//team/a//manifests/float",
            "/x/../v2/team/a/manifests/float",
            "/x/%2e%2e/v2/team/a/manifests/float",
            "/%76%32/team/a/%6danifests/float",
            "/v2/team/a/manifests%2ffloat",
            "/v2%2Fteam%2Fa%2Fmanifests%2Ffloat",
            "/%2576%2532/team/a/%256danifests/float",
            "/V2/team/a/MANIFESTS/float",
            "\\v2\\team\\a\\manifests\\float",
            "/v2;x/team/a/manifests;y/float",
            "/prefix/v2/team/a/manifests/float",
            "/v2/team/a/manifests/float?digest=sha256:0&",
            "/?/v2/team/a/manifests/float",
            "/x?path=%2fv2%2fteam%2fa%2fmanifests%2ffloat",
            "/v2/team/a/manifests/float#/blobs/uploads/1",
            "/v2/team/a/blobs/uploads/../../manifests/float",
            "/v2/team/a/blobs/uploads/%2e%2e/%2E%2E/manifests/float",
        ] {
            let attacker = leading(format!("http://{}{path}", victim.host())).await;
            let settings = naming(named, &attacker, &from, &victim);
            let error = copied(&from, &attacker, settings).await.unwrap_err();
            assert_eq!(
                (error.reason, error.class),
                (Reason::NotAllowed, Class::Terminal),
                "{named:?} {path}: {error}"
            );
            let writes = Matcher {
                write: Some(true),
                ..Matcher::default()
            };
            assert_eq!(victim.count(&writes), 0, "{named:?} {path}: {error}");
            if named == Named::Plain {
                assert_eq!(victim.count(&Matcher::default()), 0, "{path}: {error}");
            }
        }
    }
    assert_eq!(victim.tag("team/a", "float"), Some(float));
}

#[tokio::test]
async fn no_upload_leads_to_what_is_known_as_another_registry() {
    // Its files, its own API, its sessions: a registry is no storage of another one.
    let (from, victim) = (open().await, open().await);
    for path in ["/repository/raw/x", "/v2/team/a/blobs/uploads/1", "/"] {
        let attacker = leading(format!("http://{}{path}", victim.host())).await;
        let client = client_with(naming(Named::Listed, &attacker, &from, &victim));
        let (none, progress) = (Credential::anonymous(), Progress::default());
        seeded(&victim, &client, "src/v", Shape::Oci, &none).await;
        let manifest = seeded(&from, &client, "src/a", Shape::Oci, &none).await;
        let (source, to) = (repository(&from, "src/a"), at(&attacker.host(), "team/a"));
        let copying = client.copy(none.at(&source), &manifest, none.at(&to), &progress);
        let error = copying.await.unwrap_err();
        assert_eq!(
            (error.reason, error.class),
            (Reason::NotAllowed, Class::Terminal),
            "{path}: {error}"
        );
        let writes = Matcher {
            write: Some(true),
            ..Matcher::default()
        };
        assert_eq!(victim.count(&writes), 0, "{path}: {error}");
    }
}

#[tokio::test]
async fn no_upload_leads_into_the_api_of_a_registry_that_was_never_met() {
    let (from, victim) = (open().await, open().await);
    for named in [Named::Listed, Named::Plain, Named::Free] {
        for path in [
            "/v2/team/a/blobs/uploads/1",
            "/prefix/v2/a/blobs/uploads/",
            "/v2/",
        ] {
            let attacker = leading(format!("http://{}{path}", victim.host())).await;
            let settings = naming(named, &attacker, &from, &victim);
            let error = copied(&from, &attacker, settings).await.unwrap_err();
            assert_eq!(
                error.reason,
                Reason::NotAllowed,
                "{named:?} {path}: {error}"
            );
            assert_eq!(
                victim.count(&Matcher::default()),
                0,
                "{named:?} {path}: {error}"
            );
        }
    }
}

#[tokio::test]
async fn only_an_upload_of_ones_own_is_given_up() {
    let from = open().await;
    let storage = Scripted::start(|_| answer(400, &[], b"")).await;
    for (location, given_up) in [
        ("/v2/team/a/blobs/uploads/1?_state=a%2Fb", true),
        ("2", true),
        ("/v2/team/a/blobs/uploads/", false),
        (
            "/v2/team/a/blobs/uploads/1%2f..%2f..%2f..%2fmanifests%2ft",
            false,
        ),
        ("/v2/team/a/blobs/uploads/1//x", false),
        ("/v2/team/b/blobs/uploads/1", false),
        ("/v2/team/a/blobs/sha256:0", false),
        ("/v2/team/a/manifests/t", false),
        ("/v2/team/a/blobs/uploads/../../manifests/t", false),
        ("/upload/1", false),
        (
            &format!("http://{}/v2/team/a/blobs/uploads/1", storage.host()),
            false,
        ),
        (&format!("http://{}/upload/1", storage.host()), false),
    ] {
        let attacker = leading(location.to_owned()).await;
        let settings = settings(&[&attacker.host(), &from.host()]);
        let error = copied(&from, &attacker, settings).await.unwrap_err();
        let heads = [attacker.heads(), storage.heads()].concat();
        let gone = heads.iter().any(|head| head.starts_with("DELETE"));
        assert_eq!(gone, given_up, "{location}: {error}: {heads:#?}");
        let tags = heads.iter().any(|head| {
            let head = head.to_lowercase();
            head.contains("manifests") && !head.starts_with("get")
        });
        assert!(!tags, "{location}: {error}: {heads:#?}");
    }
}

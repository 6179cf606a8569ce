//! One token for all that a request needs of a registry, and what happens where that is not granted.

use promotion_controller::registry::{Credential, Progress, RegistryClient};
use quaylike::{AuthMode, ImageSpec, Matcher, Registry, RequestKind, Shape};

use super::tokens::{at, credential as bot};
use crate::testbed::client::{by_tag, client, client_with, credential, guarded, repository, tag};
use crate::testbed::scripted::{Image, Scripted, answer};

const SOURCES: usize = 15;

/// What a request does: it may push, then copies each source and looks at the float.
async fn promote(
    client: &RegistryClient,
    host: &Registry,
    who: &Credential,
    sources: usize,
    name: &str,
) {
    let progress = &Progress::of("ci", name);
    let float = repository(host, "team/float");
    let sources: Vec<_> = (0..sources)
        .map(|n| repository(host, &format!("src/{n}")))
        .collect();
    let read = sources.iter().map(|source| (who.at(source), false));
    let written = std::iter::once((who.at(&float), true));
    client.expect(progress, written.chain(read));
    client.may_push(&float, who, progress).await.unwrap();
    for source in &sources {
        let image = client.get(source, &by_tag("x"), who, progress).await;
        let image = image.unwrap().unwrap();
        let (from, to) = (who.at(source), who.at(&float));
        client.copy(from, &image, to, progress).await.unwrap();
    }
    let none = tag("none");
    let absent = client.get_authoritative(&float, &none, who, progress);
    assert!(absent.await.unwrap().is_none());
}

fn tokens(host: &Registry) -> usize {
    host.count(&Matcher::kind(RequestKind::Token))
}

#[tokio::test]
async fn a_request_of_fifteen_source_repositories_takes_one_token_and_lends_it_to_no_other() {
    let host = guarded(AuthMode::Bearer).await;
    for n in 0..SOURCES {
        let image = ImageSpec::new(Shape::Oci, &format!("image {n}"));
        host.seed_spec(&format!("src/{n}"), "x", &image).unwrap();
    }
    let client = client(&[&host]);
    let who = credential(&host, "bot");
    promote(&client, &host, &who, SOURCES, "one").await;
    assert_eq!(tokens(&host), 1);
    promote(&client, &host, &who, SOURCES, "two").await;
    assert_eq!(tokens(&host), 2);
    // Of few repositories, what a second request wants too is kept for all that follow.
    promote(&client, &host, &who, 1, "three").await;
    let third = tokens(&host);
    promote(&client, &host, &who, 1, "four").await;
    promote(&client, &host, &who, 1, "five").await;
    let fifth = tokens(&host);
    promote(&client, &host, &who, 1, "six").await;
    assert!(third == 3 && fifth > 3, "{third}, {fifth}");
    assert_eq!(tokens(&host), fifth);
}

#[tokio::test]
async fn who_may_not_pull_one_of_the_sources_is_told_so_and_the_others_are_read() {
    let host = guarded(AuthMode::Bearer).await;
    let image = ImageSpec::new(Shape::Oci, "image");
    for path in ["src/a", "secret/b"] {
        host.seed_spec(path, "x", &image).unwrap();
    }
    let client = client(&[&host]);
    let (who, progress) = (credential(&host, "bot"), Progress::of("ci", "one"));
    let (a, b) = (repository(&host, "src/a"), repository(&host, "secret/b"));
    client.expect(&progress, [(who.at(&a), false), (who.at(&b), false)]);
    let found = client.get(&a, &by_tag("x"), &who, &progress).await;
    assert!(found.unwrap().is_some());
    let error = client.get(&b, &by_tag("x"), &who, &progress).await;
    let error = error.unwrap_err();
    assert!(error.message.contains("pull"), "{error}");
}

/// A registry whose token endpoint refuses, or does not honour, more than one scope at a time.
async fn narrow(refuses: bool) -> Scripted {
    let image = Image::new("new");
    Scripted::start(move |asked| {
        let lower = asked.to_lowercase();
        let line = lower.lines().next().unwrap_or_default();
        if line.starts_with("get /token") {
            if refuses && line.matches("scope=").count() > 1 {
                return answer(400, &[], b"one scope at a time");
            }
            let first = line.split("scope=repository%3a").nth(1).unwrap();
            let first = first.split("%3a").next().unwrap().replace("%2f", "/");
            let body = format!(r#"{{"token":"{first}"}}"#);
            return answer(
                200,
                &[("content-type", "application/json")],
                body.as_bytes(),
            );
        }
        let path = line.split("/v2/").nth(1).unwrap_or_default();
        let path = path.split("/manifests").next().unwrap();
        if lower.contains(&format!("authorization: bearer {path}\r")) {
            return image.honest(asked);
        }
        let host = lower.split("host: ").nth(1).unwrap();
        let host = host.lines().next().unwrap();
        let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"s\"");
        answer(401, &[("www-authenticate", &challenge)], b"")
    })
    .await
}

#[tokio::test]
async fn where_one_token_is_not_granted_for_all_each_is_asked_for_by_itself() {
    for refuses in [true, false] {
        let registry = narrow(refuses).await;
        let host = registry.host();
        let client = client_with(super::targets::settings(&[&host]));
        let (who, progress) = (bot(&host), Progress::of("ci", "one"));
        let sources = ["src/a", "src/b", "src/c"].map(|path| at(&host, path));
        client.expect(
            &progress,
            sources.iter().map(|source| (who.at(source), false)),
        );
        for source in &sources {
            let found = client.get(source, &by_tag("t"), &who, &progress).await;
            assert!(found.unwrap().is_some(), "{refuses} {source}");
        }
    }
}

//! Referrers: what a registry lists, what it does not, and what becomes of them on one with and one without the API.

use std::time::Duration;

use promotion_controller::image::Reference;
use promotion_controller::machine::Reason;
use promotion_controller::registry::{
    Class, Credential, Listing, Progress, Put, RegistryClient, list_with,
};
use quaylike::{
    Action, Image, ImageBuilder, ImageSpec, Layer, Matcher, Registry, RequestKind, Rule, Shape,
};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::testbed::PATIENCE;
use crate::testbed::client::{client, client_with, open, repository, settings, tag};
use crate::testbed::{Distribution, DistributionOptions};

const NONE: fn() -> Credential = Credential::anonymous;

fn kind() -> Matcher {
    Matcher::kind(RequestKind::Referrers)
}

/// An image at `src/a`, with so many referrers.
fn referred(host: &Registry, count: usize) -> (Image, Vec<Image>) {
    let image = ImageSpec::new(Shape::Oci, "x").build().unwrap();
    host.seed_image("src/a", "x", &image).unwrap();
    let referrer = |number: usize| {
        let kind = format!("application/kind-{number}");
        let artifact = ImageBuilder::artifact(&kind).layer(Layer::named(&kind));
        artifact.referring_to(&image, &kind).build().unwrap()
    };
    let referrers: Vec<Image> = (0..count).map(referrer).collect();
    for referrer in &referrers {
        host.seed_untagged("src/a", referrer).unwrap();
    }
    (image, referrers)
}

async fn listed(
    client: &RegistryClient,
    host: &Registry,
    image: &Image,
) -> Result<Listing, promotion_controller::registry::Error> {
    let subject = image.digest().to_string().parse().unwrap();
    let (source, progress) = (repository(host, "src/a"), Progress::default());
    client
        .referrers(NONE().at(&source), subject, false, false, &progress)
        .await
}

#[tokio::test]
async fn a_list_is_read_to_its_last_page() {
    let host = open().await;
    host.update(|settings| settings.referrers_page = 2);
    let (image, referrers) = referred(&host, 7);
    let client = client(&[&host]);
    let Listing::Of(found) = listed(&client, &host, &image).await.unwrap() else {
        panic!("there is an API");
    };
    let mut found: Vec<String> = found.iter().map(|r| r.digest.to_string()).collect();
    let mut wanted: Vec<String> = referrers.iter().map(|r| r.digest().to_string()).collect();
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted);
    assert_eq!(host.count(&kind()), 4);
    host.update(|settings| settings.referrers_page = 1);
    let (image, _) = referred(&host, 21);
    let error = listed(&client, &host, &image).await.unwrap_err();
    assert_eq!(error.reason, Reason::TooLarge, "{error}");
}

#[tokio::test]
async fn a_limit_an_outage_or_a_missing_right_never_means_that_there_is_no_api() {
    let host = open().await;
    let (image, _) = referred(&host, 1);
    let client = client(&[&host]);
    host.add_rule(Rule::new(kind(), Action::TooMany { retry_after: None }).times(3));
    host.add_rule(Rule::new(kind(), Action::page(502)).times(2));
    let found = listed(&client, &host, &image).await.unwrap();
    assert!(matches!(found, Listing::Of(found) if found.len() == 1));
    host.clear_rules();
    let told = |status: u16, body: &str| Action::Status {
        status,
        code: None,
        message: None,
        detail: None,
        body: Some(body.into()),
        retry_after: None,
    };
    for (action, class) in [
        (Action::error(403, "DENIED"), Class::Terminal),
        (Action::error(409, "UNKNOWN"), Class::Attempt),
        // What calls itself a list has to be one.
        (told(200, LIST_OF_NUMBERS), Class::Terminal),
        (Action::CutBody { after: 30 }, Class::Attempt),
    ] {
        let rule = host.add_rule(Rule::new(kind(), action.clone()));
        let error = listed(&client, &host, &image).await.unwrap_err();
        assert_eq!(error.class, class, "{action:?} {error}");
        host.remove_rule(rule);
    }
    let rule = host.add_rule(Rule::new(kind(), told(200, NO_LIST_AT_ALL)));
    let none = listed(&client, &host, &image).await.unwrap();
    assert_eq!(none, Listing::Of(Vec::new()), "a list may be null");
    host.remove_rule(rule);
}

/// An index by its own words, and none.
const LIST_OF_NUMBERS: &str =
    r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[7]}"#;
/// As some registries answer where nothing refers to a manifest.
const NO_LIST_AT_ALL: &str =
    r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":null}"#;

#[tokio::test]
async fn an_answer_that_is_no_list_means_no_api_and_is_remembered_for_its_repository_alone() {
    for (status, code, wanted, remembered) in [
        (404, None, Listing::None, true),
        (400, None, Listing::None, true),
        (405, None, Listing::None, true),
        (406, None, Listing::None, true),
        (501, None, Listing::None, true),
        (200, None, Listing::None, true),
        (303, None, Listing::None, true),
        (400, Some("UNSUPPORTED"), Listing::Unsupported, true),
        (404, Some("UNSUPPORTED"), Listing::Unsupported, true),
        (405, Some("UNSUPPORTED"), Listing::Unsupported, true),
        // What is not there says nothing about the registry: quay's word for it is that of a manifest it does not take.
        (404, Some("NAME_UNKNOWN"), Listing::None, false),
        (404, Some("MANIFEST_UNKNOWN"), Listing::None, false),
        (400, Some("MANIFEST_INVALID"), Listing::None, false),
    ] {
        let host = open().await;
        let (image, _) = referred(&host, 1);
        host.seed_image("src/b", "x", &image).unwrap();
        let client = client(&[&host]);
        let action = code.map_or_else(|| Action::page(status), |code| Action::error(status, code));
        let own = kind().repository("src/a");
        let rule = host.add_rule(Rule::new(own, action));
        let found = listed(&client, &host, &image).await.unwrap();
        assert_eq!(found, wanted, "{status} {code:?}");
        let found = listed(&client, &host, &image).await.unwrap();
        assert_eq!(found, Listing::None, "{status} {code:?}");
        let asked = if remembered { 1 } else { 2 };
        assert_eq!(host.count(&kind()), asked, "{status} {code:?}");
        // Another namespace, and whoever has to be sure, asks the registry.
        let subject = image.digest().to_string().parse().unwrap();
        let (none, progress) = (NONE(), Progress::default());
        let other = repository(&host, "src/b");
        let there = client.referrers(none.at(&other), subject, false, false, &progress);
        assert_eq!(
            there.await.unwrap(),
            Listing::Of(Vec::new()),
            "{status} {code:?}"
        );
        host.remove_rule(rule);
        let source = repository(&host, "src/a");
        let anew = client.referrers(none.at(&source), subject, false, true, &progress);
        assert!(matches!(anew.await.unwrap(), Listing::Of(found) if found.len() == 1));
    }
}

/// Answers every request with a page of this status.
async fn page(status: u16) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 4096];
            let _ = stream.read(&mut asked).await;
            let text = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: text/html\r\nretry-after: 600\r\ncontent-length: 6\r\nconnection: close\r\n\r\n<html>",
            );
            let _ = stream.write_all(text.as_bytes()).await;
        }
    });
    address.to_string()
}

#[tokio::test]
async fn a_redirect_to_a_web_page_means_no_api_whatever_the_page_answers() {
    for status in [200, 403, 404, 429, 500, 503] {
        let web = page(status).await;
        let front = front(&format!("http://{web}/packages")).await;
        let mut settings = settings(&[]);
        settings.plain_http.extend([web, front.clone()]);
        let client = client_with(settings);
        let source = format!("{front}/src/a").parse().unwrap();
        let subject = promotion_controller::image::Digest::of(b"x");
        let (none, progress) = (NONE(), Progress::default());
        let found = client.referrers(none.at(&source), subject, false, false, &progress);
        let found = tokio::time::timeout(PATIENCE, found).await;
        let found = found.unwrap_or_else(|_| panic!("{status}: waited for"));
        assert_eq!(found.unwrap(), Listing::None, "{status}");
        assert_eq!(progress.waiting(), None);
    }
}

/// A registry that answers by 303 to `target` where it is asked for referrers.
async fn front(target: &str) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let target = target.to_owned();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 4096];
            let read = stream.read(&mut asked).await.unwrap_or_default();
            let asked = String::from_utf8_lossy(&asked[..read]).into_owned();
            let text = if asked.contains("/referrers/") {
                format!(
                    "HTTP/1.1 303 See Other\r\nlocation: {target}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                )
            } else {
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}".into()
            };
            let _ = stream.write_all(text.as_bytes()).await;
        }
    });
    address.to_string()
}

#[tokio::test]
async fn a_registry_says_whether_it_took_note_of_the_subject_also_after_a_lost_answer() {
    let (from, to) = (open().await, open().await);
    let (_, referrers) = referred(&from, 1);
    let client = client(&[&from, &to]);
    let (source, target) = (repository(&from, "src/a"), repository(&to, "team/a"));
    let digest = Reference::Digest(referrers[0].digest().to_string().parse().unwrap());
    let (none, progress) = (NONE(), Progress::default());
    let fetched = client.get(&source, &digest, &none, &progress).await;
    let manifest = fetched.unwrap().unwrap();
    for (api, lost) in [(true, 0), (true, 2), (false, 0)] {
        to.update(|settings| settings.referrers = api);
        to.add_rule(Rule::new(Matcher::put_manifest(), Action::LoseAnswer).times(lost));
        let noted = client
            .copy_referrer(
                none.at(&source),
                manifest.clone(),
                none.at(&target),
                &progress,
            )
            .await
            .unwrap();
        assert_eq!(noted, api, "{lost}");
        to.clear_rules();
    }
    assert!(to.manifest("team/a", referrers[0].digest()).is_some());
}

#[tokio::test]
async fn distribution_has_no_api_and_takes_the_list() {
    let from = open().await;
    let to = Distribution::start(DistributionOptions::default())
        .await
        .unwrap();
    let (image, _) = referred(&from, 2);
    let mut settings = settings(&[&from]);
    settings.plain_http.push(to.host());
    settings.put_timeout = Duration::from_secs(5);
    let client = client_with(settings);
    let (source, none, progress) = (repository(&from, "src/a"), NONE(), Progress::default());
    let target = format!("{}/team/a", to.host()).parse().unwrap();
    let subject = image.digest().to_string().parse().unwrap();
    let there = client.referrers(none.at(&target), subject, true, false, &progress);
    assert_eq!(there.await.unwrap(), Listing::None);
    let Listing::Of(found) = listed(&client, &from, &image).await.unwrap() else {
        panic!("there is an API");
    };
    for referrer in &found {
        let digest = Reference::Digest(referrer.digest);
        let fetched = client.get(&source, &digest, &none, &progress).await;
        let manifest = fetched.unwrap().unwrap();
        let noted = client
            .copy_referrer(
                none.at(&source),
                manifest.clone(),
                none.at(&target),
                &progress,
            )
            .await
            .unwrap();
        assert!(!noted);
    }
    let list = list_with("x", None, &found).unwrap().unwrap();
    let name = tag(&image.digest().to_string().replace(':', "-"));
    let put = client
        .put_tag(&target, &name, &list, &none, || true, &progress)
        .await;
    assert!(matches!(put, Put::Written), "{put:?}");
    let read = client
        .get_authoritative(&target, &name, &none, &progress)
        .await;
    assert_eq!(read.unwrap().unwrap().referrers("x").unwrap(), found);
}

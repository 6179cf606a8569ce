//! Referrers: what a registry lists, what it does not, and what becomes of them on one with and one without the API.

use std::time::Duration;

use promotion_controller::embedded::{
    Action, Embedded, Image, ImageBuilder, ImageSpec, Kind, Layer, Matcher, Rule, Shape,
};
use promotion_controller::image::Reference;
use promotion_controller::machine::Reason;
use promotion_controller::registry::{
    Activity, Class, Credential, Put, Referrer, Registry, list_with,
};

use super::ground::{client, client_with, open, repository, settings, tag};
use crate::testbed::{Distribution, DistributionOptions};

const NONE: fn() -> Credential = Credential::anonymous;

fn kind() -> Matcher {
    Matcher::kind(Kind::Referrers)
}

/// An image at `src/a`, with so many referrers.
fn referred(host: &Embedded, count: usize) -> (Image, Vec<Image>) {
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
    client: &Registry,
    host: &Embedded,
    image: &Image,
) -> Result<Option<Vec<Referrer>>, promotion_controller::registry::Error> {
    let subject = image.digest().to_string().parse().unwrap();
    let (source, activity) = (repository(host, "src/a"), Activity::default());
    client
        .referrers(&source, subject, &NONE(), false, &activity)
        .await
}

#[tokio::test]
async fn a_list_is_read_to_its_last_page() {
    let host = open().await;
    host.update(|settings| settings.referrers_page = 2);
    let (image, referrers) = referred(&host, 7);
    let client = client(&[&host]);
    let found = listed(&client, &host, &image).await.unwrap().unwrap();
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
async fn only_a_404_means_that_there_is_no_api_and_it_is_remembered_for_the_registry() {
    let host = open().await;
    let (image, _) = referred(&host, 1);
    let client = client(&[&host]);
    host.add_rule(Rule::new(kind(), Action::TooMany { retry_after: None }).times(3));
    host.add_rule(Rule::new(kind(), Action::page(502)).times(2));
    let found = listed(&client, &host, &image).await.unwrap();
    assert_eq!(found.unwrap().len(), 1);
    host.clear_rules();
    for (action, class) in [
        (Action::error(403, "DENIED"), Class::Terminal),
        (Action::error(400, "UNSUPPORTED"), Class::Attempt),
        (Action::page(200), Class::Terminal),
    ] {
        let rule = host.add_rule(Rule::new(kind(), action.clone()));
        let error = listed(&client, &host, &image).await.unwrap_err();
        assert_eq!(error.class, class, "{action:?} {error}");
        host.remove_rule(rule);
    }
    // A repository that is unknown says nothing about the registry.
    let rule = host.add_rule(Rule::new(kind(), Action::error(404, "NAME_UNKNOWN")));
    assert_eq!(listed(&client, &host, &image).await.unwrap(), None);
    host.remove_rule(rule);
    assert!(listed(&client, &host, &image).await.unwrap().is_some());
    host.update(|settings| settings.referrers = false);
    host.reset_log();
    for _ in 0..3 {
        assert_eq!(listed(&client, &host, &image).await.unwrap(), None);
    }
    assert_eq!(host.count(&kind()), 1);
}

#[tokio::test]
async fn a_registry_says_whether_it_took_note_of_the_subject_also_after_a_lost_answer() {
    let (from, to) = (open().await, open().await);
    let (_, referrers) = referred(&from, 1);
    let client = client(&[&from, &to]);
    let (source, target) = (repository(&from, "src/a"), repository(&to, "team/a"));
    let digest = Reference::Digest(referrers[0].digest().to_string().parse().unwrap());
    let (none, activity) = (NONE(), Activity::default());
    let fetched = client.fetch(&source, &digest, &none, &activity).await;
    let manifest = fetched.unwrap().unwrap();
    for (api, lost) in [(true, 0), (true, 2), (false, 0)] {
        to.update(|settings| settings.referrers = api);
        to.add_rule(Rule::new(Matcher::put_manifest(), Action::LoseAnswer).times(lost));
        let noted = client
            .copy_referrer(&source, &manifest, &target, &none, &none, &activity)
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
    let (source, none, activity) = (repository(&from, "src/a"), NONE(), Activity::default());
    let target = format!("{}/team/a", to.host()).parse().unwrap();
    let subject = image.digest().to_string().parse().unwrap();
    let there = client.referrers(&target, subject, &none, true, &activity);
    assert_eq!(there.await.unwrap(), None);
    let found = listed(&client, &from, &image).await.unwrap().unwrap();
    for referrer in &found {
        let digest = Reference::Digest(referrer.digest);
        let fetched = client.fetch(&source, &digest, &none, &activity).await;
        let manifest = fetched.unwrap().unwrap();
        let noted = client
            .copy_referrer(&source, &manifest, &target, &none, &none, &activity)
            .await
            .unwrap();
        assert!(!noted);
    }
    let list = list_with("x", None, &found).unwrap().unwrap();
    let name = tag(&image.digest().to_string().replace(':', "-"));
    let put = client
        .put_tag(&target, &name, &list, &none, || true, &activity)
        .await;
    assert!(matches!(put, Put::Written), "{put:?}");
    let read = client.look(&target, &name, &none, &activity).await;
    assert_eq!(read.unwrap().unwrap().referrers("x").unwrap(), found);
}

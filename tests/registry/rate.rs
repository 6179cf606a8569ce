//! How fast a registry is asked: as fast as it serves, and little faster.

use std::time::{Duration, Instant};

use futures::future::join_all;
use promotion_controller::registry::{Credential, Progress, RegistryClient, Settings};
use quaylike::{ImageSpec, Options, Registry, RequestKind, Settings as Switches, Shape};

use crate::testbed::client::{client_with, repository, settings, tag};

/// A registry that admits so many requests a second.
async fn limited(rate: u32) -> Registry {
    let switches = Switches {
        rate,
        ..Switches::default()
    };
    let host = Registry::start(Options::default().settings(switches));
    let host = host.await.unwrap();
    host.seed_spec("team/a", "x", &ImageSpec::new(Shape::Oci, "x"))
        .unwrap();
    host
}

/// A client that finds the rate.
fn learning(host: &Registry) -> RegistryClient {
    let Settings { qps, qps_max, .. } = Settings::default();
    client_with(Settings {
        qps,
        qps_max,
        ..settings(&[host])
    })
}

/// Looks so often at a tag, all at once; how long that takes.
async fn look(client: &RegistryClient, host: &Registry, times: usize) -> Duration {
    let (target, none, name) = (
        repository(host, "team/a"),
        Credential::anonymous(),
        tag("x"),
    );
    let start = Instant::now();
    // Each could be followed by a tag PUT, which then does not come.
    let looks = (0..times).map(async |_| {
        let progress = Progress::default();
        let look = client.get_before_puts(&target, &name, 1, &none, &progress);
        look.await
    });
    for found in join_all(looks).await {
        assert!(found.unwrap().is_some());
    }
    start.elapsed()
}

/// Requests for manifests, and how many of them were refused.
fn asked(host: &Registry) -> (usize, usize) {
    let requests = host.requests_after(
        0,
        usize::MAX,
        &quaylike::Matcher::kind(RequestKind::Manifest),
    );
    let refused = requests.iter().filter(|r| r.status == Some(429)).count();
    (requests.len(), refused)
}

/// The rate that is kept to, as it is published.
fn rate(client: &RegistryClient, host: &Registry) -> u32 {
    let metrics = client.metrics().render();
    let series = format!(
        r#"registry_requests_per_second{{host="{}",zone="content"}} "#,
        host.host()
    );
    let rate = metrics.lines().find_map(|line| line.split_once(&series));
    rate.expect("published").1.parse().unwrap()
}

#[tokio::test]
async fn a_registry_without_a_limit_is_asked_faster_and_faster() {
    let host = limited(0).await;
    let client = learning(&host);
    look(&client, &host, 150).await;
    assert_eq!(asked(&host), (150, 0));
    let rate = rate(&client, &host);
    assert!((80..=1000).contains(&rate), "{rate}");
}

#[tokio::test]
async fn the_limit_of_a_registry_is_found_with_few_refusals() {
    let host = limited(30).await;
    let client = learning(&host);
    look(&client, &host, 120).await;
    let (requests, refused) = asked(&host);
    assert_eq!(requests, 120 + refused);
    assert!((1..=12).contains(&refused), "{refused} refused");
    let rate = rate(&client, &host);
    assert!((10..=38).contains(&rate), "{rate}");
}

#[tokio::test]
async fn a_fixed_rate_is_kept_to() {
    let host = limited(0).await;
    let client = client_with(Settings {
        qps: 100,
        qps_max: 100,
        ..settings(&[&host])
    });
    let took = look(&client, &host, 110).await;
    assert!(took >= Duration::from_millis(990), "{took:?}");
    assert_eq!(rate(&client, &host), 100);
}

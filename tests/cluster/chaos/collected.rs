//! The same on distribution, which collects only while it is stopped: between the requests and amid them.

use crate::testbed::PATIENCE;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::replicas::Replicas;
use super::requests::{Outcome, Requests, Sources};
use super::{FLOATS, SOURCES, assert_no_complaints, has_ended, seed, unfinished};
use crate::testbed::stage::Stage;
use crate::testbed::{Distribution, DistributionOptions, Image, ImageKind, RegistryClient, Signal};

/// Requests of each round.
const REQUESTS: usize = 3;

/// Sources in a registry of their own: distribution keeps an untagged manifest that any other of its repositories holds.
struct Apart {
    host: String,
    client: RegistryClient,
}

impl Sources for Apart {
    async fn make(&self, tag: &str, kind: usize) -> String {
        let image = Image::new(ImageKind::ALL[kind], tag);
        self.client.push(SOURCES, tag, &image).await.unwrap()
    }

    fn repository(&self) -> String {
        format!("{}/{SOURCES}", self.host)
    }
}

/// Pulls every tag and every digest that a float is known to have shown; returns what the tags are.
async fn pull_all(registry: &Distribution, shown: &[String]) -> BTreeMap<String, String> {
    let client = registry.client().unwrap();
    let mut tags = BTreeMap::new();
    let listed = client.tags(FLOATS).await.unwrap().into_iter();
    for tag in listed.filter(|tag| registry.is_put(FLOATS, tag)) {
        let pulled = client.pull(FLOATS, &tag).await;
        let pulled = pulled.unwrap_or_else(|error| panic!("{tag} does not pull whole: {error}"));
        tags.insert(tag, pulled[0].clone());
    }
    for digest in shown {
        let pulled = client.pull(FLOATS, digest).await;
        assert!(
            pulled.is_ok(),
            "{digest} was on a float: {pulled:?}; {tags:#?}"
        );
    }
    tags
}

#[tokio::test(flavor = "multi_thread")]
async fn what_distribution_collects_amid_requests_is_never_what_a_tag_or_a_displaced_digest_needs()
{
    let seed = seed();
    let mut draws = StdRng::seed_from_u64(seed);
    let start = || Distribution::start(DistributionOptions::default());
    let (registry, source) = tokio::try_join!(start(), start()).unwrap();
    let stage = Stage::elected("chaos-collected").await;
    let floats: Vec<String> = (0..3).map(|number| format!("f{number}")).collect();
    let mut begun = BTreeMap::new();
    for float in &floats[..2] {
        let image = Image::new(ImageKind::OciIndex, float);
        let digest = registry.client().unwrap().push(FLOATS, float, &image).await;
        begun.insert(float.clone(), digest.unwrap());
    }
    let sources = Apart {
        host: source.host(),
        client: source.client().unwrap(),
    };
    let mut replicas = Replicas::start(&stage, &[registry.host(), source.host()]);
    let repository = format!("{}/{FLOATS}", registry.host());
    let mut requests = Requests::new(seed, repository, &floats);
    let mut shown: Vec<String> = begun.values().cloned().collect();
    let api = stage.requests();
    for strike in [None, Some(Signal::Terminate), Some(Signal::Kill)] {
        for _ in 0..REQUESTS {
            let request = requests.next(&sources).await;
            stage.create(&request.name, &request.spec).await;
        }
        // Somebody leads, and has begun or is about to.
        let end = Instant::now() + PATIENCE;
        let leader = loop {
            replicas.tend();
            if let (Some(leader), _) = replicas.leader().await {
                break leader;
            }
            assert!(
                Instant::now() < end,
                "{}",
                replicas.log_of(&["lease".into()])
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        tokio::time::sleep(Duration::from_millis(draws.random_range(500..4_000))).await;
        if let Some(signal) = strike {
            replicas.strike(leader, signal, Duration::ZERO);
        }
        let open = unfinished(&api).await.len();
        let begun = Instant::now();
        let report = registry.garbage_collect().await.unwrap();
        let deleted = report
            .lines()
            .filter(|line| line.contains("eligible for deletion"))
            .count();
        println!(
            "collected in {:.1?} with {open} requests at work: {deleted} lines of what is deleted",
            begun.elapsed()
        );
        for float in &floats {
            let client = registry.client().unwrap();
            shown.extend(client.digest(FLOATS, float).await.unwrap());
        }
        pull_all(&registry, &shown).await;
    }
    let end = Instant::now() + PATIENCE;
    while !unfinished(&api).await.iter().all(has_ended) && Instant::now() < end {
        replicas.tend();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    registry.garbage_collect().await.unwrap();
    let done = stage.list().await;
    let mut outcome = Outcome::of(&begun, &requests.asked, &done);
    shown.extend(outcome.tags.values().cloned());
    outcome.compare_tags(&pull_all(&registry, &shown).await);
    println!("most attempts of an image: {}", outcome.attempts);
    assert_no_complaints(seed, outcome.complaints, [], &replicas);
}

//! What requests that are in work at once take from each other.

use crate::testbed::PATIENCE;
use std::time::Duration;

use quaylike::{ImageSpec, Matcher, Options, Registry, Shape};
use serde_json::Value;

use crate::testbed::stage::{Stage, phase, spec};

/// Images of each of the two large requests.
const LARGE: usize = 60;

/// A request of so many existing floats, each promoted from a source of its own.
fn images(registry: &Registry, name: &str, count: usize) -> Value {
    let host = registry.host();
    let seeded = |repository: &str, tag: &str, seed: String| {
        let spec = ImageSpec::new(Shape::Oci, &seed);
        registry.seed_spec(repository, tag, &spec).unwrap()
    };
    let pairs: Vec<(String, String)> = (0..count)
        .map(|n| {
            let tag = format!("{name}-{n}");
            seeded("ci", &tag, format!("old {tag}"));
            let new = seeded(&format!("src/{name}"), &tag, format!("new {tag}"));
            let source = format!("{host}/src/{name}@{new}");
            (source, format!("{host}/ci:{tag}"))
        })
        .collect();
    let pairs: Vec<_> = pairs.iter().map(|(a, b)| (&**a, &**b)).collect();
    spec(&pairs)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_request_passes_two_large_ones_that_are_ahead_of_it() {
    let stage = Stage::new("fair").await;
    let registry = Registry::start(Options::default()).await.unwrap();
    let plain = format!("--plain-http={}", registry.host());
    let _controller = stage.controller(&[&plain, "--registry-qps=100"]);
    let small = images(&registry, "small", 2);
    for name in ["one", "two"] {
        let large = images(&registry, name, LARGE);
        stage.create(name, &large).await;
    }
    // All of their images are on their way.
    let staging = Matcher {
        write: Some(true),
        ..Matcher::default()
    };
    while registry.count(&staging) < LARGE {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let before = registry.count(&Matcher::default());
    stage.create("small", &small).await;
    let done = stage.finished("small", PATIENCE).await;
    assert_eq!(phase(&done), "Posted");
    let meanwhile = registry.count(&Matcher::default()) - before;
    let open = stage.list().await;
    let unfinished = open.iter().filter(|r| phase(r) != "Posted").count();
    assert_eq!(unfinished, 2, "it waited for the large ones");
    for name in ["one", "two"] {
        assert_eq!(phase(&stage.finished(name, PATIENCE).await), "Posted");
    }
    let all = registry.count(&Matcher::default());
    assert!(
        meanwhile * 2 < all,
        "{meanwhile} of {all} requests came first"
    );
}

//! The controller as a process on the real API server.

use crate::testbed::PATIENCE;
use crate::testbed::floats::audited;

use quaylike::{ImageSpec, Registry, Shape};
use serde_json::json;

use crate::testbed::stage::{Stage, condition, phase};

#[tokio::test(flavor = "multi_thread")]
async fn an_applied_request_moves_its_floats_and_says_so() {
    let stage = Stage::new("line").await;
    let registry = Registry::start(audited()).await.unwrap();
    let host = registry.host();
    let image = |seed: &str| ImageSpec::new(Shape::Oci, seed).build().unwrap();
    let old = registry.seed_image("ci", "a", &image("old")).unwrap();
    let new = registry.seed_image("src/x", "a", &image("new")).unwrap();
    let _controller = stage.controller(&[&format!("--plain-http={host}")]);
    stage
        .create(
            "line",
            &json!({"images": [
                {"source": format!("{host}/src/x@{new}"), "float": format!("{host}/ci:a")},
                {"source": format!("{host}/src/x:a"), "float": format!("{host}/ci:first")},
            ]}),
        )
        .await;
    let done = stage.finished("line", PATIENCE).await;
    assert_eq!(phase(&done), "Posted");
    assert_eq!(condition(&done, "Complete").0, "True");
    assert_eq!(condition(&done, "Staged").0, "True");
    assert_eq!(condition(&done, "Failed").0, "False");
    let status = done.status.unwrap();
    assert_eq!(status.progress.as_deref(), Some("2/2"));
    let prune = &status.images[0].displaced[0];
    assert_eq!(prune.digest, old.to_string());
    let tags = registry.tags("ci");
    assert_eq!(tags["a"], new);
    assert_eq!(tags["a_incoming"], new);
    assert_eq!(tags["a__post1"], new);
    assert_eq!(tags["a__pre"], old);
    assert_eq!(tags[&prune.prune_tag], old);
    assert_eq!(tags["first"], new);
    assert_eq!(tags["first_incoming"], new);
    assert_eq!(tags.len(), 7, "{tags:?}");
    assert!(
        registry.audit_trail().is_empty(),
        "{:?}",
        registry.audit_trail()
    );
}

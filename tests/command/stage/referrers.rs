//! What refers to an image is staged with it where its registry lists it: a tag that lists it must have one writer.

use quaylike::{Image, ImageBuilder, Layer, Shape};
use serde_json::json;

use super::Build;

/// A build's image with a signature that its registry lists, and one that cosign would find by its name.
async fn signed(api: bool, referrers: &str) -> (Build, Image, Image) {
    let build = Build::with(api).await;
    let image = build.source("cli", Shape::Oci);
    let signature = ImageBuilder::artifact("sig").layer(Layer::named("sig"));
    let signature = signature.referring_to(&image, "sig").build().unwrap();
    build
        .sources
        .seed_untagged("build/pipeline", &signature)
        .unwrap();
    let by_name = format!("{}.sig", name(&image));
    let cosign = crate::testbed::floats::image("cosign");
    build
        .sources
        .seed_image("build/pipeline", &by_name, &cosign)
        .unwrap();
    let more = json!({"referrers": referrers});
    build
        .ground
        .documents(&[build.request("one", &[("cli", "cli")], &more)]);
    (build, image, signature)
}

fn name(image: &Image) -> String {
    image.digest().to_string().replace(':', "-")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_refers_to_an_image_is_staged_with_it() {
    for referrers in ["Require", "BestEffort"] {
        let (build, image, signature) = signed(true, referrers).await;
        let run = build.stage(&[]).await.exits(0);
        assert!(!run.stderr.contains("warning"), "{}", run.stderr);
        let registry = &build.ground.registry;
        assert!(registry.manifest("ci", signature.digest()).is_some());
        assert!(
            registry
                .tag("ci", &format!("{}.sig", name(&image)))
                .is_some()
        );
        assert_eq!(
            registry.tag("ci", &name(&image)),
            None,
            "the registry lists it itself"
        );
        build.ground.assert_never_dangling();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_api_what_is_required_is_refused_and_the_rest_is_a_warning() {
    const WHY: &str = "has no referrers API, and the tag that would list them must have one writer";
    let (build, _, signature) = signed(false, "Require").await;
    let run = build.stage(&[]).await.exits(1);
    assert_eq!(run.stdout, "");
    assert!(
        run.stderr.contains("ReferrersFailed") && run.stderr.contains(WHY),
        "{}",
        run.stderr
    );
    assert_eq!(build.ground.writes(), 0);
    let (build, image, _) = signed(false, "BestEffort").await;
    let run = build.stage(&[]).await.exits(0);
    assert!(
        run.stderr.contains("warning: ") && run.stderr.contains(WHY),
        "{}",
        run.stderr
    );
    assert_eq!(build.ground.registry.tag("ci", &name(&image)), None);
    assert!(
        build
            .ground
            .registry
            .manifest("ci", signature.digest())
            .is_none()
    );
    let (build, _, _) = signed(false, "Ignore").await;
    let run = build.stage(&[]).await.exits(0);
    assert!(!run.stderr.contains("warning"), "{}", run.stderr);
}

//! `stage`, the real binary: from the registry of a build to that of the floats, and what is then promoted without it.

mod input;
mod interrupted;
mod referrers;

use std::collections::BTreeMap;

use quaylike::{Image, ImageSpec, Matcher, Options, Registry, RequestKind, Settings, Shape};
use serde_json::{Value, json};

use crate::testbed::command::{Ground, Run, document, ended, verdict};

/// Sources on a build's registry, floats on another.
struct Build {
    ground: Ground,
    sources: Registry,
}

impl Build {
    async fn new() -> Self {
        Self::with(true).await
    }

    /// `referrers`: whether the floats' registry has the API for them.
    async fn with(referrers: bool) -> Self {
        let settings = Settings {
            audit: true,
            referrers,
            ..Settings::default()
        };
        Self {
            ground: Ground::with(Options::default().settings(settings)).await,
            sources: Registry::start(Options::default()).await.unwrap(),
        }
    }

    fn source(&self, tag: &str, shape: Shape) -> Image {
        let image = ImageSpec::new(shape, tag).build().unwrap();
        self.sources
            .seed_image("build/pipeline", tag, &image)
            .unwrap();
        image
    }

    /// A request of images, each a tag of the build and a float's.
    fn request(&self, name: &str, images: &[(&str, &str)], more: &Value) -> Value {
        let images = images.iter().map(|(source, float)| {
            let source = format!("{}/build/pipeline:{source}", self.sources.host());
            json!({"source": source, "float": self.ground.at(&format!("ci:{float}"))})
        });
        let mut spec = json!({"images": images.collect::<Vec<_>>()});
        for (field, value) in more.as_object().unwrap() {
            spec[field] = value.clone();
        }
        document(name, &spec)
    }

    fn plain(&self) -> String {
        format!("--plain-http={}", self.sources.host())
    }

    async fn stage(&self, arguments: &[&str]) -> Run {
        let plain = self.plain();
        let all = [&[plain.as_str()], arguments].concat();
        ended(self.ground.subcommand("stage", &all)).await
    }

    /// What a staged image is called in the request that is printed.
    fn staged(&self, image: &Image) -> String {
        format!("{}@{}", self.ground.at("ci"), image.digest())
    }

    fn assert_staged(&self, images: &[&Image]) {
        let pins: BTreeMap<_, _> = images
            .iter()
            .map(|image| (pin(image), image.digest().to_string()))
            .collect();
        let tags: BTreeMap<_, _> = self.ground.tags("ci").into_iter().collect();
        assert_eq!(tags, pins);
        let tags = self.ground.registry.tags("ci");
        let midnight = |tag: &String| tag.get(8..14) == Some("000000");
        assert!(tags.keys().all(midnight), "{tags:?}");
        self.ground.assert_never_dangling();
    }
}

/// The pin of an image, but for its day.
fn pin(image: &Image) -> String {
    let digest = image.digest().to_string();
    let hex = digest.split_once(':').unwrap().1;
    format!("STAMP_prune_{hex}__staged")
}

fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_staged_is_promoted_without_its_source_without_a_blob_and_with_twelve_requests_a_float()
 {
    let build = Build::new().await;
    let images = [
        build.source("cli", Shape::Oci),
        build.source("tests", Shape::Index),
        build.source("new", Shape::Docker),
    ];
    let old = ["cli", "tests"].map(|float| build.ground.seed("ci", float, &format!("old {float}")));
    let more = json!({"latch": "Independently", "pullSecret": {"name": "build"}, "pushSecret": {"name": "push"}});
    let one = build.request("one", &[("cli", "cli"), ("tests", "tests")], &more);
    let two = build.request(
        "two",
        &[("new", "new"), ("cli", "also")],
        &json!({"attempts": 7}),
    );
    let mut two = two;
    two["metadata"]["labels"] = json!({"build": "7"});
    build.ground.documents(&[one.clone(), two.clone()]);
    build.ground.registry.reset_log();

    let run = build.stage(&[]).await.exits(0);
    let mut wanted = [one, two];
    wanted[0]["spec"]
        .as_object_mut()
        .unwrap()
        .remove("pullSecret");
    for (request, index, image) in [(0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 0)] {
        wanted[request]["spec"]["images"][index]["source"] = build.staged(&images[image]).into();
    }
    assert_eq!(documents(&run.stdout), wanted);
    for float in ["cli", "tests", "new", "also"] {
        let line = format!(
            "Staged    {}  sha256:",
            build.ground.at(&format!("ci:{float}"))
        );
        assert!(run.stderr.contains(&line), "{line}:\n{}", run.stderr);
    }
    assert!(
        run.stderr.contains("3 images, 0 of them there already, "),
        "{}",
        run.stderr
    );
    let floats = ["cli", "tests"].map(|float| build.ground.registry.tag("ci", float).unwrap());
    assert_eq!(floats, old);
    for float in ["cli", "tests"] {
        build.ground.registry.delete_tag("ci", float).unwrap();
    }
    build.assert_staged(&images.each_ref());
    for (float, old) in ["cli", "tests"].iter().zip(["old cli", "old tests"]) {
        build.ground.seed("ci", float, old);
    }

    // As a controller would, which cannot reach the build's registry.
    build.sources.reset_log();
    build.ground.registry.reset_log();
    build.ground.documents_anew(&documents(&run.stdout));
    let run = build.ground.promote(&["-o", "json"]).await.exits(0);
    for item in run.items() {
        assert_eq!(verdict(&item), ("Posted", "Promoted"), "{}", run.stderr);
    }
    assert_eq!(build.sources.count(&Matcher::default()), 0);
    let log = build.ground.registry.requests(&Matcher::default());
    let blobs = [RequestKind::Blob, RequestKind::Upload, RequestKind::Storage];
    // What is asked of uploads is whether the credential may push: of none of them is a byte sent.
    let moved: Vec<_> = log
        .iter()
        .filter(|request| blobs.contains(&request.kind) && request.bytes_in + request.bytes_out > 0)
        .collect();
    assert_eq!(moved.len(), 0, "{moved:#?}");
    let manifests = log
        .iter()
        .filter(|request| request.kind == RequestKind::Manifest);
    let manifests = manifests.count();
    // Two floats that exist, and two that are new.
    assert!(
        manifests <= 2 * 12 + 2 * 7,
        "{manifests} requests: {log:#?}"
    );
    assert!(log.len() <= manifests + 2, "{log:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_requests_are_one_list_as_json_and_standard_output_has_nothing_else() {
    let build = Build::new().await;
    let image = build.source("cli", Shape::Oci);
    build
        .ground
        .documents(&[build.request("one", &[("cli", "cli")], &json!({}))]);
    for there in ["0", "1"] {
        let run = build.stage(&["-o", "json"]).await.exits(0);
        let items = run.items();
        assert_eq!(items.len(), 1);
        assert_eq!(
            items[0]["spec"]["images"][0]["source"],
            build.staged(&image)
        );
        assert_eq!(items[0]["status"], Value::Null);
        let line = format!("1 images, {there} of them there already, ");
        assert!(run.stderr.contains(&line), "{}", run.stderr);
    }
    build.assert_staged(&[&image]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_whose_name_denies_what_it_holds_is_refused_and_left_as_it_is() {
    let build = Build::new().await;
    let image = build.source("cli", Shape::Oci);
    build
        .ground
        .documents(&[build.request("one", &[("cli", "cli")], &json!({}))]);
    build.stage(&[]).await.exits(0);
    let (tag, _) = build.ground.registry.tags("ci").pop_first().unwrap();
    let foreign = build.ground.seed("ci", &tag, "foreign");
    let run = build.stage(&[]).await.exits(1);
    assert_eq!(run.stdout, "");
    for part in [
        "DigestMismatch",
        &tag,
        "which its name denies; remove that tag",
    ] {
        assert!(run.stderr.contains(part), "{part}:\n{}", run.stderr);
    }
    assert_eq!(build.ground.registry.tag("ci", &tag), Some(foreign));
    assert_ne!(foreign, image.digest());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_staged_and_is_gone_since_moves_no_float() {
    let build = Build::new().await;
    let image = build.source("cli", Shape::Oci);
    let old = build.ground.seed("ci", "cli", "old cli");
    build
        .ground
        .documents(&[build.request("one", &[("cli", "cli")], &json!({}))]);
    let staged = build.stage(&[]).await.exits(0);
    let (pin, _) = build.ground.registry.tags("ci").pop_first().unwrap();
    build.ground.registry.delete_tag("ci", &pin).unwrap();
    let held = build.ground.registry.manifest("ci", image.digest());
    assert!(held.is_none(), "nothing else holds it");
    build.ground.documents_anew(&documents(&staged.stdout));
    let run = build.ground.promote(&["-o", "json"]).await.exits(1);
    assert_eq!(verdict(&run.items()[0]), ("Failed", "SourceGone"));
    let tags = build.ground.registry.tags("ci");
    assert_eq!(tags, BTreeMap::from([("cli".to_owned(), old)]));
    build.ground.assert_never_dangling();
}

//! Labels that make tags expire: told where the registry acts on them, by an event and a condition, at the cost of one request.

use quaylike::{
    Action, Auth, AuthMode, GateSpec, Image, ImageBuilder, ImageSpec, Layer, Matcher, Options,
    Registry, RequestKind, Rule, Shape, User,
};
use serde_json::{Value, json};

use crate::testbed::command::{Ground, Run, document, put, verdict};

const LABEL: &str = "quay.expires-after";

fn labelled(value: &str) -> ImageBuilder {
    let layer = Layer::named("labelled");
    ImageBuilder::oci("labelled")
        .layer(layer)
        .label(LABEL, value)
}

/// A registry with bearer tokens, as quay has them, or one without.
async fn ground(quay: bool) -> Ground {
    let bot = User::new("bot", "bot-s3cret").push("ci").pull("src");
    let options = Options::default();
    let options = if quay {
        options.auth(Auth::new(AuthMode::Bearer).user(bot))
    } else {
        options
    };
    let ground = Ground::with(options).await;
    let entry = json!({"username": "bot", "password": "bot-s3cret"});
    let auths = if quay {
        json!({"auths": {ground.registry.host(): entry}})
    } else {
        json!({"auths": {}})
    };
    ground
        .folder
        .write("auth.json", &auths.to_string())
        .unwrap();
    ground.seed("ci", "a", "old");
    ground
}

/// Promotes an image of this registry to floats of the ground's.
async fn promote(ground: &Ground, from: &Registry, image: &Image, floats: &[&str]) -> Run {
    let source = format!("{}/src/x@{}", from.host(), image.digest());
    let images: Vec<Value> = floats
        .iter()
        .map(|float| json!({"source": source, "float": ground.at(&format!("ci:{float}"))}))
        .collect();
    ground.documents_anew(&[document("one", &json!({"images": images}))]);
    let plain = format!("--plain-http={}", from.host());
    let arguments = ["-o", "json", "--registry-config=auth.json", &plain];
    let run = ground.promote(&arguments).await.exits(0);
    assert_eq!(verdict(&run.items()[0]), ("Posted", "Promoted"));
    run
}

/// The condition's status and message.
fn expiring(run: &Run) -> Option<(String, String)> {
    let items = run.items();
    let conditions = items[0]["status"]["conditions"].as_array().unwrap().clone();
    let condition = conditions.iter().find(|c| c["type"] == "Expiring")?.clone();
    assert_eq!(condition["reason"], "Expiring");
    let text = |field: &str| condition[field].as_str().unwrap().to_owned();
    Some((text("status"), text("message")))
}

fn assert_told(run: &Run, float: &str, value: &str) {
    let (status, message) = expiring(run).unwrap();
    assert_eq!(status, "True");
    assert!(message.starts_with(&format!("{float}: ")), "{message}");
    assert!(message.contains(&format!("{LABEL}={value}")), "{message}");
    assert!(
        message.ends_with(&format!("build it without {LABEL}")),
        "{message}"
    );
    let told = |line: &&str| line.contains(LABEL) && line.contains(float);
    let told = run.stderr.lines().filter(told);
    assert_eq!(told.count(), 1, "{}", run.stderr);
}

/// Requests, pings and tokens apart; the first of all is one, refused because it was sent without a credential.
fn requests(registry: &Registry) -> usize {
    let refused = registry.requests(&Matcher::default());
    let refused = refused.iter().filter(|entry| entry.status == Some(401));
    let kinds = [
        RequestKind::Manifest,
        RequestKind::Blob,
        RequestKind::Upload,
    ];
    let all: usize = kinds
        .iter()
        .map(|kind| registry.count(&Matcher::kind(*kind)))
        .sum();
    all - refused.count()
}

fn blob_gets(registry: &Registry) -> usize {
    registry.count(&Matcher::kind(RequestKind::Blob).method("GET"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_config_is_read_once_for_all_floats_of_its_image() {
    let ground = ground(true).await;
    let image = labelled("2d").build().unwrap();
    ground.registry.seed_image("src/x", "a", &image).unwrap();
    let run = promote(&ground, &ground.registry, &image, &["a"]).await;
    assert_told(&run, &ground.at("ci:a"), "2d");
    // One request for the labels of each, the image and the one it displaces, beside those of every promotion and one mount for
    // each of two blobs.
    assert_eq!(requests(&ground.registry), 14 + 2);
    assert_eq!(blob_gets(&ground.registry), 2);
    ground.registry.reset_log();
    let run = promote(&ground, &ground.registry, &image, &["b", "c", "d"]).await;
    let (_, message) = expiring(&run).unwrap();
    for float in ["ci:b", "ci:c", "ci:d"] {
        let float = ground.at(float);
        assert_eq!(message.matches(&float).count(), 1, "{message}");
        let told = run
            .stderr
            .lines()
            .filter(|line| line.contains(&float) && line.contains(LABEL));
        assert_eq!(told.count(), 1, "{}", run.stderr);
    }
    assert_eq!(blob_gets(&ground.registry), 1);
}

/// What a run says of one image: phase, reason, message.
fn image_of(run: &Run) -> (String, String, String) {
    let items = run.items();
    let image = &items[0]["status"]["images"][0];
    let text = |field: &str| image[field].as_str().unwrap_or_default().to_owned();
    (text("phase"), text("reason"), text("message"))
}

#[tokio::test(flavor = "multi_thread")]
async fn pins_of_a_displaced_image_that_expire_are_told_and_so_is_a_plan() {
    let ground = ground(true).await;
    let displaced = labelled("3w").build().unwrap();
    ground.registry.seed_image("ci", "a", &displaced).unwrap();
    let plain = ImageBuilder::oci("plain").build().unwrap();
    ground.registry.seed_image("src/x", "a", &plain).unwrap();
    let spec = |mode: &str| {
        let source = format!("{}@{}", ground.at("src/x"), plain.digest());
        let images = json!([{"source": source, "float": ground.at("ci:a")}]);
        document("one", &json!({"images": images, "mode": mode}))
    };
    let arguments = ["-o", "json", "--registry-config=auth.json"];
    ground.documents_anew(&[spec("Plan")]);
    let run = ground.promote(&arguments).await.exits(0);
    let (phase, _, message) = image_of(&run);
    assert_eq!(phase, "Planned");
    assert!(
        message.ends_with("; expiring: old pins after 3w"),
        "{message}"
    );
    let writes = Matcher {
        write: Some(true),
        ..Matcher::default()
    };
    assert_eq!(ground.registry.count(&writes), 0);
    ground.documents_anew(&[spec("Promote")]);
    let run = ground.promote(&arguments).await.exits(0);
    let (status, message) = expiring(&run).unwrap();
    assert_eq!(status, "True");
    let float = ground.at("ci:a");
    assert!(
        message.starts_with(&format!("{float}: the image that it was on")),
        "{message}"
    );
    assert!(
        message.contains("quay.expires-after=3w") && message.contains("__pre"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_of_a_rescued_image_that_expires_is_told_and_so_is_a_plan() {
    let ground = ground(true).await;
    let plain = ImageBuilder::oci("plain").build().unwrap();
    ground.registry.seed_image("src/x", "a", &plain).unwrap();
    let source = format!("{}@{}", ground.at("src/x"), plain.digest());
    let arguments = ["-o", "json", "--registry-config=auth.json"];
    for (tag, float) in [("b_incoming", "b"), ("c__post1", "c")] {
        let rescued = labelled("3w").build().unwrap();
        ground.registry.seed_image("ci", tag, &rescued).unwrap();
        let images = json!([{"source": source, "float": ground.at(&format!("ci:{float}"))}]);
        for mode in ["Plan", "Promote"] {
            ground.seed("ci", float, "old");
            let spec = json!({"images": images, "mode": mode});
            ground.documents_anew(&[document("one", &spec)]);
            let run = ground.promote(&arguments).await.exits(0);
            if mode == "Plan" {
                let (_, _, message) = image_of(&run);
                assert!(
                    message.ends_with("; expiring: rescued pins after 3w"),
                    "{message}"
                );
                continue;
            }
            let (_, message) = expiring(&run).unwrap();
            let float = ground.at(&format!("ci:{float}"));
            let said = format!("{float}: an image that was on another of its tags");
            assert!(message.starts_with(&said), "{message}");
            assert!(message.contains("quay.expires-after=3w"), "{message}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pins_of_an_image_that_somebody_moved_the_float_to_meanwhile_are_told_too() {
    let ground = ground(true).await;
    let foreign = labelled("3w").build().unwrap();
    let foreign = ground.registry.seed_image("ci", "other", &foreign).unwrap();
    let plain = ImageBuilder::oci("plain").build().unwrap();
    ground.registry.seed_image("src/x", "a", &plain).unwrap();
    let source = format!("{}@{}", ground.at("src/x"), plain.digest());
    let images = json!([{"source": source, "float": ground.at("ci:a")}]);
    ground.documents_anew(&[document("one", &json!({"images": images}))]);
    let gate = ground.registry.gate(GateSpec::before(put("a__pre")));
    let running = ground.start(&["-o", "json", "--registry-config=auth.json"]);
    gate.reached().await;
    ground.registry.set_tag("ci", "a", foreign).unwrap();
    gate.open();
    let run = running.ended().await.exits(0);
    let (_, message) = expiring(&run).unwrap();
    let float = ground.at("ci:a");
    assert!(
        message.starts_with(&format!("{float}: the image that it was on")),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_makes_its_tags_immutable_is_refused_before_any_tag_is_written() {
    let ground = ground(true).await;
    let old = ground.registry.tag("ci", "a");
    let fixed = |seed: &str| {
        let layer = Layer::named(seed);
        let image = ImageBuilder::oci(seed).layer(layer);
        image.label("quay.immutable", "true").build().unwrap()
    };
    let index = Image::index(vec![fixed("one"), fixed("two")]).unwrap();
    let annotated = ImageBuilder::oci("annotated").annotation("quay.immutable", "true");
    for image in [fixed("one"), index, annotated.build().unwrap()] {
        ground.registry.seed_untagged("src/x", &image).unwrap();
        for mode in ["Plan", "Promote"] {
            let source = format!("{}@{}", ground.at("src/x"), image.digest());
            let images = json!([{"source": source, "float": ground.at("ci:a")}]);
            let spec = json!({"images": images, "mode": mode});
            ground.documents_anew(&[document("one", &spec)]);
            let run = ground
                .promote(&["-o", "json", "--registry-config=auth.json"])
                .await
                .exits(1);
            let (phase, reason, message) = image_of(&run);
            assert_eq!((&*phase, &*reason), ("Failed", "TagImmutable"), "{mode}");
            assert!(
                message.contains("build it without quay.immutable"),
                "{message}"
            );
        }
    }
    let tags = ground.registry.tags("ci");
    assert_eq!(tags.len(), 1, "{tags:?}");
    assert_eq!(ground.registry.tag("ci", "a"), old);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_config_is_read_on_its_way_and_an_annotation_with_the_manifest() {
    let (ground, sources) = (
        ground(true).await,
        Registry::start(Options::default()).await.unwrap(),
    );
    let streamed = labelled("3w").build().unwrap();
    sources.seed_image("src/x", "a", &streamed).unwrap();
    let run = promote(&ground, &sources, &streamed, &["a"]).await;
    assert_told(&run, &ground.at("ci:a"), "3w");
    let annotated = labelled("3w").annotation(LABEL, "1h").build().unwrap();
    sources.seed_image("src/x", "b", &annotated).unwrap();
    let run = promote(&ground, &sources, &annotated, &["b"]).await;
    assert_told(&run, &ground.at("ci:b"), "1h");
    let taken_back = labelled("3w").annotation(LABEL, "").build().unwrap();
    sources.seed_image("src/x", "c", &taken_back).unwrap();
    let run = promote(&ground, &sources, &taken_back, &["c"]).await;
    assert_eq!(expiring(&run), None);
    assert_eq!(
        blob_gets(&ground.registry),
        3,
        "of the image that `a` was on, and where an annotation says nothing of the other label"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_does_not_act_on_labels_is_not_asked_for_them() {
    let ground = ground(false).await;
    let image = labelled("2d").build().unwrap();
    ground.registry.seed_image("src/x", "a", &image).unwrap();
    let run = promote(&ground, &ground.registry, &image, &["a"]).await;
    assert_eq!(expiring(&run), None);
    assert!(!run.stderr.contains(LABEL), "{}", run.stderr);
    // May it push? Without tokens an upload session is opened and cancelled.
    assert_eq!(requests(&ground.registry), 12 + 2 + 2);
    assert_eq!(blob_gets(&ground.registry), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_takes_a_get_and_a_put_for_each_child_beside_what_an_image_takes() {
    let ground = ground(false).await;
    let child = |seed: &str| ImageBuilder::oci(seed).layer(Layer::named(seed)).build();
    let index = Image::index(vec![child("one").unwrap(), child("two").unwrap()]).unwrap();
    ground.registry.seed_image("src/x", "a", &index).unwrap();
    promote(&ground, &ground.registry, &index, &["a"]).await;
    // Two for the question whether it may push, four blobs mounted, two children.
    assert_eq!(requests(&ground.registry), 12 + 2 + 4 + 2 * 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_expires_by_what_all_its_children_say_wherever_they_come_from() {
    let child = |seed: &str, value: &str| {
        let image = ImageBuilder::oci(seed).layer(Layer::named(seed));
        let image = if value.is_empty() {
            image
        } else {
            image.label(LABEL, value)
        };
        image.build().unwrap()
    };
    for (values, expires) in [
        (["2d", "2d"], true),
        (["2d", "3d"], false),
        (["", "2d"], false),
    ] {
        let children = vec![child("one", values[0]), child("two", values[1])];
        let index = Image::index(children).unwrap();
        let ground = ground(true).await;
        let elsewhere = Registry::start(Options::default()).await.unwrap();
        for sources in [&ground.registry, &elsewhere] {
            sources.seed_image("src/x", "a", &index).unwrap();
            ground.registry.reset_log();
            let float = if sources.addr() == elsewhere.addr() {
                "c"
            } else {
                "b"
            };
            let run = promote(&ground, sources, &index, &[float]).await;
            let said = expiring(&run);
            assert_eq!(said.is_some(), expires, "{values:?}");
            if expires {
                assert_told(&run, &ground.at(&format!("ci:{float}")), "2d");
            }
            // No more children are read than it takes to know.
            assert!(blob_gets(&ground.registry) <= if values[0].is_empty() { 1 } else { 2 });
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_that_cannot_be_read_hinder_nothing() {
    let ground = ground(true).await;
    let image = labelled("5d").build().unwrap();
    ground.registry.seed_image("src/x", "b", &image).unwrap();
    for action in [Action::page(503), Action::page(404), Action::DropConnection] {
        ground.registry.reset_log();
        ground.registry.clear_rules();
        let blob = Matcher::kind(RequestKind::Blob).method("GET");
        ground.registry.add_rule(Rule::new(blob, action.clone()));
        let run = promote(&ground, &ground.registry, &image, &["b"]).await;
        assert_eq!(expiring(&run), None, "{action:?}");
        // Beside the mount, and once more where that failed.
        assert!(blob_gets(&ground.registry) <= 2, "{action:?}");
        for tag in ["b", "b_incoming"] {
            ground.registry.delete_tag("ci", tag).unwrap();
        }
    }
}

/// Q4: of an index that a tag holds quay keeps what it lists, not what that lists in turn. Whether the index comes from elsewhere,
/// is mounted from beside, or lies in the float's own repository.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_indexes_is_refused_on_quay_before_anything_is_written() {
    let nested = ImageSpec::new(Shape::Nested, "nested").build().unwrap();
    let elsewhere = Registry::start(Options::default()).await.unwrap();
    elsewhere.seed_image("src/x", "n", &nested).unwrap();
    for quay in [true, false] {
        let ground = ground(quay).await;
        for repository in ["src/x", "ci"] {
            ground
                .registry
                .seed_image(repository, "n", &nested)
                .unwrap();
        }
        let hosts = [
            format!("{}/src/x", elsewhere.host()),
            format!("{}/src/x", ground.registry.host()),
            format!("{}/ci", ground.registry.host()),
        ];
        for (number, from) in hosts.iter().enumerate() {
            for mode in ["Plan", "Promote"] {
                ground.registry.reset_log();
                let source = format!("{from}@{}", nested.digest());
                let float = ground.at(&format!("ci:f{number}"));
                let images = json!([{"source": source, "float": float}]);
                let spec = json!({"images": images, "mode": mode});
                ground.documents_anew(&[document("one", &spec)]);
                let plain = format!("--plain-http={}", elsewhere.host());
                let arguments = ["-o", "json", "--registry-config=auth.json", &plain];
                let run = ground.promote(&arguments).await;
                let items = run.items();
                let (phase, reason) = verdict(&items[0]);
                if !quay {
                    assert!(["Planned", "Posted"].contains(&phase), "{from}: {reason}");
                    continue;
                }
                assert_eq!((phase, reason), ("Failed", "UnsupportedManifest"), "{from}");
                let message = &items[0]["status"]["images"][0]["message"];
                assert!(
                    message
                        .as_str()
                        .unwrap()
                        .contains("list them all in one index")
                );
                // Whether it may push is asked by an upload that is begun and given up.
                for method in ["PUT", "PATCH"] {
                    let written = Matcher {
                        method: Some(method.into()),
                        ..Matcher::default()
                    };
                    let count = ground.registry.count(&written);
                    let log = ground.registry.requests(&written);
                    assert_eq!(count, 0, "{from} {mode}: {log:?}");
                }
            }
        }
    }
}

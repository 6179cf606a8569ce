//! Labels that make tags expire: told where the registry acts on them, by an event and a condition, at the cost of one request.

use promotion_controller::embedded::{
    Action, Auth, AuthMode, Embedded, Image, ImageBuilder, ImageSpec, Kind, Layer, Matcher,
    Options, Rule, Shape, User,
};
use serde_json::{Value, json};

use super::ground::{Ground, Run, document, verdict};

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
async fn promote(ground: &Ground, from: &Embedded, image: &Image, floats: &[&str]) -> Run {
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
    let told = run.stderr.lines().filter(|line| line.contains(LABEL));
    assert_eq!(told.count(), 1, "{}", run.stderr);
}

/// Requests, pings and tokens apart; the first of all is one, refused because it was sent without a credential.
fn requests(registry: &Embedded) -> usize {
    let refused = registry.requests(&Matcher::default());
    let refused = refused.iter().filter(|entry| entry.status == Some(401));
    let kinds = [Kind::Manifest, Kind::Blob, Kind::Upload];
    let all: usize = kinds
        .iter()
        .map(|kind| registry.count(&Matcher::kind(*kind)))
        .sum();
    all - refused.count()
}

fn blob_gets(registry: &Embedded) -> usize {
    registry.count(&Matcher::kind(Kind::Blob).method("GET"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_config_is_read_once_for_all_floats_of_its_image() {
    let ground = ground(true).await;
    let image = labelled("2d").build().unwrap();
    ground.registry.seed_image("src/x", "a", &image).unwrap();
    let run = promote(&ground, &ground.registry, &image, &["a"]).await;
    assert_told(&run, &ground.at("ci:a"), "2d");
    // One request for the labels, beside those of every promotion and one mount for each of two blobs.
    assert_eq!(requests(&ground.registry), 13 + 2);
    assert_eq!(blob_gets(&ground.registry), 1);
    ground.registry.reset_log();
    let run = promote(&ground, &ground.registry, &image, &["b", "c", "d"]).await;
    assert_told(&run, &ground.at("ci:b"), "2d");
    assert_eq!(blob_gets(&ground.registry), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_config_is_read_on_its_way_and_an_annotation_with_the_manifest() {
    let (ground, sources) = (
        ground(true).await,
        Embedded::start(Options::default()).await.unwrap(),
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
    assert_eq!(blob_gets(&ground.registry), 0);
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
async fn an_index_has_no_labels_and_labels_that_cannot_be_read_hinder_nothing() {
    let ground = ground(true).await;
    let index = Image::index(vec![labelled("2d").build().unwrap()]).unwrap();
    ground.registry.seed_image("src/x", "a", &index).unwrap();
    let run = promote(&ground, &ground.registry, &index, &["a"]).await;
    assert_eq!(expiring(&run), None);
    assert_eq!(blob_gets(&ground.registry), 0);
    let image = labelled("5d").build().unwrap();
    ground.registry.seed_image("src/x", "b", &image).unwrap();
    for action in [Action::page(503), Action::page(404), Action::DropConnection] {
        ground.registry.reset_log();
        ground.registry.clear_rules();
        let blob = Matcher::kind(Kind::Blob).method("GET");
        ground.registry.add_rule(Rule::new(blob, action.clone()));
        let run = promote(&ground, &ground.registry, &image, &["b"]).await;
        assert_eq!(expiring(&run), None, "{action:?}");
        assert!(blob_gets(&ground.registry) <= 1, "{action:?}");
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
    let elsewhere = Embedded::start(Options::default()).await.unwrap();
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

//! `incoming: Remove`: the tag that an image was staged on goes once the float holds the image, where the registry deletes tags alone.

use quaylike::{Deletion, Matcher, RequestKind};
use serde_json::{Value, json};

use crate::testbed::command::{Ground, Run, verdict};

/// A float that is written once, and one that exists.
async fn ground(deletion: Deletion) -> Ground {
    let ground = Ground::new().await;
    ground
        .registry
        .update(|settings| settings.deletion = deletion);
    ground.seed("ci", "a", "old");
    ground.seed("src/x", "a", "new-a");
    ground.seed("src/x", "once", "new-once");
    let images = [(":a", "a"), (":once", "once")];
    ground.documents(&[ground.request("one", &images, &json!({"incoming": "Remove"}))]);
    ground
}

/// The tags of the floats' repository but those that the trial left.
fn tags(ground: &Ground) -> Vec<String> {
    let tags = ground.tags("ci").into_iter().map(|(tag, _)| tag);
    tags.filter(|tag| !tag.contains("deletion_probe")).collect()
}

fn probes(ground: &Ground) -> usize {
    ground.registry.tags("ci").len() - tags(ground).len()
}

fn messages(run: &Run) -> Vec<String> {
    let items = run.items();
    assert_eq!(verdict(&items[0]), ("Posted", "Promoted"), "{run:?}");
    let images = items[0]["status"]["images"].as_array().unwrap().iter();
    let message = |image: &Value| image["message"].as_str().unwrap_or_default().to_owned();
    images.map(message).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_incoming_tag_is_removed_after_one_trial_and_a_dry_run_announces_it() {
    let ground = ground(Deletion::OfTheTag).await;
    let dry = ground.promote(&["--dry-run", "-o", "json"]).await.exits(0);
    let report: Value = serde_json::from_str(&dry.stdout).unwrap();
    for image in report["requests"][0]["images"].as_array().unwrap() {
        let last = image["tags"].as_array().unwrap().last().unwrap();
        assert!(
            last["tag"].as_str().unwrap().ends_with("_incoming"),
            "{last}"
        );
        assert_eq!(last["digest"], Value::Null, "{last}");
    }
    let run = ground.promote(&["-o", "json"]).await.exits(0);
    assert_eq!(messages(&run), ["", ""]);
    let pinned = ["STAMP_prune_a", "a", "a__post1", "a__pre", "once"];
    assert_eq!(
        (tags(&ground), probes(&ground)),
        (pinned.map(String::from).to_vec(), 0)
    );
    let deletions = Matcher::kind(RequestKind::Manifest).method("DELETE");
    assert_eq!(ground.registry.count(&deletions), 4, "two tried, two meant");
    let digests = deletions.tag(false);
    assert_eq!(ground.registry.count(&digests), 0);
    ground.assert_never_dangling();
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_registry_deletes_no_tags_or_the_image_with_them_incoming_stays_and_that_is_told() {
    for (deletion, words, left) in [
        (Deletion::Refused, "the operation is unsupported", 2),
        (
            Deletion::OfTheImage,
            "deletes the image with a tag of it",
            0,
        ),
    ] {
        let ground = ground(deletion).await;
        let run = ground.promote(&["-o", "json"]).await.exits(0);
        for (message, float) in messages(&run).iter().zip(["a", "once"]) {
            let told = format!("{float}_incoming was not removed: ");
            assert!(message.starts_with(&told), "{message}");
            let warned = |line: &str| line.contains(&told) && line.contains(words);
            assert!(run.stderr.lines().any(warned), "{run:?}");
        }
        let there = tags(&ground);
        for incoming in ["a_incoming", "once_incoming"] {
            assert!(there.iter().any(|tag| tag == incoming), "{there:?}");
        }
        assert_eq!(probes(&ground), left);
        ground.assert_never_dangling();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_somebody_else_moved_the_float_the_incoming_tag_stays() {
    let ground = ground(Deletion::OfTheTag).await;
    let gate = quaylike::GateSpec::after(crate::testbed::command::put("once"));
    let gate = ground.registry.gate(gate);
    let running = ground.start(&["-o", "json"]);
    gate.reached().await;
    ground.seed("ci", "once", "foreign");
    gate.open();
    let run = running.ended().await.exits(0);
    let messages = messages(&run);
    assert!(
        messages[1].contains("somebody else moved the float"),
        "{messages:?}"
    );
    let once = ground.registry.tag("ci", "once_incoming").unwrap();
    assert_eq!(Some(once), ground.registry.tag("src/x", "once"));
    assert_eq!(ground.registry.tag("ci", "a_incoming"), None);
}

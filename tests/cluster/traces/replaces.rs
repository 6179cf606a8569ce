//! `replaces` and `undo`: a float moves only off what its request names, and what is taken back is hidden from whoever reverts.

use quaylike::{Digest, GateSpec};
use serde_json::{Value, json};

use super::ground::{FLOATS, Ground, SETTLE, SOURCES, first_image, image, put};
use super::pins::revert;

/// One image of a source of this seed, with what its float has to be on.
fn images(ground: &Ground, float: &str, seed: &str, replaces: &str) -> Value {
    let source = format!("{}/{SOURCES}@{}", ground.host, ground.source(seed));
    let float = format!("{}/{FLOATS}:{float}", ground.host);
    json!([{"source": source, "float": float, "replaces": replaces}])
}

async fn create(ground: &Ground, name: &str, images: &Value, undo: bool) {
    let mut more = json!({"images": images});
    if undo {
        more["undo"] = json!(true);
    }
    ground.request(name, "", "", &more).await;
}

/// The request ended because its float was elsewhere; the message says where it is.
async fn assert_unmet(ground: &Ground, name: &str, place: &str) {
    let ended = ground.ended(name).await;
    let image = first_image(&ended);
    let reason = image.reason.as_deref();
    assert_eq!(reason, Some("PreconditionFailed"), "{name}: {image:?}");
    let message = image.message.unwrap_or_default();
    assert!(message.contains(place), "{name}: {message}");
    assert_eq!(ended.status.unwrap().committed, None, "{name}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_float_is_moved_off_nothing_but_what_replaces_says() {
    let ground = Ground::new("replaces").await;
    let old = ground.seed("f", "old");
    let _controller = ground.controller(SETTLE);
    let at = |tag: &str| ground.registry.tag(FLOATS, tag);

    create(
        &ground,
        "a",
        &images(&ground, "f", "a", &old.to_string()),
        false,
    )
    .await;
    ground.posted("a").await;
    let a = image("a").digest();
    assert_eq!(at("f"), Some(a));
    // It is where it should go already, whatever it had to be on.
    create(
        &ground,
        "again",
        &images(&ground, "f", "a", &old.to_string()),
        false,
    )
    .await;
    assert_eq!(
        first_image(&ground.posted("again").await).unchanged,
        Some(true)
    );
    create(
        &ground,
        "b",
        &images(&ground, "f", "b", &old.to_string()),
        false,
    )
    .await;
    assert_unmet(&ground, "b", &format!("is on {a}")).await;
    let gone = Digest::of(b"gone").to_string();
    create(&ground, "c", &images(&ground, "none", "c", &gone), false).await;
    assert_unmet(&ground, "c", "is absent").await;

    // A version is made once.
    create(&ground, "v1", &images(&ground, "v", "a", "None"), false).await;
    create(&ground, "v2", &images(&ground, "v", "b", "None"), false).await;
    ground.posted("v1").await;
    assert_unmet(&ground, "v2", &format!("is on {a}")).await;
    assert_eq!((at("f"), at("v"), at("none")), (Some(a), Some(a), None));
}

/// Backed up is not enough: the float is looked at again before the commit.
#[tokio::test(flavor = "multi_thread")]
async fn a_move_after_the_backup_fails_the_whole_group_before_its_commit() {
    let ground = Ground::new("replaces-moved").await;
    let old = ["f", "g"].map(|tag| ground.seed(tag, &format!("old {tag}")));
    let mut both = images(&ground, "f", "a", &old[0].to_string());
    let second = images(&ground, "g", "b", &old[1].to_string());
    both.as_array_mut()
        .unwrap()
        .extend(second.as_array().unwrap().clone());
    let backup = ground.gate(GateSpec::after(put("g__pre")));
    let _controller = ground.controller(SETTLE);
    create(&ground, "r", &both, false).await;
    ground.reached(&backup).await;
    let foreign = ground.foreign("g", "foreign");
    backup.open();
    let ended = ground.ended("r").await.status.unwrap();
    assert_eq!(ended.committed, None);
    let reasons: Vec<_> = ended.images.iter().map(|i| i.reason.as_deref()).collect();
    assert_eq!(reasons, [Some("Held"), Some("PreconditionFailed")]);
    let at = |tag: &str| ground.registry.tag(FLOATS, tag);
    assert_eq!((at("f"), at("g")), (Some(old[0]), Some(foreign)));
}

/// P11 again, if it were pinned like anything else.
#[tokio::test(flavor = "multi_thread")]
async fn a_revert_never_meets_what_an_undo_took_away() {
    let ground = Ground::new("undo").await;
    let old = ground.seed("f", "old");
    let _controller = ground.controller(SETTLE);
    ground.promote("bad", "bad", "f").await;
    ground.posted("bad").await;
    let bad = image("bad").digest();
    let back = json!([{
        "source": format!("{}/{FLOATS}@{old}", ground.host),
        "float": format!("{}/{FLOATS}:f", ground.host),
        "replaces": bad.to_string(),
    }]);
    create(&ground, "undo", &back, true).await;
    let undone = first_image(&ground.posted("undo").await);
    assert_eq!(ground.registry.tag(FLOATS, "f"), Some(old));
    let tags: Vec<_> = undone.displaced.iter().map(|pin| &pin.prune_tag).collect();
    assert!(tags[0].ends_with("_prune_f__broken"), "{tags:?}");
    assert_eq!(undone.displaced[0].digest, bad.to_string());
    assert_eq!(revert(&ground, "f"), Some(old));
    let pins = [
        ("f", old),
        ("f_incoming", old),
        ("f__pre", bad),
        ("f__post1", old),
    ];
    ground.assert_tags(&pins, &[old, bad]);
}

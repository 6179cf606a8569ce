//! A group that fails after its commit: with `onFailure: Hold` the floats that have moved stay, with `Rollback` they are taken
//! back, whatever comes between.

use crate::testbed::PATIENCE;
use crate::testbed::floats::audited;
use std::time::Duration;

use promotion_controller::api::{ImageStatus, PromotionRequest};
use promotion_controller::engine::leadership::Leadership;
use quaylike::{Action, Digest, Gate, GateSpec, Matcher, Registry, Rule};
use serde_json::{Value, json};

use crate::points::{Case, hold_at_every_point};
use crate::testbed::RunDir;
use crate::testbed::command;
use crate::testbed::inside::{self, OnSave};
use crate::testbed::stage::{condition, object, phase};
use crate::traces::ground::{FLOATS, Ground, LONG_SETTLE, SETTLE, SOURCES, image, look, put};

/// The registry refuses this tag for good.
fn refuse(registry: &Registry, matcher: Matcher) -> u64 {
    registry.add_rule(Rule::new(matcher, Action::error(403, "DENIED")))
}

/// Floats on images of their own, and a request that promotes another image to each.
fn group(registry: &Registry, floats: &[&str], on_failure: &str) -> Value {
    let host = registry.host();
    let images = floats.iter().map(|float| {
        let old = image(&format!("old {float}"));
        registry.seed_image(FLOATS, float, &old).unwrap();
        let new = image(&format!("new {float}"));
        let digest = registry.seed_image(SOURCES, float, &new).unwrap();
        json!({
            "source": format!("{host}/{SOURCES}@{digest}"),
            "float": format!("{host}/{FLOATS}:{float}"),
        })
    });
    let images: Vec<Value> = images.collect();
    json!({"images": images, "attempts": 20, "onFailure": on_failure})
}

fn new(float: &str) -> Digest {
    image(&format!("new {float}")).digest()
}

fn old(float: &str) -> Digest {
    image(&format!("old {float}")).digest()
}

fn at(registry: &Registry, tag: &str) -> Option<Digest> {
    registry.tag(FLOATS, tag)
}

fn images(object: &PromotionRequest) -> Vec<ImageStatus> {
    object.status.clone().unwrap_or_default().images
}

/// Each image's phase and reason.
fn ends(object: &PromotionRequest) -> Vec<(String, String)> {
    let images = images(object).into_iter();
    let end = |i: ImageStatus| (i.phase, i.reason.unwrap_or_default());
    images.map(end).collect()
}

fn pairs(ends: &[(&str, &str)]) -> Vec<(String, String)> {
    let pair = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
    ends.iter().map(pair).collect()
}

/// The digests that a float's stamped pins hold which end so.
fn pruned(registry: &Registry, float: &str, end: &str) -> Vec<Digest> {
    let suffix = format!("_prune_{float}{end}");
    let tags = registry.tags(FLOATS).into_iter();
    let pins = tags.filter(|(tag, _)| tag.ends_with(&suffix));
    pins.map(|(_, digest)| digest).collect()
}

/// A float is where it was: if it had moved, what it had moved to is pinned twice, and so is what it is on.
fn assert_back(registry: &Registry, object: &PromotionRequest, float: &str) {
    let told = || format!("{float}: {:#?}\n{:?}", object.status, registry.tags(FLOATS));
    let (old, new) = (old(float), new(float));
    let history = registry.history(FLOATS, float);
    let digests: Vec<_> = history.into_iter().filter_map(|c| c.digest).collect();
    let moved = digests.contains(&new);
    let way = if moved {
        vec![old, new, old]
    } else {
        vec![old]
    };
    assert_eq!(digests, way, "{}", told());
    assert_eq!(at(registry, &format!("{float}_incoming")), Some(new));
    let pre = if moved { new } else { old };
    let pre_is = at(registry, &format!("{float}__pre"));
    assert_eq!(pre_is, Some(pre), "{}", told());
    let broken = if moved { vec![new] } else { Vec::new() };
    assert_eq!(pruned(registry, float, ""), [old], "{}", told());
    assert_eq!(pruned(registry, float, "__broken"), broken, "{}", told());
    let repository = format!("/{FLOATS}:{float}");
    let images = images(object);
    let image = images
        .iter()
        .find(|i| i.float.ends_with(&repository))
        .unwrap();
    let message = image.message.clone().unwrap_or_default();
    assert_eq!(message.starts_with("back on"), moved, "{}", told());
    assert_eq!(
        (image.phase.as_str(), &image.rollback_tag),
        ("Failed", &None)
    );
}

/// One float, refused at its very end: the whole of it is the same every time.
#[tokio::test(flavor = "multi_thread")]
async fn a_float_that_is_taken_back_ends_the_same_whatever_crash_or_lost_answer_came_between() {
    let tags = hold_at_every_point(Case {
        spec: |floats, _| {
            refuse(floats, put("f__post1"));
            group(floats, &["f"], "Rollback")
        },
        phase: "Failed",
        same: true,
        check: |floats, object| {
            assert_back(floats, object, "f");
            assert_eq!(ends(object), pairs(&[("Failed", "PermissionDenied")]));
        },
    })
    .await;
    assert_eq!(tags.len(), 5, "{tags:?}");
}

/// How far the other float got when one failed may differ; that it is back may not.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_taken_back_as_a_whole_whatever_crash_or_lost_answer_came_between() {
    hold_at_every_point(Case {
        spec: |floats, _| {
            refuse(floats, put("g__post1"));
            group(floats, &["f", "g"], "Rollback")
        },
        phase: "Failed",
        same: false,
        check: |floats, object| {
            assert_back(floats, object, "f");
            assert_back(floats, object, "g");
            let (_, reason, message) = condition(object, "Failed");
            assert_eq!(reason, "PermissionDenied");
            assert!(message.contains("/ci:g: back on"), "{message}");
        },
    })
    .await;
}

/// The way back by hand: the sources are tags of the floats' repository that the promotion itself may overwrite.
#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_from_pre_or_a_prune_tag_ends_on_the_image_these_named_whatever_came_between() {
    let tags = hold_at_every_point(Case {
        spec: |floats, _| {
            let host = floats.host();
            let mut images = Vec::new();
            for (float, source) in [("f", "20260101000000_prune_f"), ("g", "g__pre")] {
                for suffix in ["", "_incoming", "__post1"] {
                    let tag = format!("{float}{suffix}");
                    let bad = image(&format!("new {float}"));
                    floats.seed_image(FLOATS, &tag, &bad).unwrap();
                }
                let prune = format!("20260101000000_prune_{float}");
                for tag in [&prune, &format!("{float}__pre")] {
                    let good = image(&format!("old {float}"));
                    floats.seed_image(FLOATS, tag, &good).unwrap();
                }
                images.push(json!({
                    "source": format!("{host}/{FLOATS}:{source}"),
                    "float": format!("{host}/{FLOATS}:{float}"),
                }));
            }
            json!({"images": images, "attempts": 20})
        },
        phase: "Posted",
        same: true,
        check: |floats, object| {
            for (float, image) in ["f", "g"].into_iter().zip(images(object)) {
                assert_eq!(at(floats, float), Some(old(float)));
                assert_eq!(image.source.unwrap().digest, old(float).to_string());
                assert_eq!(pruned(floats, float, ""), [old(float), new(float)]);
            }
        },
    })
    .await;
    assert_eq!(tags.len(), 12, "{tags:?}");
}

/// The answer to the write that takes the float back is lost, that is recorded, and then the process dies: the next one has to find
/// out by itself that the float is back by its own hand.
#[tokio::test(flavor = "multi_thread")]
async fn a_float_is_known_to_be_taken_back_when_the_process_dies_after_the_answer_was_lost() {
    let settle = Duration::from_millis(300);
    let registry = Registry::start(audited()).await;
    let registry = registry.unwrap();
    let spec = group(&registry, &["f"], "Rollback");
    refuse(&registry, put("f__post1"));
    let lost = Rule::new(put("f"), Action::LoseAnswer);
    let nth = quaylike::When::Nth(2);
    registry.add_rule(lost.when(nth));
    let folder = RunDir::create("lost-back").unwrap();
    let start = |on_save| {
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { runtime }.worker_threads(1).enable_all().build().unwrap();
        let engine = {
            let _inside = runtime.enter();
            let state = folder.join("state.yaml");
            let hosts = vec![registry.host()];
            let objects = vec![object("one", &spec)];
            inside::start(objects, &state, hosts, settle, Leadership::alone(), on_save)
        };
        (runtime, engine)
    };
    let waits = |object: &PromotionRequest| {
        let status = object.status.as_ref().unwrap();
        let image = &status.images[0];
        image.rollback_tag.is_some() && image.next_attempt_time.is_some()
    };
    let (runtime, engine) = start(OnSave::StopOn(waits));
    let stopped = tokio::time::timeout(PATIENCE, engine.store().stopped()).await;
    assert!(stopped.is_ok(), "{:#?}", engine.store().objects());
    drop(engine);
    let end = move || runtime.shutdown_timeout(Duration::from_secs(10));
    tokio::task::spawn_blocking(end).await.unwrap();
    assert_eq!(at(&registry, "f"), Some(old("f")));
    let (runtime, engine) = start(OnSave::Nothing);
    let over = async {
        while !inside::is_over(&engine) {
            tokio::time::sleep(crate::testbed::stage::LOOK).await;
        }
    };
    let over = tokio::time::timeout(PATIENCE, over).await;
    assert!(over.is_ok(), "{:#?}", engine.store().objects());
    let ended = engine.store().objects().remove(0);
    assert_eq!(phase(&ended), "Failed");
    assert_back(&registry, &ended, "f");
    assert_eq!(registry.audit_trail(), []);
    drop(engine);
    runtime.shutdown_background();
}

/// A ground with a group of three whose second float is refused once the first has moved; the third stands before its latch.
async fn half_moved(
    prefix: &str,
    on_failure: &str,
) -> (Ground, crate::traces::ground::Inside, Gate) {
    let ground = Ground::new(prefix).await;
    let spec = group(&ground.registry, &["f", "g", "h"], on_failure);
    let rule = Rule::new(put("g"), Action::ImmutableTag);
    ground.registry.add_rule(rule);
    let second = ground.gate(GateSpec::before(put("g")));
    let third = ground.gate(GateSpec::before(look("h")).nth(2));
    let controller = ground.controller(SETTLE);
    ground.stage.create("group", &spec).await;
    ground.reached(&second).await;
    ground.reached(&third).await;
    let posted = async {
        while at(&ground.registry, "f__post1").is_none() {
            tokio::time::sleep(crate::testbed::stage::LOOK).await;
        }
    };
    let posted = tokio::time::timeout(PATIENCE, posted).await;
    assert!(posted.is_ok(), "{}", ground.log());
    drop(third);
    (ground, controller, second)
}

#[tokio::test(flavor = "multi_thread")]
async fn with_hold_what_moved_stays_and_what_did_not_names_the_float_that_failed() {
    let ground = Ground::new("hold").await;
    let spec = group(&ground.registry, &["f", "g", "h"], "Hold");
    let rule = Rule::new(put("g"), Action::ImmutableTag);
    ground.registry.add_rule(rule);
    let second = ground.gate(GateSpec::before(put("g")));
    let third = ground.gate(GateSpec::before(look("h")).nth(2));
    let _controller = ground.controller(SETTLE);
    ground.stage.create("group", &spec).await;
    ground.reached(&second).await;
    ground.reached(&third).await;
    ground
        .until("group", |o| {
            images(o).first().is_some_and(|i| i.phase == "Posted")
        })
        .await;
    second.open();
    // The look is given up at once, and is made again only to see that nothing has moved.
    let ended = ground.ended("group").await;
    third.open();
    let wanted = [
        ("Posted", "Promoted"),
        ("Failed", "TagImmutable"),
        ("Failed", "Held"),
    ];
    assert_eq!(ends(&ended), pairs(&wanted), "{}", ground.log());
    let held = images(&ended)[2].message.clone().unwrap();
    assert!(held.contains("/ci:g failed"), "{held}");
    let (_, reason, message) = condition(&ended, "Failed");
    assert_eq!(reason, "TagImmutable");
    assert!(
        message.contains("1 of 3 images failed, 1 held back") && message.contains("/ci:g: "),
        "{message}"
    );
    assert_eq!(ended.status.as_ref().unwrap().rollback, None);
    for (float, digest) in [("f", new("f")), ("g", old("g")), ("h", old("h"))] {
        assert_eq!(at(&ground.registry, float), Some(digest), "{float}");
    }
    assert_eq!(ground.registry.count(&put("h")), 0);
    assert_eq!(ground.registry.audit_trail(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_rollback_what_moved_goes_back_and_conditions_and_events_tell_it() {
    let (ground, _controller, second) = half_moved("rollback", "Rollback").await;
    let back = ground.gate(GateSpec::before(put("f")));
    second.open();
    ground.reached(&back).await;
    let during = ground.reason("group", "RollingBack").await;
    assert_eq!(phase(&during), "Latched");
    assert_eq!(condition(&during, "Failed").0, "False");
    let (_, _, message) = condition(&during, "Progressing");
    assert!(message.contains("/ci:g failed"), "{message}");
    // A next request on a float that is still to be taken back waits.
    ground.source("next");
    ground.promote("next", "next", "f").await;
    ground.reason("next", "Queued").await;
    back.open();
    let ended = ground.ended("group").await;
    assert_eq!(phase(&ended), "Failed");
    let wanted = [("Failed", "RolledBack"), ("Failed", "TagImmutable")];
    assert_eq!(ends(&ended)[..2], pairs(&wanted), "{}", ground.log());
    let (_, reason, message) = condition(&ended, "Failed");
    assert_eq!(reason, "TagImmutable");
    assert!(
        message.contains("1 of 3 images failed; other floats rolled back: 2")
            && message.contains("/ci:g: "),
        "{message}"
    );
    let events = ground
        .stage
        .events_until("group", "TagImmutable", PATIENCE)
        .await;
    let told: Vec<_> = events.iter().filter_map(|e| e.reason.as_deref()).collect();
    assert!(told.contains(&"RollingBack"), "{told:?}");
    ground.posted("next").await;
    let history = ground.registry.history(FLOATS, "f").into_iter();
    let history: Vec<_> = history.filter_map(|change| change.digest).collect();
    let next = image("next").digest();
    assert_eq!(history, [old("f"), new("f"), old("f"), next]);
    for float in ["g", "h"] {
        assert_eq!(at(&ground.registry, float), Some(old(float)), "{float}");
    }
    assert_eq!(ground.registry.audit_trail(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_float_that_somebody_else_moved_after_it_was_promoted_is_not_taken_back() {
    let (ground, _controller, second) = half_moved("left", "Rollback").await;
    let strange = ground.foreign("f", "strange");
    second.open();
    let ended = ground.ended("group").await;
    assert_eq!(ends(&ended)[0].0, "Posted");
    assert_eq!(at(&ground.registry, "f"), Some(strange));
    assert_eq!(at(&ground.registry, "f__pre"), Some(old("f")));
    for float in ["g", "h"] {
        assert_eq!(at(&ground.registry, float), Some(old(float)), "{float}");
    }
    assert_eq!(ground.registry.audit_trail(), []);
}

/// A write of the rollback itself that is refused for good: the float stays, and that is said; the others go back.
#[tokio::test(flavor = "multi_thread")]
async fn a_float_that_cannot_be_taken_back_is_named_and_the_cause_stays_the_cause() {
    let (ground, _controller, second) = half_moved("behind", "Rollback").await;
    ground
        .registry
        .add_rule(Rule::new(put("f"), Action::ImmutableTag));
    second.open();
    let ended = ground.ended("group").await;
    let wanted = [("Failed", "NotRolledBack"), ("Failed", "TagImmutable")];
    assert_eq!(ends(&ended)[..2], pairs(&wanted), "{}", ground.log());
    let (_, reason, message) = condition(&ended, "Failed");
    assert_eq!(reason, "TagImmutable");
    assert!(
        message.contains("not rolled back: 1") && message.contains("/ci:f first"),
        "{message}"
    );
    assert_eq!(at(&ground.registry, "f"), Some(new("f")));
    // What it would have left is pinned all the same.
    assert_eq!(pruned(&ground.registry, "f", ""), [old("f")]);
    assert_eq!(pruned(&ground.registry, "f", "__broken"), [new("f")]);
    assert_eq!(ground.registry.audit_trail(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_be_staged_or_backed_up_leaves_every_float_where_it_was() {
    let ground = Ground::new("unmoved").await;
    let _controller = ground.controller(LONG_SETTLE);
    let mut names = Vec::new();
    for on_failure in ["Hold", "Rollback"] {
        for what in ["staged", "backed"] {
            let name = format!("{what}-{}", on_failure.to_lowercase());
            let floats = [format!("{name}-f"), format!("{name}-g")];
            let refs = floats.each_ref().map(String::as_str);
            let spec = group(&ground.registry, &refs, on_failure);
            let tag = if what == "staged" {
                put(&format!("{}_incoming", floats[1]))
            } else {
                put(&format!("{}__pre", floats[1]))
            };
            refuse(&ground.registry, tag);
            ground.stage.create(&name, &spec).await;
            names.push((name, floats));
        }
    }
    for (name, floats) in names {
        let ended = ground.ended(&name).await;
        let wanted = [("Failed", "Held"), ("Failed", "PermissionDenied")];
        assert_eq!(ends(&ended), pairs(&wanted), "{}", ground.log());
        assert_eq!(ended.status.as_ref().unwrap().rollback, None);
        for float in floats {
            let history = ground.registry.history(FLOATS, &float);
            assert_eq!(history.len(), 1, "{float}: {history:?}");
        }
    }
    assert_eq!(ground.registry.audit_trail(), []);
}

/// `promote`, killed in the middle of a rollback: the next run goes on with it, and the run after that promotes anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_on_with_a_rollback_and_the_one_after_it_promotes_anew() {
    let ground = command::Ground::new().await;
    let spec = group(&ground.registry, &["f", "g"], "Rollback");
    ground.documents(&[command::document("one", &spec)]);
    let refusal = refuse(&ground.registry, put("g__post1"));
    let back = ground.registry.gate(GateSpec::before(put("g")).nth(2));
    let running = ground.start(&[]);
    let reached = tokio::time::timeout(PATIENCE, back.reached()).await;
    assert!(reached.is_ok(), "{}", running.log());
    running.kill().await;
    back.cut();
    assert_eq!(at(&ground.registry, "g"), Some(new("g")));
    let run = ground.promote(&["-o", "json"]).await.exits(1);
    let end: PromotionRequest = serde_json::from_value(run.items()[0].clone()).unwrap();
    assert_eq!(condition(&end, "Failed").1, "PermissionDenied");
    for float in ["f", "g"] {
        assert_back(&ground.registry, &end, float);
    }
    ground.registry.remove_rule(refusal);
    let run = ground.promote(&["-o", "json"]).await.exits(0);
    let end: PromotionRequest = serde_json::from_value(run.items()[0].clone()).unwrap();
    assert_eq!(phase(&end), "Posted");
    for float in ["f", "g"] {
        let tags =
            ["", "_incoming", "__post1"].map(|s| at(&ground.registry, &format!("{float}{s}")));
        assert_eq!(tags, [Some(new(float)); 3]);
        assert_eq!(
            at(&ground.registry, &format!("{float}__pre")),
            Some(old(float))
        );
        let pins = pruned(&ground.registry, float, "");
        assert!(pins.contains(&old(float)), "{pins:?}");
    }
    ground.assert_never_dangling();
}

/// The promoted image is broken by then, so that it cannot be pinned: the float stays, and that is said.
#[tokio::test(flavor = "multi_thread")]
async fn a_float_whose_image_cannot_be_pinned_any_more_stays_and_is_named() {
    let (ground, _controller, second) = half_moved("broken", "Rollback").await;
    let manifest = ground.registry.manifest(FLOATS, new("f")).unwrap();
    let layer = *manifest.blobs.last().unwrap();
    assert!(ground.registry.lose_blob(FLOATS, layer));
    second.open();
    let ended = ground.ended("group").await;
    let wanted = [("Failed", "NotRolledBack"), ("Failed", "TagImmutable")];
    assert_eq!(ends(&ended)[..2], pairs(&wanted), "{}", ground.log());
    assert_eq!(at(&ground.registry, "f"), Some(new("f")));
    assert_eq!(pruned(&ground.registry, "f", ""), [old("f")]);
}

//! What stamped pins are called, when they are written, and what becomes of one that cannot be: whoever reverts a float takes the newest `<stamp>_prune_<float>`, a
//! pruner deletes whatever matches `^[0-9]{14}_prune_(.+)$` by its stamp.

use std::time::Duration;

use promotion_controller::api::ImageStatus;
use quaylike::{Action, Digest, GateSpec, Matcher, Rule};
use serde_json::json;

use super::ground::{
    FLOATS, Ground, SETTLE, SOURCES, displaced, first_image, image, put, put_prune, texts,
};
use crate::testbed::stage::{condition, phase};

/// What a pruner finds: all of it, oldest first.
fn prunable(ground: &Ground) -> Vec<(String, Digest)> {
    let tags = ground.registry.tags(FLOATS).into_iter();
    let stamped = |tag: &str| {
        let (stamp, rest) = tag.split_at_checked(14)?;
        let rest = rest.strip_prefix("_prune_").filter(|rest| !rest.is_empty());
        (stamp.bytes().all(|c| c.is_ascii_digit()) && rest.is_some()).then_some(())
    };
    tags.filter(|(tag, _)| stamped(tag).is_some()).collect()
}

/// What the operators' revert tool puts a float back to.
pub(super) fn revert(ground: &Ground, float: &str) -> Option<Digest> {
    let suffix = format!("_prune_{float}");
    let own = |tag: &str| tag.len() == 14 + suffix.len() && tag.ends_with(&suffix);
    let mut tags = prunable(ground);
    tags.retain(|(tag, _)| own(tag));
    tags.pop().map(|(_, digest)| digest)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revert_never_meets_what_was_rescued_from_a_promotion_that_never_came() {
    let ground = Ground::new("p11-rescue").await;
    let old = ground.seed("f", "old");
    let dead = [
        ground.seed("f_incoming", "dead"),
        ground.seed("f__post1", "other"),
    ];
    let new = ground.source("new");
    let _controller = ground.controller(SETTLE);
    ground.promote("r", "new", "f").await;
    let done = first_image(&ground.posted("r").await);
    assert_eq!(revert(&ground, "f"), Some(old), "{:?}", prunable(&ground));
    let kept: Vec<_> = done
        .rescued
        .iter()
        .map(|pin| pin.prune_tag.as_str())
        .collect();
    assert!(
        kept.iter().all(|tag| tag.ends_with("_prune_f__rescued")),
        "{kept:?}"
    );
    let pinned: Vec<_> = prunable(&ground)
        .into_iter()
        .map(|(_, digest)| digest)
        .collect();
    for digest in dead {
        assert!(pinned.contains(&digest), "{:?}", prunable(&ground));
    }
    let tags = [
        ("f", new),
        ("f_incoming", new),
        ("f__pre", old),
        ("f__post1", new),
    ];
    ground.assert_tags(&tags, &[old, dead[0], dead[1]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revert_never_meets_what_a_rollback_took_away() {
    let ground = Ground::new("p11-broken").await;
    let old = ground.seed("f", "old");
    let refuse = Rule::new(put("f__post1"), Action::error(403, "DENIED"));
    ground.registry.add_rule(refuse);
    let source = ground.source("bad");
    let source = format!("{}/{}@{source}", ground.host, SOURCES);
    let _controller = ground.controller(SETTLE);
    ground
        .request("r", &source, "f", &json!({"onFailure": "Rollback"}))
        .await;
    ground.ended("r").await;
    assert_eq!(ground.registry.tag(FLOATS, "f"), Some(old));
    assert_eq!(revert(&ground, "f"), Some(old), "{:?}", prunable(&ground));
    let broken = prunable(&ground)
        .into_iter()
        .find(|(tag, _)| tag.ends_with("_prune_f__broken"));
    assert_eq!(
        broken.map(|(_, digest)| digest),
        Some(image("bad").digest())
    );
}

/// A move to what was rescued displaces it: then it is what a float showed, and a revert has to find it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_rescued_and_then_displaced_is_what_a_revert_finds() {
    let ground = Ground::new("p11-both").await;
    ground.seed("f", "old");
    let dead = ground.seed("f_incoming", "dead");
    ground.source("new");
    let _controller = ground.controller(SETTLE);
    let latch = ground.gate(GateSpec::before(put("f__pre")));
    ground.promote("r", "new", "f").await;
    ground.reached(&latch).await;
    ground.foreign("f", "dead");
    latch.open();
    ground.posted("r").await;
    assert_eq!(revert(&ground, "f"), Some(dead), "{:?}", prunable(&ground));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rescue_that_an_earlier_version_named_is_carried_to_its_end() {
    let ground = Ground::new("p11-before").await;
    ground.seed("f", "old");
    let dead = ground.seed("f_incoming", "dead");
    ground.source("new");
    let controller = ground.controller(SETTLE);
    // It is recorded, and not yet written.
    let gate = ground.gate(GateSpec::before(put_rescue("f")));
    ground.promote("r", "new", "f").await;
    ground.reached(&gate).await;
    controller.crash();
    gate.cut();
    let tag = renamed(&ground, |image| &mut image.rescued[0].prune_tag).await;
    let _controller = ground.controller(SETTLE);
    let done = first_image(&ground.posted("r").await);
    assert_eq!(done.rescued[0].prune_tag, tag);
    assert_eq!(ground.registry.tag(FLOATS, &tag), Some(dead));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_that_an_earlier_version_named_is_carried_to_its_end() {
    let ground = Ground::new("p11-back-before").await;
    let old = ground.seed("f", "old");
    let bad = ground.source("bad");
    let refuse = Rule::new(put("f__post1"), Action::error(403, "DENIED"));
    ground.registry.add_rule(refuse);
    let controller = ground.controller(SETTLE);
    // It is recorded, and not yet written.
    let broken = Matcher::put_manifest()
        .repository(FLOATS)
        .reference_suffix("_prune_f__broken");
    let gate = ground.gate(GateSpec::before(broken));
    let source = format!("{}/{}@{bad}", ground.host, SOURCES);
    let more = json!({"onFailure": "Rollback"});
    ground.request("r", &source, "f", &more).await;
    ground.reached(&gate).await;
    controller.crash();
    gate.cut();
    let tag = renamed(&ground, |image| image.rollback_tag.as_mut().unwrap()).await;
    let _controller = ground.controller(SETTLE);
    let done = ground.ended("r").await;
    assert_eq!(phase(&done), "Failed");
    let tags = [("f", old), ("f_incoming", bad), ("f__pre", bad)];
    ground.assert_tags(&tags, &[old, bad]);
    assert_eq!(ground.registry.tag(FLOATS, &tag), Some(bad));
}

/// Gives a pin of the request `r` the name that an earlier version would have given it.
async fn renamed(ground: &Ground, pin: fn(&mut ImageStatus) -> &mut String) -> String {
    let mut object = ground.stage.get("r").await;
    let tag = pin(&mut object.status.as_mut().unwrap().images[0]);
    *tag = tag.replace("__rescued", "").replace("__broken", "");
    let tag = tag.clone();
    let params = kube::api::PostParams::default();
    let requests = ground.stage.requests();
    let written = requests.replace_status("r", &params, &object).await;
    written.unwrap();
    tag
}

/// A refusal for want of content, and none is missing.
fn wordy(matcher: Matcher) -> Rule {
    let action = Action::Status {
        status: 400,
        code: Some("MANIFEST_INVALID".into()),
        message: Some("manifest invalid: Unknown blob `x`".into()),
        detail: None,
        body: None,
        retry_after: None,
    };
    Rule::new(matcher, action)
}

fn put_rescue(tag: &str) -> Matcher {
    Matcher::put_manifest()
        .repository(FLOATS)
        .reference_suffix(&format!("_prune_{tag}__rescued"))
}

/// Promotes a new image to a float that is on an old one; an attempt may fail.
async fn promoted(ground: &Ground) -> (Digest, Digest) {
    let old = ground.registry.tag(FLOATS, "f");
    let old = old.unwrap_or_else(|| ground.seed("f", "old"));
    let new = ground.source("new");
    let source = format!("{}/{SOURCES}@{new}", ground.host);
    ground
        .request("r", &source, "f", &json!({"attempts": 2}))
        .await;
    (old, new)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_whose_image_cannot_be_rescued_is_not_overwritten() {
    for tag in ["f_incoming", "f__post1"] {
        let ground = Ground::new("p7").await;
        let other = ground.seed(tag, "other");
        ground.registry.add_rule(wordy(put_rescue("f")));
        let _controller = ground.controller(SETTLE);
        promoted(&ground).await;
        let done = ground.ended("r").await;
        let (_, reason, message) = condition(&done, "Failed");
        assert_eq!(reason, "BackupFailed", "{message}");
        assert!(
            message.contains(tag) && message.contains("Unknown blob"),
            "{message}"
        );
        assert_eq!(ground.registry.tag(FLOATS, tag), Some(other));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_refusal_for_want_of_content_that_is_there_is_tried_again() {
    let ground = Ground::new("p7-once").await;
    let other = ground.seed("f__post1", "other");
    for matcher in [
        put_rescue("f"),
        put_prune("f"),
        put("f__pre"),
        put("f"),
        put("f__post1"),
    ] {
        ground.registry.add_rule(wordy(matcher).times(1));
    }
    let old = ground.seed("f", "old");
    let _controller = ground.controller(SETTLE);
    ground.promote("r", "new", "f").await;
    let done = ground.posted("r").await;
    let new = image("new").digest();
    ground.assert_promoted("f", new, old, &[old, other]);
    assert_eq!(first_image(&done).attempts, Some(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_float_whose_own_image_cannot_be_pinned_was_moved_by_nobody() {
    for matcher in [put_prune("f"), put("f__pre")] {
        let ground = Ground::new("p9").await;
        ground.registry.add_rule(wordy(matcher));
        let _controller = ground.controller(SETTLE);
        let (old, _) = promoted(&ground).await;
        let done = ground.ended("r").await;
        let (_, reason, message) = condition(&done, "Failed");
        assert_eq!(reason, "BackupFailed", "{message}");
        assert!(
            message.contains("the float's own image is incomplete"),
            "{message}"
        );
        assert_eq!(displaced(&done), texts(&[old]));
        assert_eq!(ground.registry.tag(FLOATS, "f"), Some(old));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_image_that_cannot_be_pinned_is_not_called_moved() {
    let ground = Ground::new("p7-post").await;
    ground.registry.add_rule(wordy(put("f__post1")));
    let _controller = ground.controller(SETTLE);
    promoted(&ground).await;
    let done = ground.ended("r").await;
    let (_, reason, message) = condition(&done, "Failed");
    assert_eq!(reason, "BackupFailed", "{message}");
    assert!(
        message.contains("the promoted image is incomplete"),
        "{message}"
    );
}

/// How long a PUT may be parked while a request is suspended, on a busy machine.
const PARKED: Duration = Duration::from_secs(8);

/// A request that is backed up, and held back before its commit.
async fn suspended(ground: &Ground) -> (Digest, Digest) {
    let gate = ground.gate(GateSpec::before(put("f__pre")));
    let images = promoted(ground).await;
    ground.reached(&gate).await;
    ground.stage.edit("r", &json!({"suspend": true})).await;
    ground.reason("r", "Suspended").await;
    gate.open();
    ground
        .until("r", |object| phase(object) == "BackedUp")
        .await;
    let recorded = first_image(&ground.reason("r", "Suspended").await);
    assert_eq!(recorded.pinned_time, None);
    images
}

#[tokio::test(flavor = "multi_thread")]
async fn pins_that_went_while_a_request_was_suspended_are_there_again_before_its_float_moves() {
    for gone in ["prune", "f__pre", "f_incoming"] {
        let ground = Ground::new("p10").await;
        let _controller = ground.patient_controller(PARKED);
        let (old, new) = suspended(&ground).await;
        let tag = match gone {
            "prune" => first_image(&ground.stage.get("r").await).displaced[0]
                .prune_tag
                .clone(),
            tag => tag.to_owned(),
        };
        ground.registry.delete_tag(FLOATS, &tag).unwrap();
        let latch = ground.gate(GateSpec::before(put("f")));
        ground.stage.edit("r", &json!({"suspend": false})).await;
        ground.reached(&latch).await;
        for (tag, digest) in [("f", old), ("f__pre", old), ("f_incoming", new)] {
            assert_eq!(
                ground.registry.tag(FLOATS, tag),
                Some(digest),
                "{gone}: {tag}"
            );
        }
        assert_eq!(revert(&ground, "f"), Some(old), "{gone}");
        latch.open();
        assert_eq!(
            first_image(&ground.posted("r").await).attempts,
            None,
            "{gone}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_float_that_moved_while_its_request_was_suspended_costs_no_attempt() {
    let ground = Ground::new("p10-moved").await;
    let _controller = ground.patient_controller(PARKED);
    let (old, new) = suspended(&ground).await;
    let foreign = ground.foreign("f", "foreign");
    ground.stage.edit("r", &json!({"suspend": false})).await;
    let done = ground.posted("r").await;
    assert_eq!(displaced(&done), texts(&[old, foreign]));
    assert_eq!(first_image(&done).attempts, None);
    ground.assert_promoted("f", new, foreign, &[old, foreign]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_tag_that_was_not_written_for_an_hour_gets_the_time_of_its_writing() {
    let ground = Ground::new("p10-stamp").await;
    let controller = ground.controller(SETTLE);
    let gate = ground.gate(GateSpec::before(put_prune("f")));
    let (old, _) = promoted(&ground).await;
    ground.reached(&gate).await;
    controller.crash();
    gate.cut();
    let mut object = ground.stage.get("r").await;
    let image = &mut object.status.as_mut().unwrap().images[0];
    let begun = jiff::Timestamp::now();
    let long_ago = begun - jiff::SignedDuration::from_mins(61);
    let long_ago = long_ago.strftime("%Y%m%d%H%M%S_prune_f").to_string();
    image.displaced[0].prune_tag.clone_from(&long_ago);
    let params = kube::api::PostParams::default();
    let requests = ground.stage.requests();
    requests
        .replace_status("r", &params, &object)
        .await
        .unwrap();
    let _controller = ground.controller(SETTLE);
    let done = first_image(&ground.posted("r").await);
    assert_eq!(ground.registry.tag(FLOATS, &long_ago), None);
    let [pin] = &done.displaced[..] else {
        panic!("{:?}", done.displaced)
    };
    assert!(
        pin.prune_tag >= begun.strftime("%Y%m%d%H%M%S").to_string(),
        "{pin:?}"
    );
    assert_eq!(ground.registry.tag(FLOATS, &pin.prune_tag), Some(old));
}

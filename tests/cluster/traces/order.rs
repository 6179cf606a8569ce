//! Traces of several requests on one float, of cancel, suspend and deletion.

use quaylike::GateSpec;
use serde_json::json;

use super::ground::{
    Ground, LONG_SETTLE, SETTLE, displaced, first_image, look_prune, put, rescued, texts,
};
use crate::testbed::stage::{condition, phase};

/// F7: a cancel that comes while the float's PUT is on the wire was saved although the float moved.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_after_the_latch_was_sent_changes_nothing_and_says_so() {
    let ground = Ground::new("f7a").await;
    let d = ground.seed("f", "d");
    let a = ground.source("a");
    let latch = ground.gate(GateSpec::before(put("f")));
    let _controller = ground.controller(LONG_SETTLE);
    ground.promote("one", "a", "f").await;
    ground.reached(&latch).await;
    ground.stage.edit("one", &json!({"cancel": true})).await;
    latch.open();
    let one = ground.posted("one").await;
    assert_eq!(one.status.as_ref().unwrap().committed, Some(true));
    assert_eq!(condition(&one, "Complete").0, "True");
    ground.assert_promoted("f", a, d, &[d]);
}

/// F7: a cancel before the save that commits keeps the float from moving, whatever was being written.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_during_the_backup_keeps_the_float_where_it_is() {
    let ground = Ground::new("f7b").await;
    let d = ground.seed("f", "d");
    let a = ground.source("a");
    let back_up = ground.gate(GateSpec::after(put("f__pre")));
    let _controller = ground.controller(LONG_SETTLE);
    ground.promote("one", "a", "f").await;
    ground.reached(&back_up).await;
    ground.stage.edit("one", &json!({"cancel": true})).await;
    back_up.open();
    let one = ground.ended("one").await;
    assert_eq!(phase(&one), "Cancelled");
    assert_ne!(one.status.as_ref().unwrap().committed, Some(true));
    assert_eq!(ground.registry.count(&put("f")), 0);
    let tags = [("f", d), ("f_incoming", a), ("f__pre", d)];
    ground.assert_tags(&tags, &[d]);
}

/// F8 (b), (d): the newer request is deleted when the older suspended one goes on: nothing remembered it.
#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_request_that_was_overtaken_stays_ended_when_the_newer_one_is_deleted() {
    let ground = Ground::new("f8b").await;
    let d = ground.seed("f", "d");
    let (a, b) = (ground.source("a"), ground.source("b"));
    let back_up = ground.gate(GateSpec::before(look_prune("f")));
    let _controller = ground.controller(SETTLE);
    ground.promote("older", "a", "f").await;
    ground.reached(&back_up).await;
    ground.stage.edit("older", &json!({"suspend": true})).await;
    ground.reason("older", "Suspended").await;
    back_up.open();
    ground.promote("newer", "b", "f").await;
    let newer = ground.posted("newer").await;
    assert_eq!(displaced(&newer), texts(&[d]));
    assert_eq!(rescued(&newer), texts(&[a]));
    ground.stage.delete("newer").await;
    ground.stage.edit("older", &json!({"suspend": false})).await;
    let older = ground.ended("older").await;
    assert_eq!(phase(&older), "Failed");
    assert_eq!(condition(&older, "Failed").1, "Superseded");
    // A request that comes after is served, so the older one had its chance to do harm.
    ground.promote("last", "b", "f").await;
    let last = ground.posted("last").await;
    assert_eq!(first_image(&last).unchanged, Some(true));
    ground.assert_promoted("f", b, d, &[d, a]);
}

/// F8 (a), (c): a suspension after the commit does not let a newer request overtake, nor the older one come back later.
#[tokio::test(flavor = "multi_thread")]
async fn a_suspension_after_the_commit_does_not_let_the_newer_request_overtake() {
    let ground = Ground::new("f8a").await;
    let d = ground.seed("f", "d");
    let (a, b) = (ground.source("a"), ground.source("b"));
    let latch = ground.gate(GateSpec::before(put("f")));
    let _controller = ground.controller(LONG_SETTLE);
    ground.promote("older", "a", "f").await;
    ground.reached(&latch).await;
    ground.stage.edit("older", &json!({"suspend": true})).await;
    ground.promote("newer", "b", "f").await;
    ground.reason("newer", "Queued").await;
    latch.open();
    let older = ground.posted("older").await;
    let newer = ground.posted("newer").await;
    assert_eq!(displaced(&older), texts(&[d]));
    assert_eq!(displaced(&newer), texts(&[a]));
    ground.assert_promoted("f", b, a, &[d, a]);
}

/// V5: a request whose source is what the float still shows looked before it had the float, and was done with nothing to do.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_back_to_the_old_image_waits_for_the_one_that_is_about_to_move_the_float() {
    let ground = Ground::new("v5").await;
    let d = ground.seed("f", "d");
    let a = ground.source("a");
    let latch = ground.gate(GateSpec::before(put("f")));
    let _controller = ground.controller(LONG_SETTLE);
    ground.promote("forth", "a", "f").await;
    ground.reached(&latch).await;
    ground.promote_own("back", &format!("@{d}"), "f").await;
    ground.reason("back", "Queued").await;
    latch.open();
    ground.posted("forth").await;
    let back = ground.posted("back").await;
    assert_eq!(first_image(&back).unchanged, None);
    assert_eq!(displaced(&back), texts(&[a]));
    ground.assert_promoted("f", d, a, &[d, a]);
}

/// V9, F10: the third request's image is one that an earlier latch replaced; and all of them want the same second's prune tag.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_was_replaced_may_come_back_at_once_and_every_displaced_one_is_pinned() {
    let ground = Ground::new("v9").await;
    let d = ground.seed("f", "d");
    let (a, b) = (ground.source("a"), ground.source("b"));
    let _controller = ground.controller(SETTLE);
    for (name, seed) in [("one", "a"), ("two", "b"), ("three", "a")] {
        ground.promote(name, seed, "f").await;
    }
    for (name, gone) in [("one", d), ("two", a), ("three", b)] {
        let done = ground.posted(name).await;
        assert_eq!(displaced(&done), texts(&[gone]), "{name}");
    }
    ground.assert_promoted("f", a, b, &[d, a, b]);
}

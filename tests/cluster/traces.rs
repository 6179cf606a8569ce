//! The shortest traces by which an image was lost, or a float went backwards, in earlier forms of the protocol: each is played
//! on the real engine, the real API server and a registry that collects at once, and ends as the design promises.
//!
//! The comments name the traces. `late.rs` has those of writes that land late or lose their answer, `order.rs` those of several
//! requests on one float, `pins.rs` what stamped pins are called; here are those of foreign writers and of reads that lag.

#![allow(
    clippy::many_single_char_names,
    reason = "the images have the traces' names: A, B and D"
)]

mod gates;
pub mod ground;
mod late;
mod order;
mod pins;
mod replaces;
mod within;

use std::time::Duration;

use quaylike::{Action, GateSpec, ImageSpec, LoggedRequest, Matcher, RetryAfter, Rule, Shape};
use serde_json::json;

use crate::testbed::stage::{condition, phase};
use ground::{
    Ground, LONG_SETTLE, SETTLE, displaced, first_image, look, look_prune, put, put_prune, rescued,
    texts,
};

fn stale(tag: &str, lag: Duration, times: u64) -> Rule {
    let ms = u64::try_from(lag.as_millis()).unwrap();
    Rule::new(look(tag), Action::StaleRead { ms }).times(times)
}

const LONG_AGO: Duration = Duration::from_hours(1);

/// F2: a stale 404 at Resolve and at Latch made a second promotion look like a first one, and its PUT lost the first image.
#[tokio::test(flavor = "multi_thread")]
async fn a_float_that_was_just_made_is_not_taken_for_absent_by_stale_reads() {
    let ground = Ground::new("f2a").await;
    let (a, b) = (ground.source("a"), ground.source("b"));
    let _controller = ground.controller(LONG_SETTLE);
    ground.promote("one", "a", "f").await;
    ground.posted("one").await;
    ground.registry.add_rule(stale("f", LONG_AGO, 2));
    ground.promote("two", "b", "f").await;
    let two = ground.posted("two").await;
    assert_eq!(ground.injected(), 2);
    assert_eq!(displaced(&two), texts(&[a]));
    ground.assert_promoted("f", b, a, &[a]);
}

/// F2, V4: stale reads of an existing float, and of its `_incoming`, that show what was there before our own writes.
#[tokio::test(flavor = "multi_thread")]
async fn reads_that_show_the_image_before_last_back_up_the_last_one_and_no_other() {
    let ground = Ground::new("f2b").await;
    let d = ground.seed("f", "d");
    ground.seed("f_incoming", "d");
    let (a, b) = (ground.source("a"), ground.source("b"));
    let _controller = ground.controller(LONG_SETTLE);
    ground.promote("one", "a", "f").await;
    ground.posted("one").await;
    let lag = Duration::from_secs(6);
    ground.registry.add_rule(stale("f", lag, 2));
    ground.registry.add_rule(stale("f_incoming", lag, 1));
    ground.promote("two", "b", "f").await;
    let two = ground.posted("two").await;
    assert_eq!(ground.injected(), 3);
    assert_eq!(displaced(&two), texts(&[a]));
    assert_eq!(rescued(&two), [""; 0]);
    ground.assert_promoted("f", b, a, &[d, a]);
}

/// F2, V4: a stale 404 of a `__pre` source that was just written ended the rollback as `SourceGone`.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_was_just_written_is_not_gone_because_a_replica_lags() {
    let ground = Ground::new("v4").await;
    let d = ground.seed("f", "d");
    let a = ground.source("a");
    let _controller = ground.controller(LONG_SETTLE);
    ground.promote("bad", "a", "f").await;
    ground.posted("bad").await;
    ground.registry.add_rule(stale("f__pre", LONG_AGO, 4));
    ground.promote_own("back", ":f__pre", "f").await;
    let back = ground.posted("back").await;
    assert!(ground.injected() >= 3, "{}", ground.log());
    assert_eq!(displaced(&back), texts(&[a]));
    ground.assert_promoted("f", d, a, &[d, a]);
}

/// F1 (R2): a foreign move sends a rollback back to `BackUp`; its source was `__pre`, which means another image by then.
#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_whose_float_is_moved_keeps_the_image_that_pre_named_at_first() {
    let ground = Ground::new("f1r2").await;
    let d = ground.seed("f", "d");
    let a = ground.source("a");
    let _controller = ground.controller(SETTLE);
    ground.promote("bad", "a", "f").await;
    ground.posted("bad").await;
    let latch = ground.gate(GateSpec::before(look("f")).nth(2));
    ground.promote_own("back", ":f__pre", "f").await;
    ground.reached(&latch).await;
    let foreign = ground.foreign("f", "foreign");
    latch.open();
    let back = ground.posted("back").await;
    assert_eq!(displaced(&back), texts(&[a, foreign]));
    ground.assert_promoted("f", d, foreign, &[d, a, foreign]);
}

/// F4: `_incoming` of a first promotion is the last pin of its image once a stranger moves the float.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_incoming_or_post1_holds_is_pinned_before_they_are_overwritten() {
    let ground = Ground::new("f4").await;
    let d = ground.seed("g", "d");
    let (a, b) = (ground.source("a"), ground.source("b"));
    let _controller = ground.controller(SETTLE);
    ground.promote("first", "a", "f").await;
    ground.promote("existing", "a", "g").await;
    ground.posted("first").await;
    ground.posted("existing").await;
    let strange = ground.foreign("f", "strange");
    ground.foreign("g", "strange");
    // Of the second float only `__post1` holds the image.
    ground
        .registry
        .delete_tag(ground::FLOATS, "g_incoming")
        .unwrap();
    ground.promote("again-f", "b", "f").await;
    ground.promote("again-g", "b", "g").await;
    let f = ground.posted("again-f").await;
    let g = ground.posted("again-g").await;
    for done in [&f, &g] {
        assert_eq!(displaced(done), texts(&[strange]));
        assert_eq!(rescued(done), texts(&[a]));
    }
    let tags = [
        ("f", b),
        ("f_incoming", b),
        ("f__pre", strange),
        ("f__post1", b),
        ("g", b),
        ("g_incoming", b),
        ("g__pre", strange),
        ("g__post1", b),
    ];
    ground.assert_tags(&tags, &[a, strange, d, strange, a]);
}

/// V1: a first run did not look at `_incoming` before it overwrote it.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_promotion_pins_what_only_incoming_still_holds() {
    let ground = Ground::new("v1").await;
    let d = ground.seed("f_incoming", "d");
    let a = ground.source("a");
    let _controller = ground.controller(SETTLE);
    ground.promote("one", "a", "f").await;
    let one = ground.posted("one").await;
    assert_eq!(rescued(&one), texts(&[d]));
    assert_eq!(first_image(&one).first_promotion, Some(true));
    ground.assert_tags(&[("f", a), ("f_incoming", a)], &[d]);
}

/// F4: the float is moved between Resolve and Stage, so that `_incoming` is the last pin of what Resolve saw.
#[tokio::test(flavor = "multi_thread")]
async fn the_resolved_image_is_pinned_early_if_incoming_is_all_that_holds_it() {
    let ground = Ground::new("f4b").await;
    let d = ground.seed("f", "d");
    ground.seed("f_incoming", "d");
    let a = ground.source("a");
    let stage = ground.gate(GateSpec::before(look("f_incoming")));
    let _controller = ground.controller(SETTLE);
    ground.promote("one", "a", "f").await;
    ground.reached(&stage).await;
    let strange = ground.foreign("f", "strange");
    stage.open();
    let one = ground.posted("one").await;
    assert_eq!(displaced(&one), texts(&[d, strange]));
    ground.assert_promoted("f", a, strange, &[d, strange]);
}

/// F5, promise 2's exception: between the look and the PUT a foreign write goes unseen. What the look showed stays pinned, and
/// nothing dangles.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_write_within_the_one_request_before_the_put_is_all_that_can_be_lost() {
    let ground = Ground::new("f5").await;
    let d = ground.seed("f", "d");
    let a = ground.source("a");
    let latch = ground.gate(GateSpec::before(put("f")));
    let _controller = ground.controller(LONG_SETTLE);
    ground.promote("one", "a", "f").await;
    ground.reached(&latch).await;
    let lost = ground.foreign("f", "strange");
    latch.open();
    ground.posted("one").await;
    assert!(ground.registry.manifest(ground::FLOATS, lost).is_none());
    ground.assert_promoted("f", a, d, &[d]);
}

/// F5, narrowed: a PUT that the registry puts off is not sent again upon a look of before.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_write_while_the_registry_limits_the_rate_is_seen_before_the_float_is_put() {
    let ground = Ground::new("f5b").await;
    let d = ground.seed("f", "d");
    let a = ground.source("a");
    let retry_after = Some(RetryAfter::Seconds(3));
    let limit = Rule::new(put("f"), Action::TooMany { retry_after }).times(1);
    ground.registry.add_rule(limit);
    let _controller = ground.controller(SETTLE);
    ground.promote("one", "a", "f").await;
    ground.until_injected(1).await;
    let strange = ground.foreign("f", "strange");
    let one = ground.posted("one").await;
    assert_eq!(displaced(&one), texts(&[d, strange]));
    ground.assert_promoted("f", a, strange, &[d, strange]);
}

/// F6: the image that was resolved is gone at `BackUp`, because somebody else moved the float.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_gone_before_it_is_backed_up_makes_way_for_what_the_float_shows() {
    let ground = Ground::new("f6").await;
    let d = ground.seed("f", "d");
    let a = ground.source("a");
    let back_up = ground.gate(GateSpec::before(look_prune("f")));
    let _controller = ground.controller(SETTLE);
    ground.promote("one", "a", "f").await;
    ground.reached(&back_up).await;
    let strange = ground.foreign("f", "strange");
    assert!(ground.registry.manifest(ground::FLOATS, d).is_none());
    back_up.open();
    let one = ground.posted("one").await;
    // What was gone before it could be pinned is not listed: nothing may rest on it.
    assert_eq!(displaced(&one), texts(&[strange]));
    ground.assert_promoted("f", a, strange, &[strange]);
}

/// V10: a float that is deleted after it was displaced has nothing more to displace.
#[tokio::test(flavor = "multi_thread")]
async fn a_float_that_is_deleted_on_the_way_is_made_again() {
    let ground = Ground::new("v10").await;
    let (d, e) = (ground.seed("f", "d"), ground.seed("g", "e"));
    let a = ground.source("a");
    let back_up = ground.gate(GateSpec::before(look_prune("f")));
    let latch = ground.gate(GateSpec::before(look("g")).nth(2));
    let _controller = ground.controller(SETTLE);
    ground.promote("before-backup", "a", "f").await;
    ground.promote("before-latch", "a", "g").await;
    for (gate, tag) in [(back_up, "f"), (latch, "g")] {
        ground.reached(&gate).await;
        ground.registry.delete_tag(ground::FLOATS, tag).unwrap();
        gate.open();
    }
    let f = ground.posted("before-backup").await;
    let g = ground.posted("before-latch").await;
    // Nothing of it was left to pin, so this is a first promotion.
    assert_eq!(displaced(&f), texts(&[]));
    assert_eq!(displaced(&g), texts(&[e]));
    assert!(ground.registry.manifest(ground::FLOATS, d).is_none());
    let tags = [
        ("f", a),
        ("f_incoming", a),
        ("g", a),
        ("g_incoming", a),
        ("g__pre", e),
        ("g__post1", a),
    ];
    ground.assert_tags(&tags, &[e]);
}

/// V6: D, then a stranger's image, then D again: D is pinned once, by the tag it had.
#[tokio::test(flavor = "multi_thread")]
async fn a_displaced_image_that_comes_back_keeps_its_one_prune_tag() {
    let ground = Ground::new("v6").await;
    let d = ground.seed("f", "d");
    let a = ground.source("a");
    let latch = ground.gate(GateSpec::before(look("f")).nth(2));
    let _controller = ground.controller(SETTLE);
    ground.promote("one", "a", "f").await;
    ground.reached(&latch).await;
    let _strange = ground.foreign("f", "strange");
    let back_up = ground.gate(GateSpec::before(look_prune("f")));
    latch.open();
    ground.reached(&back_up).await;
    ground.registry.set_tag(ground::FLOATS, "f", d).unwrap();
    back_up.open();
    let one = ground.posted("one").await;
    assert_eq!(displaced(&one), texts(&[d]));
    ground.assert_promoted("f", a, d, &[d]);
}

/// F10: a prune tag that somebody else's image has is left alone, and the next second is taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_prune_tag_that_is_taken_is_never_overwritten() {
    let ground = Ground::new("f10").await;
    let d = ground.seed("f", "d");
    let a = ground.source("a");
    let back_up = ground.gate(GateSpec::before(look_prune("f")));
    let _controller = ground.controller(SETTLE);
    ground.promote("one", "a", "f").await;
    let taken = ground.reached(&back_up).await.reference;
    let other = ground.foreign(&taken, "other");
    back_up.open();
    let one = ground.posted("one").await;
    let own = &first_image(&one).displaced[0];
    assert!(own.prune_tag > taken, "{own:?} {taken}");
    assert_eq!(ground.registry.tag(ground::FLOATS, &taken), Some(other));
    ground.assert_promoted("f", a, d, &[other, d]);
}

/// F14: what was pushed by digest is collected before the index is put: everything is pushed again, nothing is remembered.
#[tokio::test(flavor = "multi_thread")]
async fn children_whose_hold_ends_before_the_index_holds_them_are_pushed_again() {
    let ground = Ground::new("f14").await;
    let d = ground.seed("f", "d");
    let spec = ImageSpec::new(Shape::Index, "index");
    let index = ground
        .registry
        .seed_spec(ground::SOURCES, "index", &spec)
        .unwrap();
    let incoming = ground.gate(GateSpec::before(put("f_incoming")));
    let hold = ground.registry.settings().hold;
    ground
        .registry
        .update(|s| s.hold = Duration::from_millis(1500));
    // One that gives the PUT up would not hear what is missing.
    let _controller = ground.patient_controller(LONG_SETTLE);
    let source = format!("{}/{}:index", ground.host, ground::SOURCES);
    ground.request("one", &source, "f", &json!({})).await;
    ground.reached(&incoming).await;
    let children = Matcher::put_manifest()
        .repository(ground::FLOATS)
        .tag(false);
    let pushed = ground.registry.requests(&children);
    for child in &pushed {
        let digest = child.reference.parse().unwrap();
        while ground.registry.manifest(ground::FLOATS, digest).is_some() {
            tokio::time::sleep(crate::testbed::stage::LOOK).await;
        }
    }
    ground.registry.update(|s| s.hold = hold);
    incoming.open();
    ground.posted("one").await;
    let answers = ground.registry.requests(&put("f_incoming")).into_iter();
    let answers: Vec<_> = answers.map(|entry| entry.status).collect();
    assert_eq!(answers, [Some(400), Some(201)]);
    let put = |entry: &LoggedRequest| (entry.reference.clone(), entry.status);
    let again = ground.registry.requests(&children);
    let mut again: Vec<_> = again[pushed.len()..].iter().map(put).collect();
    let mut once: Vec<_> = pushed.iter().map(put).collect();
    again.sort();
    once.sort();
    assert_eq!(
        again, once,
        "each child is pushed once more, after its blobs"
    );
    ground.assert_promoted("f", index, d, &[d]);
}

/// R5: what was staged is gone at Latch: it is staged again from the source, and where that is gone too, nothing moves.
#[tokio::test(flavor = "multi_thread")]
async fn staged_content_that_is_lost_is_staged_again_unless_the_source_is_gone_too() {
    let ground = Ground::new("r5").await;
    let (d, e) = (ground.seed("f", "d"), ground.seed("g", "e"));
    let (a, b) = (ground.source("a"), ground.source("b"));
    let gates = ["f", "g"].map(|tag| (tag, ground.gate(GateSpec::before(look(tag)).nth(2))));
    let _controller = ground.controller(SETTLE);
    ground.promote("again", "a", "f").await;
    ground.promote("lost", "b", "g").await;
    for (tag, gate) in &gates {
        ground.reached(gate).await;
        let incoming = format!("{tag}_incoming");
        ground
            .registry
            .delete_tag(ground::FLOATS, &incoming)
            .unwrap();
    }
    ground.registry.delete_tag(ground::SOURCES, "b").unwrap();
    assert!(ground.registry.manifest(ground::SOURCES, b).is_none());
    for (_, gate) in &gates {
        gate.open();
    }
    ground.posted("again").await;
    let lost = ground.ended("lost").await;
    assert_eq!(phase(&lost), "Failed");
    assert_eq!(condition(&lost, "Failed").1, "StagedLost");
    assert_eq!(condition(&lost, "Staged").0, "False");
    let tags = [
        ("f", a),
        ("f_incoming", a),
        ("f__pre", d),
        ("f__post1", a),
        ("g", e),
        ("g__pre", e),
    ];
    ground.assert_tags(&tags, &[d, e]);
    assert_eq!(ground.registry.count(&put_prune("g")), 1);
}

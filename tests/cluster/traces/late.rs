//! Traces of writes whose answer is lost: the process crashes, the connection breaks, or the write lands late.

use quaylike::{Action, Digest, GateSpec, Matcher, Phase, RequestKind, Rule};
use serde_json::json;

use super::ground::{
    FLOATS, Ground, LONG_SETTLE, SETTLE, SOURCES, displaced, first_image, put, put_prune, rescued,
    texts,
};

/// The writes of one of a float's tags.
type Write = fn(&str) -> Matcher;

/// A write that lands when the test says so; its client gives up long before.
fn held(matcher: Matcher) -> Rule {
    Rule::new(matcher, Action::HoldWrite { ms: None }).times(1)
}

/// Waits until the client of the held write has given up.
async fn given_up(ground: &Ground, matcher: &Matcher) {
    ground.until_injected(1).await;
    let gone = |ground: &Ground| {
        let entries = ground.registry.requests(matcher);
        entries.iter().any(|entry| entry.phase == Phase::Dropped)
    };
    while !gone(ground) {
        tokio::time::sleep(crate::testbed::stage::LOOK).await;
    }
    assert_eq!(ground.registry.held_writes(), 1);
}

/// The digests that a tag had, oldest first.
fn history(ground: &Ground, tag: &str) -> Vec<Option<Digest>> {
    let changes = ground.registry.history(FLOATS, tag).into_iter();
    changes.map(|change| change.digest).collect()
}

/// F1: the latch landed, the process crashed: the second run took its own image for a stranger's.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_promotion_that_crashes_after_its_latch_landed_is_still_a_first_promotion() {
    let ground = Ground::new("f1a").await;
    let a = ground.source("a");
    let latch = ground.gate(GateSpec::after(put("f")));
    let controller = ground.controller(SETTLE);
    ground.promote("one", "a", "f").await;
    ground.reached(&latch).await;
    controller.crash();
    latch.cut();
    let _next = ground.controller(SETTLE);
    let one = ground.posted("one").await;
    assert_eq!(first_image(&one).first_promotion, Some(true));
    assert_eq!(ground.registry.count(&put("f")), 1);
    ground.assert_tags(&[("f", a), ("f_incoming", a)], &[]);
}

async fn rolled_back(prefix: &str, crash: bool) {
    let ground = Ground::new(prefix).await;
    let d = ground.seed("f", "d");
    let a = ground.source("a");
    let mut controller = ground.controller(SETTLE);
    ground.promote("bad", "a", "f").await;
    ground.posted("bad").await;
    if crash {
        let latch = ground.gate(GateSpec::after(put("f")));
        ground.promote_own("back", ":f__pre", "f").await;
        ground.reached(&latch).await;
        controller.crash();
        latch.cut();
        controller = ground.controller(SETTLE);
    } else {
        let lost = Rule::new(put("f"), Action::LoseAnswer).times(1);
        ground.registry.add_rule(lost);
        ground.promote_own("back", ":f__pre", "f").await;
        ground.until_injected(1).await;
    }
    let back = ground.posted("back").await;
    assert_eq!(displaced(&back), texts(&[a]));
    assert_eq!(history(&ground, "f"), [Some(d), Some(a), Some(d)]);
    ground.assert_promoted("f", d, a, &[d, a]);
    drop(controller);
}

/// F1: the rollback read `__pre` a second time, by then the bad image, and reported success on it.
#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_from_pre_whose_latch_loses_its_answer_ends_on_the_good_image() {
    rolled_back("f1lost", false).await;
}

/// F1: the same with a crash.
#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_from_pre_that_crashes_after_its_latch_ends_on_the_good_image() {
    rolled_back("f1crash", true).await;
}

/// F3 (c) and the like: every tag PUT in turn loses its answer, having landed, or lands after its client gave up.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_or_a_late_landing_at_any_tag_ends_like_an_undisturbed_run() {
    let ground = Ground::new("f3c").await;
    let a = ground.source("a");
    let writes: [(&str, Write); 5] = [
        ("incoming", |f| put(&format!("{f}_incoming"))),
        ("prune", put_prune),
        ("pre", |f| put(&format!("{f}__pre"))),
        ("float", put),
        ("post", |f| put(&format!("{f}__post1"))),
    ];
    let faults = [
        ("lost", Action::LoseAnswer),
        // After the PUT's timeout, before the settle time has passed since it was sent.
        ("late", Action::HoldWrite { ms: Some(3000) }),
        ("page", Action::page(502)),
    ];
    let mut floats = Vec::new();
    for (write, matcher) in writes {
        for (fault, action) in &faults {
            let float = format!("{write}-{fault}");
            let old = ground.seed(&float, &format!("old-{float}"));
            let rule = Rule::new(matcher(&float), action.clone()).times(1);
            ground.registry.add_rule(rule);
            floats.push((float, old));
        }
    }
    let _controller = ground.controller(LONG_SETTLE);
    for (float, _) in &floats {
        ground.promote(float, "a", float).await;
    }
    let mut expected = Vec::new();
    for (float, old) in &floats {
        let done = ground.posted(float).await;
        assert_eq!(displaced(&done), texts(&[*old]), "{float}");
        for (suffix, digest) in [("", a), ("_incoming", a), ("__pre", *old), ("__post1", a)] {
            expected.push((format!("{float}{suffix}"), digest));
        }
        assert_eq!(history(&ground, float).last(), Some(&Some(a)));
    }
    assert_eq!(ground.injected(), 15);
    let tags: Vec<_> = expected.iter().map(|(t, d)| (t.as_str(), *d)).collect();
    let olds: Vec<_> = floats.iter().map(|(_, old)| *old).collect();
    ground.assert_tags(&tags, &olds);
}

/// F3 (a), V2: the older request is deleted with its latch on the wire; the newer one, whose image the float still shows, must
/// not look before that has landed or died.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_request_does_not_even_look_while_a_latch_may_still_land() {
    let ground = Ground::new("v2").await;
    let d = ground.seed("f", "d");
    let a = ground.source("a");
    ground.registry.add_rule(held(put("f")));
    let _controller = ground.controller(LONG_SETTLE);
    ground.promote("forth", "a", "f").await;
    given_up(&ground, &put("f")).await;
    ground.stage.delete("forth").await;
    ground.promote_own("back", &format!("@{d}"), "f").await;
    ground.reason("back", "Queued").await;
    ground.registry.release_held();
    let back = ground.posted("back").await;
    assert_eq!(first_image(&back).unchanged, None);
    assert_eq!(displaced(&back), texts(&[a]));
    assert_eq!(history(&ground, "f"), [Some(d), Some(a), Some(d)]);
    ground.assert_promoted("f", d, a, &[d, a]);
}

/// V3: the same, and the process that knew of the write crashes: the next one waits before it decides anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_does_not_look_while_a_write_of_the_old_one_may_still_land() {
    let ground = Ground::new("v3").await;
    let d = ground.seed("f", "d");
    let (a, b) = (ground.source("a"), ground.source("b"));
    ground.registry.add_rule(held(put("f")));
    let controller = ground.controller(SETTLE);
    ground.promote("one", "a", "f").await;
    ground.until_injected(1).await;
    ground.stage.delete("one").await;
    controller.crash();
    let _next = ground.controller(LONG_SETTLE);
    ground.promote("two", "b", "f").await;
    // It has taken the request up, and holds back.
    ground
        .until("two", |object| {
            object
                .status
                .as_ref()
                .is_some_and(|s| s.start_time.is_some())
        })
        .await;
    ground.registry.release_held();
    let two = ground.posted("two").await;
    assert_eq!(displaced(&two), texts(&[a]));
    assert_eq!(history(&ground, "f"), [Some(d), Some(a), Some(b)]);
    ground.assert_promoted("f", b, a, &[d, a]);
}

/// F3 (b): an `_incoming` of a deleted request that lands between the next one's Stage and Latch took away what was staged.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_incoming_of_a_deleted_request_does_not_take_the_place_of_the_next_ones() {
    let ground = Ground::new("f3b").await;
    let d = ground.seed("f", "d");
    let (a, b) = (ground.source("a"), ground.source("b"));
    ground.registry.add_rule(held(put("f_incoming")));
    let _controller = ground.controller(LONG_SETTLE);
    ground.promote("one", "a", "f").await;
    given_up(&ground, &put("f_incoming")).await;
    ground.stage.delete("one").await;
    ground.promote("two", "b", "f").await;
    ground.reason("two", "Queued").await;
    ground.registry.release_held();
    let two = ground.posted("two").await;
    assert_eq!(displaced(&two), texts(&[d]));
    assert_eq!(rescued(&two), texts(&[a]));
    assert_eq!(history(&ground, "f_incoming"), [Some(a), Some(b)]);
    ground.assert_promoted("f", b, d, &[d, a]);
}

/// A float that is written once, and whose `_incoming` tag is deleted then.
async fn promote_once(ground: &Ground, name: &str, seed: &str) {
    let source = format!("{}/{SOURCES}@{}", ground.host, ground.source(seed));
    let more = json!({"incoming": "Remove"});
    ground.request(name, &source, "f", &more).await;
}

fn deletion(tag: &str) -> Matcher {
    let matcher = Matcher::kind(RequestKind::Manifest).method("DELETE");
    matcher.repository(FLOATS).reference(tag)
}

/// The tag that a request staged its image on is deleted late, when its request is gone and the next one waits: that one stages after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_deletion_of_a_deleted_request_does_not_take_what_the_next_one_staged() {
    let ground = Ground::new("late-delete").await;
    let (a, b) = (ground.source("a"), ground.source("b"));
    ground.registry.add_rule(held(deletion("f_incoming")));
    let _controller = ground.controller(LONG_SETTLE);
    promote_once(&ground, "one", "a").await;
    given_up(&ground, &deletion("f_incoming")).await;
    ground.stage.delete("one").await;
    ground.promote("two", "b", "f").await;
    ground.reason("two", "Queued").await;
    ground.registry.release_held();
    let two = ground.posted("two").await;
    assert_eq!(displaced(&two), texts(&[a]));
    assert_eq!(history(&ground, "f_incoming"), [Some(a), None, Some(b)]);
    ground.assert_promoted("f", b, a, &[a]);
}

/// A deletion whose answer is lost, or whose process crashes after it, is seen to be done.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_whose_answer_is_lost_is_not_taken_for_a_foreign_one() {
    let ground = Ground::new("lost-delete").await;
    let a = ground.source("a");
    let lost = Rule::new(deletion("f_incoming"), Action::LoseAnswer).times(1);
    ground.registry.add_rule(lost);
    let controller = ground.controller(SETTLE);
    promote_once(&ground, "one", "a").await;
    ground.until_injected(1).await;
    controller.crash();
    let _next = ground.controller(SETTLE);
    let one = ground.posted("one").await;
    assert_eq!(first_image(&one).message, None);
    assert_eq!(history(&ground, "f_incoming"), [Some(a), None]);
    ground.assert_tags(&[("f", a)], &[]);
}

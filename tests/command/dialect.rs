//! What quay does on a bad day, met by whole promotions: each ends as it should, on a registry that collects at once.

use std::time::Duration;

use quaylike::{Action, Dialect, Matcher, RequestKind, Rule, When};
use serde_json::{Value, json};

use crate::testbed::command::{Ground, Run};

/// How far replicas lag behind.
const LAG: Duration = Duration::from_millis(700);

/// An existing float and a first promotion in one request.
async fn ground(more: &Value) -> Ground {
    let ground = Ground::new().await;
    ground.seed("ci", "a", "old");
    ground.seed("src/x", "a", "new-a");
    ground.seed("src/x", "first", "new-first");
    let images = [(":a", "a"), (":first", "first")];
    ground.documents(&[ground.request("one", &images, more)]);
    ground
}

/// The tags of a promotion that nothing disturbs.
async fn undisturbed() -> Vec<(String, String)> {
    let ground = ground(&json!({})).await;
    ground.promote(&[]).await.exits(0);
    ground.tags("ci")
}

/// Promotes under a fault; the tags must be those of an undisturbed run.
async fn promoted(rules: &[Rule], arguments: &[&str]) -> (Ground, Run) {
    let ground = ground(&json!({})).await;
    // What was there before is old enough to show on every replica.
    tokio::time::sleep(LAG).await;
    for rule in rules {
        ground.registry.add_rule(rule.clone());
    }
    let mut all = vec!["-o", "json"];
    all.extend(arguments);
    let run = ground.promote(&all).await.exits(0);
    assert_eq!(ground.tags("ci"), undisturbed().await, "{}", run.stderr);
    ground.assert_never_dangling();
    (ground, run)
}

/// The attempts that the images have used in the end.
fn attempts(run: &Run) -> Vec<u64> {
    let items = run.items();
    let images = items[0]["status"]["images"].as_array().unwrap();
    images
        .iter()
        .map(|image| image["attempts"].as_u64().unwrap_or_default())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_429_as_a_page_is_waited_out_and_uses_no_attempt() {
    let limited = Action::TooMany { retry_after: None };
    let rule = Rule::new(Matcher::default(), limited).when(When::Every(6));
    let (_, run) = promoted(&[rule.times(6)], &[]).await;
    assert_eq!(attempts(&run), [0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_is_waited_out_with_its_reason_and_uses_no_attempt() {
    for matcher in [
        Matcher::put_manifest().tag(true),
        Matcher::kind(RequestKind::Upload),
    ] {
        let rule = Rule::new(matcher, Action::ReadOnly).times(3);
        let (_, run) = promoted(&[rule], &[]).await;
        assert_eq!(attempts(&run), [0, 0]);
        assert!(run.stderr.contains("read-only"), "{}", run.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_is_invalid_for_a_concurrent_push_is_put_again() {
    // The look that comes with a second launch finds `_incoming` free or right: no prune tag more, no other digest.
    let invalid = Action::error(400, "MANIFEST_INVALID");
    let rule = Rule::new(
        Matcher::put_manifest().reference("a_incoming"),
        invalid.clone(),
    );
    let latch = Rule::new(Matcher::put_manifest().reference("first"), invalid);
    let (_, run) = promoted(&[rule.times(1), latch.times(1)], &[]).await;
    // The failed launch of each stays counted; nothing that ended well does.
    assert_eq!(attempts(&run), [1, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_stays_invalid_fails_its_group_and_moves_no_float() {
    let ground = ground(&json!({"attempts": 2})).await;
    let before = ground.registry.tag("ci", "a");
    let matcher = Matcher::put_manifest().reference("first_incoming");
    ground
        .registry
        .add_rule(Rule::new(matcher, Action::error(400, "MANIFEST_INVALID")));
    let run = ground.promote(&["-o", "json"]).await.exits(1);
    assert_eq!(attempts(&run)[1], 2);
    assert!(run.stdout.contains("ManifestRejected"), "{}", run.stdout);
    assert_eq!(ground.registry.tag("ci", "a"), before);
    assert_eq!(ground.registry.tag("ci", "first"), None);
    ground.assert_never_dangling();
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_lag_behind_every_write_change_nothing() {
    let ms = u64::try_from(LAG.as_millis()).unwrap();
    let stale = Action::StaleRead { ms };
    let matcher = Matcher {
        method: Some("GET".into()),
        repository: Some("ci".into()),
        ..Matcher::kind(RequestKind::Manifest).tag(true)
    };
    let (_, run) = promoted(&[Rule::new(matcher, stale)], &[]).await;
    assert_eq!(attempts(&run), [0, 0]);
    assert!(!run.stderr.contains("FloatMoved"), "{}", run.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_tag_is_an_absent_one() {
    // A float that quay lets expire is promoted as a first one, and nothing of it is lost: it holds nothing.
    let rule = Rule::new(Matcher::kind(RequestKind::Manifest), Action::TagExpired);
    promoted(&[rule], &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_immutable_float_fails_for_good_and_stays_where_it_is() {
    let ground = ground(&json!({})).await;
    let before = ground.registry.tag("ci", "a");
    let matcher = Matcher::put_manifest().reference("a");
    ground
        .registry
        .add_rule(Rule::new(matcher, Action::ImmutableTag));
    let run = ground.promote(&["-o", "json"]).await.exits(1);
    assert!(run.stdout.contains("TagImmutable"), "{}", run.stdout);
    assert_eq!(ground.registry.tag("ci", "a"), before);
    assert_eq!(
        ground
            .registry
            .count(&Matcher::put_manifest().reference("a")),
        1
    );
    ground.assert_never_dangling();
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_land_and_lose_their_answer_are_found_to_have_landed() {
    for reference in ["a_incoming", "a__pre", "a", "a__post1"] {
        let matcher = Matcher::put_manifest().reference(reference);
        let rule = Rule::new(matcher.clone(), Action::LoseAnswer).times(1);
        let (ground, run) = promoted(&[rule], &[]).await;
        assert_eq!(attempts(&run), [0, 0], "{reference}");
        // After the settle time a float is looked at, and not written again; a pin is put to the same digest once more.
        let puts = if reference == "a" { 1 } else { 2 };
        assert_eq!(ground.registry.count(&matcher), puts, "{reference}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_in_ten_refused_and_bodies_cut_end_with_every_float_posted() {
    let probability = |p, seed| When::Probability { p, seed };
    let limited = Action::TooMany { retry_after: None };
    let cut = Action::CutBody { after: 100 };
    let reads = Matcher {
        write: Some(false),
        ..Matcher::default()
    };
    let rules = [
        Rule::new(Matcher::default(), limited).when(probability(0.05, 1)),
        Rule::new(Matcher::default(), Action::page(503)).when(probability(0.05, 2)),
        Rule::new(reads, cut).when(probability(0.02, 3)),
    ];
    let floats: Vec<String> = (0..10).map(|n| format!("f{n}")).collect();
    let ground = Ground::new().await;
    for float in &floats {
        ground.seed("ci", float, &format!("old {float}"));
        ground.seed("src/x", float, &format!("new {float}"));
    }
    let images: Vec<(String, String)> = floats
        .iter()
        .map(|f| (format!(":{f}"), f.clone()))
        .collect();
    let images: Vec<(&str, &str)> = images.iter().map(|(a, b)| (&**a, &**b)).collect();
    ground.documents(&[ground.request("one", &images, &json!({"attempts": 20}))]);
    for rule in rules {
        ground.registry.add_rule(rule);
    }
    ground.promote(&["--registry-qps=0"]).await.exits(0);
    for float in &floats {
        let source = ground.registry.tag("src/x", float);
        assert_eq!(ground.registry.tag("ci", float), source, "{float}");
        let pins = ground.registry.tags("ci").into_keys();
        let pruned = pins.filter(|tag| tag.ends_with(&format!("_prune_{float}")));
        assert_eq!(pruned.count(), 1, "{float}");
    }
    ground.assert_never_dangling();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_down_for_a_while_uses_no_attempt() {
    let ground = ground(&json!({})).await;
    let rule = ground
        .registry
        .add_rule(Rule::new(Matcher::default(), Action::DropConnection).when(When::From(12)));
    let running = ground.start(&["-o", "json"]);
    running.says("not reachable").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    ground.registry.remove_rule(rule);
    let run = running.ended().await.exits(0);
    assert_eq!(attempts(&run), [0, 0]);
    assert_eq!(ground.tags("ci"), undisturbed().await);
    ground.assert_never_dangling();
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_break_off_are_asked_for_again_and_use_no_attempt() {
    // What is there, and that something is not there: a look decides by the words of a 404.
    let matcher = Matcher::kind(RequestKind::Manifest).method("GET");
    let cut = Rule::new(matcher, Action::CutBody { after: 10 }).when(When::Every(3));
    let (_, run) = promoted(&[cut.times(8)], &[]).await;
    assert_eq!(attempts(&run), [0, 0]);
}

/// An answer without doing anything, in words.
fn said(status: u16, code: &str, message: &str) -> Action {
    Action::Status {
        status,
        code: Some(code.into()),
        message: Some(message.into()),
        detail: None,
        body: None,
        retry_after: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_413_that_hides_a_502_fails_no_image() {
    let matcher = Matcher::kind(RequestKind::Upload).method("PUT");
    let ground = ground(&json!({})).await;
    // On one registry blobs are mounted.
    ground.registry.add_rule(Rule::new(
        Matcher::kind(RequestKind::Upload),
        Action::RefuseMount,
    ));
    ground
        .registry
        .add_rule(Rule::new(matcher, Action::page(413)).times(2));
    let run = ground.promote(&["-o", "json"]).await.exits(0);
    let used: u64 = attempts(&run).iter().sum();
    assert!((1..=2).contains(&used), "{}", run.stderr);
    ground.assert_never_dangling();
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_that_are_disabled_are_waited_out() {
    let disabled = said(
        405,
        "METHOD NOT ALLOWED",
        "Pushes to the registry are currently disabled. Please contact the administrator for more information.",
    );
    for matcher in [
        Matcher::put_manifest().tag(true),
        Matcher::kind(RequestKind::Upload),
    ] {
        let (_, run) = promoted(&[Rule::new(matcher, disabled.clone()).times(3)], &[]).await;
        assert_eq!(attempts(&run), [0, 0]);
        assert!(run.stderr.contains("read-only"), "{}", run.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_at_which_a_tag_is_answered_500_and_then_201_is_promoted() {
    let matcher = Matcher::put_manifest().reference("a_incoming");
    let failed = Rule::new(matcher, Action::error(500, "UNKNOWN"));
    let (_, run) = promoted(&[failed.times(1)], &[]).await;
    assert_eq!(attempts(&run), [0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_every_dialect_floats_are_promoted_and_absent_ones_made() {
    for dialect in [Dialect::Distribution, Dialect::Harbor, Dialect::Ecr] {
        let ground = ground(&json!({})).await;
        ground
            .registry
            .update(|switches| switches.dialect = dialect);
        ground.promote(&[]).await.exits(0);
        assert_eq!(ground.tags("ci"), undisturbed().await, "{dialect:?}");
        ground.assert_never_dangling();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_tags_must_not_move_no_float_of_a_group_does() {
    for dialect in [Dialect::Quay, Dialect::Harbor, Dialect::Ecr] {
        let ground = ground(&json!({})).await;
        // Promoted once, so that its pins are there.
        ground.promote(&[]).await.exits(0);
        ground.seed("src/x", "a", "newer-a");
        ground.seed("src/x", "first", "newer-first");
        let images = [(":a", "a"), (":first", "first")];
        ground.documents_anew(&[ground.request("two", &images, &json!({}))]);
        let before = ground.tags("ci");
        ground
            .registry
            .update(|switches| switches.dialect = dialect);
        ground.registry.add_rule(Rule::new(
            Matcher::put_manifest().tag(true),
            Action::ImmutableTag,
        ));
        ground.registry.reset_log();
        let run = ground.promote(&["-o", "json"]).await.exits(1);
        assert!(
            run.stdout.contains("TagImmutable"),
            "{dialect:?} {}",
            run.stdout
        );
        let floats = |tags: Vec<(String, String)>| -> Vec<_> {
            let floats = tags
                .into_iter()
                .filter(|(tag, _)| ["a", "first"].contains(&&**tag));
            floats.collect()
        };
        assert_eq!(floats(ground.tags("ci")), floats(before), "{dialect:?}");
        for float in ["a", "first"] {
            let puts = ground
                .registry
                .count(&Matcher::put_manifest().reference(float));
            assert_eq!(puts, 0, "{dialect:?} {float}");
        }
        ground.assert_never_dangling();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_are_redirected_at_the_same_registry_are_followed() {
    let writes = Matcher {
        write: Some(true),
        ..Matcher::default()
    };
    let (_, run) = promoted(&[Rule::new(writes, Action::RedirectWrite)], &[]).await;
    assert_eq!(attempts(&run), [0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_lies_costs_an_attempt_and_no_image() {
    let ground = ground(&json!({})).await;
    ground.registry.add_rule(Rule::new(
        Matcher::kind(RequestKind::Upload),
        Action::LieMount,
    ));
    ground.promote(&["-o", "json"]).await.exits(0);
    assert_eq!(ground.tags("ci"), undisturbed().await);
    ground.assert_never_dangling();
}

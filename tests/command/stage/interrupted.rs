//! Whatever ends a run, whatever is lost on the way and whoever stages the same at once: the end is the same.

use std::time::Duration;

use futures::StreamExt as _;
use quaylike::{Action, Gate, GateSpec, Image, Matcher, RequestKind, Rule, Shape, When};
use serde_json::json;

use super::Build;
use crate::testbed::command::PATIENCE;
use crate::testbed::floats::put_suffix;

async fn build() -> (Build, [Image; 2]) {
    let build = Build::new().await;
    let images = [
        build.source("cli", Shape::Oci),
        build.source("tests", Shape::Index),
    ];
    let pairs = [("cli", "cli"), ("tests", "tests")];
    build
        .ground
        .documents(&[build.request("one", &pairs, &json!({"attempts": 20}))]);
    (build, images)
}

fn uploads(method: &str) -> Matcher {
    Matcher::kind(RequestKind::Upload)
        .method(method)
        .repository("ci")
}

/// Every kind of write that a run makes.
fn writes() -> [Matcher; 4] {
    let child = Matcher::put_manifest().repository("ci");
    [
        uploads("POST"),
        uploads("PUT"),
        child.tag(false),
        put_suffix("__staged"),
    ]
}

/// Parks the first pin.
fn before_a_pin(build: &Build) -> Gate {
    let pin = GateSpec::before(put_suffix("__staged"));
    build.ground.registry.gate(pin)
}

/// The next run ends as one that was never disturbed.
async fn ends_well(build: &Build, images: &[Image; 2], at: &str) {
    let run = build.stage(&["-o", "json"]).await.exits(0);
    let sources: Vec<_> = run.items()[0]["spec"]["images"]
        .as_array()
        .unwrap()
        .iter()
        .map(|image| image["source"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        sources,
        images.each_ref().map(|image| build.staged(image)),
        "{at}"
    );
    build.assert_staged(&images.each_ref());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_killed_at_any_write_is_run_again_to_the_same_pins() {
    let points = writes().into_iter().flat_map(|matcher| {
        let [before, after] = [GateSpec::before(matcher.clone()), GateSpec::after(matcher)];
        // Never done; done after the process is gone; done, and its answer never came.
        [(before.clone(), false), (before, true), (after, false)]
    });
    futures::stream::iter(points)
        .for_each_concurrent(5, |(spec, late)| async move {
            let at = format!("{spec:?} {late}");
            let (build, images) = build().await;
            // As it is for this run: some writes are of one request alone.
            let gate = build.ground.registry.gate(spec);
            let running = build.ground.start_subcommand("stage", &[&build.plain()]);
            let reached = tokio::time::timeout(PATIENCE, gate.reached()).await;
            assert!(reached.is_ok(), "{at}:\n{}", running.log());
            running.kill().await;
            if late {
                gate.open();
            } else {
                gate.cut();
            }
            ends_well(&build, &images, &at).await;
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_lands_after_the_next_run_has_ended_changes_nothing() {
    let (build, images) = build().await;
    let gate = before_a_pin(&build);
    let running = build.ground.start_subcommand("stage", &[&build.plain()]);
    gate.reached().await;
    running.kill().await;
    ends_well(&build, &images, "before it lands").await;
    gate.open();
    while build.ground.registry.held_writes() > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ends_well(&build, &images, "after it has landed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_answers_and_refusals_on_the_way_are_taken_up_within_one_run() {
    let refusal = |status: u16| Action::Status {
        status,
        code: None,
        message: None,
        detail: None,
        body: None,
        retry_after: None,
    };
    let actions = [
        Action::LoseAnswer,
        Action::DropConnection,
        Action::TooMany { retry_after: None },
        refusal(500),
        refusal(503),
    ];
    let points = actions.into_iter().flat_map(|action| {
        let pairs = writes().map(|matcher| (matcher, action.clone()));
        pairs.into_iter()
    });
    futures::stream::iter(points)
        .for_each_concurrent(5, |(matcher, action)| async move {
            let at = format!("{matcher:?} {action:?}");
            let (build, images) = build().await;
            let id = build.ground.registry.add_rule(Rule {
                matcher,
                when: When::Nth(1),
                left: Some(1),
                action,
            });
            let injected = || {
                let rules = build.ground.registry.rules();
                let rule = rules.iter().find(|rule| rule.id == id);
                rule.unwrap().injected
            };
            ends_well(&build, &images, &at).await;
            assert_eq!(injected(), 1, "{at}");
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_do_no_harm() {
    let (build, images) = build().await;
    let gate = before_a_pin(&build);
    let (plain, other) = (build.plain(), build.plain());
    let one = build
        .ground
        .start_subcommand("stage", &[&plain, "-o", "json"]);
    gate.reached().await;
    let two = build
        .ground
        .start_subcommand("stage", &[&other, "-o", "json"]);
    let two = two.ended().await.exits(0);
    gate.open();
    let one = one.ended().await.exits(0);
    assert_eq!(one.stdout, two.stdout);
    build.assert_staged(&images.each_ref());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_run_waits_for_the_pin_that_was_sent_and_says_that_it_can_be_called_again() {
    let (build, images) = build().await;
    let gate = before_a_pin(&build);
    let running = build.ground.start_subcommand("stage", &[&build.plain()]);
    gate.reached().await;
    running.terminate().await;
    running
        .says("tag writes that were sent are waited for")
        .await;
    gate.open();
    let run = running.ended().await.exits(1);
    assert_eq!(run.stdout, "");
    assert!(
        run.stderr.contains("interrupted; call it again"),
        "{}",
        run.stderr
    );
    assert!(
        !build.ground.registry.tags("ci").is_empty(),
        "what was sent has landed"
    );
    ends_well(&build, &images, "after it was terminated").await;
}

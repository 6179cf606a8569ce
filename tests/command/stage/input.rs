//! What is refused, before anything is contacted or before anything is written.

use quaylike::{Matcher, Shape};
use serde_json::json;

use super::Build;
use crate::testbed::command::document;

/// Refused as bad input: nothing is contacted, nothing is printed.
async fn refused(build: &Build, arguments: &[&str], parts: &[&str]) {
    build.sources.reset_log();
    build.ground.registry.reset_log();
    let run = build.stage(arguments).await.exits(2);
    assert_eq!(run.stdout, "");
    for part in [&["error: "], parts].concat() {
        assert!(run.stderr.contains(part), "{part}:\n{}", run.stderr);
    }
    assert_eq!(build.sources.count(&Matcher::default()), 0);
    assert_eq!(build.ground.registry.count(&Matcher::default()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_staged_is_refused_with_its_field_before_anything_is_contacted() {
    let build = Build::new().await;
    build.source("cli", Shape::Oci);
    let good = build.request("good", &[("cli", "cli")], &json!({}));
    let float = build.ground.at("ci:also");
    let there = build.ground.at("ci:cli_built");
    let same = document(
        "same",
        &json!({"images": [{"source": there, "float": float}]}),
    );
    for (document, parts) in [
        (
            same,
            &[
                "same: spec.images[0].source: is in its float's repository already",
                "create the request as it is",
            ][..],
        ),
        (
            build.request("plan", &[("cli", "also")], &json!({"mode": "Plan"})),
            &["plan: spec.mode: is Plan", "preview"],
        ),
        (
            build.request("over", &[("cli", "also")], &json!({"cancel": true})),
            &["over: spec.cancel: is set"],
        ),
        (
            build.request("none", &[], &json!({})),
            &["spec.images", "name at least one"],
        ),
        (
            build.request("typo", &[("cli", "also")], &json!({"latsch": "Together"})),
            &["latsch", "no such field"],
        ),
        (
            build.request(
                "pin",
                &[("cli", "20260304050607_prune_x__staged")],
                &json!({}),
            ),
            &["is reserved"],
        ),
        (
            build.request("good", &[("cli", "also")], &json!({})),
            &["another document has this name"],
        ),
    ] {
        build.ground.documents(&[good.clone(), document]);
        refused(&build, &[], parts).await;
    }
    build.ground.documents(std::slice::from_ref(&good));
    refused(
        &build,
        &["--allow-registry=quay.io"],
        &["--allow-registry", "not on the list"],
    )
    .await;
    refused(
        &build,
        &["--registry-config=nowhere.json"],
        &["--registry-config", "nowhere.json"],
    )
    .await;
    build
        .ground
        .folder
        .write("requests.yaml", "spec: {")
        .unwrap();
    refused(&build, &[], &["requests.yaml", "is not YAML"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_one_source_is_not_there_nothing_is_written_of_the_others() {
    let build = Build::new().await;
    build.source("cli", Shape::Oci);
    build.ground.documents(&[build.request(
        "one",
        &[("cli", "cli"), ("gone", "gone")],
        &json!({}),
    )]);
    let run = build.stage(&[]).await.exits(1);
    assert_eq!(run.stdout, "");
    let float = build.ground.at("ci:gone");
    for part in [
        &format!("one  Failed    {float}: SourceGone: source ")[..],
        "build/pipeline:gone is not found (3 looks)",
        "error: not all is staged, so no request is printed",
    ] {
        assert!(run.stderr.contains(part), "{part}:\n{}", run.stderr);
    }
    assert_eq!(build.ground.writes(), 0);
}

//! A request over its life, as people meet it: what kubectl shows of it, and how it is waited for. [`versions`] is about
//! controllers of other versions that come and go meanwhile.

mod versions;

use promotion_controller::api::crd;
use quaylike::{GateSpec, Matcher, RequestKind};
use serde_json::Value;

use crate::ground::{Ground, PATIENCE};
use crate::testbed::ControlPlane;
use crate::testbed::stage::{Stage, phase, spec};

/// What kubectl prints, in a namespace.
async fn kubectl(stage: &Stage, arguments: &[&str]) -> String {
    let all = [&["-n", &stage.namespace], arguments].concat();
    printed(stage.plane, &all).await
}

async fn printed(plane: &ControlPlane, arguments: &[&str]) -> String {
    let output = plane.kubectl(arguments).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {text}{said}");
    text
}

/// The look before the latch of a float: the request is committed then.
fn latch(tag: &str) -> GateSpec {
    let look = Matcher::kind(RequestKind::Manifest)
        .method("GET")
        .repository("ci");
    GateSpec::before(look.reference(tag)).nth(2)
}

/// Asserts that a text says these things, in this order; how it is laid out does not matter.
fn assert_says(text: &str, things: &[&str]) {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let whole = words(text);
    let mut rest = whole.as_str();
    for thing in things {
        let Some((_, after)) = rest.split_once(&words(thing)) else {
            panic!("no '{thing}' after what was found before it:\n{text}");
        };
        rest = after;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_describes_a_request_in_work_a_finished_and_a_failed_one() {
    let ground = Ground::new("describe").await;
    let stage = &ground.stage;
    let _controller = ground.controller(&[]);
    let old = ground.old("f");
    let (new, source) = ground.source("new");
    let (float, first) = (ground.float("f"), ground.float("first"));
    let gate = ground.registry.gate(latch("f"));
    let absent = format!("sha256:{}", "0".repeat(64));
    let gone = format!("{}/src/new@{absent}", ground.registry.host());
    stage
        .create("gone", &spec(&[(&gone, &ground.float("gone"))]))
        .await;
    let images = spec(&[(&source, &float), (&source, &first)]);
    stage.create("r", &images).await;
    stage.reached(&gate).await;
    stage.events_until("r", "BackedUp", PATIENCE).await;
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        let said = format!("Message: {message}");
        let said = said.trim_end();
        format!("{said} Observed Generation: 1 Reason: {reason} Status: {status} Type: {kind}")
    };
    // What there is to say is said once.
    let work = |kind: &str, status: &str| condition(kind, status, "BackedUp", "");
    assert_says(
        &kubectl(stage, &["describe", "preq", "r"]).await,
        &[
            "Name: r",
            "Kind: PromotionRequest",
            &format!("Float: {float} Source: {source}"),
            "Status: Committed: true Conditions:",
            &condition("Progressing", "True", "BackedUp", "images: 2 BackedUp"),
            &work("Staged", "True"),
            &work("Complete", "False"),
            &work("Failed", "False"),
            &work("Reconciling", "True"),
            &work("Stalled", "False"),
            &format!("Images: Attempts: 1 Displaced: Digest: {old} Prune Tag: 2"),
            &format!("Float: {float} Phase: BackedUp Pinned Time: 2"),
            &format!("Source: Digest: {new}"),
            &format!("First Promotion: true Float: {first} Phase: BackedUp"),
            "Phase: BackedUp Progress: 0/2 Start Time: 2",
            "Events: Type Reason Age From Message",
            "Normal Pending",
            "promotion-controller images: 2 Pending Normal Incoming",
            "promotion-controller images: 2 Incoming Normal BackedUp",
            "promotion-controller images: 2 BackedUp",
        ],
    );

    gate.open();
    stage.finished("r", PATIENCE).await;
    stage.events_until("r", "Promoted", PATIENCE).await;
    let moved = "floats moved to their source: 2; there before: 0";
    let host = ground.registry.host();
    assert_says(
        &kubectl(stage, &["describe", "preq", "r"]).await,
        &[
            "Status: Committed: true Completion Time: 2",
            &condition("Progressing", "False", "Promoted", moved),
            &condition("Complete", "True", "Promoted", ""),
            &condition("Failed", "False", "Promoted", ""),
            &format!(
                "Float: {float} Phase: Posted Promoted: {host}/ci@{new} Reason: Promoted Source: Digest: {new}"
            ),
            &format!("Float: {first} Phase: Posted Promoted: {host}/ci@{new}"),
            "Phase: Posted Progress: 2/2",
            "Events:",
            "Normal BackedUp",
            "Normal Latched",
            "Normal Promoted",
            moved,
        ],
    );

    stage.finished("gone", PATIENCE).await;
    stage.events_until("gone", "SourceGone", PATIENCE).await;
    let float = ground.float("gone");
    let why = format!("source {gone} is not found (3 looks); check the name, or build it again");
    let verdict = format!("1 of 1 images failed; {float}: {why}");
    assert_says(
        &kubectl(stage, &["describe", "preq", "gone"]).await,
        &[
            &condition("Progressing", "False", "SourceGone", &verdict),
            &condition("Staged", "False", "SourceGone", ""),
            &condition("Complete", "False", "SourceGone", ""),
            &condition("Failed", "True", "SourceGone", &verdict),
            &format!("Float: {float} Message: {why} Phase: Failed Reason: SourceGone"),
            "Phase: Failed Progress: 0/1",
            "Events:",
            "Normal Pending",
            "Warning SourceGone",
            &verdict,
        ],
    );
    let table = kubectl(stage, &["get", "preq"]).await;
    let lines = [
        "NAME PHASE DONE FLOATS REASON AGE",
        &format!("gone Failed 0/1 {float} SourceGone"),
        &format!("r Posted 2/2 {} Promoted", ground.float("f")),
    ];
    assert_says(&table, &lines);
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_waits_for_staged_complete_failed_and_the_time_of_the_end() {
    let ground = Ground::new("wait").await;
    let stage = &ground.stage;
    let _controller = ground.controller(&[]);
    let old = ground.old("f");
    let (new, images) = ground.request("new", "f");
    let gate = ground.registry.gate(latch("f"));
    stage.create("r", &images).await;
    let gone = format!(
        "{}/src/new@sha256:{}",
        ground.registry.host(),
        "0".repeat(64)
    );
    stage
        .create("gone", &spec(&[(&gone, &ground.float("gone"))]))
        .await;
    let wait = async |what: &str, name: &str| {
        let what = format!("--for={what}");
        let said = kubectl(stage, &["wait", &what, "--timeout=90s", name]).await;
        assert_says(&said, &["condition met"]);
    };
    wait("condition=Staged", "preq/r").await;
    assert_eq!(ground.history("f"), std::slice::from_ref(&old));
    let early = [
        "-n",
        &stage.namespace,
        "wait",
        "--for=condition=Complete",
        "--timeout=0s",
        "preq/r",
    ];
    let early = stage.plane.kubectl(&early).await.unwrap();
    assert!(!early.status.success(), "{early:?}");
    let end = "jsonpath={.status.completionTime}";
    tokio::join!(
        wait("condition=Complete", "preq/r"),
        wait(end, "preq/r"),
        wait("condition=Failed", "preq/gone"),
        wait(end, "preq/gone"),
        async {
            // All of them wait by now, or soon.
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            gate.open();
        }
    );
    assert_eq!(ground.history("f"), [old, new]);
    assert_eq!(phase(&stage.get("r").await), "Posted");
    assert_eq!(phase(&stage.get("gone").await), "Failed");
}

/// The fields of a schema that say nothing of themselves.
fn untold(path: &str, schema: &Value) -> Vec<String> {
    let mut silent = Vec::new();
    if path.contains('.') && schema["description"].as_str().is_none_or(str::is_empty) {
        silent.push(path.to_owned());
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        silent.extend(untold(&format!("{path}.{name}"), field));
        if let Some(items) = field.get("items") {
            silent.extend(untold(&format!("{path}.{name}[]"), items));
        }
    }
    silent
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_explains_every_field() {
    let definition = serde_json::to_value(crd()).unwrap();
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let mut found = untold("preq", schema);
    // Those of every kind are explained by the API server.
    let everywhere = ["preq.apiVersion", "preq.kind", "preq.metadata"];
    found.retain(|path| !everywhere.contains(&path.as_str()));
    assert!(found.is_empty(), "{found:?}");
    let plane = crate::testbed::stage::plane().await;
    for (path, said) in [
        (
            "preq.spec",
            "enum: Together, Independently Whether all floats move together",
        ),
        (
            "preq.status.images.displaced",
            "pruneTag <string> -required- The prune tag that pins it",
        ),
    ] {
        let text = printed(plane, &["explain", path]).await;
        assert_says(&text, &["VERSION: v1alpha1", said]);
        assert!(!text.contains("<no description>"), "{text}");
    }
}

//! The custom resource on a real API server: what is filled in, what `kubectl get` shows, what can be selected.
//!
//! `admission.rs` is about what is refused, `changes.rs` about what stays as it was created, `status.rs` about status:
//! nothing written is lost, and how the largest object fares.

mod admission;
mod changes;
mod status;

use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, Status};
use promotion_controller::api::{PromotionRequest, crd_yaml};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::testbed::{ControlPlane, shared};

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const FLOAT: &str = "quay.io/openshift/ci:ocp_4.21_ovn-kubernetes";

/// The shared control plane, serving the definition, and a namespace of the test's own.
async fn served(prefix: &str) -> (&'static ControlPlane, String) {
    static APPLIED: OnceCell<()> = OnceCell::const_new();
    let plane = shared().await;
    APPLIED
        .get_or_try_init(|| async { plane.apply_crds(&crd_yaml()).await })
        .await
        .unwrap();
    let namespace = plane.namespace(prefix).await.unwrap();
    (plane, namespace)
}

/// The objects as JSON, which can be wrong where the types cannot.
fn untyped(plane: &ControlPlane, namespace: &str) -> Api<DynamicObject> {
    let resource = ApiResource::erase::<PromotionRequest>(&());
    Api::namespaced_with(plane.client().unwrap(), namespace, &resource)
}

fn typed(plane: &ControlPlane, namespace: &str) -> Api<PromotionRequest> {
    Api::namespaced(plane.client().unwrap(), namespace)
}

fn object(name: &str, spec: &Value) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "ci.openshift.io/v1alpha1",
        "kind": "PromotionRequest",
        "metadata": {"name": name},
        "spec": spec,
    }))
    .unwrap()
}

fn source() -> String {
    format!("registry.build02.ci.openshift.org/ci-op-x/pipeline@{DIGEST}")
}

/// A good spec with one image, but for `changed`, which is merged over it.
fn spec(changed: &Value) -> Value {
    let mut spec = json!({"images": [{"source": source(), "float": FLOAT}]});
    for (name, value) in changed.as_object().unwrap() {
        spec[name] = value.clone();
    }
    spec
}

fn refusal<T: std::fmt::Debug>(outcome: kube::Result<T>) -> Box<Status> {
    match outcome {
        Err(kube::Error::Api(status)) => status,
        other => panic!("not refused: {other:?}"),
    }
}

/// Asserts that `status` refuses `field` in words that contain all of `words`.
fn assert_names(case: &str, status: &Status, field: &str, words: &[&str]) {
    assert!(status.is_invalid(), "{case}: {status:?}");
    let causes = status
        .details
        .clone()
        .map(|details| details.causes)
        .unwrap_or_default();
    let told = causes.iter().any(|cause| {
        cause.field == field && words.iter().all(|words| cause.message.contains(words))
    });
    assert!(
        told,
        "{case}: {field} with {words:?} is not among {causes:#?}"
    );
    // What a person sees is the message alone.
    assert!(status.message.contains(field), "{case}: {}", status.message);
}

#[tokio::test]
async fn what_is_left_out_or_null_is_filled_in() {
    let (plane, namespace) = served("defaults").await;
    let api = untyped(plane, &namespace);
    let expected = spec(&json!({
        "latch": "Together",
        "onFailure": "Hold",
        "referrers": "Ignore",
        "mode": "Promote",
        "attempts": 5,
        "deadlineSeconds": 7200,
        "ttlSecondsAfterFinished": 604_800,
        "suspend": false,
        "cancel": false,
    }));
    let nulls = json!({
        "latch": null, "onFailure": null, "referrers": null, "mode": null, "attempts": null, "deadlineSeconds": null,
        "ttlSecondsAfterFinished": null, "suspend": null, "cancel": null, "pullSecret": null, "pushSecret": null,
    });
    for (name, changed) in [("absent", json!({})), ("null", nulls)] {
        let wanted = object(name, &spec(&changed));
        api.create(&PostParams::default(), &wanted).await.unwrap();
        let read = api.get(name).await.unwrap();
        assert_eq!(read.data, json!({"spec": expected}));
        // The types fill in the same where nobody else does, as in a file.
        let typed: PromotionRequest = serde_json::from_value(json!({
            "metadata": {},
            "spec": spec(&json!({})),
        }))
        .unwrap();
        assert_eq!(serde_json::to_value(typed.spec).unwrap(), expected);
    }
}

/// What kubectl prints, line by line, in words.
async fn printed(plane: &ControlPlane, arguments: &[&str]) -> Vec<Vec<String>> {
    let output = plane.kubectl(arguments).await.unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
    text.lines().map(words).collect()
}

#[tokio::test]
async fn kubectl_prints_the_columns_under_every_name_of_the_kind() {
    let (plane, namespace) = served("columns").await;
    let api = untyped(plane, &namespace);
    for name in ["new", "running"] {
        api.create(&PostParams::default(), &object(name, &spec(&json!({}))))
            .await
            .unwrap();
    }
    let condition = |kind: &str, reason: &str, message: &str| json!({"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": "2024-01-01T00:00:00Z"});
    let status = json!({"status": {
        "phase": "Incoming",
        "progress": "2/3",
        "startTime": "2024-01-01T00:00:00Z",
        "images": [{"float": "quay.io/o/ci:f", "phase": "Incoming", "copiedNow": 7, "nextAttemptTime": "2024-01-01T00:00:09Z"}],
        "conditions": [condition("Staged", "Wrong", "wrong"), condition("Progressing", "RateLimited", "waits for quay.io")],
    }});
    api.patch_status("running", &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();

    let get = |what: &'static str| ["get", what, "-n", namespace.as_str()];
    let narrow = printed(plane, &get("preq")).await;
    assert_eq!(
        narrow[0],
        ["NAME", "PHASE", "DONE", "FLOATS", "REASON", "AGE"]
    );
    assert_eq!((narrow[1][0].as_str(), narrow[1].len()), ("new", 3));
    // Of several floats, the first.
    let float = narrow[1][1].clone();
    let row = ["running", "Incoming", "2/3", &float, "RateLimited"];
    assert_eq!(narrow[2][..5], row);
    for name in [
        "promotionrequest",
        "promotionrequests",
        "promotionrequests.ci.openshift.io",
        "ci",
    ] {
        let lines = printed(plane, &get(name)).await;
        assert_eq!((lines.len(), &lines[0]), (3, &narrow[0]), "{name}");
    }

    let arguments = ["get", "preq", "running", "-n", &namespace, "-o", "wide"];
    let wide = printed(plane, &arguments).await;
    let header = [
        "NAME", "PHASE", "DONE", "FLOATS", "REASON", "AGE", "STARTED", "BYTES", "NEXT", "MESSAGE",
    ];
    assert_eq!(wide[0], header);
    assert_eq!(wide[1][..5], row);
    let rest = ["7", "2024-01-01T00:00:09Z", "waits", "for", "quay.io"];
    assert_eq!(wide[1][7..], rest);
}

#[tokio::test]
async fn requests_are_selected_by_phase() {
    let (plane, namespace) = served("selected").await;
    let api = typed(plane, &namespace);
    let json = untyped(plane, &namespace);
    for (name, phase) in [
        ("new", None),
        ("posted", Some("Posted")),
        ("pending", Some("Pending")),
    ] {
        json.create(&PostParams::default(), &object(name, &spec(&json!({}))))
            .await
            .unwrap();
        if let Some(phase) = phase {
            let patch = Patch::Merge(json!({"status": {"phase": phase}}));
            json.patch_status(name, &PatchParams::default(), &patch)
                .await
                .unwrap();
        }
    }
    for (selector, expected) in [
        ("status.phase!=Posted", vec!["new", "pending"]),
        ("status.phase!=Posted,status.phase!=Pending", vec!["new"]),
        ("status.phase=Posted", vec!["posted"]),
        ("status.phase=", vec!["new"]),
    ] {
        let found = api
            .list(&ListParams::default().fields(selector))
            .await
            .unwrap();
        let names: Vec<_> = found
            .items
            .into_iter()
            .filter_map(|r| r.metadata.name)
            .collect();
        assert_eq!(names, expected, "{selector}");
    }
    let refused = refusal(
        api.list(&ListParams::default().fields("status.progress=2/3"))
            .await,
    );
    assert!(
        refused.message.contains("field label not supported"),
        "{refused:?}"
    );
}

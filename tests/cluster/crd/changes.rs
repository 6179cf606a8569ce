//! What can change after creation: suspend, cancel (one way) and the time to live.

use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::{assert_names, object, refusal, served, source, spec, untyped};

const ONLY: &str = "only suspend, cancel and ttlSecondsAfterFinished may change";

#[tokio::test]
async fn only_suspend_cancel_and_the_time_to_live_can_change() {
    let (plane, namespace) = served("immutable").await;
    let api = untyped(plane, &namespace);
    let image = |float: &str| json!({"source": source(), "float": float});
    let first = json!({
        "images": [image("quay.io/a/b:1"), image("quay.io/a/b:2")],
        "pullSecret": {"name": "pull"},
        "gates": [{"name": "a"}, {"name": "b"}],
    });
    api.create(&PostParams::default(), &object("r", &first))
        .await
        .unwrap();
    let patch = async |spec: Value| {
        let patch = Patch::Merge(json!({"spec": spec}));
        api.patch("r", &PatchParams::default(), &patch).await
    };

    let other_source = json!({"source": "quay.io/a/b:v2", "float": "quay.io/a/b:1"});
    let conditional = json!({"source": source(), "float": "quay.io/a/b:1", "replaces": "None"});
    let images = |images: Value| json!({ "images": images });
    for (changed, field) in [
        (json!({"latch": "Independently"}), "spec.latch"),
        (json!({"onFailure": "Rollback"}), "spec.onFailure"),
        (json!({"referrers": "Require"}), "spec.referrers"),
        (json!({"mode": "Plan"}), "spec.mode"),
        (json!({"undo": true}), "spec.undo"),
        (json!({"incoming": "Remove"}), "spec.incoming"),
        (
            json!({"gates": [{"name": "a"}, {"name": "c"}]}),
            "spec.gates",
        ),
        (json!({"attempts": 6}), "spec.attempts"),
        (json!({"attempts": 6, "suspend": true}), "spec.attempts"),
        (json!({"deadlineSeconds": 7201}), "spec.deadlineSeconds"),
        (json!({"pullSecret": {"name": "other"}}), "spec.pullSecret"),
        (json!({"pullSecret": null}), "spec.pullSecret"),
        (json!({"pushSecret": {"name": "new"}}), "spec.pushSecret"),
        (images(json!([image("quay.io/a/b:1")])), "spec.images"),
        (
            images(json!([conditional, image("quay.io/a/b:2")])),
            "spec.images",
        ),
        (
            images(json!([image("quay.io/a/b:2"), image("quay.io/a/b:1")])),
            "spec.images",
        ),
        (
            images(json!([image("quay.io/a/b:1"), image("quay.io/a/b:3")])),
            "spec.images",
        ),
        (
            images(json!([other_source, image("quay.io/a/b:2")])),
            "spec.images",
        ),
        (
            images(json!([
                image("quay.io/a/b:1"),
                image("quay.io/a/b:2"),
                image("quay.io/a/b:3")
            ])),
            "spec.images",
        ),
    ] {
        let case = changed.to_string();
        let refused = refusal(patch(changed).await);
        let words = ["Forbidden", ONLY, "create another request instead"];
        assert_names(&case, &refused, field, &words);
    }

    for changed in [
        json!({"suspend": true}),
        json!({"suspend": false}),
        json!({"ttlSecondsAfterFinished": 0}),
        // A default that is spelled out is no change.
        json!({"latch": "Together", "attempts": 5, "ttlSecondsAfterFinished": 60}),
        json!({"cancel": true}),
        json!({"cancel": true, "suspend": true}),
    ] {
        let case = changed.to_string();
        let changed_to = patch(changed.clone()).await.unwrap();
        for (field, value) in changed.as_object().unwrap() {
            assert_eq!(&changed_to.data["spec"][field], value, "{case}");
        }
    }
}

#[tokio::test]
async fn cancel_cannot_be_taken_back() {
    let (plane, namespace) = served("cancel").await;
    let api = untyped(plane, &namespace);
    let cancelled = object("r", &spec(&json!({"cancel": true})));
    api.create(&PostParams::default(), &cancelled)
        .await
        .unwrap();
    for back in [json!(false), json!(null)] {
        let patch = Patch::Merge(json!({"spec": {"cancel": back}}));
        let outcome = api.patch("r", &PatchParams::default(), &patch).await;
        let words = [
            "Forbidden",
            "cancel cannot be taken back",
            "create another request",
        ];
        assert_names("cancel", &refusal(outcome), "spec.cancel", &words);
    }
}

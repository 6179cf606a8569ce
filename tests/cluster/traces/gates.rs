//! Gates: a request waits, staged and backed up, until the last entry of `spec.gates` is removed.

use std::path::Path;

use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use promotion_controller::api::PromotionRequest;
use serde_json::{Value, json};
use tokio::process::Command;

use super::ground::{FLOATS, Ground, SETTLE, SOURCES, first_image, image};
use crate::testbed::stage::{condition, object};
use crate::testbed::{Binary, RunDir, binary, shared};

async fn create(ground: &Ground, name: &str, seed: &str, gates: &Value) {
    let source = format!("{}/{SOURCES}@{}", ground.host, ground.source(seed));
    let gates = json!({"gates": gates});
    ground.request(name, &source, "f", &gates).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_waits_at_its_gates_with_everything_staged_until_the_last_is_removed() {
    let ground = Ground::new("gates").await;
    let old = ground.seed("f", "old");
    let _controller = ground.controller(SETTLE);
    create(
        &ground,
        "r",
        "new",
        &json!([{"name": "tests"}, {"name": "approval"}]),
    )
    .await;
    let waits = ground.reason("r", "AwaitingApproval").await;
    assert_eq!(condition(&waits, "Staged").0, "True");
    let new = image("new").digest();
    let found = first_image(&waits);
    assert_eq!((found.phase.as_str(), found.committed), ("BackedUp", None));
    assert_eq!(found.source.unwrap().digest, new.to_string());
    let message = condition(&waits, "Progressing").2;
    assert!(message.contains(": tests, approval;"), "{message}");
    ground.assert_tags(&[("f", old), ("f_incoming", new), ("f__pre", old)], &[old]);

    ground
        .stage
        .edit("r", &json!({"gates": [{"name": "approval"}]}))
        .await;
    ground
        .until("r", |object| {
            condition(object, "Progressing").2.contains(": approval;")
        })
        .await;
    assert_eq!(ground.registry.tag(FLOATS, "f"), Some(old));
    ground.stage.edit("r", &json!({"gates": []})).await;
    let done = ground.posted("r").await;
    assert_eq!(first_image(&done).attempts, None);
    let tags = [
        ("f", new),
        ("f_incoming", new),
        ("f__pre", old),
        ("f__post1", new),
    ];
    ground.assert_tags(&tags, &[old]);
}

/// A float whose tests take longer than the time to the next change would never move otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn a_newer_request_with_gates_waits_for_one_at_its_gate_and_one_without_supersedes_both() {
    let ground = Ground::new("gates-order").await;
    let old = ground.seed("f", "old");
    let _controller = ground.controller(SETTLE);
    let gates = json!([{"name": "tests"}]);
    create(&ground, "one", "a", &gates).await;
    ground.reason("one", "AwaitingApproval").await;
    create(&ground, "two", "b", &gates).await;
    let behind = |object: &PromotionRequest| {
        if object.status.is_none() {
            return false;
        }
        let message = condition(object, "Progressing").2;
        message.contains("/one, which shares a float")
    };
    ground.until("two", behind).await;
    assert_eq!(ground.registry.tag(FLOATS, "f"), Some(old));

    create(&ground, "three", "c", &json!([])).await;
    ground.posted("three").await;
    for name in ["one", "two"] {
        let ended = ground.ended(name).await;
        assert_eq!(condition(&ended, "Failed").1, "Superseded", "{name}");
    }
    assert_eq!(ground.registry.tag(FLOATS, "f"), Some(image("c").digest()));

    // Its gate lets the next one come.
    create(&ground, "four", "d", &gates).await;
    create(&ground, "five", "e", &gates).await;
    ground.reason("four", "AwaitingApproval").await;
    ground.stage.edit("four", &json!({"gates": []})).await;
    ground.posted("four").await;
    ground.reason("five", "AwaitingApproval").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_moved_under_while_it_waited_at_its_gate_pins_that_first() {
    let ground = Ground::new("gates-moved").await;
    let old = ground.seed("f", "old");
    let _controller = ground.controller(SETTLE);
    create(&ground, "r", "new", &json!([{"name": "tests"}])).await;
    ground.reason("r", "AwaitingApproval").await;
    let foreign = ground.foreign("f", "foreign");
    ground.stage.edit("r", &json!({"gates": []})).await;
    ground.posted("r").await;
    let new = image("new").digest();
    let tags = [
        ("f", new),
        ("f_incoming", new),
        ("f__pre", foreign),
        ("f__post1", new),
    ];
    ground.assert_tags(&tags, &[old, foreign]);
}

/// The sample policy, for floats and with names of this namespace alone.
fn policy(namespace: &str) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/gates/policy.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.replace("quay.io/openshift/ci", &format!("quay.io/{namespace}/ci"));
    let text = text.replace("promotion-gates", &format!("gates-{namespace}"));
    text.replace("promotion-approver", &format!("approver-{namespace}"))
}

fn requests(client: Client, namespace: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("ci.openshift.io", "v1alpha1", "PromotionRequest");
    let resource = ApiResource::from_gvk_with_plural(&kind, "promotionrequests");
    Api::namespaced_with(client, namespace, &resource)
}

fn dynamic(name: &str, spec: &Value) -> DynamicObject {
    serde_json::from_value(serde_json::to_value(object(name, spec)).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sample_policy_lets_nobody_leave_a_gate_out_or_remove_it_who_may_not() {
    let plane = shared().await;
    let namespace = plane.namespace("gates-policy").await.unwrap();
    plane.apply(&policy(&namespace)).await.unwrap();
    let binding = |name: &str, kind: &str, role: &str| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": name, "namespace": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        })
    };
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "author", "namespace": namespace},
        "rules": [{"apiGroups": ["ci.openshift.io"], "resources": ["promotionrequests"], "verbs": ["*"]}],
    });
    for object in [
        role,
        binding("author", "Role", "author"),
        binding("approver", "ClusterRole", &format!("approver-{namespace}")),
    ] {
        plane.apply(&object.to_string()).await.unwrap();
    }
    let account = async |name: &str| {
        let token = plane.service_account_token(&namespace, name).await.unwrap();
        requests(plane.client_for(&token).unwrap(), &namespace)
    };
    let (author, approver) = (account("author").await, account("approver").await);
    let spec = |float: &str, gates: &Value| {
        json!({
            "images": [{"source": "registry.ci/a/b:c", "float": format!("quay.io/{float}/ci:f")}],
            "gates": gates,
        })
    };
    let post = PostParams::default();
    let (tests, approval) = (json!({"name": "tests"}), json!({"name": "approval"}));

    // The policy is in force a moment after it was made.
    let bare = dynamic("bare", &spec(&namespace, &json!([tests])));
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let mut refusal = None;
    for _ in 0..600 {
        match author.create(&dry, &bare).await {
            Err(error) => refusal = Some(error.to_string()),
            Ok(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
        }
        if refusal.is_some() {
            break;
        }
    }
    let refusal = refusal.unwrap();
    assert!(
        refusal.contains("add {name: approval} to spec.gates"),
        "{refusal}"
    );
    let elsewhere = dynamic("elsewhere", &spec("elsewhere", &json!([])));
    author.create(&post, &elsewhere).await.unwrap();
    let guarded = dynamic("gated", &spec(&namespace, &json!([tests, approval])));
    author.create(&post, &guarded).await.unwrap();

    let gates = async |api: &Api<DynamicObject>, gates: Value| {
        let patch = Patch::Merge(json!({"spec": {"gates": gates}}));
        api.patch("gated", &PatchParams::default(), &patch).await
    };
    for left in [json!([]), json!([tests]), json!([approval])] {
        let refusal = gates(&author, left.clone()).await.unwrap_err().to_string();
        assert!(
            refusal.contains("may delete promotionrequests/gates"),
            "{left}: {refusal}"
        );
    }
    // What does not touch a gate is not concerned.
    let patch = Patch::Merge(json!({"spec": {"suspend": true}}));
    let params = PatchParams::default();
    author.patch("gated", &params, &patch).await.unwrap();
    gates(&approver, json!([approval])).await.unwrap_err();
    gates(&approver, json!([tests])).await.unwrap();
}

/// Runs a container of the sample Job with the real kubectl: its command, on this folder in place of the volume.
async fn in_the_job(ground: &Ground, container: &Value, shared: &Path) {
    let words = |field: &str| {
        let words = container[field].as_array().unwrap().iter();
        words.map(|word| word.as_str().unwrap().to_owned())
    };
    let mut command: Vec<String> = words("command").collect();
    // In a pod this is its own namespace.
    let here = format!(
        "kubectl() {{ command kubectl -n {} \"$@\"; }}\n",
        ground.stage.namespace
    );
    command.extend(words("args").map(|script| {
        here.clone() + &script.replace("/shared/", &format!("{}/", shared.display()))
    }));
    let kubectl = binary(Binary::Kubectl).await.unwrap();
    let path = format!("{}:/usr/bin:/bin", kubectl.parent().unwrap().display());
    let output = Command::new(&command[0])
        .args(&command[1..])
        .env_clear()
        .env("PATH", path)
        .env("HOME", shared)
        .env("KUBECONFIG", ground.stage.plane.kubeconfig())
        .output();
    let output = output.await.unwrap();
    assert!(output.status.success(), "{container}: {output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sample_job_passes_the_api_server_names_what_is_staged_and_opens_its_own_gate_alone() {
    let ground = Ground::new("gates-job").await;
    ground.seed("f", "old");
    let _controller = ground.controller(SETTLE);
    let gates = json!([{"name": "tests"}, {"name": "signature"}, {"name": "approval"}]);
    create(&ground, "r", "new", &gates).await;
    ground.reason("r", "AwaitingApproval").await;
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/examples/gates/verify-signature.yaml"
    );
    let text = std::fs::read_to_string(path).unwrap();
    let text = text
        .replace("REQUEST", "r")
        .replace("NAMESPACE", &ground.stage.namespace);
    let dry = ["create", "--dry-run=server", "--validate=strict", "-f", "-"];
    let checked = ground.stage.plane.kubectl_with_input(&dry, &text).await;
    let checked = checked.unwrap();
    assert!(checked.status.success(), "{checked:?}");

    let job: Value = serde_saphyr::from_str(&text).unwrap();
    let pod = &job["spec"]["template"]["spec"];
    let folder = RunDir::create("gates-job").unwrap();
    in_the_job(&ground, &pod["initContainers"][0], folder.path()).await;
    let staged = std::fs::read_to_string(folder.join("images")).unwrap();
    let new = image("new").digest();
    assert_eq!(staged, format!("{}/{FLOATS}@{new}\n", ground.host));
    in_the_job(&ground, &pod["containers"][0], folder.path()).await;
    let left = serde_json::to_value(&ground.stage.get("r").await.spec.gates).unwrap();
    assert_eq!(left, json!([{"name": "tests"}, {"name": "approval"}]));
}

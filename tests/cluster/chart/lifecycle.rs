//! Installed, upgraded, taken back and uninstalled: the definition only ever goes forward, and no request is lost.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use promotion_controller::api::{PromotionRequest, crd_yaml};
use serde_json::{Value, json};

use crate::testbed::chart_options::least;
use crate::testbed::helm::{Helm, chart, kubectl};
use crate::testbed::stage::{LOOK, object, spec};
use crate::testbed::{ControlPlane, RunDir, own_plane};

const DEFINITION: &str = "promotionrequests.ci.openshift.io";
/// The next version of the chart, whose definition has one field more.
const NEXT: &str = "99.0.0";

/// A copy of the chart as its next version could be.
fn next_chart(folder: &RunDir) -> PathBuf {
    let copy = folder.join("next");
    copy_folder(&chart(), &copy);
    let edit = |name: &str, change: &dyn Fn(&mut Value)| {
        let path = copy.join(name);
        let text = std::fs::read_to_string(&path).unwrap();
        let mut value: Value = serde_saphyr::from_str(&text).unwrap();
        change(&mut value);
        std::fs::write(&path, value.to_string()).unwrap();
    };
    edit("Chart.yaml", &|about| {
        about["version"] = json!(NEXT);
        about["appVersion"] = json!(NEXT);
    });
    edit("files/promotionrequests.yaml", &|crd| {
        crd["metadata"]["labels"]["app.kubernetes.io/version"] = json!(NEXT);
        let schema = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let status = &mut schema["properties"]["status"]["properties"];
        status["signature"] = json!({"type": "string", "maxLength": 64});
    });
    copy
}

pub(super) fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// What the definition in the cluster says its version is.
async fn version(plane: &ControlPlane) -> String {
    let path = r"jsonpath={.metadata.labels.app\.kubernetes\.io/version}";
    kubectl(plane, &["get", "crd", DEFINITION, "-o", path], "").await
}

/// Waits until the cluster refuses to take the definition back.
async fn guarded(plane: &ControlPlane) {
    let end = Instant::now() + Duration::from_mins(1);
    let back = [
        "label",
        "crd",
        DEFINITION,
        "app.kubernetes.io/version=0.0.1",
        "--overwrite",
        "--dry-run=server",
    ];
    while plane.kubectl(&back).await.unwrap().status.success() {
        assert!(Instant::now() < end, "the definition is not guarded");
        tokio::time::sleep(LOOK * 10).await;
    }
}

/// Requests as the API server has them, fields that our types do not know included.
fn requests(plane: &ControlPlane, namespace: &str) -> Api<DynamicObject> {
    let resource = ApiResource::erase::<PromotionRequest>(&());
    Api::namespaced_with(plane.client().unwrap(), namespace, &resource)
}

async fn signature(plane: &ControlPlane, namespace: &str) -> Value {
    let request = requests(plane, namespace).get("r").await.unwrap();
    request.data["status"]["signature"].clone()
}

/// What a controller of the next version could record: a request with a field that the present version does not know.
async fn record(plane: &ControlPlane, namespace: &str) {
    let wanted = object("r", &spec(&[("quay.io/a/b:c", "quay.io/a/b:d")]));
    let typed: Api<PromotionRequest> = Api::namespaced(plane.client().unwrap(), namespace);
    typed.create(&PostParams::default(), &wanted).await.unwrap();
    let status = json!({"status": {"phase": "Pending", "signature": "next"}});
    // The API server may serve the definition of before for a moment.
    let end = Instant::now() + Duration::from_mins(1);
    while signature(plane, namespace).await != "next" {
        assert!(Instant::now() < end, "the field does not come");
        let (params, patch) = (PatchParams::default(), Patch::Merge(&status));
        let api = requests(plane, namespace);
        api.patch_status("r", &params, &patch).await.unwrap();
        tokio::time::sleep(LOOK).await;
    }
}

/// Tries each of the ways in which people go back.
async fn nothing_takes_it_back(plane: &ControlPlane, helm: &Helm, namespace: &str) {
    let ours = env!("CARGO_PKG_VERSION");
    let why = format!("the definition is of version {NEXT} and cannot go back to {ours}");
    let rollback = ["rollback", "pc", "1", "-n", namespace];
    let words = helm.refused(&rollback, &Value::Null).await;
    assert!(words.contains(&why), "{words}");
    let unversioned = crd_yaml().replace("app.kubernetes.io/version:", "note:");
    let without = "cannot go back to one without a version".to_owned();
    for (verb, definition, why) in [
        ("apply", crd_yaml(), why),
        ("replace", unversioned, without),
    ] {
        let mut arguments = vec![verb, "-f", "-"];
        if verb == "apply" {
            arguments.extend(["--server-side", "--force-conflicts"]);
        }
        let refused = plane
            .kubectl_with_input(&arguments, &definition)
            .await
            .unwrap();
        let words = String::from_utf8_lossy(&refused.stderr);
        assert!(words.contains(&why), "{words}");
    }
    assert_eq!(version(plane).await, NEXT);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_definition_goes_forward_with_the_chart_and_back_with_nothing() {
    let (_turn, plane) = own_plane().await;
    let namespace = plane.namespace("release").await.unwrap();
    let helm = Helm::at(plane.kubeconfig()).await;
    let folder = RunDir::create("charts").unwrap();
    let (this, next) = (chart(), next_chart(&folder));
    let (this, next) = (this.to_str().unwrap(), next.to_str().unwrap());
    let install = ["install", "pc", this, "-n", &namespace];
    let to_this = ["upgrade", "pc", this, "-n", &namespace];
    let to_next = ["upgrade", "pc", next, "-n", &namespace];
    let ours = env!("CARGO_PKG_VERSION");
    // Who records what the next version's controller would.
    let least = || {
        let mut values = least();
        values["statusWriters"] = json!(["admin"]);
        values
    };

    let told = helm.ok(&install, &least()).await;
    assert!(told.contains("registries   quay.io\n"), "{told}");
    assert!(told.contains("kubectl get preq -A"), "{told}");
    let pause = format!(
        "kubectl -n {namespace} create configmap promotion-controller --from-literal=paused=all\n"
    );
    assert!(told.contains(&pause), "{told}");
    assert!(!told.contains("left as it is"), "{told}");
    assert_eq!(version(plane).await, ours);
    guarded(plane).await;

    helm.ok(&to_next, &least()).await;
    assert_eq!(version(plane).await, NEXT);
    record(plane, &namespace).await;
    nothing_takes_it_back(plane, &helm, &namespace).await;

    let told = helm.ok(&to_this, &least()).await;
    let left = format!("has version {NEXT}, later than this chart's. It was left as it is");
    assert!(told.contains(&left), "{told}");
    let image = "jsonpath={.spec.template.spec.containers[0].image}";
    let deployment = [
        "get",
        "deployment",
        "pc-promotion-controller",
        "-n",
        &namespace,
        "-o",
        image,
    ];
    assert_eq!(
        kubectl(plane, &deployment, "").await,
        format!("registry.example.com/promotion-controller:{ours}")
    );
    assert_eq!(version(plane).await, NEXT);
    assert_eq!(signature(plane, &namespace).await, "next");
    // And forward once more.
    helm.ok(&to_next, &least()).await;
    assert_eq!(version(plane).await, NEXT);
    helm.ok(&to_this, &least()).await;

    helm.ok(&["uninstall", "pc", "-n", &namespace], &Value::Null)
        .await;
    assert_eq!(version(plane).await, NEXT);
    assert_eq!(signature(plane, &namespace).await, "next");
    let all = "deployment,service,serviceaccount,poddisruptionbudget,networkpolicy,configmap,role,rolebinding";
    let left = [
        "get",
        all,
        "-n",
        &namespace,
        "-l",
        "app.kubernetes.io/name=promotion-controller",
        "-o",
        "name",
    ];
    // What is frozen stays so.
    let freezes = "configmap/promotion-controller-freezes\n";
    assert_eq!(kubectl(plane, &left, "").await, freezes);
    let left = [
        "get",
        "clusterrole,clusterrolebinding,validatingadmissionpolicy",
        "-l",
        "app.kubernetes.io/name=promotion-controller",
        "-o",
        "name",
    ];
    assert_eq!(kubectl(plane, &left, "").await, "");
    // The same release finds its definition again.
    helm.ok(&install, &least()).await;
    helm.ok(&["uninstall", "pc", "-n", &namespace], &Value::Null)
        .await;
    assert_eq!(version(plane).await, NEXT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_that_was_applied_by_hand_is_taken_over_when_helm_is_told_to() {
    let (_turn, plane) = own_plane().await;
    plane.apply_crds(&crd_yaml()).await.unwrap();
    let namespace = plane.namespace("release").await.unwrap();
    let helm = Helm::at(plane.kubeconfig()).await;
    let folder = chart();
    let install = ["install", "pc", folder.to_str().unwrap(), "-n", &namespace];
    // Who applies it says whose it is, too.
    let mut by_hand = least();
    by_hand["crds"] = json!({"install": false});
    let dry = [&install[..], &["--dry-run=server"]].concat();
    let told = helm.ok(&dry, &by_hand).await;
    let remedy = format!("adopt-lease --lease-namespace {namespace}\n");
    assert!(told.contains(&remedy), "{told}");
    let words = helm.refused(&install, &least()).await;
    assert!(words.contains("invalid ownership metadata"), "{words}");
    let taking = [&install[..], &["--take-ownership"]].concat();
    helm.ok(&taking, &least()).await;
    let label = "app.kubernetes.io/managed-by=Helm";
    let managed = kubectl(plane, &["get", "crd", "-l", label, "-o", "name"], "").await;
    assert!(managed.contains(DEFINITION), "{managed}");
    let ours = format!("{namespace}/promotion-controller");
    assert_eq!(lease(plane).await, ours);
    helm.ok(&["uninstall", "pc", "-n", &namespace], &Value::Null)
        .await;
    assert_eq!(version(plane).await, env!("CARGO_PKG_VERSION"));
}

/// The Lease that the definition names.
async fn lease(plane: &ControlPlane) -> String {
    let path = r"jsonpath={.metadata.annotations.ci\.openshift\.io/lease}";
    kubectl(plane, &["get", "crd", DEFINITION, "-o", path], "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_definition_is_given_to_another_installation_by_adopting_alone() {
    let (_turn, plane) = own_plane().await;
    let namespace = plane.namespace("first").await.unwrap();
    let next = plane.namespace("next").await.unwrap();
    let helm = Helm::at(plane.kubeconfig()).await;
    let folder = chart();
    let folder = folder.to_str().unwrap();
    let upgrade = ["upgrade", "--install", "pc", folder, "-n", &namespace];
    let upgrade_next = [
        "upgrade",
        "--install",
        "pc",
        folder,
        "--take-ownership",
        "-n",
        &next,
    ];
    let full = |namespace: &str| format!("{namespace}/promotion-controller");
    helm.ok(&upgrade, &least()).await;
    guarded(plane).await;
    assert_eq!(lease(plane).await, full(&namespace));
    let mut moved = least();
    moved["leaseNamespace"] = json!(next);
    let words = helm.refused(&upgrade, &moved).await;
    let remedy = format!("adopt-lease --lease-namespace {next}` as an administrator first");
    assert!(words.contains(&remedy), "{words}");
    let words = helm.refused(&upgrade_next, &least()).await;
    assert!(words.contains(&remedy), "{words}");
    // By hand, by manifests that were rendered elsewhere, and by a definition without the annotation.
    let naming = |name: &str| format!("ci.openshift.io/lease{name}");
    for change in [naming("=other/promotion-controller"), naming("-")] {
        let annotate = ["annotate", "crd", DEFINITION, &change, "--overwrite"];
        let refused = plane.kubectl(&annotate).await.unwrap();
        let words = String::from_utf8_lossy(&refused.stderr);
        assert!(
            words.contains("belongs to the installation whose Lease is"),
            "{words}"
        );
    }
    let refused = plane
        .kubectl_with_input(&["replace", "-f", "-"], &crd_yaml())
        .await
        .unwrap();
    assert!(!refused.status.success());
    plane.apply_crds(&crd_yaml()).await.unwrap();
    assert_eq!(lease(plane).await, full(&namespace));

    let adopt = |namespace: &str| {
        let program = env!("CARGO_BIN_EXE_promotion-controller");
        std::process::Command::new(program)
            .args(["adopt-lease", "--lease-namespace", namespace])
            .env("KUBECONFIG", plane.kubeconfig())
            .output()
            .unwrap()
    };
    for to in [&next, &namespace, &next] {
        let done = adopt(to);
        assert!(done.status.success(), "{done:?}");
        assert_eq!(lease(plane).await, full(to));
    }
    helm.refused(&upgrade, &least()).await;
    helm.ok(&upgrade_next, &least()).await;
    assert_eq!(lease(plane).await, full(&next));
    // What its first revision holds names no other Lease either.
    helm.ok(&["rollback", "pc", "1", "-n", &next], &Value::Null)
        .await;
    assert_eq!(lease(plane).await, full(&next));
    helm.ok(&["uninstall", "pc", "-n", &next], &Value::Null)
        .await;
}

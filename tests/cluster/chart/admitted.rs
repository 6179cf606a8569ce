//! Every object of every option, asked about on a real API server.

use serde_json::json;

use crate::testbed::chart_options::{every, least, most};
use crate::testbed::helm::{Helm, kubectl, objects, only, root};
use crate::testbed::{ControlPlane, own_plane};

/// Asks the API server whether it would take objects, unknown fields refused; nothing is kept.
async fn taken(plane: &ControlPlane, manifests: &str) -> usize {
    let arguments = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "--dry-run=server",
        "--validate=strict",
        "-f",
        "-",
    ];
    kubectl(plane, &arguments, manifests).await.lines().count()
}

async fn namespaces(plane: &ControlPlane, names: &[&str]) {
    for name in names {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        plane.apply(&namespace.to_string()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_takes_every_object_of_every_option() {
    let (_turn, plane) = own_plane().await;
    namespaces(plane, &["pc", "ci", "ocp"]).await;
    let helm = Helm::alone().await;
    let mut all = Vec::new();
    for (_, values) in every() {
        let mut rendered = objects(&helm.template("pc", &values).await);
        // Kinds of the Prometheus operator, which is not here.
        rendered.retain(|object| object["apiVersion"] != "monitoring.coreos.com/v1");
        all.extend(rendered);
    }
    assert!(all.len() > 200, "{}", all.len());
    let list = json!({"apiVersion": "v1", "kind": "List", "items": all});
    assert_eq!(taken(plane, &list.to_string()).await, all.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pods_keep_to_the_restricted_standard() {
    let (_turn, plane) = own_plane().await;
    let namespace = plane.namespace("restricted").await.unwrap();
    let label = "pod-security.kubernetes.io/enforce=restricted";
    kubectl(plane, &["label", "namespace", &namespace, label], "").await;
    let helm = Helm::alone().await;
    for mut values in [least(), most()] {
        // There is no such class, and whoever names one has it.
        values["priorityClassName"] = json!("");
        let rendered = objects(&helm.template(&namespace, &values).await);
        let template = &only(&rendered, "Deployment")["spec"]["template"];
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": template["spec"]});
        let arguments = ["create", "-n", &namespace, "--dry-run=server", "-f", "-"];
        kubectl(plane, &arguments, &pod.to_string()).await;
        // The standard is enforced here.
        pod["spec"]["containers"][0]["securityContext"] = json!({});
        let refused = plane
            .kubectl_with_input(&arguments, &pod.to_string())
            .await
            .unwrap();
        let words = String::from_utf8_lossy(&refused.stderr);
        assert!(words.contains("violates PodSecurity"), "{words}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_takes_what_kustomize_makes_of_deploy() {
    let (_turn, plane) = own_plane().await;
    namespaces(plane, &["promotion-controller", "ci"]).await;
    let folder = root().join("deploy");
    let built = kubectl(plane, &["kustomize", folder.to_str().unwrap()], "").await;
    let made = objects(&built);
    only(&made, "Namespace");
    only(&made, "CustomResourceDefinition");
    only(&made, "Deployment");
    // Loudly not, before the image is said.
    let apply = ["apply", "--dry-run=server", "-f", "-"];
    let refused = plane.kubectl_with_input(&apply, &built).await.unwrap();
    let words = String::from_utf8_lossy(&refused.stderr);
    assert!(
        words.contains("spec.template.spec.containers[0].image: Required value"),
        "{words}"
    );
    let built = built.replace("image: \"\"", "image: registry.example.com/a:b");
    assert_eq!(taken(plane, &built).await, made.len());
}
